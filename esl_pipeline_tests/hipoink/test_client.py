import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import stamina
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from esl_pipeline.hipoink import (
    AuthenticationError,
    HipoinkClient,
    HipoinkError,
    LocalLimiter,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from esl_pipeline.sandbox.label_server.server import create_app
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline_tests.hipoink.servers import (
    FreeLimiter,
    Sandbox,
    client_of,
    http_answer,
    running,
    running_sandbox,
    scripted,
)

SUCCESS = http_answer(b'{"error_code":0,"error_msg":""}')


def product(code: str = "4006381333931", price: str = "5.00", **fields: str) -> dict[str, str]:
    return {"pc": code, "pn": "Earl Grey", "pp": price, **fields}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries at once; the tests of waiting switch it back."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox) -> Sandbox:
    server.clear()
    return server


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[HipoinkClient]:
    with client_of(sandbox.url) as made:
        yield made


# --- the contract -------------------------------------------------------------------------------


def sent(raw: bytes) -> tuple[str, dict[str, Any]]:
    head, body = raw.split(b"\r\n\r\n", 1)
    return head.split(b"\r\n")[0].decode(), json.loads(body)


def test_a_create_carries_the_product_at_the_top_level():
    with scripted(SUCCESS) as server, client_of(server.url, sign="s3") as client:
        client.create("001", product(f1="0.99", f2=""))
    line, body = sent(server.requests[0])
    assert line == "POST /api/default/product/create HTTP/1.1"
    assert body == {**product(f1="0.99", f2=""), "store_code": "001", "is_base64": "0", "sign": "s3"}


def test_batches_are_native_arrays():
    with scripted(SUCCESS, SUCCESS) as server, client_of(server.url, sign="s3") as client:
        client.create_multiple("001", [product("1"), product("2")])
        client.del_multiple("001", ["00001", "2"])
    common = {"store_code": "001", "is_base64": "0", "sign": "s3"}
    assert [sent(request) for request in server.requests] == [
        (
            "POST /api/default/product/create_multiple HTTP/1.1",
            {"f1": [product("1"), product("2")], **common},
        ),
        ("POST /api/default/product/del_multiple HTTP/1.1", {"f1": ["00001", "2"], **common}),
    ]


def test_field_41_the_refresh_trigger_carries_the_common_fields_alone():
    with scripted(SUCCESS) as server, client_of(server.url, sign="s3") as client:
        answer = client.bind_task("001")
    assert sent(server.requests[0]) == (
        "POST /api/default/esl/bind_task HTTP/1.1",
        {"store_code": "001", "is_base64": "0", "sign": "s3"},
    )
    assert (answer.error_code, answer.body) == (0, '{"error_code":0,"error_msg":""}')


def test_the_refresh_trigger_is_judged_paced_and_redacted_as_every_change():
    refusal = http_answer(b'{"error_code":1,"error_msg":"no such sign s3cret"}')
    limiter = FreeLimiter()
    with (
        scripted(refusal, http_answer(b"<html>", status="502 Bad Gateway"), SUCCESS) as server,
        client_of(server.url, sign="s3cret", limiter=limiter) as client,
    ):
        with pytest.raises(RejectedError) as refused:
            client.bind_task("001")
        assert "bind_task for store 001" in str(refused.value)
        assert "s3cret" not in f"{refused.value} {refused.value.answer}"
        client.bind_task("001")  # the second try of a lost answer
    assert limiter.taken == 3


def test_queries_are_gets_with_the_common_fields():
    with scripted(http_answer(b"[]")) as server, client_of(server.url, sign="a&b=c/ü") as client:
        client.query("001", 3, 50)
    line = server.requests[0].split(b"\r\n")[0].decode()
    assert line == (
        "GET /api/default/product/query?store_code=001&is_base64=0&f1=3&f2=50&sign=a%26b%3Dc%2F%C3%BC HTTP/1.1"
    )


def test_a_product_cannot_replace_the_common_fields():
    with scripted(SUCCESS) as server, client_of(server.url) as client:
        client.create("001", product(store_code="002", sign="x", is_base64="1"))
    body = sent(server.requests[0])[1]
    assert (body["store_code"], body["is_base64"], body["sign"]) == ("001", "0", "sandbox-sign")


def test_the_client_id_is_one_path_segment():
    with scripted(SUCCESS) as server, client_of(server.url + "/esl/", client_id="a/b ?") as client:
        client.create("001", product())
    assert sent(server.requests[0])[0] == "POST /esl/api/a%2Fb%20%3F/product/create HTTP/1.1"


def test_text_arrives_as_it_is(client: HipoinkClient, sandbox: Sandbox):
    title = 'Süß & "sauer" 日本 👩‍👩‍👧 <b>\\ /\u2028'
    client.create("001", product(code="00012", pn=title))
    assert sandbox.state()["labels"]["001"]["00012"]["pn"] == title


def test_a_round_trip(client: HipoinkClient, sandbox: Sandbox):
    answer = client.create_multiple("001", [product("1"), product("2"), product("3")])
    assert (answer.http_status, answer.error_code, answer.error_msg) == (200, 0, "")
    client.create("001", product("2", "7.5"))
    client.del_multiple("001", ["3", "never seen"])
    rows = client.query("001", 1, 10)
    assert [(row["product_code"], row["product_price"]) for row in rows] == [("1", "5.00"), ("2", "7.50")]
    assert client.query_count("001") == 2
    assert client.query_count("002") == 0


# --- batches ------------------------------------------------------------------------------------


def test_codes_are_trimmed_and_sent_once(client: HipoinkClient, sandbox: Sandbox):
    client.create_multiple("001", [product("1"), product(" 1 "), product("2")])
    client.del_multiple("001", ["1", " 1", "1"])
    assert sandbox.state()["pushes"] == {"001": {"1": 2, "2": 1}}


@pytest.mark.parametrize("code", ["", "  ", "0", " 0 ", None, 4006381333931])
def test_codes_that_name_no_product_are_refused_by_name(code: Any):
    limiter = FreeLimiter()
    with client_of("http://127.0.0.1:9", limiter=limiter) as client:
        for call in (
            lambda: client.create("001", product(code)),
            lambda: client.create_multiple("001", [product("1"), product(code)]),
            lambda: client.del_multiple("001", ["1", code]),
        ):
            with pytest.raises(ValueError, match=f"product code {code!r}"):
                call()
    assert limiter.taken == 0


def test_two_contents_for_one_code_are_refused():
    with (
        client_of("http://127.0.0.1:9") as client,
        pytest.raises(ValueError, match="'1' is in one batch twice"),
    ):
        client.create_multiple("001", [product("1", "5.00"), product("1", "6.00")])


@pytest.mark.parametrize("code", ["00", "000", "0001", "O"])
def test_zeros_that_are_codes_are_kept(client: HipoinkClient, sandbox: Sandbox, code: str):
    client.create("001", product(code))
    assert list(sandbox.state()["labels"]["001"]) == [code]


def test_empty_batches_stores_and_unwritable_text_are_refused():
    with client_of("http://127.0.0.1:9") as client:
        with pytest.raises(ValueError, match="batch is empty"):
            client.create_multiple("001", [])
        with pytest.raises(ValueError, match="batch is empty"):
            client.del_multiple("001", [])
        with pytest.raises(ValueError, match="store code is empty"):
            client.query_count(" ")
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            client.create("001", product(pn="\ud800"))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host",
        "http://",
        "http://user:word@host",
        "https://host/?sign=1",
        "https://host/#x",
        "http://h:x",
    ],
)
def test_bad_addresses_are_refused(url: str):
    with pytest.raises(ValueError, match="address must look like"):
        client_of(url)


