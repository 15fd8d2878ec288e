"""evaluate: every variant ends in one state, nothing it holds raises, and a row's result is its own."""

import copy
import json
import re
from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pandas.testing as pdt
import pytest
from hypothesis import given, settings

from esl_pipeline.labels.build import build_label, canonical_json, label_hash
from esl_pipeline.labels.checks import RULES
from esl_pipeline.labels.evaluate import Store
from esl_pipeline.labels.policy import Policy
from esl_pipeline.labels.unit_price import measurement_of
from esl_pipeline.model.rows import FINDINGS, LABELS, VARIANTS
from esl_pipeline_tests.labels.support import GOOD, LOCATION, MAPPING, evaluate, frame, judge, store

STATES = {"publish", "held", "kept", "blank", "withdrawn"}
CODE = re.compile(r"[0-9A-Za-z._-]{1,32}", re.ASCII)
PRICE = re.compile(r"[0-9]+(\.[0-9]{1,4})?", re.ASCII)

# What a column may hold: anything at all, and now and then something that makes sense. Half surrogate pairs cannot be
# in a frame of text (nor in Postgres); text_of replaces them where the text comes in.
PLAUSIBLE = {
    "title": ["Tea", "Tea &amp; <b>Milk</b>", "👨‍👩‍👧‍👦" * 20, "\ufffd", "\x00", "{title}[%s]"],
    "variant_title": ["Default Title", "50 g"],
    "barcode": [
        "4006381333931",
        "4006381333932",
        "36000291452",
        "425261",
        "10614141000415",
        "0000",
        "20653",
        " C-1 ",
    ],
    "sku": ["SKU-1", "SKU 1, SKU 2", "1\n2"],
    "price": ["1.50", "0", "0.00", "1.505", "999999999.9999", "NaN", "1e3", "-1", "٣"],
    "compare_at_price": ["0", "1.50", "2.00", "2.005", "abc"],
    "image_url": [
        "https://cdn.shopify.com/a.png",
        "http://cdn.shopify.com/a.png",
        "https://cdn.shopify.com/\x00",
    ],
    "status": ["active", "draft", "archived", "unlisted", "new"],
    "tags": ["new, Sale", ","],
    "product_type": ["Gift Card", "Tea"],
    "unit_price": ["10.00", "x"],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", MAPPING]), inner, max_size=2)
    ),
    max_leaves=5,
)
QUANTITY = st.sampled_from([250, 0, -1, 1e-9, 1e300, "250", None, True, 2.5])
UNIT = st.sampled_from(["G", "KG", "ML", "ITEM", "M3", "UNKNOWN", None, 3])
PRICES = st.sampled_from([None, "", "1.50", "0.01", "x", 1.5, "NaN"])
LIKELY_JSON = {
    "stock": st.dictionaries(
        st.sampled_from([LOCATION, "8"]), st.none() | st.integers() | st.booleans() | st.just("3")
    ),
    "unit_price_measurement": st.fixed_dictionaries(
        {"quantityValue": QUANTITY, "quantityUnit": UNIT, "referenceValue": QUANTITY, "referenceUnit": UNIT}
    ),
    "history": st.fixed_dictionaries({MAPPING: st.fixed_dictionaries({"shown": PRICES, "prior": PRICES})}),
}


def column(name: str, kind: str) -> st.SearchStrategy[Any]:
    if kind == "bool":
        return st.sampled_from([False, False, True]) if name == "removed" else st.just(False)
    if name in LIKELY_JSON:
        return (
            st.none()
            | (LIKELY_JSON[name] | JSON).map(json.dumps)
            | st.sampled_from(["", "{", "[" * 5_000, "NaN"])
        )
    free = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    return st.sampled_from(PLAUSIBLE[name]) | free if name in PLAUSIBLE else free


FREE = {name: column(name, kind) for name, kind in VARIANTS.dtypes.items() if kind in ("str", "bool")}
KEYS = ("source_system", "source_store_id", "variant_id")
# At most 12 of the columns differ from a good variant, so that some rows are published.
ROW = st.lists(st.sampled_from(sorted(FREE.keys() - set(KEYS))), max_size=12, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FREE[name] for name in names})
)
ROWS = st.lists(ROW, min_size=2, max_size=8)

