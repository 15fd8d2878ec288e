"""What becomes of the queue while the label server is in trouble, and when it comes back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline.stages.push import push_batch
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, STORE, World, product, variant

pytestmark = pytest.mark.long

OTHER_SHOP = "other-shop.myshopify.com"
ONE_AT_A_TIME = replace(RULES, batch_size=1)
DOWN = {"kind": "status", "status": 503}


@pytest.fixture
def ready(world: World) -> World:
    """A world with one mapped shop."""
    world.map()
    return world


def priced(price: str, version: int, numbers: range) -> list[dict[str, Any]]:
    return [product(n, version, [variant(n, price=price)]) for n in numbers]


def read_and_judge(world: World) -> None:
    """All of a round but the pushes."""
    read_inbox(world.buffer, run_id=RUN)
    variants, mappings = due_variants(world.buffer)
    stage(world.buffer, variants, validate(variants, mappings))


def time_passes(world: World) -> None:
    """Up to the next try of a server that is down, and beyond each label's own delay."""
    world.sql("update esl.label_servers set probe_at = now() where probe_at is not null")
    world.sql("update esl.sync_queue set next_attempt_at = now()")


def seconds_until_the_next_try(world: World) -> float:
    (row,) = world.sql("select extract(epoch from probe_at - now())::float8 as s from esl.label_servers")
    return float(row["s"])


@pytest.mark.long
def test_f18_an_outage_costs_a_few_calls_and_ends_in_one_push_per_changed_label(ready: World) -> None:
    numbers = range(1, 31)
    ready.settle(*priced("10.00", 1, numbers))
    calls_before = ready.calls()
    ready.sandbox.faults(DOWN)
    probes = 0
    # Four hours, two minutes at a time, and forty changes of every price in them.
    for step in range(120):
        if step % 3 == 0:
            version = 2 + step // 3
            ready.update(*priced(f"10.{version:02}", version, numbers))
        for _ in range(2):  # the second look has nothing to try
            before = ready.calls()
            ready.round(max_attempts=25, probe=120, max_probe=120)
            probes += ready.calls() - before
        assert step < 3 or ready.buffer.due().outage.reason.endswith("answered HTTP 503.")
        time_passes(ready)
    assert ready.calls() - calls_before == probes <= 120 + 2  # three calls until it was known to be down
    assert {row["state"] for row in ready.queue().values()} == {"ready"}, "nobody's fault: no dead letter"

    ready.sandbox.faults()
    calls_before = ready.calls()
    ready.settle(batch_size=10)

    assert ready.calls() - calls_before == 4  # the last probe, of one label, and three batches
    assert set(ready.prices().values()) == {"10.41"}
    assert [ready.shown(f"C-{n}") for n in numbers] == [["10.00", "10.41"]] * 30
    assert ready.buffer.due().outage is None


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "reset"},
        {"kind": "hold", "seconds": 0.7, "apply": False},
        {"kind": "status", "status": 502},
        {"kind": "text"},
    ],
    ids=lambda fault: fault["kind"],
)
def test_f18_every_way_of_being_down_opens_the_breaker(ready: World, fault: dict[str, Any]) -> None:
    ready.sandbox.faults(fault)
    ready.update(product())
    for _ in range(5):
        ready.round(down_after=2, probe=60, max_probe=60)
        ready.sql("update esl.sync_queue set next_attempt_at = now()")
    assert ready.calls() == 2
    assert ready.buffer.due().queue is False
    (outage,) = ready.buffer.status()["outages"]
    assert outage["server"] == "default" and outage["reason"]


def test_f18_the_pause_between_probes_grows_up_to_a_limit(ready: World) -> None:
    ready.sandbox.faults(DOWN)
    ready.update(product())
    pauses = []
    for _ in range(5):
        ready.round(down_after=1, probe=10, max_probe=60)
        pauses.append(seconds_until_the_next_try(ready))
        time_passes(ready)
    for pause, due in zip(pauses, (10, 20, 40, 60, 60), strict=True):
        assert 0.7 * due < pause < 1.3 * due


def test_f18_of_many_workers_one_probes(ready: World) -> None:
    ready.sandbox.faults(DOWN)
    ready.update(*priced("1.00", 1, range(1, 41)))
    ready.round(down_after=1, probe=60, max_probe=60, batch_size=5)
    time_passes(ready)
    claim = {"limit": 5, "lease_seconds": 60, "max_attempts": 5, "run_id": "r", "asset": "a"}
    with ThreadPoolExecutor(4) as workers:
        claims = list(workers.map(lambda _: ready.buffer.push_claim(**claim), range(8)))
    assert sum(claimed is not None for claimed in claims) == 1


def test_f18_a_probe_whose_worker_dies_is_repeated(ready: World) -> None:
    ready.sandbox.faults(DOWN)
    ready.update(product())
    ready.round(down_after=1, probe=60, max_probe=60)
    time_passes(ready)
    claim = {"limit": 5, "lease_seconds": 60, "max_attempts": 5, "run_id": "r", "asset": "a"}
    assert ready.buffer.push_claim(**claim) is not None
    assert ready.buffer.push_claim(**claim) is None
    ready.sandbox.faults()
    ready.expire_leases()
    time_passes(ready)
    ready.settle()
    assert ready.prices() == {"C-1": "1.00"}


