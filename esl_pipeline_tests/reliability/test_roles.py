"""Least privilege: what each role may do on the buffer, tried with real logins, and what it may not."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.databases import make_logins
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS
from esl_pipeline.sources.shopify.shop_names import SHOP
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.orchestration.world import STORE, arrive, map_shop, product
from esl_pipeline_tests.world import RULES, drain_round

pytestmark = pytest.mark.long

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
    assert found["esl_receiver"] == {"esl_version", "esl_inbox_add", "esl_refusals_note"}
    for group in ("esl_pipeline", "esl_admin"):
        assert found[group] < everything and "esl_inbox_add" not in found[group]
    # Nobody but an administrator decides; nobody but the pipeline reports what the label server said.
    decisions = {"esl_mapping_create", "esl_mapping_update", "esl_changes_approve", "esl_redrive"}
    decisions |= {"esl_owner_settle", "esl_connection_set", "esl_connection_end"}
    decisions |= {name for name in everything if name.startswith("esl_operator_")}
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


# Audit and price history: each table with one of its columns.
APPEND_ONLY = {
    "sync_log": "code",
    "price_history": "price",
    "approvals": "by",
    "drift": "code",
    "refreshes": "outcome",
    "mapping_changes": "by",
}


@pytest.mark.parametrize(("table", "column"), APPEND_ONLY.items())
def test_s21_even_the_owner_changes_no_audit(buffer_dsn: str, table: str, column: str) -> None:
    names = sql.Identifier("esl", table), sql.Identifier(column)
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        for statement in ("update {0} set {1} = {1}", "delete from {0}", "truncate {0}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=rf"esl\.{table} is append-only"):
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
        drain_round(pipeline, client, RULES)
        assert sandbox.state()["labels"][STORE]["C-1"]["pp"] == "1.50"
        assert admin.status()["stores"][0]["on_labels"] == 1
        (place,) = admin.trace("C-1")
        assert [row["kind"] for row in place["log"]] == ["result", "intent"]
        for buffer, call in ((receiver, receiver.status), (pipeline, pipeline.redrive), (admin, admin.due)):
            with pytest.raises(BufferError) as refused:
                call()
            assert refused.value.code == "42501" and not refused.value.retryable, buffer


EVIL = "evil.example.com"


def test_s38_no_login_maps_what_is_no_shop_and_no_token_goes_there(buffer_dsn: str) -> None:
    with open_as(buffer_dsn, "esl_admin") as admin:
        made = map_shop(admin)
        for call in (
            lambda: map_shop(admin, EVIL, "S2"),
            lambda: map_shop(admin, "Corner-Shop.myshopify.com", "S2"),
            lambda: map_shop(admin, f"{EVIL}/x.myshopify.com", "S2"),
            lambda: map_shop(admin, store="S2", source_system="Shopify"),
            lambda: map_shop(admin, f"{EVIL}/Shop", "S2", source_system="woocommerce"),
            lambda: map_shop(admin, f"..{EVIL}", "S2", source_system="woocommerce"),
            lambda: map_shop(admin, "../corner", "S2", source_system="files"),
            lambda: map_shop(admin, "corner market", "S2", source_system="square"),
            lambda: admin.mapping_update(made["id"], {"source_store_id": EVIL}),
        ):
            with pytest.raises(BufferError, match=r"is no shop of the source|no source is called") as refused:
                call()
            assert refused.value.code == "22023"
        assert len(admin.mapping_list()) == 1
    # Nor does the owner by hand, past the functions.
    with psycopg.connect(buffer_dsn) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("update esl.store_mappings set source_store_id = %s", [EVIL])
    # And where a name comes from somewhere else, e.g. a partition added by hand, no token is sent to it.
    settings = load_settings(shopify_admin_token="shpat_of_every_shop")
    for name in (EVIL, f"{EVIL}/x.myshopify.com", f"x@{EVIL}", "Corner-Shop.myshopify.com", ""):
        with pytest.raises(ValueError, match="is no shop's domain"):
            settings.sources["shopify"].open_admin(name)
    assert "corner-shop" in repr(settings.sources["shopify"].open_admin("corner-shop.myshopify.com"))


def test_s38_the_history_keeps_the_login_beside_the_name_that_was_given(buffer_dsn: str) -> None:
    with open_as(buffer_dsn, "esl_admin") as admin:
        named = {"source_system": "shopify", "source_store_id": "a.myshopify.com", "hipoink_store_code": "S1"}
        admin.mapping_create(named, by="ceo")
        (change,) = admin.mapping_history()
        assert (change["by"], change["db_user"]) == ("ceo", "login_esl_admin")
        with psycopg.connect(buffer_dsn) as connection:
            connection.execute(
                "insert into esl.sync_queue"
                " (store_code, code, mapping_id, variant_id, operation, priority, state, drastic)"
                " values ('S1', 'C-1', %s, '1', 'delete', 3, 'guarded', 'removal')",
                [change["mapping_id"]],
            )
        admin.changes_approve(store="S1", by="ceo")
    with psycopg.connect(buffer_dsn) as connection:
        rows = connection.execute("select by, db_user from esl.approvals").fetchall()
    assert rows == [("ceo", "login_esl_admin")]


AUDIT = (
    *("sync_log", "price_history", "approvals", "drift", "refreshes", "label_actions", "mapping_changes"),
    *("operator_actions", "store_pauses"),
)


def test_s38_what_operators_did_is_kept_with_their_login_and_nobody_changes_it(buffer_dsn: str) -> None:
    """No role reaches a row of any audit table, and the owner cannot change one either."""
    with open_as(buffer_dsn, "esl_admin") as admin:
        map_shop(admin)
        admin.store_pause(store="S1", reason="stock-taking", by="ceo")
        admin.store_resume(store="S1", by="ceo", verified=True, run_id="r")
        kept = admin.operator_actions()
    who = [(row["action"], row["by"], row["verified"], row["run_id"], row["db_user"]) for row in kept]
    assert who == [
        ("resume", "ceo", True, "r", "login_esl_admin"),
        ("pause", "ceo", False, None, "login_esl_admin"),
    ]
    for group in GROUPS:
        with psycopg.connect(login(buffer_dsn, group), autocommit=True) as connection:
            for table in AUDIT:
                for change in ("update esl.{} set id = id", "delete from esl.{}", "truncate esl.{}"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(sql.SQL(change).format(sql.Identifier(table)))
    for group in ("esl_pipeline", "esl_receiver"):
        with open_as(buffer_dsn, group) as other, pytest.raises(BufferError) as refused:
            other.store_pause(store="S1", reason="x", by="x")
        assert refused.value.code == "42501"
    with psycopg.connect(buffer_dsn, autocommit=True) as owner:
        for table in AUDIT:
            for change in ("delete from esl.{}", "truncate esl.{}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                    owner.execute(sql.SQL(change).format(sql.Identifier(table)))
        rows = owner.execute("select count(*) from esl.operator_actions").fetchone()
    assert rows == (2,)


DELIVERY = {
    "source_system": "shopify",
    "source_store_id": "corner-shop.myshopify.com",
    "topic": "products/update",
    "webhook_id": "w",
    "body_base64": "e30=",
    "body_sha256": "a",
    "state": "ready",
}
FORGED: dict[str, dict[str, Any]] = {
    "an impossible source": {"source_system": "Shopify"},
    "a source without webhooks": {"source_system": "files", "source_store_id": "corner"},
    "another source's topic": {"source_system": "woocommerce", "source_store_id": "shop.example.com"},
    "another source's shop": {
        "source_system": "woocommerce",
        "source_store_id": "/",
        "topic": "product.updated",
    },
    "a topic that is no word": {"source_system": "square", "source_store_id": "L1", "topic": "x" * 65},
    "a lifecycle message of a source without": {
        "source_system": "square",
        "source_store_id": "L1",
        "topic": "app/uninstalled",
        "state": "done",
        "body_base64": None,
    },
    "no source": {"source_system": None},
    "no shop": {"source_store_id": EVIL},
    "an unknown topic": {"topic": "orders/create"},
    "no topic": {"topic": None},
    "done at once": {"state": "done"},
    "leased": {"state": "leased"},
    "superseded": {"state": "superseded"},
    "no state, of a source that SQL cannot judge": {
        "source_system": "square",
        "source_store_id": "L1",
        "state": None,
    },
    "a lifecycle message to be read": {"topic": "shop/redact", "body_base64": None},
    "personal data": {"topic": "customers/redact", "state": "done"},
    "uninstalled in the year 2126": {
        "topic": "app/uninstalled",
        "state": "done",
        "body_base64": None,
        "said_at": "2126-01-01T00:00:00Z",
    },
}


@pytest.mark.parametrize("case", FORGED)
def test_s39_a_receivers_login_can_say_no_more_than_a_receiver(buffer_dsn: str, case: str) -> None:
    with open_as(buffer_dsn, "esl_receiver") as receiver:
        with pytest.raises(BufferError) as refused:
            receiver.inbox_add([DELIVERY | {"webhook_id": "good"}, DELIVERY | FORGED[case]])
        assert refused.value.code == "22023"
        assert receiver.inbox_add([DELIVERY])["inserted"] == 1


def test_s39_what_sql_knows_of_a_source_is_what_the_receiver_takes(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        source = connection.execute(
            "select system, shop, topics, lifecycle from esl.sources() where system = 'shopify'"
        ).fetchone()
    assert source == ("shopify", f"^{SHOP.pattern}$".replace("\\.", "[.]"), [*TOPICS], [*LIFECYCLE_TOPICS])


def test_s39_an_erasure_waits_two_days_and_is_told(buffer_dsn: str) -> None:
    """A receiver's login switches a shop off and has it erased: people see it, and have time."""
    done = {"state": "done", "body_base64": None}
    left = DELIVERY | done | {"topic": "app/uninstalled", "said_at": datetime.now(UTC).isoformat()}
    with ExitStack() as stack:
        receiver, pipeline, admin = (stack.enter_context(open_as(buffer_dsn, group)) for group in GROUPS)
        made = map_shop(admin)
        with psycopg.connect(buffer_dsn) as connection:
            connection.execute("update esl.store_mappings set activated_at = now() - interval '1 d'")
        receiver.inbox_add(
            [left, DELIVERY | done | {"topic": "shop/redact", "webhook_id": "r", "body_sha256": "b"}]
        )
        (order,) = admin.status()["erasures"]
        waits = datetime.fromisoformat(order["not_before"]) - datetime.fromisoformat(order["requested_at"])
        assert waits >= timedelta(hours=47.9)
        assert admin.status()["stores"][0]["switched_off"]
        assert admin.mapping_history()[0]["db_user"] == "login_esl_receiver"
        # Neither housekeeping nor whoever has its login comes before the time.
        assert pipeline.redaction_list() == []
        with psycopg.connect(buffer_dsn) as connection:
            ids = connection.execute("select id from esl.redactions").fetchall()
        assert pipeline.redaction_decide(ids[0][0], token_works=False) == {"confirmed": False}
        assert pipeline.housekeep(keep_bodies_days=1)["redacted"] == 0
        admin.mapping_update(made["id"], {"is_active": True})
        assert pipeline.redaction_list() == [] and admin.status()["erasures"] == []


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
