"""Strangers who hold connections to a receiver, as a process of its own: `python strangers.py PORT PHASE COUNT CHURN`.

Each connection gets stuck in one phase; what is closed is opened again, and CHURN of them a second besides. Says
"held" once all of them are there, and ends when its input ends. Knows nothing of the pipeline, so it starts quickly.
"""

import asyncio
import resource
import socket
import sys

FORM = b"POST /webhooks/shopify/products/update HTTP/1.1\r\nHost: x\r\nX-Shopify-Topic: products/update\r\n"
SENT = {
    "silent": b"",
    "head": b"POST /webhooks/shopify/products/update HTTP/1.1\r\nHost: x\r\nX-A: ",
    "body": FORM + b"Content-Length: 100000\r\n\r\n{" + b" " * 50_000,
    "rest": b"GET /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    "answer": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
    "unsigned": (FORM + b"Content-Length: 2\r\n\r\n{}") * 100,
}
FLOOD = "unsigned"
PHASES = tuple(phase for phase in SENT if phase != FLOOD)


class Stranger(asyncio.Protocol):
    """One connection that is stuck in a phase."""

    def __init__(self, phase: str, ended: asyncio.Event) -> None:
        self.phase, self.ended = phase, ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.phase == "answer":
            transport.pause_reading()
        transport.write(SENT[self.phase])

    def data_received(self, data: bytes) -> None:
        if self.phase == "rest" and data.startswith(b"HTTP/1.1 "):
            self.transport.write(b"x")  # the answer is read, and one byte more comes

    def eof_received(self) -> bool:
        return self.phase == "rest"  # nothing that the server says makes it go

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


async def stuck(port: int, phase: str, opened: asyncio.Queue[Stranger]) -> None:
    """Open a connection, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        ended = asyncio.Event()
        try:
            connection = socket.socket()
            connection.setblocking(False)
            if phase == "answer":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            _, stranger = await loop.create_connection(lambda: Stranger(phase, ended), sock=connection)  # noqa: B023
        except OSError:
            await asyncio.sleep(0.05)
            continue
        opened.put_nowait(stranger)
        await ended.wait()
        await asyncio.sleep(0.01)


async def main(port: int, phases: list[str], count: int, churn: int) -> None:
    """Hold the connections until the input ends."""
    opened: asyncio.Queue[Stranger] = asyncio.Queue()
    tasks = [asyncio.create_task(stuck(port, phases[n % len(phases)], opened)) for n in range(count)]
    oldest = [await opened.get() for _ in range(count)]
    print("held", flush=True)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        await asyncio.sleep(0.05)
        while not opened.empty():
            oldest.append(opened.get_nowait())
        for stranger in oldest[: churn // 20]:
            stranger.transport.abort()
        del oldest[: churn // 20]
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 8_192, hard))
    named = PHASES if sys.argv[2] == "all" else sys.argv[2].split(",")
    asyncio.run(main(int(sys.argv[1]), list(named), int(sys.argv[3]), int(sys.argv[4])))
