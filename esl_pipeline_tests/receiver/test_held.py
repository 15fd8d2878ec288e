"""For how long a connection is held, who gives way, what a head may say. The real process: reliability/test_held.py."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from esl_pipeline.receiver.held import CUTS, Holding, Phase, Table
from esl_pipeline.receiver.turns import Turns
from esl_pipeline_tests.receiver.support import (
    PRODUCT,
    connected,
    make_app,
    raw_exchange,
    served,
    signed,
)
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

UPDATE = "/webhooks/shopify/products/update"
RAW = json.dumps(PRODUCT).encode()


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def send(url: str, number: int = 1) -> int:
    raw = json.dumps(PRODUCT | {"id": number}).encode()
    return httpx.post(
        url + UPDATE, content=raw, headers=signed("products/update", raw), timeout=20
    ).status_code


def received(connection: socket.socket) -> bytes:
    """All that comes until the other end says that it is done; a reset is b""."""
    found = b""
    try:
        while part := connection.recv(65_536):
            found += part
    except ConnectionResetError:
        return b""
    return found


def is_ended(connection: socket.socket, seconds: float = 3) -> bool:
    """Whether the other end takes no more within this time, however much we want to say."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            connection.sendall(b"x")
        except OSError:
            return True
        time.sleep(0.02)
    return False


# S29: the rule


@dataclass(eq=False)
class Fake:
    name: str
    phase: Phase = Phase.HEAD
    since: float = 0
    known: bool = False
    verified: bool = False
    is_cut: bool = False

    def look(self) -> None:
        pass

    def cut(self) -> None:
        self.is_cut = True


def cut_by(*held: Fake) -> list[str]:
    """Who is cut when one more comes than there are places for."""
    table = Table(Holding(connections=len(held)))
    newcomer = Fake("newcomer")
    for connection in (*held, newcomer):
        table.moved(connection)
    assert len(table) == len(held)
    return [connection.name for connection in (*held, newcomer) if connection.is_cut]


def test_s29_who_is_in_a_phase_for_longest_gives_way_and_never_verified_work() -> None:
    verified = Fake("verified", Phase.WORK, known=True, verified=True)
    known = Fake("known", known=True)
    health = Fake("health", Phase.WORK)
    assert cut_by(verified, known, health, Fake("old"), Fake("young")) == ["old"]
    assert cut_by(verified, known, health) == ["newcomer"]
    assert cut_by(verified, health, Fake("waits for its turn", Phase.TURN)) == ["waits for its turn"]
    assert cut_by(verified) == ["newcomer"]
    again = Fake("again", Phase.BODY)
    table = Table(Holding(connections=2))
    for connection in (again, Fake("other"), again):  # it went on: now the other one waits for longest
        table.moved(connection)
    table.moved(Fake("newcomer"))
    assert not again.is_cut


@pytest.mark.parametrize("phase", Phase)
def test_s29_each_phase_that_waits_for_the_other_end_has_seconds(phase: Phase) -> None:
    table, connection = Table(Holding()), Fake("x", phase, known=True, verified=True)
    table.moved(connection)
    waits_for_us = phase in (Phase.TURN, Phase.WORK)
    table.sweep(10)
    assert connection.is_cut is not waits_for_us
    table.sweep(10_000)
    assert connection.is_cut is not waits_for_us


def test_s29_a_crowds_end_is_spread() -> None:
    table, crowd = Table(Holding()), [Fake(str(n)) for n in range(CUTS + 1)]
    for connection in crowd:
        table.moved(connection)
    table.sweep(100)
    assert sum(connection.is_cut for connection in crowd) == CUTS
    table.sweep(100)
    assert all(connection.is_cut for connection in crowd)


# S29: on the wire

UNREAD = [
    (b"GET /nope HTTP/1.1", 404, ()),
    (b"PUT /health HTTP/1.1", 405, ()),
    (b"POST /webhooks/shopify/products/update HTTP/1.1", 415, (b"Content-Encoding: gzip",)),
    (b"POST /api/store-mappings/ HTTP/1.1", 401, ()),
    (b"GET /health HTTP/1.1", 200, ()),
]


@pytest.fixture(scope="module")
def short(watched_buffer: WatchedBuffer) -> Iterator[str]:
    """A receiver that holds nothing for long."""
    with served(make_app(watched_buffer), Holding(head=0.3, body=0.3, answer=0.3, rest=0.3)) as url:
        yield url


@pytest.mark.parametrize(("request_line", "status", "lines"), UNREAD)
def test_s29_an_answer_that_leaves_the_body_unread_closes_whatever_comes_of_it(
    short: str, request_line: bytes, status: int, lines: tuple[bytes, ...]
) -> None:
    head = b"\r\n".join([request_line, b"Host: x", b"Content-Length: 1000000", *lines, b"", b""])
    with connected(short) as connection:
        connection.sendall(head)
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert is_ended(connection)


def test_s29_the_answer_is_read_although_the_body_goes_on(short: str) -> None:
    """Closing at once would answer the rest of the body with a reset, which takes the answer along."""
    head = b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n"
    for _ in range(5):
        assert raw_exchange(short, head, b"x" * 200_000, b"x" * 200_000).startswith(b"HTTP/1.1 404 ")


def test_s29_an_answer_to_a_request_without_a_body_keeps_the_connection(short: str) -> None:
    with connected(short) as connection:
        for _ in range(3):
            connection.sendall(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 404 ") and b"connection: close" not in answer.lower()


def test_s29_who_does_not_read_the_answers_is_cut(short: str) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(5)
        connection.connect((httpx.URL(short).host, httpx.URL(short).port or 0))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 40)
        assert is_ended(connection)


