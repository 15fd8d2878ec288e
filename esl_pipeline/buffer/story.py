"""The buffer's calls about the past: why a label shows what it shows, and what a webhook or a run has done."""

from collections.abc import Sequence
from datetime import UTC, datetime

from esl_pipeline.buffer.door import Door, Row
from esl_pipeline.model.story import Story
from esl_pipeline.model.telling import told


class StoryCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/story.sql."""

    def story(
        self,
        *,
        store: str,
        code: str,
        at: datetime | None = None,
        since: datetime | None = None,
        limit: int = 20,
    ) -> Story | None:
        """What a place shows now, or did at a time, and why: with the newest `limit` pushes until then, not older than
        `since`. None: nothing is known of it."""
        found = self.stories([(store, code)], at=at, since=since, limit=limit)
        return found[0] if found else None

    def stories(
        self,
        places: Sequence[tuple[str, str]],
        *,
        at: datetime | None = None,
        since: datetime | None = None,
        limit: int = 20,
    ) -> list[Story]:
        """The same of several (store, code), in one call; those of which nothing is known are left out."""
        rows = self._call(
            "esl_story",
            places=[{"store_code": store, "code": code} for store, code in places],
            at=at and at.astimezone(UTC).isoformat(),
            since=since and since.astimezone(UTC).isoformat(),
            limit=limit,
        )["places"]
        return [story for row in rows if (story := told(row, at=at, limit=limit)) is not None]

    def trace_find(self, name: str, *, store: str | None = None, limit: int = 50) -> Row:
        """What a name may mean -> {places: [{store_code, code, how}], webhooks, pushes, runs, devices}, each with what
        it came to, newest first."""
        return self._call("esl_trace_find", name=name, store=store, limit=limit)
