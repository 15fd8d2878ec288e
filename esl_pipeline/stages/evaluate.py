"""Stage 2: variants that are due become labels under each store's policy, and the differences are queued."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pandas as pd

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.labels.evaluate import Store, evaluate_together, held_back
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.labels.schema import TOLD
from esl_pipeline.model.records import frame_of, records
from esl_pipeline.model.rows import FINDINGS, LABELS, VARIANTS
from esl_pipeline.model.shop import Shop, shop_key
from esl_pipeline.sources.registry import source_of

# What one call carries, unless a single variant has more: while it works, nothing of its stores can be recorded.
STAGE_LABELS, STAGE_BYTES = 200, 4_000_000
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
    columns = {name: [row.get(name) for row in found] for name in VARIANTS.names}
    return frame_of(columns, VARIANTS.dtypes), mappings


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
    of_shop = _by_shop(variants)
    for mapping in mappings:
        ours = of_shop.get((mapping.shop["source_system"], mapping.shop["source_store_id"]))
        if ours is None:
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
        evaluation.labels, evaluation.findings = _together(labels), _together(findings)
    return evaluation


def _about(variants: pd.DataFrame, store: Store) -> dict[str, str]:
    """What a line of the log about one variant names."""
    (row,) = records(variants)
    return {"shop": shop_key(row), "store": store.code, "variant_id": str(row["variant_id"])}


def _by_shop(variants: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    shops = list(zip(variants["source_system"], variants["source_store_id"], strict=True))
    if len(set(shops)) == 1:  # as mostly, and a copy would take longer than the rest
        return {shops[0]: variants}
    return {shop: variants[[other == shop for other in shops]] for shop in dict.fromkeys(shops)}


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
                log.exception("a variant cannot be evaluated", extra=_about(variants, store))
                return held_back(variants, store, type(error).__name__)
            halves = [[(part, store)] for part in (variants.iloc[:half], variants.iloc[half:])]
        labels, findings = zip(*map(_evaluated, halves), strict=True)
        return _together(labels), _together(findings)


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def stage(buffer: Buffer, variants: pd.DataFrame, evaluation: Evaluation) -> dict[str, int]:
    """Store the evaluation and queue what differs from the ledger, in calls of about STAGE_LABELS and STAGE_BYTES.

    Returns summed counts: labels_changed, stale, upserts_queued, removals_queued. Variants whose code another one of
    the store has too are known to the buffer alone: they become held in the evaluation, with their findings.
    Staging an old frame is harmless: variants that have changed since are left out (stale).
    """
    total = dict.fromkeys(("labels_changed", "stale", "upserts_queued", "removals_queued"), 0)
    collisions: list[dict[str, Any]] = []
    for part in _parts(variants, evaluation):
        counts = buffer.labels_stage(
            labels=part.labels,
            findings=part.findings,
            evaluated=part.evaluated,
            problems=evaluation.mappings,
        )
        for key in total:
            total[key] += counts[key]
        collisions += counts["collisions"]
    if collisions:
        _hold_back(evaluation, pd.DataFrame(collisions))
    return total


@dataclass
class _Part:
    """What one call stages: variants, and all labels and findings of theirs."""

    evaluated: list[dict[str, Any]] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)


def _parts(variants: pd.DataFrame, evaluation: Evaluation) -> list[_Part]:
    """The variants in their order, as many at a time as one call takes with their labels."""
    labels = list(records(evaluation.labels))
    count, size = Counter[str](), Counter[str]()
    for row in labels:
        count[row["variant_id"]] += 1
        size[row["variant_id"]] += _ROW_BYTES + len(row["label"] or "")
    part_of: dict[str, _Part] = {}
    parts, rows, bytes_ = list[_Part](), 0, 0
    for row in records(variants[["source_system", "source_store_id", "variant_id", "revision"]]):
        variant = row["variant_id"]
        if variant not in part_of:
            rows, bytes_ = rows + count[variant], bytes_ + size[variant]
            if not parts or rows > STAGE_LABELS or bytes_ > STAGE_BYTES:
                parts.append(_Part())
                rows, bytes_ = count[variant], size[variant]
            part_of[variant] = parts[-1]
        part_of[variant].evaluated.append(row)
    for row in labels:
        part_of[row["variant_id"]].labels.append(_label_row(row))
    for row in records(evaluation.findings):
        part_of[row["variant_id"]].findings.append(row)
    return parts


def _hold_back(evaluation: Evaluation, collisions: pd.DataFrame) -> None:
    """Errors hold back; the winner among variants with one code only has a warning."""
    keys = ["mapping_id", "variant_id"]
    labels, errors = evaluation.labels, collisions[collisions["level"] == "error"]
    held = pd.MultiIndex.from_frame(labels[keys]).isin(pd.MultiIndex.from_frame(errors[keys]))
    labels.loc[held, "state"] = "held"
    found = collisions.merge(labels[[*keys, "source_store_id", "revision"]], on=keys)[FINDINGS.names]
    evaluation.findings = pd.concat([evaluation.findings, found], ignore_index=True)


def _label_row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "label": orjson.Fragment(row["label"]) if row["label"] else None,
        "event_ids": [int(i) for i in row["event_ids"]],
    }
