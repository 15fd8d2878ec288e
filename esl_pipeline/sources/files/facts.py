"""Entries of a file as facts. Pure."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import orjson

from esl_pipeline.labels.lengths import FIELD_LENGTH, LENGTHS, fitted
from esl_pipeline.sources.content import product_content, text_of, variant_row
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.files.listing import Entry, Listing
from esl_pipeline.sources.files.numbers import quantity_of

# Files name no places where stock is.
LOCATION = "0"

_OF_PRODUCT = ("title", "vendor", "product_type", "tags")
_OF_VARIANT = {
    "title": "variant_title",
    "barcode": "code",
    "sku": "sku",
    "price": "price",
    "compare_at_price": "compare_at_price",
    "image_url": "image_url",
}
# What no file says.
_NEVER_OF_PRODUCT = dict.fromkeys(("handle", "published_at"))
_NEVER_OF_VARIANT = dict.fromkeys(("option1", "option2", "option3", "created_at"))


@dataclass(frozen=True)
class Telling:
    """Who tells what, and when. shop: its key; version_at, name: the file's.

    silent: fields that the file does not say although the shop's files do; what they never say is said to be empty.
    """

    listing: Listing
    shop: Row
    version_at: str
    name: str
    silent: Collection[str] = ()


def facts_of(telling: Telling, *, chunk: int) -> Iterator[Facts]:
    """The facts of a file, at most `chunk` products at a time.

    What a full list marks as deleted is not told: it is as absent as what it leaves out.
    """
    facts = Facts()
    for entry in telling.listing.entries():
        if not (entry.is_deleted and telling.listing.kind == "full"):
            _add(facts, entry, telling)
        if len(facts.products) >= chunk:
            yield facts
            facts = Facts()
    if facts.products:
        yield facts


def _version(entry: Entry, version_at: str) -> Row:
    said = orjson.dumps([entry.said, entry.is_deleted], option=orjson.OPT_SORT_KEYS)
    return {
        "version_at": version_at,
        "triggered_at": version_at,
        "body_sha256": hashlib.sha256(said).hexdigest(),
        "event_ids": [],
    }


def _add(facts: Facts, entry: Entry, telling: Telling) -> None:
    silent = telling.silent
    version = {**telling.shop, "product_id": entry.id} | _version(entry, telling.version_at)
    if entry.is_deleted:
        gone = {"deleted": True, "missing_variants": 0, "variant_ids": []}
        facts.products.append(version | gone)
        return
    content = _content(entry, silent)
    facts.products.append(
        version | content | {"deleted": False, "missing_variants": 0, "variant_ids": [entry.id]}
    )
    variant = {of: entry.said.get(said) or None for of, said in _OF_VARIANT.items() if said not in silent}
    if "sku" not in entry.said and "id" in entry.said and "sku" not in silent:
        variant["sku"] = entry.said["id"] or None
    variant |= _NEVER_OF_VARIANT | {"inventory_item_id": entry.id}
    facts.variants.append(
        variant_row(product_id=entry.id, variant_id=entry.id, product=content, variant=variant) | version
    )
    if "stock" in entry.said:
        facts.levels.append(
            {
                **telling.shop,
                "inventory_item_id": entry.id,
                "location_id": LOCATION,
                "available": quantity_of(entry.said["stock"], telling.listing.decimal_sign),
                "updated_at": version["version_at"],
                "triggered_at": version["triggered_at"],
                "body_sha256": version["body_sha256"],
            }
        )
    if entry.problem:
        problem = text_of(f"{telling.name} {entry.problem}", FIELD_LENGTH)
        facts.problems.append(
            {**telling.shop, "variant_id": entry.id, "version_at": version["version_at"], "problem": problem}
        )
    if entry.unclear is not None:
        unclear = entry.unclear._asdict()
        facts.unclear.append(unclear | {"title": fitted(entry.unclear.title or "", LENGTHS["title"]) or None})


def _content(entry: Entry, silent: Collection[str]) -> Row:
    said = {name: entry.said.get(name) or None for name in _OF_PRODUCT if name not in silent}
    return product_content(said | _NEVER_OF_PRODUCT | {"status": "active"})
