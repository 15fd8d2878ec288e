"""Is the state machine worth its time? Each deliberate break of the code must be found within so many examples.

    python -m esl_pipeline_tests.reliability.breaks [name ...] [--examples 200] [--seed N]

A break is made where the text of the code does not matter: by a trigger on the migrated test database, or at a door
of the buffer. So it stays the same break when the code is written anew.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import psycopg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline_tests.reliability.long_machine import prepared, run_batch

BATCH = 10
AT_MOST = 200


@dataclass(frozen=True)
class Break:
    """What is broken, by SQL after the migration or by a patch while the machine runs."""

    what: str
    sql: str = ""
    patch: Callable[[], AbstractContextManager[object]] = nullcontext


def _trigger(table: str, when: str, body: str) -> str:
    return f"""
        create function esl.broken() returns trigger language plpgsql as $$ begin {body} end $$;
        create trigger broken {when} on esl.{table} for each row execute function esl.broken();
    """


@contextmanager
def _last_arrival_wins() -> Iterator[None]:
    """Every delivery of a product claims to be newer than all before it."""
    merge, began, arrived = Buffer.variants_merge, datetime.now(UTC) - timedelta(hours=1), 0

    def newest(self: Buffer, *, products: Any, variants: Any, **rest: Any) -> Any:
        nonlocal arrived
        arrived += 1
        at = {"version_at": (began + timedelta(milliseconds=arrived)).isoformat()}
        return merge(self, products=[p | at for p in products], variants=[v | at for v in variants], **rest)

    with mock.patch.object(Buffer, "variants_merge", newest):
        yield


@contextmanager
def _a_part_is_the_whole() -> Iterator[None]:
    """A read that breaks off concludes as if it had come to its end: what it lacks is gone."""
    merge = Buffer.snapshot_merge
    as_of: dict[str, str] = {}

    def noted(self: Buffer, *, snapshot_id: str, **rest: Any) -> Any:
        for row in rest["products"]:
            as_of[snapshot_id] = row["triggered_at"]
        return merge(self, snapshot_id=snapshot_id, **rest)

    def concluded(self: Buffer, *, snapshot_id: str, reason: str) -> Any:
        if snapshot_id in as_of:
            self.snapshot_finish(snapshot_id=snapshot_id, as_of=as_of[snapshot_id], counts={})
        return {"abandoned": True}

    with mock.patch.multiple(Buffer, snapshot_merge=noted, snapshot_abandon=concluded):
        yield


BREAKS: Mapping[str, Break] = {
    "version fence": Break("the last delivery of a product wins, not the newest", patch=_last_arrival_wins),
    "in doubt": Break(
        "a push without an answer is taken for one that never was: what was not accepted does not hang",
        _trigger(
            "sync_queue",
            "before insert or update",
            "new.in_doubt := new.in_doubt and new.state = 'leased'; return new;",
        ),
    ),
    "claim": Break(
        "a variant that is held back loses its claim to its code",
        _trigger(
            "labels",
            "before insert or update",
            "if new.state = 'held' then new.code := null; end if; return new;",
        ),
    ),
    "absence": Break("a read that broke off removes what it has not read", patch=_a_part_is_the_whole),
    "blame": Break(
        "whatever the label server refuses is the label's own fault",
        _trigger(
            "sync_queue",
            "before update",
            "if old.state = 'leased' and new.state = 'ready' and new.last_error like '%(error_code%' then"
            " new.state := 'failed'; end if; return new;",
        ),
    ),
    "pairs": Break(
        "a place is known by its code alone: a label of one store closes the findings of every store",
        _trigger(
            "hipoink_products",
            "after insert or update",
            "update esl.findings set resolved_at = now() where check_name = 'duplicate_code' and value = new.code"
            " and resolved_at is null; return null;",
        ),
    ),
    "slots": Break(
        "calls that are in flight are not counted: each begins at once",
        _trigger("calls", "before insert", "return null;"),
    ),
    "another server": Break(
        "what hung at the old label server is taken to hang at the new one",
        _trigger(
            "sync_queue",
            "before insert",
            "if new.in_doubt and new.priority = 2 then return null; end if; return new;",
        ),
    ),
    "grace": Break(
        "a removal waits for nothing",
        _trigger(
            "graces",
            "before insert or update",
            "new.until := coalesce(new.until, clock_timestamp()) - interval '1 day';"
            " new.since := coalesce(new.since, clock_timestamp()) - interval '1 day'; return new;",
        ),
    ),
    "taken": Break(
        "an id is whoever's names it last: the product goes from the shop that had it",
        _trigger(
            "product_versions",
            "after insert or update",
            "update esl.products set removed = true, due = true, revision = nextval('esl.revision')"
            " where product_id = new.product_id and source_store_id <> new.source_store_id and not removed;"
            " return null;",
        ),
    ),
}


# Found by what watches the calls of the buffer (fuzz.py): the machine ends at a call that fails.
A_CALL_FAILS = Break(
    "a text that was cut cannot be stored, and neither can what comes with it",
    _trigger(
        "products",
        "before insert or update",
        "if right(new.title, 1) = '…' then raise exception 'too long' using errcode = 'XX000'; end if; return new;",
    ),
)


def found_after(name: str, *, at_most: int, seed: int) -> tuple[int, str] | None:
    """How many examples it took the machine to find a break, and what it said; None: it did not."""
    chosen = BREAKS[name]

    def break_it(dsn: str) -> None:
        if chosen.sql:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(chosen.sql.encode())

    with prepared(break_it) as machine, chosen.patch():
        machine.went_well = []
        while len(machine.went_well) < at_most:
            wrong = run_batch(machine, seed, BATCH, shrink=False)
            if wrong is not None:
                # Anything else would be the break's own fault, and says nothing of the machine.
                assert "\nAssertionError: " in wrong, wrong
                return machine.went_well.index(False) + 1, wrong
            seed += 1
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(BREAKS))
    parser.add_argument("--examples", type=int, default=AT_MOST)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="print what the machine said")
    options = parser.parse_args()
    missed = []
    for name in options.names:
        began = time.monotonic()
        found = found_after(name, at_most=options.examples, seed=options.seed)
        seconds = time.monotonic() - began
        if found is None:
            missed.append(name)
            print(f"{name}: NOT FOUND in {options.examples} examples, {seconds:.0f} s ({BREAKS[name].what})")
        else:
            print(f"{name}: found after {found[0]} examples, {seconds:.0f} s ({BREAKS[name].what})")
            if options.verbose:
                print(found[1])
        sys.stdout.flush()
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