@pytest.mark.parametrize("options", [{"client_id": ""}, {"client_id": ".."}, {"sign": ""}])
def test_empty_keys_are_refused(options: dict[str, str]):
    with pytest.raises(ValueError, match="label server's"):
        client_of("http://127.0.0.1:9", **options)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "leaf"),
    [
        ({"kind": "error", "error_msg": "default missing pn field"}, RejectedError),
        ({"kind": "bad_codes", "codes": ["4006381333931"]}, RejectedError),
        ({"kind": "status", "status": 422}, RejectedError),
        ({"kind": "error", "error_msg": "default app_key is disable"}, AuthenticationError),
        ({"kind": "status", "status": 401}, AuthenticationError),
        ({"kind": "status", "status": 403}, AuthenticationError),
        ({"kind": "status", "status": 429, "retry_after": "60"}, TransientError),
    ],
)
def test_a_no_is_not_repeated(
    client: HipoinkClient, sandbox: Sandbox, fault: dict[str, Any], leaf: type[HipoinkError]
):
    sandbox.faults(fault)
    with pytest.raises(HipoinkError) as caught:
        client.create_multiple("001", [product()])
    assert type(caught.value) is leaf
    assert sandbox.state()["calls"] == {"create_multiple": 1}


@pytest.mark.parametrize(
    ("fault", "leaf"),
    [
        ({"kind": "status", "status": 408}, TransientError),
        ({"kind": "status", "status": 425}, TransientError),
        ({"kind": "status", "status": 429}, TransientError),
        ({"kind": "status", "status": 503, "retry_after": "1"}, TransientError),
        ({"kind": "status", "status": 502, "apply": True}, UnknownOutcomeError),
        ({"kind": "text", "apply": True}, UnknownOutcomeError),
        ({"kind": "text", "body": ""}, UnknownOutcomeError),
        ({"kind": "reset"}, UnknownOutcomeError),
        ({"kind": "reset", "apply": True}, UnknownOutcomeError),
    ],
)
def test_transient_failures_are_tried_three_times(
    client: HipoinkClient, sandbox: Sandbox, fault: dict[str, Any], leaf: type[HipoinkError]
):
    sandbox.faults(fault)
    with pytest.raises(HipoinkError) as caught:
        client.create_multiple("001", [product()])
    assert type(caught.value) is leaf
    assert str(caught.value).startswith("create_multiple for store 001: ")
    state = sandbox.state()
    assert state["calls"] == {"create_multiple": 3}
    assert len(state["history"].get("001", {}).get("4006381333931", [])) == (3 if fault.get("apply") else 0)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "text"},
        {"kind": "reset"},
        {"kind": "reset", "apply": True},
    ],
)
def test_two_failures_and_a_success_are_a_success(
    client: HipoinkClient, sandbox: Sandbox, fault: dict[str, Any]
):
    sandbox.faults({**fault, "times": 2})
    assert client.create("001", product(price="9.99")).error_code == 0
    assert sandbox.state()["labels"]["001"]["4006381333931"]["pp"] == "9.99"


