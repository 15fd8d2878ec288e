"""After the pushes: a label server without auto-trigger, whose physical labels change only when it is told to."""

import io
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from esl_pipeline.commands.status import print_status
from esl_pipeline.commands.story_lines import print_story
from esl_pipeline.model.push import Outcome
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.drain import DrainLimits, drain, read_round
from esl_pipeline.stages.push import push_batch
from esl_pipeline.stages.refresh import Refresher, RefreshRules, refresh_stores
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import (
    ASSET,
    RULES,
    RUN,
    SHOP,
    STORE,
    World,
    drain_round,
    product,
    variant,
)

OTHER_SHOP, OTHER_STORE = "other-shop.myshopify.com", "S2"
NO_GAP = RefreshRules(gap=0, initial_delay=0.01, max_delay=0.02)
_versions = itertools.count(2)
UNKNOWN_WORDS = "action bind_task not exists"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def waiting_server() -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(auto_trigger=False)) as sandbox:
        yield sandbox


@pytest.fixture
def shelf(world: World, waiting_server: Sandbox) -> Iterator[World]:
    """The world with physical labels that wait to be refreshed."""
    waiting_server.clear()
    with client_of(waiting_server.url, retries=1, timeout_seconds=0.5) as client:
        yield replace(world, sandbox=waiting_server, client=client)


def run_drain(shelf: World, *, idle: float = 0, age: float = 60, rules: RefreshRules = NO_GAP) -> None:
    limits = DrainLimits(idle, age)
    told: Row = {"run_id": RUN, "holder": "h", "asset": ASSET, "on_idle": lambda: None}
    drain(shelf.buffer, shelf.client, RULES, limits, **told, on_round=lambda _: None, refresh_rules=rules)


def push_all(shelf: World, *bodies: Row, shop: str = SHOP, **rules: Any) -> None:
    """Deliver and push, without the trigger that a drain has follow."""
    shelf.update(*bodies, shop=shop)
    while drain_round(shelf.buffer, shelf.client, replace(RULES, **rules)).did_something:
        pass


def refresh(shelf: World, rules: RefreshRules = NO_GAP, **options: Any) -> int:
    return len(refresh_stores(shelf.buffer, shelf.client, rules, run_id=RUN, **options))


def triggers(shelf: World) -> int:
    return int(shelf.sandbox.state()["calls"].get("bind_task", 0))


def shown(shelf: World, store: str = STORE) -> dict[str, str]:
    """The prices that the physical labels of a store show."""
    return {code: record["pp"] for code, record in shelf.sandbox.state()["shown"].get(store, {}).items()}


def mark(shelf: World, store: str = STORE) -> Row:
    (row,) = shelf.sql("select * from esl.refresh_marks where store_code = %s", store)
    return row


def outcomes(shelf: World) -> list[str]:
    return [row["outcome"] for row in shelf.sql("select outcome from esl.refreshes order by id")]


def wait_seconds(shelf: World, seconds: int) -> None:
    """What the passing of time does to bursts that wait."""
    back = f"interval '{seconds} s'"
    shelf.sql(f"update esl.refresh_marks set since = since - {back}, rise_since = rise_since - {back}")


def more_to_push(shelf: World, *prices: str) -> None:
    """A label is accepted for each price, and another one of the store may be pushed and is not yet."""
    push_all(shelf, product(1), product(2))
    refresh(shelf)
    for price in prices:
        push_one(shelf, price)


def push_one(shelf: World, price: str) -> None:
    """A price changes and a title; the price is pushed, the title is due all the same."""
    version = next(_versions)
    shelf.update(product(1, version, [variant(1, price=price)]), product(2, version, title=f"Tea {version}"))
    read_round(shelf.buffer, run_id=RUN)
    pushed = push_batch(shelf.buffer, shelf.client, replace(RULES, batch_size=1), run_id=RUN, asset=ASSET)
    assert (list(pushed["code"]), shelf.buffer.due().queue) == (["C-1"], True)


def pass_time(shelf: World) -> None:
    """What the passing of time does to gaps, delays and leases."""
    shelf.sql("update esl.refresh_marks set not_before = now(), next_at = now()")
    shelf.sql("update esl.refresh_marks set lease_until = now() where lease_until is not null")


