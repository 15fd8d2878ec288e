"""The buffer's calls about physical labels: passes over a store's, what they found, and what is known to be shown."""

from collections.abc import Mapping, Sequence

from esl_pipeline.buffer.door import Door, Row

MAX_LABELS_PER_PAGE = 10_000


class DeviceCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/devices.sql or ladder.sql."""

    def device_pass_begin(self, *, pass_id: str, store: str, run_id: str, since: str | None = None) -> Row:
        """Begin to read a store's labels at this label server -> {outcome, started_at, zone, error, again_at}.

        outcome: open, or why it is not read: read (a complete pass began at `since` or later), busy, elsewhere,
        not_known, down.
        """
        return self._call(
            "esl_device_pass_begin",
            pass_id=pass_id,
            store=store,
            run_id=run_id,
            since=since,
            label_server=self.label_server,
        )

    def device_page(self, *, pass_id: str, page: int, devices: Sequence[Row], malformed: int) -> Row:
        """Store what differs of labels (esl.device_row, each once), note what was read -> {open, changed}."""
        return self._call(
            "esl_device_page", pass_id=pass_id, page=page, devices=list(devices), malformed=malformed
        )

    def device_pass_finish(
        self,
        *,
        pass_id: str,
        state: str,
        error: str | None = None,
        zone: str | None = None,
        counted_online: int | None = None,
        counted_offline: int | None = None,
    ) -> Row:
        """The pass has ended (complete, failed, not_known) -> {state, error, devices, changed, gone, is_news}.

        Of a complete one, what it did not see is gone; one that is doubtful has failed.
        """
        return self._call(
            "esl_device_pass_finish",
            pass_id=pass_id,
            state=state,
            error=error,
            zone=zone,
            counted_online=counted_online,
            counted_offline=counted_offline,
        )

    def device_stores(self) -> list[Row]:
        """Mapped stores whose labels can be read now, in the order in which it is their turn ->
        [{store_code, label_server, shops}]."""
        return list(self._call("esl_device_stores", label_servers=self.label_servers)["stores"])

    def shelf(
        self, *, shop: Mapping[str, str] | None = None, store: str | None = None, limit: int = 20
    ) -> list[Row]:
        """How the labels of the stores stand that a shop feeds (None: all), or of one: counts by rung and kind, the
        first `limit` labels of each kind, what the evidence is, and what the policy allows."""
        return list(self._call("esl_shelf", shop=shop, store=store, limit=limit)["stores"])

    def shelf_list(
        self, *, store: str, after: Sequence[str] | None = None, limit: int = MAX_LABELS_PER_PAGE
    ) -> tuple[list[Row], list[str] | None]:
        """A page of a store's physical labels and products without one -> (rows, `after` for the next; None: there is
        none)."""
        page = self._call(
            "esl_shelf_list", store=store, after=None if after is None else list(after), limit=limit
        )
        return page["labels"], page["next"]

    def ladder(self, code: str, *, store: str | None = None) -> list[Row]:
        """How far the price of a product has come, place by place, with its labels."""
        return list(self._call("esl_ladder", code=code, store=store)["places"])
