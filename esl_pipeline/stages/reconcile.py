"""What needs no webhook: a whole shop read into the buffer, its latest changes, and the label server's list compared.

Nothing here pushes: what is read makes variants due, what has drifted corrects the ledger, and the stages follow.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import RESPONSE_FIELDS, HipoinkClient
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.labels.build import canonical_json, label_hash
from esl_pipeline.labels.policy import Policy
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.shopify.admin import (
    AdminClient,
    AdminQueryError,
    read_catalogue,
    read_changed_since,
    read_product,
    read_shop,
    read_stock,
)
from esl_pipeline.sources.shopify.admin.bulk import BulkOperation, OnPoll, Sleep
from esl_pipeline.stages.shops import Shop, shop_key

SNAPSHOT_ROWS = 2_500
EXAMPLES_KEPT = 50
_COMPARED_AT_ONCE = 1_000
_FIRST_LOOK_BACK = timedelta(hours=1)
_CLOCKS_DIFFER = timedelta(minutes=10)
_WATERMARK = "updated_at"

_PRICES = frozenset({"pp", "vp", "pop"})
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")


class SnapshotLostError(Exception):
    """A snapshot that was read to its end concludes nothing: another one began meanwhile, or its notes are gone."""


@dataclass
class Snapshot:
    """How far the read of a whole shop is, or how it ended.

    started_at: of the read, by the shop's clock. variants, levels: read. changed, unchanged, newer: of the variants;
    newer were left alone, because the buffer holds something newer than this read. removed: variants of the buffer that
    the complete catalogue does not have; levels_gone: levels that the stock, where it was read, does not have.
    """

    shop: Shop
    snapshot_id: str
    started_at: datetime
    variants: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    newer: int = 0
    levels: int = 0
    levels_gone: int = 0
    seconds: float = 0
    complete: bool = False


OnProgress = Callable[[Snapshot], None]


def read_snapshot(
    buffer: Buffer,
    client: AdminClient,
    *,
    shop: Shop,
    run_id: str,
    on_progress: OnProgress | None = None,
    sleep: Sleep = time.sleep,
) -> Snapshot:
    """Read the whole shop into the buffer: currency and taxes, catalogue, and stock where a label shows it.

    on_progress sees the same Snapshot after each part. What the catalogue and the stock do not have is gone when all
    was read (stock that was not read concludes nothing); after any exception (AdminError, BufferError,
    SnapshotLostError) nothing is, and esl.snapshots says why. A repeated call begins anew.
    """
    snapshot = Snapshot(dict(shop), str(uuid4()), datetime.now(UTC))
    buffer.snapshot_begin(snapshot_id=snapshot.snapshot_id, shop=shop, run_id=run_id)
    try:
        _read_all(buffer, client, snapshot, on_progress or (lambda _: None), sleep)
    except BaseException as error:
        with suppress(BufferError):
            buffer.snapshot_abandon(
                snapshot_id=snapshot.snapshot_id, reason=f"{type(error).__name__}: {error}"
            )
        raise
    return snapshot


def _read_all(
    buffer: Buffer, client: AdminClient, snapshot: Snapshot, on_progress: OnProgress, sleep: Sleep
) -> None:
    began, store_id = time.monotonic(), snapshot.shop["source_store_id"]

    def merge(facts: Facts) -> None:
        done = buffer.snapshot_merge(
            snapshot_id=snapshot.snapshot_id,
            products=facts.products,
            variants=facts.variants,
            levels=facts.levels,
            details=facts.details,
            shops=facts.shops,
        )
        if not done["open"]:
            raise SnapshotLostError("a newer snapshot of this shop has begun: this one removes nothing")
        snapshot.variants += len(facts.variants)
        snapshot.levels += len(facts.levels)
        snapshot.changed += done["changed"]
        snapshot.unchanged += done["unchanged"]
        snapshot.newer += done["newer"]
        snapshot.seconds = time.monotonic() - began
        on_progress(snapshot)

    merge(read_shop(client, store_id))
    started: list[datetime] = []
    catalogue = read_catalogue(
        client, shop=store_id, chunk=SNAPSHOT_ROWS, on_poll=_start_of(started), sleep=sleep
    )
    for facts in catalogue:
        snapshot.started_at = started[0]
        merge(facts)
    stock_started: list[datetime] = []
    if _shows_stock(buffer, snapshot.shop):
        for facts in read_stock(
            client, shop=store_id, chunk=SNAPSHOT_ROWS, on_poll=_start_of(stock_started), sleep=sleep
        ):
            merge(facts)
    snapshot.started_at = started[0]
    done = buffer.snapshot_finish(
        snapshot_id=snapshot.snapshot_id,
        as_of=started[0].isoformat(),
        stock_as_of=stock_started[0].isoformat() if stock_started else None,
        counts={
            name: getattr(snapshot, name) for name in ("variants", "changed", "unchanged", "newer", "levels")
        },
    )
    if not done["finished"]:
        raise SnapshotLostError(f"the snapshot removes nothing: {done['reason']}")
    snapshot.removed, snapshot.levels_gone = done["removed"], done["levels_gone"]
    snapshot.seconds = time.monotonic() - began
    snapshot.complete = True


def _start_of(started: list[datetime]) -> OnPoll:
    """Note when a bulk operation began, by Shopify's clock."""

    def note(operation: BulkOperation) -> None:
        started[:] = [operation.created_at]

    return note


