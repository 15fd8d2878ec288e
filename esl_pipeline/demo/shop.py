"""A shop that a demo is played with, whatever source it is of: what happens in it, and what must hang on the shelf."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.demo.day import Label
from esl_pipeline.settings import Settings

STORE = "DEMO"
BY = "esl-pipeline demo"
# Its day takes minutes, so removals do not wait for one.
POLICY = {"unbind_grace_hours": 0}

Tell = Callable[[str, str], None]
"""Told of a step of the shop's first day: what, and what was found."""


class DemoError(Exception):
    """The demo could not be played to its end; the message says what happened."""


@dataclass(frozen=True)
class Act:
    """A part of the day. job: what Dagster is to do after it, for what no webhook tells."""

    name: str
    title: str
    job: str | None = None


@dataclass
class Fate:
    """What became of the webhooks of an act: how many were delivered, refused as forged, lost on the way."""

    delivered: int = 0
    refused: int = 0
    dropped: int = 0


class ShopUnderDemo(ABC):
    """One shop with its stand-in. fate: of the last act's webhooks. sends: what it tells by."""

    system: ClassVar[str]
    acts: ClassVar[tuple[Act, ...]]
    first_day: ClassVar[str]
    sends: ClassVar[str] = "webhooks"

    def __init__(self) -> None:
        self.fate = Fate()

    @property
    @abstractmethod
    def shop(self) -> str:
        """Its id."""

    @property
    def partition(self) -> str:
        """How Dagster calls it."""
        return f"{self.system}:{self.shop}"

    @abstractmethod
    def running(self) -> AbstractContextManager[object]:
        """Serve it."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The settings that open it, while it runs."""

    @abstractmethod
    def connect(self, settings: Settings, buffer: Buffer, receiver: str, tell: Tell) -> None:
        """Its first day: let it feed STORE, live, and send its webhooks to the receiver. Raises DemoError."""

    @abstractmethod
    def play(self, act: str, receiver: str) -> Iterator[tuple[int, int]]:
        """Let an act happen; how many webhooks are out, of how many. Raises DemoError when the receiver takes none."""

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, Label]:
        """What must hang in STORE by what the pipeline could know after the last act, by code."""

    @property
    @abstractmethod
    def held_back(self) -> int:
        """How many of what is on sale can have no label."""

    @abstractmethod
    def night_falls(self) -> None:
        """From now on the labels are to be as the shop is, whatever was told."""

    @property
    @abstractmethod
    def rng(self) -> random.Random:
        """Its source of randomness."""

    @property
    def files(self) -> Mapping[str, int]:
        """How many of its files ended how, where it sends files."""
        return {}

    def example(self) -> str:
        """The code of a label whose new price was told by a webhook; or ""."""
        return ""
