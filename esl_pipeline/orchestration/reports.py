"""What a run and a materialisation say: the outcome first, counts, ages, a preview of at most 20 rows.

Dagster plots every number over all partitions in one line, so numbers are text here, but those that are plotted for
each shop by itself (of_shop).
"""

import json
import math
import resource
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from esl_pipeline.printable import printable
from esl_pipeline.stages.drift import Drift
from esl_pipeline.stages.snapshot import Snapshot

PREVIEW_ROWS = 20
_MAX_CELL = 80
_MAX_REASON = 200

Metadata = dict[str, Any]

# The first entry of a report: one sentence.
OUTCOME = "outcome"
# Of a run: what it came to, in the list of runs.
OUTCOME_TAG = "esl/outcome"
# What is worth a line over time, for each shop.
PLOTTED = frozenset({
    *("labels written", "push (s)", "catalogue", "drift missing", "drift different"),
    *("label accuracy (%)", "labels wrong or waiting", "held back (%)", "oldest webhook (s)", "oldest label (s)"),
    *("labels offline", "labels of low battery", "stale on shelf (s)", "stale on shelf, price rises (s)"),
})  # fmt: skip


def of_shop(report: Mapping[str, Any], shop: str) -> Metadata:
    """A report of one shop (its key) as metadata: of its numbers only the plotted ones are numbers, named after it."""
    said: Metadata = {}
    for name, value in report.items():
        if not _is_number(value):
            said[name] = value
        elif name in PLOTTED:
            said[f"{name}, {shop}"] = value
        else:
            said[name] = str(value)
    return said


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Outcomes:
    """What labels came to, for the sentence at the end of a run; fed with results (rows.RESULTS), in their order."""

    def __init__(self) -> None:
        self.any = False
        self._done: Counter[str] = Counter()
        self._open: dict[tuple[str, str], str] = {}
        self._because = ""

    def add(self, results: pd.DataFrame) -> None:
        """Count accepted pushes, and of a label that was not accepted how its last push ended."""
        self.any = self.any or bool(len(results))
        is_accepted = results["outcome"] == "accepted"
        self._done.update(results.loc[is_accepted, "operation"])
        if self._open or not is_accepted.all():
            columns = ("store_code", "code", "outcome", "message")
            for store, code, outcome, message in zip(*(results[name] for name in columns), strict=True):
                if outcome == "accepted":
                    self._open.pop((store, code), None)
                else:
                    self._open[store, code] = outcome
                    self._because = printable(" ".join(str(message).split()))

    @property
    def all_is_well(self) -> bool:
        """Whether every label was accepted in the end."""
        return not self._open

    @property
    def anything_changed(self) -> bool:
        """Whether any push was accepted."""
        return self._done.total() > 0

    def said(self, *, repaired: int = 0, seconds: float | None = None) -> str:
        """`339 labels written, 12 refused, 3 repaired, 1.8 s; the last said: no such store`."""
        written, removed = self._done["upsert"], self._done["delete"]
        says = (
            [f"{written} {'label' if written == 1 else 'labels'} written"]
            if self.any
            else ["no label was due"]
        )
        says += [f"{removed} removed"] if removed else []
        ended = Counter(_ENDED.get(outcome, outcome) for outcome in self._open.values())
        says += [f"{ended[name]} {name}" for name in dict.fromkeys(_ENDED.values()) if ended[name]]
        says += [f"{repaired} repaired"] if repaired else []
        says += [f"{seconds:.1f} s"] if seconds is not None else []
        because = f"; the last said: {self._because[:_MAX_REASON]}" if self._open and self._because else ""
        return ", ".join(says) + because


# How a push that was not accepted ended, for people.
_ENDED = {
    "rejected": "refused",
    "authentication": "not let in",
    "transient": "to be tried again",
    "unknown": "in doubt",
    "not_sent": "not sent",
}


def tell(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, sentence: str, *, is_well: bool = True
) -> None:
    """Say what a run came to, as its last line and in the list of runs."""
    with suppress(Exception):  # Dagster's storage may be what is away, and what is told of is done
        (context.log.info if is_well else context.log.warning)(sentence)
        context.instance.add_run_tags(context.run.run_id, {OUTCOME_TAG: sentence})


