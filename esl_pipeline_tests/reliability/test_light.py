"""The state machine's light evaluation says what the stages say."""

from typing import Any

import orjson
import pandas as pd
import pytest

from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.model.rows import VARIANTS
from esl_pipeline.stages import evaluate
from esl_pipeline_tests.reliability.light import Light


def _mapping(last: str, store: str, settings: dict[str, Any]) -> StoreMapping:
    shop = {"source_system": "shopify", "source_store_id": "shop-a.myshopify.com"}
    id = f"00000000-0000-4000-8000-00000000000{last}"
    return StoreMapping(id, shop, store, "default", is_active=True, is_dry_run=False, settings=settings)


MAPPINGS = [
    _mapping("a", "A1", {}),
    _mapping(
        "b",
        "A3",
        {
            "title_template": "New: {title}",
            "stock_field": "qty",
            "location_id": "77",
            "guard_labels": 3,
            "on_delete": "keep",
        },
    ),
    _mapping("c", "A4", {"no such": "setting"}),
]
ROWS: list[dict[str, Any]] = [
    {},
    {"price": "17.50", "title": "Title 3", "barcode": "X", "stock": '{"77": 4, "78": 9}'},
    {"price": "0.00"},
    {"price": None, "stock": '{"77": null}'},
    {"barcode": None},
    {"status": "draft"},
    {"removed": True},
    {"title": "", "sku": None},
]


_Due = tuple[list[dict[str, Any]], list[StoreMapping]]


class _Heard:
    """A buffer that keeps what it is told."""

    def __init__(self, due: _Due) -> None:
        self.due, self.told = due, {}  # type: ignore[var-annotated]

    def variants_due(self, **_: Any) -> _Due:
        return self.due

    def labels_stage(self, **p: Any) -> dict[str, Any]:
        self.told = orjson.loads(orjson.dumps(p))  # as it is sent
        return {"labels_changed": 0, "stale": 0, "upserts_queued": 0, "removals_queued": 0, "collisions": []}


def _due() -> _Due:
    rows = []
    for number, content in enumerate(ROWS, start=101):
        row = dict.fromkeys(VARIANTS.names)
        row |= {"source_system": "shopify", "source_store_id": "shop-a.myshopify.com", "status": "active"}
        row |= {"variant_id": f"{number}1", "product_id": str(number), "inventory_item_id": f"9{number}"}
        row |= {
            "title": f"Title {number}",
            "barcode": f"own-{number}",
            "sku": f"A{number}1",
            "price": "12.00",
        }
        row |= {"removed": False, "gift_card": False, "event_ids": [number], "revision": number}
        rows.append(row | content)
    return rows, MAPPINGS


def _sorted(told: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted(rows, key=str) if isinstance(rows, list) else rows for name, rows in told.items()}


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 2])  # anew, and from what is remembered
def test_the_light_evaluation_tells_the_buffer_what_the_stages_tell_it(times: int) -> None:
    real: Any = _Heard(_due())
    frame, mappings = evaluate.due_variants(real)
    evaluate.stage(real, frame, evaluate.validate(pd.DataFrame(frame), mappings))
    light, evaluation = Light(), None

    for _ in range(times):
        lightly: Any = _Heard(_due())
        rows, mappings = light.due(lightly)
        evaluation = light.validate(rows, mappings)
        light.stage(lightly, rows, evaluation)

    assert _sorted(lightly.told) == _sorted(real.told)
    assert len(real.told["labels"]) == len(ROWS) * 2
