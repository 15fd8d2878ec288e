"""The imitation answers as PostgREST and Supabase's key gate are documented to answer."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from esl_pipeline_tests.gateway import ROLES, Failure, Gateway, create_supabase_roles

FUNCTIONS = """
create table esl_test_log (note text);
create function esl_test_echo(p jsonb) returns jsonb language sql as 'select p';
create function esl_test_is_null(p jsonb) returns jsonb language sql as 'select to_jsonb(p is null)';
create function esl_test_add(a int, b int default 10) returns int language sql as 'select a + b';
create function esl_test_whole(jsonb) returns jsonb language sql as 'select $1';
create function esl_test_void(a int) returns void language sql as $$insert into esl_test_log values ('void')$$;
create function esl_test_pair(out a int, out b text) language sql as $$select 1, 'x'::text$$;
create function esl_test_none() returns jsonb language sql as 'select null::jsonb';
create function esl_test_series(n int) returns setof int language sql as 'select generate_series(1, n)';
create function esl_test_table(n int) returns table (a int, b text) language sql as $$select n, 'x'::text$$;
create function esl_test_write(n int) returns setof text language sql
    as $$insert into esl_test_log select 'row' from generate_series(1, n) returning note$$;
create function esl_test_write_all(n int) returns jsonb language sql
    as $$with w as (insert into esl_test_log select 'row' from generate_series(1, n) returning note)
         select jsonb_agg(note) from w$$;
create function esl_test_over(a int) returns int language sql as 'select a';
create function esl_test_over(a text) returns text language sql as 'select a';
create function esl_test_setting(name text) returns text language sql as 'select current_setting(name)';
create function esl_test_stable_setting(name text) returns text language sql stable
    as 'select current_setting(name)';
create function esl_test_whoami() returns jsonb language sql as
    $$select jsonb_build_object('session', session_user, 'current', current_user)$$;
create function esl_test_stable_write() returns jsonb language plpgsql stable as
    $$begin insert into esl_test_log values ('stable'); return 'true'; end$$;
create function esl_test_raise(code text, message text, detail text default null) returns jsonb language plpgsql
    as $$begin
        insert into esl_test_log values ('before the error');
        if detail is null then raise exception using errcode = code, message = message, hint = 'a hint'; end if;
        raise exception using errcode = code, message = message, detail = detail;
    end$$;
create function esl_test_answer(status text, headers text) returns jsonb language plpgsql as
    $$begin
        perform set_config('response.status', status, true), set_config('response.headers', headers, true);
        return '{"done": true}';
    end$$;
