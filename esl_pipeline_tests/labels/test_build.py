"""What a label is made of, and the attributes behind it: pure, complete and the same for the same input."""

import json
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from esl_pipeline.labels.attributes import attributes_of, code_of, price_text
from esl_pipeline.labels.build import Label, build_label, canonical_json, image_is_allowed, label_hash
from esl_pipeline.labels.policy import ATTRIBUTES, Policy
from esl_pipeline.labels.unit_price import Measurement

VARIANT: dict[str, Any] = {
    "source_store_id": "shop",
    "variant_id": "1",
    "product_id": "10",
    "barcode": "4006381333931",
    "title": "Tea",
    "variant_title": "50 g",
    "vendor": "Me",
    "price": "8.9",
    "compare_at_price": "10",
    "stock": {"7": 3},
    "unit_price_measurement": Measurement("WEIGHT", Decimal(50), "G", 1, "KG"),
}


def label(policy: dict[str, Any], **fields: Any) -> Label:
    return build_label(VARIANT | fields, Policy.model_validate(policy), "EUR")


def test_every_field_is_there_every_time() -> None:
    bare = {"barcode": "4006381333931", "title": "Tea", "price": "8.9"}
    assert build_label(bare, Policy()) == {
        "pc": "4006381333931",
        "pn": "Tea",
        "pp": "8.90",
        "pi": "",
        "pop": "",
        "pim": "",
    }


def test_only_bound_fields_are_sent() -> None:
    unbound = label({"fields": {"pi": None, "pop": None}})
    assert unbound == {"pc": "4006381333931", "pn": "Tea - 50 g", "pp": "8.90", "pim": ""}
    cleared = label({"fields": {"f3": ""}})
    assert cleared["f3"] == ""


def test_fields_show_attributes() -> None:
    shown = label(
        {
            "show_compare_at": "if_higher",
            "unit_price_mode": "eu",
            "location_id": "7",
            "stock_field": "qty",
            "title_template": "{title}",
            "fields": {
                "ps": "{variant_title}",
                "vp": "{unit_price}",
                "f1": "{unit_price} {currency}/{unit_price_per}",
                "f2": "by {vendor}[, {product_type}]",
                "f16": "{stock}",
                "pqr": "https://{shop}.example/p/{product_id}?v={variant_id}",
                "extend": {"code": "{code}", "was": "{compare_at_price}"},
            },
        }
    )
    assert shown == {
        "pc": "4006381333931",
        "pn": "Tea",
        "pp": "8.90",
        "pi": "",
        "pim": "",
        "ps": "50 g",
        "vp": "178.00",
        "pop": "10.00",
        "f1": "178.00 EUR/kg",
        "f2": "by Me",
        "f16": "3",
        "qty": "3",
        "pqr": "https://shop.example/p/10?v=1",
        "extend": {"code": "4006381333931", "was": "10.00"},
    }


@pytest.mark.parametrize("attribute", sorted(ATTRIBUTES))
def test_every_attribute_can_be_shown(attribute: str) -> None:
    policy = {"fields": {"f1": f"<{{{attribute}}}>", "f2": "{unit_price}"}, "unit_price_mode": "us"}
    text = f"what {attribute} says"
    said = (
        {attribute: text, "source_store_id": text} if attribute in ("shop", "handle") else {attribute: text}
    )
    special = {
        "code": "<4006381333931>",
        "price": "<8.90>",
        "compare_at_price": "<>",  # never, by default
        "currency": "<EUR>",
        "unit_price": "<80.74>",  # 8.90 / 50 g * 453.59 g
        "unit_price_per": "<lb>",
        "stock": "<3>",
    }
    if attribute in special:
        said = {}
    assert label(policy | {"location_id": "7"}, **said)["f1"] == special.get(attribute, f"<{text}>")


@pytest.mark.parametrize(
    ("stock", "expected"),
    [({"7": 3, "8": 90}, "3"), ({"7": 0}, "0"), ({"7": -1}, "-1"), ({"7": None}, ""), ({"8": 90}, ""), ({}, ""),
     (None, ""), ({"7": "three"}, ""), ({"7": True}, "")],
)  # fmt: skip
def test_stock_is_that_of_the_stores_location_alone(stock: Any, expected: str) -> None:
    assert label({"stock_field": "kc", "location_id": "7"}, stock=stock)["kc"] == expected


