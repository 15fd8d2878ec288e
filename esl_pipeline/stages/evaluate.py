"""Stage 2: variants that are due become labels under each store's policy, and the differences are queued."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import orjson
import pandas as pd

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.labels.evaluate import Store, evaluate_together, held_back
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.labels.schema import TOLD
from esl_pipeline.model.rows import FINDINGS, LABELS, VARIANTS
from esl_pipeline.model.shop import Shop
from esl_pipeline.sources.registry import source_of

# What one call carries, unless a single variant has more.
STAGE_BYTES = 4_000_000
# Of a label beside its text, and of its findings.
_ROW_BYTES = 400

log = logging.getLogger(__name__)


def due_variants(
    buffer: Buffer, *, shop: Shop | None = None, limit: int = MAX_ROWS_PER_CALL, after: int = 0
) -> tuple[pd.DataFrame, list[StoreMapping]]:
    """Variants that are not evaluated yet, of each shop its oldest changes, and the active mappings of their shops.

    The frame has rows.VARIANTS. `after` pages on from a revision, of one shop.
    """
    found, mappings = buffer.variants_due(limit=limit, shop=shop, after=after)
    frame = pd.DataFrame(found, columns=VARIANTS.names).astype(VARIANTS.dtypes)
    return frame, mappings


@dataclass
class Evaluation:
    """labels: one row per variant and store (rows.LABELS). findings: rows.FINDINGS.

    problems: a sentence per mapping whose settings are not a valid policy; its labels stay as they are.
    mappings: of every mapping that was evaluated its id, with what makes its settings unusable, or None.
    """

    labels: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=LABELS.names))
    findings: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FINDINGS.names))
    problems: list[str] = field(default_factory=list)
    mappings: dict[str, str | None] = field(default_factory=dict)


def validate(variants: pd.DataFrame, mappings: Sequence[StoreMapping]) -> Evaluation:
    """Evaluate variants (rows.VARIANTS) for every mapping of their shops. Pure."""
    evaluation = Evaluation()
    # By policy and source: whatever changed in how many shops, the checks of one policy run once.
    parts: dict[tuple[str, ...], list[tuple[pd.DataFrame, Store]]] = {}
    for mapping in mappings:
        ours = variants[
            (variants["source_system"] == mapping.shop["source_system"])
            & (variants["source_store_id"] == mapping.shop["source_store_id"])
        ]
        if ours.empty:
            continue
        policy = mapping.policy
        if policy is None:
            problem = f"its settings are not valid, its labels stay as they are: {mapping.problem}"
            evaluation.mappings[mapping.id] = problem
            evaluation.problems.append(f"store {mapping.store} ({mapping.id}): {problem}")
            continue
        evaluation.mappings[mapping.id] = None
        source = source_of(mapping.shop["source_system"])
        if source and not policy.image_hosts:
            hosts = source.image_hosts(mapping.shop["source_store_id"])
            policy = policy.model_copy(update={"image_hosts": hosts})
        told = {"source": source.name, "how_to_read": source.how_to_read} if source else TOLD
        store = Store(
            mapping_id=mapping.id,
            code=mapping.store,
            policy=policy,
            told=told,
            shop_currency=mapping.currency,
            shop_taxes_included=mapping.taxes_included,
        )
        parts.setdefault((policy.model_dump_json(), *told.values()), []).append((ours, store))
    if parts:
        labels, findings = zip(*map(_evaluated, parts.values()), strict=True)
        evaluation.labels = pd.concat(labels, ignore_index=True)
        evaluation.findings = pd.concat(findings, ignore_index=True)
    return evaluation


def _evaluated(parts: Sequence[tuple[pd.DataFrame, Store]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As evaluate_together, which should never raise. Where it does, only the rows that make it raise are held back."""
    try:
        return evaluate_together(parts)
    except Exception as error:
        halves: list[Sequence[tuple[pd.DataFrame, Store]]] = [[part] for part in parts]
        if len(parts) == 1:
            ((variants, store),) = parts
            half = len(variants) // 2
            if not half:
                log.exception("a variant cannot be evaluated")
                return held_back(variants, store, type(error).__name__)
            halves = [[(part, store)] for part in (variants.iloc[:half], variants.iloc[half:])]
        labels, findings = zip(*map(_evaluated, halves), strict=True)
        return pd.concat(labels, ignore_index=True), pd.concat(findings, ignore_index=True)


def stage(buffer: Buffer, variants: pd.DataFrame, evaluation: Evaluation) -> dict[str, int]:
    """Store the evaluation and queue what differs from the ledger, in calls of at most 5,000 rows and STAGE_BYTES.

    Returns summed counts: labels_changed, stale, upserts_queued, removals_queued. Variants whose code another one of
    the store has too are known to the buffer alone: they become held in the evaluation, with their findings.
    Staging an old frame is harmless: variants that have changed since are left out (stale).
    """
    labels, findings = evaluation.labels, evaluation.findings
    total = dict.fromkeys(("labels_changed", "stale", "upserts_queued", "removals_queued"), 0)
    collisions: list[dict[str, Any]] = []
    for chunk in _chunks(variants, labels):
        ids = set(chunk["variant_id"])
        counts = buffer.labels_stage(
            labels=[_label_row(row) for row in _records(labels[labels["variant_id"].isin(ids)])],
            findings=_records(findings[findings["variant_id"].isin(ids)]),
            evaluated=_records(chunk[["source_system", "source_store_id", "variant_id", "revision"]]),
            problems=evaluation.mappings,
        )
        for key in total:
            total[key] += counts[key]
        collisions += counts["collisions"]
    if collisions:
        _hold_back(evaluation, pd.DataFrame(collisions))
    return total


def _chunks(variants: pd.DataFrame, labels: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The variants in their order, as many at a time as one call takes with their labels."""
    stores = max(1, labels["mapping_id"].nunique())
    step = max(1, MAX_ROWS_PER_CALL // stores)
    texts = labels["label"].str.len().fillna(0).groupby(labels["variant_id"]).sum()
    sizes = variants["variant_id"].map(texts).fillna(0).astype(int) + _ROW_BYTES * stores
    starts, before = [0], 0
    for position, bytes_ in enumerate(accumulate(sizes)):
        if position > starts[-1] and (bytes_ - before > STAGE_BYTES or position - starts[-1] == step):
            starts.append(position)
            before = bytes_ - int(sizes.iloc[position])
    for start, end in zip(starts, [*starts[1:], len(variants)], strict=True):
        if end > start:
            yield variants.iloc[start:end]


def _hold_back(evaluation: Evaluation, collisions: pd.DataFrame) -> None:
    """Errors hold back; the winner among variants with one code only has a warning."""
    keys = ["mapping_id", "variant_id"]
    labels, errors = evaluation.labels, collisions[collisions["level"] == "error"]
    held = pd.MultiIndex.from_frame(labels[keys]).isin(pd.MultiIndex.from_frame(errors[keys]))
    labels.loc[held, "state"] = "held"
    found = collisions.merge(labels[[*keys, "source_store_id", "revision"]], on=keys)[FINDINGS.names]
    evaluation.findings = pd.concat([evaluation.findings, found], ignore_index=True)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of plain values, None for what is missing."""
    columns = {str(name): _plain(frame[name]) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(column: pd.Series) -> list[Any]:
    values, missing = column.tolist(), column.isna()
    if not missing.any():
        return values
    return [None if is_missing else value for value, is_missing in zip(values, missing, strict=True)]


def _label_row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "label": orjson.Fragment(row["label"]) if row["label"] else None,
        "event_ids": [int(i) for i in row["event_ids"]],
    }