grant insert, select on esl_test_log to anon, service_role;
"""


@pytest.fixture
def gateway(database: str) -> Iterator[Gateway]:
    execute(database, FUNCTIONS)
    with Gateway.start(database) as running:
        yield running


def execute(dsn: str, statements: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(statements.encode())


def log_size(dsn: str) -> int:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select count(*) from esl_test_log").fetchone()
    assert row is not None
    return int(row[0])


def post(url: str, **request: Any) -> httpx.Response:
    return httpx.post(url, verify=False, **request)  # plain HTTP: no certificates to load


def rpc(gateway: Gateway, function: str, body: Any = None, **headers: str) -> httpx.Response:
    """Call with the service key, unless headers say otherwise."""
    sent = {"apikey": gateway.service_key} | {key.replace("_", "-"): value for key, value in headers.items()}
    return post(f"{gateway.url}/rest/v1/rpc/{function}", json=body or {}, headers=sent)


def test_arguments_are_typed_and_named(gateway: Gateway) -> None:
    assert rpc(gateway, "esl_test_add", {"a": 1}).json() == 11
    assert rpc(gateway, "esl_test_add", {"a": "7", "b": 1}).json() == 8
    assert rpc(gateway, "esl_test_add", {"a": 1, "b": None}).json() is None
    assert rpc(gateway, "esl_test_is_null", {"p": None}).json() is True
    assert rpc(gateway, "esl_test_echo", {"p": '{"a": 1}'}).json() == '{"a": 1}'
    assert rpc(gateway, "esl_test_add", [{"a": 1}, {"a": 2}]).json() == 11
    assert rpc(gateway, "esl_test_whole", {"any": [1]}).json() == {"any": [1]}


def test_results_have_the_shape_of_the_return_type(gateway: Gateway) -> None:
    void = rpc(gateway, "esl_test_void", {"a": 1})
    assert (void.status_code, void.content) == (204, b"")
    assert rpc(gateway, "esl_test_pair").json() == {"a": 1, "b": "x"}
    assert rpc(gateway, "esl_test_none").text == "null"
    assert rpc(gateway, "esl_test_table", {"n": 3}).json() == [{"a": 3, "b": "x"}]
    series = rpc(gateway, "esl_test_series", {"n": 3})
    assert (series.json(), series.headers["Content-Range"]) == ([1, 2, 3], "0-2/*")
    assert rpc(gateway, "esl_test_series", {"n": 0}).json() == []


def test_max_rows_cut_sets_without_a_mark_but_not_their_effects(gateway: Gateway, database: str) -> None:
    cut = rpc(gateway, "esl_test_write", {"n": 1500})
    assert (len(cut.json()), cut.status_code, log_size(database)) == (1000, 200, 1500)
    assert len(rpc(gateway, "esl_test_write_all", {"n": 1500}).json()) == 1500


def test_requests_it_does_not_understand(gateway: Gateway) -> None:
    def refusal(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["code"]

    headers = {"apikey": gateway.service_key}
    base = f"{gateway.url}/rest/v1/rpc/esl_test_echo"
    assert refusal(post(f"{gateway.url}/rest/v1/esl_test_log", headers=headers)) == (404, "PGRST125")
    assert refusal(httpx.get(base, headers=headers, verify=False)) == (405, "PGRST101")
    assert refusal(post(f"{base}?select=a", headers=headers)) == (400, "GATEWAY")
    assert refusal(post(base, headers=headers, content=b"{")) == (400, "PGRST102")
    assert refusal(post(base, headers=headers, json=[{"p": 1}, {"q": 1}])) == (400, "PGRST102")
    form = post(base, headers=headers, data={"p": "1"})
    assert refusal(form) == (400, "PGRST102")
    assert refusal(rpc(gateway, "esl_test_echo", Content_Profile="esl")) == (406, "PGRST106")


def test_function_lookup_explains_itself(gateway: Gateway) -> None:
    missing = rpc(gateway, "esl_test_echo", {"q": 1, "p": 2})
    assert missing.status_code == 404
    assert missing.headers["Proxy-Status"] == "PostgREST; error=PGRST202"
    assert missing.json() == {
        "code": "PGRST202",
        "message": "Could not find the function public.esl_test_echo(p, q) in the schema cache",
        "details": "Searched for the function public.esl_test_echo with parameters p, q or with a single unnamed "
        "json/jsonb parameter, but no matches were found in the schema cache.",
        "hint": None,
    }
    ambiguous = rpc(gateway, "esl_test_over", {"a": 1})
    assert (ambiguous.status_code, ambiguous.json()["code"]) == (300, "PGRST203")
    assert "public.esl_test_over(a => integer)" in ambiguous.json()["message"]


def test_function_cache_is_as_old_as_the_last_reload(gateway: Gateway, database: str) -> None:
    execute(database, "create function esl_test_new() returns jsonb language sql as $$select '1'::jsonb$$")
    execute(database, "drop function esl_test_none")
    assert rpc(gateway, "esl_test_new").json()["code"] == "PGRST202"
    gone = rpc(gateway, "esl_test_none")
    assert (gone.status_code, gone.json()["code"]) == (404, "42883")
    gateway.reload()
    assert rpc(gateway, "esl_test_new").json() == 1
    assert rpc(gateway, "esl_test_none").json()["code"] == "PGRST202"


def test_key_gate(gateway: Gateway) -> None:
    url = f"{gateway.url}/rest/v1/rpc/esl_test_whoami"
    absent = post(url, json={})
    assert (absent.status_code, absent.json()["message"]) == (401, "No API key found in request")
    wrong = rpc(gateway, "esl_test_whoami", apikey="sb_secret_other")
    assert (wrong.status_code, wrong.json()["code"], wrong.json()["message"]) == (
        401,
        None,
        "Invalid API key",
    )

    def role(**headers: str) -> str:
        return str(rpc(gateway, "esl_test_whoami", **headers).json()["current"])

    assert role() == role(Authorization=f"Bearer {gateway.service_key}") == "service_role"
    assert role(apikey=gateway.anon_key) == "anon"
    assert (
        role(apikey=gateway.anon_key, Authorization=f"Bearer {gateway.token('authenticated')}")
        == "authenticated"
    )


def test_tokens_are_verified(gateway: Gateway) -> None:
    def refusal(token: str) -> tuple[int, str]:
        answer = rpc(gateway, "esl_test_whoami", Authorization=f"Bearer {token}")
        return answer.status_code, answer.json()["code"]

    good = gateway.token("service_role")
    assert refusal("sb_secret_other") == (401, "PGRST301")
    assert refusal(good[:-4] + "AAAA") == (401, "PGRST301")
    assert refusal(gateway.token("service_role", expires_in=-1)) == (401, "PGRST303")
    assert refusal(gateway.token("nobody_here")) == (401, "22023")


def test_request_runs_as_the_role_and_can_read_its_own_circumstances(gateway: Gateway) -> None:
    assert rpc(gateway, "esl_test_whoami").json() == {"session": "authenticator", "current": "service_role"}

    def setting(name: str, **headers: str) -> Any:
        return rpc(gateway, "esl_test_setting", {"name": name}, **headers).json()

    assert setting("search_path") == '"public", "public", "extensions"'
    assert '"role": "service_role"' in setting("request.jwt.claims")
    assert '"x-shop": "a"' in setting("request.headers", X_Shop="a")
    assert setting("request.path") == "/rpc/esl_test_setting"


def test_timeouts_are_those_of_the_role(gateway: Gateway) -> None:
    def setting(name: str, key: str) -> Any:
        return rpc(gateway, "esl_test_setting", {"name": name}, apikey=key).json()

    assert setting("statement_timeout", gateway.anon_key) == "3s"
    assert setting("statement_timeout", gateway.service_key) == "8s"
    assert setting("lock_timeout", gateway.service_key) == "8s"


def test_a_function_sets_its_own_statement_timeout(gateway: Gateway, database: str) -> None:
    execute(
        database,
        """create function esl_test_slow() returns jsonb language sql set statement_timeout = '50ms'
           as $$select to_jsonb(pg_sleep(5)::text)$$""",
    )
    gateway.reload()
    answer = rpc(gateway, "esl_test_slow")
    assert (answer.status_code, answer.json()["code"]) == (500, "57014")


def test_grants_and_row_level_security_count(gateway: Gateway, database: str) -> None:
    execute(
        database,
        """
        create table esl_test_secret (a int);
        insert into esl_test_secret values (1);
        alter table esl_test_secret enable row level security;
        grant select on esl_test_secret to anon, service_role;
        create function esl_test_secrets() returns bigint language sql as 'select count(*) from esl_test_secret';
        revoke execute on function esl_test_echo from public;
        grant execute on function esl_test_echo to service_role;
        """,
    )
    gateway.reload()
    refused = rpc(gateway, "esl_test_echo", {"p": 1}, apikey=gateway.anon_key)
    assert (refused.status_code, refused.json()["code"]) == (401, "42501")
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert rpc(gateway, "esl_test_echo", {"p": 1}).json() == 1
    assert rpc(gateway, "esl_test_secrets", apikey=gateway.anon_key).json() == 0
    assert rpc(gateway, "esl_test_secrets").json() == 1
    execute(database, "revoke execute on function esl_test_echo from service_role")
    assert rpc(gateway, "esl_test_echo", {"p": 1}).status_code == 403


STATUSES = {
    "P0001": 400, "22012": 400, "23503": 409, "23505": 409, "23514": 400, "42883": 404, "42P01": 404, "42501": 403,
    "25006": 405, "53100": 503, "53400": 500, "08006": 503, "57P01": 503, "57014": 500, "40001": 500,
    "55P03": 500, "54000": 500, "XX000": 500, "P0002": 500, "42P17": 500, "28000": 403, "0P000": 403,
    "21000": 500, "22023": 400, "PT404": 404, "PT418": 418,
}  # fmt: skip


def test_errors_carry_the_status_of_their_sqlstate_and_undo_the_work(gateway: Gateway, database: str) -> None:
    for code, status in STATUSES.items():
        answer = rpc(gateway, "esl_test_raise", {"code": code, "message": "no"})
        assert (code, answer.status_code) == (code, status)
        assert answer.json() == {"code": code, "message": "no", "details": None, "hint": "a hint"}
        assert answer.headers["Proxy-Status"] == f"PostgREST; error={code}"
    no_where = {"code": "21000", "message": "UPDATE requires a WHERE clause"}
    assert rpc(gateway, "esl_test_raise", no_where).status_code == 400
    assert log_size(database) == 0


def test_a_function_that_is_not_volatile_cannot_write(gateway: Gateway, database: str) -> None:
    name = {"name": "transaction_read_only"}
    assert rpc(gateway, "esl_test_stable_setting", name).json() == "on"
    assert rpc(gateway, "esl_test_setting", name).json() == "off"
    assert rpc(gateway, "esl_test_stable_write").status_code == 400
    assert log_size(database) == 0


def test_functions_control_their_answer(gateway: Gateway) -> None:
    answer = rpc(gateway, "esl_test_answer", {"status": "202", "headers": '[{"X-One": "1"}]'})
    assert (answer.status_code, answer.headers["X-One"], answer.json()) == (202, "1", {"done": True})
    assert rpc(gateway, "esl_test_answer", {"status": "two", "headers": ""}).json()["code"] == "PGRST112"
    assert rpc(gateway, "esl_test_answer", {"status": "", "headers": "{}x"}).json()["code"] == "PGRST111"

    raised = rpc(
        gateway,
        "esl_test_raise",
        {
            "code": "PGRST",
            "message": '{"code": "E7", "message": "own", "hint": "h"}',
            "detail": '{"status": 402, "headers": {"X-Two": "2"}}',
        },
    )
    assert (raised.status_code, raised.headers["X-Two"]) == (402, "2")
    assert raised.json() == {"code": "E7", "message": "own", "details": None, "hint": "h"}
    assert rpc(gateway, "esl_test_raise", {"code": "PGRST", "message": "text"}).json()["code"] == "PGRST121"


def test_failures_come_once_each_and_in_order(gateway: Gateway, database: str) -> None:
    gateway.fail(Failure.CLOUDFLARE)
    gateway.fail(Failure.RATE_LIMITED)
    cloudflare = rpc(gateway, "esl_test_void", {"a": 1})
    assert (cloudflare.status_code, cloudflare.headers["Content-Type"]) == (520, "text/html")
    assert rpc(gateway, "esl_test_void", {"a": 1}).status_code == 429
    gateway.fail(Failure.DROPPED)
    with pytest.raises(httpx.RemoteProtocolError):
        rpc(gateway, "esl_test_void", {"a": 1})
    assert log_size(database) == 0
    gateway.fail(Failure.ANSWER_LOST)
    with pytest.raises(httpx.RemoteProtocolError):
        rpc(gateway, "esl_test_void", {"a": 1})
    assert log_size(database) == 1
    assert rpc(gateway, "esl_test_void", {"a": 1}).status_code == 204


@pytest.mark.long
def test_a_pool_in_full_use_is_a_504(database: str) -> None:
    execute(
        database, "create function esl_test_lock() returns void language sql as 'select pg_advisory_lock(1)'"
    )
    with (
        psycopg.connect(database) as blocker,
        # Long enough for ten connections on a busy machine: a call that gives up before would never be waited for.
        Gateway.start(database, pool_wait_seconds=2) as gateway,
        ThreadPoolExecutor(10) as threads,
    ):
        blocker.execute("select pg_advisory_lock(1)")
        waiting = [threads.submit(rpc, gateway, "esl_test_lock") for _ in range(10)]
        activity = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        while blocker.execute(activity).fetchone() != (10,):
            blocker.execute("select pg_sleep(0.01), pg_stat_clear_snapshot()")
        answer = rpc(gateway, "esl_test_lock")
        assert (answer.status_code, answer.json()["code"]) == (504, "PGRST003")
        blocker.execute("select pg_cancel_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
        assert {future.result().json()["code"] for future in waiting} == {"57014"}


def test_stopping_closes_kept_alive_connections_and_threads(database: str) -> None:
    execute(database, FUNCTIONS)
    threads = threading.active_count()
    gateway = Gateway.start(database)
    with httpx.Client(headers={"apikey": gateway.service_key}) as client:
        url = f"{gateway.url}/rest/v1/rpc/esl_test_echo"
        assert client.post(url, json={"p": 1}).status_code == 200
        gateway.stop()
        with pytest.raises(httpx.TransportError):
            client.post(url, json={"p": 1})
    assert threading.active_count() <= threads + 1  # the one client's thread may be on its way out


def test_roles_can_be_created_again_and_for_two_databases_at_once(postgres: Any, database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(create_supabase_roles, [database, postgres.dsn("postgres")] * 4))
    with psycopg.connect(database) as connection:
        found = connection.execute(
            "select rolname, rolcanlogin, rolinherit, rolbypassrls from pg_roles where rolname = any(%s) order by 1",
            [[*ROLES, "authenticator"]],
        ).fetchall()
    assert found == [
        ("anon", False, False, False),
        ("authenticated", False, False, False),
        ("authenticator", True, False, False),
        ("service_role", False, False, True),
    ]
