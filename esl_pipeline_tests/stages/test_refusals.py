"""Blame needs evidence: what the label server refuses, and whose fault that is."""

import time
from dataclasses import replace
from typing import Any

import pytest

from esl_pipeline.model.push import Outcome, PushRules
from esl_pipeline.stages.push import push_batch
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, SHOP, STORE, World, product, variant

OTHER_SHOP, OTHER_STORE = "other-shop.myshopify.com", "S2"
BUSY = {"kind": "error", "error_code": 1, "error_msg": "system busy, try again later"}
# Pauses and delays that end when a test says so.
PATIENT: dict[str, Any] = {"pause": 600, "max_pause": 900, "refused_delay": 30, "max_refused_delay": 21_600}


@pytest.fixture
def ready(world: World) -> World:
    """A world with one mapped shop."""
    world.map()
    return world


def labels(count: int, first: int = 1, price: str = "1.00") -> list[dict[str, Any]]:
    return [variant(n, price=price) for n in range(first, first + count)]


def refuses(codes: list[str], status: int | None = None) -> dict[str, Any]:
    if status is None:
        return BUSY | {"codes": codes}
    return {"kind": "status", "status": status, "codes": codes}


def time_passes(world: World) -> None:
    """Beyond every pause and delay."""
    world.sql("update esl.store_health set until = now() where until > now()")
    world.sql("update esl.label_servers set probe_at = now() where probe_at > now()")
    world.sql("update esl.sync_queue set next_attempt_at = now() where next_attempt_at > now()")


def quiet(world: World, **rules: Any) -> None:
    """Drain what is due now."""
    while world.round(**rules).did_something:
        pass


def nights(world: World) -> int:
    shop = {"source_system": "shopify", "source_store_id": SHOP}
    return int(world.buffer.push_again(shop=shop)["labels"])


def states(world: World) -> dict[str, str]:
    return {code: row["state"] for code, row in world.queue().items()}


# --- the server's and the store's trouble


def test_field_04_a_busy_moment_leaves_no_label_wrong(ready: World) -> None:
    ready.settle(product(variants=labels(20)))
    ready.sandbox.faults(BUSY)
    before = ready.calls()
    ready.update(product(version=2, variants=labels(20, price="1.20")))
    quiet(ready, **PATIENT)
    assert ready.calls() - before <= 5
    assert set(states(ready).values()) == {"ready"}
    assert {row["attempts"] for row in ready.queue().values()} == {0}, "nobody's fault: nothing else passes"
    (store,) = ready.buffer.status()["stores"]
    assert "system busy, try again later" in store["paused"]["reason"]
    ready.sandbox.faults()
    time_passes(ready)
    ready.settle()
    assert set(ready.prices().values()) == {"1.20"} and len(ready.prices()) == 20


@pytest.mark.long
def test_field_04_labels_refused_while_others_pass_are_shown_later_by_themselves(ready: World) -> None:
    ready.sandbox.faults(refuses([f"C-{n}" for n in range(11, 31)]))
    ready.update(product(variants=labels(100)))
    quiet(ready, **PATIENT | {"max_refusals": 5})
    for _ in range(6):
        if len(ready.labels()) == 80:
            break
        ready.sql("update esl.store_health set until = now() where until > now()")
        quiet(ready, **PATIENT | {"max_refusals": 5})
    assert len(ready.labels()) == 80
    assert set(states(ready).values()) == {"ready"} and len(ready.queue()) == 20
    ready.sandbox.faults()
    time_passes(ready)
    ready.settle()
    assert len(ready.labels()) == 100


@pytest.mark.long
def test_field_04_a_store_that_the_server_does_not_know_costs_a_handful_of_calls_and_comes_last(
    ready: World,
) -> None:
    ready.map(OTHER_SHOP, OTHER_STORE)
    ready.sandbox.faults({"kind": "error", "error_msg": "store not found", "store": STORE})
    ready.update(*[product(k, variants=labels(100, 100 * k)) for k in (1, 2, 3)])
    quiet(ready, **PATIENT)
    assert ready.calls() <= 5
    for version in range(2, 5):  # changes of every price cost nothing more while it pauses
        ready.update(*[product(k, version, labels(100, 100 * k, f"1.{version}0")) for k in (1, 2, 3)])
        quiet(ready, **PATIENT)
    assert ready.calls() <= 5
    for number in range(1000, 1003):
        time_passes(ready)
        ready.update(product(number), shop=OTHER_SHOP)
        before = len(ready.labels(OTHER_STORE))
        ready.round(**PATIENT)
        assert len(ready.labels(OTHER_STORE)) == before + 1
    pauses = ready.sql("select pauses from esl.store_health where store_code = %s", STORE)
    assert pauses == [{"pauses": 4}]
    assert ready.calls() <= 5 + 3 * 3
    assert set(states(ready).values()) == {"ready"}
    ready.sandbox.faults()  # it is known now
    before = ready.calls()
    time_passes(ready)
    ready.settle()
    assert len(ready.labels()) == 300 and set(ready.prices().values()) == {"1.40"}
    assert ready.calls() - before <= 12