def _shows_stock(buffer: Buffer, shop: Shop) -> bool:
    """Whether a label of the shop shows stock anywhere."""
    for mapping in buffer.mapping_list():
        if mapping["is_active"] and shop_key(mapping) == shop_key(shop):
            with suppress(ValidationError):  # such a mapping's labels stay as they are
                policy = Policy.model_validate(mapping["settings"])
                if policy.stock_field != "none" or "stock" in policy.used_attributes:
                    return True
    return False


def read_changes(
    buffer: Buffer,
    client: AdminClient,
    *,
    shop: Shop,
    run_id: str,
    overlap: timedelta = timedelta(minutes=10),
) -> dict[str, Any]:
    """Read what changed since the last such read, and products of which webhooks did not tell all.

    Shopify's search lags, and clocks differ: `overlap` is read twice. The first read goes back an hour. Returns since,
    until (ISO 8601), products (read), variants_changed, variants_removed, fetched (products read one by one), gone
    (those that are no more), failed ({product id: why}, tried again next time), run_id. Raises AdminError and
    BufferError; the next call then reads the same time again. alarm: None, or why no change was read: up to when they
    were read last is no time of the past; the next call goes back an hour.
    """
    store_id, until = shop["source_store_id"], datetime.now(UTC)
    watermark = buffer.watermark(shop=shop, source=_WATERMARK)
    last = _instant(watermark) if watermark else until - _FIRST_LOOK_BACK + overlap
    alarm = None
    if last is None or last > until + _CLOCKS_DIFFER:
        alarm = (
            f"the changes of {store_id} seem to have been read up to {watermark}: none was read this time, "
            "the next look goes back an hour. What is older comes with the nightly full_reconciliation, or start it."
        )
    since = until if alarm or last is None else last - overlap
    found: dict[str, Any] = {
        "run_id": run_id,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "alarm": alarm,
        **dict.fromkeys(("products", "variants_changed", "variants_removed", "fetched", "gone"), 0),
        "failed": {},
    }
    if not alarm:
        for facts in read_changed_since(client, shop=store_id, since=since):
            found["products"] += len(facts.products)
            _merge(buffer, facts, found)
    _fetch_missing(buffer, client, shop, found)
    read_until = until - _FIRST_LOOK_BACK + overlap if alarm else until
    buffer.watermark_move(shop=shop, source=_WATERMARK, at=read_until.isoformat())
    return found


def _instant(text: str) -> datetime | None:
    """A time of the database's, which knows more of them than Python does."""
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    return None


def _fetch_missing(buffer: Buffer, client: AdminClient, shop: Shop, found: dict[str, Any]) -> None:
    after: str | None = None
    while products := buffer.missing_variants(shop=shop, after=after):
        for product_id in products:
            try:
                facts = read_product(client, product_id, shop["source_store_id"])
            except AdminQueryError as error:  # of this product alone: it holds up no other
                found["failed"][product_id] = str(error)
                continue
            found["gone" if facts is None else "fetched"] += 1
            _merge(buffer, facts or _tombstone(shop, product_id), found)
        after = products[-1]


def _merge(buffer: Buffer, facts: Facts, found: dict[str, Any]) -> None:
    for part in _parts(facts):
        done = buffer.variants_merge(
            claim_id=None,
            products=part.products,
            variants=part.variants,
            levels=[],
            events=[],
            details=part.details,
        )
        found["variants_changed"] += done["variants_changed"]
        found["variants_removed"] += done["variants_removed"]


