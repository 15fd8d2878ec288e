"""The result file of a bulk operation: one JSON object a line, read as it comes, and known to be whole or not."""

import logging
import random
import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import orjson

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import USER_AGENT, is_safe, reason, trusted
from esl_pipeline.sources.shopify.admin import bulk
from esl_pipeline.sources.shopify.admin.bulk import BulkOperation, Sleep
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import IncompleteDownloadError

_READ_SECONDS = 60.0
_BROKEN_IN_A_ROW = 5
_LONGEST_LINE = 1_000_000  # of a variant with its product: 250 tags of 255 characters are a quarter
# What a signed URL answers when its time is over: Shopify's storage says 400 or 403, others 404 or 410.
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_PASSING = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


def download(
    client: AdminClient,
    operation: BulkOperation,
    *,
    max_bytes: int = 10_000_000_000,
    sleep: Sleep = time.sleep,
) -> Iterator[dict[str, Any]]:
    """The objects of a completed operation's result; memory does not grow with the file.

    Only an iterator that ended by itself has given everything. A result that is cut, damaged, too large,
    changed while it was read, or gone raises IncompleteDownloadError at that place, after objects that may
    have been used already. A broken connection is resumed where it broke; an expired URL is asked for anew, once.
    """
    bulk.whole(operation)
    if operation.url is None:
        return
    result = _Result(client, operation, operation.url, max_bytes, sleep)
    count = 0
    with closing(result.chunks()) as chunks:
        for line in result.lines(chunks):
            try:
                node = orjson.loads(line)
            except orjson.JSONDecodeError:
                node = None
            if not isinstance(node, dict):
                raise result.incomplete(f"line {count + 1:,} is not a JSON object, as if it were cut")
            count += 1
            yield node
    if count < operation.object_count:
        raise result.incomplete(f"it has {count:,} of {operation.object_count:,} objects")


class _BrokenError(Exception):
    """This connection gives no more; another may."""


class _ExpiredError(Exception):
    """This URL gives nothing any more."""


class _Result:
    """The bytes of one result file, over as many connections as it takes."""

    def __init__(
        self, client: AdminClient, operation: BulkOperation, url: str, max_bytes: int, sleep: Sleep
    ) -> None:
        self._client = client
        self._operation = operation
        self._url = url
        self._max_bytes = max_bytes
        self._sleep = sleep
        self._offset = 0
        self._total: int | None = None
        self._tag: str | None = None

    def incomplete(self, problem: str) -> IncompleteDownloadError:
        """The error that says why the result cannot be taken for whole."""
        return IncompleteDownloadError(
            f"The result of bulk operation {self._operation.id} is not whole: {problem} "
            f"(byte {self._offset:,} of {self._operation.file_size or self._total or 0:,}). Start a new operation."
        )

    def lines(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, cut at line ends; blank lines left out."""
        rest = b""
        for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(bytes.strip, lines)
            if len(rest) > _LONGEST_LINE:
                raise self.incomplete(f"a line is longer than {_LONGEST_LINE:,} bytes")
        if rest.strip():
            yield rest

    def chunks(self) -> Generator[bytes, None, None]:
        """All bytes once, in order; raises when they are not all there."""
        expired = broken = 0
        while True:
            before = self._offset
            try:
                yield from self._connection()
                break
            except _ExpiredError as error:
                expired += 1
                if expired > 1:
                    raise self.incomplete(
                        f"its address has expired, and the new one as well: {error}"
                    ) from None
                self._url = bulk.whole(bulk.read(self._client, self._operation.id)).url or ""
            except (_BrokenError, httpx.TransportError) as error:
                problem = reason(error)
                broken = 0 if self._offset > before else broken + 1
                if broken >= _BROKEN_IN_A_ROW:
                    raise self.incomplete(f"{broken} connections in a row gave nothing: {problem}") from None
                self._sleep(0.5 * 2**broken * random.uniform(1, 1.5))  # noqa: S311

        if self._offset < (self._operation.file_size or 0):
            raise self.incomplete("its file is shorter than Shopify announced")

    def _connection(self) -> Iterator[bytes]:
        """What one connection gives of the bytes that are missing; returns at the end of the file."""
        if not is_safe(self._url):
            raise self.incomplete("its address is not https")
        with (
            _without_query_in_logs(),
            # The URL is its own key: the shop's token is not for the storage to see.
            httpx.Client(
                timeout=_READ_SECONDS,
                headers={"Accept-Encoding": "identity", "User-Agent": USER_AGENT},
                trust_env=not is_loopback(httpx.URL(self._url).host),
                verify=trusted(),
            ) as http,
            http.stream("GET", self._url, headers=self._range()) as response,
        ):
            at = self._place(response)
            for chunk in response.iter_raw():
                at += len(chunk)
                if at > self._max_bytes:
                    raise self.incomplete(f"it is larger than the {self._max_bytes:,} bytes that are allowed")
                if at > self._offset:
                    fresh = chunk[self._offset - at :]
                    self._offset = at
                    yield fresh
        if self._offset < (self._total or self._operation.file_size or 0):
            raise _BrokenError("the answer ended before the file did")

    def _range(self) -> dict[str, str]:
        if not self._offset:
            return {}
        wanted = {"Range": f"bytes={self._offset}-"}
        return wanted | {"If-Range": self._tag} if self._tag else wanted

    def _place(self, response: httpx.Response) -> int:
        """Where in the file the answer begins: a server may ignore the range and begin anew."""
        status = response.status_code
        if status in _EXPIRED:
            raise _ExpiredError(f"HTTP {status}")
        if status in _PASSING or status >= 500:
            raise _BrokenError(f"HTTP {status}")
        span = _span(response)
        if status == 416 and span == (0, self._offset):
            return self._offset
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        if status not in (200, 206) or span is None or not plain:
            raise self.incomplete(f"its address answers HTTP {status}, in a form that was not asked for")
        at, total = span
        tag = _strong_tag(response)
        if self._offset and (at > self._offset or _differ(tag, self._tag) or _differ(total, self._total)):
            raise self.incomplete("the file changed while it was read")
        self._tag, self._total = tag or self._tag, total or self._total
        return at


def _span(response: httpx.Response) -> tuple[int, int | None] | None:
    """The answer's first byte within the file, and the file's length where the server says it."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if found := _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "")):
        return int(found[1] or 0), int(found[2]) if found[2] != "*" else None
    return None


def _strong_tag(response: httpx.Response) -> str | None:
    """The ETag, if it says that the bytes are the same; a weak one says less."""
    tag = response.headers.get("ETag", "")
    return None if tag.startswith("W/") else tag or None


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other


@contextmanager
def _without_query_in_logs() -> Iterator[None]:
    """Keeps signatures out of httpx's log lines, which tell whole URLs."""

    def cut(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg.copy_with(query=None) if isinstance(arg, httpx.URL) else arg for arg in record.args
            )
        return True

    logger = logging.getLogger("httpx")
    logger.addFilter(cut)
    try:
        yield
    finally:
        logger.removeFilter(cut)
