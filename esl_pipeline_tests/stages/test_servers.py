"""Two label servers: a store is at one of them, each has a drain of its own, and neither waits for the other."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.stages.drain import DrainLimits, Round, drain, lease_of, read_round
from esl_pipeline.stages.drift import compare_store
from esl_pipeline.stages.push import push_batch
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, SHOP, World, map_shop, product, variant

pytestmark = pytest.mark.long

OTHER_SHOP = "other-shop.myshopify.com"
NAMES = ("default", "north")


@dataclass
class Two:
    """One buffer, and a world at each of two label servers."""

    default: World
    north: World

    def settle(self) -> None:
        """Drain both until nothing is due."""
        eventually(
            lambda: [world.round().did_something for world in (self.default, self.north)] == [False] * 2
        )

    def mapping(self, store: str) -> dict[str, Any]:
        found = {mapping["hipoink_store_code"]: mapping for mapping in self.default.buffer.mapping_list()}
        return found[store]


@pytest.fixture
def two(world: World) -> Iterator[Two]:
    shared = Buffer(world.buffer.transport, label_servers=NAMES)
    with running_sandbox() as sandbox, client_of(sandbox.url, retries=1, timeout_seconds=0.5) as client:
        north = World(shared.at("north"), world.dsn, sandbox, client)
        yield Two(replace(world, buffer=shared), north)


def both(two: Two) -> None:
    """One shop that feeds a store at each."""
    two.default.map(store="S1")
    two.default.map(store="N1", label_server="north")


def down(sandbox: Sandbox) -> None:
    sandbox.faults({"kind": "status", "status": 503})


# Which store is where


def test_a_store_is_at_the_default_until_a_mapping_names_another(two: Two) -> None:
    both(two)
    buffer = two.default.buffer
    assert [StoreMapping.of(row).label_server for row in buffer.mapping_list()] == ["default", "north"]
    moved = buffer.mapping_update(two.mapping("S1")["id"], {"label_server": "north"}, by="me")
    assert moved is not None and moved["label_server"] == "north" and "remark" not in moved
    assert buffer.mapping_update(moved["id"], {"is_dry_run": True})["label_server"] == "north"  # type: ignore[index]
    (_, change, *_) = buffer.mapping_history()
    assert [change[when]["label_server"] for when in ("old", "new")] == ["default", "north"]


def test_a_store_that_is_fed_by_others_cannot_be_named_at_another_server(two: Two) -> None:
    both(two)
    for refused in (
        lambda: map_shop(two.default.buffer, OTHER_SHOP, "N1", label_server="default"),
        lambda: map_shop(two.default.buffer, OTHER_SHOP, "S1", label_server="north"),
    ):
        with pytest.raises(BufferError, match=f"where {SHOP} feeds it: a store is at one server") as caught:
            refused()
        assert caught.value.code == "23P01"
    joined = map_shop(two.default.buffer, OTHER_SHOP, "N1")
    assert joined["label_server"] == "north", "who names none joins the store where it is"
    assert map_shop(two.default.buffer, "third.myshopify.com", "N1", label_server="north")


@pytest.mark.parametrize("name", ["https://evil.example", "North", "", "a_b", "-a", "a" * 33, "a\nb"])
def test_s15_the_buffer_keeps_no_address_as_a_name(two: Two, name: str) -> None:
    with pytest.raises(BufferError):
        two.default.map(label_server=name)
    assert two.default.buffer.mapping_list() == []


# Each label at its own server


def test_one_shop_feeds_stores_at_both_and_each_delivery_is_read_once(two: Two) -> None:
    both(two)
    two.default.update(*[product(n) for n in range(1, 4)])
    first, second = read_round(two.north.buffer, run_id="n"), read_round(two.default.buffer, run_id="d")
    assert (len(first.events), len(second.events)) == (3, 0), (
        "whichever comes first, for all stores of the shop"
    )
    assert {
        name: due.queue for name, due in two.default.buffer.due_everywhere().servers.items()
    } == dict.fromkeys(NAMES, True)
    two.settle()
    for world, store in ((two.default, "S1"), (two.north, "N1")):
        assert set(world.labels(store)) == {"C-1", "C-2", "C-3"}
        assert list(world.sandbox.state()["labels"]) == [store]
    assert two.default.inbox() == ["done"] * 3


def test_the_refreshes_too_are_each_servers_own(two: Two) -> None:
    both(two)
    two.default.update(product(1))
    two.settle()
    assert [world.sandbox.state()["calls"]["bind_task"] for world in (two.default, two.north)] == [1, 1]
    assert two.default.sql("select store_code from esl.refreshes where outcome <> 'accepted'") == []


def test_what_is_due_is_told_for_each(two: Two) -> None:
    two.default.map(store="S1")
    map_shop(two.default.buffer, OTHER_SHOP, "N1", label_server="north")

    def due() -> dict[str, bool]:
        return {name: due.anything for name, due in two.default.buffer.due_everywhere().servers.items()}

    assert due() == {"default": False, "north": False}
    two.default.update(product(7), shop=OTHER_SHOP)
    assert due() == {"default": False, "north": True}
    assert two.default.round().did_something is False
    assert two.north.round().did_something is True
    assert set(two.north.labels("N1")) == {"C-7"} and two.default.calls() == 0


def test_a_shop_without_an_active_mapping_or_at_an_unknown_server_belongs_to_the_first(two: Two) -> None:
    map_shop(two.default.buffer, SHOP, "N1", label_server="north", is_active=False)
    map_shop(two.default.buffer, OTHER_SHOP, "X1", label_server="gone")
    two.default.update(product(1))
    two.default.update(product(2), shop=OTHER_SHOP)
    assert two.default.buffer.due_everywhere().elsewhere == {"gone": ["X1"]}
    assert two.north.round().did_something is False
    assert len(two.default.round().events) == 2
    assert two.default.inbox() == ["done"] * 2
    assert two.default.queue()["C-2"]["state"] == "ready", "its label waits"
    assert two.default.buffer.due().anything is False
    assert two.default.calls() == two.north.calls() == 0

    only = two.default.buffer.at("gone")
    assert only.due().queue is True
    claim = only.push_claim(limit=9, lease_seconds=9, max_attempts=9, run_id=RUN, asset=ASSET)
    assert claim is not None and claim.store_code == "X1"


# Neither waits for the other


def test_g7_one_that_is_down_costs_the_other_nothing(two: Two) -> None:
    both(two)
    down(two.default.sandbox)
    two.default.update(*[product(n) for n in range(1, 5)])
    for _ in range(6):
        two.default.sql("update esl.sync_queue set next_attempt_at = now() where state = 'ready'")
        two.default.round(probe=60, max_probe=60)
    assert two.default.buffer.due().outage is not None
    assert two.north.buffer.due().outage is None

    assert two.north.round().was_accepted
    assert set(two.north.labels("N1")) == {f"C-{n}" for n in range(1, 5)}
    (outage,) = two.default.buffer.status()["outages"]
    assert outage["server"] == "default"

    two.default.sandbox.clear()
    two.default.sql("update esl.label_servers set probe_at = now()")
    two.default.sql("update esl.sync_queue set next_attempt_at = now()")
    two.settle()
    assert set(two.default.labels("S1")) == {f"C-{n}" for n in range(1, 5)}


def test_g7_what_one_refuses_is_no_fault_of_the_other(two: Two) -> None:
    """Several stores refused and nothing accepted is the server's trouble: of that server alone."""
    for n in range(3):
        map_shop(two.default.buffer, SHOP, f"N{n}", label_server="north")
    map_shop(two.default.buffer, SHOP, "S1")
    two.north.sandbox.faults({"kind": "error", "error_msg": "no"})
    two.default.sandbox.faults({"kind": "error", "error_msg": "no", "times": 1})
    two.default.update(product(1))
    two.north.round()
    pushed = push_batch(two.default.buffer, two.default.client, RULES, run_id=RUN, asset=ASSET)
    assert pushed["outcome"].tolist() == ["rejected"]
    assert two.default.buffer.due().outage is None, "one refusal there is the store's"
    eventually(lambda: two.default.round() and two.default.labels("S1"))


