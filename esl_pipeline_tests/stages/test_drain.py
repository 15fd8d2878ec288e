"""The drain loop, and the same webhooks at a label server that runs elsewhere."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.connections import open_label_server
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.model.due import Due, DueEverywhere
from esl_pipeline.model.push import PushRules
from esl_pipeline.settings import load_settings
from esl_pipeline.stages.drain import DrainLimits, Round, connections, drain, lease_of, read_round
from esl_pipeline_tests.hipoink.servers import Sandbox
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, STORE, World, product, variant, when

AT_ONCE = DrainLimits(idle=0, age=60)


def run(
    world: World,
    on_round: Callable[[Round], None],
    limits: DrainLimits = AT_ONCE,
    rules: PushRules = RULES,
    *,
    holder: str = "h",
) -> bool:
    return drain(
        world.buffer,
        world.client,
        rules,
        limits,
        run_id=RUN,
        holder=holder,
        asset=ASSET,
        on_round=on_round,
        on_idle=lambda: None,
    )


def test_a_drain_works_until_nothing_is_due_and_gives_its_lease_back(world: World) -> None:
    world.map()
    world.update(*[product(n) for n in range(1, 6)])
    rounds: list[Round] = []
    assert run(world, rounds.append) is True
    assert len(world.labels()) == 5
    assert sum(len(done.events) for done in rounds) == 5
    nothing = Due(anything=False, inbox=False, variants=False, queue=False, refresh=False, is_fed=True)
    shop = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}
    assert world.buffer.due() == nothing
    assert world.buffer.due_everywhere() == DueEverywhere({"default": nothing}, [shop], {})


def test_only_one_drain_runs_at_a_time(world: World) -> None:
    world.buffer.lease_take(name=lease_of("default"), holder="other", seconds=60)
    rounds: list[Round] = []
    assert run(world, rounds.append) is False
    assert rounds == []
    assert world.buffer.due().drain == "other"
    world.buffer.lease_release(name=lease_of("default"), holder="other", seconds=20)
    assert run(world, rounds.append) is True


@pytest.mark.long
def test_a_drain_that_waits_takes_up_what_comes(world: World) -> None:
    world.map()
    thread = threading.Thread(target=run, args=(world, lambda _: None, DrainLimits(idle=1)))
    thread.start()
    eventually(lambda: world.buffer.due().drain is not None)
    world.update(product())
    eventually(lambda: world.labels() != {})
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.long
def test_a_drain_ends_when_it_is_old_although_work_goes_on(world: World) -> None:
    world.map()

    def feed(done: Round) -> None:
        world.update(product(version=100 + len(rounds), variants=[variant(price=f"{len(rounds) + 2}.00")]))
        rounds.append(done)

    rounds: list[Round] = []
    world.update(product())
    limits = DrainLimits(idle=30, age=0.5)
    run(world, feed, limits)
    assert rounds
    assert world.buffer.due().drain is None


@pytest.mark.long
def test_f17_a_slow_label_server_does_not_keep_new_events_from_being_read(world: World) -> None:
    world.map()
    world.settle(product(12))
    world.update(*[product(n) for n in range(1, 12)])
    world.sandbox.faults({"kind": "latency", "ms": 150})
    rounds: list[Round] = []

    def rise_in_the_midst(done: Round) -> None:
        if not rounds:
            world.update(product(12, 2, [variant(12, price="9.00")]))
        rounds.append(done)

    run(world, rise_in_the_midst, rules=replace(RULES, batch_size=1, concurrency=1))

    pushed = [code for done in rounds for results in done.results for code in results["code"]]
    assert set(pushed) == {f"C-{n}" for n in range(1, 13)}
    assert pushed.index("C-12") <= 3, "the rise overtook what waited longer"
    assert world.prices()["C-12"] == "9.00"


def test_four_pushes_that_wait_in_the_buffer_keep_nobody_else_out_of_it(world: World) -> None:
    """The lease could not be renewed, and another drain would begin."""
    stores = ["S1", "S2", "S3", "S4"]
    for store in stores:
        world.map(store=store)
    world.update(product())
    read_round(world.buffer, run_id=RUN)
    buffer = Buffer(PsycopgTransport(SecretStr(world.dsn), pool_size=connections(RULES.concurrency)))
    places = "select {}(hashtextextended('esl.store ' || n, 0)) from unnest(%s::text[]) n"
    with psycopg.connect(world.dsn, autocommit=True) as somebody:
        somebody.execute(places.format("pg_advisory_lock").encode(), [stores])
        thread = threading.Thread(target=run, args=(replace(world, buffer=buffer), lambda _: None))
        thread.start()
        waiting = "select from pg_locks where locktype = 'advisory' and not granted"
        eventually(lambda: len(world.sql(waiting)) == 4)
        began = monotonic()
        assert buffer.lease_take(name=lease_of("default"), holder="h", seconds=20).is_held
        assert monotonic() - began < 3
        somebody.execute(places.format("pg_advisory_unlock").encode(), [stores])
        thread.join(20)
    assert not thread.is_alive()
    buffer.close()
    assert {store for store in stores if world.labels(store)} == set(stores)


# --- another label server


@contextmanager
def sandbox_process(sign: str) -> Iterator[str]:
    """The sandbox as somebody else's server: a process of its own, reached by its address alone."""
    command = [
        sys.executable,
        "-m",
        "esl_pipeline.sandbox.label_server.server",
        "--port",
        "0",
        "--client-id",
        "tenant",
    ]
    with subprocess.Popen([*command, "--sign", sign], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


def a_day(world: World) -> None:
    """Creates, changes, a removal, a held back row, stale and doubled deliveries."""
    world.map()
    world.settle(product(1, 1, [variant(1), variant(2, title="Grün ☕")]), product(2, 1), product(3, 1))
    world.settle(product(1, 3, [variant(1, price="2.50"), variant(2, "NEW", title="Grün ☕")]), product(1, 2))
    world.delete(2, version=4)
    world.settle(product(3, 5, [variant(3, price=None)]), product(4, 5, status="draft"), product(5, 5))
    world.send("products/create", product(5, 5), at=when(5))
    world.settle()


@pytest.fixture
def second_dsn(postgres: EmbeddedPostgres) -> str:
    postgres.create_database("elsewhere", template="migrated")
    return postgres.dsn("elsewhere")


@pytest.mark.long
def test_another_label_server_gets_the_same_labels(world: World, second_dsn: str) -> None:
    a_day(world)
    sign = "a-secret-sign-of-the-tenant"
    with sandbox_process(sign) as url, httpx.Client(base_url=url) as http:
        settings = load_settings(
            esl_database_url=second_dsn,
            hipoink_api_base_url=url,
            hipoink_client_id="tenant",
            hipoink_api_secret=sign,
            hipoink_rate_limit_per_second=200,
        )
        second = Buffer(PsycopgTransport(SecretStr(second_dsn)))
        with open_label_server(settings, second) as client:
            there = World(second, second_dsn, Sandbox(url, http), client)
            a_day(there)
            assert there.labels() == world.labels()
            assert there.sandbox.state()["calls"] == world.sandbox.state()["calls"]
        second.close()
    assert set(world.labels(STORE)) == {"C-1", "NEW", "C-3", "C-5"}
