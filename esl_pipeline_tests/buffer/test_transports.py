"""Both transports against real servers: the same answers, the same errors, and what faults do to them."""

import datetime as dt
import io
import logging
import math
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer import transports
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable, Failure, Size, classify
from esl_pipeline.buffer.transports import PsycopgTransport, SupabaseTransport, Transport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.gateway import Failure as Outage
from esl_pipeline_tests.gateway import Gateway, create_supabase_roles
from esl_pipeline_tests.waiting import eventually

CANARY = "canary-7f3a91"

FUNCTIONS = """
create sequence esl_test_calls;
create function esl_test_echo(p jsonb) returns jsonb language sql as $$select p -> 'value'$$;
create function esl_test_nothing(p jsonb) returns jsonb language sql as 'select null::jsonb';
create function esl_test_setting(p jsonb) returns jsonb language sql
    as $$select to_jsonb(current_setting(p ->> 'name'))$$;
create function esl_test_raise(p jsonb) returns jsonb language plpgsql as $$begin
    raise exception using errcode = p ->> 'code', message = p ->> 'message', detail = 'a detail', hint = 'a hint';
    end$$;
create function esl_test_count(p jsonb) returns jsonb language sql security definer set search_path = ''
    as $$select to_jsonb(nextval('public.esl_test_calls'))$$;
create function esl_test_third_time(p jsonb) returns jsonb language plpgsql security definer as $$begin
    if nextval('public.esl_test_calls') < 3 then
        raise exception using errcode = p ->> 'code', message = 'not yet';
    end if;
    return '"done"';
    end$$;
create function esl_test_sleep(p jsonb) returns jsonb language sql set statement_timeout = '100ms'
    as $$select to_jsonb(pg_sleep((p ->> 'seconds')::float)::text)$$;
create function esl_test_locked(p jsonb) returns jsonb language sql
    as $$select to_jsonb(pg_advisory_xact_lock(1)::text)$$;
create function esl_test_inner(p jsonb) returns jsonb language plpgsql
    as $$begin return esl_test_helper(1); end$$;
create function esl_test_statements(p jsonb) returns jsonb language sql
    as $$select to_jsonb(count(*)) from pg_prepared_statements$$;
"""


@pytest.fixture
def gateway(database: str) -> Iterator[Gateway]:
    run_sql(database, FUNCTIONS)
    with Gateway.start(database, pool_wait_seconds=0.5) as running:
        yield running


class Both:
    """The two transports to one database, made with the same options and closed at the end."""

    def __init__(self, database: str, gateway: Gateway) -> None:
        self.database = database
        self.gateway = gateway
        self._open: list[PsycopgTransport | SupabaseTransport] = []

    def __call__(self, **options: Any) -> list[PsycopgTransport | SupabaseTransport]:
        key = SecretStr(self.gateway.service_key)
        pair: list[PsycopgTransport | SupabaseTransport] = [
            PsycopgTransport(self.database, **options),
            SupabaseTransport(self.gateway.url, key, **options),
        ]
        self._open += pair
        return pair

    def close(self) -> None:
        for transport in self._open:
            transport.close()


@pytest.fixture
def both(database: str, gateway: Gateway) -> Iterator[Both]:
    made = Both(database, gateway)
    yield made
    made.close()


def run_sql(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statements.encode())


def connections(dsn: str, application: str = "esl_pipeline") -> int:
    query = (
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = %s"
    )
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query, [application]).fetchone()
    assert row is not None
    return int(row[0])


def blocked(dsn: str) -> int:
    """Sessions that wait for the lock of esl_test_locked."""
    query = """select count(*) from pg_locks l join pg_database d on d.oid = l.database
                where d.datname = current_database() and l.locktype = 'advisory' and not l.granted"""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def terminate(dsn: str, application: str) -> None:
    """End the sessions of an application, and wait for their end."""
    run_sql(
        dsn,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        f"where datname = current_database() and application_name = '{application}'",
    )


def error_of(transport: Transport, function: str, p: dict[str, Any] | None = None) -> BufferError:
    with pytest.raises(BufferError) as caught:
        transport.call(function, p or {})
    return caught.value


def facts(error: BufferError) -> tuple[Any, ...]:
    return type(error), error.code, error.message, error.details, error.hint, error.retryable, error.too_big


