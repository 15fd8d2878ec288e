"""The scene of its template that a label shows: a constant, or by a rule."""

import json
from typing import Any

import pytest

from esl_pipeline.labels.policy import Policy, Promotion
from esl_pipeline_tests.labels.support import MAPPING, judge

HIGHER = {"compare_at_price": "9.00"}


def history(**ours: Any) -> dict[str, Any]:
    return {"history": json.dumps({MAPPING: {"shown": None, "prior": None} | ours})}


def test_without_one_the_field_is_not_sent() -> None:
    judged = judge()
    assert judged.label is not None and "promotion" not in judged.label


def test_a_number_is_a_scene_that_is_always_shown() -> None:
    assert Policy.model_validate({"promotion": 3}).promotion == Promotion(scene=3, when="always")
    assert judge(promotion=3).shown("promotion") == 3


@pytest.mark.parametrize(
    ("row", "show", "scene"),
    [(HIGHER, "if_higher", 2), ({}, "if_higher", 1), (HIGHER, "if_prior_30d_ok", 1)],
)
def test_while_a_compare_at_price_is_shown(row: dict[str, Any], show: str, scene: int) -> None:
    promotion = {"scene": 2, "when": "compare_at"}
    assert judge(row, promotion=promotion, show_compare_at=show).shown("promotion") == scene


@pytest.mark.parametrize(
    ("row", "scene"),
    [
        (history(cut_days=0), 4),
        (history(cut_days=6), 4),
        (history(cut_days=7), 2),
        (history(cut_days=None), 2),
        (history(cut_days="1"), 2),
        ({}, 2),
    ],
)
def test_for_some_days_after_a_cut(row: dict[str, Any], scene: int) -> None:
    promotion = {"scene": 4, "when": "price_cut", "days": 7, "otherwise": 2}
    assert judge(row, promotion=promotion).shown("promotion") == scene