# --- what is shown


@pytest.mark.long
def test_field_41_what_was_accepted_is_on_the_physical_labels(shelf: World) -> None:
    shelf.map()
    shelf.update(*[product(n) for n in range(1, 6)])
    run_drain(shelf)
    assert shown(shelf) == shelf.prices() == {f"C-{n}": "1.00" for n in range(1, 6)}
    shelf.update(product(1, 2, [variant(1, price="9.50")]))
    shelf.delete(2, version=3)
    run_drain(shelf)
    assert shown(shelf) == {"C-1": "9.50", "C-3": "1.00", "C-4": "1.00", "C-5": "1.00"}
    assert triggers(shelf) == 2
    assert shelf.buffer.due().anything is False


def test_field_41_a_burst_of_many_batches_is_one_trigger(shelf: World) -> None:
    shelf.map()
    shelf.update(*[product(n) for n in range(1, 8)])
    drain_round(shelf.buffer, shelf.client, replace(RULES, batch_size=1))
    shelf.update(*[product(n, 2, [variant(n, price="2.00")]) for n in range(1, 4)])
    drain_round(shelf.buffer, shelf.client, replace(RULES, batch_size=1))
    assert refresh(shelf) == triggers(shelf) == 1
    assert (shelf.calls(), len(shown(shelf))) == (10, 7)
    assert refresh(shelf) == 0


def test_a_store_that_still_has_labels_to_push_waits_at_most_until_it_has_settled(shelf: World) -> None:
    shelf.map()
    shelf.map(OTHER_SHOP, OTHER_STORE)
    push_all(shelf, product(7), shop=OTHER_SHOP)
    shelf.update(*[product(n) for n in range(1, 4)])
    shelf.round(batch_size=1)
    shelf.sandbox.clear()
    shelf.update(*[product(n, 2, [variant(n, price="2.00")]) for n in range(1, 4)])
    shelf.sandbox.faults({"kind": "status", "status": 409, "codes": ["C-2", "C-3"]})
    pass_time(shelf)
    push_all(shelf, batch_size=1, initial_delay=0, max_delay=0, max_attempts=3)
    shelf.sandbox.faults()
    shelf.buffer.redrive(store=STORE)
    assert shelf.buffer.due().queue is True
    rules = replace(NO_GAP, rise=60)
    assert refresh(shelf, rules) == 0, "more of its labels are about to come"
    wait_seconds(shelf, 19)
    assert refresh(shelf, rules) == 0
    wait_seconds(shelf, 1)
    assert refresh(shelf, rules) == 1
    assert shown(shelf) == {"C-1": "2.00"}


def test_a_policy_says_how_long_a_burst_may_wait(shelf: World) -> None:
    shelf.map(settings={"refresh_seconds": 3})
    more_to_push(shelf, "2.00", "3.00")
    rules = replace(NO_GAP, rise=60)
    wait_seconds(shelf, 2)
    assert refresh(shelf, rules) == 0
    wait_seconds(shelf, 1)
    assert refresh(shelf, rules) == 1


def test_a_price_that_rises_waits_for_no_burst(shelf: World) -> None:
    shelf.map()
    more_to_push(shelf, "0.60", "0.50")
    assert refresh(shelf) == 0
    wait_seconds(shelf, 3)
    assert refresh(shelf) == 0, "a cut has time"
    push_one(shelf, "0.70")
    assert (mark(shelf)["rise_since"] is not None, refresh(shelf)) == (True, 0)
    shelf.sql("update esl.refresh_marks set rise_since = rise_since - interval '3 s'")
    assert refresh(shelf) == 1
    assert (shown(shelf)["C-1"], mark(shelf)["rise_since"]) == ("0.70", None)


