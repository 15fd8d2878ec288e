"""What becomes of a push that fails, is lost or comes too late: the queue's half of the semantics."""

import threading
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise

import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.hipoink import Call
from esl_pipeline.model.push import Claim, Outcome, PushRules
from esl_pipeline.stages.push import push_batch
from esl_pipeline.stages.slots import SharedLimiter
from esl_pipeline_tests.world import ASSET, RULES, RUN, SHOP, STORE, World, product, variant

OTHER_STORE = "S2"
SLOW = {"initial_delay": 60, "max_delay": 60}


@pytest.fixture
def ready(world: World) -> World:
    """A world with one mapped shop."""
    world.map()
    return world


def priced(price: str, version: int, number: int = 1) -> dict[str, object]:
    return product(number, version, [variant(number, price=price)])


# --- failures by kind


def test_transient_failures_stay_queued_with_growing_delays(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 503})
    ready.update(product())
    delays = []
    for _ in range(4):
        ready.round(initial_delay=10, multiplier=3, max_delay=200, down_after=9)
        (row,) = ready.sql(
            "select extract(epoch from next_attempt_at - now())::float8 as s from esl.sync_queue"
        )
        delays.append(row["s"])
        ready.sql("update esl.sync_queue set next_attempt_at = now()")
    assert (ready.queue()["C-1"]["state"], ready.queue()["C-1"]["attempts"]) == ("ready", 4)
    for delay, due in zip(delays, (10, 30, 90, 200), strict=True):
        assert 0.7 * due < delay < 1.3 * due
    ready.sandbox.faults()
    ready.settle()
    assert ready.outcomes("C-1") == ["transient"] * 4 + ["accepted"]
    assert ready.queue() == {}


def test_the_servers_own_delay_is_respected(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 429, "retry_after": "50"})
    ready.update(product())
    ready.round()
    (row,) = ready.sql(
        "select extract(epoch from next_attempt_at - now())::float8 as delay from esl.sync_queue"
    )
    assert 45 < row["delay"] <= 50
    assert ready.buffer.due().anything is False


def test_after_the_last_attempt_a_label_is_a_dead_letter_that_can_be_sent_again(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 503})
    ready.settle(product(), max_attempts=3, down_after=9)
    assert ready.queue()["C-1"]["state"] == "dead"
    assert "503" in ready.queue()["C-1"]["last_error"]
    assert ready.outcomes("C-1") == ["transient"] * 3
    ready.sandbox.faults()
    ready.settle()
    assert ready.labels() == {}
    assert ready.buffer.redrive()["labels"] == 1
    ready.settle()
    assert ready.prices() == {"C-1": "1.00"}


def test_a_dead_letter_is_tried_again_when_its_label_changes(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 503})
    ready.settle(product(), max_attempts=1)
    ready.sandbox.faults()
    ready.settle(priced("2.00", version=2))
    assert ready.shown("C-1") == ["2.00"]


def test_a_refused_label_is_failed_with_the_servers_words(ready: World) -> None:
    ready.settle(product(2))
    ready.sandbox.faults({"kind": "error", "error_code": 99_999_999_999, "error_msg": "price out of range"})
    ready.settle(product())
    row = ready.queue()["C-1"]
    assert row["state"] == "failed"
    assert "price out of range" in row["last_error"]
    assert ready.outcomes("C-1") == ["rejected"]
    logged = ready.sql(
        "select error_code, http_status, answer from esl.sync_log where kind = 'result' order by id"
    )[-1]
    assert (logged["error_code"], logged["http_status"]) == (99_999_999_999, 200)
    assert "price out of range" in logged["answer"]


@pytest.mark.parametrize("apply", [False, True], ids=["batch refused", "batch taken up to there"])
def test_f12_one_bad_code_in_fifty_is_found_by_halving(ready: World, apply: bool) -> None:
    ready.sandbox.faults({"kind": "bad_codes", "codes": ["C-33"], "apply": apply})
    ready.settle(product(variants=[variant(n) for n in range(1, 51)]))
    assert len(ready.labels()) == 49
    assert {code: row["state"] for code, row in ready.queue().items()} == {"C-33": "failed"}
    assert ready.calls() <= 13  # the whole, then two halves on each of the six levels
    assert ready.queue()["C-33"]["attempts"] == 1  # halving is no fault of the label
    before = ready.sandbox.state()["pushes"][STORE]
    ready.sandbox.faults()
    ready.buffer.redrive()
    ready.settle()
    assert len(ready.labels()) == 50
    assert ready.sandbox.state()["pushes"][STORE] == before | {"C-33": before["C-33"] + 1}


