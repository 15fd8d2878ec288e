"""The one door to the buffer: each method is one SQL function, whatever the transport."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import uuid4

from esl_pipeline.buffer.errors import (
    BufferVersionError,
    Version,
    newer_buffer,
    older_buffer,
    unreleased_buffer,
)
from esl_pipeline.buffer.files import FileCalls
from esl_pipeline.buffer.migrate import code_build, functions_digest, oldest_version
from esl_pipeline.buffer.transports import Transport

Row = dict[str, Any]

# supabase.md 3.2: about 2.5 MB a call, and no gain from larger ones.
MAX_ROWS_PER_CALL = 5_000
MAX_BYTES_PER_CLAIM = 8_000_000


class Buffer(FileCalls):
    """Inbox, variants, labels, queue and audit. Rows are plain dicts; every call is one round trip.

    Every method may raise BufferError (BufferUnavailable when the database cannot be reached). Every function
    behind them may be called again with the same arguments, so transports repeat calls whose answer was lost.

    `label_server` names the one that this process pushes to: what is known of its health is shared under that name.
    """

    def __init__(self, transport: Transport, *, label_server: str | None = None) -> None:
        self.transport = transport
        self.label_server = label_server

    def __repr__(self) -> str:
        return f"Buffer({self.transport.describe()})"

    def close(self) -> None:
        """Give the connections back."""
        self.transport.close()

    def ping(self) -> None:
        """Raise BufferUnavailable when the buffer cannot be reached."""
        self.transport.call("esl_version", {})

    def check_version(self) -> None:
        """Raise BufferVersionError unless tables and functions are exactly those of this code."""
        answer = self.transport.call("esl_version", {})
        # No build: the functions of a release that did not number them.
        found, wanted = Version(answer["version"], answer.get("build", 0)), code_build()
        if found > wanted:
            raise newer_buffer(found, wanted)
        if 0 < found.tables < oldest_version():
            raise unreleased_buffer(found.tables)
        if found < wanted:
            raise older_buffer(found, wanted)
        if answer.get("functions") != functions_digest():
            raise BufferVersionError(
                f"the buffer's functions go by the name of build {wanted.build} and are others: "
                "run `esl-pipeline migrate`"
            )

    # Inbox

    def inbox_add(self, deliveries: Sequence[Mapping[str, Any]]) -> Row:
        """Keep deliveries as received -> {received, inserted, waiting, refused}.

        waiting: {deliveries, bytes} of the delivery's shop, without a delivery no key. refused: why some were not kept
        (no store is mapped for their shop, and too much of it waits), else no key.
        """
        return self._call("esl_inbox_add", deliveries=list(deliveries))

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
        """Lease open deliveries of mapped shops, each shop's oldest, in turns -> (claim id, events)."""
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
    ) -> Row:
        """Variants that are not evaluated yet, shops in turns, and their active mappings -> {variants, mappings}."""
        return self._call("esl_variants_due", limit=limit, shop=shop, after=after)

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
        busy_stores: Collection[str] = (),
    ) -> Row:
        """Lease one batch for one label-server call, intents written -> {push_id, store_code, operation, rows}.

        Of none of the busy_stores.
        """
        return self._call(
            "esl_push_claim",
            claim_id=str(uuid4()),
            limit=limit,
            lease_seconds=lease_seconds,
            max_attempts=max_attempts,
            run_id=run_id,
            asset=asset,
            shop=shop,
            busy_stores=sorted(busy_stores) or None,
            label_server=self.label_server,
        )

    def push_finish(self, *, server_failed: bool | None = None, **result: Any) -> Row:
        """Record the outcome of a claimed batch -> {accepted, retried, failed, dead, stale}.

        server_failed: whether the call told that the label server itself is in trouble; None: there was no call.
        """
        if self.label_server is not None:
            result |= {"label_server": self.label_server, "server_failed": server_failed}
        return self._call("esl_push_finish", **result)

    def push_again(self, *, shop: Mapping[str, str]) -> Row:
        """Make the shop's failed and dead pushes due once more -> {labels}."""
        return self._call("esl_push_again", shop=shop)

    def refresh_claim(
        self,
        *,
        run_id: str,
        lease_seconds: float,
        settle_seconds: float,
        shop: Mapping[str, str] | None = None,
    ) -> Row:
        """Lease one store whose labels wait for their trigger -> {claim_id, store_code}; None: nothing is due."""
        claim_id = str(uuid4())
        claim = self._call(
            "esl_refresh_claim",
            claim_id=claim_id,
            run_id=run_id,
            lease_seconds=lease_seconds,
            settle_seconds=settle_seconds,
            shop=shop,
            label_server=self.label_server,
        )
        return {"claim_id": claim_id, **claim}

    def refresh_finish(self, **result: Any) -> Row:
        """Record the outcome of a claimed trigger -> {more}: whether another one is due."""
        return self._call("esl_refresh_finish", **result, label_server=self.label_server)

    def claims_release(self, *, run_id: str) -> Row:
        """For the retry of a run that has ended: what it had claimed is due at once -> {labels, deliveries}."""
        return self._call("esl_claims_release", run_id=run_id)

    def rate_take(self, *, server: str, rate_per_second: float, slots: int = 1) -> float:
        """Reserve call slots of one label server; seconds to wait before the first."""
        answer = self._call("esl_rate_take", server=server, rate_per_second=rate_per_second, slots=slots)
        return float(answer["wait_seconds"])

    # The drain run

    def due(self) -> Row:
        """What the sensor asks -> {due, inbox, variants, queue, refresh, outage, drain, shops}."""
        return self._call("esl_due", label_server=self.label_server)

    def lease_take(self, *, name: str, holder: str, seconds: float) -> Row:
        """Take or renew a lease -> {held, holder, until}."""
        return self._call("esl_lease_take", name=name, holder=holder, seconds=seconds)

    def lease_release(self, *, name: str, holder: str) -> Row:
        """Give a lease back, if it is still this holder's -> {released}."""
        return self._call("esl_lease_release", name=name, holder=holder)

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
        """What we know of listed codes, without labels on their way since -> {labels, ours, foreign}."""
        return self._call("esl_drift_compare", store=store, since=since, codes=list(codes))

    def drift_ledger(
        self, *, store: str, since: str, after: str | None = None, limit: int = MAX_ROWS_PER_CALL
    ) -> Row:
        """A page of ledger and queue -> {labels: those not on their way since, moving: codes of the others, next}."""
        return self._call("esl_drift_ledger", store=store, since=since, after=after, limit=limit)

    def drift_repair(self, *, store: str, run_id: str, since: str, labels: Sequence[Row]) -> Row:
        """Correct the ledger to what the label server holds, and queue what follows -> {requeued, given_up: codes}."""
        return self._call("esl_drift_repair", store=store, run_id=run_id, since=since, labels=list(labels))

    def drift_end(self, *, store: str, at: str, run_id: str, **result: Any) -> None:
        """Keep how a comparison ended: complete, reason, listed, ledger, skipped, given_up."""
        self._call("esl_drift_end", store=store, at=at, run_id=run_id, **result)

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
        """One batch of deleting what is no longer kept -> {bodies, deliveries, unmapped, redacted, more}; call again
        while more.

        What has waited keep_bodies_days for a store to be mapped goes (unmapped). Bodies of finished deliveries go,
        their hashes stay; later the deliveries go whose bodies carry a signed time (None: never), because a copy of
        them would be superseded. Of a shop that asked to be forgotten, once that is confirmed, everything goes but the
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

    # Store mappings

    def mapping_create(self, fields: Mapping[str, Any], *, by: str | None = None) -> Row:
        """A new store mapping, made by whom; BufferError with code 23505 when shop and store are mapped already."""
        return self._call("esl_mapping_create", **fields, by=by)

    def mapping_list(self) -> list[Row]:
        """All store mappings, oldest first."""
        return list(self._call("esl_mapping_list")["mappings"])

    def mapping_get(self, mapping_id: str) -> Row | None:
        """One store mapping, or None."""
        found = self._call("esl_mapping_list", id=mapping_id)["mappings"]
        return found[0] if found else None

    def mapping_update(
        self, mapping_id: str, changes: Mapping[str, Any], *, by: str | None = None
    ) -> Row | None:
        """Change a mapping and, if it is active, have its shop's labels evaluated again; None when there is none."""
        return self._call("esl_mapping_update", id=mapping_id, **changes, by=by)

    def mapping_history(self, *, store: str | None = None, limit: int = 50) -> list[Row]:
        """Who made and changed mappings, newest first -> [{at, by, mapping_id, old, new}]."""
        return list(self._call("esl_mapping_history", store=store, limit=limit)["changes"])

    def owner_settle(self, *, shop: Mapping[str, str], thing: str | None = None, by: str) -> list[str]:
        """Say that a contested thing (product:1; None: all open ones) is this shop's -> its things."""
        return list(self._call("esl_owner_settle", **shop, thing=thing, by=by)["things"])

    # How shops are connected

    def connection_set(
        self, shop: Mapping[str, str], subscriptions: str, by: str | None = None, *, anew: bool = False
    ) -> Row:
        """A shop is connected, its subscriptions made per shop ("api") or by the app ("toml") -> the connection.

        Said again it changes nothing, unless subscriptions had to be made or mended (anew): then the first webhook is
        awaited anew.
        """
        return self._call("esl_connection_set", **shop, subscriptions=subscriptions, by=by, anew=anew)

    def connection_end(self, shop: Mapping[str, str], by: str | None = None) -> Row | None:
        """A shop's subscriptions were removed -> the connection; None when there is none."""
        return self._call("esl_connection_end", **shop, by=by)

    def connection_list(self, *, shops: Sequence[Mapping[str, str]] | None = None) -> list[Row]:
        """Of all connected and mapped shops, or of these: subscriptions ("api", "toml", None: not connected by us),
        connected_at, first_webhook_at (since then), last_webhook_at, last_api_version, refused, refused_since, …"""
        answer = self._call("esl_connection_list", shops=None if shops is None else list(shops))
        return list(answer["connections"])

    def refusals_note(self, *, receiver: str, refused: Sequence[Row]) -> list[Row]:
        """What a receiver's process has counted of wrong signatures -> the mapped shops, for which it counts."""
        return list(self._call("esl_refusals_note", receiver=receiver, refused=list(refused))["mapped"])

    # Tokens of the store-mapping API

    def token_add(self, *, name: str, sha256: str, scope: str, days: int | None = None) -> Row:
        """Keep a token's hash; BufferError with code 23505 when the name was used before."""
        return self._call("esl_token_add", name=name, sha256=sha256, scope=scope, days=days)

    def token_list(self) -> list[Row]:
        """All tokens, oldest first, without their hashes."""
        return list(self._call("esl_token_list")["tokens"])

    def token_revoke(self, name: str) -> Row | None:
        """Refuse a token from now on; None when there is none of this name."""
        return self._call("esl_token_revoke", name=name)

    def token_check(self, sha256: str) -> Row:
        """Whether any token is valid, and the one with this hash -> {any, token}."""
        return self._call("esl_token_check", sha256=sha256)

    # For people

    def status(self, *, shops: Sequence[Mapping[str, str]] | None = None) -> Row:
        """Counts per store and shop, open findings, label servers that are down, triggers that wait; of all shops or of
        these."""
        return self._call("esl_status", shops=None if shops is None else list(shops))

    def findings(
        self,
        *,
        mapping_id: str | None = None,
        store: str | None = None,
        limit: int = 1_000,
        after: Sequence[str] | None = None,
    ) -> list[Row]:
        """Open findings by level, check, variant and mapping; after: those four of the last one seen."""
        answer = self._call("esl_findings", mapping_id=mapping_id, store=store, limit=limit, after=after)
        return list(answer["findings"])

    def preview(
        self,
        *,
        store: str | None = None,
        shop: Mapping[str, str] | None = None,
        shops: Sequence[Mapping[str, str]] | None = None,
        limit: int = 20,
    ) -> list[Row]:
        """How each mapping's labels stand and which differ from the label server, old beside new; `limit` of each."""
        return list(self._call("esl_preview", store=store, shop=shop, shops=shops, limit=limit)["mappings"])

    def changes_approve(self, *, store: str, by: str) -> Row:
        """Let the drastic changes of a store that wait for approval go on -> {removals, prices}."""
        return self._call("esl_changes_approve", store=store, by=by)

    def trace(self, code: str, *, store: str | None = None, limit: int = 20) -> list[Row]:
        """From a label back to its pushes, variant and webhooks, one row per store."""
        return list(self._call("esl_trace", code=code, store=store, limit=limit)["places"])

    def redrive(self, *, store: str | None = None, code: str | None = None) -> Row:
        """Make failed and dead pushes due again -> {labels, deliveries}."""
        return self._call("esl_redrive", store=store, code=code)

    def _call(self, function: str, **p: Any) -> Row:
        answer: Row = self.transport.call(function, {k: v for k, v in p.items() if v is not None})
        return answer
