"""The buffer's calls about what is done by hand with physical labels, and about those that measure."""

from collections.abc import Sequence

from esl_pipeline.buffer.door import Door, Row


class HandCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/hands.sql or functions/probe.sql."""

    def hands_find(self, *names: str, store: str | None = None) -> Row:
        """What the mapped stores, or one, have of these labels and products -> {stores, labels, products}.

        stores: every mapped one, with its label server. labels: called so, or showing a product called so. products:
        accepted by the label server.
        """
        return self._call("esl_hands_find", names=list(names), store=store)

    def hands_note(
        self,
        *,
        action_id: str,
        by: str,
        store: str,
        action: str,
        outcome: str,
        esl_code: str | None = None,
        code: str | None = None,
        answer: str | None = None,
    ) -> None:
        """Keep what somebody does with a label (bind, unbind, flash), or how it ended; a change is to be shown."""
        self._call(
            "esl_hands_note",
            action_id=action_id,
            by=by,
            store=store,
            action=action,
            outcome=outcome,
            esl_code=esl_code,
            code=code,
            answer=answer,
        )

    def hands_seen(
        self, *, action_id: str, by: str, store: str, code: str, label_hash: str, shows: str | None = None
    ) -> bool:
        """Somebody has looked where the label of this hash is to be, and seen it, or another price (shows); False: the
        product has another label by now."""
        answer = self._call(
            "esl_hands_seen",
            action_id=action_id,
            by=by,
            store=store,
            code=code,
            label_hash=label_hash,
            shows=shows,
        )
        return bool(answer["seen"])

    def probe_begin(
        self, *, probe_id: str, store: str, esl_code: str, by: str, run_id: str, seconds: float
    ) -> Row:
        """Begin a probe at this label server, of so many seconds at most -> {outcome, code, rows_move, auto_triggers,
        error}.

        outcome: open, or why it is not begun: busy, elsewhere, not_known, down. code: of the product to show.
        """
        return self._call(
            "esl_probe_begin",
            probe_id=probe_id,
            store=store,
            esl_code=esl_code,
            by=by,
            run_id=run_id,
            seconds=seconds,
            label_server=self.label_server,
        )

    def probe_clock(self, *, store: str, since: str | None = None) -> Row:
        """The buffer's time, and whether the store may have been triggered by us since -> {at, triggered}."""
        return self._call("esl_probe_clock", store=store, since=since)

    def probe_finish(
        self,
        *,
        probe_id: str,
        outcome: str,
        is_full: bool,
        rounds: int,
        auto_triggers: bool | None,
        seconds: float | None,
        reason: str | None,
    ) -> Row:
        """The probe has ended (moves, itself, silent, failed) -> {rows_move, auto_triggers, seconds}: what is known of
        its label server now."""
        return self._call(
            "esl_probe_finish",
            probe_id=probe_id,
            outcome=outcome,
            is_full=is_full,
            rounds=rounds,
            auto_triggers=auto_triggers,
            seconds=seconds,
            reason=reason,
        )

    def probe_stores(self) -> Sequence[Row]:
        """Stores whose policy dedicates a label to probes -> [{store_code, label_server, esl_code}]."""
        return list(self._call("esl_probe_stores", label_servers=self.label_servers)["stores"])

    def shelf_state(self) -> Sequence[Row]:
        """How the physical labels of each active store were read last -> [{store_code, label_server, labels, bound,
        online, read_at, failed, probe}]; probe: the newest one that has ended."""
        return list(self._call("esl_shelf_state")["stores"])
