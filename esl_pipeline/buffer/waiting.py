"""The buffer's calls about what waits and why, what a night did, and how much room it takes."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from esl_pipeline.buffer.door import Door, Row
from esl_pipeline.model.waiting import DeliveryState, LabelState

# As many as a call answers with soon.
_PAGE = 5_000


class WaitingCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/waiting.sql or functions/night.sql."""

    def waiting_labels(
        self,
        *,
        store: str | None = None,
        state: LabelState | None = None,
        limit: int = 50,
        after: Sequence[str] | None = None,
    ) -> Row:
        """What is queued and not on the shelf yet, longest first -> {counts: [{store_code, state, labels, oldest,
        until}], labels: [{store_code, code, state, why, until, title, price_before, price_after, since, attempts,
        answer, …}]} (see esl_waiting_labels); after: since, code and store_code of the last one seen."""
        return self._call("esl_waiting_labels", store=store, state=state, limit=limit, after=after)

    def every_waiting_label(
        self, *, store: str | None = None, state: LabelState | None = None
    ) -> Iterator[Row]:
        """All of them, page by page."""
        after: list[str] | None = None
        while page := self.waiting_labels(store=store, state=state, limit=_PAGE, after=after)["labels"]:
            yield from page
            after = [page[-1][key] for key in ("since", "code", "store_code")]

    def waiting_deliveries(
        self,
        *,
        shops: Sequence[Mapping[str, str]] | None = None,
        state: DeliveryState | None = None,
        limit: int = 50,
        after: int | None = None,
    ) -> list[Row]:
        """What came and waits, or was not used, newest first -> [{id, source_store_id, topic, webhook_id, state, why,
        reason, thing, title, received_at, attempts, …}] (see esl_waiting_deliveries); after: the last id seen."""
        named = None if shops is None else list(shops)
        answer = self._call("esl_waiting_deliveries", shops=named, state=state, limit=limit, after=after)
        return list(answer["deliveries"])

    def every_waiting_delivery(
        self, *, shops: Sequence[Mapping[str, str]] | None = None, state: DeliveryState | None = None
    ) -> Iterator[Row]:
        """All of them, page by page."""
        after: int | None = None
        while page := self.waiting_deliveries(shops=shops, state=state, limit=_PAGE, after=after):
            yield from page
            after = page[-1]["id"]

    def night(
        self, *, since: datetime, until: datetime, store: str | None = None
    ) -> tuple[list[Row], list[Row]]:
        """What the label server took between these times -> (labels: [{store_code, code, what, drift, title,
        price_before, price_after, at, pushes, …}] by store and code, comparisons: the last one of each store with its
        label server's own list)."""
        labels: list[Row] = []
        after: list[str] | None = None
        while True:
            answer = self._call(
                "esl_night",
                since=since.isoformat(),
                until=until.isoformat(),
                store=store,
                limit=_PAGE,
                after=after,
            )
            labels += answer["labels"]
            if len(answer["labels"]) < _PAGE:
                return labels, list(answer["comparisons"])
            after = [labels[-1][key] for key in ("store_code", "code")]

    def sizes(self) -> Row:
        """How much room the buffer takes -> {database_bytes, tables: [{name, bytes, rows}]}, largest first."""
        return self._call("esl_sizes")