def test_refused_credentials_pause_the_store_and_count_as_no_attempt(ready: World) -> None:
    ready.map(store=OTHER_STORE)
    ready.sandbox.faults({"kind": "status", "status": 401, "store": STORE})
    ready.update(product())
    for _ in range(3):
        ready.round(pause=60)
    assert ready.prices(OTHER_STORE) == {"C-1": "1.00"}
    assert ready.outcomes("C-1").count("authentication") == 1
    assert ready.queue()["C-1"]["attempts"] == 0
    assert ready.buffer.due().anything is False
    (store, _) = ready.buffer.status()["stores"]
    assert "401" in store["paused"]["reason"]
    ready.sandbox.faults()
    ready.buffer.redrive()
    ready.settle()
    assert ready.prices() == {"C-1": "1.00"}


def test_a_pause_ends_by_itself(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 403, "times": 1})
    ready.settle(product(), pause=0.05)
    assert ready.prices() == {"C-1": "1.00"}


# --- in doubt


def test_a_time_out_after_acceptance_is_unknown_in_doubt_and_pushed_again(ready: World) -> None:
    ready.sandbox.faults({"kind": "hold", "seconds": 0.7, "apply": True, "times": 1})
    ready.update(product())
    ready.round(**SLOW)
    assert ready.outcomes("C-1") == ["unknown"]
    assert ready.queue()["C-1"]["in_doubt"] is True
    assert ready.prices() == {"C-1": "1.00"}
    ready.sql("update esl.sync_queue set next_attempt_at = now()")
    ready.settle()
    assert ready.outcomes("C-1") == ["unknown", "accepted"]
    assert ready.queue() == {}


def test_a_label_that_returns_to_its_old_content_while_in_doubt_is_pushed(ready: World) -> None:
    ready.settle(priced("1.00", version=1))
    ready.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    ready.update(priced("2.00", version=2))
    ready.round(**SLOW)
    ready.settle(priced("1.00", version=3))
    assert ready.shown("C-1") == ["1.00", "2.00", "1.00"]


def test_a_removal_while_a_first_push_is_in_doubt_is_sent(ready: World) -> None:
    ready.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    ready.update(product())
    ready.round(**SLOW)
    ready.delete(1, version=2)
    ready.settle()
    assert ready.labels() == {}
    assert ready.queue() == {}


def test_a_held_back_label_whose_push_is_in_doubt_ends_as_last_valid(ready: World) -> None:
    ready.settle(priced("1.00", version=1))
    ready.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    ready.update(priced("2.00", version=2))
    ready.round(**SLOW)
    ready.sql("update esl.sync_queue set next_attempt_at = now()")
    ready.settle(product(version=3, variants=[variant(price=None)]))
    assert ready.prices() == {"C-1": "2.00"}
    (ledger,) = ready.sql("select label ->> 'pp' as price from esl.hipoink_products")
    assert ledger["price"] == "2.00"


# --- workers that die or come late


def test_a_worker_killed_after_its_claim_leaves_a_trace_and_its_label_is_pushed(ready: World) -> None:
    ready.update(product())
    ready.round(batch_size=0)  # read and validated, nothing pushed
    ready.buffer.push_claim(limit=10, lease_seconds=60, max_attempts=5, run_id="dead", asset=ASSET)
    assert not ready.round().did_something
    ready.expire_leases()
    assert ready.buffer.due().anything is True
    ready.settle()
    assert ready.outcomes("C-1") == ["lost", "accepted"]
    assert ready.prices() == {"C-1": "1.00"}


@pytest.mark.parametrize("minutes", [-10, 10])
def test_f22_leases_are_measured_by_the_databases_clock(
    ready: World, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + minutes * 60)
    ready.update(product())
    ready.round(batch_size=0)
    claim = ready.buffer.push_claim(limit=10, lease_seconds=60, max_attempts=5, run_id="skewed", asset=ASSET)
    assert ready.buffer.lease_take(name="event_sync", holder="skewed", seconds=20).is_held
    (row,) = ready.sql(
        "select extract(epoch from lease_until - clock_timestamp())::float8 as s from esl.sync_queue"
    )
    assert 50 < row["s"] <= 60
    monkeypatch.undo()
    assert not ready.round().did_something
    assert not ready.buffer.lease_take(name="event_sync", holder="other", seconds=20).is_held
    send(ready, claim)
    finish(ready, claim)
    ready.settle()
    assert ready.shown("C-1") == ["1.00"]


