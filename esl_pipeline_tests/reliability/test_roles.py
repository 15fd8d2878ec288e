"""Least privilege: what each role may do on the buffer, tried with real logins, and what it may not."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.stack import make_logins
from esl_pipeline.stages.drain import drain_round
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.orchestration.world import STORE, arrive, map_shop, product
from esl_pipeline_tests.world import ASSET, RULES, RUN

GROUPS = ("esl_receiver", "esl_pipeline", "esl_admin")
API_ROLES = ("anon", "authenticated", "service_role")
STATEMENTS = (
    "select from {}",
    "insert into {} default values",
    "update {} set {} = null",
    "delete from {}",
    "truncate {}",
)


def login(dsn: str, group: str) -> str:
    """The address of a login that is a member of one group and nothing else."""
    name = f"login_{group}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        if not connection.execute("select 1 from pg_roles where rolname = %s", [name]).fetchone():
            connection.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
        connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(group), sql.Identifier(name)))
    return dsn.replace("//postgres@", f"//{name}@")


def functions(dsn: str) -> list[str]:
    """The names of all functions that a client could call."""
    query = (
        r"select proname from pg_proc where pronamespace = 'public'::regnamespace and proname like 'esl\_%'"
    )
    with psycopg.connect(dsn) as connection:
        return sorted(name for (name,) in connection.execute(query))


def allowed(dsn: str) -> dict[str, set[str]]:
    """What each role really gets past the gate of, one function after the other."""
    found: dict[str, set[str]] = {}
    for group in GROUPS:
        with psycopg.connect(login(dsn, group), autocommit=True) as connection:
            found[group] = {name for name in functions(dsn) if _may_call(connection, name)}
    return found


def _may_call(connection: psycopg.Connection, function: str) -> bool:
    call = sql.SQL("select public.{}('{{}}')").format(sql.Identifier(function))
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(call)
    except psycopg.errors.InsufficientPrivilege as error:
        assert f"permission denied for function {function}" in str(error)
        return False
    except psycopg.Error:
        pass  # let in; it only misses its arguments
    return True


def test_s21_every_function_is_somebodys(buffer_dsn: str) -> None:
    """A new function is named in functions/access.sql, or nobody but service_role could call it."""
    with psycopg.connect(buffer_dsn) as connection:
        named = connection.execute("select role, function from esl.callers()").fetchall()
    assert {role for role, _ in named} == set(GROUPS)
    patterns = [pattern for _, pattern in named]
    existing = functions(buffer_dsn)

    def covers(pattern: str, function: str) -> bool:
        return function.startswith(pattern[:-1]) if pattern.endswith("*") else function == pattern

    assert [f for f in existing if not any(covers(p, f) for p in patterns)] == []


def test_s21_each_role_may_call_what_its_process_needs_and_nothing_else(buffer_dsn: str) -> None:
    found = allowed(buffer_dsn)
    everything = set(functions(buffer_dsn))
    assert found["esl_receiver"] == {"esl_version", "esl_inbox_add"}
    for group in ("esl_pipeline", "esl_admin"):
        assert found[group] < everything and "esl_inbox_add" not in found[group]
    # Nobody but an administrator decides; nobody but the pipeline reports what the label server said.
    decisions = {"esl_mapping_create", "esl_mapping_update", "esl_changes_approve", "esl_redrive"}
    work = {"esl_inbox_claim", "esl_variants_merge", "esl_labels_stage", "esl_push_claim", "esl_push_finish"}
    assert decisions <= found["esl_admin"] and not decisions & found["esl_pipeline"]
    assert work <= found["esl_pipeline"] and not work & found["esl_admin"]


def test_s21_no_role_touches_a_table_or_an_inner_function(buffer_dsn: str) -> None:
    """So no application can change or delete audit, ledger or price history, whatever it is made to run."""
    with psycopg.connect(buffer_dsn) as connection:
        tables = connection.execute(
            "select c.relname, min(a.attname) from pg_class c"
            " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
            " where c.relnamespace = 'esl'::regnamespace and c.relkind in ('r', 'v') group by 1"
        ).fetchall()
        inner = connection.execute(
            "select p.oid::regproc::text, pronargs from pg_proc p"
            " where pronamespace = 'esl'::regnamespace and prorettype <> 'trigger'::regtype"
        ).fetchall()
    assert {"sync_log", "hipoink_products", "price_history", "webhook_inbox"} <= {name for name, _ in tables}
    tried = 0
    for group in GROUPS:
        with psycopg.connect(login(buffer_dsn, group), autocommit=True) as connection:
            for table, column in tables:
                for statement in STATEMENTS:
                    names = sql.Identifier("esl", table), sql.Identifier(column)
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(sql.SQL(statement).format(*names))
                    tried += 1
            for function, arguments in inner:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"select {function}({', '.join(['null'] * arguments)})".encode())
            for change in ("create table esl.t ()", "create table public.t ()", "create function public.f() returns int"
                           " language sql as 'select 1'", "alter table esl.sync_log disable trigger all"):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(change.encode())
    assert tried == len(GROUPS) * len(tables) * len(STATEMENTS) > 200


@pytest.mark.parametrize("role", API_ROLES)
def test_s20_the_roles_of_the_api_reach_no_table(buffer_dsn: str, role: str) -> None:
    """anon and authenticated may call nothing either; service_role, which bypasses row security, all functions."""
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        tables = connection.execute(
            "select relname from pg_class where relnamespace = 'esl'::regnamespace and relkind in ('r', 'v')"
        ).fetchall()
        names = functions(buffer_dsn)
        connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        for (table,) in tables:
            for statement in ("select from {}", "delete from {}", "truncate {}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(sql.SQL(statement).format(sql.Identifier("esl", table)))
        may = [name for name in names if _may_call(connection, name)]
    assert may == (names if role == "service_role" else [])


def test_s20_what_a_hosted_project_grants_by_default_is_taken_back(database: str) -> None:
    """Supabase's default privileges open every new function in public to the API's roles."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "alter default privileges in schema public grant all on functions to anon, authenticated, service_role"
        )
        migrate(database)
        for role in ("anon", "authenticated"):
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
            assert [name for name in functions(database) if _may_call(connection, name)] == []
            connection.execute("reset role")


