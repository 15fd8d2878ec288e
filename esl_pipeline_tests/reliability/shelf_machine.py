"""G9 as a state machine: what the pipeline says of physical labels, against the pictures that the sandbox has on them.

test_shelf_machine.py runs it briefly; for as long as you like, or against code that is broken on purpose:

    python -m esl_pipeline_tests.reliability.shelf_machine [--examples 2000] [--seed N] [--break NAME]

What no call tells stays outside of it: that somebody binds a label anew to what it was bound to, gives a template
other fields, or writes to the label server what we do not know of.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import psycopg
import psycopg.rows
from hypothesis import seed as seeded
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, invariant, rule
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.hipoink.devices import Binding, Devices
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.devices import read_devices
from esl_pipeline.stages.refresh import RefreshRules, refresh_stores
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.reliability.light import light_evaluation
from esl_pipeline_tests.reliability.machine import SLOW, Parts, Site, machine_settings
from esl_pipeline_tests.scratch import scratch
from esl_pipeline_tests.world import RUN, STORE, World, drain_round, product, variant

STEPS, BATCH = 15, 25
AT_MOST = 400
NO_PRICE = 2
AT_ONCE = RefreshRules(gap=0, rise=0)
NUMBERS = st.integers(1, 3)
PRICES = st.sampled_from(["1.00", "2.00", "3.00"])
LABELS = st.integers(0, 7)
HOURS = ["costs", "triggers", "reads", "passes"]
# A label shows a price when somebody could read it there; what is claimed from the sixth rung on.
CLAIMED = 6
AFFLICTIONS: list[dict[str, Any]] = [
    {"offline": True},
    {"asleep": True},
    {"fallen": True},
    {"battery": 2_500},
    {"battery": 2_000},
    {"offline": False},
    {"asleep": False},
    {"offline": False, "asleep": False, "battery": 3_000},
    {"offline": False, "asleep": False, "battery": 3_000},
]
LOST: dict[str, Any] = {"kind": "reset", "apply": True, "times": 1}


@dataclass
class Shelf:
    """What is real: one buffer and one label server for all examples, emptied before each; and what was claimed."""

    parts: Parts
    claims: Counter[int] = field(default_factory=Counter)

    @property
    def world(self) -> World:
        return self.parts.world


class ShelfMachine(RuleBasedStateMachine):
    """A store, its labels and the people before them."""

    shelf: Shelf

    @initialize(
        rows_move=st.sampled_from(["on_refresh"] * 4 + ["never", "on_poll", "on_poll", "on_push"]),
        auto=st.sampled_from([False, False, True]),
        is_probed=st.sampled_from([True] * 5 + [False]),
        poll=st.sampled_from([0, 0, 600]),
        lingers=st.sampled_from([0, 900]),
        priceless=st.sampled_from([False, False, True]),
    )
    def opens(
        self, *, rows_move: str, auto: bool, is_probed: bool, poll: int, lingers: int, priceless: bool
    ) -> None:
        """Three products, with a label or two each; the last may be on a template without a price."""
        self.shelf.parts.empty()
        world = self.world = self.shelf.world
        self.version, self.devices = 0, Devices(world.client)
        world.map(settings={"guard_labels": 1_000_000, "templates_show_price": not priceless})
        floor = {"auto_trigger": auto, "rows_move": rows_move, "poll_seconds": poll, "offline_after": lingers}
        world.sandbox.set_floor(STORE, **floor)
        if is_probed:
            world.sql(
                "insert into esl.label_servers (server, rows_move, auto_triggers) values ('default', %s, %s)",
                rows_move == "on_refresh",
                auto,
            )
        for number in (1, 2, 3):
            self._says(number, "1.00")
        drain_round(world.buffer, world.client, SLOW)
        self.labels = world.sandbox.hang(STORE, products=["C-1", "C-1", "C-2"], aps=["AP-1", "AP-2"])
        self.labels += world.sandbox.hang(STORE, products=["C-3"], template=NO_PRICE if priceless else None)
        self.reads()

    @rule(number=NUMBERS, price=PRICES)
    def costs(self, number: int, price: str) -> None:
        self._says(number, price)
        drain_round(self.world.buffer, self.world.client, SLOW)

    @rule(number=NUMBERS, price=PRICES)
    def costs_without_an_answer(self, number: int, price: str) -> None:
        """The label server takes the price, and nobody hears of it for a while."""
        self._says(number, price)
        self.world.sandbox.faults(LOST)
        drain_round(self.world.buffer, self.world.client, SLOW)
        self.world.sandbox.faults()

    @rule()
    def is_tried_again(self) -> None:
        self.world.sql("update esl.sync_queue set next_attempt_at = now()")
        drain_round(self.world.buffer, self.world.client, SLOW)

    @rule(number=NUMBERS)
    def leaves_the_range(self, number: int) -> None:
        """Its label is removed, which unbinds; it comes back with its next price."""
        self.version += 1
        self.world.update(product(number, self.version, status="archived"))
        drain_round(self.world.buffer, self.world.client, SLOW)
        self.reads()

    @rule()
    def triggers(self) -> None:
        self.world.sandbox.tick(2)
        refresh_stores(self.world.buffer, self.world.client, AT_ONCE, run_id=RUN)

    @rule()
    def reads(self) -> None:
        """Not in the second in which a row moved last, nor is it triggered then: times have no fractions there."""
        self.world.sandbox.tick(2)
        read_devices(self.world.buffer, self.devices, store=STORE, run_id=RUN)

    @rule(number=NUMBERS, what=st.lists(st.sampled_from(HOURS), min_size=4, max_size=7))
    def hours(self, number: int, what: list[str]) -> None:
        """New prices of a product, triggers and passes in whatever order, as they are beside each other on any day."""
        for doing in what:
            if doing == "costs":
                self.costs(number, f"{4 + self.version}.00")
            elif doing == "passes":
                self.world.sandbox.tick(700)
            else:
                getattr(self, doing)()

    @rule(number=NUMBERS, what=st.lists(st.sampled_from(HOURS), min_size=6, max_size=10))
    def a_day(self, number: int, what: list[str]) -> None:
        """More of it."""
        self.hours(number=number, what=what)

    @rule(seconds=st.sampled_from([2, 60, 700, 40_000]))
    def passes(self, seconds: int) -> None:
        self.world.sandbox.tick(seconds)

    @rule(label=LABELS, affliction=st.sampled_from(AFFLICTIONS))
    def befalls(self, label: int, affliction: dict[str, Any]) -> None:
        self.world.sandbox.change_devices(STORE, esl_codes=[self._label(label)], **affliction)

    @rule(ap=st.sampled_from(["AP-1", "AP-2"]), dead=st.booleans())
    def access_point(self, ap: str, *, dead: bool) -> None:
        self.world.sandbox.set_ap(STORE, ap, dead=dead)

    @rule(label=LABELS, number=NUMBERS)
    def is_bound(self, label: int, number: int) -> None:
        """To another product than it was, and somebody reads that."""
        code = self._label(label)
        if self._pictures()[code]["product_code"] != f"C-{number}" and f"C-{number}" in self.world.labels():
            self.devices.bind(STORE, Binding(code, f"C-{number}"))
        self.reads()

    @rule(label=LABELS)
    def is_unbound(self, label: int) -> None:
        self.devices.unbind(STORE, self._label(label))
        self.reads()

    @rule(number=NUMBERS, shown=st.booleans())
    def is_hung(self, number: int, *, shown: bool) -> None:
        if f"C-{number}" in self.world.labels() and len(self.labels) < 8:
            self.labels += self.world.sandbox.hang(STORE, products=[f"C-{number}"], shown=shown)

    @rule(number=NUMBERS)
    def is_looked_at(self, number: int) -> None:
        """Somebody compares all labels of a product with what the ledger says, and tells the truth."""
        code = f"C-{number}"
        ledger = self._ledger()
        pictures = [place for place in self._pictures().values() if place["product_code"] == code]
        if code not in ledger or not pictures:
            return
        is_right = all(_price(place, code) == ledger[code] for place in pictures)
        self.world.sql(
            "insert into esl.seen_labels (store_code, code, label_hash, by)"
            " select store_code, code, case when %s then label_hash end, 'anna' from esl.hipoink_products"
            " where code = %s",
            is_right,
            code,
        )

    @invariant()
    def nothing_is_claimed_that_is_not_on_the_label(self) -> None:
        """G9."""
        if not hasattr(self, "labels"):
            return
        found, _ = self.world.buffer.shelf_list(store=STORE)
        ledger, pictures = self._ledger(), self._pictures()
        for row in found:
            if row["rung"] is None or row["rung"] < CLAIMED:
                continue
            self.shelf.claims[row["rung"]] += 1
            place = pictures[row["esl_code"]]
            assert _price(place, row["product_code"]) == ledger[row["product_code"]], (row, place)

    def _says(self, number: int, price: str) -> None:
        self.version += 1
        self.world.update(product(number, self.version, [variant(number, price=price)]))

    def _label(self, number: int) -> str:
        return self.labels[number % len(self.labels)]

    def _ledger(self) -> dict[str, str]:
        rows = self.shelf.parts.sql("select code, label ->> 'pp' as price from esl.hipoink_products")
        return {row["code"]: row["price"] for row in rows}

    def _pictures(self) -> dict[str, dict[str, Any]]:
        answer = self.world.sandbox.http.get("/sandbox/shelf", params={"store": STORE}).raise_for_status()
        return {place["esl_code"]: place for place in answer.json()}


def _price(place: Mapping[str, Any], code: str) -> str | None:
    """The price of a product that a shopper reads on a label; None: there is none of it."""
    shown = place["shown"]
    return shown["price"] or None if shown and shown["code"] == code else None


# Each is to be found within so many examples, or the machine's silence says nothing.
BREAKS: dict[str, tuple[str, str]] = {
    "order": (
        "a row that has moved is taken to have moved after the push",
        "create function esl.broken() returns trigger language plpgsql as $$ begin"
        " new.moved_after := new.moved_at; return new; end $$;"
        " create trigger broken before insert or update on esl.devices for each row execute function esl.broken();",
    ),
    "rows": (
        "every label server's rows are taken to move when labels do",
        "create function esl.broken() returns trigger language plpgsql as $$ begin"
        " new.rows_move := true; return new; end $$;"
        " create trigger broken before insert or update on esl.label_servers"
        " for each row execute function esl.broken();",
    ),
    "template": (
        "every template is taken to have a price",
        "create function esl.broken() returns trigger language plpgsql as $$ begin"
        """ new.settings := new.settings || '{"templates_show_price": true}'; return new; end $$;"""
        " create trigger broken before insert or update on esl.store_mappings"
        " for each row execute function esl.broken();",
    ),
    "binding": (
        "a label is taken to have been bound to its product for ever",
        "create function esl.broken() returns trigger language plpgsql as $$ begin"
        " new.bound_at := new.bound_at - interval '1 day'; return new; end $$;"
        " create trigger broken before insert or update on esl.devices for each row execute function esl.broken();",
    ),
}


@contextmanager
def shelf_parts(buffer: Buffer, dsn: str) -> Iterator[Shelf]:
    """The real things that a machine works on."""
    with ExitStack() as stack:
        labels = stack.enter_context(LabelStore(auto_trigger=False))
        sandbox = stack.enter_context(running_sandbox(labels))
        client = stack.enter_context(client_of(sandbox.url, retries=1, timeout_seconds=5))
        connection = stack.enter_context(
            psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row)
        )
        stack.enter_context(light_evaluation())
        site = Site(labels, World(buffer, dsn, sandbox, client, SLOW))
        yield Shelf(Parts({"default": site}, connection, []))


@contextmanager
def prepared(broken: str | None = None) -> Iterator[type[ShelfMachine]]:
    """A machine on a server of its own, with one of BREAKS."""
    with EmbeddedPostgres.temporary(under=scratch()) as server:
        server.create_database("shelf")
        dsn = server.dsn("shelf")
        migrate(dsn)
        if broken is not None:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(BREAKS[broken][1].encode())
        buffer = Buffer(PsycopgTransport(SecretStr(dsn)))
        try:
            with shelf_parts(buffer, dsn) as shelf:
                yield type("ShelfMachine", (ShelfMachine,), {"shelf": shelf})
        finally:
            buffer.close()


def run_batch(machine: type[ShelfMachine], seed: int, examples: int = BATCH) -> str | None:
    """Run some examples; None, or what was claimed and is not so."""
    chosen = settings(
        machine_settings(examples, STEPS, fixed=False, shrink=False), report_multiple_bugs=False
    )
    try:
        seeded(seed)(get_state_machine_test(machine, settings=chosen))()
    except AssertionError as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return None


def run(examples: int, seed: int, broken: str | None) -> int:
    """Run so many examples, or until something is wrong; how many times that was."""
    began = time.monotonic()
    with prepared(broken) as machine:
        for done in range(0, examples, BATCH):
            wrong = run_batch(machine, seed + done // BATCH)
            claims = dict(sorted(machine.shelf.claims.items()))
            seconds = time.monotonic() - began
            print(
                f"seed {seed + done // BATCH}: {done + BATCH} examples, {seconds:.0f} s; claims by rung: {claims}"
            )
            sys.stdout.flush()
            if wrong is not None:
                print(wrong)
                return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--break", dest="broken", choices=BREAKS)
    options = parser.parse_args()
    failures = run(options.examples, options.seed, options.broken)
    sys.exit(bool(failures) if options.broken is None else not failures)


if __name__ == "__main__":
    main()
