"""Real servers on loopback for the client's tests: the sandbox, any app, and scripted bytes."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from esl_pipeline.hipoink import Call, HipoinkClient
from esl_pipeline.sandbox.label_server.server import SIGN, create_app, listen, server
from esl_pipeline.sandbox.label_server.store import LabelStore


class FreeLimiter:
    """Counts the slots taken and never waits."""

    def __init__(self) -> None:
        self.taken = 0

    @contextmanager
    def slot(self, call: Call) -> Iterator[None]:
        self.taken += 1
        yield

    def close(self) -> None:
        pass


def client_of(url: str, *, sign: str = SIGN, client_id: str = "default", **options: Any) -> HipoinkClient:
    return HipoinkClient(url, client_id, SecretStr(sign), **{"limiter": FreeLimiter(), **options})


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port; gives its address."""
    running_server = server(app)
    with listen(0) as sock:
        thread = threading.Thread(target=running_server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            while not running_server.started:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            running_server.should_exit = True
            thread.join()


class Sandbox:
    """A running sandbox label server and what tests ask of it."""

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self.http = http

    def faults(self, *rules: dict[str, Any]) -> None:
        self.http.post("/sandbox/faults", json=list(rules)).raise_for_status()

    def clear(self) -> None:
        for path in ("/sandbox/faults", "/sandbox/state"):
            self.http.delete(path).raise_for_status()

    def state(self) -> dict[str, Any]:
        return self.http.get("/sandbox/state").raise_for_status().json()

    def hang(self, store: str, **wish: Any) -> list[str]:
        """Hang devices (floor.Hang) -> their codes."""
        answer = self.http.put("/sandbox/devices", json={"store": store, **wish}).raise_for_status()
        return list(answer.json()["esl_codes"])

    def change_devices(self, store: str, **change: Any) -> int:
        """Let something happen to devices (floor.Change) -> to how many."""
        answer = self.http.patch("/sandbox/devices", json={"store": store, **change}).raise_for_status()
        return int(answer.json()["count"])

    def set_floor(self, store: str, **floor: Any) -> None:
        """Say how the labels of a store behave (floor.Floor)."""
        self.http.put(f"/sandbox/floors/{store}", json=floor).raise_for_status()

    def set_ap(self, store: str, ap: str, *, dead: bool) -> None:
        """Let an access point die, or live again."""
        self.http.put(f"/sandbox/aps/{store}/{ap}", json={"dead": dead}).raise_for_status()

    def tick(self, seconds: float) -> None:
        """Let time pass for the devices."""
        self.http.post("/sandbox/tick", json={"seconds": seconds}).raise_for_status()

    def places(self, store: str) -> dict[str, dict[str, Any]]:
        """What each physical label of a store shows, and what the server holds for it, by the label's code."""
        answer = self.http.get("/sandbox/shelf", params={"store": store}).raise_for_status()
        return {place["esl_code"]: place for place in answer.json()}


@contextmanager
def running_sandbox(store: LabelStore | None = None, **options: Any) -> Iterator[Sandbox]:
    with (
        store or LabelStore() as kept,
        running(create_app(kept, **options)) as url,
        httpx.Client(base_url=url, timeout=10) as http,
    ):
        yield Sandbox(url, http)


class Scripted:
    """A socket server that answers each connection's first request with the next script.

    A script is the bytes to send, or a sequence of them sent with pauses; then it closes.
    """

    def __init__(self, scripts: Sequence[bytes | Sequence[bytes]], pause: float) -> None:
        self.requests: list[bytes] = []
        self._scripts = scripts
        self._pause = pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.requests.append(_read_request(connection))
                self._send(connection, [script] if isinstance(script, bytes) else script)

    def _send(self, connection: socket.socket, parts: Sequence[bytes]) -> None:
        try:
            for part in parts:
                connection.sendall(part)
                if len(parts) > 1:
                    time.sleep(self._pause)
        except OSError:
            pass  # the client has had enough


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65536)
    head = request.split(b"\r\n\r\n")[0].lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
    while len(request) < len(head) + 4 + length:
        request += connection.recv(65536)
    return request


@contextmanager
def scripted(*scripts: bytes | Sequence[bytes], pause: float = 0.05) -> Iterator[Scripted]:
    running_server = Scripted(scripts, pause)
    try:
        yield running_server
    finally:
        running_server.close()


def http_answer(
    body: bytes, *, status: str = "200 OK", length: int | None = None, headers: str = ""
) -> bytes:
    """One HTTP answer as bytes; `length` may lie about the body's."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{headers}\r\n"
    return head.encode() + body
