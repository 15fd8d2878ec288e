"""build_label: pure, complete and the same for the same input."""

import copy
import json
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from esl_pipeline.labels.build import build_label, canonical_json, code_of, label_hash, price_text, title_of
from esl_pipeline.labels.policy import Policy

TEXT = st.one_of(st.none(), st.text(max_size=20))
PRICES = st.decimals(min_value=0, max_value=999_999_999, places=2).map(str)
VARIANTS = st.fixed_dictionaries(
    {
        "barcode": st.from_regex(r"[0-9A-Za-z._-]{1,32}", fullmatch=True),
        "title": TEXT,
        "variant_title": TEXT,
        "sku": TEXT,
        "price": PRICES,
        "image_url": st.one_of(TEXT, st.just("https://cdn.example/a.png")),
        "stock": st.one_of(st.none(), st.dictionaries(st.just("7"), st.one_of(st.none(), st.integers()))),
    }
)
POLICIES = st.sampled_from(
    [Policy(), Policy(currency="JPY"), Policy(send_images=False), Policy(stock_field="kc", location_id="7")]
)


def variant(**fields: Any) -> dict[str, Any]:
    return {
        "barcode": "4006381333931",
        "title": "Tea",
        "variant_title": "Default Title",
        "price": "8.9",
    } | fields


def test_every_field_is_there_every_time() -> None:
    assert build_label(variant(), Policy()) == {
        "pc": "4006381333931",
        "pn": "Tea",
        "pp": "8.90",
        "pi": "",
        "pim": "",
    }


@given(VARIANTS, POLICIES)
def test_it_is_pure_and_equal_input_gives_equal_labels(variant: dict[str, Any], policy: Policy) -> None:
    before = copy.deepcopy(variant)
    label = build_label(variant, policy)
    assert variant == before
    assert build_label(variant, policy) == label
    assert all(isinstance(value, str) for value in label.values())
    assert json.loads(canonical_json(label)) == label
    assert label_hash(dict(reversed(label.items()))) == label_hash(label)


@given(VARIANTS, POLICIES)
def test_a_label_built_from_a_label_is_the_same(variant: dict[str, Any], policy: Policy) -> None:
    label = build_label(variant, policy)
    again = variant | {
        "barcode": label["pc"],
        "title": label["pn"],
        "variant_title": None,
        "price": label["pp"],
        "sku": label["pi"],
        "image_url": label["pim"],
    }
    assert build_label(again, policy) == label


@pytest.mark.parametrize(
    ("price", "decimals", "expected"),
    [
        ("8.9", 2, "8.90"),
        ("100.00", 0, "100"),
        ("1.250", 3, "1.250"),
        ("999999999.99", 2, "999999999.99"),
        ("007", 2, "7.00"),
    ],
)
def test_prices_are_text_with_the_currencys_digits(price: str, decimals: int, expected: str) -> None:
    assert price_text(price, decimals) == expected


@given(PRICES)
def test_prices_keep_their_value(price: str) -> None:
    assert Decimal(price_text(price, 2)) == Decimal(price)


@pytest.mark.parametrize(
    ("title", "variant_title", "expected"),
    [
        ("Tea", "Default Title", "Tea"),
        ("Tea", "50 g", "Tea - 50 g"),
        (" Tea\n", " 50  g ", "Tea - 50 g"),
        ("Tea", None, "Tea"),
        (None, "50 g", ""),
    ],
)
def test_titles(title: str | None, variant_title: str | None, expected: str) -> None:
    assert title_of({"title": title, "variant_title": variant_title}) == expected


def test_codes_are_text_without_the_spaces_around() -> None:
    assert code_of({"barcode": " 0012\n"}) == "0012"
    assert code_of({"barcode": None}) == ""


def test_images_are_https_and_only_if_the_store_wants_them() -> None:
    image = "https://cdn.example/a.png"
    assert build_label(variant(image_url=image), Policy())["pim"] == image
    assert build_label(variant(image_url="http://cdn.example/a.png"), Policy())["pim"] == ""
    assert build_label(variant(image_url=image), Policy(send_images=False))["pim"] == ""


@pytest.mark.parametrize(
    ("stock", "expected"), [({"7": 3, "8": 90}, "3"), ({"7": None}, ""), ({"8": 90}, ""), (None, ""), ({"7": -1}, "-1")]
)  # fmt: skip
def test_stock_is_that_of_the_stores_location_alone(
    stock: dict[str, int | None] | None, expected: str
) -> None:
    assert build_label(variant(stock=stock), Policy(stock_field="kc", location_id="7"))["kc"] == expected
    assert "kc" not in build_label(variant(stock=stock), Policy())
