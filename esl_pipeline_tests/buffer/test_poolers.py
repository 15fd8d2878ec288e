"""Any Postgres: a stock one with JIT, and pgbouncer before it with its defaults; what a call costs on the wire."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.commands.doctor import examine
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.reliability.chaos import ChaosProxy, Timeout
from esl_pipeline_tests.stock import Pooling, through

MODES: tuple[Pooling, ...] = ("transaction", "session")

# As a function that sets its own bound: it comes too late for the call that runs it.
FUNCTIONS = """
create or replace function public.esl_test_sleep(p jsonb) returns jsonb language sql set statement_timeout = '100ms'
    as $$select to_jsonb(pg_sleep((p ->> 'seconds')::float)::text)$$;
create or replace function public.esl_test_setting(p jsonb) returns jsonb language sql
    as $$select to_jsonb(current_setting(p ->> 'name'))$$;
"""


@pytest.fixture(params=MODES)
def pooled(
    request: pytest.FixtureRequest, stock: EmbeddedPostgres, pooler: Callable[[Pooling], int]
) -> Iterator[str]:
    """The address of a migrated buffer by way of pgbouncer in each mode."""
    name = f"pooled_{request.param}_{time.monotonic_ns()}"
    stock.create_database(name, template="migrated")
    with psycopg.connect(stock.dsn(name)) as connection:
        connection.execute(FUNCTIONS.encode())
    yield through(pooler(request.param), stock.dsn(name))


def test_field_37_pgbouncer_with_its_defaults_serves_and_a_calls_bound_stays_with_the_call(
    pooled: str,
) -> None:
    with (
        PsycopgTransport(pooled, timeout_seconds=7, attempts=1) as transport,
        psycopg.connect(pooled, autocommit=True) as other,
    ):
        Buffer(transport).check_version()
        assert transport.call("esl_test_setting", {"name": "statement_timeout"}) == "7s"
        # The other client gets the same server connections.
        for _ in range(5):
            assert other.execute("show statement_timeout").fetchone() == ("0",)
            Buffer(transport).ping()
        assert transport.call("esl_test_sleep", {"seconds": 0.3}) == "", "the function's own bound is none"
    with PsycopgTransport(pooled, timeout_seconds=0.2, attempts=1) as hasty:
        began = time.monotonic()
        with pytest.raises(BufferError) as ended:
            hasty.call("esl_test_sleep", {"seconds": 20})
        assert (ended.value.code, time.monotonic() - began < 10) == ("57014", True)
        assert hasty.call("esl_test_setting", {"name": "statement_timeout"}) == "200ms", "and it goes on"


def test_field_37_migrations_go_through_a_pooler(pooled: str) -> None:
    assert migrate(pooled) == []


def test_field_37_a_refused_start_parameter_is_told_and_not_taken_for_an_outage(pooled: str) -> None:
    own = f"{pooled}?options=-csearch_path%3Da"
    words = "the buffer refused ESL_DATABASE_URL (28000)"
    with PsycopgTransport(own) as transport:
        with pytest.raises(BufferError) as refused:
            transport.call("esl_version", {})
        assert (type(refused.value), refused.value.retryable) == (BufferError, False)
    checks = {check.what: check for check in examine(load_settings(esl_database_url=own))}
    for said in (str(refused.value), checks["buffer"].says):
        assert said.startswith(words) and "unsupported startup parameter: options" in said


def test_field_37_the_acknowledgement_is_one_round_trip_on_the_wire(buffer_dsn: str) -> None:
    socket = Path(str(conninfo_to_dict(buffer_dsn)["host"])) / ".s.PGSQL.5432"
    database = conninfo_to_dict(buffer_dsn)["dbname"]
    with ChaosProxy(socket) as proxy:
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable&gssencmode=disable"
        with PsycopgTransport(dsn, attempts=1) as transport:
            buffer = Buffer(transport)
            buffer.ping()
            for size in (10, 1_000_000):
                before = proxy.round_trips
                kept = buffer.inbox_add([_delivery(size)])
                assert (kept["inserted"], proxy.round_trips - before) == (1, 1)


@pytest.mark.long
def test_field_37_a_call_that_is_never_answered_ends_and_says_so(buffer_dsn: str) -> None:
    socket = Path(str(conninfo_to_dict(buffer_dsn)["host"])) / ".s.PGSQL.5432"
    database = conninfo_to_dict(buffer_dsn)["dbname"]
    with ChaosProxy(socket) as proxy:
        dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable&gssencmode=disable"
        with PsycopgTransport(dsn, timeout_seconds=0.2, attempts=1) as transport:
            buffer = Buffer(transport)
            buffer.ping()
            proxy.toxics = (Timeout(),)
            with pytest.raises(BufferUnavailable, match=r"no answer within 2\.2 s"):
                buffer.ping()
            proxy.toxics = ()
            buffer.ping()


def _delivery(size: int) -> dict[str, Any]:
    return {
        "source_system": "shopify",
        "source_store_id": "shop.myshopify.com",
        "topic": "products/update",
        "webhook_id": f"w-{size}",
        "body_base64": "A" * size + "=" * (-size % 4),
        "body_sha256": f"sha-{size}",
        "state": "ready",
    }


def test_field_36_every_door_says_that_it_is_not_compiled(buffer_dsn: str) -> None:
    doors = (
        "select proname, proconfig from pg_proc"
        r" where pronamespace = 'public'::regnamespace and proname like 'esl\_%'"
    )
    with psycopg.connect(buffer_dsn) as connection:
        found = dict(connection.execute(doors.encode()).fetchall())
        assert len(found) > 30 and all("jit=off" in settings for settings in found.values())
        # A function that is replaced forgets it; migrating says it again.
        connection.execute(FUNCTIONS.encode())
        connection.execute("select esl.restrict_functions()")
        row = connection.execute("""select public.esl_test_setting('{"name": "jit"}')""").fetchone()
    assert row == ("off",)


class Explained(PsycopgTransport):
    """Remembers every plan that the server has used, functions' own ones included."""

    def __init__(self, dsn: str) -> None:
        options = {
            "session_preload_libraries": "auto_explain",
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_level": "notice",
            "jit_above_cost": "5",  # all but the outermost select
        }
        said = "%20".join(f"-c{name}%3D{value}" for name, value in options.items())
        super().__init__(f"{dsn}&options={said}")
        self.plans: list[str] = []

    def _connect(self) -> psycopg.Connection:
        connection = super()._connect()
        connection.add_notice_handler(lambda notice: self.plans.append(notice.message_primary or ""))
        return connection


def test_field_36_no_plan_is_compiled_on_a_stock_postgres(stock: EmbeddedPostgres) -> None:
    name = f"explained_{time.monotonic_ns()}"
    stock.create_database(name, template="migrated")
    with Explained(stock.dsn(name)) as transport:
        buffer = Buffer(transport)
        shop = {"source_system": "shopify", "source_store_id": "shop.myshopify.com"}
        buffer.mapping_create(shop | {"hipoink_store_code": "S"})
        buffer.inbox_add([_delivery(10)])
        buffer.inbox_claim(run_id="r")
        buffer.variants_due()
        buffer.push_claim(limit=10, lease_seconds=1, max_attempts=1, run_id="r", asset="a")
        buffer.due()
        buffer.status()
        costly = [plan for plan in transport.plans if "cost=" in plan]
        compiled = [plan for plan in transport.plans if "JIT:" in plan]
        assert len(costly) > 10 and compiled == []
        # The same server compiles what does not come through a door.
        transport.plans.clear()
        with transport._connect() as connection:
            connection.execute("select count(*) from esl.webhook_inbox, esl.labels").fetchone()
        assert any("JIT:" in plan for plan in transport.plans)