def test_the_drains_of_both_run_side_by_side(two: Two) -> None:
    both(two)
    two.north.sandbox.faults({"kind": "latency", "ms": 300})
    two.default.update(*[product(n) for n in range(1, 6)])
    rounds: dict[str, list[Round]] = {name: [] for name in NAMES}

    def run(world: World) -> None:
        name = world.buffer.label_server
        drain(
            *(world.buffer, world.client, RULES, DrainLimits(idle=0.3)),
            run_id=name,
            holder=name,
            asset=ASSET,
            on_round=rounds[name].append,
            on_idle=lambda: None,
        )

    threads = [threading.Thread(target=run, args=(world,)) for world in (two.default, two.north)]
    for thread in threads:
        thread.start()
    eventually(lambda: all(two.default.buffer.at(name).due().drain == name for name in NAMES))
    for thread in threads:
        thread.join(20)
    assert sum(len(done.events) for of_one in rounds.values() for done in of_one) == 5, "each read once"
    assert len(two.default.labels("S1")) == len(two.north.labels("N1")) == 5
    assert not two.default.buffer.lease_release(name=lease_of("north"), holder="north", seconds=20)[
        "released"
    ]


def test_a_rise_has_its_jump_whatever_the_other_server_did(two: Two) -> None:
    """Turns are counted at each server: calls at one give none at the other."""
    both(two)
    two.default.update(product(1))
    two.settle()
    parties = two.default.sql("select party from esl.turns where queue = 'bulk' order by 1")
    assert [row["party"] for row in parties] == ["default", "north"]


