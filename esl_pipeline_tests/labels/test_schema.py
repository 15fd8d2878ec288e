"""The schema of the facts: lazy, by row, at the level that the policy gives. The rules are tested row by row in
test_catalogue_of_checks.py, through evaluation."""

from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from esl_pipeline.labels import schema
from esl_pipeline.labels.checks import FACTS, RULES, level_of
from esl_pipeline.labels.policy import Policy

GOOD: dict[str, Any] = {column: "" if kind == "str" else False for column, kind in FACTS.items()} | {
    "variant_id": "1",
    "code": "4006381333931",
    "code_kind": "gtin13",
    "title": "Tea",
    "price": "1.50",
    "measure": "ok",
    "status": "active",
}
STRICT = Policy(require_gtin=True, send_images=True, allow_case_codes=False)
LENIENT = Policy(zero_price="allow")


def facts(*rows: dict[str, Any]) -> pd.DataFrame:
    named = [GOOD | {"variant_id": str(n)} | row for n, row in enumerate(rows, start=1)]
    return pd.DataFrame(named, columns=list(FACTS)).astype(FACTS)


def checks(policy: Policy, *rows: dict[str, Any]) -> set[tuple[int, str]]:
    found = schema.findings(facts(*rows), policy)
    return set(zip(found["row"], found["check_name"], strict=True))


def test_a_good_row_has_no_finding_and_neither_has_no_row() -> None:
    assert schema.findings(facts({}), Policy()).empty
    assert schema.findings(facts().iloc[:0], Policy()).empty


def test_every_finding_of_every_row_at_once() -> None:
    rows: list[dict[str, Any]] = [{"code": "", "code_kind": "", "price": "x", "title": ""}, {}, {"price": ""}]
    assert checks(Policy(), *rows) == {
        (0, "code_missing"),
        (0, "price_form"),
        (0, "title_missing"),
        (2, "price_missing"),
    }


def test_a_finding_says_which_row_and_value_and_what_to_do() -> None:
    frame = facts({}, {"code_kind": "leading_zero_lost", "code_candidate": "036000291452"})
    frame.index = pd.Index([7, 9])
    (found,) = schema.findings(frame, Policy()).to_dict("records")
    rule = RULES["leading_zero_suspect"]
    assert found == {
        "row": 9,
        "check_name": "leading_zero_suspect",
        "level": "warning",
        "column_name": "code_candidate",
        "value": "036000291452",
        "reason": rule.reason,
        "action": rule.action.replace("{source}", "the shop"),
    }


def test_levels_follow_the_policy() -> None:
    for name, rule in RULES.items():
        assert level_of(name, Policy()) == rule.level
    differing = {
        name: (level_of(name, STRICT), level_of(name, LENIENT))
        for name in RULES
        if {level_of(name, STRICT), level_of(name, LENIENT)} != {RULES[name].level}
    }
    assert differing == {
        "gtin_bad_check_digit": ("error", "warning"),
        "case_code": ("error", "warning"),
        "price_zero": ("error", "warning"),
    }


def test_rules_that_the_policy_does_not_ask_for_are_not_applied() -> None:
    row = {"image_url": "", "code_kind": "internal", "code": "A"}
    assert checks(Policy(), row) == set()
    assert checks(STRICT, row) == {(0, "image_missing"), (0, "gtin_required")}


@pytest.mark.parametrize(
    ("ids", "wrong"),
    [
        (["1", str(2**63 - 1)], set()),
        ([str(2**63), "1", str(2**63 - 1)], {0}),
        (["9" * 19, "1"], {0}),
        (["1" * 20, "0", "-1", "1.0", "", "1\n", "٣", "1"], {0, 1, 2, 3, 4, 5, 6}),
    ],
)
def test_ids_fit_64_bits(ids: list[str], wrong: set[int]) -> None:
    found = checks(Policy(), *({"variant_id": id_} for id_ in ids))
    assert found == {(row, "id_form") for row in wrong}


def test_all_rows_with_one_id_are_refused() -> None:
    twice = checks(Policy(), {"id_is_doubled": True}, {}, {"id_is_doubled": True})
    assert twice == {(0, "id_duplicate"), (2, "id_duplicate")}


def test_a_column_that_is_missing_or_of_another_type_is_the_programs_fault() -> None:
    with pytest.raises(ValueError, match="not the facts"):
        schema.findings(facts({}).drop(columns="price"), Policy())
    with pytest.raises(ValueError, match="not the facts"):
        schema.findings(facts({}).astype({"price": "object"}).assign(price=1.5), Policy())


TEXT = st.one_of(st.text(max_size=40), st.sampled_from(["1.50", "0", "4006381333931", "active", "ok", "EUR"]))
ROW = st.fixed_dictionaries(
    {column: TEXT if kind == "str" else st.booleans() for column, kind in FACTS.items()}
)


@pytest.mark.long
@given(st.lists(ROW, min_size=1, max_size=15), st.sampled_from([Policy(), STRICT, LENIENT]))
@settings(max_examples=5, deadline=None)
def test_no_content_raises(rows: list[dict[str, Any]], policy: Policy) -> None:
    found = schema.findings(facts(*rows), policy)
    assert set(found["row"]) <= set(range(len(rows)))
    assert set(found["check_name"]) <= set(RULES)
    assert not found.duplicated(["row", "check_name"]).any()


def test_what_was_asked_of_many_texts_is_not_remembered() -> None:
    """A drain lives for hours: it would keep the titles of every round."""
    small = facts({"title": "Tea"})
    assert schema.schema_for(Policy(), small) is None
    known = schema._known.cache_info()
    many = facts(*[{"title": f"Tea {n}", "code": f"C-{n}"} for n in range(50)])
    assert schema.schema_for(Policy(), many) is None
    assert schema._known.cache_info().currsize == known.currsize
    assert schema._known.cache_info().hits > known.hits, "the rest is"
