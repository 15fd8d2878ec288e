"""Plans of the doors that each price goes through are kept, and made anew when a table has grown."""

import time

import psycopg
import pytest
from psycopg.types.json import Jsonb

# More pages than are looked at.
GROW = """
insert into esl.sync_log (kind, push_id, mapping_id, variant_id, store_code, code, operation, attempt)
select 'intent', gen_random_uuid(), gen_random_uuid(), 'v' || n, %(store)s, 'C-' || n, 'delete', 1
from generate_series(1, %(rows)s) n"""
TURNS = """
insert into esl.turns (queue, party, taken_at) select 'push', n::text, now() from generate_series(1, 2000) n"""
LABELS = """
with mapping as (
    insert into esl.store_mappings (source_system, source_store_id, hipoink_store_code)
    values ('shopify', 'a.myshopify.com', %s) returning id, hipoink_store_code as store)
insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)
select store, 'C-' || n, id, 'v' || n, '{}', 'h', gen_random_uuid() from mapping, generate_series(1, 5000) n"""
KNOWN = (
    "select relname::text from pg_stat_user_tables where schemaname = 'esl' and analyze_count > 0 order by 1"
)
STORES = """
select coalesce((select most_common_vals::text from pg_stats
                 where schemaname = 'esl' and tablename = 'sync_log' and attname = 'store_code'), '')"""


def call(connection: psycopg.Connection) -> None:
    connection.execute("select esl.know_what_grew()")


def known(connection: psycopg.Connection) -> list[str]:
    connection.execute("select pg_stat_force_next_flush()")
    return [name for (name,) in connection.execute(KNOWN)]


def test_a_table_is_analysed_once_it_has_more_than_doubled(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        call(connection)
        assert known(connection) == []
        connection.execute(GROW, {"store": "001", "rows": 3_000})
        call(connection)
        assert known(connection) == ["sync_log"]
        assert connection.execute(STORES).fetchone() == ("{001}",)

        connection.execute(GROW, {"store": "002", "rows": 2_000})
        call(connection)
        assert connection.execute(STORES).fetchone() == ("{001}",)

        connection.execute(GROW, {"store": "002", "rows": 3_000})
        call(connection)
        assert connection.execute(STORES).fetchone() == ("{002,001}",)


def test_a_table_that_was_known_to_be_empty_is_analysed_once_it_is_full_again(buffer_dsn: str) -> None:
    """It has not grown: it is as large as when it was full before."""
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:

        def rows_known() -> float:
            connection.execute("select pg_stat_force_next_flush()")
            call(connection)
            known = connection.execute("select reltuples from pg_class where oid = 'esl.turns'::regclass")
            ((rows,),) = known.fetchall()
            return float(rows)

        connection.execute(TURNS)
        connection.execute("delete from esl.turns")
        connection.execute("analyze esl.turns")
        assert rows_known() == 0
        connection.execute(TURNS)
        assert rows_known() == 2_000


def test_one_table_a_call_the_largest_first(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        connection.execute(GROW, {"store": "001", "rows": 3_000})
        connection.execute(TURNS)
        call(connection)
        assert known(connection) == ["sync_log"]
        call(connection)
        assert known(connection) == ["sync_log", "turns"]


def test_nobody_waits_for_whoever_is_at_it(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection, psycopg.connect(buffer_dsn) as other:
        connection.execute(GROW, {"store": "001", "rows": 3_000})
        other.execute("lock table esl.sync_log in share update exclusive mode")
        connection.execute("set statement_timeout = '5s'")
        call(connection)
        assert known(connection) == []
        other.rollback()
        call(connection)
        assert known(connection) == ["sync_log"]


@pytest.mark.parametrize(
    "door", ["esl_inbox_claim", "esl_variants_merge", "esl_labels_stage", "esl_push_claim", "esl_push_finish"]
)
def test_each_door_keeps_its_plans_and_looks(buffer_dsn: str, door: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        (config, body) = connection.execute(
            "select proconfig::text, prosrc from pg_proc where proname = %s", [door]
        ).fetchone() or ("", "")
    assert "plan_cache_mode=force_generic_plan" in config
    assert "perform esl.know_what_grew();" in body


def test_the_comparison_of_a_store_that_no_statistics_know_takes_no_longer(buffer_dsn: str) -> None:
    """They said that it has no labels, and all of them were read for each."""
    codes = [f"C-{n}" for n in range(1, 2_001)]
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:

        def took(store: str) -> float:
            p, began = Jsonb({"store": store, "since": "2026-01-01T00:00Z", "codes": codes}), time.monotonic()
            ((answer,),) = connection.execute("select public.esl_drift_compare(%s)", [p])
            assert len(answer["labels"]) == len(codes)
            return time.monotonic() - began

        connection.execute(LABELS, ["S1"])
        connection.execute("analyze")
        known = min(took("S1") for _ in range(3))
        connection.execute(LABELS, ["S2"])
        assert min(took("S2") for _ in range(3)) < 5 * known