def test_a_trigger_that_failed_remembers_that_a_price_has_risen(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    push_all(shelf, product(1, 2, [variant(1, price="2.00")]))
    rises = mark(shelf)["rise_since"]
    shelf.sandbox.faults({"kind": "status", "status": 500, "action": "bind_task", "times": 1})
    assert (refresh(shelf), mark(shelf)["rise_since"]) == (0, rises)
    pass_time(shelf)
    assert (refresh(shelf), mark(shelf)["rise_since"]) == (1, None)


def test_stores_whose_prices_rise_are_refreshed_first(shelf: World) -> None:
    shelf.map()
    shelf.map(OTHER_SHOP, OTHER_STORE)
    push_all(shelf, product(1))
    push_all(shelf, product(2), shop=OTHER_SHOP)
    assert refresh(shelf) == 2
    push_all(shelf, product(1, 2, [variant(1, price="0.50")]))
    push_all(shelf, product(2, 2, [variant(2, price="2.00")]), shop=OTHER_SHOP)
    assert refresh(shelf) == 2
    rows = shelf.sql("select store_code from esl.refreshes order by id desc limit 2")
    assert [row["store_code"] for row in reversed(rows)] == [OTHER_STORE, STORE]


def test_a_store_is_not_triggered_again_within_the_gap(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    rules = RefreshRules(gap=60)
    assert refresh(shelf, rules) == 1
    for price in ("2.00", "3.00"):
        push_all(shelf, product(1, int(price[0]), [variant(1, price=price)]))
        assert refresh(shelf, rules) == 0
    assert shelf.buffer.due().refresh is False
    pass_time(shelf)
    due = shelf.buffer.due()
    assert due.refresh and due.anything
    assert refresh(shelf, rules) == 1
    assert shown(shelf) == {"C-1": "3.00"}


@pytest.mark.long
def test_a_drain_comes_back_for_what_the_gap_held_up(shelf: World) -> None:
    shelf.map()
    shelf.update(product(1))
    rules = replace(NO_GAP, gap=1, look=0)
    thread = threading.Thread(target=run_drain, args=(shelf,), kwargs={"idle": 3, "rules": rules})
    thread.start()
    eventually(lambda: shown(shelf) == {"C-1": "1.00"})
    shelf.update(product(1, 2, [variant(1, price="2.00")]))
    eventually(lambda: shown(shelf) == {"C-1": "2.00"})
    thread.join(20)
    first, second = shelf.sql("select at, begun_at from esl.refreshes order by id")
    assert (second["begun_at"] - first["at"]).total_seconds() >= 0.99


@pytest.mark.parametrize(
    "changes", [{"settings": {"refresh": "never"}}, {"is_dry_run": True}, {"is_active": False}]
)
def test_a_store_whose_mappings_want_none_is_not_triggered_until_one_does(shelf: World, changes: Row) -> None:
    mapping = shelf.map()
    push_all(shelf, product(1))
    shelf.buffer.mapping_update(mapping, changes)
    assert refresh(shelf) == triggers(shelf) == 0
    assert shelf.buffer.due().refresh is False
    assert shelf.buffer.status()["refreshes"]["waiting"] == []
    shelf.buffer.mapping_update(mapping, {"settings": {}, "is_dry_run": False, "is_active": True})
    assert refresh(shelf) == 1
    assert shown(shelf) == {"C-1": "1.00"}


def test_one_mapping_that_wants_it_is_enough(shelf: World) -> None:
    shelf.map(settings={"refresh": "never"})
    shelf.map(OTHER_SHOP, STORE)
    push_all(shelf, product(1))
    assert refresh(shelf) == 1


def test_what_a_mapping_left_behind_is_taken_off_the_shelf(shelf: World) -> None:
    mapping = shelf.map()
    push_all(shelf, product(1))
    refresh(shelf)
    shelf.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    push_all(shelf)
    refresh(shelf)
    assert shelf.labels() == {}
    assert (shown(shelf), shown(shelf, OTHER_STORE)) == ({}, {"C-1": "1.00"})


def test_what_the_nightly_comparison_corrects_is_refreshed(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    refresh(shelf)
    (entry,) = shelf.sql("select push_id, label, now() as now from esl.hipoink_products")
    theirs = {"code": "C-1", "kind": "different", "push_id": str(entry["push_id"]), "ours": entry["label"]}
    label = entry["label"] | {"pp": "1.00", "pn": "Product 1"}
    label_row = theirs | {"theirs": label, "label": label, "label_hash": "x"}
    assert mark(shelf)["since"] is None
    shelf.buffer.drift_repair(store=STORE, run_id=RUN, since="2100-01-01T00:00:00Z", labels=[label_row])
    assert mark(shelf)["since"] is not None


# --- failures


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"kind": "status", "status": 500}, "unknown"),
        ({"kind": "status", "status": 503}, "transient"),
        ({"kind": "status", "status": 401}, "authentication"),
        ({"kind": "error", "error_msg": "store not exists"}, "rejected"),
        ({"kind": "text"}, "unknown"),
        ({"kind": "reset"}, "unknown"),
        ({"kind": "hold", "seconds": 1, "apply": False}, "unknown"),
    ],
)
def test_a_failed_trigger_fails_no_label_and_is_tried_with_the_next_burst(
    shelf: World, fault: Row, outcome: str
) -> None:
    shelf.map()
    shelf.sandbox.faults({**fault, "action": "bind_task", "times": 1})
    push_all(shelf, product(1))
    slow = replace(NO_GAP, initial_delay=60, max_delay=60)
    assert refresh(shelf, slow) == 0
    assert outcomes(shelf) == [outcome]
    assert (shelf.queue(), shelf.outcomes("C-1"), shelf.prices()) == ({}, ["accepted"], {"C-1": "1.00"})
    due = shelf.buffer.due()
    assert (due.anything, due.outage) == (False, None)
    assert shelf.sql("select * from esl.store_health where refusals > 0 or until is not null") == []
    assert refresh(shelf, slow) == 0, "it waits"
    push_all(shelf, product(2))
    assert refresh(shelf, slow) == 1
    assert shown(shelf) == {"C-1": "1.00", "C-2": "1.00"}
    assert mark(shelf) | {"attempts": 0, "last_error": None, "since": None} == mark(shelf)