POLICIES = [
    Policy(),
    Policy.model_validate(
        {
            "code_source": ["sku", "barcode", "variant_id"],
            "require_gtin": True,
            "pad_upc": True,
            "label_code_form": "gtin14",
            "allow_case_codes": False,
            "duplicate_rule": "first_created",
            "zero_price": "allow",
            "expected_currency": "EUR",
            "show_compare_at": "if_prior_30d_ok",
            "send_images": True,
            "on_delete": "keep",
            "on_unpublish": "blank",
            "require_published": True,
            "exclude": {"tags": ["sale"], "product_types": ["x"]},
        }
    ),
    Policy.model_validate(
        {
            "code_source": ["barcode", "sku", "variant_id"],
            "zero_price": "allow",
            "show_compare_at": "if_higher",
            "title_template": "{handle}[ {option1}/{option2}/{option3}] {title}{vendor}{tags}",
            "title_max_length": 7,
            "emoji": "keep",
            "send_images": True,
            "image_hosts": ["cdn.shopify.com"],
            "statuses": ["active", "unlisted", "archived"],
            "duplicate_rule": "lowest_id",
            "stock_field": "kc",
            "location_id": LOCATION,
            "unit_price_mode": "us",
            "exclude": {"gift_cards": False},
            "fields": {
                "vp": "{unit_price}",
                "f1": "{unit_price}[/{unit_price_per}] {stock}",
                "f2": "{status} {product_id} {shop} {currency} {price} {code} {barcode} {sku}",
                "extend": {"a": "{product_type}", "b": ""},
            },
        }
    ),
]
STORES = st.builds(
    Store,
    mapping_id=st.just(MAPPING),
    code=st.just("S1"),
    policy=st.sampled_from(POLICIES),
    shop_currency=st.sampled_from([None, "EUR", "JPY", "KWD", "ABC"]),
    shop_taxes_included=st.sampled_from([None, True, False]),
)


