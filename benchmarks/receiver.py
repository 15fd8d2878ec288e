"""The receiver with its commits: `python -m benchmarks.receiver [SECONDS]`. Linux.

Deliveries a second and p99 at 1 and 50 connections, with bodies of 1 and of 100 variants, beside a FastAPI application
that reads the body and answers 200 on the same server with the same options, in turns in the same run. Real parts, each
in a process of its own: embedded Postgres (durable), the receiver as its command runs it, and the sender, whose
requests are signed before the clock runs.

Exits 1 when the receiver keeps less than 0.4 of what the other application answers (50 connections, 1 variant), when
anything but 200 is answered, or when the inbox holds other than as many rows as were answered 200.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from benchmarks.fair import SECRET, _answers, _body, _eventually, _port, _process, _shop
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.sandbox.shopify.webhooks import sign

RATIO, SHOPS, TURNS = 0.4, 20, 5
CASES = ((1, 1), (50, 1), (1, 100), (50, 100))
"""Connections, variants."""
PATH = "/webhooks/shopify/products/update"


@dataclass(frozen=True)
class Measured:
    """Of one receiver or application: answers a second, and milliseconds of an answer."""

    per_second: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Case:
    """What was kept, and what the application that does nothing answered; medians of the turns, also the ratio's."""

    connections: int
    variants: int
    receiver: Measured
    nothing: Measured
    ratio: float


def nothing() -> None:
    """In the child: reads the body and answers 200, on uvicorn as the receiver sets it up but for what guards it."""
    import uvicorn
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.post("/{path:path}")
    async def receive(request: Request) -> dict[str, str]:
        await request.body()
        return {"status": "accepted"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    options = {
        "http": "httptools",
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
    }
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), **options)  # type: ignore[arg-type]


def send(port: int, connections: int, variants: int, seconds: float) -> None:
    """In the child: as fast as the answers come, on so many connections; prints what came.

    No HTTP client of Python keeps up with what is measured: bytes that were made before, and answers of a known form.
    """
    import asyncio

    import uvloop

    first = time.time_ns() % 10**9
    made = _requests(first, variants, int(seconds * (6_000 if variants == 1 else 3_000)) + 100)
    took, wrong = list[float](), list[bytes]()

    async def connection(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < until and (request := next(made, None)):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            took.append(time.perf_counter() - began)
            if not head.startswith(b"HTTP/1.1 200 ") or b'"accepted"' not in body:
                wrong.append(head.split(b"\r\n")[0] + b" " + body)
        writer.close()

    async def go() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(connection(began + seconds) for _ in range(connections)))
        return time.perf_counter() - began

    went = uvloop.run(go())
    ended = next(made, None) is None
    quantiles = statistics.quantiles(took, n=100, method="inclusive")
    told = {"seconds": went, "answers": len(took), "p50": quantiles[49] * 1000, "p99": quantiles[98] * 1000}
    print(json.dumps(told | {"wrong": [text.decode() for text in wrong[:3]], "ended": ended}))


def _requests(first: int, variants: int, number: int) -> Iterator[bytes]:
    """Each another product's, of one shop after the other."""
    bodies = [_body(shop, 0, variants, 1_000) for shop in range(SHOPS)]
    made = []
    for n in range(number):
        shop = n % SHOPS
        raw = bodies[shop].replace(b'"vendor":"Vendor"', b'"vendor":"%d-%d"' % (first, n))
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: receiver\r\nUser-Agent: Shopify-Captain-Hook\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\nX-Shopify-Topic: products/update\r\n"
            f"X-Shopify-Shop-Domain: {_shop(shop)}\r\nX-Shopify-Webhook-Id: {uuid4()}\r\n"
            f"X-Shopify-Event-Id: {uuid4()}\r\nX-Shopify-Api-Version: 2026-04\r\n"
            f"X-Shopify-Hmac-Sha256: {sign(raw, SECRET)}\r\n\r\n"
        )
        made.append(head.encode() + raw)
    return iter(made)


