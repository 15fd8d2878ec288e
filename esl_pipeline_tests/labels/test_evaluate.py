"""evaluate: every variant ends published, held back or withdrawn, and nothing it holds raises."""

import json
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from esl_pipeline.labels.build import build_label
from esl_pipeline.labels.evaluate import FINDING_COLUMNS, LABEL_COLUMNS, evaluate
from esl_pipeline.labels.policy import Policy
from esl_pipeline.stages.read import VARIANT_COLUMNS

POLICY = Policy(stock_field="kc", location_id="7")
GOOD: dict[str, Any] = dict.fromkeys(VARIANT_COLUMNS) | {
    "source_system": "shopify",
    "source_store_id": "s",
    "variant_id": "1",
    "title": "Tea",
    "barcode": "C-1",
    "price": "1.50",
    "status": "active",
    "removed": False,
    "revision": 1,
    "event_ids": [5],
}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    named = [GOOD | {"variant_id": str(n)} | row for n, row in enumerate(rows, start=1)]
    return pd.DataFrame(named, columns=list(VARIANT_COLUMNS)).astype(VARIANT_COLUMNS)


def evaluated(*rows: dict[str, Any], policy: Policy = POLICY) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    labels, findings = evaluate(frame(*rows), mapping_id="m", store_code="S", policy=policy)
    assert list(labels.columns) == LABEL_COLUMNS
    assert list(findings.columns) == FINDING_COLUMNS
    return [{str(k): v for k, v in row.items()} for row in labels.to_dict("records")], findings


def test_a_published_variant_has_its_label() -> None:
    (label,), findings = evaluated({"stock": json.dumps({"7": 4})})
    assert (label["state"], label["code"], label["event_ids"]) == ("publish", "C-1", [5])
    assert json.loads(label["label"])["kc"] == "4"
    assert findings.empty


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"removed": True}, "withdrawn"),
        ({"status": "draft"}, "withdrawn"),
        ({"status": "archived", "price": None}, "withdrawn"),
        ({"price": None}, "held"),
        ({"barcode": " "}, "held"),
        ({"title": "\u202e"}, "held"),
        ({"variant_title": "\ufffd"}, "held"),
        ({"status": "unlisted"}, "publish"),
        ({"status": "something new"}, "publish"),
        ({"status": None}, "publish"),
    ],
)
def test_states(row: dict[str, Any], state: str) -> None:
    labels, findings = evaluated(row, {})
    assert [label["state"] for label in labels] == [state, "publish"]
    errors = findings[findings["level"] == "error"]
    assert set(errors["variant_id"]) == ({"1"} if state == "held" else set())
    assert pd.isna(labels[0]["label"]) == (state != "publish")


def test_a_withdrawn_variant_needs_no_advice() -> None:
    _, findings = evaluated({"removed": True, "price": None, "barcode": None})
    assert findings.empty


def test_images_that_are_not_sent_are_not_complained_about() -> None:
    row = {"image_url": "http://cdn.example/a.png"}
    assert list(evaluated(row)[1]["check_name"]) == ["image_not_https"]
    assert evaluated(row, policy=Policy(send_images=False))[1].empty


TEXT = st.one_of(st.none(), st.text(), st.sampled_from(["1.50", "0", "C-1", "active", "draft", "https://x"]))
COLUMNS = ("title", "variant_title", "barcode", "sku", "price", "image_url", "status", "published_at", "tags")
STOCK = st.one_of(
    st.none(), st.dictionaries(st.just("7"), st.one_of(st.none(), st.integers()), min_size=1).map(json.dumps)
)
ROW = st.fixed_dictionaries({**dict.fromkeys(COLUMNS, TEXT), "removed": st.booleans(), "stock": STOCK})


@given(st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_every_row_gets_a_state_and_none_raises(rows: list[dict[str, Any]]) -> None:
    labels, findings = evaluated(*rows)
    assert [label["variant_id"] for label in labels] == [str(n) for n in range(1, len(rows) + 1)]
    held = set(findings.loc[findings["level"] == "error", "variant_id"])
    for label in labels:
        assert label["state"] in ("publish", "held", "withdrawn")
        assert (label["state"] == "held") == (label["variant_id"] in held)
        if label["state"] == "publish":
            shown = json.loads(label["label"])
            assert shown["pc"] == label["code"]
            assert shown["pn"].strip()
            assert float(shown["pp"]) > 0


def test_evaluation_agrees_with_build_label() -> None:
    (label,), _ = evaluated({})
    assert json.loads(label["label"]) == build_label(GOOD, POLICY)
