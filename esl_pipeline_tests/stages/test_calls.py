"""Several calls in flight: how many, whose, and what becomes of them when they fail, hang or must not be made."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.hipoink import Call, NotSentError
from esl_pipeline.model.push import Claim, Later, Outcome
from esl_pipeline.stages.drain import DrainLimits, drain, read_round
from esl_pipeline.stages.push import claim_batch, push_batch, push_claimed
from esl_pipeline.stages.pusher import Pusher
from esl_pipeline.stages.slots import SharedLimiter
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, STORE, World, product, variant

pytestmark = pytest.mark.long

OTHER_SHOP, OTHER = "other.myshopify.com", "S2"
FOUR = replace(RULES, concurrency=4, batch_size=5)


def limiter_of(buffer: Buffer, *, concurrency: int, rate: float = 1000) -> SharedLimiter:
    return SharedLimiter(
        buffer, server="default", rate_per_second=rate, concurrency=concurrency, call_seconds=20
    )


@pytest.fixture
def open_world(world: World) -> Iterator[Callable[[], World]]:
    """The same world as another process sees it: a buffer and a client of its own, whose calls are limited to four."""
    with ExitStack() as opened:

        def open_another(concurrency: int = 4, timeout_seconds: float = 5) -> World:
            transport = opened.enter_context(PsycopgTransport(SecretStr(world.dsn), pool_size=12))
            buffer = Buffer(transport)
            client = opened.enter_context(
                client_of(
                    world.sandbox.url,
                    limiter=limiter_of(buffer, concurrency=concurrency),
                    retries=1,
                    timeout_seconds=timeout_seconds,
                )
            )
            return replace(world, buffer=buffer, client=client, rules=FOUR)

        yield open_another


def queue(world: World, labels: int, *, shop: str | None = None, first: int = 1) -> None:
    """Queue so many labels of a shop, pushed nothing."""
    numbers = range(first, first + labels)
    world.update(product(first, 1, [variant(n) for n in numbers]), **({} if shop is None else {"shop": shop}))
    read_round(world.buffer, run_id=RUN)


def claim(world: World, *, run_id: str = RUN, **rules: Any) -> Claim | Later | None:
    return claim_batch(world.buffer, replace(FOUR, **rules), run_id=run_id, asset=ASSET)


def stores_claimed(world: World, times: int, *, begin: bool = True) -> list[str | None]:
    """Claim so many batches, whose calls begin at once; their stores, None where one has to wait."""
    found: list[str | None] = []
    for _ in range(times):
        claimed = claim(world)
        if isinstance(claimed, Claim):
            found.append(claimed.store_code)
            if begin:
                world.sql(
                    "update esl.flights set begun_at = now() where push_id = %s", uuid.UUID(claimed.push_id)
                )
        else:
            assert isinstance(claimed, Later)
            found.append(None)
    return found


def finish(world: World, claimed: object, outcome: Outcome, **rules: Any) -> None:
    assert isinstance(claimed, Claim)
    world.buffer.push_finish(claimed, outcome, replace(FOUR, **rules))


ACCEPTED = Outcome("accepted", duration_ms=5, server_failed=False)
NO_ANSWER = Outcome("unknown", "no answer", duration_ms=15_000, server_failed=True)
FAILED = Outcome("transient", "HTTP 503", http_status=503, duration_ms=5, server_failed=True)
TOO_LARGE = Outcome("rejected", "HTTP 413", http_status=413, duration_ms=5, server_failed=False)


# --- at the label server


class Gauge:
    """How many are inside at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_calls_are_in_flight_than_allowed_whatever_the_number_of_processes(
    world: World, open_world: Callable[..., World], concurrency: int
) -> None:
    limiters = [limiter_of(open_world().buffer, concurrency=concurrency) for _ in range(2)]
    gauge, made = Gauge(), []

    def call(limiter: SharedLimiter) -> None:
        for _ in range(3):
            with limiter.slot(Call()), gauge:
                time.sleep(0.03)
                made.append(limiter)

    threads = [threading.Thread(target=call, args=(limiter,)) for limiter in limiters for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gauge.most == concurrency and len(made) == 24
    assert time.monotonic() - began < 24 * 0.03 / concurrency + 24 * 0.15, (
        "none waits for the end of its time"
    )
    halves = [made[:12].count(limiter) for limiter in limiters]
    assert min(halves) >= 3, "first come, first served"
    for limiter in limiters:
        limiter.close()
    assert world.sql("select from esl.calls") == []


def test_a_call_that_is_not_to_be_made_after_all_leaves_the_line_at_once(world: World) -> None:
    limiter = limiter_of(world.buffer, concurrency=1)
    stop = threading.Event()
    told: list[str] = []

    def wait() -> None:
        try:
            with limiter.slot(Call(hindrance=lambda: "no more" if stop.is_set() else None)):
                told.append("made")
        except NotSentError as error:
            told.append(str(error))

    with limiter.slot(Call()):
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        stop.set()
        began = time.monotonic()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 0.5
    assert told == ["no more"] * 3
    stop.clear()
    wait()
    assert told[3:] == ["made"]


def test_who_waits_and_dies_or_dies_in_a_call_keeps_its_place_for_its_time_only(world: World) -> None:
    def take(call: str, seconds: float = 20) -> float | None:
        wait, _ = world.buffer.rate_take(
            server="default", rate_per_second=1000, concurrency=1, call_id=call, seconds=seconds
        )
        return wait

    first, second, third = (str(uuid.uuid4()) for _ in range(3))
    assert take(first, seconds=0.2) is not None
    assert take(second) is None and take(third) is None
    time.sleep(0.25)
    assert take(third) is None, "the second one asked before"
    world.sql("update esl.calls set until = now() where call_id = %s", uuid.UUID(second))
    assert take(third) is not None
    world.buffer.rate_give(ended=[third])
    assert take(second) is not None


# --- whose turn


@pytest.fixture
def two(world: World) -> World:
    """Two shops with a store each."""
    world.map()
    world.map(OTHER_SHOP, OTHER)
    return world


def test_one_store_alone_has_every_call_and_full_batches_ready(two: World) -> None:
    queue(two, 50)
    assert stores_claimed(two, 5) == [STORE] * 5
    assert stores_claimed(two, 3, begin=False) == [STORE, STORE, None], "and no long row that waits"


def test_beside_others_one_store_has_all_calls_but_one(two: World) -> None:
    queue(two, 50)
    queue(two, 20, shop=OTHER_SHOP, first=1001)
    assert sorted(filter(None, stores_claimed(two, 8))) == [STORE] * 3 + [OTHER] * 3
    two.sql("delete from esl.flights where store_code = %s", OTHER)
    two.sql("delete from esl.sync_queue where store_code = %s", OTHER)
    assert stores_claimed(two, 2) == [None, None], "they had work a moment ago"
    two.sql("update esl.turns set taken_at = taken_at - interval '31 seconds'")
    assert stores_claimed(two, 1) == [STORE]


def test_a_trigger_is_one_of_the_calls_that_a_store_has_beside_others(two: World) -> None:
    """One that hung took the call that was kept free for the others."""
    queue(two, 50)
    queue(two, 5, shop=OTHER_SHOP, first=1001)
    while OTHER not in stores_claimed(two, 1):
        pass
    stores_claimed(two, 5)
    two.sql("insert into esl.refresh_marks (store_code, since) values (%s, now() - interval '1 hour')", STORE)

    def trigger(concurrency: int | None = 4) -> object:
        return two.buffer.refresh_claim(run_id=RUN, lease_seconds=60, rise_seconds=3, concurrency=concurrency)

    assert trigger() is None, "three pushes are under way"
    two.sql(
        "delete from esl.flights where push_id = (select min(push_id::text)::uuid from esl.flights"
        " where store_code = %s)",
        STORE,
    )
    assert trigger() is not None
    assert stores_claimed(two, 1) == [None], "it is the third"
    two.sql(
        "update esl.refresh_marks set lease_until = null, claim_id = null, since = now() - interval '1 hour'"
    )
    two.sql(
        "insert into esl.flights (push_id, store_code, label_server, run_id, until)"
        " values (gen_random_uuid(), %s, 'default', 'r', now() + interval '1 minute')",
        STORE,
    )
    assert trigger() is None
    assert trigger(None) is not None, "where nobody says how many calls there may be"


def test_while_the_pace_keeps_the_next_call_back_no_small_batch_is_claimed(two: World) -> None:
    """What comes until then goes with it."""
    queue(two, 3)
    two.sql(
        "insert into esl.label_servers (server, next_slot) values ('default', clock_timestamp() + interval '250 ms')"
        " on conflict (server) do update set next_slot = excluded.next_slot"
    )
    waits = claim(two)
    assert isinstance(waits, Later) and 0 < waits.seconds <= 0.25
    time.sleep(waits.seconds)
    assert isinstance(claim(two), Claim)


def test_a_store_that_has_its_share_comes_after_the_others(two: World) -> None:
    queue(two, 50)
    assert stores_claimed(two, 3) == [STORE] * 3
    queue(two, 5, shop=OTHER_SHOP, first=1001)
    assert stores_claimed(two, 1) == [OTHER]


def test_none_is_claimed_beside_an_overdue_call_of_its_store(two: World) -> None:
    queue(two, 50)
    queue(two, 50, shop=OTHER_SHOP, first=1001)
    slow = claim(two)
    assert isinstance(slow, Claim)
    two.sql("update esl.flights set begun_at = now() - interval '1.1 seconds'")
    other = ({STORE, OTHER} - {slow.store_code}).pop()
    assert stores_claimed(two, 4) == [other, other, other, None]
    two.sql(
        "insert into esl.store_health (store_code, usual_ms) values (%s, 400)"
        " on conflict (store_code) do update set usual_ms = 400",
        slow.store_code,
    )
    assert stores_claimed(two, 1) == [slow.store_code], "four usual ones are not over"


def test_a_store_that_does_not_answer_has_one_batch_at_a_time_until_it_does(two: World) -> None:
    queue(two, 50)
    finish(two, claim(two), NO_ANSWER)
    first = claim(two)
    assert isinstance(first, Claim) and stores_claimed(two, 1) == [None]
    finish(two, first, ACCEPTED)
    assert stores_claimed(two, 3) == [STORE] * 3


def test_what_would_have_to_wait_for_its_call_is_claimed_only_as_a_full_batch(two: World) -> None:
    queue(two, 7)
    assert stores_claimed(two, 2, begin=False) == [STORE, None], "two labels may wait for more"
    queue(two, 3, first=101)
    assert stores_claimed(two, 1, begin=False) == [STORE]
    queue(two, 1, shop=OTHER_SHOP, first=1001)
    assert stores_claimed(two, 1) == [OTHER], "of another store one label is enough"
    queue(two, 2, shop=OTHER_SHOP, first=2001)
    two.sql("update esl.flights set begun_at = now()")
    assert stores_claimed(two, 1) == [OTHER]
    queue(two, 2, shop=OTHER_SHOP, first=3001)
    assert stores_claimed(two, 1) == [None], "but not when all calls are taken"


def test_another_run_is_not_kept_out_by_what_this_one_has_at_hand(two: World) -> None:
    queue(two, 30)
    assert stores_claimed(two, 5) == [STORE] * 5
    queue(two, 1, shop=OTHER_SHOP, first=1001)
    assert isinstance(claim(two), Later)
    claimed = claim(two, run_id="another run")
    assert isinstance(claimed, Claim) and claimed.store_code == OTHER


# --- what failed


def test_a_batch_that_failed_comes_back_as_a_batch(two: World) -> None:
    queue(two, 50)
    slow = {"batch_size": 50, "initial_delay": 30, "max_delay": 900}
    finish(two, claim(two, batch_size=50), FAILED, **slow)
    (row,) = two.sql("select count(distinct next_attempt_at) as times, count(*) as n from esl.sync_queue")
    assert (row["times"], row["n"]) == (1, 50)
    two.sql("update esl.sync_queue set next_attempt_at = now()")
    again = claim(two, batch_size=50)
    assert isinstance(again, Claim) and len(again.rows) == 50


def test_too_large_a_batch_comes_back_in_halves_and_the_server_is_remembered(two: World) -> None:
    queue(two, 50)
    two.sandbox.faults({"kind": "status", "status": 413, "times": 1})

    def push() -> tuple[int, str]:
        results = push_batch(
            two.buffer, two.client, replace(FOUR, batch_size=20, concurrency=1), run_id=RUN, asset=ASSET
        )
        return len(results), results["outcome"][0]

    assert push() == (20, "rejected")
    assert {row["attempts"] for row in two.queue().values()} == {0}
    assert not any(row["refused_at"] for row in two.queue().values())
    assert two.sql("select from esl.store_health where refusals > 0") == []
    assert push() == (10, "accepted")
    queue(two, 20, shop=OTHER_SHOP, first=1001)
    sizes = [push()[0] for _ in range(3)]
    assert sizes[0] == 11 and max(sizes) <= 14, "of every store, and growing slowly"
    (server,) = two.sql("select batch_size, too_large from esl.label_servers")
    assert server["too_large"] == 20
    for _ in range(20):
        two.sql("update esl.label_servers set batch_size = least(batch_size, 19)")
        finish(two, replace_rows(two), ACCEPTED, batch_size=20)
    (server,) = two.sql("select batch_size from esl.label_servers")
    assert server["batch_size"] == 19, "never again what was refused"
    two.sql("update esl.label_servers set too_large_at = now() - interval '61 minutes'")
    finish(two, replace_rows(two), ACCEPTED, batch_size=20)
    (server,) = two.sql("select batch_size from esl.label_servers")
    assert server["batch_size"] is None


def replace_rows(world: World) -> Claim:
    """A full batch of new labels, claimed."""
    world.sql("delete from esl.sync_queue")
    queue(world, 20, first=int(time.monotonic_ns() // 1000 % 10**12))
    claimed = claim(world, batch_size=20, concurrency=1)
    assert isinstance(claimed, Claim)
    return claimed


def test_no_answer_halves_the_batches_of_that_store_alone(two: World) -> None:
    queue(two, 40)
    queue(two, 40, shop=OTHER_SHOP, first=1001)
    first = claim(two, batch_size=20)
    assert isinstance(first, Claim)
    finish(two, first, NO_ANSWER, batch_size=20)
    time.sleep(0.03)
    claims = [claim(two, batch_size=20) for _ in range(3)]
    sizes = {c.store_code: len(c.rows) for c in claims if isinstance(c, Claim)}
    other = ({STORE, OTHER} - {first.store_code}).pop()
    assert sizes == {first.store_code: 10, other: 20}


def test_a_refused_label_that_is_alone_is_blamed_for_its_size(two: World) -> None:
    queue(two, 1)
    finish(two, claim(two), TOO_LARGE)
    assert two.sql("select from esl.label_servers where batch_size is not null") == []
    assert two.queue()["C-1"]["refused_at"] is not None


def test_calls_that_fail_together_are_one_failure(two: World) -> None:
    queue(two, 50)
    claims = [claim(two) for _ in range(1)]
    two.sql("update esl.flights set begun_at = now()")
    claims += [claim(two)]
    two.sql("update esl.flights set begun_at = now()")
    claims += [claim(two)]
    for claimed in claims:
        finish(two, claimed, FAILED, initial_delay=0.01)
    (server,) = two.sql("select failures, down_since from esl.label_servers")
    assert (server["failures"], server["down_since"]) == (1, None)
    for _ in range(2):
        time.sleep(0.03)
        finish(two, claim(two), FAILED)
    assert two.sql("select down_since from esl.label_servers")[0]["down_since"] is not None


def test_what_is_not_sent_is_as_if_it_had_not_been_claimed(two: World) -> None:
    two.map("third.myshopify.com", "S3")
    queue(two, 3)
    before = two.queue()
    claimed = claim(two)
    assert isinstance(claimed, Claim)
    stop = threading.Event()
    stop.set()
    results = push_claimed(two.buffer, two.client, FOUR, claimed, stop)
    assert set(results["outcome"]) == {"not_sent"} and two.calls() == 0
    changed = {"push_id", "next_attempt_at"}
    for code, row in two.queue().items():
        assert {k: v for k, v in row.items() if k not in changed} == {
            k: v for k, v in before[code].items() if k not in changed
        }
    assert two.outcomes("C-1") == ["not_sent"]
    assert two.sql("select from esl.flights") == []


def test_a_probe_that_is_not_sent_leaves_the_server_to_the_next(two: World) -> None:
    queue(two, 3)
    finish(two, claim(two), FAILED, down_after=1, probe=60)
    two.sql("update esl.label_servers set probe_at = now()")
    two.sql("update esl.sync_queue set next_attempt_at = now()")
    probe = claim(two)
    assert isinstance(probe, Claim) and claim(two) is None
    finish(two, probe, Outcome("not_sent"))
    assert isinstance(claim(two), Claim)


# --- all together


def pusher_of(world: World, stop: threading.Event, run_id: str = RUN, **rules: Any) -> Pusher:
    chosen = replace(FOUR, **rules)
    return Pusher(
        partial(claim_batch, world.buffer, chosen, run_id=run_id, asset=ASSET),
        partial(push_claimed, world.buffer, world.client, chosen, stop=stop),
        stop,
        concurrency=chosen.concurrency,
    )


def test_four_calls_at_a_time_push_four_times_as_fast(two: World, open_world: Callable[..., World]) -> None:
    queue(two, 100)
    two.sandbox.faults({"kind": "latency", "ms": 200})
    with pusher_of(open_world(), threading.Event()) as pusher:
        began = time.monotonic()
        results = list(pusher.until_idle())
        seconds = time.monotonic() - began
    assert sum(len(frame) for frame in results) == len(two.labels()) == 100
    assert seconds < 0.6 * 20 * 0.2, "20 calls"
    assert {len(frame) for frame in results} == {5}


def test_two_processes_share_the_calls_and_never_push_one_label_at_once(
    two: World, open_world: Callable[..., World]
) -> None:
    queue(two, 40)
    two.sandbox.faults({"kind": "latency", "ms": 20})
    stop = threading.Event()
    with (
        pusher_of(open_world(), stop, "one", batch_size=2) as one,
        pusher_of(open_world(), stop, "other", batch_size=2) as other,
    ):
        for version in range(2, 6):
            one.ask(), other.ask()
            # By so little that no guard of mass changes keeps them.
            two.update(product(1, version, [variant(n, price=f"1.0{version}") for n in range(1, 41)]))
            read_round(two.buffer, run_id=RUN)
        eventually(lambda: one.ask() or other.ask() or not (two.waiting() or one.is_busy or other.is_busy))
        one.check(), other.check()
    assert set(two.prices().values()) == {"1.05"}
    overlaps = two.sql(
        "select a.code from esl.sync_log a join esl.sync_log r on r.push_id = a.push_id and r.code = a.code"
        " and r.kind = 'result' join esl.sync_log b on b.code = a.code and b.kind = 'intent'"
        " and b.push_id <> a.push_id and b.id > a.id and b.id < r.id where a.kind = 'intent'"
    )
    assert overlaps == []
    runs = two.sql("select run_id, count(*) as n from esl.sync_log where kind = 'result' group by 1")
    assert {row["run_id"] for row in runs} == {"one", "other"}


def test_a_removal_waits_for_its_variants_new_label_beside_other_calls(
    two: World, open_world: Callable[..., World]
) -> None:
    two.settle(product(1, 1, [variant(n) for n in range(1, 5)]))
    two.sandbox.faults({"kind": "latency", "ms": 50})
    two.update(product(1, 2, [variant(n, f"NEW-{n}") for n in range(1, 5)]))
    read_round(two.buffer, run_id=RUN)
    with pusher_of(open_world(), threading.Event(), batch_size=1) as pusher:
        list(pusher.until_idle())
    for n in range(1, 5):
        rows = two.sql(
            "select operation from esl.sync_log where kind = 'result' and variant_id = %s and id > 8 order by id",
            str(n),
        )
        assert [row["operation"] for row in rows][-2:] == ["upsert", "delete"]
    assert set(two.labels()) == {f"NEW-{n}" for n in range(1, 5)}


def test_a_store_that_hangs_costs_another_one_nothing(two: World, open_world: Callable[..., World]) -> None:
    hanging = open_world(timeout_seconds=2)
    two.sandbox.faults({"kind": "hold", "seconds": 2.5, "store": OTHER, "apply": False})
    queue(two, 40, shop=OTHER_SHOP, first=1001)
    queue(two, 1)
    with pusher_of(hanging, threading.Event()) as pusher:
        pusher.ask()
        eventually(lambda: "C-1" in two.labels(), 1)
        waits = []
        for number in range(2, 8):
            queue(two, 1, first=number)
            pusher.ask()
            waits.append(eventually(lambda n=number: f"C-{n}" in two.labels(), 1.5))
            time.sleep(0.2)
        assert max(waits) < 0.7
        rows = two.sql("select count(*) as n from esl.flights where store_code = %s", OTHER)
        assert rows[0]["n"] <= 3


@pytest.mark.parametrize("calls", [1, 4])
def test_a_drain_that_shall_end_sends_nothing_that_waits(
    two: World, open_world: Callable[..., World], calls: int
) -> None:
    worker = open_world(concurrency=calls)
    two.sandbox.faults({"kind": "latency", "ms": 800})
    queue(two, 60)
    stop = threading.Event()
    rules = replace(FOUR, concurrency=calls)
    with pusher_of(worker, stop, concurrency=calls) as pusher:
        pusher.ask()
        eventually(lambda: two.sandbox.state()["calls"].get("create_multiple", 0) >= calls)
        eventually(lambda: two.sql("select count(*) as n from esl.flights")[0]["n"] > calls)
        stop.set()
        began = time.monotonic()
    assert time.monotonic() - began < 2
    outcomes = [outcome for frame in pusher.take() for outcome in frame["outcome"]]
    # What was in flight; perhaps some more that began before we looked.
    assert 5 * calls <= outcomes.count("accepted") == len(two.labels()) < 60
    assert outcomes.count("not_sent") >= 5
    assert two.sql("select from esl.sync_queue where state = 'leased'") == []
    two.sandbox.faults()
    assert drain(
        worker.buffer,
        worker.client,
        rules,
        DrainLimits(idle=0, age=60),
        run_id=RUN,
        holder="h",
        asset=ASSET,
        on_round=lambda _: None,
        on_idle=lambda: None,
    )
    assert len(two.labels()) == 60


# --- the background: what no price waits for


def begin(limiter: SharedLimiter, made: list[float], times: int, call: Call) -> threading.Thread:
    def work() -> None:
        for _ in range(times):
            with limiter.slot(call):
                made.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_calls_of_the_background_have_a_fifth_of_the_pace(open_world: Callable[..., World]) -> None:
    limiter, made = limiter_of(open_world().buffer, concurrency=4, rate=50), list[float]()
    threads = [begin(limiter, made, 4, Call(is_background=True)) for _ in range(2)]
    for thread in threads:
        thread.join()
    made.sort()
    assert made[-1] - made[0] > 7 * 0.1 * 0.9, "seven steps of a tenth of a second"


def test_a_call_of_the_background_waits_while_prices_use_the_pace_or_the_calls(
    world: World, open_world: Callable[..., World]
) -> None:
    buffer = open_world().buffer
    prices, beside = limiter_of(buffer, concurrency=2), limiter_of(buffer, concurrency=2)
    made = list[float]()
    with prices.slot(Call()):
        thread = begin(beside, made, 1, Call(is_background=True))
        time.sleep(0.4)
        assert made == [], "one call is kept free for prices"
        began = time.monotonic()
        with prices.slot(Call()):
            assert time.monotonic() - began < 0.3, "and none stands before them in line"
    thread.join()
    assert len(made) == 1
    world.sql("update esl.label_servers set next_slot = now() + interval '0.5 s'")
    asked = time.monotonic()
    begin(beside, made, 1, Call(is_background=True)).join()
    assert made[-1] - asked > 0.4, "prices have taken the pace until then"


def test_a_call_of_the_background_that_has_waited_long_stands_in_line(
    open_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esl_pipeline.stages.slots._PATIENT_SECONDS", 0.2)
    buffer, made, prices = open_world().buffer, list[float](), list[float]()
    limiter = limiter_of(buffer, concurrency=1, rate=20)
    busy = [begin(limiter, prices, 15, Call()) for _ in range(2)]
    thread = begin(limiter_of(buffer, concurrency=1, rate=20), made, 1, Call(is_background=True))
    for one in (*busy, thread):
        one.join()
    assert made[0] < sorted(prices)[-2], "before everything else was done"