def preview(frame: pd.DataFrame, columns: Sequence[str]) -> dg.MetadataValue:
    """The first rows of a frame as a table in the UI."""
    shown = frame[[c for c in columns if c in frame]].head(PREVIEW_ROWS)
    return table(shown.to_dict("records"), list(shown.columns))


def table(rows: Sequence[Mapping[Any, Any]], columns: Sequence[str]) -> dg.MetadataValue:
    """The first rows as a table in the UI."""
    records = [dg.TableRecord({c: _cell(row.get(c)) for c in columns}) for row in rows[:PREVIEW_ROWS]]
    return dg.MetadataValue.table(
        records, schema=dg.TableSchema([dg.TableColumn(c, type="string") for c in columns])
    )


def listed(values: Iterable[Any]) -> str:
    """Up to 20 distinct values in one line, and how many more there are."""
    distinct = _Distinct()
    distinct.add(values)
    return distinct.listed()


def oldest_age(received_at: Iterable[str]) -> float | None:
    """Seconds since the oldest of some ISO 8601 times."""
    times = [datetime.fromisoformat(at) for at in received_at]
    return round((datetime.now(UTC) - min(times)).total_seconds(), 3) if times else None


def products_report(events: Sequence[Mapping[str, Any]], variants: Iterable[pd.DataFrame]) -> Metadata:
    """For shopify_products: deliveries read and the variants (rows.VARIANTS, in parts) they changed."""
    changed = gone = 0
    shown = _Head()
    for part in variants:
        changed += len(part)
        gone += int(part["removed"].sum()) if len(part) else 0
        shown.add(part)
    columns = ["variant_id", "barcode", "title", "variant_title", "price", "status", "removed"]
    unusable = sum(event["outcome"] == "unusable" for event in events)
    report: Metadata = {
        OUTCOME: f"{_count(changed, 'variant')} changed"
        + (f", {unusable} of {_count(len(events), 'delivery', 'deliveries')} unusable" if unusable else ""),
        "deliveries": len(events),
        "variants changed": changed,
        "variants gone": gone,
        "unusable deliveries": unusable,
        "webhooks": listed(event["webhook_id"] for event in events),
        "preview": preview(shown.frame, columns),
    }
    if (age := oldest_age(event["received_at"] for event in events)) is not None:
        report["oldest delivery (s)"] = age
    return report


def snapshot_report(snapshot: Snapshot) -> Metadata:
    """For shopify_products of a full_reconciliation: the whole catalogue."""
    return {
        "catalogue": snapshot.variants,
        "catalogue changed": snapshot.changed,
        "catalogue unchanged": snapshot.unchanged,
        "catalogue removed": snapshot.removed,
        "newer than the snapshot": snapshot.newer,
        "stock levels read": snapshot.levels,
        "snapshot (s)": round(snapshot.seconds, 3),
        "snapshot complete": snapshot.complete,
    }


def drift_report(drifts: Sequence[Drift]) -> Metadata:
    """For hipoink_sync_results of a full_reconciliation: where the label server differed from the ledger."""
    report: Metadata = {
        "drift missing": sum(drift.missing_count for drift in drifts),
        "drift different": sum(drift.different_count for drift in drifts),
        "drift foreign": sum(drift.foreign_count for drift in drifts),
        "labels listed": sum(drift.listed for drift in drifts),
    }
    if incomplete := [f"{drift.store_code}: {drift.reason}" for drift in drifts if not drift.complete]:
        report["listing incomplete"] = "; ".join(incomplete)
    also = {
        "given up": sum(drift.given_up_count for drift in drifts),
        "labels taken back": sum(drift.taken_back_count for drift in drifts),
        "labels not compared": sum(drift.skipped for drift in drifts),
        "odd codes": sum(drift.odd_count for drift in drifts),
        "to look at": "; ".join(remark for drift in drifts for remark in drift.remarks()),
    }
    report |= {name: value for name, value in also.items() if value}
    return report


