"""What `trace` asks of the database beside a long audit: `python -m benchmarks.trace 1000000`.

One embedded Postgres with 10,000 labels of one store and N rows of audit, in pushes of 100 labels, with their webhooks,
some drift and physical labels; one label was pushed 2,000 times. For every kind of id the calls that
`esl-pipeline trace` makes are timed for 20 ids, each five times. Exits 1 when the slowest id of any kind takes more
than 200 ms at best.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from statistics import median

import psycopg
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.commands.trace import gather
from esl_pipeline.local.postgres import EmbeddedPostgres

SHOP = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}
LABELS, BATCH, VARIANTS, HOT, IDS, BOUND_MS = 10_000, 100, 5, 2_000, 20, 200

CATALOGUE = """
with m as (select id from esl.store_mappings), v as (
    select n, n::text as id, 'C-' || n as code from generate_series(1, %(labels)s) n
), p as (
    insert into esl.products (source_system, source_store_id, variant_id, product_id, title, sku, price,
                              source_updated_at, due)
    select 'shopify', 'corner-shop.myshopify.com', id, 'P' || (n - 1) / %(variants)s, 'Product', 'sku-' || n, '1.00',
           now(), false from v
), l as (
    insert into esl.labels (mapping_id, variant_id, store_code, code, label, label_hash, state)
    select m.id, v.id, 'S1', v.code, '{"pp": "1.00"}', 'x', 'publish' from m, v
), d as (
    insert into esl.devices (store_code, esl_code, product_code, online, first_seen_at, last_seen_at)
    select 'S1', 'AD' || n, code, true, now(), now() from v
)
insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)
select 'S1', v.code, m.id, v.id, '{"pp": "1.00"}', 'x', gen_random_uuid() from m, v"""

# Round r pushes every label once, in pushes of BATCH labels, ten pushes a run.
AUDIT = """
insert into esl.sync_log (at, kind, push_id, store_code, code, mapping_id, variant_id, operation, label, label_hash,
                          attempt, run_id, event_ids, outcome, http_status, answer, duration_ms, cause, queued_at)
select t.at, k.kind, md5('push' || r || '-' || b)::uuid, 'S1', 'C-' || n, m.id, n::text, 'upsert',
       case when k.kind = 'intent' then jsonb_build_object('pc', 'C-' || n, 'pn', repeat('Product name ', 3),
            'pp', (r / 2 + 1) || '.' || lpad((n %% 100)::text, 2, '0'), 'pi', 'sku-' || n,
            'extend', jsonb_build_object('vendor', 'A vendor', 'unit', '1 kg = 9.99')) end,
       md5(r || '-' || n), 1, 'run-' || r || '-' || b / 10, array[(r - 1) * %(products)s + (n - 1) / %(variants)s + 1],
       case when k.kind = 'result' then 'accepted' end, 200, '{"error_code":0}', 40,
       case r %% 5 when 0 then 'policy' else 'new version' end, t.at - interval '1 s'
from generate_series(%(first)s::int, %(last)s::int) r cross join esl.store_mappings m
cross join generate_series(0, %(labels)s / %(batch)s - 1) b
cross join (values ('intent', 0), ('result', 1)) k (kind, later)
cross join generate_series(b * %(batch)s + 1, (b + 1) * %(batch)s) n
cross join lateral (select %(start)s::timestamptz + make_interval(hours => 4 * r, secs => b + 0.1 * k.later) as at) t
order by r, b, k.later, n"""

DELIVERIES = """
insert into esl.webhook_inbox (id, source_system, source_store_id, topic, webhook_id, triggered_at, body_sha256,
                               received_at, state, run_id, thing, finished_at)
overriding system value
select (r - 1) * %(products)s + p + 1, 'shopify', 'corner-shop.myshopify.com', 'products/update',
       md5(r || 'w' || p)::uuid::text, t.at, md5(r || 'w' || p), t.at, 'done', 'run', 'product:P' || p, t.at
from generate_series(%(first)s::int, %(last)s::int) r cross join generate_series(0, %(products)s - 1) p
cross join lateral (select %(start)s::timestamptz + make_interval(hours => 4 * r) - interval '10 s' as at) t"""

HOT_LABEL = """
insert into esl.sync_log (at, kind, push_id, store_code, code, mapping_id, variant_id, operation, label, label_hash,
                          attempt, run_id, event_ids, outcome, http_status, cause, queued_at)
select now() - make_interval(mins => 5 * (%(hot)s - h)), k, md5('hot' || h)::uuid, 'S1', 'HOT', m.id, 'HOT', 'upsert',
       case k when 'intent' then jsonb_build_object('pc', 'HOT', 'pp', '1.00', 'pn', 'text ' || h) end, md5(h::text), 1,
       'hot-run', '{}', case k when 'result' then 'accepted' end, 200, 'read', now()
