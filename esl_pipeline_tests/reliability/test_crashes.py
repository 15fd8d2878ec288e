"""Rows of the fault catalogue whose proof is a process that is killed, stopped, told to end or cut off."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of
from esl_pipeline_tests.reliability.chaos import Timeout
from esl_pipeline_tests.reliability.crash_matrix import ARROWS, NEWEST, Ground, change, run_case
from esl_pipeline_tests.reliability.forked import Victim
from esl_pipeline_tests.reliability.sender import Delivery
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import World, product, variant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ARROW = {arrow.name: arrow for arrow in ARROWS}
OTHER_SHOP, OTHER_STORE = "other-shop.myshopify.com", "S2"


@pytest.mark.parametrize("arrow", ["P1-P2", "P2-P3"], ids=["before the commit", "after the commit"])
def test_f07_a_receiver_killed_around_its_commit_promises_nothing_it_has_not_kept(
    ground: Ground, arrow: str
) -> None:
    seen = run_case(ground, ARROW[arrow], "KILL")
    assert seen["deliveries"] == "- 200 200", "no answer, then the repeated delivery's"
    kept = ground.world.sql(
        "select count(*) as n from esl.webhook_inbox where webhook_id = %s", ground.deliveries[0].webhook_id
    )
    assert kept == [{"n": 1}]


def test_f08_killed_between_the_push_and_its_record(ground: Ground) -> None:
    seen = run_case(ground, ARROW["P8-P9"], "KILL")
    assert (seen["pushes"], seen["label"]) == ("lost, accepted", "1 2 3")


def test_f09_killed_between_the_claim_and_the_push(ground: Ground) -> None:
    seen = run_case(ground, ARROW["P7-P8"], "KILL")
    assert (seen["pushes"], seen["label"]) == ("lost, accepted", "1 3"), "version 3 was pushed once"


def test_f10_a_zombies_late_push_is_followed_by_a_correction(ground: Ground) -> None:
    seen = run_case(ground, ARROW["P8-sent"], "STOP")
    assert seen["pushes"] == "lost, accepted, accepted, accepted"
    assert (seen["label"], seen["corrected"]) == ("1 3 2 3", 3), "one step back for each of three labels"


def test_f10_a_zombies_late_finish_is_refused(ground: Ground) -> None:
    seen = run_case(ground, ARROW["P9-P10"], "STOP")
    assert (seen["label"], seen["corrected"]) == ("1 2 3 3", 0)
    (ledger,) = ground.world.sql(
        "select label ->> 'pp' as price from esl.hipoink_products where code = 'C-1'"
    )
    assert ledger["price"] == f"{NEWEST}.00"


def test_f21_cut_off_from_the_database_while_a_push_is_out(ground: Ground) -> None:
    seen = run_case(ground, ARROW["P8-P9"], "CUT")
    assert seen["pushes"].startswith("lost, accepted") and seen["label"].startswith("1 2")
    assert seen["corrected"] == 0


def test_f21_a_partition_that_is_silent_while_a_push_is_out(ground: Ground) -> None:
    """Nothing is refused: the record of the push vanishes, somebody else takes over, then the lost one comes back."""
    world = ground.world
    world.map()
    world.settle(change(1))
    ground.receiver(proxied=False)
    ground.delivery(2).send_until_acknowledged()
    trap = ground.labels.trap(b"/create_multiple", "answer")
    cut_off = ground.worker(proxied=True)
    assert trap.sprung.wait(20)
    ground.database.toxics = (Timeout(),)
    trap.release()
    ground.worker(proxied=False)
    ground.delivery(3).send_until_acknowledged()
    eventually(lambda: set(world.prices().values()) == {"3.00"}, 30)

    ground.database.toxics = ()
    ground.database.cut()

    def its_finish_came() -> bool:
        return world.outcomes("C-1").count("accepted") >= 4  # versions 1 and 3, the late one, its correction

    eventually(its_finish_came, 30)
    eventually(lambda: not world.sql("select 1 as open from esl.sync_queue"), 20)
    assert cut_off.exit_code is None
    assert world.prices() == dict.fromkeys(("C-1", "C-2", "C-3"), "3.00")
    assert "lost" in world.outcomes("C-1")


def test_f39_told_to_end_a_worker_records_its_push_first(ground: Ground) -> None:
    """The case itself asserts that it ends within the grace time and that nothing stays leased."""
    seen = run_case(ground, ARROW["P8-P9"], "TERM")
    assert seen["pushes"] == "accepted, accepted"


def test_f39_told_to_end_a_dagster_run_records_its_push_first(ground: Ground) -> None:
    world = ground.world
    world.map()
    world.update(change(2))
    trap = ground.labels.trap(b"/create_multiple", "answer")
    url = f"http://127.0.0.1:{ground.labels.port}"
    log = ground.folder / "run.log"
    run = ground.stack.enter_context(Victim.event_sync(ground.direct, url, log))
    assert trap.sprung.wait(60), log.read_text()
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert run.exit_code is None, "it waits for the answer"
    trap.release()
    eventually(lambda: run.exit_code is not None, 20)
    assert "DagsterExecutionInterruptedError" in log.read_text()
    assert "materialised hipoink_sync_results" in log.read_text()
    assert world.outcomes("C-1") == ["accepted"] and world.queue() == {}
    assert world.buffer.due().drain is None, "the next run need not wait"


# --- a label server that is slow


def test_f17_a_slow_label_server_delays_no_acknowledgement(ground: Ground) -> None:
    world = ground.world
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    world.sandbox.faults({"kind": "latency", "ms": 10_000, "store": "S1"})
    ground.receiver(proxied=False)
    ground.delivery(1).send_until_acknowledged()
    ground.stack.enter_context(
        Victim.worker(ground.direct, world.sandbox.url, ground.folder / "slow.log", lease=60)
    )
    eventually(lambda: world.calls() == 1, 30)

    began = time.monotonic()

    def acknowledged(number: int) -> float:
        delivery = Delivery(ground.port, product(number, 1, [variant(number)]))
        started = time.monotonic()
        delivery.send()
        assert delivery.statuses == [200]
        return time.monotonic() - started

    with ThreadPoolExecutor(4) as senders:
        took = sorted(senders.map(acknowledged, range(10, 110)))
    within = time.monotonic() - began
    Delivery(ground.port, product(200, 1, [variant(200)]), OTHER_SHOP).send_until_acknowledged()
    sent = time.monotonic()
    eventually(lambda: world.prices(OTHER_STORE) == {"C-200": "1.00"}, 60)
    waited = time.monotonic() - sent
    print(
        f"100 acknowledgements in {within:.1f} s: p50 {took[49]:.3f} s, p99 {took[98]:.3f} s;"
        f" the other store's label after {waited:.1f} s"
    )
    assert took[98] < 5, "Shopify gives up after 5 s"
    # A drain has some calls in flight, and after a slow one it is the other stores' turn.
    assert waited < 20


# --- a database that is restarted or killed under load


HOWS = {"restarted": None, "immediate shutdown": signal.SIGQUIT, "killed": signal.SIGKILL}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS.keys())
def test_f19_postgres_ends_under_load(
    place: Path, label_process: Sandbox, tmp_path: Path, how: signal.Signals | None
) -> None:
    """Durable, as in `up`: what was acknowledged must be there after a kill -9 of the server."""
    label_process.clear()
    server = EmbeddedPostgres.start(place / "data")
    try:
        server.create_database("esl")
        dsn, port = server.dsn("esl"), free_port()
        migrate(dsn)
        with (
            Victim.receiver(dsn, port, tmp_path / "receiver.log") as receiver,
            Victim.worker(dsn, label_process.url, tmp_path / "worker.log") as worker,
            client_of(label_process.url) as client,
        ):
            world = World(Buffer(PsycopgTransport(SecretStr(dsn))), dsn, label_process, client)
            world.map()
            stop, sent = threading.Event(), [list[Delivery]() for _ in range(4)]

            def shop(number: int) -> None:
                version = 0
                while not stop.is_set() or version < 5:
                    version += 1
                    body = product(number, version, [variant(number, price=f"{version}.00")])
                    sent[number - 1].append(Delivery(port, body))
                    sent[number - 1][-1].send_until_acknowledged()
                    time.sleep(0.02)

            with ThreadPoolExecutor(4) as shops:
                running = [shops.submit(shop, number) for number in (1, 2, 3, 4)]
                for _ in range(2):
                    time.sleep(1.5)
                    if how is not None:
                        os.kill(int((place / "data/postmaster.pid").read_text().split()[0]), how)
                    server.stop()
                    time.sleep(1)
                    server = EmbeddedPostgres.start(place / "data")
                time.sleep(1)
                stop.set()
                for one in running:
                    one.result(60)
            assert receiver.exit_code is None and worker.exit_code is None, "nobody restarted them"
            deliveries = [delivery for mine in sent for delivery in mine]
            statuses = [status for delivery in deliveries for status in delivery.statuses]
            kept = {row["webhook_id"] for row in world.sql("select webhook_id from esl.webhook_inbox")}
            assert {delivery.webhook_id for delivery in deliveries} <= kept
            assert set(statuses) == {200, 503}
            wanted = {f"C-{number}": f"{len(mine)}.00" for number, mine in enumerate(sent, 1)}
            began = time.monotonic()
            eventually(lambda: world.prices() == wanted and not world.waiting(), 30)
            print(
                f"{len(deliveries)} deliveries, {statuses.count(503)} answers 503 in two outages, none lost;"
                f" all labels {time.monotonic() - began:.1f} s after the last"
            )
            world.buffer.close()
    finally:
        server.stop()