@pytest.mark.parametrize(
    ("price", "decimals", "expected"),
    [
        ("8.9", 2, "8.90"),
        ("100.00", 0, "100"),
        ("1.250", 3, "1.250"),
        ("999999999.99", 2, "999999999.99"),
        ("007", 2, "7.00"),
        ("-1", 2, ""),
        ("1e3", 2, ""),
        ("NaN", 2, ""),
        ("٣", 2, ""),
        ("", 2, ""),
        (None, 2, ""),
    ],
)
def test_prices_are_text_with_the_currencys_digits(price: str | None, decimals: int, expected: str) -> None:
    assert price_text(price, decimals) == expected


@given(st.integers(0, 99_999_999_999))
def test_prices_keep_their_value(cents: int) -> None:
    written = f"{cents // 100}.{cents % 100:02d}"
    assert price_text(written, 2) == written
    assert price_text(written + "00", 2) == written


@pytest.mark.parametrize(
    ("policy", "fields", "code"),
    [
        ({}, {"barcode": " 0012\n"}, "0012"),
        ({}, {"barcode": None, "sku": "S"}, ""),
        ({"code_source": ["barcode", "sku"]}, {"barcode": " ", "sku": "S"}, "S"),
        ({"code_source": ["sku", "variant_id"]}, {"sku": None}, "1"),
        ({"pad_upc": True}, {"barcode": "36000291452"}, "036000291452"),
        (
            {"pad_upc": True, "label_code_form": "gtin14"},
            {"barcode": "36000291452"},
            "00036000291452",
        ),
    ],
)
def test_codes_are_text_of_the_first_source(
    policy: dict[str, Any], fields: dict[str, Any], code: str
) -> None:
    assert code_of(VARIANT | fields, Policy.model_validate(policy)) == code


def test_titles_are_cut_after_the_template_is_filled() -> None:
    assert label({"title_max_length": 6})["pn"] == "Tea -"
    assert label({"title_template": "{variant_title}", "title_max_length": 6})["pn"] == "50 g"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://cdn.shopify.com/a.png", True),
        ("https://CDN.shopify.com", True),
        ("https://cdn.shopify.com?x=1", True),
        ("https://cdn.shopify.com#a", True),
        ("https://cdn.shopify.com/ä.png", True),
        ("http://cdn.shopify.com/a.png", False),
        ("https://cdn.shopify.com./a", False),
        ("https://xcdn.shopify.com/a", False),
        ("https://cdn.shopify.com@evil.example/a", False),
        ("https://cdn.shopify.com\\@evil.example/a", False),
        ("https://cdn.shopify.com/a\x00", False),
        ("https://cdn.shopify.com/a\nb", False),
        (" https://cdn.shopify.com/a", False),
        ("//cdn.shopify.com/a", False),
    ],
)
def test_images_are_of_allowed_hosts_over_https(url: str, allowed: bool) -> None:
    assert image_is_allowed(url, Policy(image_hosts=("cdn.shopify.com",))) is allowed


def test_the_canonical_text_does_not_depend_on_order() -> None:
    one = {"pc": "1", "pn": "é\u2028\x1f", "extend": {"b": "2", "a": "1"}}
    other = {"extend": {"a": "1", "b": "2"}, "pn": "é\u2028\x1f", "pc": "1"}
    text = canonical_json(one)
    assert text == canonical_json(other) == '{"extend":{"a":"1","b":"2"},"pc":"1","pn":"é\u2028\\u001f"}'
    assert json.loads(text) == one
    assert label_hash(text) == label_hash(canonical_json(other))
    assert label_hash(text) != label_hash(canonical_json(one | {"pn": "e"}))


def test_attributes_are_those_that_the_policy_shows() -> None:
    policy = Policy.model_validate({"title_template": "{vendor}", "fields": {"f1": "{tags}"}})
    assert policy.used_attributes <= attributes_of(VARIANT, policy).keys()
