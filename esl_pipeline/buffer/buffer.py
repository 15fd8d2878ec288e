"""The one door to the buffer: each method is one SQL function, whatever the transport."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from esl_pipeline.buffer.alerts import AlertCalls
from esl_pipeline.buffer.devices import DeviceCalls
from esl_pipeline.buffer.door import Row
from esl_pipeline.buffer.files import FileCalls
from esl_pipeline.buffer.hands import HandCalls
from esl_pipeline.buffer.leases import LeaseCalls
from esl_pipeline.buffer.migrate import functions_build
from esl_pipeline.buffer.numbers import NumberCalls
from esl_pipeline.buffer.operator import OperatorCalls
from esl_pipeline.buffer.people import PeopleCalls
from esl_pipeline.buffer.story import StoryCalls
from esl_pipeline.buffer.waiting import WaitingCalls
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.model.due import Due, DueEverywhere
from esl_pipeline.model.push import Claim, Later, Outcome, PushRules, QueuedLabel, RefreshClaim

# supabase.md 3.2: about 2.5 MB a call, and no gain from larger ones.
MAX_ROWS_PER_CALL = 5_000
MAX_BYTES_PER_CLAIM = 8_000_000


class Buffer(
    PeopleCalls,
    OperatorCalls,
    StoryCalls,
    WaitingCalls,
    FileCalls,
    DeviceCalls,
    HandCalls,
    AlertCalls,
    LeaseCalls,
    NumberCalls,
):
    """Inbox, variants, labels, queue and audit; and the parts that are named after who asks: a round trip each."""

    # Inbox

    def inbox_add(self, deliveries: Sequence[Mapping[str, Any]]) -> Row:
        """Keep deliveries as received -> {received, inserted, waiting, refused, each}.

        waiting: {deliveries, bytes} of the delivery's shop, without a delivery no key. refused: why some were not kept
        (no store is mapped for their shop, and too much of it waits), else no key. each: of several the same for each
        of them, in their order, else no key.
        """
        return self._call("esl_inbox_add", deliveries=list(deliveries))

    def inbox_add_each(self, deliveries: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Keep deliveries as received, all or none -> {inserted, waiting, refused} of each."""
        answer = self.inbox_add(deliveries)
        each: list[Row] = answer["each"] if len(deliveries) > 1 else [answer]
        return each

    def inbox_claim(
        self,
        *,
        run_id: str,
        limit: int = 200,
        max_bytes: int = MAX_BYTES_PER_CLAIM,
        lease_seconds: float = 30,
        max_attempts: int = 8,
        shop: Mapping[str, str] | None = None,
    ) -> tuple[str, list[Row]]:
        """Lease open deliveries of one shop, or of those that this label server's drain reads, each shop's oldest, in
        turns -> (claim id, events)."""
        claim_id = str(uuid4())
        answer = self._call(
            "esl_inbox_claim",
            claim_id=claim_id,
            run_id=run_id,
            limit=limit,
            max_bytes=max_bytes,
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            shop=shop,
            label_server=self.label_server,
            label_servers=self.label_servers,
        )
        return claim_id, answer["events"]

    # Variants

    def variants_merge(
        self,
        *,
        claim_id: str | None,
        products: Sequence[Row],
        variants: Sequence[Row],
        levels: Sequence[Row],
        events: Sequence[Row],
        details: Sequence[Row] = (),
        shops: Sequence[Row] = (),
    ) -> Row:
        """Store what the source says, newest version first, and finish the events, in one transaction."""
        return self._call(
            "esl_variants_merge",
            claim_id=claim_id,
            products=list(products),
            variants=list(variants),
            levels=list(levels),
            events=list(events),
            details=list(details),
            shops=list(shops),
        )

    def variants_due(
        self, *, limit: int = MAX_ROWS_PER_CALL, shop: Mapping[str, str] | None = None, after: int = 0
    ) -> tuple[list[Row], list[StoreMapping]]:
        """Variants (rows.VARIANTS) that are not evaluated yet, of one shop or of those that this label server's drain
        reads, in turns, and all active mappings of their shops."""
        due = self._call(
            "esl_variants_due",
            limit=limit,
            shop=shop,
            after=after,
            label_server=self.label_server,
            label_servers=self.label_servers,
        )
        return due["variants"], [StoreMapping.of(row) for row in due["mappings"]]

    # Labels and queue

    def labels_stage(
        self,
        *,
        labels: Sequence[Row],
        findings: Sequence[Row],
        evaluated: Sequence[Row],
        problems: Mapping[str, str | None] | None = None,
    ) -> Row:
        """Store evaluated labels and queue the places that differ from the ledger.

        problems: per mapping that was evaluated, what makes its settings unusable, or None.
        """
        return self._call(
            "esl_labels_stage",
            labels=list(labels),
            findings=list(findings),
            evaluated=list(evaluated),
            problems=dict(problems or {}),
        )

    def push_claim(
        self,
        *,
        limit: int,
        lease_seconds: float,
        max_attempts: int,
        run_id: str,
        asset: str,
        shop: Mapping[str, str] | None = None,
        concurrency: int | None = None,
    ) -> Claim | Later | None:
        """Lease one batch for one call at this label server, intents written; None: nothing is due.

        concurrency: how many calls may be in flight; None: what is under way keeps nothing back.
        """
        at = time.monotonic()
        claimed = self._call(
            "esl_push_claim",
            claim_id=str(uuid4()),
            limit=limit,
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            run_id=run_id,
            asset=asset,
            shop=shop,
            concurrency=concurrency,
            label_server=self.label_server,
        )
        if rows := [QueuedLabel.of(row) for row in claimed["rows"]]:
            whose = claimed["push_id"], claimed["store_code"], claimed["operation"]
            return Claim(*whose, rows, at, claimed["has_more"])
        seconds = claimed["again_seconds"]
        return None if seconds is None else Later(seconds, claimed["is_paced"])

    def push_finish(self, claim: Claim, outcome: Outcome, rules: PushRules) -> Row:
        """Record the outcome of a claimed batch -> {accepted, retried, failed, dead, stale}."""
        return self._call(
            "esl_push_finish",
            push_id=claim.push_id,
            store_code=claim.store_code,
            operation=claim.operation,
            rows=[{"code": row.code, "generation": row.generation} for row in claim.rows],
            label_server=self.label_server,
            **asdict(outcome),
            batch_size=rules.batch_size,
            max_attempts=rules.max_attempts,
            initial_delay_seconds=rules.initial_delay,
            multiplier=rules.multiplier,
            max_delay_seconds=rules.max_delay,
            max_refusals=rules.max_refusals,
            refused_delay_seconds=rules.refused_delay,
            refused_multiplier=rules.refused_multiplier,
            max_refused_delay_seconds=rules.max_refused_delay,
            pause_seconds=rules.pause,
            max_pause_seconds=rules.max_pause,
            down_after=rules.down_after,
            probe_seconds=rules.probe,
            max_probe_seconds=rules.max_probe,
        )

    def push_again(self, *, shop: Mapping[str, str]) -> Row:
        """Make the shop's failed and dead pushes due once more -> {labels}."""
        return self._call("esl_push_again", shop=shop)

    def refresh_claim(
        self,
        *,
        run_id: str,
        lease_seconds: float,
        rise_seconds: float,
        concurrency: int | None = None,
        shop: Mapping[str, str] | None = None,
    ) -> RefreshClaim | None:
        """Lease one store whose labels wait for their trigger; None: nothing is due.

        concurrency: of the label server's calls; a store leaves one of them to the others.
        """
        claim_id = str(uuid4())
        store: str | None = self._call(
            "esl_refresh_claim",
            claim_id=claim_id,
            run_id=run_id,
            lease_seconds=lease_seconds,
            rise_seconds=rise_seconds,
            concurrency=concurrency,
            shop=shop,
            label_server=self.label_server,
        )["store_code"]
        return RefreshClaim(claim_id, store) if store is not None else None

    def refresh_finish(
        self,
        claim: RefreshClaim,
        outcome: Outcome,
        *,
        run_id: str,
        gap_seconds: float,
        initial_delay_seconds: float,
        multiplier: float,
        max_delay_seconds: float,
    ) -> bool:
        """Record the outcome of a claimed trigger -> whether another one is due."""
        said = asdict(outcome)
        del said["server_failed"]
        more: bool = self._call(
            "esl_refresh_finish",
            claim_id=claim.claim_id,
            store_code=claim.store_code,
            run_id=run_id,
            gap_seconds=gap_seconds,
            initial_delay_seconds=initial_delay_seconds,
            multiplier=multiplier,
            max_delay_seconds=max_delay_seconds,
            label_server=self.label_server,
            **said,
        )["more"]
        return more

    def graces_end(self, *, shop: Mapping[str, str] | None = None, limit: int = 1_000) -> int:
        """Decide again where a removal has waited long enough -> how many places; call again until there are none."""
        done = self._call("esl_graces_end", label_server=self.label_server, shop=shop, limit=limit)
        return int(done["places"])

    def claims_release(self, *, run_id: str) -> Row:
        """For the retry of a run that has ended: what it had claimed is due at once -> {labels, deliveries}."""
        return self._call("esl_claims_release", run_id=run_id)

    def rate_take(
        self,
        *,
        server: str,
        rate_per_second: float,
        concurrency: int,
        call_id: str,
        seconds: float,
        recorded_as: str | None = None,
        background: Mapping[str, Any] | None = None,
        ended: Sequence[str] = (),
    ) -> tuple[float | None, bool]:
        """Have a call of a label server begin -> in how many seconds; None: not yet, ask again; and whether no other
        call is to begin before it.

        It counts as in flight for so many seconds, or until it is told among the ended ones, or the push or refresh
        that it is recorded as is finished. background: {share, patient} of a call that lets others go first.
        """
        answer = self._call(
            "esl_rate_take",
            server=server,
            rate_per_second=rate_per_second,
            concurrency=concurrency,
            call_id=call_id,
            recorded_as=recorded_as,
            background=background,
            seconds=seconds,
            ended=list(ended),
        )
        return answer["wait_seconds"], answer["is_next"]

    def rate_give(self, *, ended: Sequence[str]) -> None:
        """These calls of a label server are over."""
        self._call("esl_rate_give", ended=list(ended))

    # The drain run

    def due(self) -> Due:
        """What there is to do now for this label server."""
        servers = self._due([self.label_server])["servers"]
        return Due.of(servers[self.label_server])

    def due_everywhere(self) -> DueEverywhere:
        """What there is to do now for each label server that the settings name."""
        return DueEverywhere.of(self._due(self.label_servers), self.label_servers)

    def _due(self, servers: Sequence[str]) -> Row:
        return self._call(
            "esl_due", servers=list(servers), label_servers=self.label_servers, build=functions_build()
        )

    # Reconciliation: a whole shop against the buffer

    def snapshot_begin(self, *, snapshot_id: str, shop: Mapping[str, str], run_id: str) -> Row:
        """Open a snapshot of the shop; others of it that are open can conclude nothing any more."""
        return self._call("esl_snapshot_begin", snapshot_id=snapshot_id, shop=shop, run_id=run_id)

    def snapshot_merge(
        self,
        *,
        snapshot_id: str,
        products: Sequence[Row] = (),
        variants: Sequence[Row] = (),
        levels: Sequence[Row] = (),
        details: Sequence[Row] = (),
        shops: Sequence[Row] = (),
    ) -> Row:
        """Store what differs of one part, note what was read -> {open, changed, unchanged, newer}."""
        return self._call(
            "esl_snapshot_merge",
            snapshot_id=snapshot_id,
            products=list(products),
            variants=list(variants),
            levels=list(levels),
            details=list(details),
            shops=list(shops),
        )

    def snapshot_finish(
        self, *, snapshot_id: str, as_of: str, counts: Mapping[str, int], stock_as_of: str | None = None
    ) -> Row:
        """All was read: what was not there and is older is gone -> {finished, removed, levels_gone, reason}.

        stock_as_of: when the read of the stock began; None: it was not read, so nothing is concluded about it.
        """
        return self._call(
            "esl_snapshot_finish",
            snapshot_id=snapshot_id,
            as_of=as_of,
            stock_as_of=stock_as_of,
            counts=counts,
        )

    def snapshot_abandon(self, *, snapshot_id: str, reason: str) -> Row:
        """Close a snapshot that was not read to its end -> {abandoned}."""
        return self._call("esl_snapshot_abandon", snapshot_id=snapshot_id, reason=reason)

    def snapshot_keep(self, *, snapshot_id: str, unclear: Sequence[Row]) -> Row:
        """Nothing that may be one of these ({lowest, highest, title}) is concluded to be absent -> {kept}."""
        return self._call("esl_snapshot_keep", snapshot_id=snapshot_id, unclear=list(unclear))

    def watermark(self, *, shop: Mapping[str, str], source: str) -> str | None:
        """Up to when the shop's changes have been read (ISO 8601), or None."""
        at: str | None = self._call("esl_watermark_get", shop=shop, source=source)["at"]
        return at

    def watermark_move(self, *, shop: Mapping[str, str], source: str, at: str) -> Row:
        """The shop's changes have been read up to then; an earlier time changes nothing -> {at}."""
        return self._call("esl_watermark_move", shop=shop, source=source, at=at)

    def missing_variants(
        self, *, shop: Mapping[str, str], after: str | None = None, limit: int = 100
    ) -> list[str]:
        """Ids of products of which webhooks did not tell all, in order; after: the last one seen."""
        return list(self._call("esl_missing_variants", shop=shop, after=after, limit=limit)["products"])

    # Reconciliation: the label server's own list against the ledger

    def drift_begin(self, *, store: str) -> Row:
        """Begin a comparison -> {at, ledger, owned}."""
        return self._call("esl_drift_begin", store=store)

    def drift_compare(self, *, store: str, since: str, codes: Sequence[str]) -> Row:
        """What we know of listed codes, without labels on their way since -> {labels, ours, foreign, reserved}."""
        return self._call("esl_drift_compare", store=store, since=since, codes=list(codes))

    def drift_ledger(
        self, *, store: str, after: str | None = None, limit: int = MAX_ROWS_PER_CALL
    ) -> tuple[list[str], str | None]:
        """A page of the codes in ledger and queue -> (codes, the last one; None: there are no more)."""
        page = self._call("esl_drift_ledger", store=store, after=after, limit=limit)
        return page["codes"], page["next"]

    def drift_unlisted(self, *, store: str, since: str, codes: Sequence[str]) -> Row:
        """What the ledger has of codes that no list has -> {labels: not on their way since, moving: the others}."""
        return self._call("esl_drift_unlisted", store=store, since=since, codes=list(codes))

    def drift_repair(self, *, store: str, run_id: str, since: str, labels: Sequence[Row]) -> Row:
        """Correct the ledger to what the label server holds, and queue what follows -> {requeued, given_up: codes}."""
        return self._call("esl_drift_repair", store=store, run_id=run_id, since=since, labels=list(labels))

    def drift_end(
        self,
        *,
        store: str,
        at: str,
        run_id: str,
        complete: bool,
        reason: str | None,
        listed: int,
        ledger: int,
        skipped: int,
        given_up: int,
    ) -> None:
        """Keep how a comparison ended."""
        self._call(
            "esl_drift_end",
            store=store,
            at=at,
            run_id=run_id,
            complete=complete,
            reason=reason,
            listed=listed,
            ledger=ledger,
            skipped=skipped,
            given_up=given_up,
        )

    def accuracy(
        self, *, shop: Mapping[str, str] | None = None, shops: Sequence[Mapping[str, str]] | None = None
    ) -> list[Row]:
        """Per live mapping (of a shop, of some shops): publishable and accurate labels, unsettled places, variants due,
        its problem."""
        return list(self._call("esl_accuracy", shop=shop, shops=shops)["mappings"])

    # Housekeeping

    def housekeep(
        self, *, keep_bodies_days: int, keep_deliveries_days: int | None = None, limit: int = 10_000
    ) -> Row:
        """One batch of deleting what is no longer kept -> {bodies, deliveries, unmapped, passes, reach,
        redacted, more}; call again while more.

        What has waited keep_bodies_days for a store to be mapped goes (unmapped). Bodies of finished deliveries go,
        their hashes stay; later the deliveries go whose bodies carry a signed time (None: never), because a copy of
        them would be superseded. Passes over physical labels go with the bodies, and how labels could be reached with
        the deliveries. Of a shop that asked to be forgotten, once that is confirmed, everything goes but the
        audit and ledger of what labels showed, its inactive mappings, and the rows of app/uninstalled and shop/redact
        themselves.
        """
        return self._call(
            "esl_housekeep",
            keep_bodies_days=keep_bodies_days,
            keep_deliveries_days=keep_deliveries_days,
            limit=limit,
        )

    def redaction_list(self) -> list[Row]:
        """Orders to erase a shop that wait to be decided -> [{id, source_system, source_store_id, requested_at}]."""
        return list(self._call("esl_redaction_list")["redactions"])

    def redaction_decide(self, redaction_id: int, *, token_works: bool) -> Row:
        """Whether the shop still takes our Admin token (False too where there is none) -> {confirmed}."""
        return self._call("esl_redaction_decide", id=redaction_id, token_works=token_works)