# Results

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    0.1,
    "",
    "1234567890.10",
    "Äpfel 5 € 日本 \U0001f3f7 \ufeff \u202e \\ \" ' \t\n",
    r"a backslash and letters: \u0000",
    [],
    {},
    [None, [1, []], {"a": None, "b": {"c": []}}],
]


def test_both_give_back_what_was_sent(both: Both) -> None:
    for transport in both():
        for value in VALUES:
            result = transport.call("esl_test_echo", {"value": value})
            assert (type(result), result) == (type(value), value)
        assert transport.call("esl_test_echo", {}) is None
        assert transport.call("esl_test_nothing", {}) is None
        assert transport.calls == len(VALUES) + 2


def test_times_and_uuids_become_the_same_text(both: Both) -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
    number = uuid.UUID(int=7)
    value = {"at": moment, "day": moment.date(), "id": number}
    for transport in both():
        assert transport.call("esl_test_echo", {"value": value}) == {
            "at": "2026-01-02T03:04:05.000678+00:00",
            "day": "2026-01-02",
            "id": str(number),
        }


def test_five_thousand_rows_in_one_call(both: Both) -> None:
    row = {"title": "Käse", "price": "12.50", "weight": 0.25, "tags": ["a", "b"], "gone": None}
    rows = [{"id": 2**53 + n, **row, "text": "x" * 300} for n in range(5_000)]
    for transport in both():
        assert transport.call("esl_test_echo", {"value": rows}) == rows
        assert transport.calls == 1


@pytest.mark.long
def test_threads_share_a_transport(both: Both) -> None:
    for transport in both():
        with ThreadPoolExecutor(8) as threads:
            numbers = list(range(200))
            results = threads.map(lambda n, t=transport: t.call("esl_test_echo", {"value": n}), numbers)
            assert list(results) == numbers
        assert transport.calls == 200
    assert 1 <= connections(both.database) <= 4


# What is not sent


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "NaN"),
        ({"rows": [{"a": 1}, {"a": [1.5, -math.inf]}]}, "NaN"),
        ({"rows": ({"price": math.nan},)}, "NaN"),
        ("a\0b", r"\u0000"),
        ({"a\0b": 1}, r"\u0000"),
        ("two backslashes \\\\\0", r"\u0000"),
        (b"bytes", "bytes"),
        (Decimal("1.10"), "Decimal"),
        ({1: "a"}, "key"),
        ("\ud800", "surrogates"),
        (2**64, "64-bit"),
    ],
)
def test_arguments_that_cannot_travel_are_refused_before_sending(value: Any, reason: str) -> None:
    nowhere = "host=127.0.0.1 port=1"
    for transport in (PsycopgTransport(nowhere), SupabaseTransport("http://127.0.0.1:1", SecretStr("key"))):
        error = error_of(transport, "esl_test_echo", {"value": value})
        assert reason in str(error)
        assert "esl_test_echo" in str(error)
        assert not error.retryable
        assert transport.calls == 0


@pytest.mark.parametrize(
    "name", ["", "pg_sleep", "public.esl_x", "esl_x; drop table a", "esl_X", "../esl_x", "esl_x\n"]
)
def test_only_buffer_functions_can_be_called(name: str) -> None:
    for transport in (PsycopgTransport("host=x"), SupabaseTransport("http://127.0.0.1:1", SecretStr("key"))):
        with pytest.raises(ValueError, match="buffer function"):
            transport.call(name, {})


# Errors

RAISED = {
    "P0001": (BufferError, False),
    "22023": (BufferError, False),
    "23505": (BufferError, False),
    "PT409": (BufferError, False),
    "42501": (BufferError, False),
    "XX000": (BufferError, False),
    "57014": (BufferError, False),
    "40001": (BufferError, True),
    "40P01": (BufferError, True),
    "55P03": (BufferError, True),
    "08006": (BufferUnavailable, True),
    "53300": (BufferUnavailable, True),
    "57P01": (BufferUnavailable, True),
    "57P03": (BufferUnavailable, True),
    "25006": (BufferUnavailable, True),
}


