"""What is due, as the drain's sensor asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from esl_pipeline.model.shop import Shop


@dataclass(frozen=True)
class Outage:
    """A label server that is down; times as ISO 8601."""

    since: str
    probe_at: str
    reason: str


@dataclass(frozen=True)
class Due:
    """What there is to do now. anything: a drain run would find work.

    outage: while the label server is down. drain: who holds the drain's lease, if anybody does. wants_relief: whether
    that one is of age and nobody has been started to take over. shops: all that are mapped.
    """

    anything: bool
    inbox: bool
    variants: bool
    queue: bool
    refresh: bool
    outage: Outage | None = None
    drain: str | None = None
    wants_relief: bool = False
    shops: Sequence[Shop] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """As the buffer gives it."""
        return cls(
            anything=row["due"],
            inbox=row["inbox"],
            variants=row["variants"],
            queue=row["queue"],
            refresh=row["refresh"],
            outage=Outage(**row["outage"]) if row["outage"] else None,
            drain=row["drain"]["holder"] if row["drain"] else None,
            wants_relief=bool(row["drain"]) and row["drain"]["wants_relief"],
            shops=row["shops"],
        )
