"""The buffer's numbers: of all time and now for Prometheus, since a time for people (functions/numbers.sql)."""

from datetime import datetime

from esl_pipeline.buffer.door import Door
from esl_pipeline.model.numbers import Numbers


class NumberCalls(Door):
    """A part of Buffer."""

    def numbers(self, *, seconds: float = 5) -> Numbers:
        """How things stand, at most so many seconds old, or twenty times as old as it takes to count."""
        return Numbers.of(self._call("esl_numbers", seconds=seconds))

    def stats(self, *, since: datetime, store: str | None = None, limit: int = 10) -> Numbers:
        """What happened since the hour of this time, of all stores or of one and its shops; rows["changing"]: the
        labels that were pushed most often, rows["since"]: that hour."""
        return Numbers.of(self._call("esl_stats", since=since.isoformat(), store=store, limit=limit))
