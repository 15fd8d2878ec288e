"""full_reconciliation at scale, as Dagster runs it: `python -m benchmarks.reconcile 100000`.

Real parts, each in a process of its own: embedded Postgres, the Shopify sandbox with N variants, the label-server
sandbox. Every run is a process too, so that its peak memory is the run's alone. Measured: a first fill of 10,000 labels
at 10 requests a second against the bound labels / (batch size x rate), then a first fill and an unchanged run of N
variants without that pace. Exits 1 when the fill takes longer than 1.15 x the bound, when an unchanged catalogue
causes a call that changes labels or more than 100 bytes of WAL a variant, or when a run takes more memory than it may
(600 MiB up to 100,000 variants, 1 GiB beyond).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from esl_pipeline.local.postgres import EmbeddedPostgres

SHOP, STORE, TOKEN, SIGN = "corner-market.myshopify.com", "001", "shpat_benchmark", "benchmark-sign"
PACED_LABELS, BATCH, RATE = 10_000, 100, 10
FILL_RATIO = 1.15
WAL_BYTES_PER_UNCHANGED_VARIANT = 100
STEPS = ("shopify_products", "validated_variants", "hipoink_sync_results")


@contextmanager
def _part(module: str, *options: str, **variables: str) -> Iterator[str]:
    """A sandbox in a process of its own; its address."""
    command = [sys.executable, "-m", module, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
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
    calls: dict[str, int] = httpx.get(f"{labels}/sandbox/state", timeout=120).json()["calls"]
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
        found[step] = {
            name: value.value
            for name, value in event.metadata.items()
            if isinstance(value.value, int | float | bool)
        }
    found["MiB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(found))


def main(variants: int) -> int:
    """Measure, print, judge."""
    problems = []
    with tempfile.TemporaryDirectory() as home, EmbeddedPostgres.temporary() as postgres:
        os.chdir(home)
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        shopify, labels = "esl_pipeline.sandbox.shopify.server", "esl_pipeline.sandbox.label_server.server"
        with (
            _part(shopify, "--variants", str(PACED_LABELS), "--token", TOKEN) as shop,
            _part(labels, "--sign", SIGN) as server,
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
            _part(shopify, "--variants", str(variants), "--token", TOKEN) as shop,
            _part(labels, "--sign", SIGN) as server,
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


if __name__ == "__main__":
    if sys.argv[1:] == ["--run"]:
        run_once()
    else:
        raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