from generate_series(1, %(hot)s) h cross join esl.store_mappings m cross join (values ('intent'), ('result')) k (k)
order by h, k"""

DRIFT = """
insert into esl.drift (at, run_id, store_code, code, kind, ours, theirs)
select %(start)s::timestamptz + make_interval(hours => 4 * n, mins => 30), 'night-' || n %% 10, 'S1',
       'C-' || 1 + n * 7 %% %(labels)s, 'different', '{"pp": "1.00"}', '{"pp": "7.77"}'
from generate_series(1, 2000) n"""


def fill(dsn: str, rows: int, start: datetime) -> int:
    """The audit and what belongs to it -> how many rounds of pushes."""
    rounds = max(1, rows // (2 * LABELS))
    sizes = {
        "labels": LABELS, "batch": BATCH, "variants": VARIANTS, "products": LABELS // VARIANTS, "hot": HOT,
        "start": start,
    }  # fmt: skip
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # what triggers count is not asked
        connection.execute(CATALOGUE.encode(), sizes)
        for first in range(1, rounds + 1, 10):
            part = sizes | {"first": first, "last": min(first + 9, rounds)}
            connection.execute(AUDIT.encode(), part, prepare=False)
            connection.execute(DELIVERIES.encode(), part, prepare=False)
        connection.execute(HOT_LABEL.encode(), sizes)
        connection.execute(DRIFT.encode(), sizes)
        connection.execute("vacuum analyze")
    return rounds


def names(dsn: str, rounds: int) -> Iterator[tuple[str, list[str]]]:
    """Of every kind some ids."""
    rng = random.Random(16)  # noqa: S311
    numbers = [rng.randrange(1, LABELS + 1) for _ in range(IDS)]
    some = [(rng.randrange(1, rounds + 1), rng.randrange(LABELS // BATCH)) for _ in range(IDS)]
    with psycopg.connect(dsn) as connection:
        pushes = [
            str(
                connection.execute("select md5('push' || %s::int || '-' || %s::int)::uuid", pair).fetchone()[
                    0
                ]
            )  # type: ignore[index]
            for pair in some
        ]
        webhooks = [
            row[0]
            for row in connection.execute(
                "select webhook_id from esl.webhook_inbox where id = any (%s)",
                [[rng.randrange(1, rounds * LABELS // VARIANTS) for _ in range(IDS)]],
            )
        ]
    yield "code", [f"C-{n}" for n in numbers]
    yield "code pushed 2,000 times", ["HOT"]
    yield "SKU", [f"sku-{n}" for n in numbers]
    yield "variant id", [str(n) for n in numbers]
    yield "webhook id", webhooks
    yield "run id", [*(f"run-{r}-{b // 10}" for r, b in some), "hot-run", "night-3"]
    yield "push id", pushes
    yield "physical label", [f"AD{n}" for n in numbers]
    yield "nothing", ["unheard-of"]


def _best(work: Callable[[], object], times: int = 5) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return min(taken)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    start = datetime.now(UTC) - timedelta(hours=4 * (rows // (2 * LABELS) + 1))
    with EmbeddedPostgres.temporary(
        settings={"max_wal_size": "4GB", "maintenance_work_mem": "256MB"}
    ) as postgres:
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        with PsycopgTransport(SecretStr(dsn)) as transport:
            buffer = Buffer(transport)
            buffer.mapping_create(SHOP | {"hipoink_store_code": "S1"})
            began = time.monotonic()
            rounds = fill(dsn, rows, start)
            with psycopg.connect(dsn) as connection:
                (kept, size) = connection.execute(
                    "select count(*), pg_size_pretty(pg_total_relation_size('esl.sync_log')) from esl.sync_log"
                ).fetchone() or (0, "?")
            print(f"{kept:,} audit rows, {size} with indexes, filled in {time.monotonic() - began:.0f} s")
            middle = start + timedelta(hours=2 * rounds, seconds=17)
            slowest = {}
            for kind, ids in names(dsn, rounds):
                for at in (None, middle) if "code" in kind else (None,):
                    took = [_best(lambda name=name, at=at: gather(buffer, name, at=at)) for name in ids]  # type: ignore[misc]
                    label = f"{kind}, --at" if at else kind
                    slowest[label] = max(took)
                    print(f"{label}: median {median(took):.1f} ms, slowest {max(took):.1f} ms of {len(ids)}")
    worst = max(slowest, key=lambda kind: slowest[kind])
    is_right = slowest[worst] < BOUND_MS
    print(
        f"trace beside {kept:,} audit rows: slowest {slowest[worst]:.0f} ms ({worst}), "
        f"{'within' if is_right else 'OVER'} {BOUND_MS} ms"
    )
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
