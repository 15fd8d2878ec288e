"""What a materialisation says: counts, ages, a preview of at most 20 rows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

PREVIEW_ROWS = 20
_MAX_CELL = 80

Metadata = dict[str, Any]


def preview(frame: pd.DataFrame, columns: Sequence[str]) -> dg.MetadataValue:
    """The first rows of a frame as a table in the UI."""
    shown = frame[[c for c in columns if c in frame]].head(PREVIEW_ROWS)
    records = [dg.TableRecord({str(k): _cell(v) for k, v in row.items()}) for row in shown.to_dict("records")]
    schema = dg.TableSchema([dg.TableColumn(str(c), type="string") for c in shown.columns])
    return dg.MetadataValue.table(records, schema=schema)


def listed(values: Iterable[Any]) -> str:
    """Up to 20 distinct values in one line, and how many more there are."""
    distinct = list(dict.fromkeys(str(v) for v in values if v is not None))
    more = f" and {len(distinct) - PREVIEW_ROWS} more" if len(distinct) > PREVIEW_ROWS else ""
    return ", ".join(distinct[:PREVIEW_ROWS]) + more


def oldest_age(received_at: Iterable[str]) -> float | None:
    """Seconds since the oldest of some ISO 8601 times."""
    times = [datetime.fromisoformat(at) for at in received_at]
    return round((datetime.now(UTC) - min(times)).total_seconds(), 3) if times else None


def products_report(events: Sequence[Mapping[str, Any]], variants: pd.DataFrame) -> Metadata:
    """For shopify_products: deliveries read and the variants they changed."""
    report: Metadata = {
        "deliveries": len(events),
        "variants changed": len(variants),
        "variants gone": int(variants["removed"].sum()) if len(variants) else 0,
        "unusable deliveries": sum(event["outcome"] == "unusable" for event in events),
        "webhooks": listed(event["webhook_id"] for event in events),
        "preview": preview(
            variants, ["variant_id", "barcode", "title", "variant_title", "price", "status", "removed"]
        ),
    }
    if (age := oldest_age(event["received_at"] for event in events)) is not None:
        report["oldest delivery (s)"] = age
    return report


def labels_report(labels: pd.DataFrame, findings: pd.DataFrame) -> Metadata:
    """For validated_variants: how the variants were judged."""
    states = labels["state"].value_counts()
    built = [json.loads(label) if isinstance(label, str) else {} for label in labels["label"]]
    shown = labels.assign(name=[b.get("pn") for b in built], price=[b.get("pp") for b in built])
    errors = findings[findings["level"] == "error"]
    report: Metadata = {
        "labels to publish": int(states.get("publish", 0)),
        "held back": int(states.get("held", 0)),
        "withdrawn": int(states.get("withdrawn", 0)),
        "findings": listed(f"{n} x {check}" for check, n in findings["check_name"].value_counts().items())
        or "none",
        "preview": preview(shown, ["store_code", "code", "state", "name", "price", "variant_id"]),
    }
    if len(errors):
        report["held back because"] = preview(
            errors, ["variant_id", "check_name", "value", "reason", "action"]
        )
    return report


def results_report(results: pd.DataFrame) -> Metadata:
    """For hipoink_sync_results: what the label server said."""
    outcomes = results["outcome"].value_counts()
    accepted = results[results["outcome"] == "accepted"]
    refused = results[results["outcome"] != "accepted"]
    report: Metadata = {
        "pushes": results["push_id"].nunique(),
        "labels written": int((accepted["operation"] == "upsert").sum()),
        "labels removed": int((accepted["operation"] == "delete").sum()),
        "outcomes": listed(f"{n} {outcome}" for outcome, n in outcomes.items()),
        "codes": listed(results["code"]),
        "inbox events": listed(i for ids in results["event_ids"] for i in ids),
        "why": f"esl-pipeline trace {results['code'].iloc[0]}" if len(results) else "nothing was due",
        "preview": preview(results, ["store_code", "code", "operation", "outcome", "message", "push_id"]),
    }
    if len(refused):
        report["not accepted"] = preview(refused, ["store_code", "code", "outcome", "message", "attempt"])
    return report


def _cell(value: Any) -> str:
    text = (
        ""
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
        else str(value)
    )
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"