def test_delays_grow_up_to_a_limit_and_a_servers_wish_is_heard(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    rules = RefreshRules(gap=1, initial_delay=10, multiplier=2, max_delay=25)
    waits = []
    shelf.sandbox.faults({"kind": "status", "status": 500, "action": "bind_task"})
    for _ in range(4):
        refresh(shelf, rules)
        row = mark(shelf)
        waits.append((row["next_at"] - shelf.sql("select max(at) as at from esl.refreshes")[0]["at"]).seconds)
        pass_time(shelf)
    assert all(0.7 * 10 * f <= wait <= 1.3 * 10 * f for wait, f in zip(waits, (1, 2, 2.5, 2.5), strict=True))
    shelf.sandbox.faults({"kind": "status", "status": 429, "retry_after": "300", "action": "bind_task"})
    refresh(shelf, rules)
    push_all(shelf, product(2))
    assert (mark(shelf)["next_at"] - shelf.sql("select now() as now")[0]["now"]).seconds > 250
    said = io.StringIO()
    print_status(Console(file=said, width=200), shelf.buffer.status())
    assert "store S1: its labels wait since" in said.getvalue() and "HTTP 429" in said.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 404},
        {"kind": "status", "status": 405},
        {"kind": "error", "error_msg": UNKNOWN_WORDS},
        {"kind": "error", "error_msg": "Method [bindTask] does not exist, unknown method"},
    ],
)
def test_field_41_a_server_that_does_not_know_it_is_noted_once(shelf: World, fault: Row) -> None:
    shelf.map()
    shelf.map(OTHER_SHOP, OTHER_STORE)
    shelf.sandbox.faults({**fault, "action": "bind_task"})
    push_all(shelf, product(1))
    push_all(shelf, product(2), shop=OTHER_SHOP)
    assert refresh(shelf) == 0
    for version in range(2, 5):
        push_all(shelf, product(1, version, [variant(1, price=f"{version}.00")]))
        pass_time(shelf)
        assert refresh(shelf) == 0
    assert (triggers(shelf), outcomes(shelf)) == (1, ["not_known"])
    assert shelf.buffer.due().anything is False
    said = io.StringIO()
    print_status(Console(file=said, width=200), shelf.buffer.status())
    assert "label server default: does not know esl/bind_task" in said.getvalue()

    waits = []
    for _ in range(4):  # a minute has passed, an hour, a day, and a day
        (row,) = shelf.sql("select refresh_again_at - now() as wait from esl.label_servers")
        waits.append(round(row["wait"].total_seconds() / 60))
        shelf.sql("update esl.label_servers set refresh_again_at = now()")
        pass_time(shelf)
        refresh(shelf)
    assert waits == [1, 60, 1440, 1440]
    assert triggers(shelf) == 5

    shelf.sandbox.faults()
    shelf.sql("update esl.label_servers set refresh_again_at = now()")
    pass_time(shelf)
    assert refresh(shelf) == 2, "it has learned it: both stores"
    assert shelf.buffer.status()["refreshes"] == {"waiting": [], "unknown": []}


