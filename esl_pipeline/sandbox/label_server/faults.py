"""The sandbox label server's failure switches: which calls go wrong, and how.

A rule says for which calls it holds (`action`, `store`, those that name one of `codes`), how often
(`probability`, at most `times`), and whether the call takes effect although it goes wrong (`apply`).
"""

import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: str | None = None
    store: str | None = None
    codes: list[str] | None = Field(default=None, min_length=1)
    probability: float = Field(default=1, ge=0, le=1)
    times: int | None = Field(default=None, ge=1)
    seed: int = 0


class Latency(_Rule):
    """Every answer comes this much later; other rules still hold."""

    kind: Literal["latency"]
    ms: float = Field(ge=0)


class Status(_Rule):
    """An HTTP error, with Retry-After as given."""

    kind: Literal["status"]
    status: int = Field(ge=300, le=599)
    retry_after: str | None = None
    body: str = ""
    apply: bool = False


class Error(_Rule):
    """HTTP 200 with an error in the body."""

    kind: Literal["error"]
    error_code: int | str = 1
    error_msg: str = "system error"
    apply: bool = False


class Text(_Rule):
    """HTTP 200 with a body that is not JSON, or any other."""

    kind: Literal["text"]
    body: str = "<html><body><h1>502 Bad Gateway</h1></body></html>"
    apply: bool = False


class BadCodes(_Rule):
    """Any batch that names one of these codes is refused; `apply` takes the items before the first one."""

    kind: Literal["bad_codes"]
    codes: list[str] = Field(min_length=1)  # never any
    error_msg: str = "product data error"
    apply: bool = False


class Hold(_Rule):
    """The answer is right, but comes after so many seconds: the client's time-out comes first."""

    kind: Literal["hold"]
    seconds: float = Field(ge=0)
    apply: bool = True


class Reset(_Rule):
    """The connection is reset (TCP RST) instead of an answer."""

    kind: Literal["reset"]
    apply: bool = False


class Hidden(_Rule):
    """Answers without these products or devices (by their codes), counts too; in lists alone: slipped between pages."""

    kind: Literal["hidden"]
    hides: list[str] = Field(min_length=1)
    apply: bool = True


class DropsZeros(_Rule):
    """The server takes codes for numbers: what comes as 00123 is kept as 123."""

    kind: Literal["drops_zeros"]
    apply: bool = True


Failure = Status | Error | Text | BadCodes | Hold | Reset | Hidden | DropsZeros
Fault = Annotated[Latency | Failure, Field(discriminator="kind")]


class Faults:
    """The rules in force, with how often each has fired."""

    def __init__(self) -> None:
        self.replace([])

    def replace(self, rules: list[Fault]) -> None:
        """Put these rules in force, instead of all earlier ones."""
        self._rules = [(rule, random.Random(rule.seed)) for rule in rules]  # noqa: S311
        self._fired = [0] * len(rules)

    def shown(self) -> list[dict[str, Any]]:
        """The rules as set, each with `fired`."""
        return [
            {**rule.model_dump(), "fired": fired}
            for (rule, _), fired in zip(self._rules, self._fired, strict=True)
        ]

    def fire(self, action: str, store: str, codes: list[str]) -> tuple[float, Failure | None]:
        """The seconds of latency for a call, and the first rule, in their order, that makes it fail."""
        seconds = 0.0
        for index, (rule, chance) in enumerate(self._rules):
            if not self._holds(index, rule, action, store, codes) or chance.random() >= rule.probability:
                continue
            self._fired[index] += 1
            if not isinstance(rule, Latency):
                return seconds, rule
            seconds += rule.ms / 1000
        return seconds, None

    def _holds(self, index: int, rule: Fault, action: str, store: str, codes: list[str]) -> bool:
        return (
            rule.action in (None, action)
            and rule.store in (None, store)
            and (rule.times is None or self._fired[index] < rule.times)
            and (rule.codes is None or not set(rule.codes).isdisjoint(codes))
        )
