"""Conditions, alerts and what becomes of them, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, Self

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
Do = Literal["see", "open", "keep", "gone", "close", "forget"]


@dataclass(frozen=True)
class Condition:
    """A trouble that is there now, as what sees it tells of it.

    kind: of catalogue.KINDS. subject: a label server, a store, a shop's key, a job. since: where it is known. labels:
    how many wait or are wrong because of it. shops: by their keys; none: it is nobody's alone. number, detail, path:
    what its kind makes of them, and where on Dagster's pages it is seen. severity: where it is not its kind's own.
    """

    kind: str
    subject: str
    since: datetime | None = None
    labels: int = 0
    shops: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    number: int | None = None
    detail: str = ""
    path: str = ""
    severity: Severity | None = None

    @property
    def key(self) -> str:
        """One trouble's name, by which it is known again."""
        return f"{self.kind}:{self.subject}"

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row of esl_alert_conditions."""
        return cls(
            row["kind"],
            row["subject"],
            since=datetime.fromisoformat(row["since"]) if row["since"] else None,
            labels=row["labels"] or 0,
            shops=tuple(row["shops"] or ()),
            stores=tuple(row["stores"] or ()),
            number=row["number"],
            detail=row["detail"] or "",
        )


@dataclass(frozen=True)
class Told:
    """A trouble in the words that people get, as it is kept."""

    key: str
    kind: str
    subject: str
    severity: Severity
    since: datetime
    says: str
    todo: str
    link: str | None = None
    labels: int = 0
    shops: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row of esl.alerts."""
        return cls(
            **{name: row[name] for name in ("key", "kind", "subject", "severity", "says", "todo", "link")},
            since=datetime.fromisoformat(row["since"]),
            labels=row["labels"],
            shops=tuple(row["shops"]),
        )


@dataclass(frozen=True)
class Alert:
    """A trouble that is not closed. opened_at: when people were to be told; None: not yet. gone_at: since when it seems
    to be over."""

    told: Told
    seen_at: datetime
    opened_at: datetime | None = None
    gone_at: datetime | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From a row of esl.alerts."""
        times = {name: row[name] and datetime.fromisoformat(row[name]) for name in ("opened_at", "gone_at")}
        return cls(Told.of(row), datetime.fromisoformat(row["seen_at"]), **times)


@dataclass(frozen=True)
class Change:
    """What becomes of an alert."""

    do: Do
    told: Told

    def row(self) -> dict[str, Any]:
        """As esl_alert_record takes it."""
        fields = vars(self.told) | {"since": self.told.since.isoformat(), "shops": list(self.told.shops)}
        return {"do": self.do, **fields}


@dataclass(frozen=True)
class Known:
    """What is known of troubles now. unknown: kinds, or keys, that could not be judged this time: nothing of them ends.

    Adds up: `a + b`.
    """

    conditions: tuple[Condition, ...] = ()
    unknown: frozenset[str] = frozenset()

    def __add__(self, other: "Known") -> "Known":
        return replace(
            self, conditions=self.conditions + other.conditions, unknown=self.unknown | other.unknown
        )
