"""A TCP proxy on loopback that misbehaves as told: Toxiproxy's eight toxics, and a trap that holds one message.

It runs in a thread of its own; toxics are switched while connections are open. The upstream is a host and port, or
the path of a Unix socket (our embedded Postgres listens on nothing else).
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

_CHUNK = 65_536

Way = Literal["up", "down", "both"]


@dataclass(frozen=True)
class Toxic:
    """A misbehaviour on the way up (to the server), down (to the client) or on both."""

    way: Way = field(default="both", kw_only=True)

    def holds(self, way: Way) -> bool:
        return self.way in (way, "both")


@dataclass(frozen=True)
class Latency(Toxic):
    """Data comes later by so many seconds, more or less jitter."""

    seconds: float
    jitter: float = 0


@dataclass(frozen=True)
class Bandwidth(Toxic):
    """No more than so many bytes a second."""

    bytes_per_second: float


@dataclass(frozen=True)
class SlowClose(Toxic):
    """The end of a connection is passed on so many seconds late."""

    seconds: float


@dataclass(frozen=True)
class Timeout(Toxic):
    """A black hole: data vanish, and the connection is closed after so many seconds (0: never)."""

    seconds: float = 0


@dataclass(frozen=True)
class ResetPeer(Toxic):
    """The client's connection is reset (TCP RST) so many seconds after data came."""

    seconds: float = 0


@dataclass(frozen=True)
class Slicer(Toxic):
    """Data come in pieces of a few bytes, with a pause after each."""

    size: int
    pause: float = 0


@dataclass(frozen=True)
class LimitData(Toxic):
    """The connection is closed after so many bytes."""

    bytes: int


class Trap:
    """Holds one connection: from the first request with these bytes on, or from that request's answer on.

    What is held is passed on by `release`, or lost when the connection breaks. Other connections go on.
    """

    def __init__(self, request: bytes, hold: Literal["request", "answer"]) -> None:
        self.request, self.hold = request, hold
        self.sprung = threading.Event()
        self.released = threading.Event()
        self.connection: object = None

    def release(self) -> None:
        self.released.set()

    async def pass_by(self, connection: object, way: Way, data: bytes) -> None:
        """Return when the data may go on."""
        if self.released.is_set():
            return
        if self.connection is None and way == "up" and self.request in data:
            self.connection = connection
        if connection is not self.connection or (way == "up") != (self.hold == "request"):
            return
        self.sprung.set()
        while not self.released.is_set():
            await asyncio.sleep(0.005)


class _Connection:
    """One connection through the proxy."""

    last_way: Way = "down"


class ChaosProxy:
    """The proxy; as a context manager it is closed at the end of the block. `toxics` may be set at any time.

    round_trips: how often a client has sent something after it had last been sent something.
    """

    def __init__(self, upstream: tuple[str, int] | Path) -> None:
        self.round_trips = 0
        self.toxics: tuple[Toxic, ...] = ()
        self._upstream = upstream
        self._trap: Trap | None = None
        self._port = 0
        self._server: asyncio.Server | None = None
        self._pairs: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos proxy", daemon=True)
        self._thread.start()
        self.up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def port(self) -> int:
        """Where clients connect on 127.0.0.1; stays the same when the proxy goes down and up."""
        return self._port

    def down(self) -> None:
        """The eighth toxic: every connection is reset and new ones are refused."""
        self._wait(self._close())

    def up(self) -> None:
        """Accept connections (again)."""
        self._wait(self._open())

    def trap(self, request: bytes, hold: Literal["request", "answer"]) -> Trap:
        """Set a trap for the next request that contains these bytes."""
        self._trap = Trap(request, hold)
        return self._trap

    def cut(self) -> None:
        """Reset every open connection; new ones are accepted."""
        self._wait(self._reset_all())

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._reset_all()

    async def _reset_all(self) -> None:
        tasks = list(self._pairs)
        for task in tasks:
            for writer in self._pairs[task]:
                _reset(writer)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._upstream, Path):
                answers, server = await asyncio.open_unix_connection(self._upstream)
            else:
                answers, server = await asyncio.open_connection(*self._upstream)
        except OSError:
            _reset(client)
            return
        task = asyncio.current_task()
        assert task is not None
        self._pairs[task] = (client, server)
        connection = _Connection()
        try:
            with suppress(asyncio.CancelledError):  # _reset_all; asyncio.streams would report it
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pipe(reader, server, client, "up", connection))
                    both.create_task(self._pipe(answers, client, client, "down", connection))
        except* OSError:
            pass  # one side is gone, or a toxic broke it
        finally:
            del self._pairs[task]
            for writer in (client, server):
                writer.close()

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        way: Way,
        connection: "_Connection",
    ) -> None:
        """Pass on what one side says until it has ended; its end too."""
        passed = 0
        while data := await reader.read(_CHUNK):
            if way == "up" and connection.last_way != "up":
                self.round_trips += 1
            connection.last_way = way
            if self._trap is not None:
                await self._trap.pass_by(connection, way, data)
            swallowed, pieces, pause = False, [data], 0.0
            for toxic in self._of(way):
                match toxic:
                    case Latency(seconds, jitter):
                        await asyncio.sleep(max(0.0, seconds + random.uniform(-jitter, jitter)))
                    case Bandwidth(rate):
                        size = max(1, int(rate / 50))
                        pieces, pause = _cut(data, size), size / rate
                    case Slicer(size, pause):
                        pieces = _cut(data, size)
                    case Timeout(seconds):
                        swallowed = True
                        if seconds:
                            await asyncio.sleep(seconds)
                            raise ConnectionAbortedError
                    case ResetPeer(seconds):
                        await asyncio.sleep(seconds)
                        _reset(client)
                        raise ConnectionResetError
                    case LimitData(limit):
                        pieces = [data[: max(0, limit - passed)]]
            for piece in [] if swallowed else pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            passed += len(data)
            if any(isinstance(toxic, LimitData) and passed >= toxic.bytes for toxic in self._of(way)):
                raise ConnectionAbortedError
        for toxic in self._of(way):
            if isinstance(toxic, SlowClose):
                await asyncio.sleep(toxic.seconds)
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def _of(self, way: Way) -> list[Toxic]:
        return [toxic for toxic in self.toxics if toxic.holds(way)]


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: lingering for 0 s throws away what is unsent."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
