"""The long state machine: many examples, split over processes, each with a database and a label server of its own.

    python -m esl_pipeline_tests.reliability.long_machine --examples 2000 [--processes 2] [--seed N]

Examples are run in batches; a batch follows from its seed alone, so that a failing one can be run again by itself:

    python -m esl_pipeline_tests.reliability.long_machine --seed N --examples 25 --processes 1 --shrink
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import seed as seeded
from hypothesis.stateful import get_state_machine_test
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.reliability.machine import Faults, Machine, machine_parts, machine_settings
from esl_pipeline_tests.scratch import scratch

BATCH = 25
STEPS = 50


@contextmanager
def prepared(break_it: Callable[[str], object] | None = None) -> Iterator[type[Machine]]:
    """A Machine class on a server of its own; break_it is given the migrated database's address first."""
    with EmbeddedPostgres.temporary(under=scratch()) as server:
        server.create_database("machine")
        dsn = server.dsn("machine")
        migrate(dsn)
        if break_it is not None:
            break_it(dsn)
        buffer = Buffer(PsycopgTransport(SecretStr(dsn)))
        try:
            with machine_parts(buffer, dsn) as parts:
                yield type("Machine", (Machine,), {"parts": parts, "faults": Faults()})
        finally:
            buffer.close()


def run_batch(machine: type[Machine], seed: int, examples: int, *, shrink: bool) -> str | None:
    """Run some examples; None, or what went wrong and the steps that lead there."""
    test = seeded(seed)(
        get_state_machine_test(
            machine, settings=machine_settings(examples, STEPS, fixed=False, shrink=shrink)
        )
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            test()
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        steps = "\n".join(getattr(error, "__notes__", ()))
        return f"{where}{type(error).__name__}: {error}\n{said.getvalue()}{steps}\n"
    return None


def _work(number: int, seeds: list[tuple[int, int]], shrink: bool, told: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TZ"] = "UTC"
    with prepared() as machine:
        for seed, examples in seeds:
            began = time.monotonic()
            wrong = run_batch(machine, seed, examples, shrink=shrink)
            told.put((number, seed, examples, time.monotonic() - began, wrong))
    told.put((number, None, 0, 0.0, None))


def run(examples: int, processes: int, seed: int, *, shrink: bool) -> int:
    """Run so many examples and print what came of them; how many batches failed."""
    batches = [(seed + n, min(BATCH, examples - n * BATCH)) for n in range(-(-examples // BATCH))]
    processes = max(1, min(processes, len(batches)))
    off = [name for name in Faults.names() if not getattr(Faults(), name)]
    print(
        f"state machine: {examples} examples of {STEPS} steps, seeds {seed} to {seed + len(batches) - 1}, "
        f"{processes} processes; switched off: {', '.join(off) or 'nothing'}",
        flush=True,
    )
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=_work, args=(n, batches[n::processes], shrink, told)) for n in range(processes)
    ]
    began, done, busy, failures = time.monotonic(), 0, 0.0, []
    for worker in workers:
        worker.start()
    open_workers = processes
    while open_workers:
        try:
            _, batch, count, seconds, wrong = told.get(timeout=5)
        except Exception:  # queue.Empty: see whether everybody lives
            if all(worker.is_alive() for worker in workers[:open_workers]):
                continue
            if any(worker.exitcode not in (None, 0) for worker in workers):
                failures.append((None, "a process died"))
                break
            continue
        if batch is None:
            open_workers -= 1
            continue
        done, busy = done + count, busy + seconds
        if wrong:
            failures.append((batch, wrong))
            print(f"--- seed {batch} FAILED\n{wrong}", flush=True)
        print(f"seed {batch}: {count} examples in {seconds:.0f} s; {done} of {examples}", flush=True)
    for worker in workers:
        worker.join(30)
    seconds = time.monotonic() - began
    failed = ", ".join(str(batch) for batch, _ in failures) or "none"
    print(
        f"state machine: {done} examples in {seconds:.0f} s ({busy / max(done, 1):.2f} s each of {processes} "
        f"processes); failing seeds: {failed}"
    )
    return len(failures)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=2_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--shrink", action="store_true", help="make a failing sequence short: takes minutes")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    sys.exit(min(run(options.examples, options.processes, seed, shrink=options.shrink), 1))


if __name__ == "__main__":
    main()
