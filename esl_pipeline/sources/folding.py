"""Deliveries of one product folded to what must be told of it: the newest version, and what only older ones say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esl_pipeline.sources.bodies import UnusableError
from esl_pipeline.sources.content import CONTENT
from esl_pipeline.sources.facts import Facts

Delivery = Mapping[str, Any]


def folded(deliveries: Sequence[Delivery], read: Callable[[Delivery], Facts]) -> Facts:
    """The facts of all deliveries; `read` gives those of one, of one product at most, or raises UnusableError.

    An older version of a product is left out when a newer one says all that it says; else it comes with a `step` before
    the newer one's.
    """
    facts = Facts()
    told: dict[tuple[str, str], list[Facts]] = {}
    for delivery in deliveries:
        try:
            one = read(delivery)
        except UnusableError as refused:
            facts.events.append({"id": delivery["id"], "state": "unusable", "reason": str(refused)})
            continue
        facts.events += one.events
        facts.levels += one.levels
        for product in one.products:
            told.setdefault((product["source_store_id"], product["product_id"]), []).append(one)
    for versions in told.values():
        for step, one in enumerate(_needed(versions)):
            if step:
                for row in (*one.products, *one.variants):
                    row["step"] = step
            facts.products += one.products
            facts.variants += one.variants
    return facts


def _needed(versions: list[Facts]) -> list[Facts]:
    """What must be told of one product, oldest version first."""
    kept: list[Facts] = []
    for one in sorted(versions, key=_version_of):
        while kept and _covers(one, kept[-1]):
            kept.pop()
        kept.append(one)
    return kept


def _version_of(read: Facts) -> tuple[str, str, str]:
    (product,) = read.products
    return product["version_at"], product["triggered_at"], product["body_sha256"]


def _covers(newer: Facts, older: Facts) -> bool:
    """Whether the newer version says all that the older one does, of each variant and of which there are."""
    (now,), (before,) = newer.products, older.products
    if now["deleted"]:
        return True
    if now["variant_ids"] is None and before["variant_ids"] is not None:
        return False
    told = {row["variant_id"] for row in newer.variants}
    # What the newer one does not name is gone with it, unless it does not say which there are.
    gone = (
        set()
        if now["variant_ids"] is None
        else {row["variant_id"] for row in older.variants} - {*now["variant_ids"]}
    )
    if any(row["variant_id"] not in told | gone for row in older.variants):
        return False
    unsaid = {name for row in newer.variants or [now] for name in CONTENT - row.keys() - now.keys()}
    return all(unsaid.isdisjoint(row.keys()) for row in (*older.variants, before))
