"""The receiver with its commits: `python -m benchmarks.receiver [SECONDS]`. Linux.

Deliveries a second and p99 at 1 and 50 connections, with bodies of 1 and of 100 variants, beside a FastAPI application
that reads the body and answers 200 on the same server with the same options, in turns in the same run. Real parts, each
in a process of its own: embedded Postgres (durable), the receiver as its command runs it, and the sender, whose
requests are signed before the clock runs.

Exits 1 when the receiver keeps less than 0.4 of what the other application answers (50 connections, 1 variant), when
anything but 200 is answered, or when the inbox holds other than as many rows as were answered 200.
"""

import json
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from benchmarks.parts import (
    SECRET,
    STORE_SETTINGS,
    Deployment,
    answers,
    deployment,
    eventually,
    process,
    told,
)
from benchmarks.webhooks import PATH, body, shop_name
from esl_pipeline.local.ports import free_port
from esl_pipeline.sandbox.shopify.webhooks import sign

RATIO, SHOPS, TURNS = 0.4, 60, 3
CASES = ((1, 1), (50, 1), (1, 100), (50, 100))
"""Connections, variants."""


@dataclass(frozen=True)
class Measured:
    """Of one receiver or application: answers a second, and milliseconds of an answer."""

    per_second: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Case:
    """What was kept, and what the application that does nothing answered; medians of the turns."""

    connections: int
    variants: int
    receiver: Measured
    nothing: Measured

    @property
    def ratio(self) -> float:
        return self.receiver.per_second / self.nothing.per_second


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
    """In the child: as fast as the answers come, on so many connections, for so long at most; prints what came.

    No HTTP client of Python keeps up with what is measured: bytes that were made before, and answers of a known form.
    """
    import asyncio

    import uvloop

    first = time.time_ns() % 10**9
    made = _requests(first, variants, int(seconds * (16_000 if variants == 1 else 1_200)) + 100)
    took, wrong = list[float](), list[bytes]()

    async def connection(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < until and (request := next(made, None)):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            said = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            took.append(time.perf_counter() - began)
            if not head.startswith(b"HTTP/1.1 200 ") or b'"accepted"' not in said:
                wrong.append(head.split(b"\r\n")[0] + b" " + said)
        writer.close()

    async def go() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(connection(began + seconds) for _ in range(connections)))
        return time.perf_counter() - began

    went = uvloop.run(go())
    quantiles = statistics.quantiles(took, n=100, method="inclusive")
    came = {"seconds": went, "answers": len(took), "p50": quantiles[49] * 1000, "p99": quantiles[98] * 1000}
    print(json.dumps(came | {"wrong": [text.decode() for text in wrong[:3]]}))


def _requests(first: int, variants: int, number: int) -> Iterator[bytes]:
    """Each another product's, of one shop after the other."""
    bodies = [body(shop, 0, variants, 1_000) for shop in range(SHOPS)]
    made = []
    for n in range(number):
        shop = n % SHOPS
        raw = bodies[shop].replace(b'"vendor":"Vendor"', b'"vendor":"%d-%d"' % (first, n))
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: receiver\r\nUser-Agent: Shopify-Captain-Hook\r\nAccept: */*\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\nX-Shopify-Topic: products/update\r\n"
            f"X-Shopify-Shop-Domain: {shop_name(shop)}\r\nX-Shopify-Webhook-Id: {uuid4()}\r\n"
            f"X-Shopify-Event-Id: {uuid4()}\r\nX-Shopify-Api-Version: 2026-04\r\n"
            f"X-Shopify-Hmac-Sha256: {sign(raw, SECRET)}\r\n\r\n"
        )
        made.append(head.encode() + raw)
    return iter(made)


@contextmanager
def _running() -> Iterator[tuple[Deployment, dict[str, int]]]:
    """A receiver and the application that does nothing, and the ports of the two."""
    port = free_port()
    with deployment(
        (), beside={"nothing": ("-m", "benchmarks.receiver", "--nothing", str(port))}
    ) as deployed:
        deployed.map_shops({shop_name(number): f"S{number}" for number in range(SHOPS)}, STORE_SETTINGS)
        eventually("the application", lambda: answers(f"http://127.0.0.1:{port}/health"), 60)
        yield deployed, {"receiver": int(deployed.receiver.rpartition(":")[2]), "nothing": port}


def _sent(deployed: Deployment, port: int, *given: float) -> dict[str, Any]:
    """What came of connections, variants and seconds."""
    options = [str(one) for one in (port, *given)]
    with process("-m", "benchmarks.receiver", "--send", *options, log=deployed.home / "sender.log") as child:
        return dict(told(child))


def _median(came: list[dict[str, Any]]) -> Measured:
    rates = [one["answers"] / one["seconds"] for one in came]
    return Measured(
        statistics.median(rates), *(statistics.median(one[q] for one in came) for q in ("p50", "p99"))
    )


def measure(
    seconds: float, *, cases: Sequence[tuple[int, int]] = CASES, turns: int = TURNS
) -> tuple[list[Case], list[str]]:
    """Each case in turns of so many seconds; and what is wrong."""
    found, wrong = list[Case](), list[str]()
    with _running() as (deployed, ports):
        for port in ports.values():
            _sent(deployed, port, 8, 1, 1)  # what is compiled and opened at first
        for connections, variants in cases:
            came: dict[str, list[dict[str, Any]]] = {name: [] for name in ports}
            for _ in range(turns):
                deployed.execute("truncate esl.webhook_inbox")
                for name, port in ports.items():
                    came[name].append(one := _sent(deployed, port, connections, variants, seconds))
                    wrong += [f"{name}: {text}" for text in one["wrong"]]
                ((rows,),) = deployed.rows("select count(*) from esl.webhook_inbox")
                if rows != (count := came["receiver"][-1]["answers"]):
                    wrong.append(f"{count} answers and {rows} rows")
            found.append(Case(connections, variants, _median(came["receiver"]), _median(came["nothing"])))
    return found, wrong


def _line(case: Case) -> str:
    return (
        f"{case.connections:3} connections, {case.variants:3} variants: receiver {case.receiver.per_second:6,.0f}/s, "
        f"p50 {case.receiver.p50:5.1f} ms, p99 {case.receiver.p99:5.1f} ms; does nothing "
        f"{case.nothing.per_second:6,.0f}/s, p99 {case.nothing.p99:5.1f} ms; ratio {case.ratio:.2f}"
    )


def main(seconds: float) -> int:
    """Measure, print, judge."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    cases, problems = measure(seconds)
    print("\n".join(map(_line, cases)))
    judged = next(case for case in cases if (case.connections, case.variants) == (50, 1))
    if judged.ratio < RATIO:
        problems.append(f"{judged.ratio:.2f} of the application that does nothing, less than {RATIO}")
    print(json.dumps([asdict(case) | {"ratio": round(case.ratio, 3)} for case in cases]))
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
