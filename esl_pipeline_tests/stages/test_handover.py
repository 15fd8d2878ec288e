"""A drain that is kept warm hands over to the next without a gap, and is woken by what comes."""

import threading
import time

import pytest

from esl_pipeline.stages import drain as drains
from esl_pipeline.stages.drain import DrainLimits, lease_of
from esl_pipeline_tests.stages.test_drain import run
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import World, product, variant

pytestmark = pytest.mark.long

WARM = DrainLimits(idle=0, age=60, keep_warm=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "_RENEW_SECONDS", 0.05)


def started(world: World, holder: str, limits: DrainLimits = WARM) -> tuple[threading.Thread, list[bool]]:
    ended: list[bool] = []
    thread = threading.Thread(
        target=lambda: ended.append(run(world, lambda _: None, limits, holder=holder)), name=holder
    )
    thread.start()
    return thread, ended


def holder(world: World) -> str | None:
    return world.buffer.due().drain


def show(world: World, price: str, version: int) -> None:
    world.update(product(version=version, variants=[variant(price=price)]))
    eventually(lambda: {label["pp"] for label in world.labels().values()} == {price})


def test_the_next_drain_takes_over_and_no_change_waits_for_it(world: World) -> None:
    world.map()
    first, first_ended = started(world, "first")
    eventually(lambda: holder(world) == "first")
    show(world, "1.00", 1)

    second, second_ended = started(world, "second")
    first.join(30)
    assert first_ended == [True] and holder(world) == "second"
    show(world, "2.00", 2)

    third, third_ended = started(world, "third")
    second.join(30)
    assert second_ended == [True] and holder(world) == "third"
    eventually(lambda: world.sql("select from esl.leases where relieve_at is not null") != [])
    world.sql("update esl.leases set holder = 'another'")  # as if it had slept for long
    third.join(30)
    assert third_ended == [True]


def test_one_drain_waits_at_a_time(world: World) -> None:
    world.buffer.lease_take(name=lease_of("default"), holder="at work", seconds=60)
    waiting, waited = started(world, "waiting")
    eventually(
        lambda: (
            world.buffer.lease_take(name=lease_of("default"), holder="at work", seconds=60).successor_is_ready
        )
    )
    assert run(world, lambda _: None, WARM, holder="one too many") is False
    world.buffer.lease_release(name=lease_of("default"), holder="at work", seconds=20)
    eventually(lambda: holder(world) == "waiting")
    world.buffer.lease_await(name=lease_of("default"), holder="the next", seconds=20)
    waiting.join(30)
    assert waited == [True] and holder(world) == "the next"


def test_a_drain_of_age_asks_for_the_next_and_works_on_until_it_is_there(world: World) -> None:
    world.map()
    drain, ended = started(world, "old", DrainLimits(idle=0, age=0.1, keep_warm=True))
    eventually(lambda: world.buffer.due().wants_relief)
    world.buffer.lease_await(name=lease_of("default"), holder="launched", seconds=60, ready=False)
    assert not world.buffer.due().wants_relief, "one is on its way"
    show(world, "1.00", 1)
    world.buffer.lease_await(name=lease_of("default"), holder="launched", seconds=60)
    drain.join(30)
    assert ended == [True] and holder(world) == "launched"


def test_who_was_to_take_over_and_died_is_waited_for_no_longer(world: World) -> None:
    world.buffer.lease_take(name=lease_of("default"), holder="old", seconds=60, relieve_in=0)
    world.buffer.lease_await(name=lease_of("default"), holder="died", seconds=0.1)
    eventually(lambda: world.buffer.due().wants_relief)
    world.buffer.lease_release(name=lease_of("default"), holder="old", seconds=20)
    assert holder(world) is None


def test_a_drain_of_older_code_is_relieved(world: World) -> None:
    world.buffer.lease_take(name=lease_of("default"), holder="of today", seconds=60)
    assert not world.buffer.due().wants_relief
    world.sql("update esl.leases set build = build - 1")
    assert world.buffer.due().wants_relief


def test_a_delivery_wakes_a_drain_that_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.map()
    monkeypatch.setattr(drains, "_POLL_SECONDS", 30.0)
    drain, ended = started(world, "waits", DrainLimits(idle=0, age=60, keep_warm=True))
    eventually(
        lambda: (
            world.sql(
                """select from pg_stat_activity where query = 'listen "esl_inbox"' and datname = current_database()"""
            )
            != []
        )
    )
    time.sleep(0.5)  # it has read what there was, and waits
    show(world, "1.00", 1)
    world.buffer.lease_await(name=lease_of("default"), holder="the next", seconds=60)
    eventually(lambda: holder(world) == "the next")
    world.update(product(version=2))  # wakes it once more
    drain.join(30)
    assert ended == [True]
