"""The result file: every object once, or an error; never something in between that looks whole."""

import logging
import tracemalloc
from collections.abc import Callable

import pytest

from esl_pipeline.sources.shopify.admin import BulkOperationFailedError, IncompleteDownloadError, bulk
from esl_pipeline.sources.shopify.admin.download import download
from esl_pipeline.sources.shopify.admin.queries import BULK_CATALOGUE
from esl_pipeline_tests.sources.shopify.admin.servers import Reply, Request, Shop, jsonl, shop

NODES = [{"id": f"gid://shopify/ProductVariant/{n}", "title": "Größe – 大" * 20} for n in range(1000)]
FILE = jsonl(*NODES)
TAG = {"ETag": '"one"'}


def ranged(file: bytes, request: Request, *, sent: int | None = None, **headers: str) -> Reply:
    """As a storage serves a file: whole, or from the wanted byte on."""
    at = request.first_byte
    if not at:
        return Reply(file, headers=TAG | headers, sent=sent)
    body = file[at:]
    span = {"Content-Range": f"bytes {at}-{len(file) - 1}/{len(file)}"}
    return Reply(body, 206, TAG | span | headers, sent=sent)


def fetched(
    deliver: Callable[[Request], Reply],
    file: bytes = FILE,
    count: int | None = None,
    change: Callable[[Shop], None] = lambda admin: None,
    **options: int,
) -> tuple[list[dict[str, object]], Exception | None, Shop]:
    """What an operation's download gave, and the error that it ended with."""
    nodes: list[dict[str, object]] = []
    with shop(file, count) as (admin, client):
        operation = bulk.run(client, BULK_CATALOGUE)
        admin.deliver = deliver
        change(admin)
        try:
            for node in download(client, operation, sleep=lambda _: None, **options):
                nodes.append(node)
        except (IncompleteDownloadError, BulkOperationFailedError) as error:
            return nodes, error, admin
    return nodes, None, admin


def downloads(admin: Shop) -> list[Request]:
    return [request for request in admin.server.requests if request.path.startswith("/result/")]


def test_all_objects_in_order() -> None:
    nodes, error, admin = fetched(lambda request: Reply(FILE))
    assert (nodes, error) == (NODES, None)
    (request,) = downloads(admin)
    assert "x-shopify-access-token" not in request.headers
    assert request.headers["accept-encoding"] == "identity"


def test_a_last_line_without_its_end_is_whole_when_it_is_json() -> None:
    nodes, error, _ = fetched(lambda request: Reply(FILE[:-1]), file=FILE[:-1], count=1000)
    assert (nodes, error) == (NODES, None)


def test_an_empty_result_is_not_fetched() -> None:
    nodes, error, admin = fetched(lambda request: Reply(status=500), file=b"")
    assert (nodes, error, downloads(admin)) == ([], None, [])


# --- broken connections


