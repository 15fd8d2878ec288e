"""The client of one label server: its product actions and its refresh trigger, over one kept-alive connection pool."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
import orjson
import stamina
from pydantic import SecretStr

from esl_pipeline.hipoink.answers import Answer, Judge, Reply
from esl_pipeline.hipoink.errors import HipoinkError, NotSentError, TransientError, UnknownOutcomeError
from esl_pipeline.hipoink.limiter import Call, Limiter
from esl_pipeline.hipoink.paging import Listing, Page, Turns, every_page
from esl_pipeline.hipoink.signing import UNSIGNED, LogRedaction, SigningTransport, redactor
from esl_pipeline.http import JSON_HEADERS, pause_before_retry, trusted

T = TypeVar("T")

# What `query` calls the fields that are sent as these codes (hipoink-api.md section 5). kc and qty are not among them:
# which field returns them is not known.
RESPONSE_FIELDS: Mapping[str, str] = {
    "pc": "product_code",
    "pn": "product_name",
    "pp": "product_price",
    "pi": "product_inner",
    "ps": "product_spec",
    "pg": "product_grade",
    "pu": "product_unit",
    "vp": "product_vip_price",
    "pop": "product_origin_price",
    "po": "product_origin",
    "pm": "product_mfrs",
    "promotion": "promotion",
    "pim": "product_image",
    "pqr": "product_qrcode",
    **{f"f{n}": f"field{n}" for n in range(1, 17)},
    "extend": "extend",
}

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 10.0
_LONGEST_PAUSE_HERE = 3.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HipoinkClient:
    """Talks to `{base_url}/api/{client_id}/...`; use it as a context manager.

    Each action is tried up to `retries` times within about ten seconds, as long as its failure is
    transient or its outcome unknown; every try takes a slot of `limiter`, which is closed with the
    client. A change may be given its `Call`. A server that asks for a longer pause than a few seconds
    is not waited for here: the error carries `retry_after`. `timeout_seconds` bounds each wait for the
    server, and about the whole of an answer that trickles in; no more than `max_answer_bytes` of it are
    read. With `ca_file` (PEM) only certificates of that authority are trusted, else those of the public
    ones.

    All actions raise the leaves of `HipoinkError`. Safe to share between threads.
    """

    def __init__(
        self,
        base_url: str,
        client_id: str,
        sign: SecretStr,
        *,
        limiter: Limiter,
        timeout_seconds: float = 30,
        retries: int = 3,
        max_answer_bytes: int = 1_000_000,
        ca_file: Path | None = None,
    ) -> None:
        if not _is_plain_address(base_url):
            raise ValueError("the label server's address must look like https://host[:port][/path]")
        if not client_id.strip(". "):
            raise ValueError("the label server's client id must be the name of an app key, such as default")
        if not sign.get_secret_value():
            raise ValueError("the label server's sign is empty")
        self._base_url = base_url.rstrip("/")
        self._client_id = client_id
        self._limiter = limiter
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._max_answer_bytes = max_answer_bytes
        self._redact = redactor(sign)
        self._log_redaction = LogRedaction(self._redact)
        self._log_redaction.install()
        self._http = httpx.Client(
            transport=SigningTransport(sign, httpx.HTTPTransport(verify=trusted(ca_file))),
            timeout=httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            headers=JSON_HEADERS,
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"HipoinkClient({self._base_url!r}, {self._client_id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._limiter.close()
        self._log_redaction.remove()

    def create(self, store_code: str, product: Mapping[str, object]) -> Answer:
        """Create or replace one product; `product` holds the request codes (`pc`, `pn`, `pp`, ...)."""
        (record,) = _records([product])
        return self.post("product/create", store_code, record)

    def create_multiple(
        self, store_code: str, products: Sequence[Mapping[str, object]], call: Call | None = None
    ) -> Answer:
        """Create or replace several products in one call.

        The same record twice is sent once. Raises ValueError for an empty or "0" code, and for two
        different records with one code: which of them is right is not the client's to guess.
        """
        return self.post("product/create_multiple", store_code, {"f1": _filled(_records(products))}, call)

    def del_multiple(self, store_code: str, codes: Sequence[str], call: Call | None = None) -> Answer:
        """Delete products by code; unknown codes are no failure. Labels bound to them are unbound."""
        once = list(dict.fromkeys(map(_code, codes)))
        return self.post("product/del_multiple", store_code, {"f1": _filled(once)}, call)

    def bind_task(self, store_code: str, call: Call | None = None) -> Answer:
        """Start the store's refresh queue: without auto-trigger its physical labels change only then."""
        return self.post("esl/bind_task", store_code, {}, call)

    def query(self, store_code: str, page: int, size: int) -> list[dict[str, object]]:
        """One page of the store's products, with response field names (`product_code`, ...); page from 1."""
        return self.query_page(store_code, page, size).rows

    def query_page(self, store_code: str, page: int, size: int) -> Page:
        """The same, with what it cost."""
        return self.get("product/query", store_code, {"f1": str(page), "f2": str(size)}, read_page)

    def query_count(self, store_code: str) -> int:
        """How many products the server holds for the store."""
        return self.get("product/query_count", store_code, {}, Judge.count)

    def query_with_code(self, store_code: str, codes: Sequence[str]) -> list[dict[str, object]]:
        """The rows of those of the codes that the store has. Older servers do not know this call (RejectedError)."""
        once = list(dict.fromkeys(map(_code, codes)))
        return self.ask("product/query_with_code", store_code, {"f1": _filled(once)}, Judge.rows)

    def query_all(self, store_code: str, size: int = 200) -> Iterator[dict[str, object]]:
        """The rows of all pages (query_pages)."""
        return (row for rows in self.query_pages(store_code, size) for row in rows)

    def query_pages(self, store_code: str, size: int = 200) -> Iterator[list[dict[str, object]]]:
        """All rows of the store, once each, as the server has them; as many as it counts, or TransientError at the end.

        They come as the server's pages hold them, of `size` rows at first, and of more as far as it goes (Turns);
        what that is worth, every_page says.
        """
        listing = Listing(
            called=f"query for store {store_code}",
            of="products",
            page=partial(self.query_page, store_code),
            count=partial(self.query_count, store_code),
            name_of=_name_of,
        )
        return every_page(listing, self.turns(size))

    def turns(self, size: int, most_seconds: float | None = None) -> Turns:
        """How the pages of a listing are turned here, of so many rows at first."""
        seconds = self._timeout_seconds / 4 if most_seconds is None else most_seconds
        return Turns(size, most_bytes=self._max_answer_bytes, most_seconds=seconds)

    # How any action is called; those of physical labels are in hipoink/devices.py.

    def post(
        self, action: str, store_code: str, arguments: Mapping[str, object], call: Call | None = None
    ) -> Answer:
        """Change something."""
        judge = Judge(_call(action, store_code), True, self._redact)
        return self._tried(judge, self._posted(judge, action, store_code, arguments), Judge.change, call)

    def ask(
        self,
        action: str,
        store_code: str,
        arguments: Mapping[str, object],
        read: Callable[[Judge, Reply], T],
        call: Call | None = None,
    ) -> T:
        """Read something with a POST."""
        judge = Judge(_call(action, store_code), False, self._redact)
        return self._tried(judge, self._posted(judge, action, store_code, arguments), read, call)

    def get(
        self,
        action: str,
        store_code: str,
        arguments: Mapping[str, str],
        read: Callable[[Judge, Reply], T],
        call: Call | None = None,
    ) -> T:
        """Read something."""
        judge = Judge(_call(action, store_code), False, self._redact)
        params = {**_common(store_code), **arguments}
        request = self._http.build_request("GET", self._url(action), params=params)
        return self._tried(judge, request, read, call)

    def get_of_server(self, path: str, read: Callable[[Judge, Reply], T], call: Call | None = None) -> T:
        """Read what the server says to anybody, of no store: without the sign."""
        judge = Judge(f"{path} of the label server", False, self._redact)
        request = self._http.build_request("GET", f"{self._base_url}/api/{path}", extensions=UNSIGNED)
        return self._tried(judge, request, read, call)

    def _posted(
        self, judge: Judge, action: str, store_code: str, arguments: Mapping[str, object]
    ) -> httpx.Request:
        try:
            body = orjson.dumps({**arguments, **_common(store_code)})
        except orjson.JSONEncodeError as error:
            raise ValueError(f"{judge.call}: a record cannot be written as JSON: {error}") from error
        return self._http.build_request("POST", self._url(action), content=body)

    def _url(self, action: str) -> str:
        return f"{self._base_url}/api/{quote(self._client_id, safe='')}/{action}"

    def _tried(
        self,
        judge: Judge,
        request: httpx.Request,
        read: Callable[[Judge, Reply], T],
        call: Call | None = None,
    ) -> T:
        """The judged reply of the first attempt that gets one."""
        call = call or Call()
        failures: list[TransientError] = []
        try:
            for attempt in stamina.retry_context(
                on=_pause_before_retry,
                attempts=self._retries,
                timeout=_RETRY_SECONDS,
                wait_initial=0.2,
                wait_max=4,
                wait_jitter=0.4,
            ):
                with attempt:
                    try:
                        return read(judge, self._attempt(judge, request, call))
                    except TransientError as error:
                        failures.append(error)
                        raise
        except (TransientError, NotSentError):
            if not failures:
                raise
            raise _summed(failures) from None
        raise AssertionError("an attempt returns or raises")

    def _attempt(self, judge: Judge, request: httpx.Request, call: Call) -> Reply:
        failure: HipoinkError
        with self._limiter.slot(call):
            if (why := call.hindrance()) is not None:
                raise NotSentError(f"{judge.call}: {why}")
            try:
                return self._reply(request)
            except _NOT_SENT as error:
                failure = judge.no_connection(_reason(error))
            except httpx.TransportError as error:
                failure = judge.no_answer(_reason(error))
        # Raised out here, so that no httpx error, with its request, hangs on it as context.
        raise failure

    def _reply(self, request: httpx.Request) -> Reply:
        started = time.monotonic()
        body = bytearray()
        response = self._http.send(request, stream=True)
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_answer_bytes:
                    break
                if time.monotonic() - started > self._timeout_seconds + _CONNECT_SECONDS:
                    raise httpx.ReadTimeout("the answer trickled in too slowly")
        finally:
            response.close()
        return Reply(
            http_status=response.status_code,
            retry_after=response.headers.get("Retry-After"),
            body=bytes(body[: self._max_answer_bytes]),
            complete=len(body) <= self._max_answer_bytes,
            duration_ms=round((time.monotonic() - started) * 1000),
        )


