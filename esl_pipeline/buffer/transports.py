"""Two ways to the buffer's SQL functions that behave alike: psycopg (a Postgres connection) and supabase-py.

Here belong connections, JSON, retries and the translation of driver errors; what the functions mean does not.
Both drivers are imported when first used: each costs 0.15 to 0.5 s, and a process needs one.
"""

import math
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit

import orjson
import stamina
from pydantic import SecretStr

from esl_pipeline.addresses import TRANSACTION_POOLER_PORT
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable, Failure, Size, classify
from esl_pipeline.buffer.listener import Listener

if TYPE_CHECKING:
    import psycopg
    import supabase

_FUNCTION_NAME = re.compile(r"esl_[a-z_]+")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_BOUND = b"select pg_catalog.set_config('statement_timeout', $1, true)"
_CONNECT_SECONDS = 5
# How much longer than the server's own statement timeout we wait, so that the server's words come first.
_NETWORK_SECONDS = 2


class Transport(Protocol):
    """A way to call the buffer's functions; safe to share between threads."""

    calls: int
    """Round trips so far, repeated ones included."""

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        """The JSON result of `public.<function>(p)`; raises BufferError."""

    def listening(self, channel: str, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """While it is open, `wake` is called at notifications of the channel, as far as this way brings any."""

    def close(self) -> None:
        """Give the connections back; later calls raise BufferUnavailable."""

    def describe(self) -> str:
        """Kind and host, without secrets, for logs and error reports."""


def encode(function: str, p: Mapping[str, Any]) -> bytes:
    """`p` as JSON, datetimes and UUIDs as text; raises BufferError for what JSON or Postgres cannot hold."""
    arguments = dict(p)
    try:
        body = orjson.dumps(arguments, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError as exc:
        reason = str(exc)
    else:
        if rb"\u0000" in body and _NUL.search(body):
            reason = r"a text contains the character \u0000, which Postgres cannot store: strip it"
        elif _holds_non_finite(arguments):
            reason = "a number is NaN or infinite: send null or leave it out"
        else:
            return body
    # Raised here and not in the handler: the encoder's exception must not drag the payload into a traceback.
    # 22P05, as Postgres would say: the data is refused, and will be the next time.
    raise BufferError(f"the arguments of {function} cannot be sent as JSON: {reason}", code="22P05")


def _holds_non_finite(value: Any) -> bool:
    """True if a NaN or infinity is inside, which orjson would turn into null in silence."""
    level = [value]
    while level:
        # By type first: rows of texts and integers, nearly all there is, are told apart by the hundred thousand.
        kinds = set(map(type, level))
        numbers = {kind for kind in kinds if issubclass(kind, float)}
        if numbers and not all(math.isfinite(item) for item in level if type(item) in numbers):
            return True
        boxes = {kind for kind in kinds if issubclass(kind, (dict, list, tuple))}
        level = [
            item
            for box in (level if boxes else ())
            if type(box) in boxes
            for item in (box.values() if isinstance(box, dict) else box)
        ]
    return False


class _RetryingTransport(ABC):
    """What both transports share: checks, retries of passing faults, the count of round trips."""

    _credential: str
    """The setting that opens the way."""

    def __init__(self, attempts: int) -> None:
        self.calls = 0
        self._lock = threading.Lock()
        self._closed = False
        self._retrying = stamina.RetryingCaller(
            attempts=attempts, timeout=None, wait_initial=0.1, wait_max=1.0, wait_jitter=0.2
        ).on(lambda exc: isinstance(exc, BufferError) and exc.retryable)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        if not _FUNCTION_NAME.fullmatch(function):
            raise ValueError(f"{function!r} is not the name of a buffer function (esl_..., lower case)")
        return self._retrying(self._attempt, function, encode(function, p), Size.of(p))

    def _attempt(self, function: str, body: bytes, size: Size) -> Any:
        if self._closed:
            raise BufferUnavailable(f"{function} was called after the connection to the buffer was closed")
        try:
            return self._send(function, body)
        except Failure as failure:
            error = classify(failure, function=function, size=size, credential=self._credential)
        # Raised outside the handler, so that no driver frame (they hold the password) hangs on the exception.
        raise error

    def listening(self, channel: str, wake: Callable[[], None]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing comes this way."""
        return nullcontext()

    @abstractmethod
    def _send(self, function: str, body: bytes) -> Any:
        """Call once; raises Failure for what the way or the server said, BufferError for what cannot be sent."""

    @abstractmethod
    def close(self) -> None:
        """Give the connections back."""

    @abstractmethod
    def describe(self) -> str:
        """Kind and host, without secrets."""

    def _count(self) -> None:
        with self._lock:
            self.calls += 1


class PsycopgTransport(_RetryingTransport):
    """Calls over Postgres connections: direct, by a pooler (session or transaction), or a unix socket.

    Keeps up to `pool_size` connections, each opened when needed by the thread that needs it. (psycopg_pool
    connects in the background: with the server away a caller waits out its whole time and never learns the
    reason, and after the server's return it goes on waiting as long as the reconnection has backed off to.)
    """

    def __init__(
        self,
        dsn: str | SecretStr,
        *,
        pool_size: int = 4,
        timeout_seconds: float = 60,
        attempts: int = 3,
        credential: str = "ESL_DATABASE_URL",
    ) -> None:
        super().__init__(attempts)
        self._credential = credential
        self._dsn = dsn if isinstance(dsn, SecretStr) else SecretStr(dsn)
        self._pool_size = pool_size
        self._timeout_seconds = timeout_seconds
        self._slots = threading.BoundedSemaphore(pool_size)
        self._idle: deque[psycopg.Connection] = deque()

    def describe(self) -> str:
        parameters = _connection_parameters(self._dsn)
        if parameters is None:
            return f"Postgres at an address that cannot be read from {self._credential}"
        host, port = parameters.get("host", "the default host"), parameters.get("port", "5432")
        return f"Postgres at {host}:{port}/{parameters.get('dbname', '')}"

    def listening(self, channel: str, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """Over a connection of its own. A transaction pooler is not asked: its connections are everybody's."""
        port = (_connection_parameters(self._dsn) or {}).get("port", "")
        return nullcontext() if TRANSACTION_POOLER_PORT in port else Listener(self._connect, channel, wake)

    def close(self) -> None:
        self._closed = True
        self._close_idle()

    def _send(self, function: str, body: bytes) -> Any:
        import psycopg

        if not self._slots.acquire(timeout=_CONNECT_SECONDS):
            busy = f"its {self._pool_size} connections stayed busy for {_CONNECT_SECONDS} s"
            raise Failure("53300", busy)
        try:
            return self._query(function, body)
        except psycopg.Error as exc:
            failure = Failure(
                _sqlstate(exc),
                exc.diag.message_primary or " ".join(str(exc).split()),
                exc.diag.message_detail,
                exc.diag.message_hint,
            )
        finally:
            self._slots.release()
        raise failure

    def _query(self, function: str, body: bytes) -> Any:
        import psycopg

        kept = self._take_idle()
        if kept is not None:
            began = time.monotonic()
            try:
                return self._execute(kept, function, body)
            except psycopg.OperationalError:
                if not kept.closed or time.monotonic() - began > self._timeout_seconds:
                    raise
                # It died while idle (server restart, pooler, NAT), likely with its siblings: connect anew.
                self._close_idle()
        return self._execute(self._connect(), function, body)

    def _execute(self, connection: "psycopg.Connection", function: str, body: bytes) -> Any:
        import psycopg
        from psycopg import errors
        from psycopg.pq import TransactionStatus

        from esl_pipeline.buffer.round_trip import in_one_transaction

        self._count()
        # The bound holds for this call alone. A start parameter is refused by poolers, a plain SET leaks through them
        # to other clients, and what a function sets for itself comes too late for the statement that calls it.
        bound = _BOUND, b"%d" % int(self._timeout_seconds * 1000)
        query = b"select public.%s($1::jsonb)::text" % function.encode(), body
        try:
            _, answer = in_one_transaction(connection, bound, query)
        except errors.ReadOnlySqlTransaction:
            connection.close()  # perhaps a demoted primary: the next call looks up the host again
            raise
        except psycopg.OperationalError:
            if connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            # The wait has ended, not the call; what psycopg says then is about its own pipeline.
            waited = self._timeout_seconds + _NETWORK_SECONDS
            raise psycopg.OperationalError(f"no answer within {waited:g} s") from None
        finally:
            self._put_back(connection)
        return None if answer is None else orjson.loads(answer)

    def _connect(self) -> "psycopg.Connection":
        import psycopg
        from psycopg.conninfo import make_conninfo

        parameters = _connection_parameters(self._dsn)
        if parameters is None:
            raise BufferError(
                f"{self._credential} is not a valid Postgres connection string (special characters in the password "
                "must be percent-encoded, for instance @ as %40, and parameters after the ? be ones that libpq knows)"
            )
        if parameters.get("host", "").endswith((".supabase.co", ".supabase.com")):
            parameters.setdefault("sslmode", "require")
        defaults: dict[str, Any] = {
            "application_name": "esl_pipeline",
            "connect_timeout": _CONNECT_SECONDS,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": int(self._timeout_seconds * 1000),
        }
        # prepare_threshold=None: a transaction pooler mixes up prepared statements of its clients.
        settings = defaults | parameters | {"client_encoding": "utf8"}
        connection = psycopg.connect(make_conninfo(**settings), autocommit=True, prepare_threshold=None)
        # A pooler or firewall that takes the query and never answers would otherwise hold this thread for ever.
        connection.wait = partial(  # type: ignore[method-assign]
            connection.wait, timeout=self._timeout_seconds + _NETWORK_SECONDS
        )
        return connection

    def _put_back(self, connection: "psycopg.Connection") -> None:
        from psycopg.pq import TransactionStatus

        if connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        if self._closed:
            self._close_idle()

    def _take_idle(self) -> "psycopg.Connection | None":
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def _close_idle(self) -> None:
        while (connection := self._take_idle()) is not None:
            connection.close()


def _connection_parameters(dsn: SecretStr) -> dict[str, Any] | None:
    """The parts of a connection string, or None if it cannot be read (libpq would quote it)."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    with suppress(psycopg.ProgrammingError):
        parameters = {key: str(value) for key, value in conninfo_to_dict(dsn.get_secret_value()).items()}
        # An unescaped @ or / in the password shifts the rest of it into host, port or database name.
        place = "".join(parameters.get(key, "") for key in ("host", "port", "dbname"))
        if "@" not in place and re.fullmatch(r"[\d,]*", parameters.get("port", "")):
            return parameters
    return None


# A refused connection carries no SQLSTATE in libpq, only the words of the server, of a pooler (Supavisor, pgbouncer) or
# of libpq itself. What is not here may pass; what waiting does not mend must be.
_CONNECTION_REFUSALS = {
    re.compile(pattern, re.IGNORECASE): code
    for pattern, code in {
        r"(password|SASL) authentication failed|no password supplied|auth(entication)? failed": "28P01",
        r'role ".*" does not exist|no pg_hba\.conf entry|tenant or user not found|no such user|'
        r"is not permitted to log in|"
        r"unsupported startup parameter|unsupported frontend protocol|"
        r"(SSL|TLS)( connection)? (is )?required|does not support SSL|"
        r"certificate verify failed|root certificate file .* does not exist": "28000",
        r'database ".*" does not exist|no such database|database .* is disabled': "3D000",
        r"too many clients|remaining connection slots|max clients|max client connections|"
        r"no more connections allowed": "53300",
        r"database system is (starting up|shutting down|in recovery)": "57P03",
    }.items()
}


def _sqlstate(exc: "psycopg.Error") -> str | None:
    import psycopg

    if exc.sqlstate is not None or not isinstance(exc, psycopg.OperationalError):
        return exc.sqlstate
    return next((code for words, code in _CONNECTION_REFUSALS.items() if words.search(str(exc))), "08006")


class SupabaseTransport(_RetryingTransport):
    """Calls over PostgREST with a project's URL and secret (service_role) key, over one HTTP client."""

    _credential = "SUPABASE_SERVICE_KEY"

    def __init__(self, url: str, key: SecretStr, *, timeout_seconds: float = 60, attempts: int = 3) -> None:
        super().__init__(attempts)
        self._url = url
        self._key = key
        self._timeout_seconds = timeout_seconds
        self._client: supabase.Client | None = None
        self._answer = threading.local()

    def describe(self) -> str:
        place = _project_host(self._url)
        return f"Supabase at {place or 'an address that cannot be read from SUPABASE_URL'}"

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._client is not None and self._client.options.httpx_client is not None:
                self._client.options.httpx_client.close()

    def _send(self, function: str, body: bytes) -> Any:
        import httpx
        from postgrest.exceptions import APIError

        client = self._connected()
        self._count()
        details = hint = None
        try:
            result = client.rpc(function, {"p": orjson.loads(body)}).execute().data
            if self._answer.is_json:
                return result
            code, message = "502", "the answer is not JSON: is SUPABASE_URL the project's own URL?"
        except APIError as exc:
            code, message = exc.code or str(self._answer.status), exc.message or "no reason given"
            details, hint = None if exc.details is None else str(exc.details), exc.hint
        except httpx.RequestError as exc:
            code, message = "08006", f"{type(exc).__name__}: {exc}"
        raise Failure(code, message, details, hint)

    def _connected(self) -> "supabase.Client":
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> "supabase.Client":
        import httpx
        from supabase import create_client
        from supabase.lib.client_options import SyncClientOptions

        if _project_host(self._url) is None:
            raise BufferError("SUPABASE_URL is not a project URL such as https://<project>.supabase.co")
        if not re.fullmatch(r"[!-~]+", self._key.get_secret_value()):
            # httpx would quote the whole header in its complaint.
            raise BufferError("SUPABASE_SERVICE_KEY is empty or holds characters that no key has")

        def remember(answer: httpx.Response) -> None:
            # supabase-py gives back neither: its errors lack the status, and any 200 passes for a result.
            self._answer.status = answer.status_code
            self._answer.is_json = answer.headers.get("content-type", "").startswith("application/json")

        # Own HTTP client: supabase-py's default is HTTP/2, which breaks on GOAWAY (supabase-py issue 1064).
        http = httpx.Client(
            http2=False,
            timeout=httpx.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
            event_hooks={"response": [remember]},
        )
        options = SyncClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
        return create_client(self._url, self._key.get_secret_value(), options)


def _project_host(url: str) -> str | None:
    """host or host:port of a project URL, None if it is none (no path: the API's own is added)."""
    with suppress(ValueError):
        parts = urlsplit(url)
        bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username)
        if parts.scheme in {"http", "https"} and parts.hostname and bare and not re.search(r"\s", url):
            return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    return None
