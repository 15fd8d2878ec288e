"""The evaluation without pandas' overhead: each kind of row is evaluated once by the real stages, then written again.

validate and stage are pure, and of each row and mapping alone (labels/test_evaluate.py); what they say of a title,
a price or an id they say of any other. So a row's own texts are replaced by marks, the real code is called with a
frame of one row, and what it would have told the buffer is kept and told with the texts in place of the marks. A
round of a few rows costs 1 ms so, not 150.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import orjson

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.labels.build import canonical_json, label_hash
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.stages import drain
from esl_pipeline.stages.evaluate import Evaluation, due_variants, stage, validate

_Row = dict[str, Any]
_Call = tuple[str, _Row]

# Column: (which of its texts have a mark, the mark: of the same kind, and in no other text).
_MARKS = {
    "variant_id": (r"[0-9]+", "77177"),
    "product_id": (r"[0-9]+", "77277"),
    "inventory_item_id": (r"[0-9]+", "77377"),
    "title": (r"Title [0-9]+", "Title 77477"),
    "sku": (r"[A-Z][0-9]+", "Z77577"),
    "barcode": (r"own-[0-9]+", "own-77677"),
    "price": (r"(?!0+\.00)[0-9]+\.[0-9]{2}", "77777.07"),
}
# The same of a mapping: its id is another one in every example.
_ID, _STORE, _SHOP = "77777777-7777-4777-8777-777777777777", "S77977", "shop-77077.myshopify.com"
# Settings that no evaluation asks for, with the values that are no mistakes.
_NOT_EVALUATED = {"guard_labels": (0, 1, 3, 1_000), "max_change_pct": (1, 80, 10_000)}
_OF_THE_ROW = ("revision", "event_ids", "history", "source_updated_at", "changed_at")
_STOCK = 77877


class _Rows(list[_Row]):
    """In the place of the frame of due variants."""

    @property
    def empty(self) -> bool:
        return not self


class _Told:
    """A buffer that notes what it is told."""

    def __init__(self, row: _Row, mapping: StoreMapping) -> None:
        self.calls: list[_Call] = []
        self._due = [row], [mapping]

    def variants_due(self, **_: Any) -> tuple[list[_Row], list[StoreMapping]]:
        return self._due

    def __getattr__(self, function: str) -> Any:
        def call(**p: Any) -> _Row:
            self.calls.append((function, orjson.loads(orjson.dumps(p))))
            return dict.fromkeys(("labels_changed", "stale", "upserts_queued", "removals_queued"), 0) | {
                "collisions": []
            }

        return call


class Light:
    """Stands for due_variants, validate and stage in a drain round."""

    def __init__(self) -> None:
        self._known: dict[str, list[_Call]] = {}

    def due(self, buffer: Buffer, *, limit: int = MAX_ROWS_PER_CALL) -> tuple[_Rows, list[StoreMapping]]:
        found, mappings = buffer.variants_due(limit=limit, shop=None, after=0)
        return _Rows(found), mappings

    def validate(self, variants: _Rows, mappings: list[StoreMapping]) -> Evaluation:
        evaluation = Evaluation()
        evaluation.light = (variants, mappings)  # type: ignore[attr-defined]
        return evaluation

    def stage(self, buffer: Buffer, variants: _Rows, evaluation: Evaluation) -> dict[str, int]:
        told: dict[str, dict[str, Any]] = {}
        for mapping in evaluation.light[1]:  # type: ignore[attr-defined]
            for row in variants:
                if row["source_store_id"] != mapping.shop["source_store_id"]:
                    continue
                for function, p in self._said_of(row, mapping):
                    for name, values in p.items():
                        kept = told.setdefault(function, {}).setdefault(name, type(values)())
                        if isinstance(values, dict):
                            kept.update(values)
                        else:
                            kept += [value for value in values if value not in kept]
        for function, p in told.items():
            getattr(buffer, function)(**p)
        return {}

    def _said_of(self, row: _Row, mapping: StoreMapping) -> Iterator[_Call]:
        marked, texts = _marked(row)
        texts += [
            (_ID, mapping.id),
            (_STORE, mapping.store),
            (_SHOP, mapping.shop["source_store_id"]),
        ]
        marked["source_store_id"] = _SHOP
        settings = mapping.settings
        if isinstance(settings, dict):
            settings = {
                name: value for name, value in settings.items() if value not in _NOT_EVALUATED.get(name, ())
            }
        shop = mapping.shop | {"source_store_id": _SHOP}
        kind = replace(mapping, id=_ID, store=_STORE, shop=shop, settings=settings)
        key = json.dumps([marked, asdict(kind)], sort_keys=True)
        if key not in self._known:
            self._known[key] = _evaluated(marked, kind)
        for function, p in self._known[key]:
            written = json.dumps(p)
            for mark, text in texts:
                written = written.replace(mark, text)
            yield function, _with_hashes(json.loads(written), row)


def _marked(row: _Row) -> tuple[_Row, list[tuple[str, str]]]:
    """The row with marks, and what they stand for."""
    marked = {name: value for name, value in row.items() if name not in _OF_THE_ROW}
    texts = []
    for name, (pattern, mark) in _MARKS.items():
        if re.fullmatch(pattern, marked[name] or ""):
            texts.append((mark, marked[name]))
            marked[name] = mark
    stock = json.loads(marked["stock"] or "{}")
    for location, available in stock.items():
        if isinstance(available, int):
            texts.append((str(_STOCK), str(available)))
            stock[location] = _STOCK
    return marked | {"stock": json.dumps(stock) if stock else None}, texts


def _evaluated(marked: _Row, mapping: StoreMapping) -> list[_Call]:
    row = marked | {"revision": 1, "event_ids": [], "history": None, "source_updated_at": None}
    told = _Told(row, mapping)
    frame, mappings = due_variants(told)  # type: ignore[arg-type]
    stage(told, frame, validate(frame, mappings))  # type: ignore[arg-type]
    return told.calls


def _with_hashes(p: _Row, row: _Row) -> _Row:
    for told in [item for values in p.values() if isinstance(values, list) for item in values]:
        if not isinstance(told, dict):
            continue
        if "revision" in told:
            told["revision"] = row["revision"]
        if "event_ids" in told:
            told["event_ids"] = row["event_ids"]
        if told.get("label"):
            told["label_hash"] = label_hash(canonical_json(told["label"]))
    return p


@contextmanager
def light_evaluation() -> Iterator[None]:
    """Drain rounds evaluate lightly for the length of the block."""
    light = Light()
    replaced: Mapping[str, Any] = {
        "due_variants": light.due,
        "validate": light.validate,
        "stage": light.stage,
    }
    with mock.patch.multiple(drain, **replaced):
        yield
