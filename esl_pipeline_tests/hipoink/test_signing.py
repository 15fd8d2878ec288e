"""A canary sign, with characters that every layer escapes in its own way, must appear nowhere."""

import html
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus, unquote_plus

import httpx
import orjson
import pytest
import stamina
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import SecretStr

from esl_pipeline.hipoink import HipoinkClient, HipoinkError
from esl_pipeline.hipoink.signing import REDACTED, SigningTransport, redactor
from esl_pipeline_tests.hipoink.servers import client_of, running, running_sandbox, scripted

CANARY = 'c4nary/+&= "ü%<x>\\'
TRACES = ("c4nary", "C4NARY")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


def clean(text: str) -> bool:
    return not any(trace in text for trace in TRACES)


def everything_about(error: BaseException, *, variables: bool = True) -> str:
    """All that a logger, a debugger or another process could be shown of an error."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=variables)
    chain = "".join(trace.format())
    return "\n".join([str(error), repr(error), repr(vars(error)), chain, repr(pickle.dumps(error))])


@pytest.mark.parametrize(
    "spelling",
    [str, quote, quote_plus, lambda s: quote(s, safe=""), lambda s: quote(s).lower(), html.escape, repr,
     json.dumps, lambda s: json.dumps(s, ensure_ascii=False), lambda s: json.dumps(s).replace("/", "\\/"),
     lambda s: repr(s.encode()), lambda s: json.dumps(json.dumps(s)), lambda s: json.dumps(json.dumps(repr(s)))],
)  # fmt: skip
def test_every_spelling_is_redacted(spelling: Callable[[str], str]):
    redact = redactor(SecretStr(CANARY))
    spelled = spelling(CANARY)
    assert not clean(spelled)
    text = redact(f"before {spelled} after {spelled}")
    assert clean(text)
    assert text.startswith("before ") and text.count(REDACTED) == 2 and " after " in text


def test_other_text_is_left_alone():
    text = '{"error_code":1,"error_msg":"default missing sign field"}'
    assert redactor(SecretStr(CANARY))(text) == text


def test_the_sign_arrives_and_leaves_no_trace(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with running_sandbox(sign=CANARY) as sandbox, client_of(sandbox.url, sign=CANARY) as client:
        answer = client.create("001", {"pc": "1", "pn": "Tea", "pp": "1.00"})
        assert client.query_count("001") == 1
        shown = [repr(client), repr(answer), repr(list(client.query_all("001")))]
    assert "GET" in caplog.text and "receive_response_headers" in caplog.text  # the loggers did speak
    assert clean(caplog.text + "".join(shown))


@pytest.mark.parametrize("body", [{}, {"pc": "1", "pn": "Tea {ü}"}, {"f1": [{"pc": "1"}], "sign": "theirs"}])
def test_the_sign_joins_whatever_is_sent_and_is_the_one_that_counts(body: dict[str, object]):
    sent: list[httpx.Request] = []
    inner = httpx.MockTransport(lambda request: sent.append(request) or httpx.Response(200))
    with httpx.Client(transport=SigningTransport(SecretStr(CANARY), inner)) as client:
        client.post("http://labels/api", content=orjson.dumps(body))
    assert json.loads(sent[0].content) == body | {"sign": CANARY}
    assert sent[0].headers["Content-Length"] == str(len(sent[0].content))


def echo() -> FastAPI:
    """A server that tells all it was told: in its body and, as a redirect to https does, in a header."""
    app = FastAPI()

    @app.api_route("/api/{client}/product/{action}", methods=["GET", "POST"])
    async def tell(request: Request, action: str) -> Response:
        body = (await request.body()).decode()
        query = request.url.query
        told = json.dumps({"error_code": 1, "error_msg": f"{body} {query} {unquote_plus(query)}"})
        headers = {"Location": str(request.url), "X-Told": query}
        return Response(told, {"create": 200, "query_count": 302}.get(action, 503), headers)

    return app


def calls(client: HipoinkClient) -> list[Callable[[], object]]:
    return [
        lambda: client.create("001", {"pc": "1"}),
        lambda: client.del_multiple("001", ["1"]),
        lambda: client.query("001", 1, 10),
        lambda: client.query_count("001"),
    ]


def test_a_server_that_repeats_the_sign_is_not_quoted(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with running(echo()) as url, client_of(url, sign=CANARY) as client:
        for call in calls(client):
            with pytest.raises(HipoinkError) as caught:
                call()
            assert REDACTED in str(caught.value)
            assert clean(everything_about(caught.value, variables=False))
    assert REDACTED in caplog.text
    assert clean(caplog.text)


@pytest.mark.parametrize(
    "script", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"garbage\r\n\r\n"]
)
def test_a_broken_connection_tells_nothing(caplog: pytest.LogCaptureFixture, script: bytes):
    caplog.set_level(logging.DEBUG)
    with scripted(*[script] * 8) as server, client_of(server.url, sign=CANARY) as client:
        for call in calls(client):
            with pytest.raises(HipoinkError) as caught:
                call()
            assert clean(everything_about(caught.value))
    assert clean(caplog.text)


def test_no_connection_tells_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with scripted() as server:
        url = server.url
    with client_of(url, sign=CANARY) as client:
        for call in calls(client):
            with pytest.raises(HipoinkError) as caught:
                call()
            assert clean(everything_about(caught.value))
    assert clean(caplog.text)


def test_a_timeout_tells_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with (
        running_sandbox(sign=CANARY) as sandbox,
        client_of(sandbox.url, sign=CANARY, timeout_seconds=0.1, retries=1) as client,
    ):
        sandbox.faults({"kind": "hold", "seconds": 0.5})
        for call in calls(client):
            with pytest.raises(HipoinkError) as caught:
                call()
            assert clean(everything_about(caught.value))
    assert clean(caplog.text)


def test_the_log_filter_leaves_with_its_client():
    loggers = [logging.getLogger(name) for name in ("httpx", "httpcore.http11")]
    before = [list(logger.filters) for logger in loggers]
    with client_of("http://127.0.0.1:9", sign=CANARY):
        assert all(logger.filters for logger in loggers)
    assert [logger.filters for logger in loggers] == before
