"""The receiver's HTTP server: uvicorn on httptools, which by itself waits for heads, bodies and readers for ever."""

import asyncio
import gc
import os
import resource
import socket
import sys
from asyncio import AbstractEventLoop, Transport
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from esl_pipeline.addresses import Network, sender
from esl_pipeline.receiver.framing import HEAD_BYTES, FramingError, Pieces, body_length, head_end, plain
from esl_pipeline.receiver.held import VOUCH, WHOLE, Holding, Phase, Table
from esl_pipeline.receiver.turns import Turns

SWEEP_SECONDS = 0.1
SWITCH_SECONDS = 0.0005
UNREAD_BYTES = 65_536
# Connections that asyncio lets in at one round of the event loop (uvloop: all), and that may wait for it.
LET_IN, WAITING = 16, 2_048
# Beside the connections: the buffer's, logs, and those that are accepted while others are being cut.
_OTHER_FILES = 100
_FILES = 8_192


class HeldProtocol(HttpToolsProtocol):
    """A connection that is held by the rule of `held`, and says `Connection: close` when it will not read on.

    trusted: whose X-Forwarded-For is believed.
    """

    def __init__(self, table: Table, turns: Turns, trusted: tuple[Network, ...], **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self.phase, self.since, self.known, self.verified = Phase.HEAD, self.loop.time(), False, False
        self._table, self._turns, self._trusted = table, turns, trusted
        self._application, self.app = self.app, self._answer
        self._received = bytearray()  # and not given to the parser yet
        self._left: int | None = 0  # of the body, None: as its chunks say
        self._pieces: Pieces | None = None  # of a body in chunks
        self._is_reading = False  # a request is begun, and has not come whole
        self._has_had_a_turn = False
        self._waits: asyncio.Future[None] | None = None  # for a turn
        self._begun: object = None  # the request that came with it
        self._is_new, self._refused, self._resting = True, False, False
        self._peer: tuple[str, int] | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._out = _Parting(transport, self._part, self._answers)
        super().connection_made(self._out)  # type: ignore[arg-type]
        # The system would keep megabytes of answers for whoever does not read them, where we do not see them.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        self._table.moved(self)
        _keep_swept(self.loop, self._table)

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.gone(self)
        super().connection_lost(exc)
        if self._waits and not self._waits.done():
            self._waits.set_result(None)  # so that it takes nobody's turn

    def data_received(self, data: bytes) -> None:
        if self._resting or self._refused:
            return
        self._received += data
        if self._has_had_a_turn:
            self._read()
        elif not self._waits:
            self._waits = self._turns.turn(first=True)
            self._waits.add_done_callback(self._begin)
        if len(self._received) > HEAD_BYTES:
            self.flow.pause_reading()
        self.look()

    def _read(self) -> None:
        """Give the parser what it may have: a whole head, its body, and nothing more before that is answered."""
        self._unset_keepalive_if_required()
        try:
            while self._received and self.parser and not self._refused:
                if self._is_reading:
                    self._feed(self._taken())
                elif self.cycle and not self.cycle.response_complete:
                    return
                elif end := head_end(self._received):
                    self._read_head(end)
                else:
                    return
        except (FramingError, httptools.HttpParserError, httptools.HttpParserUpgrade) as wrong:
            self.logger.warning("Invalid HTTP request received: %a", str(wrong.__context__ or wrong))
            self.send_400_response("Invalid HTTP request received.")

    def _read_head(self, end: int) -> None:
        head = bytes(self._received[:end])
        self._left, self._is_reading = body_length(head), True
        self._pieces = Pieces() if self._left is None else None
        del self._received[:end]
        self._feed(plain(head) + self._taken())

    def _taken(self) -> bytes:
        """What is here of the body."""
        if self._left is None:
            taken = bytes(self._received)
        else:
            taken = bytes(self._received[: self._left])
            self._left -= len(taken)
        del self._received[: len(taken)]
        return taken

    def _feed(self, data: bytes) -> None:
        self.parser.feed_data(data)
        if self._left is not None and self._is_reading != (self._left > 0):
            raise FramingError("the request does not end where its head says")

    def on_message_begin(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            raise FramingError("something comes behind the last chunk")
        super().on_message_begin()

    def on_chunk_header(self) -> None:
        """The parser calls it."""
        if self._pieces:
            self._pieces.chunk()

    def on_body(self, body: bytes) -> None:
        if self._pieces:
            self._pieces.grown(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_reading = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._out.ended()
        self.verified = False
        super().on_response_complete()
        if self._received and not self.transport.is_closing():
            self._read()
        self.look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.look()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.look()

    def send_400_response(self, msg: str) -> None:
        self._refused = True
        self._received.clear()
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # in the middle of an answer there is no place for another
        else:
            super().send_400_response(msg)
        if (
            self.cycle and not self.cycle.response_complete
        ):  # its body was wrong: nobody is to wait for more of it
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def look(self) -> None:
        """See whether the phase is another by now."""
        phase = self._phase()
        if phase is not self.phase and self in self.connections:
            self.phase, self.since = phase, self.loop.time()
            self._table.moved(self)

    def _answers(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    def cut(self) -> None:
        """End the connection at once, whatever is on its way."""
        self.transport.abort()

    def _phase(self) -> Phase:
        if self._resting:
            return Phase.REST
        if self._waits:
            return Phase.TURN
        if self.cycle is None or self.cycle.response_complete:
            return Phase.ANSWER if self.transport.get_write_buffer_size() else Phase.HEAD
        if self.flow.write_paused:
            return Phase.ANSWER
        return Phase.BODY if self.cycle.more_body else Phase.WORK

    def _vouch(self) -> None:
        self.known = self.verified = True

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, with the sender's address; an answer that leaves a body unread closes the connection."""
        cycle = self.cycle
        if not self.known:
            await self._turn(cycle)
            if cycle.disconnected:
                return
        scope["client"] = self._sender(scope)
        if not cycle.more_body:
            scope["extensions"] = {VOUCH: self._vouch, WHOLE: True}
            await self._application(scope, receive, send)
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        scope["extensions"] = {VOUCH: self._vouch}
        await self._application(scope, receive, answer)

    def _sender(self, scope: Any) -> tuple[str, int]:
        forwarded = [
            value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"
        ]
        if forwarded or self._peer is None:
            host, port = scope["client"] or ("", 0)
            found = sender(host, forwarded, self._trusted), port
            if forwarded:
                return found
            self._peer = found
        return self._peer

    def _begin(self, _: object) -> None:
        """The first turn: what has come by now is read, and if it is a whole head, that request begins."""
        self._waits, self._has_had_a_turn = None, True
        if self in self.connections:
            self.flow.resume_reading()
            self._read()
            self._begun = self.cycle
        self.look()

    async def _turn(self, cycle: object) -> None:
        first, self._is_new = self._is_new, False
        if cycle is self._begun:
            return
        if len(self._received) <= HEAD_BYTES:
            self.flow.resume_reading()  # of who is not read from nobody learns that he has gone
        self._waits = self._turns.turn(first=first)
        self.look()
        try:
            await self._waits
        finally:
            self._waits = None
            self.look()

    def _part(self, transport: Transport) -> None:
        """Close the connection. What still comes of a body is taken and dropped for a moment: a reset, which is what
        closing at once makes of it, may reach the sender before the answer is read.
        """
        unread = self._refused or (self.cycle is not None and self.cycle.more_body)
        if not unread or self._resting or transport.is_closing():
            transport.close()
            return
        self._resting = True
        self.flow.resume_reading()
        with suppress(OSError):  # the other end is gone already: `connection_lost` comes
            transport.write_eof()
        self.look()


class _Parting:
    """A transport whose `close` is another, and that sends the head of an answer with what comes first of its body:
    each by itself takes the system as long. All else is the transport's own.

    answers: whether what is written now is of an answer.
    """

    def __init__(
        self, transport: Transport, close: Callable[[Transport], None], answers: Callable[[], bool]
    ) -> None:
        self._transport, self._close, self._closing = transport, close, False
        self._answers = answers
        # Of the answer, not sent yet; empty: it is sent; None: no answer has begun.
        self._head: bytes | None = None
        self.get_write_buffer_size = transport.get_write_buffer_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head is None and self._answers():
            self._head = data
        elif self._head:
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._transport.write(data)

    def ended(self) -> None:
        """The answer has."""
        if self._head:
            self._transport.write(self._head)
        self._head = None

    def close(self) -> None:
        self.ended()
        self._closing = True
        self._close(self._transport)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()


def _keep_swept(loop: AbstractEventLoop, table: Table) -> None:
    """Sweep the table every now and then, for as long as there is something in it."""

    def sweep() -> None:
        table.is_swept = False
        table.sweep(loop.time())
        if table:
            _keep_swept(loop, table)

    if not table.is_swept:
        table.is_swept = True
        loop.call_later(SWEEP_SECONDS, sweep)


class Server(uvicorn.Server):
    """Lets connections in a few at a time, while more than as many may wait: asyncio has one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in (found for server in self.servers for found in server.sockets):
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(WAITING)


def configured(
    app: FastAPI, host: str, port: int, trusted: tuple[Network, ...] = (), holding: Holding | None = None
) -> uvicorn.Config:
    """uvicorn's settings for the receiver."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(HeldProtocol, Table(holding or Holding()), Turns(), trusted),  # type: ignore[arg-type]
        ws="none",
        backlog=LET_IN,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        access_log=False,
        timeout_graceful_shutdown=5,
    )


def serve(app: FastAPI, host: str, port: int, trusted: tuple[Network, ...] = ()) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way get five seconds to end.

    trusted: the proxies whose X-Forwarded-For is believed.
    """
    # A thread that has the database's answer waits no longer than this for the event loop's, and what was made at the
    # start is not looked at for garbage again and again.
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    holding = Holding(connections=min(Holding.connections, _files() - _OTHER_FILES))
    server = Server(configured(app, host, port, trusted, holding))
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)


def _files() -> int:
    """How many files this process may open, raised as far as that goes: without a free one nobody is let in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)