@pytest.mark.long
def test_field_04_pauses_of_a_store_grow_up_to_a_limit_and_end_with_the_first_label(ready: World) -> None:
    ready.sandbox.faults(BUSY)
    ready.update(product(variants=labels(30)))
    pauses = []
    for _ in range(6):
        quiet(ready, **PATIENT | {"pause": 60})
        (row,) = ready.sql("select extract(epoch from until - now())::float8 as s from esl.store_health")
        pauses.append(row["s"])
        time_passes(ready)
    for pause, due in zip(pauses, (60, 120, 240, 480, 900, 900), strict=True):
        assert due - 5 < pause <= due
    ready.sandbox.faults()
    quiet(ready, batch_size=100, **PATIENT)
    assert len(ready.labels()) == 30
    (row,) = ready.sql("select refusals, pauses, until, reason from esl.store_health")
    assert row == {"refusals": 0, "pauses": 0, "until": None, "reason": None}


@pytest.mark.long
def test_field_04_refusals_to_all_stores_are_the_servers_and_open_its_breaker(world: World) -> None:
    for number in range(1, 7):
        world.map(f"shop-{number}.myshopify.com", f"S{number}")
    for number in range(1, 7):
        world.update(product(number, variants=labels(3, 10 * number)), shop=f"shop-{number}.myshopify.com")
    world.settle()
    world.sandbox.faults(BUSY)
    before = world.calls()
    for number in range(1, 7):
        shop = f"shop-{number}.myshopify.com"
        world.update(product(number, 2, labels(3, 10 * number, "1.20")), shop=shop)
    quiet(world, probe=600, max_probe=600, **PATIENT)
    outage = world.buffer.due().outage
    assert outage and "system busy" in outage.reason
    assert world.calls() - before <= 8
    assert not any(store["paused"] for store in world.buffer.status()["stores"])
    for _ in range(10):  # tried now and then, and nobody is blamed
        time_passes(world)
        world.round(probe=600, max_probe=600, **PATIENT)
    assert {row["refusals"] for row in world.queue().values()} == {0}
    world.sandbox.faults()
    time_passes(world)
    world.settle()
    assert {p for n in range(1, 7) for p in world.prices(f"S{n}").values()} == {"1.20"}
    assert world.buffer.due().outage is None


# --- the label's own fault


def test_field_04_a_label_at_fault_is_told_to_people_after_long_delays_and_tried_once_a_night(
    ready: World,
) -> None:
    ready.sandbox.faults(refuses(["C-3"]))
    delays = []
    ready.update(product(variants=labels(8)))
    rules = PATIENT | {"max_refusals": 4, "refused_multiplier": 4}
    for _ in range(3):
        quiet(ready, **rules)
        assert states(ready) == {"C-3": "ready"}
        (row,) = ready.sql(
            "select extract(epoch from next_attempt_at - now())::float8 as s from esl.sync_queue"
        )
        delays.append(row["s"])
        time_passes(ready)
    quiet(ready, **rules)
    for delay, due in zip(delays, (30, 120, 480), strict=True):
        assert 0.7 * due < delay < 1.3 * due
    assert states(ready) == {"C-3": "failed"} and ready.queue()["C-3"]["refusals"] == 4
    assert "system busy" in ready.queue()["C-3"]["last_error"]
    (store,) = ready.buffer.status()["stores"]
    assert (store["queue"]["failed"], store["paused"]) == (1, None)

    assert nights(ready) == 1
    before = ready.calls()
    quiet(ready, **rules)
    assert ready.calls() - before == 1 and states(ready) == {"C-3": "failed"}
    ready.sandbox.faults()
    assert nights(ready) == 1
    quiet(ready, **rules)
    assert len(ready.labels()) == 8 and nights(ready) == 0