@contextmanager
def _running(home: Path) -> Iterator[tuple[dict[str, int], str]]:
    """Ports of the receiver and of the application that does nothing, and the database."""
    from pydantic import SecretStr

    from esl_pipeline.buffer.buffer import Buffer
    from esl_pipeline.buffer.migrate import migrate
    from esl_pipeline.buffer.transports import PsycopgTransport

    with ExitStack() as stack:
        os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bench-", dir="/tmp")))
        data.chmod(0o755)
        postgres = stack.enter_context(EmbeddedPostgres.start(data / "data", durable=True))
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        with PsycopgTransport(SecretStr(dsn)) as transport:
            for number in range(SHOPS):
                mapping = {"source_system": "shopify", "source_store_id": _shop(number)}
                Buffer(transport).mapping_create(mapping | {"hipoink_store_code": f"S{number}"})
        ports = {"receiver": _port(), "nothing": _port()}
        commands = {
            "receiver": (
                *("-m", "esl_pipeline.commands.cli", "receiver"),
                *("--only", "webhooks", "--port", str(ports["receiver"])),
            ),
            "nothing": ("-m", "benchmarks.receiver", "--nothing", str(ports["nothing"])),
        }
        for name, command in commands.items():
            variables = {"ESL_DATABASE_URL": dsn, "SHOPIFY_WEBHOOK_SECRET": SECRET, "ESL_HOME": str(home)}
            stack.enter_context(_process(*command, log=home / f"{name}.log", **variables))
            url = f"http://127.0.0.1:{ports[name]}/health"
            _eventually(f"the {name}", lambda url=url: _answers(url), 60)  # type: ignore[misc]
        yield ports, dsn


def _sent(port: int, connections: int, variants: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.receiver", "--send"]
    command += [str(given) for given in (port, connections, variants, seconds)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(told.stdout))


def _rate(told: dict[str, Any]) -> float:
    return float(told["answers"] / told["seconds"])


def _median(told: list[dict[str, Any]]) -> Measured:
    rates = [_rate(one) for one in told]
    return Measured(
        statistics.median(rates), *(statistics.median(one[q] for one in told) for q in ("p50", "p99"))
    )


def measure(seconds: float) -> tuple[list[Case], list[str]]:
    """Each case in turns of so many seconds; and what is wrong."""
    cases, wrong = list[Case](), list[str]()
    with tempfile.TemporaryDirectory() as home, _running(Path(home)) as (ports, dsn):
        for port in ports.values():
            _sent(port, 8, 1, 1)  # what is compiled and opened at first
        with psycopg.connect(dsn, autocommit=True) as connection:
            for connections, variants in CASES:
                told: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
                for _ in range(TURNS):
                    connection.execute("truncate esl.webhook_inbox")
                    for name, port in ports.items():
                        told[name].append(one := _sent(port, connections, variants, seconds))
                        wrong += [f"{name}: {text}" for text in one["wrong"]]
                        if one["ended"]:
                            wrong.append(f"{name}: the sender had no more requests")
                    (rows,) = connection.execute("select count(*) from esl.webhook_inbox").fetchone() or (0,)
                    if rows != (answers := told["receiver"][-1]["answers"]):
                        wrong.append(f"{answers} answers and {rows} rows")
                pairs = zip(told["receiver"], told["nothing"], strict=True)
                ratio = statistics.median(_rate(kept) / _rate(answered) for kept, answered in pairs)
                medians = (_median(told[name]) for name in ("receiver", "nothing"))
                case = Case(connections, variants, *medians, ratio)
                cases.append(case)
                print(
                    f"{connections:3} connections, {variants:3} variants: receiver {case.receiver.per_second:6,.0f}/s, "
                    f"p50 {case.receiver.p50:5.1f} ms, p99 {case.receiver.p99:5.1f} ms; does nothing "
                    f"{case.nothing.per_second:6,.0f}/s, p99 {case.nothing.p99:5.1f} ms; ratio {case.ratio:.2f}",
                    flush=True,
                )
    return cases, wrong


def main(seconds: float) -> int:
    """Measure, print, judge."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    cases, problems = measure(seconds)
    judged = next(case for case in cases if (case.connections, case.variants) == (50, 1))
    if judged.ratio < RATIO:
        problems.append(f"{judged.ratio:.2f} of the application that does nothing, less than {RATIO}")
    print(json.dumps([asdict(case) for case in cases]))
    summary = (
        f"receiver {seconds:g} s: {judged.receiver.per_second:,.0f} deliveries/s committed, p99 "
        f"{judged.receiver.p99:.0f} ms, {judged.ratio:.2f} of an application that does nothing"
    )
    print(summary + (f" - BROKEN: {'; '.join(problems)}" if problems else ", all within bounds"))
    return 1 if problems else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--nothing", _]:
            nothing()
        case ["--send", port, connections, variants, seconds]:
            send(int(port), int(connections), int(variants), float(seconds))
        case arguments:
            raise SystemExit(main(float(arguments[0]) if arguments else 5))