def test_s29_a_full_receiver_lets_a_signed_sender_in(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer), Holding(connections=5)) as url:
        strangers = [connected(url) for _ in range(20)]
        assert send(url) == 200
        # Work with a right signature stays, whoever comes meanwhile.
        release = buffer.stall("inbox_add")
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send, url, 2)
            eventually(lambda: len(buffer.calls) == 2)
            strangers += [connected(url) for _ in range(20)]
            time.sleep(0.2)
            release.set()
            assert sent.result() == 200
        for stranger in strangers:
            stranger.close()


# S42: one reading of a head

HEADS = {
    "length and chunks": (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunks and length": (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": (b"Content-Length: 5", b"Content-Length: 6"),
    "two equal lengths": (b"Content-Length: 5", b"content-length: 5"),
    "a list of lengths": (b"Content-Length: 5, 5",),
    "a sign": (b"Content-Length: +5",),
    "a space before the colon": (b"Content-Length : 5",),
    "a space before the name": (b" Content-Length: 5",),
    "a folded line": (b"X-A: b", b" c"),
    "a folded coding": (b"Transfer-Encoding:", b" chunked"),
    "a second host": (b"Host: y",),
    "two codings": (b"Transfer-Encoding: gzip, chunked",),
    "coding twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "another coding": (b"Transfer-Encoding: xchunked",),
    "a bare line feed": (b"X-A: b\nX-B: c",),
    "a bare carriage return": (b"X-A: b\rX-B: c",),
    "a NUL": (b"X-A: \x00",),
    "many lines": (b"a:",) * 101,
    "a long line": (b"a: " + b"b" * 20_000,),
}


@pytest.mark.parametrize("lines", HEADS.values(), ids=HEADS)
def test_s42_what_can_be_read_in_two_ways_is_400_and_closed(short: str, lines: tuple[bytes, ...]) -> None:
    body = b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"\r\n".join([b"POST /webhooks/shopify/products/update HTTP/1.1", b"Host: x", *lines, b"", b""])
    answer = raw_exchange(short, head + body)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"\r\nconnection: close\r\n" in answer.lower()
    assert answer.count(b"HTTP/1.1 ") == 1


def test_s42_chunks_in_an_old_version_are_400(short: str) -> None:
    assert raw_exchange(
        short, b"POST /nope HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ).startswith(b"HTTP/1.1 400 ")


def test_s42_chunks_of_one_byte_are_400_before_they_hold_up_the_others(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer)) as url, connected(url) as connection:
        head = [f"POST {UPDATE} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"]
        head += [f"{name}: {value}" for name, value in signed("products/update", RAW).items()]
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode() + b"1\r\nx\r\n" * 2_000)
        assert received(connection).startswith(b"HTTP/1.1 400 ")
        pieces = (RAW[start : start + 100] for start in range(0, len(RAW), 100))
        answer = httpx.post(url + UPDATE, content=pieces, headers=signed("products/update", RAW))
        assert answer.status_code == 200


@pytest.mark.long
def test_s29_a_crowd_that_waits_for_its_turns_keeps_no_newcomer_out(buffer: WatchedBuffer) -> None:
    """All places are theirs, and each has a hundred requests that are not begun."""
    request = f"POST {UPDATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    with served(make_app(buffer), Holding(connections=50)) as url:
        crowd = [connected(url) for _ in range(50)]
        for connection in crowd:
            connection.sendall(request * 100)
        assert [send(url, number) for number in range(1, 11)] == [200] * 10
        for connection in crowd:
            connection.close()


def test_s29_first_requests_begin_before_further_ones_and_the_latest_first() -> None:
    async def go() -> list[str]:
        turns, begun = Turns(), list[str]()

        async def begin(name: str, *, first: bool) -> None:
            await turns.turn(first=first)
            begun.append(name)

        further = [begin(f"further {n}", first=False) for n in range(3)]
        await asyncio.gather(*further, begin("old", first=True), begin("new", first=True))
        return begun

    begun = asyncio.run(go())
    assert begun == ["new", "old", "further 0", "further 1", "further 2"]


def test_s29_one_begins_in_each_round_of_the_loop_and_every_fourth_is_who_waits_longest() -> None:
    async def go() -> list[int]:
        turns = Turns()
        waiting = [turns.turn(first=True) for _ in range(8)]
        begun: list[int] = []
        while len(begun) < len(waiting):
            await asyncio.sleep(0)
            new = [n for n, turn in enumerate(waiting) if turn.done() and n not in begun]
            assert len(new) <= 1
            begun += new
        return begun

    assert asyncio.run(go()) == [7, 6, 5, 0, 4, 3, 2, 1]


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    """A server whose answers come in parts, break off, or have no body."""
    app = FastAPI()

    async def parts(path: str) -> AsyncIterator[str]:
        await asyncio.sleep(0.3)
        if path == "broken":
            raise ValueError
        yield "first"
        await asyncio.sleep(0.3)
        yield "second"

    @app.get("/{path}")
    def answer(path: str) -> Response:
        return Response(status_code=204) if path == "none" else StreamingResponse(parts(path))

    with served(app) as url:
        yield url


def test_the_head_of_an_answer_goes_with_what_comes_first_of_its_body(answering: str) -> None:
    with connected(answering) as connection:
        for _ in range(2):
            connection.sendall(b"GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(5)
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n5\r\nfirst\r\n")
            while not answer.endswith(b"second\r\n0\r\n\r\n"):
                answer += connection.recv(65_536) or pytest.fail("it ended before")


@pytest.mark.parametrize(("path", "status"), [(b"broken", 200), (b"none", 204)])
def test_the_head_of_an_answer_goes_without_a_body_too(answering: str, path: bytes, status: int) -> None:
    asked = b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
    assert raw_exchange(answering, asked).startswith(b"HTTP/1.1 %d " % status)