def sorted_findings(findings: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(findings).sort_values(["variant_id", "check_name"], ignore_index=True)


def test_a_published_variant_has_its_label() -> None:
    stocked = store(Policy(stock_field="kc", location_id=LOCATION))
    labels, findings = evaluate(frame({"stock": json.dumps({LOCATION: 4})}), stocked)
    assert list(labels.columns) == LABELS.names
    assert list(findings.columns) == FINDINGS.names
    assert findings.empty
    (row,) = labels.to_dict("records")
    assert json.loads(row["label"])["kc"] == "4"
    assert row["label_hash"] == label_hash(row["label"])
    assert {key: row[key] for key in ("mapping_id", "store_code", "variant_id", "revision", "event_ids")} == {
        "mapping_id": MAPPING,
        "store_code": "S1",
        "variant_id": "1",
        "revision": 1,
        "event_ids": [5],
    }
    assert (row["state"], row["code"], row["code_kind"]) == ("publish", "4006381333931", "gtin13")


def test_what_is_not_published_has_no_label_and_no_code() -> None:
    for row in ({"removed": True}, {"status": "draft"}, {"barcode": "two words"}, {"gift_card": True}):
        judged = judge(row)
        assert judged.state != "publish"
        for name in ("code", "code_kind", "precedence", "label", "label_hash"):
            assert pd.isna(judged.row[name]), name


def test_a_finding_names_the_variant_and_what_to_do() -> None:
    _, findings = evaluate(frame({}, {"price": "x" * 300, "revision": 7}), store())
    (finding,) = findings.to_dict("records")
    assert finding == {
        "mapping_id": MAPPING,
        "source_store_id": "shop",
        "variant_id": "2",
        "revision": 7,
        "check_name": "price_form",
        "level": "error",
        "column_name": "price",
        "value": "x" * 300,
        "reason": RULES["price_form"].reason,
        "action": RULES["price_form"].action,
    }


def test_no_variants_give_empty_frames_of_the_same_types() -> None:
    none, one = evaluate(frame(), store()), evaluate(frame({"price": None}), store())
    assert [len(part) for part in none] == [0, 0]
    for empty, filled in zip(none, one, strict=True):
        assert dict(empty.dtypes) == dict(filled.dtypes)


def test_the_frame_may_be_a_part_of_another_with_any_index() -> None:
    rows = frame({"price": "x"}, {}, {"price": "y"}, {})
    part = rows[rows["variant_id"].isin(["2", "3"])]
    labels, findings = evaluate(part, store())
    assert dict(zip(labels["variant_id"], labels["state"], strict=True)) == {"2": "publish", "3": "held"}
    assert list(labels.index) == [0, 1]
    assert list(findings["variant_id"]) == ["3"]


def test_more_rows_than_are_taken_at_once() -> None:
    labels, findings = evaluate(
        frame(*({"price": None if n % 1_000 == 0 else "1.50"} for n in range(2_500))), store()
    )
    assert list(labels.loc[labels["state"] == "held", "variant_id"]) == ["1", "1001", "2001"]
    assert list(findings["variant_id"]) == ["1", "1001", "2001"]
    assert list(labels["variant_id"]) == [str(n) for n in range(1, 2_501)]


@pytest.mark.long
@given(ROWS, STORES)
@settings(max_examples=15, deadline=None)
def test_every_row_ends_in_one_state_and_none_raises(rows: list[dict[str, Any]], to: Store) -> None:
    labels, findings = evaluate(frame(*rows), to)
    assert list(labels["variant_id"]) == [str(n) for n in range(1, len(rows) + 1)]
    assert set(labels["state"]) <= STATES
    assert set(findings["check_name"]) <= set(RULES)
    on_shelf = set(labels.loc[labels["state"].isin(["publish", "held"]), "variant_id"])
    assert set(findings["variant_id"]) <= on_shelf
    wrong = set(findings.loc[findings["level"] == "error", "variant_id"])
    assert set(labels.loc[labels["state"] == "held", "variant_id"]) == wrong
    for row in labels.to_dict("records"):
        assert isinstance(row["label"], str) == (row["state"] == "publish")
        if row["state"] == "publish":
            check_label(row, to.policy)


def check_label(row: dict[Any, Any], policy: Policy) -> None:
    label = json.loads(row["label"])
    assert label["pc"] == row["code"]
    assert CODE.fullmatch(label["pc"])
    assert PRICE.fullmatch(label["pp"])
    assert label["pn"] == label["pn"].strip() != ""
    assert "\x00" not in row["label"] and "\\u0000" not in row["label"].replace(label["pim"], "")
    assert policy.zero_price == "allow" or float(label["pp"]) > 0
    for name, value in label.items():
        texts = value.values() if name == "extend" else [value]
        assert all(isinstance(text, str) for text in texts)
    assert all(label.get(name, "") == "" or PRICE.fullmatch(label[name]) for name in ("vp", "pop"))


@pytest.mark.long
@given(ROWS, STORES)
@settings(max_examples=6, deadline=None)
def test_the_same_again_gives_the_same_and_leaves_the_input_alone(
    rows: list[dict[str, Any]], to: Store
) -> None:
    variants = frame(*rows)
    before = copy.deepcopy(variants)
    for one, other in zip(evaluate(variants, to), evaluate(variants, to), strict=True):
        pdt.assert_frame_equal(one, other)
    pdt.assert_frame_equal(variants, before)


@pytest.mark.long
@given(ROWS, STORES, st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=4, deadline=None)
def test_neither_order_nor_chunks_change_a_rows_result(
    rows: list[dict[str, Any]], to: Store, chance: Any, size: int
) -> None:
    variants = frame(*rows)
    labels, findings = evaluate(variants, to)
    order = list(range(len(variants)))
    chance.shuffle(order)
    parts = [evaluate(variants.iloc[order[n : n + size]], to) for n in range(0, len(order), size)]
    together = pd.concat([part[0] for part in parts]).set_index("variant_id").loc[list(labels["variant_id"])]
    pdt.assert_frame_equal(together.reset_index()[LABELS.names], labels)
    pdt.assert_frame_equal(sorted_findings(part[1] for part in parts), sorted_findings([findings]))


@pytest.mark.long
@given(ROW, STORES)
@settings(max_examples=15, deadline=None)
def test_build_label_is_pure_and_what_evaluate_publishes(row: dict[str, Any], to: Store) -> None:
    labels, _ = evaluate(frame(row), to)
    variant = GOOD | row
    for name in ("stock", "unit_price_measurement", "history"):
        try:
            read = json.loads(variant[name] or "null")
        except (ValueError, RecursionError):
            read = None
        variant[name] = read if isinstance(read, dict) else {}
    variant["unit_price_measurement"] = measurement_of(variant["unit_price_measurement"])
    ours = variant["history"].get(MAPPING)
    prior = ours.get("prior") if isinstance(ours, dict) else None
    variant["prior_price"] = prior if isinstance(prior, str) and PRICE.fullmatch(prior) else None
    before = copy.deepcopy(variant)
    label = build_label(variant, to.policy, to.shop_currency)
    assert build_label(variant, to.policy, to.shop_currency) == label
    assert variant == before
    (published,) = labels.to_dict("records")
    if published["state"] == "publish":
        assert published["label"] == canonical_json(label)
