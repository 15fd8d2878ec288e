"""Fair turns: what one shop has waiting costs the others a turn, however much it is."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline.stages.drain import DrainLimits, Portion, Round, drain
from esl_pipeline.stages.evaluate import due_variants
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.world import ASSET, RULES, RUN, Body, World, drain_round, product, variant

FLOOD, BUSY, SMALL, QUIET = "flood.myshopify.com", "S-flood", "small.myshopify.com", "S-small"


@pytest.fixture
def two(world: World) -> World:
    """A world with a shop that floods and a small one, each with a store of its own."""
    world.map(FLOOD, BUSY, settings={"guard_share_pct": 100})
    world.map(SMALL, QUIET)
    return world


def many(bodies: int, variants: int, *, price: str = "1.00", version: int = 1) -> list[Body]:
    """Product bodies of a flood."""
    return [
        product(number, version, [variant(1_000 * number + n, price=price) for n in range(1, variants + 1)])
        for number in range(10, 10 + bodies)
    ]


def portioned(world: World, variants: int, batch_size: int = 100) -> Round:
    """One round of a drain that reads so much of everything."""
    rules = RULES.__class__(**(vars(RULES) | {"batch_size": batch_size}))
    return drain_round(world.buffer, world.client, rules, portion=Portion(variants=variants))


def stores_pushed(world: World, after: int = 0) -> list[str]:
    """The store of each call that changed labels, in their order."""
    rows = world.sql(
        "select min(id) as id, store_code from esl.sync_log where kind = 'result' and id > %s"
        " group by push_id, store_code order by 1",
        after,
    )
    return [row["store_code"] for row in rows]


def last_result(world: World) -> int:
    (row,) = world.sql("select coalesce(max(id), 0) as id from esl.sync_log")
    return int(row["id"])


def claimed(world: World, **options: Any) -> list[str]:
    """The shop of each delivery of one claim, in order."""
    return [event["source_store_id"] for event in world.buffer.inbox_claim(run_id=RUN, **options)[1]]


# --- the row


@pytest.mark.long
def test_s33_a_rise_and_a_new_label_wait_for_one_round_of_another_shops_flood(two: World) -> None:
    two.update(product(1), shop=SMALL)
    two.settle()
    before = last_result(two)
    two.update(*many(40, 5), shop=FLOOD)
    two.update(product(1, 2, [variant(1, price="2.00")]), product(2), shop=SMALL)

    done = portioned(two, 50)

    assert two.prices(QUIET) == {"C-1": "2.00", "C-2": "1.00"}
    assert stores_pushed(two, before)[0] == QUIET, "rises first, and in the same call what else the store has"
    assert 2 < len(done.events) < 30, "of the flood a portion"
    two.settle()
    assert len(two.labels(BUSY)) == 200 and set(two.inbox()) == {"done"}


@pytest.mark.slow
def test_s33_nine_hundred_deliveries_of_a_hundred_variants_from_one_shop(two: World) -> None:
    two.update(product(1), shop=SMALL)
    two.settle()
    two.update(*many(900, 100), shop=FLOOD)
    two.update(product(1, 2, [variant(1, price="2.00")]), product(2), shop=SMALL)

    began = time.monotonic()
    portion, rounds = Portion(), 0
    while two.prices(QUIET) != {"C-1": "2.00", "C-2": "1.00"}:
        drain_round(two.buffer, two.client, RULES, portion=portion)
        rounds += 1
    print(f"a rise and a new label after {rounds} rounds, {time.monotonic() - began:.2f} s")
    assert rounds == 1

    # Again in the midst of it, with rises of the flood as well.
    two.update(*many(100, 100, price="3.00", version=2), shop=FLOOD)
    for _ in range(3):
        drain_round(two.buffer, two.client, RULES, portion=portion)
    two.update(product(1, 3, [variant(1, price="4.00")]), product(3), shop=SMALL)
    before = last_result(two)
    drain_round(two.buffer, two.client, RULES, portion=portion)
    assert two.prices(QUIET)["C-1"] == "4.00"
    assert stores_pushed(two, before).index(QUIET) <= 1


# --- in the inbox


def test_s33_a_claim_takes_of_each_shop_as_much_as_of_another(two: World) -> None:
    two.update(*many(30, 1), shop=FLOOD)
    two.update(*(product(n) for n in range(1, 4)), shop=SMALL)
    assert claimed(two, limit=8) == [FLOOD] * 5 + [SMALL] * 3
    assert claimed(two, limit=8) == [FLOOD] * 8, "what the others do not need"
    ids = [row["id"] for row in two.sql("select id from esl.webhook_inbox where state = 'ready' order by id")]
    assert min(ids) == 14, "of each its oldest"


def test_s33_large_bodies_of_one_shop_do_not_fill_a_claim(two: World) -> None:
    two.update(*(product(n, body_html="x" * 100_000) for n in range(10, 20)), shop=FLOOD)
    two.update(*(product(n) for n in range(1, 16)), shop=SMALL)
    shops = claimed(two, max_bytes=140_000)
    assert (shops.count(FLOOD), shops.count(SMALL)) == (2, 15)


def test_s33_more_shops_than_fit_into_a_claim_take_turns(world: World) -> None:
    shops = [f"flood-{n}.myshopify.com" for n in range(5)]
    for n, shop in enumerate(shops):
        world.map(shop, f"S{n}")
        world.update(
            *(product(100 * n + m, body_html="x" * 50_000) for m in range(10, 15)),
            shop=shop,
        )
    assert len({*claimed(world, max_bytes=53_000), *claimed(world, max_bytes=60_000)}) == 4
    world.map(SMALL, QUIET)
    world.update(product(1), shop=SMALL)
    # Whoever never had a turn comes first, though all others' oldest are older.
    assert set(claimed(world, max_bytes=53_000)) == {shops[4], SMALL}
    assert set(claimed(world, max_bytes=53_000)) == set(shops[:2])


def test_s33_a_shop_whose_claim_was_never_finished_is_claimed_alone_and_halved(two: World) -> None:
    two.update(*many(16, 1), shop=FLOOD)
    assert claimed(two, limit=16) == [FLOOD] * 16  # and its worker dies
    two.expire_leases()
    two.update(product(1), shop=SMALL)
    assert claimed(two, limit=16) == [SMALL], "the others first, and none with it"
    two.update(product(2), shop=SMALL)
    sizes = []
    for _ in range(3):
        sizes.append(len(claimed(two, limit=16)))
        two.sql("update esl.webhook_inbox set lease_until = now() where source_store_id = %s", FLOOD)
    assert sizes == [8, 1, 4], "half of it, then the small shop's turn, then half of that"


class _PoisonError(Exception):
    """A defect of a reader, found by one body."""


class _Poisoned(ShopifySource):
    @classmethod
    def read_deliveries(cls, deliveries: Sequence[Any]) -> Facts:
        facts = super().read_deliveries(deliveries)
        if any(row["title"] == "poison" for row in facts.products):
            raise _PoisonError
        return facts


def test_s33_what_cannot_be_read_of_one_shop_holds_up_no_other(
    two: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "shopify", _Poisoned)
    two.update(product(10), product(11, title="poison"), product(12), shop=FLOOD)
    two.update(product(1), shop=SMALL)
    assert isinstance(two.round().failure, _PoisonError)
    two.expire_leases()
    for number in range(2, 6):
        two.update(product(number), shop=SMALL)
        two.round()
        two.round()
        assert f"C-{number}" in two.labels(QUIET), "the culprit's shop is tried alone"
        two.expire_leases()


@pytest.mark.long
def test_s33_a_drain_works_on_and_says_at_its_end_what_it_could_not_read(
    two: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "shopify", _Poisoned)
    two.update(product(11, title="poison"), shop=FLOOD)

    def later(done: Round) -> None:
        if done.failure is not None:
            two.update(product(1), shop=SMALL)

    with pytest.raises(_PoisonError):
        drain(
            two.buffer,
            two.client,
            RULES,
            DrainLimits(idle=1, age=60),
            run_id=RUN,
            holder="h",
            asset=ASSET,
            on_round=later,
            on_idle=lambda: None,
        )
    assert set(two.labels(QUIET)) == {"C-1"}
    assert two.buffer.due().drain is None


# --- among due variants, and in pushes


def test_s33_due_variants_are_evaluated_in_turns_of_their_shops(two: World) -> None:
    two.update(*many(3, 50), shop=FLOOD)
    read_inbox(two.buffer, run_id=RUN)
    two.update(product(1), product(2), shop=SMALL)
    read_inbox(two.buffer, run_id=RUN)
    due, mappings = due_variants(two.buffer, limit=20)
    assert len(due) == 20 and len(mappings) == 2
    assert set(due["variant_id"]) >= {"1", "2"}
    assert list(due[due["source_store_id"] == FLOOD]["revision"]) == sorted(
        row["revision"]
        for row in two.sql(
            "select revision from esl.products where source_store_id = %s order by revision limit 18", FLOOD
        )
    )


@pytest.mark.long
def test_s33_rises_of_all_stores_come_before_bulk_but_a_flood_of_rises_takes_turns(two: World) -> None:
    two.update(*many(4, 10), shop=FLOOD)
    two.update(product(1), product(2), shop=SMALL)
    two.settle()
    before = last_result(two)
    two.update(*many(4, 10, price="2.00", version=2), shop=FLOOD)
    two.update(
        product(1, 2, [variant(1, price="2.00")]), product(2, 2, [variant(2, price="0.50")]), shop=SMALL
    )
    while portioned(two, 500, batch_size=10).did_something:
        pass
    order = stores_pushed(two, before)
    assert order.index(QUIET) <= 1 and order.count(BUSY) == 4, "a rise waits for one call of another's rises"

    before = last_result(two)
    two.update(*many(4, 10, price="3.00", version=3), shop=FLOOD)
    two.update(product(3), shop=SMALL)
    while portioned(two, 500, batch_size=10).did_something:
        pass
    assert stores_pushed(two, before) == [BUSY, QUIET, BUSY, BUSY, BUSY], "what is no rise waits as long"

    before = last_result(two)
    two.update(*many(4, 10, price="0.50", version=4), shop=FLOOD)
    portioned(two, 500, batch_size=0)
    two.update(product(1, 5, [variant(1, price="5.00")]), shop=SMALL)
    while portioned(two, 500, batch_size=10).did_something:
        pass
    assert stores_pushed(two, before)[0] == QUIET, "and a rise for nothing that is none"


# --- how much a round reads


def after(fixed: float, per_second: float, portion: Portion, shops: int = 1) -> int:
    for _ in range(9):
        portion.learn(portion.variants, fixed + portion.variants / per_second, shops=shops)
    return portion.variants


def test_a_portion_becomes_what_takes_six_tenths_of_a_second() -> None:
    portion = Portion()
    portion.learn(1, 0.05)
    assert portion.variants == 500, "a small round tells nothing of a full one"
    portion.learn(500, 5.0)
    assert portion.variants == 250, "at most half at a time"
    assert after(0.05, 1_000, portion) == pytest.approx(550, abs=25)
    assert after(0.05, 100_000, portion) == 5_000
    assert after(2, 100, portion) == 100
    far = Portion()
    far.learn(1, 0.5)
    assert after(0.5, 1_000, far) == pytest.approx(500, abs=50), "a round of a few takes half as long"


def test_a_portion_is_smaller_while_several_shops_have_work(monkeypatch: pytest.MonkeyPatch) -> None:
    portion = Portion()
    portion.learn(1, 0.05)
    assert after(0.05, 10_000, portion, shops=2) == pytest.approx(500, abs=50)
    assert after(0.05, 10_000, portion) == pytest.approx(500, abs=50), "they had a moment ago"
    later = time.monotonic() + 11
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert after(0.05, 2_000, portion) == pytest.approx(1_100, abs=100)