def test_the_night_tries_dead_labels_of_its_own_shop_only(ready: World) -> None:
    ready.map(OTHER_SHOP, OTHER_STORE)
    ready.sandbox.faults({"kind": "status", "status": 503})
    ready.update(product(1))
    ready.update(product(2), shop=OTHER_SHOP)
    for _ in range(3):
        ready.round(max_attempts=1, down_after=99)
    assert states(ready) == {"C-1": "dead", "C-2": "dead"}
    ready.sandbox.faults()
    assert nights(ready) == 1
    ready.settle()
    assert states(ready) == {"C-2": "dead"} and list(ready.labels()) == ["C-1"]


@pytest.mark.long
def test_one_label_at_fault_in_a_quiet_store_holds_up_no_other(ready: World) -> None:
    """Alone again and again: what fails for a known reason says nothing of its store."""
    ready.settle(product(1), product(2))
    ready.sandbox.faults(refuses(["C-1"]))
    ready.update(product(1, 2, labels(1, 1, "1.20")))
    for _ in range(8):
        quiet(ready, **PATIENT | {"max_refusals": 9})
        time_passes(ready)
    (health,) = ready.sql("select refusals, pauses from esl.store_health")
    assert health == {"refusals": 1, "pauses": 0}
    ready.update(product(2, 2, labels(1, 2, "1.20")))
    ready.round(**PATIENT)
    assert ready.prices() == {"C-1": "1.00", "C-2": "1.20"}


def test_a_store_in_doubt_is_not_tried_with_the_same_label_again_and_again(ready: World) -> None:
    """The most urgent one may be the one at fault."""
    ready.settle(product(1), product(2, variants=labels(5, 2)))
    ready.sandbox.faults(BUSY)
    ready.update(product(1, 2, labels(1, 1, "1.20")), product(2, 2, labels(5, 2, "0.80")))
    quiet(ready, **PATIENT)
    ready.sandbox.faults(refuses(["C-1"]))
    for _ in range(2):
        time_passes(ready)
        quiet(ready, **PATIENT)
    assert ready.prices() == {"C-1": "1.00"} | {f"C-{n}": "0.80" for n in range(2, 7)}


# --- row 5


@pytest.mark.long
@pytest.mark.parametrize("status", [401, 403, None, 408, 409, 503])
@pytest.mark.parametrize("history", [False, True], ids=["new store", "store that passed"])
def test_field_05_any_batch_that_names_one_label_is_refused(
    ready: World, status: int | None, history: bool
) -> None:
    if history:
        ready.settle(product(50))
    ready.sandbox.faults(refuses(["C-1"], status))
    before = ready.calls()
    ready.update(product(variants=labels(30)))
    good = {f"C-{n}" for n in range(2, 31)}
    pauses = 0
    rules = PATIENT | {"probe": 600, "max_probe": 600, "initial_delay": 60, "max_delay": 60}
    for _ in range(30):
        quiet(ready, **rules | {"max_refusals": 99, "max_attempts": 99})
        if good <= set(ready.labels()):
            break
        pauses += bool(ready.sql("select from esl.store_health where until > now()"))
        time_passes(ready)
    assert good <= set(ready.labels())
    assert ready.calls() - before <= 40 and pauses <= 2
    assert list(ready.queue()) == ["C-1"]
    ready.sandbox.faults()
    time_passes(ready)
    ready.settle()
    assert len(ready.labels()) == 30 + history


def test_field_05_answers_that_alternate_are_one_refusal(ready: World) -> None:
    ready.sandbox.faults(
        *[refuses(["C-7"], status) | {"times": 1} for status in (403, 401) * 20], refuses(["C-7"], 403)
    )
    ready.update(product(variants=labels(30)))
    for _ in range(20):
        quiet(ready, **PATIENT | {"max_refusals": 9})
        if len(ready.labels()) == 29:
            break
        time_passes(ready)
    assert len(ready.labels()) == 29 and ready.calls() <= 25


# --- row 6


class _Defect(Exception):
    """A defect of ours that one record brings out."""