def test_s21_even_the_owner_changes_no_audit(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        guarded = connection.execute(
            "select c.relname, min(a.attname) from pg_trigger t join pg_class c on c.oid = t.tgrelid"
            " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
            " where t.tgname like '%append_only' and a.attidentity = '' group by 1"
        ).fetchall()
        assert {"sync_log", "approvals", "drift"} <= {table for table, _ in guarded}
        for table, column in guarded:
            for statement in ("update {0} set {1} = {1}", "delete from {0}", "truncate {0}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    names = sql.Identifier("esl", table), sql.Identifier(column)
                    connection.execute(sql.SQL(statement).format(*names))


@contextmanager
def open_as(dsn: str, group: str) -> Iterator[Buffer]:
    with PsycopgTransport(SecretStr(login(dsn, group))) as transport:
        buffer = Buffer(transport)
        buffer.check_version()
        yield buffer


def test_s21_a_label_gets_to_the_shelf_with_three_logins(buffer_dsn: str) -> None:
    """An administrator maps, the receiver keeps, the pipeline pushes: each with its own login, none with more."""
    with ExitStack() as stack:
        receiver, pipeline, admin = (stack.enter_context(open_as(buffer_dsn, group)) for group in GROUPS)
        sandbox = stack.enter_context(running_sandbox())
        client = stack.enter_context(client_of(sandbox.url))
        map_shop(admin)
        arrive(receiver, product(1))
        drain_round(pipeline, client, RULES, run_id=RUN, asset=ASSET)
        assert sandbox.state()["labels"][STORE]["C-1"]["pp"] == "1.50"
        assert admin.status()["stores"][0]["on_labels"] == 1
        (place,) = admin.trace("C-1")
        assert [row["kind"] for row in place["log"]] == ["result", "intent"]
        for buffer, call in ((receiver, receiver.status), (pipeline, pipeline.redrive), (admin, admin.due)):
            with pytest.raises(BufferError) as refused:
                call()
            assert refused.value.code == "42501" and not refused.value.retryable, buffer


def test_s21_the_roles_are_made_where_that_is_allowed_and_else_said() -> None:
    """As Supabase's postgres (may create roles, no superuser), and as an owner who may not."""
    with EmbeddedPostgres.temporary() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role owner login")
            connection.execute("create role platform login createrole")
            connection.execute("create database without owner owner")
            connection.execute("create database hosted owner platform")
        without, hosted = server.dsn("without", user="owner"), server.dsn("hosted", user="platform")

        said: list[str] = []
        assert migrate(without, warn=said.append)[-1] == "functions"
        assert [warning.split()[1] for warning in said] == sorted(GROUPS)
        assert all("owner may not create it" in warning and "create role" in warning for warning in said)
        with PsycopgTransport(SecretStr(without)) as transport:
            Buffer(transport).check_version()

        said.clear()
        assert migrate(hosted, warn=said.append)[-1] == "functions"
        assert said == []
        with psycopg.connect(hosted, autocommit=True) as connection:  # the lines of SECURITY.md
            connection.execute("create role shelf_receiver login password 'x'")
            connection.execute("grant esl_receiver to shelf_receiver")
        with PsycopgTransport(SecretStr(server.dsn("hosted", user="shelf_receiver"))) as transport:
            assert Buffer(transport).inbox_add([]) == {"received": 0, "inserted": 0}
            with pytest.raises(BufferError):
                Buffer(transport).status()

        assert migrate(without, warn=said.append) == [] and said == []  # now the roles are there
        with psycopg.connect(without) as connection:
            granted = (
                "select has_function_privilege('esl_receiver', 'public.esl_inbox_add(jsonb)', 'execute')"
            )
            assert connection.execute(granted.encode()).fetchone() == (True,)

        server.create_database("esl")
        migrate(server.dsn("esl"))
        for _ in range(2):
            make_logins(server)
        with psycopg.connect(server.dsn("esl", user="up_pipeline"), autocommit=True) as connection:
            assert _may_call(connection, "esl_push_claim") and not _may_call(connection, "esl_inbox_add")
        with psycopg.connect(server.dsn("esl", user="up_receiver"), autocommit=True) as connection:
            assert _may_call(connection, "esl_inbox_add") and _may_call(connection, "esl_mapping_create")
            assert not _may_call(connection, "esl_push_claim")
