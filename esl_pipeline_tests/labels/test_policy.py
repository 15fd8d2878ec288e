"""A store's policy: safe by default, strict about what it does not know."""

from typing import Any

import pytest
from pydantic import ValidationError

from esl_pipeline.labels.policy import Policy, validate_policy


def test_the_defaults_are_safe() -> None:
    policy = Policy()
    assert policy.stock_field == "none"
    assert policy.decimals == 2


@pytest.mark.parametrize(("currency", "decimals"), [("JPY", 0), ("EUR", 2), ("KWD", 3), (None, 2)])
def test_decimals_follow_the_currency(currency: str | None, decimals: int) -> None:
    assert Policy(currency=currency).decimals == decimals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"currency": "EURO"}, "currency"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "ABC"}, "ISO 4217"),
        ({"stock_field": "kc"}, "location_id"),
        ({"stock_field": "f1", "location_id": "1"}, "stock_field"),
        ({"stock_field": "kc", "location_id": "1\n"}, "location_id"),
        ({"location_id": "٣"}, "location_id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        validate_policy(settings)


def test_good_settings_are_kept_as_given() -> None:
    given = {"stock_field": "qty", "location_id": "7"}
    assert validate_policy(given) == given