def test_errors_of_functions_are_the_same_on_both(both: Both) -> None:
    over_psycopg, over_postgrest = both(attempts=1)
    for code, (kind, retryable) in RAISED.items():
        p = {"code": code, "message": "that went wrong"}
        error = error_of(over_psycopg, "esl_test_raise", p)
        assert facts(error) == facts(error_of(over_postgrest, "esl_test_raise", p))
        assert facts(error) == (
            kind,
            code,
            "that went wrong",
            "a detail",
            "a hint",
            retryable,
            code == "57014",
        )
        assert code in str(error)
        assert "a detail" not in str(error)


def test_a_call_under_which_a_migration_has_replaced_something_is_tried_again() -> None:
    def retried(code: str, message: str) -> bool:
        failure = Failure(code, message)
        return classify(failure, function="esl_due", size=Size.FIXED, credential="ESL_DATABASE_URL").retryable

    assert retried("XX000", "cache lookup failed for type 17026")
    assert retried("XX000", "function in FROM has unsupported return type")
    assert retried("42703", 'could not identify column "code" in record data type')
    assert retried("42883", "function esl.places(text[], text[]) does not exist")
    assert not retried("42883", "function public.esl_due(jsonb) does not exist")
    assert not retried("42501", "permission denied for function esl_due")
    assert not retried("XX000", "unexpected end of data")


@pytest.mark.long
def test_passing_faults_are_tried_again_and_others_are_not(both: Both) -> None:
    for transport in both(attempts=3):
        run_sql(both.database, "alter sequence esl_test_calls restart")
        assert transport.call("esl_test_third_time", {"code": "40001"}) == "done"
        assert transport.calls == 3
        run_sql(both.database, "alter sequence esl_test_calls restart")
        assert error_of(transport, "esl_test_third_time", {"code": "23505"}).code == "23505"
        assert transport.calls == 4
    for transport in both(attempts=2):
        run_sql(both.database, "alter sequence esl_test_calls restart")
        assert error_of(transport, "esl_test_third_time", {"code": "40001"}).retryable
        assert transport.calls == 2


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"rows": [{"a": 1}] * 11}, "send fewer rows per call"),
        ({"limit": 5_000}, "ask for fewer rows per call"),
        ({"limit": 1, "shop": {"source_system": "s", "source_store_id": "x"}}, "somebody holds a lock"),
        ({}, "somebody holds a lock"),
    ],
)
def test_field_40_the_advice_on_a_timeout_fits_the_call(
    both: Both, arguments: dict[str, Any], advice: str
) -> None:
    over_psycopg = both(timeout_seconds=0.1)[0]
    over_postgrest = both()[1]  # the function carries its own time-out, which counts there
    for transport in (over_psycopg, over_postgrest):
        error = error_of(transport, "esl_test_sleep", {"seconds": 5} | arguments)
        assert (error.code, error.too_big, error.retryable) == ("57014", True, False)
        assert advice in str(error)
        assert ("fewer rows" in str(error)) == ("fewer rows" in advice)
        assert transport.calls == 1


def test_missing_function_names_the_command_to_run(both: Both) -> None:
    for transport, code in zip(both(), ("42883", "PGRST202"), strict=True):
        error = error_of(transport, "esl_test_absent")
        assert error.code == code
        assert "esl_test_absent: run `esl-pipeline migrate`" in str(error)
        assert transport.calls == 1


def test_a_function_that_misses_its_helper_is_not_itself_missing(both: Both) -> None:
    for transport in both():
        error = error_of(transport, "esl_test_inner")
        assert error.code == "42883"
        assert "esl_test_helper" in str(error)
        assert "migrate" not in str(error)


def test_stale_schema_cache_is_explained_and_ends_with_the_reload(both: Both) -> None:
    over_psycopg, over_postgrest = both()
    run_sql(
        both.database,
        "create function esl_test_new(p jsonb) returns jsonb language sql as $$select '1'::jsonb$$",
    )
    assert over_psycopg.call("esl_test_new", {}) == 1
    assert "reload the schema cache" in str(error_of(over_postgrest, "esl_test_new"))
    both.gateway.reload()
    assert over_postgrest.call("esl_test_new", {}) == 1


