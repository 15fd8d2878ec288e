"""A whole shop read into the buffer: what it does not have any more is gone."""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from esl_pipeline.ahead import ahead
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.model.shop import Shop
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.source import Reader
from esl_pipeline.stages.memory import BufferMemory

SNAPSHOT_ROWS = 2_500


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
    reader: Reader,
    *,
    shop: Shop,
    run_id: str,
    on_progress: OnProgress | None = None,
) -> Snapshot:
    """Read the whole shop into the buffer: currency and taxes, catalogue, and stock where a label shows it.

    on_progress sees the same Snapshot after each part. What the catalogue and the stock do not have is gone when all
    was read (stock that was not read concludes nothing); after any exception (SourceError, BufferError,
    SnapshotLostError) nothing is, and esl.snapshots says why. A repeated call begins anew.
    """
    snapshot = Snapshot(dict(shop), str(uuid4()), datetime.now(UTC))
    buffer.snapshot_begin(snapshot_id=snapshot.snapshot_id, shop=shop, run_id=run_id)
    try:
        _read_all(buffer, reader, snapshot, run_id, on_progress or (lambda _: None))
    except BaseException as error:
        with suppress(BufferError):
            buffer.snapshot_abandon(
                snapshot_id=snapshot.snapshot_id, reason=f"{type(error).__name__}: {error}"
            )
        raise
    return snapshot


def _read_all(
    buffer: Buffer, reader: Reader, snapshot: Snapshot, run_id: str, on_progress: OnProgress
) -> None:
    began = time.monotonic()

    def merge(facts: Facts) -> None:
        if facts.problems:
            buffer.problems_note(facts.problems)
        if facts.unclear:
            buffer.snapshot_keep(snapshot_id=snapshot.snapshot_id, unclear=facts.unclear)
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

    reader.remember(BufferMemory(buffer, snapshot.shop, run_id))
    merge(reader.shop())
    started, stock_started = list[datetime](), list[datetime]()
    with closing(ahead(reader.catalogue(started.append, chunk=SNAPSHOT_ROWS))) as parts:
        for facts in parts:
            snapshot.started_at = started[-1]
            merge(facts)
    snapshot.started_at = started[-1]
    if reader.stock_in_catalogue:
        stock_started.append(started[-1])
    elif _shows_stock(buffer, snapshot.shop):
        with closing(ahead(reader.stock(stock_started.append, chunk=SNAPSHOT_ROWS))) as parts:
            for facts in parts:
                merge(facts)
    done = buffer.snapshot_finish(
        snapshot_id=snapshot.snapshot_id,
        as_of=started[-1].isoformat(),
        stock_as_of=stock_started[-1].isoformat() if stock_started else None,
        counts={
            name: getattr(snapshot, name) for name in ("variants", "changed", "unchanged", "newer", "levels")
        },
    )
    if not done["finished"]:
        raise SnapshotLostError(f"the snapshot removes nothing: {done['reason']}")
    reader.stored()
    snapshot.removed, snapshot.levels_gone = done["removed"], done["levels_gone"]
    snapshot.seconds = time.monotonic() - began
    snapshot.complete = True


def _shows_stock(buffer: Buffer, shop: Shop) -> bool:
    """Whether a label of the shop shows stock anywhere."""
    policies = [mapping.policy for mapping in buffer.active_mappings(shop=shop)]
    return any(
        policy.stock_field != "none" or "stock" in policy.used_attributes
        for policy in policies
        if policy is not None  # such a mapping's labels stay as they are
    )