def test_a_timeout_after_sending_leaves_the_outcome_open(sandbox: Sandbox):
    sandbox.faults({"kind": "hold", "seconds": 0.5})
    with client_of(sandbox.url, timeout_seconds=0.2, retries=1) as client:
        with pytest.raises(UnknownOutcomeError, match="timed out"):
            client.create("001", product(price="9.99"))
        with pytest.raises(UnknownOutcomeError):
            client.del_multiple("001", ["nothing"])
    assert sandbox.state()["labels"]["001"]["4006381333931"]["pp"] == "9.99"


def test_later_refusals_do_not_undo_the_doubt(client: HipoinkClient, sandbox: Sandbox):
    sandbox.faults(
        {"kind": "reset", "apply": True, "times": 1}, {"kind": "status", "status": 429, "retry_after": "60"}
    )
    with pytest.raises(UnknownOutcomeError, match=r"429.*An earlier attempt may have been applied") as caught:
        client.create("001", product())
    assert (caught.value.http_status, caught.value.retry_after) == (429, 60)


def test_a_failed_read_leaves_nothing_in_doubt(client: HipoinkClient, sandbox: Sandbox):
    for fault in ({"kind": "reset"}, {"kind": "status", "status": 502}, {"kind": "text"}):
        sandbox.faults(fault)
        with pytest.raises(TransientError) as caught:
            client.query_count("001")
        assert type(caught.value) is TransientError


def test_nobody_listening_is_transient():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with client_of(f"http://127.0.0.1:{port}") as client, pytest.raises(TransientError) as caught:
        client.create("001", product())
    assert type(caught.value) is TransientError
    assert "no connection" in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b'{"error_code":0,"err', length=31),
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"",
        b"\x00\x01 not http\r\n\r\n",
        http_answer(b'{"error_code":0}', headers="Content-Encoding: gzip\r\n").replace(b"{", b"\x1f\x8b"),
    ],
    ids=["truncated body", "truncated head", "closed", "not HTTP", "compressed"],
)
def test_a_broken_answer_leaves_the_outcome_open(answer: bytes):
    with (
        scripted(answer) as server,
        client_of(server.url, retries=1) as client,
        pytest.raises(UnknownOutcomeError),
    ):
        client.create("001", product())


def test_a_huge_answer_is_not_read_to_its_end():
    body = [http_answer(b" " * 500_000, length=10**9)] + [b" " * 500_000] * 1000
    with scripted(body, pause=0) as server, client_of(server.url, retries=1) as client:
        started = time.monotonic()
        with pytest.raises(UnknownOutcomeError, match="not JSON") as caught:
            client.create("001", product())
    assert time.monotonic() - started < 2
    assert caught.value.answer is not None and len(caught.value.answer) <= 2000


def test_the_size_limit_is_exact():
    for limit, fits in ((31, True), (30, False)):
        with scripted(SUCCESS) as server, client_of(server.url, retries=1, max_answer_bytes=limit) as client:
            if fits:
                client.create("001", product())
            else:
                with pytest.raises(UnknownOutcomeError):
                    client.create("001", product())