def test_a_label_whose_workers_always_die_becomes_a_dead_letter(ready: World) -> None:
    ready.update(product(), product(2))
    ready.round(batch_size=0)
    for _ in range(7):  # both, then each alone three times
        ready.buffer.push_claim(limit=10, lease_seconds=60, max_attempts=3, run_id="dead", asset=ASSET)
        ready.expire_leases()
        ready.sql("update esl.sync_queue set next_attempt_at = now() where next_attempt_at > now()")
    ready.settle(max_attempts=3)
    assert {row["state"] for row in ready.queue().values()} == {"dead"}


@pytest.mark.parametrize("newer", ["1.00", "3.00"])
def test_a_late_workers_finish_is_refused_and_followed_by_a_correction(ready: World, newer: str) -> None:
    """It stood still past its lease while another pushed something newer, then its own push went out."""
    ready.settle(priced("1.00", version=1))
    ready.update(priced("2.00", version=2))
    ready.round(batch_size=0)
    late = ready.buffer.push_claim(limit=10, lease_seconds=0, max_attempts=5, run_id="late", asset=ASSET)
    ready.settle(priced(newer, version=3))
    assert ready.shown("C-1")[-1] == newer
    assert finish_late(ready, late) == {"accepted": 0, "retried": 0, "failed": 0, "dead": 0, "stale": 1}
    assert ready.shown("C-1")[-1] == "2.00"
    ready.settle()
    assert ready.prices() == {"C-1": newer}
    assert ready.queue() == {}


def test_a_late_push_of_a_label_that_was_removed_meanwhile_is_removed_again(ready: World) -> None:
    ready.update(product())
    ready.round(batch_size=0)
    late = ready.buffer.push_claim(limit=10, lease_seconds=0, max_attempts=5, run_id="late", asset=ASSET)
    ready.delete(1, version=2)
    ready.settle()
    finish_late(ready, late)
    assert list(ready.labels()) == ["C-1"]
    ready.settle()
    assert ready.labels() == {}


def test_a_late_push_while_the_correction_is_on_its_way_makes_it_go_out_again(ready: World) -> None:
    ready.update(priced("1.00", version=1))
    ready.round(batch_size=0)
    late = ready.buffer.push_claim(limit=10, lease_seconds=0, max_attempts=5, run_id="late", asset=ASSET)
    ready.update(priced("2.00", version=2))
    ready.round(batch_size=0)
    current = ready.buffer.push_claim(limit=10, lease_seconds=60, max_attempts=5, run_id="now", asset=ASSET)
    assert current is not None
    assert [row.label["pp"] for row in current.rows if row.label] == ["2.00"]
    send(ready, current)
    finish_late(ready, late)  # the server holds 1.00 now, and the current worker knows nothing of it
    finish(ready, current)
    ready.settle()
    assert ready.shown("C-1") == ["2.00", "1.00", "2.00"]


def test_a_worker_whose_lease_ran_out_before_its_call_sends_nothing(ready: World) -> None:
    ready.update(product())
    ready.round(batch_size=0)
    results = push_batch(ready.buffer, ready.client, PushRules(lease=0), run_id=RUN, asset=ASSET)
    assert list(results["outcome"]) == ["not_sent"]
    assert ready.calls() == 0
    assert ready.queue()["C-1"]["attempts"] == 0 and not ready.queue()["C-1"]["in_doubt"]
    ready.settle()
    assert ready.outcomes("C-1") == ["not_sent", "accepted"]


def send(world: World, claim: Claim | None) -> None:
    assert claim is not None
    world.client.create_multiple(STORE, [row.label for row in claim.rows if row.label is not None])


def finish(world: World, claim: Claim | None) -> dict[str, object]:
    assert claim is not None
    return world.buffer.push_finish(claim, Outcome("accepted"), RULES)


def finish_late(world: World, claim: Claim | None) -> dict[str, object]:
    send(world, claim)
    return finish(world, claim)


# --- order, audit, pace