def _parts(facts: Facts) -> Iterator[Facts]:
    """As many products as one call takes, each with all its variants: half a product would pass for the whole."""
    variants: dict[str, list[Row]] = {product["product_id"]: [] for product in facts.products}
    for variant in facts.variants:
        variants[variant["product_id"]].append(variant)
    details = {detail["variant_id"]: detail for detail in facts.details}
    part = Facts()
    for product in facts.products:
        rows = variants[product["product_id"]]
        if part.products and len(part.variants) + len(rows) > MAX_ROWS_PER_CALL:
            yield part
            part = Facts()
        own = (details.get(row["variant_id"]) for row in rows)
        part.extend(Facts([product], rows, details=[detail for detail in own if detail]))
    if part.products:
        yield part


def _tombstone(shop: Shop, product_id: str) -> Facts:
    """A product that Shopify does not have."""
    now = datetime.now(UTC).isoformat()
    product = {
        **shop,
        "product_id": product_id,
        "version_at": now,
        "triggered_at": now,
        "body_sha256": "",  # concluded from absence: see esl.is_revived
        "deleted": True,
        "missing_variants": 0,
        "variant_ids": [],
        "event_ids": [],
    }
    return Facts(products=[product])


@dataclass
class Drift:
    """How the label server's own list of a store differs from what it has accepted.

    listed: labels there. ledger: labels that should be. missing: in the ledger, not there. different: {code, fields:
    {field: (ours, theirs)}}. foreign: there, but never ours. The lists of the last two hold the first 50; the counts
    are whole. requeued: labels that are queued because of it. An incomplete list (`reason`) tells nothing of what is
    missing.
    """

    store_code: str
    listed: int = 0
    ledger: int = 0
    missing: list[str] = field(default_factory=list)
    missing_count: int = 0
    different: list[dict[str, Any]] = field(default_factory=list)
    different_count: int = 0
    foreign: list[str] = field(default_factory=list)
    foreign_count: int = 0
    requeued: int = 0
    complete: bool = True
    reason: str | None = None


def compare_store(
    buffer: Buffer,
    label_client: HipoinkClient,
    *,
    store: str,
    run_id: str,
    dry_run: bool = False,
    owns_store: bool = False,
    page_size: int = 200,
) -> Drift:
    """Compare the label server's list of a store with the ledger, field by field where the server returns a field.

    Missing and different labels are queued again, as far as they are still wanted. Foreign ones are left alone, unless
    owns_store (or a policy's owns_store) says that nobody else keeps labels there: then they are removed, 5,000 a
    call, under the guard of mass changes. dry_run: only count. Labels that are on their way, or were meanwhile, are not
    compared. A failing label server makes the Drift incomplete; raises BufferError only.
    """
    comparison = _Comparison(buffer, store, run_id, dry_run)
    rows: list[Mapping[str, Any]] = []
    try:
        before = label_client.query_count(store)
        for row in label_client.query_all(store, page_size):
            rows.append(row)
            if len(rows) == _COMPARED_AT_ONCE:
                comparison.add(rows)
                rows = []
        after = label_client.query_count(store)
        if after != before:
            comparison.give_up(
                f"labels came or went while store {store} was listed: first {before}, then {after}"
            )
    except HipoinkError as error:
        comparison.give_up(str(error))
    comparison.add(rows)
    return comparison.concluded(owns_store)


