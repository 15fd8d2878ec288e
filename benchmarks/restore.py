"""The first reconciliation after a restore: `python -m benchmarks.restore 5000000 10000000 5000`.

A buffer with some thousand labels is given a history (finished deliveries, audit rows of those labels), dumped with
pg_dump, restored into an empty database and analysed as docs/operations.md says: once with 1 % of the history, once
with all of it. Then full_reconciliation runs beside the one and the other in turn, three times, against the shop and
the label server as they are; such a run changes no label, so each finds what the first found. The median counts. Exits
1 when beside all of the history it is more than 1.2 times as long, or when a run makes a call that changes a label. 5
million and 10 million take about 25 GB of disk.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks.reconcile import SANDBOXES, SHOP, SIGN, STEPS, TOKEN, _migrated, _part, _run
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.programs import find_programs

RATE, RATIO, TIMES, PART = 1000, 1.2, 3, 500_000
# Nothing of a restore need be in the log; and nothing works beside what is measured.
SETTINGS = {
    "wal_level": "minimal", "max_wal_senders": "0", "max_wal_size": "8GB", "maintenance_work_mem": "512MB",
    "autovacuum": "off",
}  # fmt: skip

# As deliveries look when housekeeping has taken their bodies.
INBOX = """
insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, triggered_at, thing,
                               body_sha256, received_at, state, attempts, run_id, finished_at)
select 'shopify', %(shop)s, 'products/update', lpad(n::text, 36, '0'), t.at, 'product:' || n %% 1000,
       lpad(to_hex(n), 64, '0'), t.at, 'done', 1, 'run', t.at
from generate_series(%(first)s::bigint, %(last)s::bigint) n
cross join lateral (select now() - make_interval(secs => 1e7 - n::float8) as at) t"""

# An intent and a result for each push, of the labels that hang there, with the label that was sent. The number of
# labels is no column of theirs: on both sides of the join it would have each push compared with each label.
AUDIT = """
with l as (
    select row_number() over (order by code) - 1 as i, store_code, code, mapping_id, variant_id, label, label_hash
    from esl.hipoink_products
), s as (
    select gen_random_uuid() as push_id, n from generate_series(%(first)s::bigint, %(last)s::bigint, 2) n
)
insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label, label_hash,
                          attempt, run_id, outcome, at)
select k, s.push_id, l.store_code, l.code, l.mapping_id, l.variant_id, 'upsert',
       case when k = 'intent' then l.label end, l.label_hash, 1, 'run', case when k = 'result' then 'accepted' end,
       now() - make_interval(secs => 1e7 - s.n::float8)
