"""Labels show for some days that their price was cut, and then no more, without any news of the product."""

from typing import Any
from uuid import uuid4

import pytest

from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.world import AT_ONCE, RUN, SHOP, STORE, World, product, variant

pytestmark = pytest.mark.long

CUT = {"promotion": {"scene": 2, "when": "price_cut", "days": 7}}


def tea(version: int, price: str, **fields: Any) -> Any:
    return product(1, version, [variant(1, price=price)], **fields)


def scene(world: World) -> tuple[str, str]:
    record = world.labels()["C-1"]
    return record["pp"], str(record["promotion"])


def night(world: World) -> None:
    """A complete read of the shop, in which nothing is new."""
    shop, began = {"source_system": "shopify", "source_store_id": SHOP}, "2000-01-01T00:00:00+00:00"
    snapshot = str(uuid4())
    world.buffer.snapshot_begin(snapshot_id=snapshot, shop=shop, run_id=RUN)
    done = world.buffer.snapshot_finish(snapshot_id=snapshot, as_of=began, stock_as_of=None, counts={})
    assert done["finished"] and done["removed"] == 0
    world.settle()


def test_a_cut_is_shown_for_its_days_and_no_longer(world: World) -> None:
    world.map(settings=CUT)
    world.settle(tea(1, "5.00"))
    assert scene(world) == ("5.00", "1")
    world.age_prices(1)
    world.settle(tea(2, "4.00"))
    assert scene(world) == ("4.00", "2")
    world.age_prices(6)
    night(world)
    world.settle(tea(3, "4.00", title="Green tea"))
    assert scene(world) == ("4.00", "2")
    pushed = world.calls()
    night(world)
    assert world.calls() == pushed, "nothing is due before"
    world.age_prices(1)
    night(world)
    assert scene(world) == ("4.00", "1")
    pushed = world.calls()
    night(world)
    assert world.calls() == pushed


def test_a_rise_ends_it(world: World) -> None:
    world.map(settings=CUT)
    for version, price in enumerate(("5.00", "4.00", "4.50"), start=1):
        world.settle(tea(version, price))
        world.age_prices(1)
    assert scene(world) == ("4.50", "1")


def test_a_scene_is_compared_with_what_the_label_server_has(world: World) -> None:
    world.map(settings={"promotion": 3})
    world.settle(tea(1, "5.00"))
    assert compare_store(world.buffer, world.client, store=STORE, run_id=RUN).different == []
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"promotion": 1}).raise_for_status()
    (found,) = compare_store(world.buffer, world.client, store=STORE, run_id=RUN).different
    assert found == {"code": "C-1", "fields": {"promotion": ("3", "1")}}
    world.settle()
    assert scene(world) == ("5.00", "3")


def test_a_blank_label_keeps_its_scene_for_the_server_takes_numbers_alone(world: World) -> None:
    world.map(settings=AT_ONCE | {"promotion": 3, "on_unpublish": "blank"})
    world.settle(tea(1, "5.00"))
    world.settle(tea(2, "5.00", status="archived"))
    assert scene(world) == ("0.00", "3")


@pytest.mark.parametrize("days", ["null", '"many"', "-1", "1e200"])
def test_days_that_are_none_stop_no_night(world: World, days: str) -> None:
    mapping = world.map(settings=CUT)
    world.settle(tea(1, "5.00"))
    world.settle(tea(2, "4.00"))
    tampered = "settings = jsonb_set(settings, '{promotion,days}', %s::jsonb)"
    world.sql(f"update esl.store_mappings set {tampered} where id = %s", days, mapping)
    night(world)