def _is_plain_address(base_url: str) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        return False
    extras = url.userinfo or url.query or url.fragment
    return url.scheme in ("http", "https") and bool(url.host) and not extras


def _call(action: str, store_code: str) -> str:
    """How messages name a call: resource and action are told apart by the action alone."""
    return f"{action.rpartition('/')[2]} for store {store_code}"


def _common(store_code: str) -> dict[str, str]:
    if not store_code.strip():
        raise ValueError("the store code is empty")
    return {"store_code": store_code, "is_base64": "0"}


def _records(products: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The products with trimmed codes, each once."""
    records: dict[str, dict[str, object]] = {}
    for product in products:
        code = _code(product.get("pc"))
        record = {**product, "pc": code}
        if records.setdefault(code, record) != record:
            raise ValueError(f"product code {code!r} is in one batch twice, with different content")
    return list(records.values())


def _filled(batch: list[T]) -> list[T]:
    if not batch:
        raise ValueError("the batch is empty")
    return batch


def _code(code: object) -> str:
    """The trimmed product code. A lost code turned into "0" by a spreadsheet is refused like an empty one."""
    if not isinstance(code, str):
        raise ValueError(f"product code {code!r} is not text")
    if (trimmed := code.strip()) in ("", "0"):
        raise ValueError(f"product code {code!r} names no product")
    return trimmed


def read_page(judge: Judge, reply: Reply) -> Page:
    """A page of a listing, with what it cost."""
    return Page(judge.rows(reply), reply.duration_ms / 1000, len(reply.body))


def _name_of(row: Mapping[str, object]) -> int:
    """A hash of what tells a row from others: its number and code, or its whole content."""
    number = row.get("id")
    try:
        return hash(repr(row) if number is None else repr((number, row.get("product_code"))))
    except RecursionError:  # nested deeper than any product
        return 0


def _pause_before_retry(error: Exception) -> bool | float:
    """stamina's hook: False for no retry, True for its back-off, or the server's own pause in seconds."""
    if not isinstance(error, TransientError):
        return False
    return pause_before_retry(error.retry_after, _LONGEST_PAUSE_HERE)


def _summed(failures: Sequence[TransientError]) -> TransientError:
    """The last failure; but a later refusal does not undo an earlier attempt that may have been applied."""
    error = failures[-1]
    if isinstance(error, UnknownOutcomeError) or not any(
        isinstance(failure, UnknownOutcomeError) for failure in failures
    ):
        return error
    return UnknownOutcomeError(
        f"{error} An earlier attempt may have been applied.",
        http_status=error.http_status,
        error_code=error.error_code,
        answer=error.answer,
        retry_after=error.retry_after,
    )


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
