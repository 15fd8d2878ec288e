"""Facts whose variants say all themselves, as the buffer stores them."""

from dataclasses import replace

from esl_pipeline.sources.facts import Facts

_OF_THE_PRODUCT = ("variant_ids", "missing_variants", "deleted")


def whole(facts: Facts) -> Facts:
    """With what a product's row says for its variants (sources.facts.told_once) in each of theirs."""
    products = {row["product_id"]: row for row in facts.products}
    return replace(
        facts,
        variants=[
            {key: value for key, value in products[row["product_id"]].items() if key not in _OF_THE_PRODUCT}
            | row
            for row in facts.variants
        ],
    )
