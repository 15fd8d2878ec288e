"""Shopify's global ids."""

import pytest

from esl_pipeline.sources.shopify.gids import gid, number_in


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("gid://shopify/Product/9007199254740993", "9007199254740993"),
        ("gid://shopify/InventoryLevel/12?inventory_item_id=34", "12"),
        (gid("ProductVariant", "1"), "1"),
        *((none, None) for none in ("", "1", "gid://shopify/Product/", "gid://shopify/Product/1\n", None, 1)),
        *(
            (none, None)
            for none in ("gid://other/Product/1", "gid://shopify/Product/١", f"gid://shopify/P/{10**20}")
        ),
    ],
)
def test_the_number_in_a_gid(value: object, number: str | None) -> None:
    assert number_in(value) == number


def test_a_gid_of_another_kind_is_none() -> None:
    assert number_in(gid("Product", "1"), "Product") == "1"
    assert number_in(gid("ProductImage", "1"), "Product") is None
