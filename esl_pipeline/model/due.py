"""What is due, as the drains and their sensor ask."""

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
    """What there is to do now for one label server. anything: a drain run would find work.

    graces: whether removals have waited long enough. is_fed: whether any shop feeds its stores. outage: while the label
    server is down. drain: who holds the lease of its drain, if anybody does. wants_relief: whether that one is of age
    and nobody has been started to take over.
    """

    anything: bool
    inbox: bool
    variants: bool
    queue: bool
    refresh: bool
    graces: bool = False
    outage: Outage | None = None
    drain: str | None = None
    is_fed: bool = False
    wants_relief: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """As the buffer gives it."""
        return cls(
            anything=row["due"],
            inbox=row["inbox"],
            variants=row["variants"],
            queue=row["queue"],
            refresh=row["refresh"],
            graces=row["graces"],
            outage=Outage(**row["outage"]) if row["outage"] else None,
            drain=row["drain"]["holder"] if row["drain"] else None,
            is_fed=row["is_fed"],
            wants_relief=bool(row["drain"]) and row["drain"]["wants_relief"],
        )


@dataclass(frozen=True)
class DueEverywhere:
    """The same for every label server, by name.

    shops: all that are mapped. elsewhere: of active mappings, stores at servers that no setting names, by server.
    """

    servers: Mapping[str, Due]
    shops: Sequence[Shop]
    elsewhere: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, row: Mapping[str, Any], names: Sequence[str]) -> Self:
        """As the buffer gives it, of these servers, in this order."""
        servers = {name: Due.of(row["servers"][name]) for name in names}
        return cls(servers=servers, shops=row["shops"], elsewhere=row["elsewhere"])
