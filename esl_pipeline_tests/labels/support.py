"""What the label tests share: variants as frames, and what one of them becomes under a policy."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from esl_pipeline.labels.evaluate import Store, evaluate_together
from esl_pipeline.labels.policy import Policy
from esl_pipeline.model.rows import VARIANTS


def evaluate(variants: pd.DataFrame, store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The variants of one shop for one store."""
    return evaluate_together([(variants, store)])


MAPPING = "m"
LOCATION = "7"

# A variant without a finding under the default policy.
GOOD: dict[str, Any] = dict.fromkeys(VARIANTS.names) | {
    "source_system": "shopify",
    "source_store_id": "shop",
    "variant_id": "1",
    "product_id": "10",
    "title": "Tea",
    "variant_title": "Default Title",
    "barcode": "4006381333931",
    "sku": "SKU-1",
    "price": "1.50",
    "status": "active",
    "published_at": "2026-01-01T00:00:00+00:00",
    "removed": False,
    "gift_card": False,
    "revision": 1,
    "event_ids": [5],
}


@dataclass(frozen=True)
class Judged:
    """What became of one variant: its label (null unless published) and its findings, name to level."""

    state: str
    label: dict[str, Any] | None
    findings: dict[str, str]
    row: dict[str, Any]

    def shown(self, field: str) -> Any:
        """A field of the label, which must be published."""
        assert self.state == "publish", self.findings
        assert self.label is not None
        return self.label[field]


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """GOOD variants with these fields, numbered from 1 unless they say otherwise."""
    named = [GOOD | {"variant_id": str(n)} | row for n, row in enumerate(rows, start=1)]
    return pd.DataFrame(named, columns=VARIANTS.names).astype(VARIANTS.dtypes)


def store(
    policy: Policy | None = None, currency: str | None = "EUR", taxes_included: bool | None = None
) -> Store:
    """A store of the default policy, fed by a shop that sells in euros."""
    policy = policy or Policy()
    if not policy.image_hosts:  # as stages.evaluate takes those of the source
        policy = policy.model_copy(update={"image_hosts": ("cdn.shopify.com",)})
    return Store(MAPPING, "S1", policy, currency, taxes_included)


def judge_all(variants: pd.DataFrame, to: Store) -> dict[str, Judged]:
    """What becomes of each variant, by its id."""
    labels, findings = evaluate(variants, to)
    found: dict[str, dict[str, str]] = {}
    for finding in findings.to_dict("records"):
        found.setdefault(finding["variant_id"], {})[finding["check_name"]] = finding["level"]
    return {
        row["variant_id"]: Judged(
            state=row["state"],
            label=json.loads(row["label"]) if isinstance(row["label"], str) else None,
            findings=found.get(row["variant_id"], {}),
            row={str(name): value for name, value in row.items()},
        )
        for row in labels.to_dict("records")
    }


def judge(row: dict[str, Any] | None = None, **policy: Any) -> Judged:
    """What becomes of a GOOD variant with these fields under a policy with these settings."""
    (judged,) = judge_all(frame(row or {}), store(Policy.model_validate(policy))).values()
    return judged


def judge_each(column: str, values: Iterable[Any], **policy: Any) -> list[tuple[Any, Judged]]:
    """The same for several values of one column, as (value, what became of it)."""
    values = list(values)
    judged = judge_all(frame(*({column: value} for value in values)), store(Policy.model_validate(policy)))
    return list(zip(values, judged.values(), strict=True))