class _Comparison:
    """One store's list on its way through the comparison, a part at a time."""

    def __init__(self, buffer: Buffer, store: str, run_id: str, dry_run: bool) -> None:
        begun = buffer.drift_begin(store=store)
        self.drift = Drift(store, ledger=begun["ledger"])
        self._buffer, self._store, self._run_id, self._dry_run = buffer, store, run_id, dry_run
        self._since, self._is_owned = begun["at"], begun["owned"]
        self._listed: set[str] = set()
        self._foreign: dict[str, Row] = {}

    def give_up(self, reason: str) -> None:
        """The list is not whole."""
        self.drift.complete, self.drift.reason = False, reason

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Compare some rows of the list."""
        # A product that is switched off is on no label: it counts as not there, in either direction.
        there = {code: row for row in rows if _is_enabled(row) and (code := _text(row.get("product_code")))}
        if not there:
            return
        self._listed.update(there)
        self.drift.listed = len(self._listed)
        ours = self._buffer.drift_compare(store=self._store, since=self._since, codes=list(there))
        different = []
        for held in ours["labels"]:
            if fields := differing_fields(held["label"], there[held["code"]]):
                self.drift.different_count += 1
                if len(self.drift.different) < EXAMPLES_KEPT:
                    self.drift.different.append({"code": held["code"], "fields": fields})
                different.append(_different(held, fields))
        self._foreign |= {code: _as_label(there[code]) for code in ours["foreign"]}
        self._repair(different)

    def concluded(self, owns_store: bool) -> Drift:
        """What follows from the list as a whole, when it is whole."""
        self.drift.foreign = sorted(self._foreign)[:EXAMPLES_KEPT]
        self.drift.foreign_count = len(self._foreign)
        if self.drift.complete:
            self._conclude_missing()
            if owns_store or self._is_owned:
                self._repair([_foreign(label) for label in self._foreign.values()][:MAX_ROWS_PER_CALL])
        return self.drift

    def _conclude_missing(self) -> None:
        page = self._buffer.drift_ledger(store=self._store, since=self._since)
        while page["next"] is not None:
            missing = [held for held in page["labels"] if held["code"] not in self._listed]
            self.drift.missing += [held["code"] for held in missing]
            self._repair([held | {"kind": "missing"} for held in missing])
            page = self._buffer.drift_ledger(store=self._store, since=self._since, after=page["next"])
        self.drift.missing_count = len(self.drift.missing)

    def _repair(self, labels: Sequence[Row]) -> None:
        if labels and not self._dry_run:
            done = self._buffer.drift_repair(
                store=self._store, run_id=self._run_id, since=self._since, labels=labels
            )
            self.drift.requeued += done["requeued"]


def differing_fields(label: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Field to (ours, theirs) of the fields that we sent and the label server returned otherwise.

    In: a label with request codes; a row of the listing. Prices are equal as numbers with two decimals, an empty one
    equals 0; other fields as trimmed text. Of `extend` (as extend.key) only keys that came back under their own name.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for name, value in label.items():
        theirs = row.get(RESPONSE_FIELDS.get(name, ""), ...)
        if isinstance(value, Mapping):
            known = theirs if isinstance(theirs, Mapping) else {}
            pairs |= {
                f"{name}.{key}": (_text(inner), _text(known[key]))
                for key, inner in value.items()
                if key in known
            }
        elif theirs is not ...:
            pairs[name] = (_text(value), _text(theirs))
    return {name: pair for name, pair in pairs.items() if not _is_same(name, *pair)}


def _is_same(name: str, ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    prices = [price or "0" for price in (ours, theirs)]
    if name not in _PRICES or not all(map(_NUMBER.fullmatch, prices)):
        return False
    first, second = (Decimal(price).quantize(Decimal("0.01")) for price in prices)
    return first == second


def _different(held: Mapping[str, Any], fields: Mapping[str, tuple[str, str]]) -> Row:
    """For Buffer.drift_repair: the label as it really is."""
    label = dict(held["label"])
    for name, (_, theirs) in fields.items():
        outer, _, key = name.partition(".")
        label[outer] = {**label[outer], key: theirs} if key else theirs
    return {
        "code": held["code"],
        "kind": "different",
        "push_id": held["push_id"],
        "ours": {name: pair[0] for name, pair in fields.items()},
        "theirs": {name: pair[1] for name, pair in fields.items()},
        **_hashed(label),
    }


def _foreign(label: Row) -> Row:
    return {"code": label["pc"], "kind": "foreign", "theirs": label, **_hashed(label)}


def _as_label(row: Mapping[str, Any]) -> Row:
    """What tells a foreign label apart."""
    return {name: _text(row.get(RESPONSE_FIELDS[name])) for name in ("pc", "pn", "pp")}


def _hashed(label: Row) -> Row:
    if not _NUMBER.fullmatch(_text(label.get("pp"))):
        label = label | {"pp": None}  # the ledger calculates with its prices
    return {"label": label, "label_hash": label_hash(canonical_json(label))}


def _is_enabled(row: Mapping[str, Any]) -> bool:
    return _text(row.get("enabled", "1")).lower() not in ("0", "false")


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
