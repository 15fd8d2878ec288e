"""`status` and the end of a drain beside a long history: `python -m benchmarks.status 5000000`.

One embedded Postgres with 1,000 labels of one shop. What operators and runs ask is timed beside 10,000 finished
deliveries (and a tenth as many rows of audit, drift and resolved findings), then beside N of them, in the same run. The
end of a drain is what is asked of the buffer for the shop that it touched: preview, accuracy, status. Exits 1 when
status or the end of a drain takes more than 1.5 times as long beside N. 5,000,000 take about 3.5 GB
and some minutes to fill.
"""

import statistics
import sys
import time
from collections.abc import Callable

import psycopg
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres

SHOP = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}
FEW, LABELS, TIMES, RATIO = 10_000, 1_000, 15, 1.5
PART = 250_000

CATALOGUE = """
with m as (select id from esl.store_mappings), v as (select n::text as id from generate_series(1, %(labels)s) n), p as (
    insert into esl.products (source_system, source_store_id, variant_id, product_id, source_updated_at, due)
    select 'shopify', 'corner-shop.myshopify.com', id, id, now(), false from v
), l as (
    insert into esl.labels (mapping_id, variant_id, store_code, code, label, label_hash, state)
    select m.id, v.id, 'S1', v.id, '{}', 'x', 'publish' from m, v
)
insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)
select 'S1', v.id, m.id, v.id, '{}', 'x', gen_random_uuid() from m, v"""

# As deliveries look when housekeeping has taken their bodies. Without triggers: what they would count comes after.
HISTORY = """
with d as (
    insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, triggered_at, thing,
                                   body_sha256, received_at, state, attempts, run_id, finished_at)
    select 'shopify', 'corner-shop.myshopify.com', 'products/update', lpad(n::text, 36, '0'), t.at,
           'product:' || n %% 1000, lpad(to_hex(n), 64, '0'), t.at,
           case when n %% 10 = 0 then 'superseded' else 'done' end, 1, 'run', t.at
    from generate_series(%(first)s::bigint, %(last)s::bigint) n
    cross join lateral (select now() - make_interval(secs => 1e7 - n::float8) as at) t
), a as (
    insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, outcome)
    select 'result', gen_random_uuid(), 'S1', (n %% 1000)::text, m.id, (n %% 1000)::text, 'upsert', 'accepted'
    from generate_series(%(first)s::bigint, %(last)s::bigint, 10) n, esl.store_mappings m
), f as (
    insert into esl.findings (mapping_id, variant_id, check_name, level, reason, resolved_at)
    select m.id, 'old' || n, 'c', 'error', 'r', now()
    from generate_series(%(first)s::bigint, %(last)s::bigint, 10) n, esl.store_mappings m
)
insert into esl.drift (store_code, code, kind)
select 'S1', (n %% 1000)::text, 'missing' from generate_series(%(first)s::bigint, %(last)s::bigint, 10) n"""

COUNTERS = """
insert into esl.shop_deliveries (source_system, source_store_id, done, superseded, last_received_at)
values ('shopify', 'corner-shop.myshopify.com', %(n)s - %(n)s / 10, %(n)s / 10, now())
on conflict (source_system, source_store_id) do update
set done = excluded.done, superseded = excluded.superseded, last_received_at = excluded.last_received_at"""


def _fill(dsn: str, first: int, last: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        for start in range(first, last + 1, PART):
            connection.execute(
                HISTORY.encode(), {"first": start, "last": min(start + PART - 1, last)}, prepare=False
            )
        connection.execute(COUNTERS.encode(), {"n": last})
        connection.execute("vacuum analyze")


def _took(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def _measure(buffer: Buffer) -> dict[str, float]:
    def end_of_a_drain() -> None:
        buffer.preview(shop=SHOP)
        buffer.accuracy(shop=SHOP)
        buffer.status()

    return {
        "status": _took(buffer.status),
        "status of one shop": _took(lambda: buffer.status(shops=[SHOP])),
        "end of a drain": _took(end_of_a_drain),
        "due": _took(buffer.due),
        "an empty claim": _took(lambda: buffer.inbox_claim(run_id="r")),
    }


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    with EmbeddedPostgres.temporary(
        settings={"max_wal_size": "8GB", "maintenance_work_mem": "256MB"}
    ) as postgres:
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        with PsycopgTransport(SecretStr(dsn)) as transport:
            buffer = Buffer(transport)
            buffer.mapping_create(SHOP | {"hipoink_store_code": "S1"})
            with psycopg.connect(dsn) as connection:
                connection.execute(CATALOGUE.encode(), {"labels": LABELS})
            _fill(dsn, 1, FEW)
            few = _measure(buffer)
            began = time.monotonic()
            _fill(dsn, FEW + 1, many)
            with psycopg.connect(dsn) as connection:
                (size,) = connection.execute(
                    "select pg_size_pretty(pg_database_size('buffer'))"
                ).fetchone() or ("?",)
            print(f"{many:,} finished deliveries, {size}, filled in {time.monotonic() - began:.0f} s")
            counted = buffer.status()["shops"][0]["deliveries"]
            if counted != many:
                sys.exit(f"status says {counted:,} deliveries")
            beside = _measure(buffer)
    for what, before in few.items():
        print(f"{what}: {before:.2f} ms beside {FEW:,}, {beside[what]:.2f} ms beside {many:,}")
    slow = [what for what in ("status", "end of a drain") if beside[what] > RATIO * few[what]]
    if slow:
        sys.exit(f"more than {RATIO} times as long: {', '.join(slow)}")


if __name__ == "__main__":
    main()
