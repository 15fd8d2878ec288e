"""A real HTTP server on loopback whose answers the tests write, and a shop's Admin API made of such answers."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from pydantic import SecretStr

from esl_pipeline.sources.shopify.admin import AdminClient

TOKEN = "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"
SHOP = "corner-shop.myshopify.com"
VERSION = "2026-10"
OPERATION = "gid://shopify/BulkOperation/720918"
CREATED_AT = "2026-11-22T02:00:00Z"


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))

    @property
    def first_byte(self) -> int:
        """Where the wanted range begins; 0 without one."""
        wanted = self.headers.get("range", "bytes=0-")
        return int(wanted.removeprefix("bytes=").removesuffix("-"))


@dataclass
class Reply:
    """`sent` limits the bytes that are really sent of the promised body; not `measured` promises no length."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int | None = None
    measured: bool = True


class Server:
    """Answers by `answer`, and keeps all requests."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.url = ""


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[Server]:
    server = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.path, headers, self.rfile.read(length))
            server.requests.append(request)
            reply = server.answer(request)
            self.send_response(reply.status)
            length_header = {"Content-Length": str(len(reply.body))} if reply.measured else {}
            for name, value in (length_header | dict(reply.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.sent])
            self.close_connection = reply.sent is not None or not reply.measured

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """One reply after the other; the last for ever."""
    left = list(replies)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


def graphql(
    data: object = None,
    *,
    errors: object = None,
    cost: object = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """An answer as Shopify gives it."""
    answer: dict[str, object] = {}
    if data is not None:
        answer["data"] = data
    if errors is not None:
        answer["errors"] = errors
    if cost is not None:
        answer["extensions"] = {"cost": cost}
    return Reply(
        json.dumps(answer).encode(), headers={"Content-Type": "application/json"} | dict(headers or {})
    )


def error(message: str, code: str | None = None) -> dict[str, object]:
    return {"message": message} | ({"extensions": {"code": code}} if code else {})


def throttled(
    requested: float = 500, available: float = 100, rate: float = 100, bucket: float = 2000
) -> Reply:
    status = {"maximumAvailable": bucket, "currentlyAvailable": available, "restoreRate": rate}
    cost = {"requestedQueryCost": requested, "actualQueryCost": None, "throttleStatus": status}
    return graphql(errors=[error("Throttled", "THROTTLED")], cost=cost)


def client_of(server: Server, **options: Any) -> AdminClient:
    return AdminClient(server.url, SecretStr(TOKEN), VERSION, **options)


def jsonl(*nodes: object) -> bytes:
    return b"".join(json.dumps(node).encode() + b"\n" for node in nodes)


class Shop:
    """An Admin API with one bulk operation and its result file; tests change its attributes."""

    def __init__(self, server: Server, file: bytes = b"", count: int | None = None) -> None:
        self.server = server
        self.file = file
        self.states = ["COMPLETED"]
        self.fields: dict[str, object] = {}
        self.count = file.count(b"\n") if count is None else count
        self.start_errors: list[list[dict[str, object]]] = []
        self.running: list[dict[str, object]] = []
        self.deliver: Callable[[Request], Reply] = lambda request: Reply(self.file)
        self.query = ""
        self.asked: list[str] = []
        self.links = 0
        server.answer = self._answer

    def operation(self, status: str, **fields: object) -> dict[str, object]:
        self.links += 1
        done = status == "COMPLETED" and bool(self.count)
        return {
            "id": OPERATION,
            "type": "QUERY",
            "status": status,
            "errorCode": None,
            "query": self.query,
            "createdAt": CREATED_AT,
            "objectCount": str(self.count),
            "fileSize": str(len(self.file)) if done else None,
            "url": f"{self.server.url}/result/{self.links}.jsonl?Signature=s3cret" if done else None,
            "partialDataUrl": None,
        } | fields

    def _answer(self, request: Request) -> Reply:
        if request.path.startswith("/result/"):
            return self.deliver(request)
        sent = request.json
        name = sent["query"].split("(")[0].split("{")[0].split()[1]
        self.asked.append(name)
        return graphql(getattr(self, f"_{name}")(sent["variables"]))

    def _RunBulk(self, variables: dict[str, str]) -> object:
        if self.start_errors and (errors := self.start_errors.pop(0)):
            return {"bulkOperationRunQuery": {"bulkOperation": None, "userErrors": errors}}
        self.query = variables["query"]
        payload = {"bulkOperation": self.operation("CREATED"), "userErrors": []}
        return {"bulkOperationRunQuery": payload}

    def _BulkOperation(self, variables: dict[str, str]) -> object:
        status = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"bulkOperation": self.operation(status, **self.fields)}

    def _RunningBulk(self, variables: dict[str, str]) -> object:
        return {"bulkOperations": {"nodes": self.running}}

    def _CancelBulk(self, variables: dict[str, str]) -> object:
        return {
            "bulkOperationCancel": {
                "bulkOperation": {"id": OPERATION, "status": "CANCELING"},
                "userErrors": [],
            }
        }


@contextmanager
def shop(file: bytes = b"", count: int | None = None) -> Iterator[tuple[Shop, AdminClient]]:
    with serving(in_turn(Reply(status=500))) as server, client_of(server) as client:
        yield Shop(server, file, count), client