def test_a_broken_connection_goes_on_where_it_broke() -> None:
    nodes, error, admin = fetched(lambda request: ranged(FILE, request, sent=100_001))
    assert (nodes, error) == (NODES, None)
    requests = downloads(admin)
    assert len(requests) == -(-len(FILE) // 100_001)
    assert [request.first_byte for request in requests[:3]] == [0, 100_001, 200_002]
    assert requests[1].headers["if-range"] == '"one"'


def test_a_weak_tag_does_not_vouch_for_bytes() -> None:
    nodes, error, admin = fetched(lambda request: ranged(FILE, request, sent=200_000, ETag='W/"one"'))
    assert (nodes, error) == (NODES, None)
    assert "if-range" not in downloads(admin)[1].headers


def test_a_server_that_ignores_the_range_is_read_anew_and_nothing_comes_twice() -> None:
    breaks = iter([100_000, 50_000, 300_001, None])
    nodes, error, admin = fetched(lambda request: Reply(FILE, sent=next(breaks)))
    assert (nodes, error) == (NODES, None)
    assert len(downloads(admin)) == 4


def test_a_storage_that_is_down_for_a_moment() -> None:
    replies = iter([Reply(status=503), Reply(FILE, headers=TAG, sent=70_000), Reply(status=500), None])
    nodes, error, _ = fetched(lambda request: next(replies) or ranged(FILE, request))
    assert (nodes, error) == (NODES, None)


def test_a_connection_that_breaks_for_ever_ends() -> None:
    nodes, error, admin = fetched(
        lambda request: Reply(status=503) if request.first_byte else Reply(FILE, sent=300_000)
    )
    assert isinstance(error, IncompleteDownloadError)
    assert "5 connections in a row gave nothing: HTTP 503" in str(error)
    assert len(downloads(admin)) == 6
    assert nodes == NODES[: len(nodes)] and 0 < len(nodes) < 1000


def test_an_answer_without_a_length_that_ends_early_is_resumed() -> None:
    def silent(request: Request) -> Reply:
        reply = ranged(FILE, request)
        return reply if request.first_byte else Reply(FILE[:120_000], measured=False)

    nodes, error, _ = fetched(silent)
    assert (nodes, error) == (NODES, None)


def test_a_break_at_the_very_end_is_the_end() -> None:
    def at_the_end(request: Request) -> Reply:
        if not request.first_byte:
            without_last_chunk = b"%x\r\n%b\r\n" % (len(FILE), FILE)
            return Reply(without_last_chunk, headers={"Transfer-Encoding": "chunked"}, measured=False)
        return Reply(status=416, headers={"Content-Range": f"bytes */{len(FILE)}"})

    nodes, error, _ = fetched(at_the_end)
    assert (nodes, error) == (NODES, None)


# --- results that are not whole


@pytest.mark.parametrize(
    ("file", "count", "said"),
    [
        (FILE[:-30], 1000, "line 1,000 is not a JSON object"),
        (jsonl(*NODES[:-1]), 1000, "it has 999 of 1,000 objects"),
        (jsonl(*NODES[:10], [1]), 11, "line 11 is not a JSON object"),
        (b"<html>sorry</html>", 1, "line 1 is not a JSON object"),
        (b"x" * 5_000_000, 1, "longer than 1,000,000 bytes"),
    ],
    ids=["cut", "fewer", "list", "page", "endless line"],
)
def test_a_damaged_file(file: bytes, count: int, said: str) -> None:
    nodes, error, _ = fetched(lambda request: Reply(file), file=file, count=count)
    assert isinstance(error, IncompleteDownloadError)
    assert said in str(error)
    assert nodes == NODES[: len(nodes)]


def test_a_file_that_is_shorter_than_announced() -> None:
    short = jsonl(*NODES[:999])
    _, error, _ = fetched(lambda request: ranged(short, request), count=999)
    assert isinstance(error, IncompleteDownloadError)
    assert "shorter than Shopify announced" in str(error)


@pytest.mark.parametrize(
    "changed", [{"ETag": '"two"'}, {"Content-Range": f"bytes 100000-{len(FILE)}/{len(FILE) + 1}"}]
)
def test_a_file_that_changed_while_it_was_read(changed: dict[str, str]) -> None:
    def change(request: Request) -> Reply:
        reply = ranged(FILE, request, sent=None if request.first_byte else 100_000)
        return Reply(reply.body, reply.status, dict(reply.headers) | changed) if request.first_byte else reply

    _, error, _ = fetched(change)
    assert isinstance(error, IncompleteDownloadError)
    assert "changed while it was read" in str(error)


def test_a_file_that_is_too_large() -> None:
    _, error, _ = fetched(lambda request: Reply(FILE), max_bytes=200_000)
    assert isinstance(error, IncompleteDownloadError)
    assert "larger than the 200,000 bytes" in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(FILE, headers={"Content-Encoding": "gzip"}),
        Reply(FILE, 206),
        Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
    ids=["packed", "part of what", "moved"],
)
def test_an_answer_in_another_form(reply: Reply) -> None:
    nodes, error, _ = fetched(lambda request: reply)
    assert isinstance(error, IncompleteDownloadError)
    assert nodes == []


def test_an_address_that_can_be_overheard() -> None:
    nodes, error, _ = fetched(
        lambda request: Reply(status=403),
        change=lambda admin: admin.fields.update(url="http://storage.example/result"),
    )
    assert isinstance(error, IncompleteDownloadError)
    assert "not https" in str(error)
    assert nodes == []


# --- addresses that expire


@pytest.mark.parametrize("status", [400, 403, 404, 410])
@pytest.mark.parametrize("read_before", [0, 150_000])
def test_an_expired_address_is_asked_for_anew(status: int, read_before: int) -> None:
    def expiring(request: Request) -> Reply:
        if "Signature" in request.path and request.path.startswith("/result/2."):
            return (
                ranged(FILE, request, sent=150_000)
                if read_before and not request.first_byte
                else Reply(status=status)
            )
        return ranged(FILE, request)

    nodes, error, admin = fetched(expiring)
    assert (nodes, error) == (NODES, None)
    assert admin.asked == ["RunBulk", "BulkOperation", "BulkOperation"]


def test_it_is_asked_for_once_only() -> None:
    nodes, error, admin = fetched(lambda request: Reply(status=403))
    assert isinstance(error, IncompleteDownloadError)
    assert "has expired, and the new one as well: HTTP 403" in str(error)
    assert len(downloads(admin)) == 2
    assert nodes == []


def test_an_operation_that_expired_meanwhile() -> None:
    def expire(admin: Shop) -> None:
        admin.states = ["EXPIRED"]

    nodes, error, _ = fetched(lambda request: Reply(status=403), change=expire)
    assert isinstance(error, BulkOperationFailedError)
    assert error.status == "EXPIRED"
    assert nodes == []


def test_the_signature_is_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    for name in (None, "httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    _, error, admin = fetched(lambda request: Reply(status=403))
    assert all("s3cret" in request.path for request in downloads(admin))
    logged = [record.getMessage() for record in caplog.records]
    assert any("/result/" in line for line in logged)
    assert "s3cret" not in "".join([*logged, str(error)])


# --- memory


@pytest.mark.long
def test_memory_does_not_grow_with_the_file() -> None:
    """100,000 lines, 13 MB: what is held at the peak is a chunk and the client, not the file."""
    file = b"".join(
        b'{"id":"gid://shopify/ProductVariant/%d","title":"%b"}\n' % (n, b"x" * 80) for n in range(100_000)
    )
    with shop(file) as (admin, client):
        operation = bulk.run(client, BULK_CATALOGUE)
        admin.deliver = lambda request: Reply(file)
        tracemalloc.start()
        try:
            count = sum(1 for _ in download(client, operation))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 100_000
    assert peak < len(file) / 10
