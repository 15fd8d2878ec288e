"""Numbers as the buffer counts them: how often something happened and, of what takes time, how long it took."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One count. name: of what; party: of which store, or shop; kind: of which kind (functions/numbers.sql).

    total: seconds in all; buckets: how many took up to each of the bounds, and more than the last; both only of what is
    measured.
    """

    name: str
    party: str
    server: str
    kind: str
    n: int
    total: float | None = None
    buckets: tuple[int, ...] | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Measure":
        """From a row of the buffer."""
        buckets = row["buckets"]
        return cls(**{**row, "buckets": None if buckets is None else tuple(buckets)})


@dataclass(frozen=True)
class Spread:
    """How long something took, of many: a histogram."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    total: float

    @classmethod
    def of(cls, measures: Iterable[Measure], bounds: Sequence[float]) -> "Spread":
        """All of these together."""
        measured = [measure for measure in measures if measure.buckets is not None]
        columns = zip(*(measure.buckets or () for measure in measured), strict=True)
        buckets = tuple(map(sum, columns)) or (0,) * (len(bounds) + 1)
        return cls(tuple(bounds), buckets, sum(measure.total or 0 for measure in measured))

    @property
    def n(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    @property
    def up_to(self) -> list[tuple[str, float]]:
        """For each bound how many took no longer, as Prometheus has it."""
        names = [f"{bound:g}" for bound in self.bounds]
        return list(zip([*names, "+Inf"], map(float, accumulate(self.buckets)), strict=True))

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of them ended, between the bounds by proportion; None of none.

        Of what took longer than the last bound nothing more is known: then it is that bound.
        """
        if not self.n:
            return None
        wanted, before = share * self.n, 0
        for (low, high), n in zip(pairwise((0.0, *self.bounds)), self.buckets, strict=False):
            if n and before + n >= wanted:
                return low + (high - low) * (wanted - before) / n
            before += n
        return self.bounds[-1]


@dataclass(frozen=True)
class Numbers:
    """How things stand: what esl_numbers tells."""

    bounds: tuple[float, ...]
    measures: tuple[Measure, ...]
    rows: Mapping[str, Any]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Numbers":
        """From the buffer's answer."""
        return cls(tuple(answer["bounds"]), tuple(map(Measure.of, answer["measures"])), answer)

    def named(self, name: str) -> list[Measure]:
        """The counts of this name."""
        return [measure for measure in self.measures if measure.name == name]
