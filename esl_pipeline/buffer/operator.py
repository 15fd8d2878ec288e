"""The buffer's calls for operators: each does one thing that somebody wants done now, and keeps who wanted it."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Required, TypedDict, Unpack
from uuid import uuid4

from esl_pipeline.buffer.door import Door, Row
from esl_pipeline.buffer.errors import ActionRefused, BufferError

# What esl.refuse_action says it with: nothing was done, and the sentence is for whoever asked.
_REFUSED = "ESL01"

# Of changes by their code: their kind, and the price after them (see changes_waiting).
Looked = Mapping[str, tuple[str, str | None]]


class Who(TypedDict, total=False):
    """Who wants something done. verified: somebody has checked that (a token). run_id: of the run that does it.
    action_id: of one wish; said again it is not done again, and has the same answer."""

    by: Required[str]
    verified: NotRequired[bool]
    run_id: NotRequired[str | None]
    action_id: NotRequired[str]


class OperatorCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/operator.sql.

    Those that do something keep a row in esl.operator_actions, and raise ActionRefused, with nothing done, where a name
    is unknown or there is nothing to do it to.
    """

    def labels_push(
        self,
        *,
        store: str,
        codes: Sequence[str] | None = None,
        product: str | None = None,
        sku: str | None = None,
        vendor: str | None = None,
        tag: str | None = None,
        product_type: str | None = None,
        whole: bool = False,
        **who: Unpack[Who],
    ) -> Row:
        """Push labels of a store again, chosen in one of these ways (whole: all of the store)
        -> {labels, pushed_again, already_due, under_way, waits_for_window, waits_for_approval, rejected, held_back}.

        What the label server holds already is sent once more; what waits to be sent is due now. What the raise_window
        or somebody's word holds back goes on waiting, and a label that a finding holds back is not sent.
        """
        return self._act(
            "esl_operator_push",
            who,
            store=store,
            codes=None if codes is None else list(codes),
            product=product,
            sku=sku,
            vendor=vendor,
            tag=tag,
            product_type=product_type,
            whole=whole or None,
        )

    def store_pause(self, *, store: str, reason: str, until: str | None = None, **who: Unpack[Who]) -> Row:
        """Nothing is pushed to a store until then (ISO 8601; None: until somebody resumes it)
        -> {store_code, since, until, reason, by}."""
        return self._act("esl_operator_pause", who, store=store, reason=reason, until=until)

    def store_resume(self, *, store: str, **who: Unpack[Who]) -> Row:
        """What waits for a paused store goes out -> {store_code, since, until, reason, by, waiting}."""
        return self._act("esl_operator_resume", who, store=store)

    def store_pauses(self, *, store: str | None = None, limit: int = 50) -> list[Row]:
        """Pauses, newest first -> [{store_code, since, until, reason, by, verified, run_id, ended_at, ended_by, holds}]
        (holds: it does now)."""
        return list(self._call("esl_operator_pauses", store=store, limit=limit)["pauses"])

    def deliveries_replay(
        self,
        *,
        ids: Sequence[str] | None = None,
        shop: Mapping[str, str] | None = None,
        since: str | None = None,
        until: str | None = None,
        reason: str | None = None,
        state: str | None = None,
        limit: int = 10_000,
        dry_run: bool = False,
        **who: Unpack[Who],
    ) -> Row:
        """Read finished deliveries again, those of which all of this is true -> {deliveries, without_body, waiting,
        more}.

        ids: webhook ids, or numbers of the inbox. since, until: when they were received. reason: part of why they were
        not used. state: done, superseded, unusable or dead. without_body: their body is no longer kept, so they stay as
        they are. waiting: they wait to be read anyway. more: the limit was reached. dry_run: only count.
        """
        return self._act(
            "esl_operator_replay",
            who,
            ids=None if ids is None else list(ids),
            shop=shop,
            since=since,
            until=until,
            reason=reason,
            state=state,
            limit=limit,
            dry_run=dry_run or None,
        )

    def redrive(
        self,
        *,
        store: str | None = None,
        code: str | None = None,
        reason: str | None = None,
        **who: Unpack[Who],
    ) -> Row:
        """Make refused, failed and dead pushes due again, and without store, code and reason dead deliveries as well
        -> {labels, deliveries}. reason: part of what was said last of the label."""
        return self._act("esl_redrive", who, store=store, code=code, reason=reason)

    def label_server_try(self, *, label_server: str, **who: Unpack[Who]) -> Row:
        """End the breaker's wait: the next drain tries the label server at once with one label
        -> {label_server, was_down, since, waiting}."""
        names = list(self.label_servers)
        return self._act("esl_operator_try", who, label_server=label_server, label_servers=names)

    def changes_waiting(
        self, *, store: str | None = None, after: Sequence[str] | None = None, limit: int = 1_000
    ) -> list[Row]:
        """Removals and price changes that wait for somebody's word, and those that were rejected, by store and code
        -> [{store_code, code, variant_id, source_store_id, title, variant_title, kind, operation, before, after, since,
        rejected_at, rejected_by, reason}]; after: (store, code) of the last one seen."""
        answer = self._call("esl_operator_changes", store=store, after=after, limit=limit)
        return list(answer["changes"])

    def changes_approve(
        self,
        *,
        store: str,
        codes: Sequence[str] | None = None,
        seen: Looked | None = None,
        **who: Unpack[Who],
    ) -> Row:
        """Let drastic changes of a store that wait go on, these or all -> {removals, prices}. seen: what of them
        somebody has looked at; refused when one is another by now."""
        codes = None if codes is None else list(codes)
        return self._act("esl_changes_approve", who, store=store, codes=codes, seen=seen)

    def changes_reject(
        self,
        *,
        store: str,
        codes: Sequence[str],
        seen: Looked | None = None,
        reason: str | None = None,
        **who: Unpack[Who],
    ) -> Row:
        """These labels stay as they are until the source says something else of them -> {removals, prices}. seen: as
        of changes_approve."""
        return self._act("esl_operator_reject", who, store=store, codes=list(codes), seen=seen, reason=reason)

    def store_remove(
        self, *, store: str, labels: str, shop: Mapping[str, str] | None = None, **who: Unpack[Who]
    ) -> Row:
        """End the mappings of a store, or that of one shop. labels: what becomes of its labels at the label server:
        keep, blank or remove -> {store_code, label_server, mappings, labels, dropped, is_done}.

        dropped: changes that waited and are not made any more. is_done: False while labels are still to be blanked or
        removed.
        """
        return self._act("esl_operator_remove", who, store=store, labels=labels, shop=shop)

    def operator_actions(
        self, *, store: str | None = None, action: str | None = None, limit: int = 50
    ) -> list[Row]:
        """What operators did, newest first
        -> [{at, by, verified, db_user, run_id, action, store_code, asked, answer, how_many}]."""
        return list(self._call("esl_operator_actions", store=store, action=action, limit=limit)["actions"])

    def _act(self, function: str, who: Who, **asked: Any) -> Row:
        try:
            return self._call(function, **{"action_id": str(uuid4())} | dict(who) | asked)
        except BufferError as error:
            if error.code == _REFUSED:
                raise ActionRefused(error.message, code=error.code) from None
            raise
