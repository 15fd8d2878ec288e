"""Blank labels are known by a mark of ours: a product called "-" that costs nothing is one like any other."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.world import RUN, STORE, World, product, variant

pytestmark = pytest.mark.long

NOTHING = "0.00"
PENDING: dict[str, Any] = {"kind": "status", "status": 503}
CLOSED = {
    "opens": f"{datetime.now(UTC) + timedelta(hours=9):%H:%M}",
    "closes": f"{datetime.now(UTC) + timedelta(hours=10):%H:%M}",
    "time_zone": "UTC",
}


def dash(number: int = 1, price: str = NOTHING, version: int = 1, title: str = "-", **fields: Any) -> Any:
    """A product whose label has what a blank one has, to the letter: no sku, no price before."""
    return product(number, version, [variant(number, price=price, sku=None)], title=title, **fields)


def settings(**others: Any) -> dict[str, Any]:
    return {"zero_price": "allow", "on_unpublish": "blank", **others}


def ledger(world: World) -> dict[str, bool]:
    """Whether the label of each code in the ledger is a blank one."""
    rows = world.sql("select code, esl.is_blanked(label_hash) as is_blank from esl.hipoink_products")
    return {row["code"]: row["is_blank"] for row in rows}


def prices_shown(world: World) -> list[str]:
    rows = world.sql("select price::text as price from esl.price_history order by since")
    return [row["price"] for row in rows]


def accuracy(world: World) -> tuple[int, int, int]:
    (mapping,) = world.buffer.accuracy()
    return mapping["publishable"], mapping["accurate"], mapping["unsettled"]


def forget(world: World, code: str) -> None:
    """What an older build did with a label that a list lacked."""
    world.sql("delete from esl.hipoink_products where code = %s", code)


def test_its_label_has_the_content_of_a_blank_one_and_is_none(world: World) -> None:
    world.map(settings=settings())
    world.settle(dash(1), dash(2))
    real = world.labels()["C-1"]
    assert ledger(world) == {"C-1": False, "C-2": False}
    assert (accuracy(world), prices_shown(world)) == ((2, 2, 0), ["0.00", "0.00"])
    world.settle(dash(1, version=2, status="draft"))
    assert world.labels()["C-1"] == real  # to the letter
    assert ledger(world) == {"C-1": True, "C-2": False}
    assert (accuracy(world), world.queue()) == ((1, 1, 0), {})


def test_a_price_on_its_label_rises_from_nothing_and_waits_for_the_window(world: World) -> None:
    world.map(settings=settings(raise_window=CLOSED))
    world.settle(dash(1))
    world.update(dash(1, "5.00", 2))
    for _ in range(2):
        world.round()
    assert (world.prices(), world.queue()["C-1"]["is_rise"]) == ({"C-1": NOTHING}, True)


def test_a_price_after_its_blank_label_is_no_rise(world: World) -> None:
    world.map(settings=settings(raise_window=CLOSED))
    world.settle(dash(1))
    world.settle(dash(1, version=2, status="draft"))
    world.settle(dash(1, "5.00", 3))
    assert world.prices() == {"C-1": "5.00"}
    assert (ledger(world), prices_shown(world)) == ({"C-1": False}, ["0.00", "5.00"])


def test_it_comes_back_to_a_blank_label_as_itself(world: World) -> None:
    world.map(settings=settings())
    world.settle(dash(1))
    world.settle(dash(1, version=2, status="draft"))
    world.settle(dash(1, version=3))
    assert (ledger(world), accuracy(world)) == ({"C-1": False}, (1, 1, 0))


def test_products_renamed_to_it_are_no_removals(world: World) -> None:
    world.map(settings=settings())
    world.settle(*(dash(n, title=f"Tea {n}") for n in range(1, 21)))
    world.settle(*(dash(n, version=2) for n in range(1, 21)))
    assert {label["pn"] for label in world.labels().values()} == {"-"}
    assert world.queue() == {}


def test_products_that_become_it_are_drastic_for_their_price_alone(world: World) -> None:
    world.map(settings=settings())
    world.settle(*(dash(n, "5.00", title=f"Tea {n}") for n in range(1, 21)))
    world.settle(*(dash(n, version=2) for n in range(1, 21)))
    assert {row["drastic"] for row in world.queue().values()} == {"price"}
    (preview,) = world.buffer.preview(store=STORE)
    assert (preview["guarded"], preview["changed"], preview["removed"]) == (20, 20, 0)
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 0, "prices": 20}


def test_blanking_many_of_it_is_guarded_as_removals(world: World) -> None:
    world.map(settings=settings())
    world.settle(*(dash(n) for n in range(1, 31)))
    world.settle(*(dash(n, version=2, status="draft") for n in range(1, 21)))
    assert {row["drastic"] for row in world.queue().values()} == {"removal"}
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 20, "prices": 0}
    world.settle()
    assert sorted(ledger(world).values()) == [False] * 10 + [True] * 20


def test_its_label_in_doubt_goes_out_again_while_it_is_held_back(world: World) -> None:
    mapping = world.map(settings=settings())
    world.settle(dash(1, "5.00", title="Tea"))
    world.sandbox.faults(PENDING | {"apply": True, "times": 1})
    world.update(dash(1, version=2))
    world.round(initial_delay=60, max_delay=60)
    world.sql("update esl.sync_queue set next_attempt_at = now()")
    world.buffer.mapping_update(mapping, {"settings": settings(zero_price="block")})
    world.settle()
    assert (world.prices(), ledger(world)) == ({"C-1": NOTHING}, {"C-1": False})


@pytest.mark.parametrize("is_blank", [True, False])
def test_a_label_that_drift_takes_back_is_what_it_was(world: World, is_blank: bool) -> None:
    world.map(settings=settings(raise_window=CLOSED))
    world.settle(dash(1))
    if is_blank:
        world.settle(dash(1, version=2, status="draft"))
    hung = ledger(world)
    forget(world, "C-1")
    assert compare_store(world.buffer, world.client, store=STORE, run_id=RUN).taken_back == ["C-1"]
    assert ledger(world) == hung == {"C-1": is_blank}
    world.settle()
    assert compare_store(world.buffer, world.client, store=STORE, run_id=RUN).taken_back == []
    world.update(dash(1, "5.00", 3))
    for _ in range(2):
        world.round()
    assert world.prices() == {"C-1": "5.00" if is_blank else NOTHING}


def test_drift_puts_a_blank_label_back_blank(world: World) -> None:
    world.map(settings=settings())
    world.settle(dash(1, "5.00", title="Tea"))
    world.settle(dash(1, version=2, status="draft"))
    hung = world.labels()
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pn": "Tea"}).raise_for_status()
    assert compare_store(world.buffer, world.client, store=STORE, run_id=RUN).requeued == 1
    world.settle()
    assert (world.labels(), ledger(world), world.queue()) == (hung, {"C-1": True}, {})
