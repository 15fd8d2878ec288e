"""A label that somebody dedicates to it tells what its label server does: every mode correctly, and none by chance."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from esl_pipeline.hipoink.devices import Binding, Devices
from esl_pipeline.labels.checks import RESERVED
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.drift import compare_store
from esl_pipeline.stages.probe import DEFAULT_RULES, Probe, probe
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.world import RUN, STORE, World, product

pytestmark = pytest.mark.long

POLL = 7
RULES = replace(DEFAULT_RULES, wait=60)
PROBE = "PROBE-1"


class Clock:
    """The time of the sandbox's devices and the probe: passes while the probe sleeps, and a little with each look."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.slept = 0.0
        self.while_asleep: Callable[[], None] = lambda: None

    def read(self) -> float:
        self.now += 0.01
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self.while_asleep()


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def label_server(clock: Clock) -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(auto_trigger=False, clock=lambda: clock.now)) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def _anew(clock: Clock) -> None:
    clock.slept, clock.while_asleep = 0.0, lambda: None


class Bench:
    """A store with two products on labels, and a label for measuring."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.world, self.clock, self.sandbox = world, clock, world.sandbox
        self.mapping = world.map()
        world.settle(product(1), product(2))
        self.sandbox.hang(STORE)
        self.sandbox.hang(STORE, products=[], unbound=1, esl_codes=[PROBE])

    def floor(self, **floor: Any) -> None:
        self.sandbox.set_floor(STORE, **{"poll_seconds": POLL} | floor)

    def probe(self, label: str = PROBE, **options: Any) -> Probe:
        return probe(
            self.world.buffer,
            self.world.client,
            store=STORE,
            esl_code=label,
            by="ana",
            run_id=RUN,
            rules=options.pop("rules", RULES),
            clock=self.clock.read,
            sleep=self.clock.sleep,
            **options,
        )

    def server(self) -> dict[str, Any]:
        (row,) = self.world.sql("select * from esl.label_servers where server = 'default'")
        return row

    def shown(self) -> str | None:
        """What somebody would read on the label."""
        place = self.sandbox.places(STORE)[PROBE]
        return place["shown"] and str(place["shown"]["price"])


@pytest.fixture
def bench(world: World, clock: Clock) -> Bench:
    return Bench(world, clock)


@pytest.mark.parametrize("auto", [True, False], ids=["by itself", "trigger"])
def test_where_rows_move_it_tells_that_and_whether_it_took_the_trigger(bench: Bench, auto: bool) -> None:
    bench.floor(auto_trigger=auto, rows_move="on_refresh")
    done = bench.probe()
    assert (done.outcome, done.rows_move, done.auto_triggers, done.reason) == ("moves", True, auto, None)
    assert done.seconds is not None and 0.3 <= done.seconds <= POLL + 3
    kept = bench.server()
    assert (kept["rows_move"], kept["auto_triggers"]) == (True, auto)
    assert float(kept["probe_seconds"]) == done.seconds and kept["probed_at"] is not None
    assert bench.clock.slept < 8 * RULES.wait


@pytest.mark.parametrize("auto", [True, False], ids=["by itself", "trigger"])
def test_where_rows_do_not_move_nothing_is_claimed(bench: Bench, auto: bool) -> None:
    bench.floor(auto_trigger=auto, rows_move="never")
    done = bench.probe()
    assert (done.outcome, done.rows_move, done.auto_triggers, done.seconds) == ("silent", False, None, None)
    assert (bench.server()["rows_move"], bench.server()["auto_triggers"]) == (False, None)
    assert bench.clock.slept < 5 * RULES.wait


@pytest.mark.parametrize("auto", [True, False], ids=["by itself", "trigger"])
def test_where_rows_do_not_move_somebody_who_looks_tells_the_rest(bench: Bench, auto: bool) -> None:
    bench.floor(auto_trigger=auto, rows_move="never")
    asked = []

    def look(triggered: str, pushed: str) -> str | None:
        asked.append((triggered, pushed))
        return bench.shown()

    done = bench.probe(look=look)
    assert (done.rows_move, done.auto_triggers) == (False, auto) and len(asked) == 1
    assert bench.server()["auto_triggers"] is auto
    assert bench.probe(look=lambda *_: None).auto_triggers is None, "it shows neither"


@pytest.mark.parametrize("auto", [True, False], ids=["by itself", "trigger"])
@pytest.mark.parametrize("moves", ["on_poll", "on_push"])
def test_rows_that_move_for_another_reason_are_no_proof(bench: Bench, auto: bool, moves: str) -> None:
    bench.floor(auto_trigger=auto, rows_move=moves)
    done = bench.probe()
    assert (done.outcome, done.rows_move, done.auto_triggers) == ("itself", False, None), done
    assert bench.server()["rows_move"] is False


def test_a_row_that_moves_at_once_is_no_proof(bench: Bench) -> None:
    bench.floor(auto_trigger=True, rows_move="on_refresh", poll_seconds=0)
    done = bench.probe()
    assert done.outcome == "itself" and done.reason is not None and "with the call itself" in done.reason


def test_somebody_who_binds_the_label_anew_meanwhile_moves_its_row_and_proves_nothing(bench: Bench) -> None:
    bench.floor(rows_move="never")
    bench.probe(rules=replace(RULES, wait=5))
    pushes = bench.sandbox.state()["calls"]["create_multiple"]
    devices, code = Devices(bench.world.client), f"{RESERVED}-{PROBE}"

    def bind_once_after_the_push() -> None:
        if bench.sandbox.state()["calls"]["create_multiple"] > pushes and bench.clock.now > after[0] + 2:
            bench.clock.while_asleep = lambda: None
            devices.bind(STORE, Binding(PROBE, code))

    after = [bench.clock.now + RULES.quiet + 2]
    bench.clock.while_asleep = bind_once_after_the_push
    bench.world.sql("update esl.label_servers set rows_move = null")
    done = bench.probe()
    assert (done.outcome, done.rows_move) == ("failed", None), done
    assert done.reason is not None and "proves nothing" in done.reason
    assert bench.server()["rows_move"] is None


def test_our_own_trigger_meanwhile_is_not_taken_for_the_servers(bench: Bench) -> None:
    bench.floor(auto_trigger=False, rows_move="on_refresh")

    def refresh() -> None:
        bench.world.client.bind_task(STORE)
        bench.world.sql(
            "insert into esl.refreshes (claim_id, store_code, begun_at, outcome)"
            " values (gen_random_uuid(), 'S1', now(), 'accepted')"
        )

    bench.clock.while_asleep = refresh
    done = bench.probe()
    assert (done.outcome, done.auto_triggers) == ("moves", None), done


def test_a_label_in_use_is_not_taken(bench: Bench) -> None:
    (label,) = [esl for esl, place in bench.sandbox.places(STORE).items() if place["product_code"] == "C-1"]
    done = bench.probe(label)
    assert done.outcome == "failed" and done.reason == (
        f"{label} shows C-1: dedicate a label that shows no product (unbind it at the label server)"
    )
    assert bench.sandbox.places(STORE)[label]["product_code"] == "C-1"
    assert bench.server()["probed_at"] is None


def test_a_label_that_is_not_there_or_not_reached(bench: Bench) -> None:
    assert bench.probe("NO-SUCH").reason == "store S1 has no label NO-SUCH at its label server"
    bench.sandbox.change_devices(STORE, esl_codes=[PROBE], offline=True)
    assert "needs a label that is online" in str(bench.probe().reason)
    assert bench.clock.slept == 0


def test_a_label_server_that_fails_ends_the_probe(bench: Bench) -> None:
    bench.floor()
    bench.clock.while_asleep = lambda: bench.sandbox.faults({"kind": "status", "status": 500})
    done = bench.probe()
    assert done.outcome == "failed" and "500" in str(done.reason)
    bench.sandbox.faults()
    bench.clock.while_asleep = lambda: None
    assert bench.probe().outcome == "moves", "and the next one begins anew"


def test_one_probe_of_a_store_at_a_time(bench: Bench) -> None:
    bench.floor()
    inner: list[Probe] = []

    def beside() -> None:
        bench.clock.while_asleep = lambda: None
        inner.append(bench.probe())

    bench.clock.while_asleep = beside
    assert bench.probe().outcome == "moves"
    assert inner[0].outcome == "busy" and str(inner[0].reason).startswith("ana probes the store since")


def test_a_scheduled_probe_only_measures_what_is_known(bench: Bench) -> None:
    bench.floor(auto_trigger=False, rows_move="on_refresh")
    bench.probe()
    slept = bench.clock.slept
    done = bench.probe(is_full=False)
    assert (done.outcome, done.auto_triggers, done.rounds) == ("moves", False, 1)
    assert bench.clock.slept - slept < slept / 2


def test_one_late_refresh_does_not_undo_what_is_known_but_three_do(bench: Bench) -> None:
    bench.floor(auto_trigger=False, rows_move="on_refresh")
    bench.probe()
    bench.sandbox.change_devices(STORE, esl_codes=[PROBE], asleep=True)
    known = []
    for _ in range(3):
        done = bench.probe(is_full=False, rules=replace(RULES, wait=20))
        assert (done.outcome, done.reason) == ("silent", "its row does not move within 20 s")
        known.append(bench.server()["rows_move"])
    assert known == [True, True, False]


def test_a_server_of_2020_is_not_probed(world: World, clock: Clock) -> None:
    with running_sandbox(generation=2020) as old, client_of(old.url, retries=1) as client:
        bench = Bench.__new__(Bench)
        bench.world, bench.clock, bench.sandbox = replace(world, client=client, sandbox=old), clock, old
        world.map()
        done = bench.probe()
    assert done.outcome == "failed" and "does not know this action" in str(done.reason)


def test_the_probes_product_is_left_alone(bench: Bench) -> None:
    bench.floor()
    bench.probe()
    bench.world.buffer.mapping_update(bench.mapping, {"settings": {"owns_store": True, "guard_labels": 1000}})
    bench.world.settle()
    drift = compare_store(bench.world.buffer, bench.world.client, store=STORE, run_id=RUN)
    assert (drift.complete, drift.listed, drift.foreign_count, drift.requeued) == (True, 2, 0, 0)
    bench.world.settle()
    assert f"{RESERVED}-{PROBE}" in bench.world.labels()
    (accuracy,) = bench.world.buffer.accuracy()
    assert (accuracy["publishable"], accuracy["accurate"], accuracy["unsettled"]) == (2, 2, 0)


@pytest.mark.parametrize("code", ["ESLPROBE", "eslprobe-AD1", "EslProbe.2"])
def test_no_variant_may_have_a_reserved_code(world: World, code: str) -> None:
    world.map()
    world.settle(product(1, variants=[{**product(1)["variants"][0], "barcode": code}]))
    assert world.findings() == {("1", "code_reserved")} and world.labels() == {}
    (row,) = world.sql("select esl.is_reserved(%s) as so, esl.is_reserved('ESL-1') as other", code)
    assert (row["so"], row["other"]) == (True, False)
