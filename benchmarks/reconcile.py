"""full_reconciliation at scale, as Dagster runs it: `python -m benchmarks.reconcile 100000`.

Real parts, each in a process of its own: embedded Postgres, the Shopify sandbox with N variants, the label-server
sandbox. Every run is a process too, so that its peak memory is the run's alone. Measured: a first fill of 10,000 labels
at 10 requests a second against the bound labels / (batch size x rate), then a first fill and an unchanged run of N
variants without that pace. Exits 1 when the fill takes longer than 1.15 x the bound, when an unchanged catalogue
causes a call that changes labels or more than 100 bytes of WAL a variant, or when a run takes more memory than it may
(600 MiB up to 100,000 variants, 1 GiB beyond).

`python -m benchmarks.reconcile growth 1000 10000 100000`: how an unchanged night grows with the shop, at a pace that
does not bind: of each size the faster of two, by step. Exits 1 when a step, or the whole, that takes a second or more
grows with an exponent above 1.1 from one size to the next, when 100,000 variants take more than 30 s, when such a night
writes, or when a process takes more than 600 MiB of its own.
"""

import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg

from benchmarks.parts import Memory
from esl_pipeline.local.postgres import EmbeddedPostgres

SHOP, STORE, TOKEN, SIGN = "corner-market.myshopify.com", "001", "shpat_benchmark", "benchmark-sign"
PACED_LABELS, BATCH, RATE = 10_000, 100, 10
FILL_RATIO = 1.15
WAL_BYTES_PER_UNCHANGED_VARIANT = 100
EXPONENT, NIGHT_SECONDS, NIGHT_VARIANTS, GROWTH_MIB = 1.1, 30, 100_000, 600
STEPS = ("shopify_products", "validated_variants", "hipoink_sync_results")
SANDBOXES = "esl_pipeline.sandbox.shopify.server", "esl_pipeline.sandbox.label_server.server"


