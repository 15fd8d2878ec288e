"""An imitation of Supabase's API gateway and PostgREST, for tests on a machine without an account.

Written from the documentation of both and from what PostgREST's source says of its answers. It runs real SQL
under the roles, grants and time-outs of a hosted project, but it is no proof against the hosted product. It
knows `POST /rest/v1/rpc/<function>` with JSON and refuses the rest rather than guess.
"""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any, NoReturn, Self
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

RPC_PATH = "/rest/v1/rpc/"
ROLES = ("anon", "authenticated", "service_role")
# Function-level settings that PostgREST applies before the call; only so does a statement_timeout count.
HOISTED = ("statement_timeout", "plan_filter.statement_cost_limit", "default_transaction_isolation")


class Failure(StrEnum):
    """What the platform can do to a request instead of answering it."""

    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    GATEWAY_TIMEOUT = "504"
    CLOUDFLARE = "520"
    RATE_LIMITED = "429"
    DROPPED = "dropped"
    """The connection breaks before the work is done."""
    ANSWER_LOST = "answer lost"
    """The work is done and committed, then the connection breaks."""


def create_supabase_roles(admin_dsn: str) -> None:
    """Give a database the roles, time-outs and schema usage of a hosted project; may be run again."""
    with psycopg.connect(admin_dsn) as connection:
        # Roles belong to the whole server: tests of several databases must take turns here.
        connection.execute("lock table pg_catalog.pg_authid in share row exclusive mode")
        existing = {name for (name,) in connection.execute("select rolname from pg_catalog.pg_roles")}
        for role, options in (
            ("anon", "nologin noinherit"),
            ("authenticated", "nologin noinherit"),
            ("service_role", "nologin noinherit bypassrls"),
            ("authenticator", "login noinherit"),
        ):
            if role not in existing:
                connection.execute(f"create role {role} {options}".encode())
        for statement in (
            "grant anon, authenticated, service_role to authenticator",
            "alter role anon set statement_timeout = '3s'",
            "alter role authenticated set statement_timeout = '8s'",
            "alter role authenticator set statement_timeout = '8s'",
            "alter role authenticator set lock_timeout = '8s'",
            "create schema if not exists extensions",
            "grant usage on schema public, extensions to anon, authenticated, service_role",
        ):
            connection.execute(statement.encode())


class Problem(Exception):
    """An answer other than success."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        details: str | None = None,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        if code is not None:
            self.headers["Proxy-Status"] = f"PostgREST; error={code}"
        self.body = {"code": code, "details": details, "hint": hint, "message": message}


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


# Function cache


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    required: bool


@dataclass(frozen=True)
class Function:
    """What PostgREST keeps of a function in an exposed schema."""

    schema: str
    name: str
    parameters: tuple[Parameter, ...]
    returns_set: bool
    returns_row: bool
    returns_void: bool
    read_only: bool
    settings: Mapping[str, str]

    @property
    def signature(self) -> str:
        inside = ", ".join(f"{p.name} => {p.type}" for p in self.parameters)
        return f"{self.schema}.{self.name}({inside})"

    @property
    def takes_whole_body(self) -> bool:
        return len(self.parameters) == 1 and self.parameters[0] in (
            Parameter("", "json", True),
            Parameter("", "jsonb", True),
        )

    def accepts(self, keys: frozenset[str]) -> bool:
        required = {p.name for p in self.parameters if p.required}
        return required <= keys <= {p.name for p in self.parameters}


_FUNCTIONS = """
select n.nspname as schema, p.proname as name,
       coalesce(input.names, '{}') as names, coalesce(input.types, '{}') as types,
       p.pronargs - p.pronargdefaults as required,
       p.proretset as returns_set,
       t.typtype = 'c' or coalesce(p.proargmodes && '{o,b,t}', false) as returns_row,
       t.typname = 'void' as returns_void,
       p.provolatile <> 'v' as read_only,
       coalesce(p.proconfig, '{}') as config
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  join pg_catalog.pg_type t on t.oid = p.prorettype
 cross join lateral (
       select array_agg(coalesce(a.name, '') order by a.place) as names,
              array_agg(pg_catalog.format_type(a.type, null) order by a.place) as types
         from unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargnames, p.proargmodes)
              with ordinality as a(type, name, mode, place)
        where a.type is not null and coalesce(a.mode, 'i') in ('i', 'b', 'v')
       ) input
 where p.prokind = 'f' and n.nspname = any(%s) and t.typname not in ('trigger', 'event_trigger')