def cost_report(started: float) -> Metadata:
    """Duration since a time.monotonic, and the peak memory of this process (Linux: ru_maxrss in KiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"duration (s)": round(time.monotonic() - started, 3), "peak memory (MiB)": round(peak / 1024, 1)}


class FindingsTally:
    """How many findings of each check there were, and the first errors; fed part by part."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors = _Head()

    def add(self, findings: pd.DataFrame) -> None:
        """Count the findings of a part (rows.FINDINGS)."""
        self.counts.update(findings["check_name"])
        self.errors.add(findings[findings["level"] == "error"])


def labels_report(labels: Iterable[pd.DataFrame], found: FindingsTally) -> Metadata:
    """For validated_variants: how the variants were judged (rows.LABELS, in parts)."""
    states: Counter[str] = Counter()
    shown = _Head()
    for part in labels:
        states.update(part["state"])
        shown.add(part)
    built = [json.loads(label) if isinstance(label, str) else {} for label in shown.frame.get("label", [])]
    table = shown.frame.assign(name=[b.get("pn") for b in built], price=[b.get("pp") for b in built])
    report: Metadata = {
        OUTCOME: f"{_count(states['publish'], 'label')} to publish"
        + (f", {states['held']} held back" if states["held"] else ""),
        "labels to publish": states["publish"],
        "held back": states["held"],
        "withdrawn": states["withdrawn"],
        "findings": listed(f"{n} x {check}" for check, n in found.counts.most_common()) or "none",
        "preview": preview(table, ["store_code", "code", "state", "name", "price", "variant_id"]),
    }
    if len(found.errors.frame):
        report["held back because"] = preview(
            found.errors.frame, ["variant_id", "check_name", "value", "reason", "action"]
        )
    return report


def results_report(results: Iterable[pd.DataFrame], said: Outcomes | None = None) -> Metadata:
    """For hipoink_sync_results: what the label server said (rows.RESULTS, in parts), which `said` is told as well."""
    said = said or Outcomes()
    outcomes: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    pushes: set[str] = set()
    codes, events = _Distinct(), _Distinct()
    shown, refused = _Head(), _Head()
    for part in results:
        said.add(part)
        outcomes.update(part["outcome"])
        accepted.update(part.loc[part["outcome"] == "accepted", "operation"])
        pushes.update(part["push_id"])
        codes.add(part["code"])
        events.add(i for ids in part["event_ids"] for i in ids)
        shown.add(part)
        refused.add(part[part["outcome"] != "accepted"])
    report: Metadata = {
        OUTCOME: said.said(),
        "pushes": len(pushes),
        "labels written": accepted["upsert"],
        "labels removed": accepted["delete"],
        "outcomes": listed(f"{n} {outcome}" for outcome, n in outcomes.most_common()),
        "codes": codes.listed(),
        "inbox events": events.listed(),
        "why": f"esl-pipeline trace {shown.frame['code'].iloc[0]}" if len(shown.frame) else "nothing was due",
        "preview": preview(shown.frame, ["store_code", "code", "operation", "outcome", "message", "push_id"]),
    }
    if len(refused.frame):
        report["not accepted"] = preview(
            refused.frame, ["store_code", "code", "outcome", "message", "attempt"]
        )
    return report


class _Head:
    """The first rows of a frame that comes in parts."""

    def __init__(self) -> None:
        self.frame = pd.DataFrame()

    def add(self, part: pd.DataFrame) -> None:
        missing = PREVIEW_ROWS - len(self.frame)
        if missing > 0 and len(part):
            head = part.head(missing)
            self.frame = pd.concat([self.frame, head], ignore_index=True) if len(self.frame) else head


class _Distinct:
    """The first distinct values of many, and how many there are."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._first: list[Any] = []

    def add(self, values: Iterable[Any]) -> None:
        for value in values:
            if value is not None and value not in self._seen:
                self._seen.add(value)
                if len(self._first) < PREVIEW_ROWS:
                    self._first.append(value)

    def listed(self) -> str:
        more = len(self._seen) - len(self._first)
        return ", ".join(map(str, self._first)) + (f" and {more} more" if more else "")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def _cell(value: Any) -> str:
    text = (
        ""
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
        else str(value)
    )
    return _short(text)