@contextmanager
def _part(module: str, *options: str, **variables: str) -> Iterator[tuple[str, int]]:
    """A sandbox in a process of its own; its address and process."""
    command = [sys.executable, "-m", module, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()


def _migrated(postgres: EmbeddedPostgres, name: str) -> str:
    from pydantic import SecretStr

    from esl_pipeline.buffer.buffer import Buffer
    from esl_pipeline.buffer.migrate import migrate
    from esl_pipeline.buffer.transports import PsycopgTransport

    postgres.create_database(name)
    migrate(postgres.dsn(name))
    with PsycopgTransport(SecretStr(postgres.dsn(name))) as transport:
        fields = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": STORE}
        Buffer(transport).mapping_create(fields)
    return postgres.dsn(name)


def _wal(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
    return int(row[0]) if row else 0


def _run(dsn: str, shopify: str, labels: str, rate: int) -> dict[str, Any]:
    """One full_reconciliation in a process of its own; what its materialisations said."""
    variables = {
        "ESL_DATABASE_URL": dsn,
        "SHOPIFY_ADMIN_URL": shopify,
        "SHOPIFY_ADMIN_TOKEN": TOKEN,
        "HIPOINK_API_BASE_URL": labels,
        "HIPOINK_API_SECRET": SIGN,
        "HIPOINK_RATE_LIMIT_PER_SECOND": str(rate),
        "HIPOINK_BATCH_SIZE": str(BATCH),
    }
    before, wal = _changing_calls(labels), _wal(dsn)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.reconcile", "--run"],
        env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"changing calls": _changing_calls(labels) - before, "wal": _wal(dsn) - wal}


def _changing_calls(labels: str) -> int:
    calls: dict[str, int] = httpx.get(f"{labels}/sandbox/calls", timeout=120).json()
    return sum(count for action, count in calls.items() if not action.startswith("query"))


def run_once() -> None:
    """In the child: run the job and print its numbers as JSON."""
    import dagster as dg

    from esl_pipeline.definitions import build_definitions

    key = f"shopify:{SHOP}"
    started = time.monotonic()
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("shops", [key])
        job = build_definitions().resolve_job_def("full_reconciliation")
        result = job.execute_in_process(instance=instance, partition_key=key)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
    for step in STEPS:
        (event,) = result.asset_materializations_for_node(step)
        # Those that are plotted are named after the shop, others are text (orchestration/reports.py).
        said = {name.removesuffix(f", {key}"): value.value for name, value in event.metadata.items()}
        found[step] = {
            name: (float(value) if "." in value else int(value)) if isinstance(value, str) else value
            for name, value in said.items()
            if isinstance(value, int | float | bool) or re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(value))
        }
    found["MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found))


def main(variants: int) -> int:
    """Measure, print, judge."""
    problems = []
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres.temporary() as postgres:
        os.chdir(home)
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        shopify, labels = SANDBOXES
        with (
            _part(shopify, "--variants", str(PACED_LABELS), "--token", TOKEN) as (shop, _),
            _part(labels, "--sign", SIGN) as (server, _),
        ):
            fill = _run(_migrated(postgres, "paced"), shop, server, RATE)
        written = fill["hipoink_sync_results"]["labels written"]
        bound = written / (BATCH * RATE)
        pushing = fill["hipoink_sync_results"]["push (s)"]
        ratio = pushing / bound
        print(
            f"first fill of {written:,} labels at {RATE} requests/s: {pushing:.1f} s, {ratio:.2f} x the bound"
        )
        if pushing > FILL_RATIO * bound:
            problems.append(f"the fill takes more than {FILL_RATIO} x its bound")

        with (
            _part(shopify, "--variants", str(variants), "--token", TOKEN) as (shop, _),
            _part(labels, "--sign", SIGN) as (server, _),
        ):
            dsn = _migrated(postgres, "large")
            first = _run(dsn, shop, server, 1000)
            _show("first run", first, variants)
            second = _run(dsn, shop, server, 1000)
            _show("unchanged", second, variants)
        if second["changing calls"]:
            problems.append(
                f"an unchanged catalogue caused {second['changing calls']} calls that change labels"
            )
        if second["wal"] > WAL_BYTES_PER_UNCHANGED_VARIANT * variants:
            problems.append(f"an unchanged catalogue wrote {second['wal'] / 2**20:.0f} MiB of WAL")
        may = 600 if variants <= 100_000 else 1024
        problems += [f"{run['MiB']} MiB, more than {may}" for run in (first, second) if run["MiB"] > may]
    summary = (
        f"reconcile {variants}: first {first['seconds']} s, {first['MiB']} MiB; unchanged {second['seconds']} s, "
        f"{second['MiB']} MiB, {second['changing calls']} writes, {second['wal'] / 2**20:.1f} MiB WAL; "
        f"fill {ratio:.2f} x bound"
    )
    print(summary + (f" - BROKEN: {'; '.join(problems)}" if problems else ", all within bounds"))
    return 1 if problems else 0


def _show(what: str, run: dict[str, Any], variants: int) -> None:
    print(f"{what}: {run['seconds']} s, {run['MiB']} MiB, {run['wal'] / 2**20:.1f} MiB of WAL, "
          f"{run['changing calls']} calls that change labels")  # fmt: skip
    for step in STEPS:
        seconds = run[step]["duration (s)"]
        print(f"  {step:22} {seconds:8.1f} s {variants / max(seconds, 0.001):12,.0f} variants/s")


def growth(sizes: Sequence[int]) -> int:
    """Measure unchanged nights of these sizes, print, judge."""
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres.temporary() as postgres:
        os.chdir(home)
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        nights = {variants: _unchanged_night(postgres, variants) for variants in sorted(sizes)}
    problems = []
    for variants, night in nights.items():
        if night["changing calls"]:
            problems.append(f"{variants} unchanged variants caused {night['changing calls']} writes")
        if night["wal"] > WAL_BYTES_PER_UNCHANGED_VARIANT * variants:
            problems.append(f"{variants} unchanged variants wrote {night['wal'] / 2**20:.0f} MiB of WAL")
        problems += [
            f"{name} took {mib:.0f} MiB beside {variants} variants, more than {GROWTH_MIB}"
            for name, mib in night["peaks"].items()
            if mib > GROWTH_MIB
        ]
    if (longest := nights.get(NIGHT_VARIANTS, {}).get("seconds", 0)) > NIGHT_SECONDS:
        problems.append(f"{NIGHT_VARIANTS} variants take {longest:.1f} s, more than {NIGHT_SECONDS}")
    exponents = [
        (larger, step, _exponent(step, nights[smaller], nights[larger], larger / smaller))
        for smaller, larger in pairwise(nights)
        for step in (*STEPS, "seconds")
    ]
    for variants, step, exponent in exponents:
        judged = _seconds(step, nights[variants]) >= 1
        print(
            f"up to {variants:7,} {step:22} exponent {exponent:5.2f}{'' if judged else ' (too short to judge)'}"
        )
        if judged and exponent > EXPONENT:
            problems.append(
                f"{step} grows with {exponent:.2f} up to {variants} variants, more than {EXPONENT}"
            )
    summary = "growth: " + "; ".join(
        f"{variants} variants {night['seconds']} s, {max(night['peaks'].values()):.0f} MiB, "
        f"{night['changing calls']} writes"
        for variants, night in nights.items()
    )
    worst = max((found for *_, found in exponents), default=0)
    summary += f"; largest exponent {worst:.2f}"
    print(summary + (f" - BROKEN: {'; '.join(problems)}" if problems else ", all within bounds"))
    return 1 if problems else 0


def _unchanged_night(postgres: EmbeddedPostgres, variants: int) -> dict[str, Any]:
    """The faster of two, and the peak memory of each process while the shop was filled and read."""
    shopify, labels = SANDBOXES
    with (
        _part(shopify, "--variants", str(variants), "--token", TOKEN) as (shop, shop_process),
        _part(labels, "--sign", SIGN) as (server, server_process),
    ):
        dsn = _migrated(postgres, f"growth_{variants}")
        memory = Memory(dsn, {"Shopify sandbox": shop_process, "label server": server_process})
        memory.start()
        first, *nights = (_run(dsn, shop, server, 1000) for _ in range(3))
        memory.stop()
        peaks = memory.peaks | {"run": max(run["MiB"] for run in (first, *nights))}
    night = min(nights, key=lambda run: float(run["seconds"])) | {"peaks": peaks}
    _show(f"{variants:,} variants unchanged (first fill {first['seconds']} s)", night, variants)
    print("  " + ", ".join(f"{name} {mib:.0f} MiB" for name, mib in sorted(peaks.items())))
    return night


def _seconds(step: str, night: dict[str, Any]) -> float:
    return float(night["seconds"] if step == "seconds" else night[step]["duration (s)"])


def _exponent(step: str, smaller: dict[str, Any], larger: dict[str, Any], times: float) -> float:
    return math.log(max(_seconds(step, larger), 0.01) / max(_seconds(step, smaller), 0.01)) / math.log(times)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--run"]:
            run_once()
        case ["growth", *sizes]:
            raise SystemExit(growth([int(size) for size in sizes] or [1_000, 10_000, 100_000]))
        case arguments:
            raise SystemExit(main(int(arguments[0]) if arguments else 100_000))