"""


def _load_functions(connection: psycopg.Connection, schemas: list[str]) -> list[Function]:
    functions = []
    with connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_FUNCTIONS, [schemas]):
            names, types, required = row.pop("names"), row.pop("types"), row.pop("required")
            parameters = [
                Parameter(name, kind, place < required)
                for place, (name, kind) in enumerate(zip(names, types, strict=True))
            ]
            settings = dict(setting.split("=", 1) for setting in row.pop("config"))
            hoisted = {key: value for key, value in settings.items() if key in HOISTED}
            functions.append(Function(**row, parameters=tuple(parameters), settings=hoisted))
    return functions


def _load_role_settings(connection: psycopg.Connection) -> dict[str, dict[str, str]]:
    """Settings of the roles that authenticator may take on; its own apply by logging in."""
    rows = connection.execute(
        "select r.rolname, s.setconfig from pg_catalog.pg_db_role_setting s "
        "join pg_catalog.pg_roles r on r.oid = s.setrole where s.setdatabase = 0 and r.rolname = any(%s)",
        [list(ROLES)],
    )
    return {role: dict(setting.split("=", 1) for setting in config) for role, config in rows}


@dataclass(frozen=True)
class Payload:
    """A request body: an object of arguments, or a list of them, of which a function gets the first."""

    text: str
    is_list: bool
    keys: frozenset[str]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        try:
            value = json.loads(body or b"{}")
            text = body.decode() or "{}"
        except ValueError as exc:
            raise Problem(400, "PGRST102", "Empty or invalid json") from exc
        objects = value if isinstance(value, list) else [value]
        keys = {frozenset(item) if isinstance(item, dict) else frozenset[str]() for item in objects}
        if len(keys) > 1:
            raise Problem(400, "PGRST102", "All object keys must match")
        return cls(text, isinstance(value, list), next(iter(keys), frozenset()))


def _quoted(*names: str) -> str:
    return ".".join('"' + name.replace('"', '""').replace("%", "%%") + '"' for name in names)


def _query(function: Function, payload: Payload, max_rows: int) -> tuple[str, list[str]]:
    """The query (one row: the answer as JSON text, number of rows) and its parameters."""
    values = [payload.text]
    sent = [p for p in function.parameters if p.name in payload.keys]
    if function.takes_whole_body and not sent:
        source = f"(select %s::{function.parameters[0].type} as body) as args"
        arguments = "args.body"
    elif sent:
        first = "%s::json -> 0" if payload.is_list else "%s::json"
        columns = ", ".join(f"{_quoted(p.name)} {p.type}" for p in sent)
        source = f"json_to_record({first}) as args({columns})"
        arguments = ", ".join(f"{_quoted(p.name)} := args.{_quoted(p.name)}" for p in sent)
    else:
        source, arguments, values = "(select) as args", "", []
    call = f"{_quoted(function.schema, function.name)}({arguments})"

    item = "r" if function.returns_row else "r.v"
    if function.returns_row or function.returns_set:
        alias = "f" if function.returns_row else "f(v)"
        limit = max_rows if function.returns_set else 1
        rows = f"select f.* from {source}, lateral {call} as {alias} limit {limit}"
    else:
        rows = f"select {call} as v from {source}"
    shape = f"coalesce(json_agg({item}), '[]')" if function.returns_set else f"json_agg({item}) -> 0"
    return f"select ({shape})::text, count(*) from ({rows}) as r", values


# Errors

# By whole code or class; whatever is not listed is 400.
_STATUS_BY_SQLSTATE = {
    code: status
    for status, codes in {
        400: "P0001",
        403: "0L 0P 28",
        404: "42883 42P01",
        405: "25006",
        409: "23503 23505",
        500: "09 25 2D 38 39 3B 40 42P17 53400 54 55 57 58 F0 HV P0 XX",
        503: "08 53 57P01",
    }.items()
    for code in codes.split()
}


def _status(code: str, message: str, role: str) -> int:
    if code.startswith("PT") and code[2:].isdigit():
        return int(code[2:])
    if code == "42501":
        return 401 if role == "anon" else 403
    if code == "21000":
        return 400 if message.endswith("requires a WHERE clause") else 500
    if code == "22023":
        return 401 if message.startswith("role ") and message.endswith("does not exist") else 400
    return _STATUS_BY_SQLSTATE.get(code) or _STATUS_BY_SQLSTATE.get(code[:2], 400)


def _problem(exc: psycopg.Error, role: str) -> Problem:
    diag = exc.diag
    message = diag.message_primary or ""
    if exc.sqlstate is None:
        return Problem(503, "PGRST001", "Database client error. Retrying the connection.", details=str(exc))
    if exc.sqlstate == "PGRST":
        return _raised_problem(message, diag.message_detail)
    status = _status(exc.sqlstate, message, role)
    return Problem(
        status,
        exc.sqlstate,
        message,
        details=diag.message_detail,
        hint=diag.message_hint,
        headers={"WWW-Authenticate": "Bearer"} if status == 401 else None,
    )


def _raised_problem(message: str, detail: str | None) -> Problem:
    """`raise sqlstate 'PGRST'`: the function writes the whole answer itself."""
    try:
        said, answer = json.loads(message), json.loads(detail or "")
        return Problem(
            answer["status"],
            said["code"],
            said["message"],
            details=said.get("details"),
            hint=said.get("hint"),
            headers=answer["headers"],
        )
    except (ValueError, KeyError, TypeError):
        return Problem(500, "PGRST121", "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error")


def _no_function(schema: str, name: str, keys: frozenset[str]) -> Problem:
    listed = ", ".join(sorted(keys))
    searched = f"with parameter{'s' if len(keys) > 1 else ''} {listed}" if keys else "without parameters"
    return Problem(
        404,
        "PGRST202",
        f"Could not find the function {schema}.{name}{f'({listed})' if keys else ' without parameters'}"
        " in the schema cache",
        details=f"Searched for the function {schema}.{name} {searched} or with a single unnamed json/jsonb "
        "parameter, but no matches were found in the schema cache.",
    )


# The gateway


class Gateway:
    """A running gateway in front of one database; use it as a context manager.

    `url`, `anon_key` and `service_key` are what a project's dashboard shows. `calls`: the functions that were called.
    """

    anon_key = "sb_publishable_for_tests_only"
    service_key = "sb_secret_for_tests_only"

    def __init__(self, admin_dsn: str, *, max_rows: int, pool_wait_seconds: float) -> None:
        self._dsn = make_conninfo(admin_dsn, user="authenticator", application_name="test gateway")
        self._schemas = ["public"]
        self._max_rows = max_rows
        self._jwt_secret = b"only for tests, at least 32 characters"
        self._failures: deque[Failure] = deque()
        self.calls: list[str] = []
        # Not reconnecting for long in the background: tests stop and start servers.
        self._pool = ConnectionPool(
            self._dsn,
            min_size=0,
            max_size=10,
            timeout=pool_wait_seconds,
            reconnect_timeout=1,
            kwargs={"autocommit": True},
            open=True,
        )
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.gateway = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="test gateway")
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @classmethod
    def start(cls, admin_dsn: str, *, max_rows: int = 1000, pool_wait_seconds: float = 10) -> Self:
        """Serve the database of `admin_dsn` (create_supabase_roles first) on a free port of 127.0.0.1."""
        gateway = cls(admin_dsn, max_rows=max_rows, pool_wait_seconds=pool_wait_seconds)
        try:
            gateway.reload()
        except BaseException:
            gateway._http.server_close()
            gateway._pool.close()
            raise
        gateway._thread.start()
        return gateway

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything, kept-alive connections included."""
        self._http.shutdown()
        self._http.drop_clients()
        self._http.server_close()
        self._thread.join()
        self._pool.close()

    def reload(self) -> None:
        """What `notify pgrst, 'reload schema'` does on the platform; it happens at start and here only."""
        with psycopg.connect(self._dsn) as connection:
            self._functions = _load_functions(connection, self._schemas)
            self._role_settings = _load_role_settings(connection)
        self._pool.drain()

    def fail(self, failure: Failure, times: int = 1) -> None:
        """Spoil the next requests."""
        self._failures.extend([failure] * times)

    def next_failure(self) -> Failure | None:
        return self._failures.popleft() if self._failures else None

    def token(self, role: str, *, expires_in: float = 60) -> str:
        """A JWT of this project."""
        head, claims = (
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in ({"alg": "HS256", "typ": "JWT"}, {"role": role, "exp": int(time.time() + expires_in)})
        )
        return b".".join((head, claims, self._signature(head, claims))).decode()

    def _signature(self, head: bytes, claims: bytes) -> bytes:
        digest = hmac.digest(self._jwt_secret, head + b"." + claims, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=")

    def answer(self, method: str, target: str, headers: Message, body: bytes) -> Answer:
        """The answer to one request."""
        try:
            claims = self._authenticate(headers)
            url = urlsplit(target)
            if not url.path.startswith(RPC_PATH) or "/" in (name := unquote(url.path[len(RPC_PATH) :])):
                raise Problem(404, "PGRST125", "Invalid path specified in request URL")
            if method != "POST":
                raise Problem(405, "PGRST101", f"Cannot use the {method} method on RPC")
            if url.query or "count=" in headers.get("Prefer", "") or "Range" in headers:
                raise Problem(400, "GATEWAY", "The test gateway has no filters, counts and ranges")
            media_type = headers.get("Content-Type", "application/json").partition(";")[0].strip()
            if media_type != "application/json":
                raise Problem(400, "PGRST102", f"Content-Type not acceptable: {media_type}")
            return self._call(name, claims, headers, Payload.parse(body))
        except Problem as problem:
            return Answer(problem.status, problem.headers, json.dumps(problem.body).encode())

    def _authenticate(self, headers: Message) -> dict[str, Any]:
        """The claims of the request, its role among them."""
        key = headers.get("apikey")
        if not key:
            hint = "No `apikey` request header or url param was found."
            raise Problem(401, None, "No API key found in request", hint=hint)
        roles = {self.anon_key: "anon", self.service_key: "service_role"}
        if key not in roles:
            hint = "Double check your Supabase `anon` or `service_role` API key."
            raise Problem(401, None, "Invalid API key", hint=hint)
        bearer = headers.get("Authorization", "").removeprefix("Bearer ")
        return {"role": roles[key]} if bearer in {"", key} else self._verify(bearer)

    def _verify(self, token: str) -> dict[str, Any]:
        parts = token.encode().split(b".")
        if len(parts) != 3:
            self._refuse_token("PGRST301", f"Expected 3 parts in JWT; got {len(parts)}")
        head, claims, signature = parts
        if not hmac.compare_digest(signature, self._signature(head, claims)):
            self._refuse_token("PGRST301", "No suitable key or wrong key type")
        verified: dict[str, Any] = json.loads(base64.urlsafe_b64decode(claims + b"=="))
        if verified.get("exp", 0) < time.time():
            self._refuse_token("PGRST303", "JWT expired")
        return {"role": "anon"} | verified

    def _refuse_token(self, code: str, message: str) -> NoReturn:
        challenge = f'Bearer error="invalid_token", error_description="{message}"'
        raise Problem(401, code, message, headers={"WWW-Authenticate": challenge})

    def _find(self, schema: str, name: str, payload: Payload) -> Function:
        named = [f for f in self._functions if (f.schema, f.name) == (schema, name)]
        matching = [f for f in named if f.accepts(payload.keys)] or [f for f in named if f.takes_whole_body]
        if not matching:
            raise _no_function(schema, name, payload.keys)
        if len(matching) > 1:
            raise Problem(
                300,
                "PGRST203",
                "Could not choose the best candidate function between: "
                + ", ".join(f.signature for f in matching),
                hint="Try renaming the parameters or the function itself in the database so function "
                "overloading can be resolved",
            )
        return matching[0]

    def _call(self, name: str, claims: dict[str, Any], headers: Message, payload: Payload) -> Answer:
        schema = headers.get("Content-Profile", self._schemas[0])
        if schema not in self._schemas:
            hint = f"Only the following schemas are exposed: {', '.join(self._schemas)}"
            raise Problem(406, "PGRST106", f"Invalid schema: {schema}", hint=hint)
        function = self._find(schema, name, payload)
        self.calls.append(name)
        role = claims["role"]
        isolation = function.settings.get("default_transaction_isolation", "read committed")
        access = "read only" if function.read_only else "read write"
        settings = [
            ("search_path", ", ".join(_quoted(s) for s in (schema, "public", "extensions"))),
            *self._role_settings.get(role, {}).items(),
            ("role", role),
            ("request.jwt.claims", json.dumps(claims)),
            ("request.method", "POST"),
            ("request.path", f"/rpc/{name}"),
            ("request.headers", json.dumps({key.lower(): value for key, value in headers.items()})),
            ("request.cookies", "{}"),
            *((k, v) for k, v in function.settings.items() if k != "default_transaction_isolation"),
        ]
        configure = "select " + ", ".join(["set_config(%s, %s, true)"] * len(settings))
        query, values = _query(function, payload, self._max_rows)
        with self._connection(role) as connection:
            connection.execute(f"begin isolation level {isolation} {access}".encode())
            connection.execute(configure.encode(), [text for setting in settings for text in setting])
            body, rows = connection.execute(query.encode(), values).fetchone() or (None, 0)
            said = connection.execute(
                "select current_setting('response.status', true), current_setting('response.headers', true)"
            ).fetchone()
        status, own_headers = _own_answer(*(said or (None, None)))
        answer_headers = {"Content-Range": f"0-{rows - 1}/*" if rows else "*/*"} | own_headers
        if function.returns_void:
            return Answer(status or 204, answer_headers)
        return Answer(status or 200, answer_headers, body.encode())

    @contextmanager
    def _connection(self, role: str) -> Iterator[psycopg.Connection]:
        """A pooled connection whose work is committed at the end; raises Problem."""
        try:
            with self._pool.connection() as connection:
                try:
                    yield connection
                except psycopg.Error:
                    if connection.closed:
                        self._pool.drain()
                    raise
        except PoolTimeout as exc:
            self._explain_pool_timeout()
            message = "Timed out acquiring connection from connection pool."
            raise Problem(504, "PGRST003", message) from exc
        except psycopg.Error as exc:
            raise _problem(exc, role) from exc

    def _explain_pool_timeout(self) -> None:
        """Tell a database that is away from a pool in full use: psycopg_pool reports both as a time-out."""
        try:
            psycopg.connect(self._dsn, connect_timeout=2).close()
        except psycopg.Error as exc:
            message = "Database connection error. Retrying the connection."
            raise Problem(503, "PGRST000", message, details=str(exc)) from exc


def _own_answer(status: str | None, headers: str | None) -> tuple[int | None, dict[str, str]]:
    """Status and headers that the function set for its answer."""
    try:
        own_status = int(status) if status else None
    except ValueError as exc:
        raise Problem(500, "PGRST112", "response.status guc must be a valid status code") from exc
    try:
        items = json.loads(headers) if headers else []
        return own_status, {str(key): str(value) for item in items for key, value in item.items()}
    except (ValueError, AttributeError, TypeError) as exc:
        raise Problem(500, "PGRST111", "response.headers guc must be a JSON array of objects") from exc


class _Server(ThreadingHTTPServer):
    """Threaded HTTP server that can drop its clients."""

    gateway: Gateway
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.clients: set[socket] = set()
        super().__init__(address, handler)

    def drop_clients(self) -> None:
        for client in list(self.clients):
            with suppress(OSError):
                client.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.clients.add(self.connection)

    def finish(self) -> None:
        self.server.clients.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Keep test output quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        failure = self.server.gateway.next_failure()
        if failure is Failure.DROPPED:
            self._drop()
        elif failure is None:
            self._send(self._answer(body))
        elif failure is Failure.ANSWER_LOST:
            self._answer(body)
            self._drop()
        elif failure is Failure.RATE_LIMITED:
            self._send(Answer(429, {"Content-Type": "text/plain"}, b"error code: 1015"))
        else:
            page = f"<html><head><title>{failure}</title></head><body>cloudflare</body></html>"
            self._send(Answer(int(failure), {"Content-Type": "text/html"}, page.encode()))

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def _answer(self, body: bytes) -> Answer:
        return self.server.gateway.answer(self.command, self.path, self.headers, body)

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(SHUT_RDWR)

    def _send(self, answer: Answer) -> None:
        headers = {"Content-Type": "application/json; charset=utf-8"} | dict(answer.headers)
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(answer.body)