def test_f18_a_redrive_tries_at_once(ready: World) -> None:
    ready.sandbox.faults(DOWN)
    ready.update(product())
    ready.round(down_after=1, probe=3600, max_probe=3600)
    ready.sandbox.faults()
    ready.buffer.redrive()
    ready.sql("update esl.sync_queue set next_attempt_at = now()")
    ready.settle()
    assert ready.prices() == {"C-1": "1.00"}


def test_f17_after_a_slow_call_the_other_stores_come_first(ready: World) -> None:
    ready.update(*priced("1.00", 1, range(1, 4)))
    with client_of(ready.sandbox.url, retries=1) as patient:
        ready.client = patient
        ready.sandbox.faults({"kind": "latency", "ms": 1_100, "store": STORE})
        read_and_judge(ready)
        ready.map(OTHER_SHOP, "S2")
        ready.update(product(9), shop=OTHER_SHOP)
        read_and_judge(ready)
        pushed = [push_batch(ready.buffer, patient, ONE_AT_A_TIME, run_id=RUN, asset=ASSET) for _ in range(4)]
    assert [results["store_code"][0] for results in pushed] == [STORE, "S2", STORE, STORE]


def test_g7_a_label_that_the_server_does_not_survive_holds_up_no_other(ready: World) -> None:
    ready.sandbox.faults({"kind": "status", "status": 500, "codes": ["C-63"]})
    ready.update(product(variants=[variant(n) for n in range(1, 101)]))
    eventually(lambda: ready.round().did_something and len(ready.labels()) == 99)
    # Alone it looks as if the server were down, and does not count as a failure of the label ...
    eventually(lambda: ready.round().did_something and ready.buffer.due().outage)
    for version in range(2, 12):  # ... until others get through, which it must not keep from doing.
        ready.update(product(200, version, [variant(200, price=f"{version}.00")]))
        eventually(lambda price=f"{version}.00": ready.round() and ready.prices().get("C-200") == price)
        eventually(lambda: not ready.waiting() or (ready.round() and ready.buffer.due().outage))
    assert {code: row["state"] for code, row in ready.queue().items()} == {"C-63": "dead"}
    assert "HTTP 500" in ready.queue()["C-63"]["last_error"]
    ready.sandbox.faults()
    ready.buffer.redrive()
    ready.settle()
    assert len(ready.labels()) == 101


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        pytest.param("120", 119, 120.1, id="seconds"),
        pytest.param("120.5", 119, 120.6, id="decimal"),
        pytest.param("date", 115, 121, id="date"),
        pytest.param("99999999", 3599, 3600.1, id="huge"),
        pytest.param("-5", 7, 13, id="negative"),
        pytest.param("soon", 7, 13, id="garbage"),
        pytest.param(None, 7, 13, id="missing"),
    ],
)
def test_f14_every_form_of_retry_after(ready: World, header: str | None, least: float, most: float) -> None:
    if header == "date":
        header = (datetime.now(UTC) + timedelta(seconds=120)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    ready.sandbox.faults({"kind": "status", "status": 429, "retry_after": header})
    ready.update(product())
    ready.round(down_after=1, probe=10, max_probe=60)
    assert least < seconds_until_the_next_try(ready) < most
    for _ in range(7):  # more often than max_attempts
        time_passes(ready)
        ready.round()
    assert ready.queue()["C-1"]["state"] == "ready", "a server that asks for patience makes no dead letter"
    ready.sandbox.faults()
    time_passes(ready)
    ready.settle()
    assert ready.prices() == {"C-1": "1.00"}


@pytest.mark.parametrize("status", [408, 409, 423, 425, 429, 503])
def test_f15_a_status_that_may_pass_is_no_refusal(ready: World, status: int) -> None:
    ready.sandbox.faults({"kind": "status", "status": status, "times": 2})
    ready.settle(product())
    assert ready.outcomes("C-1") == ["transient", "transient", "accepted"]


@pytest.mark.parametrize("status", [401, 403])
def test_f15_refused_credentials_pause_the_store_and_not_the_server(ready: World, status: int) -> None:
    ready.map(store="S2")
    ready.sandbox.faults({"kind": "status", "status": status, "store": STORE})
    ready.update(product())
    for _ in range(5):
        ready.round(pause=60, down_after=1)
    assert ready.prices("S2") == {"C-1": "1.00"}
    assert ready.outcomes("C-1").count("authentication") == 1
    assert ready.queue()["C-1"]["attempts"] == 0
    assert ready.buffer.due().outage is None


@pytest.mark.parametrize("applied", [False, True], ids=["nothing", "half"])
def test_f13_a_200_with_an_error_in_its_body_is_a_failure(ready: World, applied: bool) -> None:
    ready.sandbox.faults({"kind": "bad_codes", "codes": ["C-3"], "apply": applied})
    ready.settle(product(variants=[variant(n) for n in range(1, 6)]))
    assert set(ready.labels()) == {"C-1", "C-2", "C-4", "C-5"}
    assert ready.queue()["C-3"]["state"] == "failed"
    ledger = ready.sql("select code from esl.hipoink_products")
    assert {row["code"] for row in ledger} == {"C-1", "C-2", "C-4", "C-5"}
