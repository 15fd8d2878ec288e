"""What a materialisation says: right counts, short tables, no surprises for Dagster."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.rows import LABELS, RESULTS, VARIANTS
from esl_pipeline.orchestration import reports
from esl_pipeline.orchestration.checks import label_accuracy
from esl_pipeline.stages.drift import Drift


def results(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    """Rows of (push id, code, operation, outcome)."""
    return pd.DataFrame(
        [
            {"store_code": "S1", "push_id": push, "code": code, "operation": operation, "outcome": outcome,
             "message": "words", "shop": "shopify:a", "variant_id": "1", "event_ids": [7, 8], "attempt": 2}
            for push, code, operation, outcome in rows
        ],
        columns=RESULTS.names,
    )  # fmt: skip


def records(value: Any) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_what_the_label_server_said() -> None:
    report = reports.results_report([
        results(("p1", "A", "upsert", "accepted"), ("p1", "B", "upsert", "accepted"),
                ("p2", "C", "delete", "accepted"), ("p3", "D", "upsert", "rejected"),
                ("p4", "D", "upsert", "transient"))
    ])  # fmt: skip
    assert (report["pushes"], report["labels written"], report["labels removed"]) == (4, 2, 1)
    assert report["outcomes"] == "3 accepted, 1 rejected, 1 transient"
    assert report["codes"] == "A, B, C, D" and report["inbox events"] == "7, 8"
    assert [row["outcome"] for row in records(report["not accepted"])] == ["rejected", "transient"]


def test_nothing_is_said_of_refusals_when_there_are_none() -> None:
    assert "not accepted" not in reports.results_report([results(("p1", "A", "upsert", "accepted"))])


def test_nothing_at_all() -> None:
    empty = [
        reports.products_report([], [pd.DataFrame(columns=VARIANTS.names)]),
        reports.labels_report([pd.DataFrame(columns=LABELS.names)], reports.FindingsTally()),
        reports.results_report([pd.DataFrame(columns=RESULTS.names)]),
    ]
    for report in empty:
        assert dg.AssetMaterialization("a", metadata=report)
    assert empty[0]["deliveries"] == 0 and "oldest delivery (s)" not in empty[0]
    assert empty[1]["labels to publish"] == 0 and empty[2]["pushes"] == 0


def test_where_the_label_server_differed_and_what_was_given_up() -> None:
    quiet = reports.drift_report([Drift("S1", listed=2, ledger=2)])
    assert quiet == {"drift missing": 0, "drift different": 0, "drift foreign": 0, "labels listed": 2}
    loud = reports.drift_report([
        Drift("S1", given_up={"A": "missing"}, given_up_count=2, skipped=3, odd=["0"], odd_count=1),
        Drift("S2", given_up={"B": "foreign"}, given_up_count=1, complete=False, reason="cut"),
        Drift("S3", changed={"01": "1"}, changed_count=1, taken_back=["C"], taken_back_count=1),
    ])  # fmt: skip
    assert (loud["given up"], loud["labels not compared"], loud["odd codes"]) == (3, 3, 1)
    assert (loud["labels taken back"], loud["listing incomplete"]) == (1, "S2: cut")
    for words in ("S1: 2 came back after three repairs and are left as they are: A (missing)",
                  "S3: 1 missing labels, because the server changes codes: 01 may hang as 1"):  # fmt: skip
        assert words in loud["to look at"]
    assert dg.AssetMaterialization("a", metadata=loud)


def test_deliveries_and_their_age() -> None:
    now = datetime.now(UTC)
    events = [
        {"webhook_id": name, "outcome": outcome, "received_at": (now - timedelta(seconds=age)).isoformat()}
        for name, outcome, age in (("w1", "done", 1), ("w2", "unusable", 90), ("w3", "done", 3))
    ]
    variants = pd.DataFrame({"variant_id": ["1", "2"], "removed": [False, True]})
    report = reports.products_report(events, [variants])
    assert (report["deliveries"], report["unusable deliveries"]) == (3, 1)
    assert (report["variants changed"], report["variants gone"]) == (2, 1)
    assert report["webhooks"] == "w1, w2, w3" and 90 <= report["oldest delivery (s)"] < 100


def test_a_preview_has_twenty_rows_of_short_text() -> None:
    frame = pd.DataFrame({"code": [f"{i:03d}" for i in range(50)], "label": ["x" * 500] * 49 + [None]})
    shown = records(reports.preview(frame, ["code", "label", "not there"]))
    assert [row["code"] for row in shown] == [f"{i:03d}" for i in range(20)]
    assert {len(row["label"]) for row in shown} == {80} and shown[0]["label"].endswith("…")


def test_missing_values_are_shown_as_nothing() -> None:
    frame = pd.DataFrame(
        {"a": pd.Series([None], dtype="str"), "b": [float("nan")], "c": [None], "d": [pd.NA]}
    )
    assert records(reports.preview(frame, list("abcd"))) == [dict.fromkeys("abcd", "")]


def test_lists_are_short_and_without_repetition() -> None:
    assert reports.listed([]) == ""
    assert reports.listed([3, 1, 3, None, 1]) == "3, 1"
    assert reports.listed(range(20)).endswith("18, 19")
    assert reports.listed(range(23)).endswith("18, 19 and 3 more")


@pytest.mark.parametrize(
    ("ended", "passes", "words"),
    [
        ({"complete": True, "reason": None, "skipped": 3, "given_up": 0}, True, "0 of 0 labels"),
        ({"complete": True, "reason": None, "skipped": 0, "given_up": 2}, False, "S1: 2 labels"),
        ({"complete": False, "reason": "cut off", "skipped": 0, "given_up": 0}, False, "not whole (cut off)"),
    ],
)
def test_field_27_what_the_last_comparison_left_alone_is_told(
    buffer: Buffer, ended: dict[str, Any], passes: bool, words: str
) -> None:
    shop = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}
    buffer.mapping_create(shop | {"hipoink_store_code": "S1"})
    buffer.drift_end(store="S1", at="2026-03-01T02:00:00+00:00", run_id="r", listed=9, ledger=9, **ended)
    judged = label_accuracy(buffer.accuracy(shop=shop))
    assert judged.passed is passes and words in str(judged.description)
    told = judged.metadata["labels that the last comparison skipped"]
    assert told == dg.MetadataValue.int(ended["skipped"])