def test_price_rises_go_first(ready: World) -> None:
    prices = {1: "5.00", 2: "5.00", 3: "5.00"}
    ready.settle(*[priced(price, 1, n) for n, price in prices.items()])
    ready.update(
        product(4, 2), priced("4.00", 2, 1), priced("5.00", 2, 2) | {"title": "New"}, priced("6.00", 2, 3)
    )
    ready.round(batch_size=0)
    pushed = [push_one(ready) for _ in range(4)]
    assert pushed[:2] == [["C-3"], ["C-1"]]
    assert sorted(pushed[2:]) == [["C-2"], ["C-4"]]


def push_one(world: World) -> list[str]:
    return list(
        push_batch(world.buffer, world.client, PushRules(batch_size=1), run_id=RUN, asset=ASSET)["code"]
    )


@pytest.mark.long
def test_every_label_of_every_call_has_its_intent_and_its_result(ready: World) -> None:
    faults = [
        {"kind": "status", "status": 503, "times": 1},
        {"kind": "bad_codes", "codes": ["C-3"], "times": 3},
        {"kind": "reset", "apply": True, "times": 1},
    ]
    ready.sandbox.faults(*faults)
    ready.settle(product(variants=[variant(n) for n in range(1, 5)]))
    ready.settle(product(version=2, variants=[variant(n, price="2.00") for n in range(1, 4)]))
    pushes = ready.sandbox.state()["pushes"][STORE]
    for kind in ("intent", "result"):
        logged = ready.sql("select code, count(*) as n from esl.sync_log where kind = %s group by code", kind)
        assert {row["code"]: row["n"] for row in logged} == pushes
    (row,) = ready.sql(
        "select run_id, asset, partition, cardinality(event_ids) as events from esl.sync_log"
        " group by 1, 2, 3, 4"
    )
    assert row == {"run_id": RUN, "asset": ASSET, "partition": f"shopify:{SHOP}", "events": 1}


@pytest.mark.long
def test_the_audit_outlives_the_product(ready: World) -> None:
    ready.settle(product())
    ready.delete(1, version=2)
    ready.settle()
    (place,) = ready.buffer.trace("C-1")
    assert [(row["kind"], row["operation"]) for row in place["log"]] == [
        ("result", "delete"),
        ("intent", "delete"),
        ("result", "upsert"),
        ("intent", "upsert"),
    ]
    assert [event["topic"] for event in place["deliveries"]] == ["products/delete", "products/update"]


@pytest.fixture
def second_buffer(world: World) -> Iterator[Buffer]:
    other = Buffer(PsycopgTransport(SecretStr(world.dsn)))
    yield other
    other.close()


def test_the_call_rate_is_shared_evenly_by_all_who_push(world: World, second_buffer: Buffer) -> None:
    rate, each = 50, 5
    slots: list[float] = []

    def take(buffer: Buffer) -> None:
        limiter = SharedLimiter(
            buffer, server="http://labels", rate_per_second=rate, concurrency=4, call_seconds=20
        )
        for _ in range(each):
            with limiter.slot(Call()):
                slots.append(time.monotonic())
        limiter.close()

    threads = [
        threading.Thread(target=take, args=(b,)) for b in (world.buffer, second_buffer) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slots.sort()
    gaps = [later - earlier for earlier, later in pairwise(slots)]
    # Never faster than the rate, but for what the answers' way home blurs.
    assert slots[-1] - slots[0] > (4 * each - 1) / rate - 0.1
    assert sum(gap < 0.5 / rate for gap in gaps) <= len(gaps) / 4


def test_servers_do_not_share_a_rate(world: World) -> None:
    waits = [
        world.buffer.rate_take(
            server=name, rate_per_second=1, concurrency=4, call_id=str(uuid.uuid4()), seconds=20
        )[0]
        for name in ("one", "two", "one")
    ]
    assert waits[0] == waits[1] == 0
    assert waits[2] is not None and 0.5 < waits[2] <= 1


@pytest.mark.long
def test_one_label_in_many_updates_is_one_push(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 503})
    for version in range(1, 20):
        ready.update(priced(f"{version}.00", version))
        ready.round(**SLOW)
    ready.sandbox.faults()
    ready.sql("update esl.sync_queue set next_attempt_at = now()")
    ready.settle()
    assert ready.shown("C-1") == ["19.00"]