from s join l on l.i = s.n / 2 %% (select count(*) from l) cross join unnest(array['intent', 'result']) k"""

INDEXES = """
select i.indexrelid::regclass::text from pg_index i
where i.indrelid in ('esl.webhook_inbox'::regclass, 'esl.sync_log'::regclass)
  and not exists (select 1 from pg_constraint c where c.conindid = i.indexrelid)"""

DELIVERIES = """
insert into esl.shop_deliveries (source_system, source_store_id, done, last_received_at)
values ('shopify', %(shop)s, %(n)s, now())
on conflict (source_system, source_store_id) do update set done = excluded.done"""


class Buffer:
    """A buffer that gets a history and is dumped: its schema first, whose indexes would only slow the filling."""

    def __init__(self, postgres: EmbeddedPostgres, name: str, dsn: str, home: Path) -> None:
        self._postgres, self._name, self._dsn, self._home = postgres, name, dsn, home
        self._bindir = find_programs(Path("/nowhere"), None).bindir
        self._inbox = self._audit = 0
        self._dump("schema", "pre-data", "post-data")
        with psycopg.connect(dsn, autocommit=True) as connection:
            for (index,) in connection.execute(INDEXES.encode()).fetchall():
                connection.execute(f"drop index {index}".encode())

    def fill(self, inbox: int, audit: int) -> None:
        """So many deliveries and audit rows in all."""
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")  # without the triggers that count
            for first in range(self._inbox + 1, inbox + 1, PART):
                part = {"shop": SHOP, "first": first, "last": min(first + PART - 1, inbox)}
                connection.execute(INBOX.encode(), part, prepare=False)
            for first in range(self._audit + 1, audit + 1, PART):
                part = {"first": first, "last": min(first + PART - 1, audit)}
                connection.execute(AUDIT.encode(), part, prepare=False)
            connection.execute(DELIVERIES.encode(), {"shop": SHOP, "n": inbox})
        self._inbox, self._audit = inbox, audit

    def restored(self, name: str) -> str:
        """Dumped, and restored into an empty database of this name."""
        dsn = self._postgres.dsn(name)
        self._postgres.create_database(name)
        self._dump("data", "data")
        self._restore(dsn, "schema", "pre-data")
        self._restore(dsn, "data", "data")
        (self._home / "data").unlink()
        self._restore(dsn, "schema", "post-data")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("analyze")
            connection.execute("checkpoint")
        return dsn

    def drop(self) -> None:
        """Makes room."""
        with psycopg.connect(self._postgres.dsn(), autocommit=True) as connection:
            connection.execute(f'drop database "{self._name}" with (force)'.encode())

    def _dump(self, file: str, *sections: str) -> None:
        options = ("--format=custom", "--compress=0", "--no-owner", f"--file={self._home / file}")
        self._call("pg_dump", *options, *(f"--section={section}" for section in sections), self._dsn)

    def _restore(self, dsn: str, file: str, section: str) -> None:
        options = ("--no-owner", "--exit-on-error", "--jobs=2", f"--section={section}")
        self._call("pg_restore", *options, f"--dbname={dsn}", str(self._home / file))

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._bindir / program), *arguments], check=True)


def _said(what: str, began: float) -> float:
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)
    return time.monotonic()


def _nights(
    postgres: EmbeddedPostgres, variants: int, sizes: dict[str, tuple[int, int]], home: Path
) -> dict[str, list[dict[str, Any]]]:
    """The runs beside each history, in turn."""
    shopify, labels = SANDBOXES
    with (
        _part(shopify, "--variants", str(variants), "--token", TOKEN) as (shop, _),
        _part(labels, "--sign", SIGN) as (server, _),
    ):
        began = time.monotonic()
        dsn = _migrated(postgres, "before")
        _run(dsn, shop, server, RATE)
        buffer, restored = Buffer(postgres, "before", dsn, home), {}
        began = _said(f"{variants:,} labels", began)
        for name, (inbox, audit) in sizes.items():
            buffer.fill(inbox, audit)
            began = _said(f"{inbox:,} deliveries and {audit:,} audit rows filled", began)
            restored[name] = buffer.restored(name)
            began = _said("dumped and restored", began)
        buffer.drop()
        nights: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        for _ in range(TIMES):
            for name, into in restored.items():
                night = _run(into, shop, server, RATE)
                took = {step: float(night[step]["duration (s)"]) for step in STEPS}
                each = ", ".join(f"{step} {seconds:.2f}" for step, seconds in took.items())
                print(
                    f"{name}: {sum(took.values()):.2f} s ({each}), {night['changing calls']} changes",
                    flush=True,
                )
                nights[name].append(night | {"steps": sum(took.values())})
        return nights


def main(inbox: int = 5_000_000, audit: int = 10_000_000, variants: int = 5_000) -> int:
    """Measure, print, judge."""
    sizes = {"few": (max(1, inbox // 100), max(2, audit // 100)), "all": (inbox, audit)}
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres.temporary(settings=SETTINGS) as postgres:
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        nights = _nights(postgres, variants, sizes, Path(folder))
    small, large = (median(night["steps"] for night in nights[name]) for name in sizes)
    problems = [
        *([f"more than {RATIO} times as long"] if large > RATIO * small else []),
        *(
            ["a call that changes labels"]
            if any(n["changing calls"] for runs in nights.values() for n in runs)
            else []
        ),
    ]
    print(
        f"restore: the first reconciliation of {variants:,} variants takes {large:.2f} s beside {inbox:,} deliveries "
        f"and {audit:,} audit rows, {small:.2f} s beside 1 % of them: {large / small:.2f} x"
        + (f" - BROKEN: {'; '.join(problems)}" if problems else ", within the bound")
    )
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(*(int(size) for size in sys.argv[1:4])))