def test_a_404_of_a_server_that_knows_the_trigger_is_one_failure(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    assert refresh(shelf) == 1
    shelf.sandbox.faults({"kind": "status", "status": 404, "action": "bind_task", "times": 1})
    push_all(shelf, product(2))
    assert refresh(shelf) == 0
    pass_time(shelf)
    assert refresh(shelf) == 1
    assert shown(shelf) == {"C-1": "1.00", "C-2": "1.00"}


def test_nothing_is_triggered_while_the_label_server_is_down(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    shelf.sql(
        "insert into esl.label_servers (server, down_since, probe_at)"
        " values ('default', now(), now() + interval '9 s')"
    )
    assert refresh(shelf) == triggers(shelf) == 0
    assert shelf.buffer.due().refresh is False
    shelf.sql("update esl.label_servers set down_since = null, probe_at = null")
    assert refresh(shelf) == 1


def test_an_exception_of_whatever_kind_is_an_outcome(shelf: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.map()
    push_all(shelf, product(1))

    def broken(*_: object) -> None:
        raise RuntimeError("the sign is s3cret")

    monkeypatch.setattr(shelf.client, "bind_task", broken)
    assert refresh(shelf) == 0
    rows = shelf.sql(
        "select distinct outcome, message from esl.refreshes"
    )  # a slow machine has time to try again
    assert rows == [{"outcome": "transient", "message": "the call could not be made: RuntimeError"}]


@pytest.mark.long
def test_a_slow_trigger_delays_no_push(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    shelf.sandbox.faults({"kind": "latency", "ms": 3000, "action": "bind_task"})
    with (
        client_of(shelf.sandbox.url, retries=1, timeout_seconds=10) as client,
        Refresher(shelf.buffer, client, RefreshRules(gap=60), run_id=RUN) as refresher,
    ):
        refresher.ask()
        eventually(lambda: triggers(shelf) == 1)
        began = time.monotonic()
        push_all(shelf, product(2))
        assert set(shelf.labels()) == {"C-1", "C-2"}
        assert time.monotonic() - began < 3
        assert shown(shelf) == {}
        began = time.monotonic()
    assert time.monotonic() - began < 6
    assert shown(shelf) == {"C-1": "1.00", "C-2": "1.00"}
    assert mark(shelf)["since"] is not None, "what came after the trigger was begun is not known to be in it"


# --- crashes and several workers


def test_a_crash_between_the_push_and_its_trigger_loses_nothing(shelf: World) -> None:
    shelf.map()
    shelf.update(product(1))
    drain_round(shelf.buffer, shelf.client, RULES, run_id="killed", asset=ASSET)
    assert replace(shelf.buffer.due(), anything=True, queue=False, refresh=True) == shelf.buffer.due()
    run_drain(shelf)
    assert shown(shelf) == {"C-1": "1.00"}


def test_a_trigger_whose_worker_died_is_audited_as_lost_and_made_again(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    claim = shelf.buffer.refresh_claim(run_id="killed", lease_seconds=60, rise_seconds=0)
    assert claim is not None and claim.store_code == STORE
    assert refresh(shelf) == 0, "somebody is at it"
    assert shelf.buffer.due().anything is False
    shelf.buffer.claims_release(run_id="killed")
    assert shelf.buffer.due().refresh is True
    assert refresh(shelf) == 1
    lost, made = shelf.sql("select outcome, run_id, claim_id, wanted_since from esl.refreshes order by id")
    assert (lost["outcome"], lost["run_id"], str(lost["claim_id"])) == ("lost", "killed", claim.claim_id)
    assert (made["outcome"], made["run_id"]) == ("accepted", RUN)
    assert made["wanted_since"] == lost["wanted_since"]

    late: Row = {"gap_seconds": 60, "initial_delay_seconds": 9, "multiplier": 2, "max_delay_seconds": 99}
    for _ in range(2):  # and its answer was lost
        shelf.buffer.refresh_finish(claim, Outcome("rejected", "m", duration_ms=1), run_id="killed", **late)
    assert outcomes(shelf) == ["lost", "accepted", "rejected"]
    assert mark(shelf)["attempts"] == 0


def test_the_mark_stands_when_something_was_accepted_since_the_trigger_was_begun(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))
    claim = shelf.buffer.refresh_claim(run_id=RUN, lease_seconds=60, rise_seconds=0)
    shelf.client.bind_task(STORE)
    push_all(shelf, product(2))
    rules: Row = {
        "run_id": RUN,
        "gap_seconds": 0,
        "initial_delay_seconds": 9,
        "multiplier": 2,
        "max_delay_seconds": 99,
    }
    assert claim is not None
    assert shelf.buffer.refresh_finish(claim, Outcome("accepted", duration_ms=1), **rules) is True
    assert shown(shelf) == {"C-1": "1.00"}
    assert refresh(shelf) == 1
    assert shown(shelf) == {"C-1": "1.00", "C-2": "1.00"}


@pytest.mark.long
def test_two_workers_never_trigger_one_store_at_once(shelf: World) -> None:
    for number in range(1, 9):
        shelf.map(f"shop-{number}.myshopify.com", f"S{number}")
        push_all(shelf, product(number), shop=f"shop-{number}.myshopify.com")
    shelf.sandbox.faults({"kind": "latency", "ms": 60, "action": "bind_task"})
    threads = [threading.Thread(target=refresh, args=(shelf,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (triggers(shelf), outcomes(shelf)) == (8, ["accepted"] * 8)


def test_a_run_of_one_shop_triggers_its_own_stores(shelf: World) -> None:
    shelf.map()
    shelf.map(OTHER_SHOP, OTHER_STORE)
    push_all(shelf, product(1))
    push_all(shelf, product(2), shop=OTHER_SHOP)
    assert refresh(shelf, shop={"source_system": "shopify", "source_store_id": SHOP}) == 1
    assert (shown(shelf), shown(shelf, OTHER_STORE)) == ({"C-1": "1.00"}, {})


def test_a_trigger_is_audited_and_traced(shelf: World) -> None:
    shelf.map()
    push_all(shelf, product(1))

    def traced() -> str:
        said = io.StringIO()
        story, (place,) = shelf.buffer.story(store=STORE, code="C-1"), shelf.buffer.trace("C-1")
        assert story is not None
        print_story(Console(file=said, width=200), story, place)
        return said.getvalue()

    assert "waits to be refreshed since" in traced()
    refresh(shelf)
    (row,) = shelf.sql("select * from esl.refreshes")
    assert (row["store_code"], row["run_id"], row["outcome"], row["http_status"], row["error_code"]) == (
        STORE, RUN, "accepted", 200, 0,
    )  # fmt: skip
    assert row["answer"] == '{"error_code":0,"error_msg":""}'
    assert row["duration_ms"] >= 0 and row["wanted_since"] <= row["begun_at"] <= row["at"]
    assert "(esl/bind_task accepted in" in traced() and f"by run {RUN}" in traced()


def test_a_push_that_is_not_accepted_wants_no_trigger(shelf: World) -> None:
    shelf.map()
    shelf.sandbox.faults({"kind": "error", "error_msg": "product data error"})
    shelf.update(product(1))
    assert push_batch(shelf.buffer, shelf.client, RULES, run_id=RUN, asset=ASSET).empty
    shelf.round()
    assert shelf.sql("select * from esl.refresh_marks") == []