def test_only_the_service_key_may_call(both: Both) -> None:
    run_sql(
        both.database,
        "revoke execute on function esl_test_count from public, anon;"
        "grant execute on function esl_test_count to service_role",
    )
    assert both()[1].call("esl_test_count", {}) == 1
    with SupabaseTransport(both.gateway.url, SecretStr(both.gateway.anon_key)) as anonymous:
        refused = error_of(anonymous, "esl_test_count")
        assert (refused.code, refused.retryable) == ("42501", False)
        assert "SUPABASE_SERVICE_KEY" in str(refused)
    with SupabaseTransport(both.gateway.url, SecretStr("sb_secret_other")) as stranger:
        wrong = error_of(stranger, "esl_test_count")
        assert (type(wrong), wrong.retryable) == (BufferError, False)
        assert "refused SUPABASE_SERVICE_KEY (401): Invalid API key" in str(wrong)
        assert stranger.calls == 1


def test_wrong_role_or_database_in_the_connection_string(postgres: EmbeddedPostgres) -> None:
    dsn = postgres.dsn("postgres")
    for wrong, code in (
        (dsn.replace("//postgres@", "//nobody_here@"), "28000"),
        (dsn.replace("/postgres?", "/nothing_here?"), "3D000"),
    ):
        with PsycopgTransport(wrong) as transport:
            error = error_of(transport, "esl_test_echo")
            assert (type(error), error.code, error.retryable) == (BufferError, code, False)
            assert "ESL_DATABASE_URL" in str(error) or "nothing_here" in str(error)