def test_redirects_are_not_followed():
    with running_sandbox() as other:
        redirect = http_answer(b"", status="307 Temporary Redirect", headers=f"Location: {other.url}/\r\n")
        with (
            scripted(redirect) as server,
            client_of(server.url, retries=1) as client,
            pytest.raises(TransientError, match="HTTP 307"),
        ):
            client.create("001", product())
        assert other.state()["calls"] == {}


def test_errors_survive_pickling():
    error = UnknownOutcomeError("call: why", http_status=502, error_code=None, answer="<b>", retry_after=3.0)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnknownOutcomeError
    assert (str(copy), copy.http_status, copy.answer, copy.retry_after) == ("call: why", 502, "<b>", 3.0)


# --- waiting ------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_short_retry_after_is_waited_for(client: HipoinkClient, sandbox: Sandbox):
    stamina.set_testing(False)
    sandbox.faults({"kind": "status", "status": 429, "retry_after": "1", "times": 1})
    started = time.monotonic()
    client.create("001", product())
    assert 1 <= time.monotonic() - started < 3


@pytest.mark.parametrize("retry_after", ["-3", "soon", "", None])
def test_a_useless_retry_after_means_backing_off(
    client: HipoinkClient, sandbox: Sandbox, retry_after: str | None
):
    stamina.set_testing(False)
    sandbox.faults({"kind": "status", "status": 429, "retry_after": retry_after, "times": 1})
    started = time.monotonic()
    client.create("001", product())
    assert 0.2 <= time.monotonic() - started < 2


@pytest.mark.parametrize(("retry_after", "seconds"), [("60", 60), ("4.5", 4.5), ("999999999", 3600)])
def test_a_long_retry_after_is_handed_on(
    client: HipoinkClient, sandbox: Sandbox, retry_after: str, seconds: float
):
    stamina.set_testing(False)
    sandbox.faults({"kind": "status", "status": 503, "retry_after": retry_after})
    started = time.monotonic()
    with pytest.raises(TransientError) as caught:
        client.create("001", product())
    assert caught.value.retry_after == seconds
    assert time.monotonic() - started < 2
    assert sandbox.state()["calls"] == {"create": 1}


def test_every_attempt_takes_a_slot(sandbox: Sandbox):
    limiter = FreeLimiter()
    sandbox.faults({"kind": "status", "status": 503, "times": 2})
    with client_of(sandbox.url, limiter=limiter) as client:
        client.create("001", product())
        client.query_count("001")
    assert limiter.taken == 4


