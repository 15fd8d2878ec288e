"""Which rows are held back, which only warned about, and what the shopkeeper reads."""

import csv
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from esl_pipeline.labels import schema

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "gtin" / "gtin_vectors.csv"
GOOD = {
    "code": "4006381333931",
    "title": "Tea",
    "price": "1.50",
    "status": "active",
    "image_url": "https://cdn.example/a.png",
    "decimals": 2,
}


def checks(**fields: Any) -> set[str]:
    return set(schema.findings(pd.DataFrame([GOOD | fields]))["check_name"])


def test_a_good_row_has_no_finding() -> None:
    assert checks() == set()
    assert checks(image_url=None) == set()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"code": None}, {"code_missing"}),
        ({"code": ""}, {"code_missing"}),
        ({"code": "1 2"}, {"code_form"}),
        ({"code": "٤٠٠٦"}, {"code_form"}),
        ({"code": "x" * 33}, {"code_form"}),
        ({"code": "x" * 32}, set()),
        ({"code": "12\n"}, {"code_form"}),
        ({"code": "0"}, {"code_zero"}),
        ({"code": "00000000"}, {"code_zero"}),
        ({"code": "4006381333932"}, {"gtin_check_digit"}),
        ({"code": "1234_pink"}, set()),
        ({"title": None}, {"title_missing"}),
        ({"title": " \u3000"}, {"title_missing"}),
        ({"title": "a\ufffd"}, {"title_unreadable"}),
        ({"price": None}, {"price_missing"}),
        ({"price": ""}, {"price_missing"}),
        ({"price": "abc"}, {"price_form"}),
        ({"price": "NaN"}, {"price_form"}),
        ({"price": "Infinity"}, {"price_form"}),
        ({"price": "1e3"}, {"price_form"}),
        ({"price": "-1"}, {"price_form"}),
        ({"price": "1,50"}, {"price_form"}),
        ({"price": "١.٥٠"}, {"price_form"}),
        ({"price": "1.50\n"}, {"price_form"}),
        ({"price": "1234567890"}, {"price_form"}),
        ({"price": "0"}, {"price_zero"}),
        ({"price": "0.000"}, {"price_zero"}),
        ({"price": "1.505"}, {"price_decimals"}),
        ({"price": "1.500"}, set()),
        ({"price": "100.50", "decimals": 0}, {"price_decimals"}),
        ({"price": "100.00", "decimals": 0}, set()),
        ({"price": "1.255", "decimals": 3}, {"price_decimals"}),
        ({"price": "1.250", "decimals": 3}, set()),
        ({"status": "unlisted"}, set()),
        ({"status": None}, {"status_unknown"}),
        ({"status": "ACTIVE"}, {"status_unknown"}),
        ({"image_url": "http://cdn.example/a.png"}, {"image_not_https"}),
        ({"code": "", "price": "x", "title": ""}, {"code_missing", "price_form", "title_missing"}),
    ],
)
def test_each_rule(fields: dict[str, Any], expected: set[str]) -> None:
    assert checks(**fields) == expected


def test_a_finding_says_which_row_and_value_and_what_to_do() -> None:
    frame = pd.DataFrame([GOOD, GOOD | {"price": "x" * 300}], index=[7, 9])
    (found,) = schema.findings(frame).to_dict("records")
    rule = schema.RULES["price_form"]
    assert found == {
        "row": 9,
        "check_name": "price_form",
        "level": "error",
        "column_name": "price",
        "value": "x" * 200,
        "reason": rule.reason,
        "action": rule.action,
    }


def test_no_rows_have_no_findings() -> None:
    assert schema.findings(pd.DataFrame([GOOD]).iloc[:0]).empty


def test_columns_without_any_value_are_no_fault_of_the_schema() -> None:
    frame = pd.DataFrame([GOOD | dict.fromkeys(("code", "title", "price", "status", "image_url"))] * 2)
    found = schema.findings(frame)
    assert set(found["check_name"]) == {"code_missing", "title_missing", "price_missing", "status_unknown"}
    assert set(found["value"]) == {None}


def test_a_missing_column_is_the_programs_fault() -> None:
    with pytest.raises(ValueError, match="could not be applied"):
        schema.findings(pd.DataFrame([GOOD]).drop(columns="price"))


TEXT = st.one_of(st.none(), st.text(), st.sampled_from(["1.50", "0", "4006381333931", "active", "https://x"]))
ROW = st.fixed_dictionaries({**dict.fromkeys(("code", "title", "price", "status", "image_url"), TEXT),
                             "decimals": st.sampled_from([0, 2, 3])})  # fmt: skip


@given(st.lists(ROW, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_no_content_raises(rows: list[dict[str, Any]]) -> None:
    found = schema.findings(pd.DataFrame(rows))
    assert set(found["row"]) <= set(range(len(rows)))
    assert set(found["check_name"]) <= set(schema.RULES)


@pytest.mark.parametrize(("code", "valid"), [("96385074", True), ("96385075", False), ("036000291452", True)])
def test_gtin_check_digits(code: str, valid: bool) -> None:
    assert schema.gtin_is_valid(code) is valid


@pytest.mark.skipif(not VECTORS.is_file(), reason="the shared test data is not here")
def test_the_shared_gtin_vectors() -> None:
    with VECTORS.open(encoding="utf-8", newline="") as file:
        vectors = list(csv.DictReader(file))
    assert len(vectors) > 20
    for vector in vectors:
        found = checks(code=vector["value"])
        if vector["expected"] == "valid":
            assert found == set(), vector
