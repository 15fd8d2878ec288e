"""A store mapping: its policy, or the problem with it."""

from typing import Any

import pytest

from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.labels.policy import Policy

SHOP = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}


def mapping(settings: Any) -> StoreMapping:
    kept = {"id": "m", "hipoink_store_code": "001", "label_server": "default"}
    kept |= {"is_active": True, "is_dry_run": False}
    return StoreMapping.of(SHOP | kept | {"settings": settings, "created_at": "2026-03-01"})


def test_right_settings_are_a_policy() -> None:
    found = mapping({"expected_currency": "EUR"})
    assert (found.policy, found.problem) == (Policy(expected_currency="EUR"), None)
    assert (found.shop, found.store, found.currency, found.taxes_included) == (SHOP, "001", None, None)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"no such": "setting"}, "no such: is no setting of a policy, see `esl-pipeline stores policy`"),
        ({"fields": {"f1": "{colour}"}}, "fields.f1: "),
        (["zero_price"], "settings: "),
        (None, "settings: "),
    ],
)
def test_wrong_settings_are_a_problem_in_words(settings: Any, problem: str) -> None:
    found = mapping(settings)
    assert found.policy is None
    assert found.problem is not None and found.problem.startswith(problem)
