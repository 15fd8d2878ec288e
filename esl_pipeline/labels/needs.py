"""What a store's policy must know of a variant before it may decide about its label."""

from collections.abc import Iterator, Mapping
from typing import Any

from esl_pipeline.labels.policy import Policy
from esl_pipeline.model.rows import SHOWN


def unsaid_needs(row: Mapping[str, Any], policy: Policy) -> list[str]:
    """Columns that the policy needs and that nobody has ever said, sorted. In: a row of the buffer's variants."""
    if not row["unsaid"]:
        return []
    return sorted(set(row["unsaid"].split()).intersection(_needs(row, policy)))


def _needs(row: Mapping[str, Any], policy: Policy) -> Iterator[str]:
    yield from ("status", "price")
    yield from SHOWN & policy.used_attributes
    for source in policy.code_source:
        if source != "variant_id":
            yield source
        if row[source]:
            break  # the sources after it do not matter
    needs = {
        "published_at": policy.require_published,
        "vendor": policy.exclude.vendors,
        "product_type": policy.exclude.product_types,
        "tags": policy.exclude.tags,
        "compare_at_price": policy.show_compare_at != "never",
        "image_url": policy.send_images,
        "inventory_item_id": policy.stock_field != "none" or "stock" in policy.used_attributes,
        "source_created_at": policy.duplicate_rule == "first_created",
    }
    yield from (column for column, needed in needs.items() if needed)