def test_field_06_what_the_client_cannot_send_is_refused_alone(ready: World) -> None:
    ready.settle(product(variants=labels(10)))
    # A foreign label with the code "0", as a comparison of a store that is ours alone once adopted it.
    ready.sql(
        "insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, priority, in_doubt)"
        " select hipoink_store_code, '0', id, '', 'delete', 3, true from esl.store_mappings"
    )
    ready.update(product(version=2, variants=labels(6)))
    ready.settle()
    assert set(ready.labels()) == {f"C-{n}" for n in range(1, 7)}, "our own removals go on"
    assert states(ready) == {"0": "failed"}
    assert "ValueError" in ready.queue()["0"]["last_error"]
    assert "'0' names no product" in ready.queue()["0"]["last_error"]


@pytest.mark.parametrize("error", [_Defect, MemoryError, RecursionError, UnicodeEncodeError])
def test_field_06_any_exception_of_a_push_is_an_outcome(
    ready: World, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    right = ready.client.create_multiple

    def create_multiple(store_code: str, products: Any, call: Any) -> Any:
        if any(record["pc"] == "C-5" for record in products):
            raise error(*(("utf-8", "secret", 0, 1, "no") if error is UnicodeEncodeError else ("secret",)))
        return right(store_code, products, call)

    monkeypatch.setattr(ready.client, "create_multiple", create_multiple)
    ready.settle(product(variants=labels(20)))
    assert len(ready.labels()) == 19
    assert states(ready) == {"C-5": "failed"}
    said = ready.queue()["C-5"]["last_error"]
    assert error.__name__ in said and "secret" not in said


def test_field_06_a_batch_that_no_run_survives_gives_up_its_culprit_alone(ready: World) -> None:
    ready.update(product(variants=labels(20)))
    ready.round(batch_size=0)
    died = 0
    for _ in range(60):
        claim = ready.buffer.push_claim(
            limit=100, lease_seconds=60, max_attempts=4, run_id=f"run-{died}", asset=ASSET
        )
        codes = [row.code for row in claim.rows] if claim else []
        if "C-13" in codes:
            died += 1  # and nothing is recorded
            ready.sql("update esl.sync_queue set lease_until = now() - interval '1 s' where state = 'leased'")
            continue
        if claim is None:
            if set(states(ready).values()) == {"dead"}:
                break
            time_passes(ready)
            continue
        ready.client.create_multiple(STORE, [row.label for row in claim.rows if row.label is not None])
        ready.buffer.push_finish(claim, Outcome("accepted"), RULES)
    assert len(ready.labels()) == 19
    assert states(ready) == {"C-13": "dead"}
    assert "the run ended before" in ready.queue()["C-13"]["last_error"]
    assert died == 8  # one of 20, 10, 5 and 2, and four times alone


# --- one batch


def test_two_shops_of_one_store_do_not_share_a_batch(ready: World) -> None:
    ready.map(OTHER_SHOP, STORE)
    ready.update(product(1))
    ready.update(product(2), shop=OTHER_SHOP)
    ready.round(batch_size=0)
    first = push_batch(ready.buffer, ready.client, RULES, run_id=RUN, asset=ASSET)
    second = push_batch(ready.buffer, ready.client, RULES, run_id=RUN, asset=ASSET)
    assert [*first["code"], *second["code"]] == ["C-1", "C-2"]


def test_a_store_in_doubt_is_tried_by_one_worker_at_a_time(ready: World) -> None:
    ready.sandbox.faults(BUSY)
    ready.update(product(variants=labels(12)))
    quiet(ready, **PATIENT)
    time_passes(ready)
    claim = {"limit": 5, "lease_seconds": 60, "max_attempts": 5, "run_id": "r", "asset": "a"}
    found = [ready.buffer.push_claim(**claim) for _ in range(4)]
    assert [len(claimed.rows) if claimed else 0 for claimed in found] == [1, 0, 0, 0]
    ready.sandbox.faults()
    ready.expire_leases()
    time_passes(ready)
    eventually(lambda: not ready.round().did_something and len(ready.labels()) == 12)


def test_rules_as_they_are_shipped_blame_nobody_early() -> None:
    rules = PushRules()
    waits = [rules.refused_delay * rules.refused_multiplier**n for n in range(rules.max_refusals - 1)]
    assert sum(waits) > 40 * 60 and max(waits) < rules.max_refused_delay
    assert replace(rules, pause=1).max_pause == 900


def test_a_pause_is_over_by_itself(ready: World) -> None:
    ready.sandbox.faults(BUSY)
    ready.update(product(variants=labels(12)))
    began = time.monotonic()
    quiet(ready)
    ready.sandbox.faults()
    ready.settle()
    assert time.monotonic() - began >= 0.25 and len(ready.labels()) == 12