# A store moves


def test_a_store_that_moves_is_pushed_as_a_whole_to_the_new_server(two: Two) -> None:
    two.default.map(store="S1")
    two.default.settle(product(1), product(2, variants=[variant(2, price="2.00")]))
    moved = two.default.buffer.mapping_update(two.mapping("S1")["id"], {"label_server": "north"})
    assert moved is not None
    assert moved["remark"] == (
        "store S1 is at label server north now, and all of it is pushed there; its 2 labels at default stay as they "
        "are: nobody here changes or removes them any more"
    )
    assert [world.buffer.due().anything for world in (two.default, two.north)] == [False, True]
    two.settle()
    assert two.north.prices("S1") == {"C-1": "1.00", "C-2": "2.00"} == two.default.prices("S1")
    two.default.settle(product(1, 2, [variant(1, price="3.00")]))
    two.settle()
    assert (two.north.prices("S1")["C-1"], two.default.prices("S1")["C-1"]) == ("3.00", "1.00")
    assert two.north.buffer.accuracy()[0]["accurate"] == 2


def test_what_another_server_has_removed_is_no_strangers_when_the_store_returns(two: Two) -> None:
    two.default.map(store="S1")
    two.default.settle(product(1), product(2))
    mapping = two.mapping("S1")["id"]
    two.default.buffer.mapping_update(mapping, {"label_server": "north"})
    two.settle()
    two.default.update(product(2, 2, status="archived"))
    two.settle()
    assert (set(two.north.labels("S1")), set(two.default.labels("S1"))) == ({"C-1"}, {"C-1", "C-2"})

    two.default.buffer.mapping_update(mapping, {"label_server": "default"})
    two.settle()
    drift = compare_store(two.default.buffer, two.default.client, store="S1", run_id=RUN)
    assert (drift.taken_back, drift.foreign) == (["C-2"], [])
    two.settle()
    assert set(two.default.labels("S1")) == {"C-1"}


