"""A store's policy: safe by default, strict about what it does not know."""

from typing import Any

import pytest
from pydantic import ValidationError

from esl_pipeline.labels.policy import ATTRIBUTES, Policy

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "colour"),
    ({"code_source": []}, "code_source"),
    ({"code_source": "ean"}, "code_source"),
    ({"code_source": ["sku", "sku"]}, "each source once"),
    ({"label_code_form": "gtin8"}, "label_code_form"),
    ({"duplicate_rule": "newest"}, "duplicate_rule"),
    ({"zero_price": True}, "zero_price"),
    ({"expected_currency": "EURO"}, "expected_currency"),
    ({"expected_currency": "eur"}, "expected_currency"),
    ({"expected_currency": "ABC"}, "ISO 4217"),
    ({"title_template": "{titel}"}, "titel"),
    ({"title_template": "[{title}"}, "partner"),
    ({"title_template": "x" * 501}, "title_template"),
    ({"title_max_length": 0}, "title_max_length"),
    ({"image_hosts": ["https://cdn.example"]}, "image_hosts"),
    ({"image_hosts": ["cdn.example\n"]}, "image_hosts"),
    ({"image_hosts": ["*"]}, "image_hosts"),
    ({"statuses": ["draft"]}, "statuses"),
    ({"on_delete": "unbind"}, "on_delete"),
    ({"on_unpublish": None}, "on_unpublish"),
    ({"exclude": {"colours": ["red"]}}, "colours"),
    ({"exclude": {"tags": [""]}}, "exclude.tags"),
    ({"exclude": {"vendors": [" "]}}, "exclude.vendors"),
    ({"stock_field": "kc"}, "location_id"),
    ({"stock_field": "f1", "location_id": "1"}, "stock_field"),
    ({"location_id": "1\n"}, "location_id"),
    ({"location_id": "٣"}, "location_id"),
    ({"fields": {"f1": "{stock}"}}, "location_id"),
    ({"fields": {"f17": "x"}}, "f17"),
    ({"fields": {"pc": "x"}}, "pc"),
    ({"fields": {"pp": "{price}"}}, "pp"),
    ({"fields": {"pop": "9.99"}}, "pop"),
    ({"fields": {"vp": "{vendor}"}}, "vp"),
    ({"fields": {"extend": {"A": "x"}}}, "extend"),
    ({"fields": {"extend": {"a": "{colour}"}}}, "colour"),
    ({"fields": {"f1": "{unit_price}"}}, "unit_price_mode"),
    ({"unit_price_mode": "eu"}, "unit_price"),
    ({"raise_window": {"opens": "22:00", "closes": "06:00"}}, "time_zone"),
    ({"max_change_pct": 0}, "max_change_pct"),
    ({"guard_labels": -1}, "guard_labels"),
    ({"guard_share_pct": 101}, "guard_share_pct"),
    ({"unbind_grace_hours": -1}, "unbind_grace_hours"),
    ({"during_grace": "remove"}, "during_grace"),
    ({"promotion": 0}, "promotion"),
    ({"promotion": 5}, "promotion"),
    ({"promotion": True}, "promotion"),
    ({"promotion": {"scene": 2, "when": "price_cut", "days": 91}}, "promotion.days"),
    ({"promotion": {"scene": 2, "when": "compare_at"}}, "show_compare_at"),
    ({"refresh_seconds": 0}, "refresh_seconds"),
    ({"refresh_minutes": 0}, "refresh_minutes"),
    ({"sleep_hours": "22-6"}, "sleep_hours"),
    ({"sleep_hours": "22:00-24:00"}, "sleep_hours"),
    ({"sleep_hours": "06:00-06:00"}, "its begin and its end are the same"),
]


def test_the_defaults_are_safe() -> None:
    """Nothing is shown that may be wrong, costs battery or is not known to fit; nothing is guessed."""
    policy = Policy.model_validate({})
    assert policy == Policy()
    assert policy.code_source == ("barcode",)
    assert policy.duplicate_rule == "quarantine"
    assert policy.zero_price == "block"
    assert policy.show_compare_at == "never"
    assert (policy.stock_field, policy.unit_price_mode, policy.send_images) == ("none", "off", False)
    assert "draft" not in policy.statuses
    assert (policy.pad_upc, policy.label_code_form) == (False, "as_is")
    assert policy.exclude.gift_cards
    assert (policy.unbind_grace_hours, policy.during_grace, policy.promotion) == (24, "blank", None)


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy.model_validate(settings)


def test_what_is_not_known_is_named_with_what_is() -> None:
    with pytest.raises(ValidationError) as refused:
        Policy.model_validate({"fields": {"f1": "{colour}"}})
    for attribute in ATTRIBUTES:
        assert attribute in str(refused.value)


def test_a_policy_survives_json() -> None:
    policy = Policy.model_validate(
        {
            "code_source": "sku",
            "exclude": {"tags": [" New "], "vendors": ["ME"]},
            "location_id": "7",
            "fields": {"f1": "{stock}", "extend": {"a": "{title}"}},
            "raise_window": {"opens": "22:00", "closes": "06:00", "time_zone": "Europe/Berlin"},
        }
    )
    assert policy.code_source == ("sku",)
    assert (policy.exclude.tags, policy.exclude.vendors) == (("new",), ("me",))
    assert Policy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("expected", "shop", "decimals"),
    [
        (None, "JPY", 0),
        (None, "EUR", 2),
        (None, "KWD", 3),
        (None, "CLF", 4),
        ("JPY", "EUR", 0),
        ("JPY", None, 0),
        (None, None, 2),
        (None, "ABC", 2),
        (None, "XAU", 0),  # gold has no minor unit
    ],
)
def test_decimals_follow_the_currency(expected: str | None, shop: str | None, decimals: int) -> None:
    assert Policy(expected_currency=expected).decimals(shop) == decimals


def test_bound_fields_and_used_attributes() -> None:
    policy = Policy.model_validate(
        {"title_template": "{vendor}", "fields": {"pi": None, "f1": "{tags}", "extend": {"x": "{option1}"}}}
    )
    assert [(name, key) for name, key, _ in policy.bindings] == [
        ("pop", None),
        ("f1", None),
        ("extend", "x"),
    ]
    assert policy.used_attributes == {"vendor", "compare_at_price", "tags", "option1"}