def test_calls_keep_the_rate(sandbox: Sandbox):
    now = [0.0]
    limiter = LocalLimiter(
        5, burst=1, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    with client_of(sandbox.url, limiter=limiter) as client:
        for _ in range(11):
            client.create("001", product())
    assert now[0] == pytest.approx(2.0)


def test_an_answer_that_trickles_in_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("esl_pipeline.hipoink.client._CONNECT_SECONDS", 0.2)
    drops = [http_answer(b"", length=1000)] + [b" "] * 200
    with (
        scripted(drops, pause=0.02) as server,
        client_of(server.url, timeout_seconds=0.3, retries=1) as client,
    ):
        started = time.monotonic()
        with pytest.raises(UnknownOutcomeError, match="too slowly"):
            client.create("001", product())
    assert time.monotonic() - started < 2


# --- connections --------------------------------------------------------------------------------


def test_one_connection_serves_all_calls():
    peers = set()
    with LabelStore() as store:
        app = create_app(store)

        @app.middleware("http")
        async def note_peer(request: Any, call_next: Any) -> Any:
            peers.add(request.client.port)
            return await call_next(request)

        with running(app) as url, client_of(url) as client:
            for number in range(1, 6):
                client.create("001", product(str(number)))
                client.query("001", 1, 10)
    assert len(peers) == 1


def test_threads_may_share_a_client(client: HipoinkClient, sandbox: Sandbox):
    failures: list[Exception] = []

    def push(worker: int) -> None:
        try:
            for number in range(5):
                client.create("001", product(f"{worker}-{number}"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=[worker]) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(sandbox.state()["labels"]["001"]) == 20


# --- listings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 20, 25, 100])
def test_all_pages_are_read(client: HipoinkClient, size: int):
    client.create_multiple("001", [product(str(number)) for number in range(1, 21)])
    client.create("002", product("elsewhere"))
    codes = [row["product_code"] for row in client.query_all("001", size)]
    assert codes == [str(number) for number in range(1, 21)]


def test_an_empty_store_has_no_rows(client: HipoinkClient):
    assert list(client.query_all("001")) == []


def listing(pages: dict[int, list[int]], count: int) -> FastAPI:
    """A server whose pages are given; those after the last are its repetition under key 0."""
    app = FastAPI()

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": count}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> JSONResponse:
        return JSONResponse([{"product_code": str(code)} for code in pages.get(f1, pages[0])])

    return app


@pytest.mark.parametrize(
    ("pages", "count"),
    [
        ({1: [1, 2, 3], 2: [4, 5, 6], 0: []}, 6),
        ({1: [1, 2], 2: [3, 4], 3: [5, 6], 0: []}, 6),
        ({1: [1, 2, 3], 2: [3, 4, 5], 3: [6], 0: []}, 6),
        ({1: [1, 2, 3], 0: [4, 5, 6]}, 6),
    ],
    ids=["short end", "server caps the page", "overlapping pages", "last page for ever"],
)
def test_odd_but_complete_listings_are_read(pages: dict[int, list[int]], count: int):
    with running(listing(pages, count)) as url, client_of(url) as client:
        codes = [row["product_code"] for row in client.query_all("001", 3)]
    assert codes == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    "pages", [{0: [1, 2, 3]}, {0: []}, {1: [1, 2, 3], 0: []}], ids=["same page for ever", "nothing", "half"]
)
def test_an_incomplete_listing_is_never_taken_for_the_whole(pages: dict[int, list[int]]):
    limiter = FreeLimiter()
    with (
        running(listing(pages, 6)) as url,
        client_of(url, limiter=limiter) as client,
        pytest.raises(TransientError, match="of 6 products"),
    ):
        list(client.query_all("001", 3))
    assert limiter.taken <= 4  # the counts and two pages: what repeats is not asked for again


@pytest.mark.parametrize("by_own_size", [True, False])
def test_a_server_that_caps_its_pages_is_read_whole_however_it_turns_them(by_own_size: bool):
    app, cap = FastAPI(), 10

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": 35}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> list[dict[str, str]]:
        start = (f1 - 1) * (min(cap, f2) if by_own_size else f2)
        return [{"product_code": str(code)} for code in range(35)[start : start + min(cap, f2)]]

    with running(app) as url, client_of(url) as client:
        codes = [row["product_code"] for row in client.query_all("001", 20)]
    assert codes == [str(code) for code in range(35)]


def test_labels_that_go_while_the_list_is_read_do_not_make_it_incomplete():
    app, counts = FastAPI(), iter([6, 5])

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": next(counts)}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> list[dict[str, str]]:
        return [{"product_code": str(code)} for code in ([1, 2, 3], [4, 5], [])[f1 - 1]]

    with running(app) as url, client_of(url) as client:
        assert len(list(client.query_all("001", 3))) == 5


ODD_PAGE = b"""[{"product_code": "X"}, {"product_code": "X "}, {"product_code": "X"}, {"product_code": 7},
    {"product_code": null}, {}, "none", {"product_code": "\\u0000", "product_name": "\\ud800 \\ud83c\\udf4e"},
    {"product_name": NaN, "product_code": "A\xff"}, {"product_price": 1234567890123456789012345}]"""


def test_field_07_odd_rows_are_counted_as_the_server_counts_them_and_spoil_no_list():
    app = FastAPI()

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": 10}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> Response:
        return Response(ODD_PAGE if f1 == 1 else b"[]", media_type="application/json")

    with running(app) as url, client_of(url) as client:
        rows = list(client.query_all("001", 10))
    codes = ["X", "X ", "X", 7, None, None, None, "\x00", "A\ufffd", None]
    assert [row.get("product_code") for row in rows] == codes


def test_rows_are_asked_for_by_code(client: HipoinkClient, sandbox: Sandbox):
    client.create_multiple("001", [product("1"), product("2")])
    rows = client.query_with_code("001", ["2", "2 ", "none"])
    assert [row["product_code"] for row in rows] == ["2"]
    with pytest.raises(ValueError, match="names no product"):
        client.query_with_code("001", ["0"])
    sandbox.faults({"kind": "status", "status": 404, "action": "query_with_code"})
    with pytest.raises(RejectedError):
        client.query_with_code("001", ["2"])


def test_a_listing_without_end_is_left():
    app = FastAPI()
    asked = []

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": 3}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> JSONResponse:
        asked.append(f1)
        return JSONResponse([{"product_code": f"{f1}-{number}"} for number in range(f2)])

    with running(app) as url, client_of(url) as client:
        assert len(list(client.query_all("001", 3))) <= 12
    assert asked == [1, 2, 3, 4]