@contextmanager
def refusing_postgres(words: str) -> Iterator[int]:
    """A server that speaks just enough of the protocol to refuse every connection in these words."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while (head := client.recv(8)) and struct.unpack("!ii", head)[1] in (80877103, 80877104):
                    client.sendall(b"N")  # neither TLS nor GSS
                if head:
                    client.recv(4096)
                    body = b"SFATAL\0VFATAL\0CXX000\0M" + words.encode() + b"\0\0"
                    client.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        ('password authentication failed for user "postgres"', BufferError, "28P01"),
        ("Tenant or user not found", BufferError, "28000"),
        ("MaxClientsInSessionMode: max clients reached", BufferUnavailable, "53300"),
        ("sorry, too many clients already", BufferUnavailable, "53300"),
        ("the database system is starting up", BufferUnavailable, "57P03"),
        ("something new", BufferUnavailable, "08006"),
        # pgbouncer's words: what its configuration refuses, and what passes
        ("unsupported startup parameter: options", BufferError, "28000"),
        ("no such user: postgres", BufferError, "28000"),
        ("no such database: postgres", BufferError, "3D000"),
        ("SASL authentication failed", BufferError, "28P01"),
        ("no more connections allowed (max_client_conn)", BufferUnavailable, "53300"),
        ("pgbouncer cannot connect to server", BufferUnavailable, "08006"),
        ("query_wait_timeout", BufferUnavailable, "08006"),
    ],
)
def test_refused_connections_are_told_apart_by_their_words(words: str, kind: type, code: str) -> None:
    with refusing_postgres(words) as port:
        dsn = f"postgresql://postgres:{CANARY}@127.0.0.1:{port}/postgres"
        with PsycopgTransport(dsn, attempts=1) as transport:
            error = error_of(transport, "esl_test_echo")
    assert (type(error), error.code) == (kind, code)
    assert words in str(error)
    assert ("ESL_DATABASE_URL" in str(error)) == code.startswith("28")


def test_connections_to_supabase_insist_on_tls() -> None:
    with refusing_postgres("this server talks to anybody") as port:
        dsn = f"host=db.x.supabase.co hostaddr=127.0.0.1 port={port} password={CANARY} dbname=postgres user=u"
        with PsycopgTransport(dsn, attempts=1) as transport:
            assert "SSL" in str(error_of(transport, "esl_test_echo"))


# Connections


def test_connection_settings(both: Both) -> None:
    def setting(transport: Transport, name: str) -> Any:
        return transport.call("esl_test_setting", {"name": name})

    over_psycopg = both(timeout_seconds=7)[0]
    assert setting(over_psycopg, "statement_timeout") == "7s"
    assert setting(over_psycopg, "application_name") == "esl_pipeline"
    for _ in range(10):  # psycopg would prepare the sixth
        assert over_psycopg.call("esl_test_statements", {}) == 0
    own = f"{both.database}&options=-csearch_path%3Da%20-cstatement_timeout%3D3s&application_name=b"
    with PsycopgTransport(own) as transport:
        assert setting(transport, "search_path") == "a"
        assert setting(transport, "statement_timeout") == "1min", "a call's bound is the transport's"
        assert setting(transport, "application_name") == "b"


def test_connections_that_died_while_idle_are_replaced_unseen(both: Both) -> None:
    transport = both(attempts=1)[0]

    def three_calls_at_once() -> None:
        with psycopg.connect(both.database) as blocker, ThreadPoolExecutor(3) as threads:
            blocker.execute("select pg_advisory_lock(1)")
            calls = [threads.submit(transport.call, "esl_test_locked", {}) for _ in range(3)]
            eventually(lambda: blocked(both.database) == 3, 5)
            blocker.execute("select pg_advisory_unlock(1)")
            assert [call.result() for call in calls] == ["", "", ""]

    three_calls_at_once()
    terminate(both.database, "esl_pipeline")
    assert connections(both.database) == 0
    assert transport.call("esl_test_echo", {"value": 1}) == 1
    assert transport.calls == 3 + 2
    three_calls_at_once()  # the siblings of the dead connection are gone too
    assert transport.calls == 5 + 3


def test_a_connection_lost_in_mid_call_is_tried_again(both: Both) -> None:
    transport = both(attempts=2)[0]
    with psycopg.connect(both.database, autocommit=True) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("select pg_advisory_lock(1)")
        call = threads.submit(transport.call, "esl_test_locked", {})
        eventually(lambda: blocked(both.database) == 1, 5)
        terminate(both.database, "esl_pipeline")
        blocker.execute("select pg_advisory_unlock(1)")
        assert call.result() == ""
    assert transport.calls == 2


def test_gateway_that_lost_its_connection_is_asked_again(both: Both) -> None:
    once, thrice = both(attempts=1)[1], both(attempts=3)[1]
    for transport in (once, thrice):
        assert transport.call("esl_test_echo", {"value": 1}) == 1
        terminate(both.database, "test gateway")
        if transport is once:
            assert isinstance(error_of(transport, "esl_test_echo"), BufferUnavailable)
        assert transport.call("esl_test_echo", {"value": 2}) == 2


@pytest.mark.long
def test_both_survive_a_restart_of_the_server(place: Path) -> None:
    server = EmbeddedPostgres.start(place / "data", durable=False, trust=True)
    dsn = server.dsn("postgres")
    create_supabase_roles(dsn)
    run_sql(dsn, FUNCTIONS)
    try:
        with (
            Gateway.start(dsn, pool_wait_seconds=0.3) as gateway,
            PsycopgTransport(dsn, attempts=1) as over_psycopg,
            SupabaseTransport(gateway.url, SecretStr(gateway.service_key), attempts=1) as over_postgrest,
        ):
            pair = (over_psycopg, over_postgrest)
            for transport in pair:
                assert transport.call("esl_test_echo", {"value": 1}) == 1
            server.stop()
            for transport in pair:
                for _ in range(3):
                    began = time.monotonic()
                    assert isinstance(error_of(transport, "esl_test_echo"), BufferUnavailable)
                    assert time.monotonic() - began < 2
            server = EmbeddedPostgres.start(place / "data", durable=False, trust=True)
            assert over_psycopg.call("esl_test_echo", {"value": 2}) == 2
            # The gateway's own pool (as a real one) comes back with a back-off; the transport needs no new start.
            deadline = time.monotonic() + 15
            while True:
                try:
                    assert over_postgrest.call("esl_test_echo", {"value": 2}) == 2
                    break
                except BufferUnavailable:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
    finally:
        server.stop()


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for transport in (
        PsycopgTransport(f"postgresql://u@127.0.0.1:{port}/db", attempts=1),
        PsycopgTransport(f"host={tmp_path} dbname=db", attempts=1),
        SupabaseTransport(f"http://127.0.0.1:{port}", SecretStr("key"), attempts=1),
    ):
        with transport:
            began = time.monotonic()
            error = error_of(transport, "esl_test_echo")
            assert (type(error), error.code, error.retryable) == (BufferUnavailable, "08006", True)
            assert time.monotonic() - began < 2


def test_more_threads_than_connections_wait_and_then_give_up(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "_CONNECT_SECONDS", 0.1)
    with (
        PsycopgTransport(both.database, pool_size=1, attempts=1) as transport,
        psycopg.connect(both.database) as blocker,
        ThreadPoolExecutor(1) as threads,
    ):
        blocker.execute("select pg_advisory_lock(1)")
        first = threads.submit(transport.call, "esl_test_locked", {})
        eventually(lambda: blocked(both.database) == 1, 5)
        error = error_of(transport, "esl_test_echo")
        assert (type(error), error.code) == (BufferUnavailable, "53300")
        blocker.execute("select pg_advisory_unlock(1)")
        assert first.result() == ""
        assert transport.call("esl_test_echo", {"value": 1}) == 1


def test_close_gives_connections_back_and_ends_service(both: Both) -> None:
    threads = threading.active_count()
    for transport in both():
        assert transport.call("esl_test_echo", {"value": 1}) == 1
        transport.close()
        error = error_of(transport, "esl_test_echo")
        assert (type(error), error.retryable) == (BufferUnavailable, False)
        assert transport.calls == 1
    eventually(lambda: connections(both.database) == 0, 5)
    eventually(lambda: threading.active_count() <= threads, 5)


def test_a_call_that_ends_after_close_leaves_no_connection(both: Both) -> None:
    transport = both()[0]
    with psycopg.connect(both.database) as blocker, ThreadPoolExecutor(1) as threads:
        blocker.execute("select pg_advisory_lock(1)")
        call = threads.submit(transport.call, "esl_test_locked", {})
        eventually(lambda: blocked(both.database) == 1, 5)
        transport.close()
        blocker.execute("select pg_advisory_unlock(1)")
        assert call.result() == ""
    eventually(lambda: connections(both.database) == 0, 5)


# What stands between us and PostgREST


@pytest.mark.parametrize("failure", list(Outage))
def test_platform_failures_are_unavailable_and_pass(both: Both, failure: Outage) -> None:
    hasty, patient = both(attempts=1)[1], both(attempts=3)[1]
    both.gateway.fail(failure)
    error = error_of(hasty, "esl_test_count")
    assert (type(error), error.retryable) == (BufferUnavailable, True)
    assert error.code == (failure.value if failure.value.isdigit() else "08006")
    assert "<" not in str(error)
    both.gateway.fail(failure, times=2)
    result = patient.call("esl_test_count", {})
    assert patient.calls == 3
    # An answer that was lost had its effect: repeating is safe only because buffer functions are idempotent.
    assert result == (4 if failure is Outage.ANSWER_LOST else 1)


@contextmanager
def fixed_answer(status: int, content_type: str, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "content_type", "body", "kind", "code"),
    [
        (503, "application/json", '{"message": "name resolution failed"}', BufferUnavailable, "503"),
        (429, "application/json", '{"message": "API rate limit exceeded"}', BufferUnavailable, "429"),
        (540, "text/html", "<html>paused</html>", BufferUnavailable, "540"),
        (413, "text/html", "<html>too large</html>", BufferError, "413"),
        (404, "application/json", '{"error": "requested path is invalid"}', BufferError, "404"),
        (308, "text/html", "moved", BufferError, "308"),
        (200, "text/html", "<html>log in to the hotel's network</html>", BufferUnavailable, "502"),
    ],
)
def test_answers_of_others_than_postgrest(
    status: int, content_type: str, body: str, kind: type, code: str
) -> None:
    with (
        fixed_answer(status, content_type, body) as url,
        SupabaseTransport(url, SecretStr("key"), attempts=1) as transport,
    ):
        error = error_of(transport, "esl_test_echo")
    assert (type(error), error.code, error.too_big) == (kind, code, code == "413")


# Secrets and configuration


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{CANARY}@{CANARY}@127.0.0.1:1/db",
        f"postgresql://u:/{CANARY}@127.0.0.1:1/db",
        f"postgresql://u:12/{CANARY}@127.0.0.1:1/db",
        f"postgresql://u:a%zz{CANARY}@127.0.0.1:1/db",
        f"host=127.0.0.1 {CANARY}",
        f"host=127.0.0.1 port={CANARY}",
    ],
)
def test_connection_strings_that_cannot_be_read_are_not_quoted(dsn: str) -> None:
    with PsycopgTransport(dsn) as transport:
        error = error_of(transport, "esl_test_echo")
        assert "ESL_DATABASE_URL" in str(error)
        assert "ESL_DATABASE_URL" in transport.describe()
        assert_no_canary(transport, error)


@pytest.mark.parametrize(
    ("url", "key", "named"),
    [
        ("project.supabase.co", "key", "SUPABASE_URL"),
        ("https://x.supabase.co/rest/v1", "key", "SUPABASE_URL"),
        (f"https://u:{CANARY}@x.supabase.co", "key", "SUPABASE_URL"),
        ("http://[::1", "key", "SUPABASE_URL"),
        ("http://127.0.0.1:port", "key", "SUPABASE_URL"),
        ("http://127.0.0.1:1", "", "SUPABASE_SERVICE_KEY"),
        ("http://127.0.0.1:1", f"{CANARY}\n", "SUPABASE_SERVICE_KEY"),
        ("http://127.0.0.1:1", f"{CANARY}…", "SUPABASE_SERVICE_KEY"),
    ],
)
def test_wrong_supabase_settings_are_named_and_not_quoted(url: str, key: str, named: str) -> None:
    with SupabaseTransport(url, SecretStr(key)) as transport:
        error = error_of(transport, "esl_test_echo")
        assert named in str(error)
        assert not error.retryable
        assert_no_canary(transport, error)


def assert_no_canary(transport: Transport, error: BufferError) -> None:
    report = traceback.TracebackException.from_exception(error)
    texts = [repr(transport), str(transport), transport.describe(), repr(error), str(error), *report.format()]
    texts += [str(value) for value in vars(error).values()]
    assert CANARY not in "\n".join(texts)
    assert error.__context__ is None
    assert error.__cause__ is None


@pytest.mark.long
def test_secrets_stay_out_of_logs_and_errors(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    key = SecretStr(both.gateway.service_key)
    try:
        with (
            PsycopgTransport(both.database.replace("postgres@", f"postgres:{CANARY}@")) as over_psycopg,
            SupabaseTransport(both.gateway.url, key) as over_postgrest,
            SupabaseTransport(both.gateway.url, SecretStr(CANARY)) as stranger,
        ):
            both.gateway.fail(Outage.DROPPED)
            for transport in (over_psycopg, over_postgrest):
                assert transport.call("esl_test_echo", {"value": 1}) == 1
                error = error_of(transport, "esl_test_raise", {"code": "40001", "message": "again"})
                assert_no_canary(transport, error)
            assert_no_canary(stranger, error_of(stranger, "esl_test_echo"))
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    log = (
        written.getvalue() + capsys.readouterr().out
    )  # stamina prints through structlog where that is installed
    assert "HTTP Request: POST" in log
    assert "stamina.retry_scheduled" in log
    assert CANARY not in log
    assert key.get_secret_value() not in log


def test_describe_names_kind_and_place() -> None:
    assert PsycopgTransport(f"postgresql://u:{CANARY}@db.example:6543/shop").describe() == (
        "Postgres at db.example:6543/shop"
    )
    assert repr(SupabaseTransport("https://abc.supabase.co/", SecretStr(CANARY))) == (
        "SupabaseTransport(Supabase at abc.supabase.co)"
    )


def test_drivers_are_loaded_only_when_used() -> None:
    script = (
        "import sys, esl_pipeline.buffer.transports as t\n"
        "t.PsycopgTransport('host=x'); t.SupabaseTransport('http://x', t.SecretStr('k'))\n"
        "print(sorted({'psycopg', 'supabase', 'postgrest', 'httpx'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# The table


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        ("PGRST000", BufferUnavailable, True),
        ("PGRST001", BufferUnavailable, True),
        ("PGRST002", BufferUnavailable, True),
        ("PGRST003", BufferUnavailable, True),
        ("520", BufferUnavailable, True),
        ("57P02", BufferUnavailable, True),
        ("PGRST100", BufferError, False),
        ("PGRST203", BufferError, False),
        ("PGRST301", BufferError, False),
        ("28P01", BufferError, False),
        ("PT503", BufferError, False),
        ("400", BufferError, False),
        (None, BufferError, False),
    ],
)
def test_classification(code: str | None, kind: type, retryable: bool) -> None:
    error = classify(
        Failure(code, "words"), function="esl_x", size=Size.FIXED, credential="SUPABASE_SERVICE_KEY"
    )
    assert (type(error), error.retryable, error.message) == (kind, retryable, "words")
    assert "words" in str(error)
    assert ("SUPABASE_SERVICE_KEY" in str(error)) == (code in ("PGRST301", "28P01"))