def test_a_label_that_is_under_way_while_its_store_moves_goes_out_again(two: Two) -> None:
    two.default.map(store="S1")
    two.default.settle(product(1))
    two.default.update(product(1, 2, [variant(1, price="2.00")]), product(2))
    read_round(two.default.buffer, run_id=RUN)

    class Moving:
        """The client of the old server; the store moves while its call is on its way."""

        def __getattr__(self, name: str) -> Any:
            call = getattr(two.default.client, name)

            def called(*given: Any) -> Any:
                mapping = two.mapping("S1")
                if mapping["label_server"] == "default":
                    two.default.buffer.mapping_update(mapping["id"], {"label_server": "north"})
                return call(*given)

            return called

    done = replace(two.default, client=Moving()).round()  # type: ignore[arg-type]
    assert done.was_accepted
    two.settle()
    assert two.north.prices("S1") == {"C-1": "2.00", "C-2": "1.00"}
    assert two.default.queue() == {}


def test_a_new_label_that_is_claimed_in_the_moment_of_the_move_goes_out_again(two: Two) -> None:
    """The claim is not committed yet when the store is moved."""
    two.default.map(store="S1")
    two.default.update(product(1))
    read_round(two.default.buffer, run_id=RUN)
    mapping, p = two.mapping("S1")["id"], _claim_arguments()
    with (
        psycopg.connect(two.default.dsn) as claiming,
        ThreadPoolExecutor(1) as pool,
    ):
        (claimed,) = claiming.execute("select public.esl_push_claim(%s)", [Jsonb(p)]).fetchone() or ({},)
        assert [row["code"] for row in claimed["rows"]] == ["C-1"]
        moving = pool.submit(two.default.buffer.mapping_update, mapping, {"label_server": "north"})
        time.sleep(0.3)
        claiming.commit()
        moving.result(10)
    batch = two.default.buffer.transport
    rows = [{"code": "C-1", "generation": claimed["rows"][0]["generation"]}]
    batch.call(
        "esl_push_finish", p | {"push_id": p["claim_id"], "store_code": "S1", "rows": rows} | _ACCEPTED
    )
    two.settle()
    assert two.north.prices("S1") == {"C-1": "1.00"} and two.default.queue() == {}


_ACCEPTED = {"outcome": "accepted", "operation": "upsert", "duration_ms": 5}


def _claim_arguments() -> dict[str, Any]:
    return {
        **{"claim_id": str(uuid4()), "limit": 10, "lease_seconds": 60, "max_attempts": 5, "concurrency": 4},
        **{"run_id": RUN, "asset": ASSET, "label_server": "default"},
    }


def test_what_is_to_go_is_removed_from_the_new_server_as_well(two: Two) -> None:
    """A removal that waits when the store moves is harmless there, and ends."""
    two.default.map(store="S1")
    two.default.settle(product(1), product(2))
    two.default.delete(2, 5)
    read_round(two.default.buffer, run_id=RUN)
    two.default.buffer.mapping_update(two.mapping("S1")["id"], {"label_server": "north"})
    two.settle()
    assert set(two.north.labels("S1")) == {"C-1"} and two.default.queue() == {}


def test_a_store_that_paused_at_the_old_server_is_tried_at_once_at_the_new(two: Two) -> None:
    two.default.map(store="S1")
    two.default.sql(
        "insert into esl.store_health (store_code, refusals, pauses, until, reason)"
        " values ('S1', 9, 3, now() + interval '1 hour', 'no')"
    )
    two.default.update(product(1))
    assert two.default.round().results == []
    two.default.buffer.mapping_update(two.mapping("S1")["id"], {"label_server": "north"})
    two.settle()
    assert set(two.north.labels("S1")) == {"C-1"}


# What people see


def test_the_status_tells_each_server_and_its_stores(two: Two) -> None:
    both(two)
    two.default.update(product(1))
    two.settle()
    status = two.default.buffer.status()
    assert [(s["server"], s["stores"]) for s in status["servers"]] == [("default", ["S1"]), ("north", ["N1"])]
    assert {s["hipoink_store_code"]: s["label_server"] for s in status["stores"]} == {
        "S1": "default",
        "N1": "north",
    }
    assert {place["store_code"]: place["label_server"] for place in two.default.buffer.trace("C-1")} == {
        "S1": "default",
        "N1": "north",
    }
