"""A claim walks the queue's index in its order, whatever the planner believes of the queue, on every Postgres."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.types.json import Jsonb

from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.local.postgres import EmbeddedPostgres, PostgresUnavailable
from esl_pipeline_tests.scratch import scratch

pytestmark = pytest.mark.long

QUEUED, BATCH, STORES = 20_000, 100, 3


@contextmanager
def _stock() -> Iterator[EmbeddedPostgres]:
    """Debian's Postgres 15, with JIT as its package has it."""
    try:
        with EmbeddedPostgres.temporary(version=15, settings={"jit": "on"}, under=scratch()) as server:
            yield server
    except PostgresUnavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=[15, 16, 18])
def server(
    request: pytest.FixtureRequest, start_postgres: Callable[[int], EmbeddedPostgres]
) -> Iterator[EmbeddedPostgres]:
    if request.param != 15:
        yield start_postgres(request.param)
        return
    with _stock() as stock:
        yield stock


def _call(connection: psycopg.Connection, function: str, **p: object) -> dict[str, list[dict[str, object]]]:
    (answer,) = connection.execute(f"select public.{function}(%s)".encode(), [Jsonb(p)]).fetchone() or ()
    return dict(answer)


@pytest.mark.parametrize("known", ["nothing", "a small queue", "all"])
def test_field_36_a_claim_reads_little_more_than_its_batch(server: EmbeddedPostgres, known: str) -> None:
    name = f"queue_{known.replace(' ', '_')}"
    server.create_database(name)
    migrate(server.dsn(name))
    queue = (
        b"insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, priority, in_doubt)"
        b" select m.hipoink_store_code, 'C-' || n, m.id, n::text, 'upsert', '{}', n %% 3, false"
        b" from generate_series(%s::int, %s::int) n"
        b" join esl.store_mappings m on m.hipoink_store_code = 'S' || n %% %s"
    )
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        connection.execute("alter table esl.sync_queue set (autovacuum_enabled = false)")
        for number in range(STORES):
            mapped = {"source_system": "shopify", "source_store_id": f"shop-{number}.myshopify.com"}
            _call(connection, "esl_mapping_create", **mapped, hipoink_store_code=f"S{number}")
        connection.execute(queue, [1, 30, STORES])
        if known == "a small queue":
            connection.execute("analyze")
        connection.execute(queue, [31, QUEUED, STORES])
        if known == "all":
            connection.execute("analyze")
        with connection.transaction():
            claim = _call(
                connection,
                "esl_push_claim",
                claim_id=str(uuid.uuid4()),
                limit=BATCH,
                lease_seconds=60,
                max_attempts=5,
                run_id="r",
                asset="a",
            )
            (read,) = connection.execute(
                "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables"
                " where schemaname = 'esl' and relname = 'sync_queue'"
            ).fetchone() or (0,)
        switches = connection.execute(
            "select p.proname from pg_proc p where p.proconfig::text like '%enable\\_%'"
        ).fetchall()
    assert len(claim["rows"]) == BATCH
    assert read < 10 * BATCH
    assert switches == []


SHOPS, WAITING = 500, 100_000


@pytest.mark.long
def test_s33_turns_are_found_beside_all_that_one_shop_has_waiting(server: EmbeddedPostgres) -> None:
    server.create_database("turns")
    migrate(server.dsn("turns"))
    with psycopg.connect(server.dsn("turns"), autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("alter table esl.webhook_inbox set (autovacuum_enabled = false)")
        connection.execute("alter table esl.products set (autovacuum_enabled = false)")
        connection.execute(
            "insert into esl.store_mappings (source_system, source_store_id, hipoink_store_code)"
            " select 'shopify', 'shop-' || n || '.myshopify.com', 'S' || n from generate_series(1, %s::int) n",
            [SHOPS],
        )
        # All of the first shop, and a few of each other that came after them.
        connection.execute(
            "insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, body, body_sha256)"
            " select 'shopify',"
            " 'shop-' || case when n <= %(most)s then 1 else n %% %(shops)s + 1 end || '.myshopify.com',"
            " 't', n::text, '{}', n::text from generate_series(1, %(most)s::int + 1000) n",
            {"most": WAITING, "shops": SHOPS},
        )
        connection.execute(
            "insert into esl.products (source_system, source_store_id, variant_id, product_id, source_updated_at)"
            " select 'shopify',"
            " 'shop-' || case when n <= %(most)s then 1 else n %% %(shops)s + 1 end || '.myshopify.com',"
            " n::text, n::text, now() from generate_series(1, %(most)s::int + 1000) n",
            {"most": WAITING, "shops": SHOPS},
        )

        def read(table: str) -> int:
            row = connection.execute(
                "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables"
                " where schemaname = 'esl' and relname = %s",
                [table],
            ).fetchone()
            return int(row[0]) if row else 0

        for known in ("nothing", "all"):
            if known == "all":
                connection.execute("analyze")
            before = read("webhook_inbox"), read("products")
            with connection.transaction(force_rollback=True):
                arguments = {
                    "claim_id": str(uuid.uuid4()),
                    "lease_seconds": 60,
                    "max_attempts": 8,
                    "run_id": "r",
                }
                claim = _call(connection, "esl_inbox_claim", limit=200, max_bytes=10**9, **arguments)
                inbox = read("webhook_inbox") - before[0]
            with connection.transaction():
                due = _call(connection, "esl_variants_due", limit=600, after=0)
                products = read("products") - before[1]
            assert len({event["source_store_id"] for event in claim["events"]}) == len(claim["events"]) == 200
            assert len({row["source_store_id"] for row in due["variants"]}) == SHOPS
            # Each shop's oldest, a few of each, and what is taken.
            assert inbox < 5 * SHOPS, known
            assert products < 5 * SHOPS, known
