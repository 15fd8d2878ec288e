"""A server on loopback that alerts are sent to: what it was told, and how it answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/services/T0/B0/sEcReT"


class Listener:
    """Keeps every message. status: what it answers; alive: whether it answers at all."""

    def __init__(self) -> None:
        self.status, self.headers = 200, dict[str, str]()
        self.messages: list[dict[str, Any]] = []
        self.calls: list[str] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.calls.append(self.path)
                if listener.status == 200:
                    listener.messages.append(json.loads(body))
                self.reply()

            def do_GET(self) -> None:
                listener.calls.append(self.path)
                self.reply()

            def reply(self) -> None:
                self.send_response(listener.status)
                for name, value in listener.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.url = self.host + PATH

    def events(self) -> list[tuple[str, str]]:
        """(event, kind) of all that it was told, in order."""
        return [(alert["event"], alert["kind"]) for alert in self.alerts()]

    def alerts(self) -> list[dict[str, Any]]:
        """All alerts of all messages."""
        return [alert for message in self.messages for alert in message["alerts"]]


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield listener
    finally:
        listener.http.shutdown()
        listener.http.server_close()
        thread.join()
