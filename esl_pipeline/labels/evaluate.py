"""From variants and a store's policy to labels: published, held back or withdrawn."""

import json
import math
from typing import Any

import pandas as pd

from esl_pipeline.labels import schema
from esl_pipeline.labels.build import build_label, canonical_json, code_of, label_hash, title_of
from esl_pipeline.labels.policy import Policy

# Not on a shelf: a variant with one of these statuses loses its label as with a delete.
WITHDRAWN_STATUSES = ("draft", "archived")

LABEL_COLUMNS = [
    "mapping_id",
    "source_system",
    "source_store_id",
    "variant_id",
    "revision",
    "store_code",
    "state",
    "code",
    "label",
    "label_hash",
    "event_ids",
]
FINDING_COLUMNS = [
    "mapping_id",
    "source_store_id",
    "variant_id",
    "revision",
    "check_name",
    "level",
    "column_name",
    "value",
    "reason",
    "action",
]


def evaluate(
    variants: pd.DataFrame, *, mapping_id: str, store_code: str, policy: Policy
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate the variants of one shop for one store.

    In: rows of the buffer's variants (text columns as Shopify sent them, removed: bool, revision: int64,
    stock: JSON text {location id: quantity}, or null). Out: one label row per variant (LABEL_COLUMNS; state is
    publish, held or withdrawn; label is canonical JSON text, null unless published) and the findings
    (FINDING_COLUMNS). No content of a row raises.
    """
    rows: list[dict[str, Any]] = variants.to_dict("records")  # type: ignore[assignment]
    rows = [{k: None if _is_null(v) else v for k, v in row.items()} for row in rows]
    for row in rows:
        row["stock"] = json.loads(row["stock"]) if row["stock"] else {}
    on_shelf = [not row["removed"] and row["status"] not in WITHDRAWN_STATUSES for row in rows]
    candidates = pd.DataFrame(
        {
            "code": [code_of(row) for row in rows],
            "title": [title_of(row) for row in rows],
            "price": [row["price"] for row in rows],
            "status": [row["status"] for row in rows],
            "image_url": [row["image_url"] if policy.send_images else None for row in rows],
            "decimals": policy.decimals,
        }
    )
    found = schema.findings(candidates[pd.Series(on_shelf, dtype=bool)])
    held = set(found.loc[found["level"] == "error", "row"])

    labels = []
    for i, row in enumerate(rows):
        label = build_label(row, policy) if on_shelf[i] and i not in held else None
        labels.append(
            {
                "mapping_id": mapping_id,
                "source_system": row["source_system"],
                "source_store_id": row["source_store_id"],
                "variant_id": row["variant_id"],
                "revision": row["revision"],
                "store_code": store_code,
                "state": "publish" if label else "held" if on_shelf[i] else "withdrawn",
                "code": label["pc"] if label else None,
                "label": canonical_json(label) if label else None,
                "label_hash": label_hash(label) if label else None,
                "event_ids": row["event_ids"],
            }
        )
    found = found.assign(
        mapping_id=mapping_id,
        source_store_id=[rows[i]["source_store_id"] for i in found["row"]],
        variant_id=[rows[i]["variant_id"] for i in found["row"]],
        revision=[rows[i]["revision"] for i in found["row"]],
    )
    return (
        pd.DataFrame(labels, columns=LABEL_COLUMNS),
        # Without findings the column would be float, and a frame joined to it too.
        found[FINDING_COLUMNS].astype({"revision": "int64"}),
    )


def _is_null(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
