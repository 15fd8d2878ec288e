"""Fair turns: `python -m benchmarks.fair 60` (make bench-fair; SECONDS=20 for a try). Linux.

One label server, 20 stores, 20 shops. 19 shops change one price now and then; the 20th sends bodies of 100 variants as
fast as the receiver takes them (its `Limits`), each body with 100 new prices. Real parts, each in a process of its own:
embedded Postgres, receiver, the drain run as Dagster runs it, label-server sandbox, and the one who floods.

Measured of the 19: seconds from the sending of a webhook to the label server's acceptance of the label, first without
the flood and then with it, in the same run; rises of a price apart. Exits 1 when their p95 beside the flood is more
than twice that without (rises: 1.5 times), when a change does not arrive at all, or when a process took more than
400 MiB of its own.
"""

import json
import os
import random
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import httpx

from benchmarks.parts import DEFAULT, SECRET, STORE_SETTINGS, Busy, deployment, eventually, process, told
from benchmarks.webhooks import PATH, body, code, headers, price, shop_name

SHOPS, PRODUCTS, VARIANTS, FLOOD_PRODUCTS = 20, 10, 100, 20
FLOODER, TRICKLE_SECONDS, CONNECTIONS = 0, 10.0, 4
ALL_RATIO, RISE_RATIO, MIB = 2.0, 1.5, 400


def _send(http: httpx.Client, address: str, shop: int, raw: bytes) -> httpx.Response:
    return http.post(address + PATH, content=raw, headers=headers(raw, shop, SECRET))


def flood(address: str, seconds: float) -> None:
    """In the child: as much as the receiver takes, until the time is up; prints what was taken and refused."""
    os.nice(5)  # it stands for machines elsewhere
    until, counted = time.monotonic() + seconds, {"taken": 0, "refused": 0, "bytes": 0}
    lock, rounds = threading.Lock(), iter(range(10**9))

    def connection() -> None:
        with httpx.Client(timeout=10) as http:
            while time.monotonic() < until:
                with lock:
                    n = next(rounds)
                raw = body(FLOODER, n % FLOOD_PRODUCTS, VARIANTS, 1_000 + n // FLOOD_PRODUCTS)
                try:
                    answer = _send(http, address, FLOODER, raw)
                    taken, pause = answer.is_success, float(answer.headers.get("Retry-After", 0))
                except httpx.TransportError:
                    taken, pause = False, 1
                with lock:
                    counted["taken" if taken else "refused"] += 1
                    counted["bytes"] += len(raw) if taken else 0
                if not taken:
                    time.sleep(max(0.0, min(pause or 1, until - time.monotonic())))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(connection) for _ in range(CONNECTIONS)]:
            done.result()
    print(json.dumps(counted))


@dataclass
class Change:
    """One webhook of a small shop: when it was sent and what the label must show then."""

    store: str
    code: str
    price: str
    rises: bool
    sent: float


@dataclass
class Small:
    """The 19 shops: each changes one price of one product now and then."""

    address: str
    cents: dict[tuple[int, int], int] = field(default_factory=dict)

    def open(self) -> None:
        """Tell of all their products once."""
        with httpx.Client(timeout=10) as http:
            for shop in range(1, SHOPS):
                for product in range(PRODUCTS):
                    self.cents[shop, product] = 1_000
                    _send(http, self.address, shop, body(shop, product, 1, 1_000)).raise_for_status()

    def trickle(self, seconds: float, rng: random.Random) -> list[Change]:
        """Changes for so many seconds, every other one a rise."""
        until, changes = time.monotonic() + seconds, list[Change]()

        def shop(number: int) -> None:
            own = random.Random(rng.random() + number)  # noqa: S311
            product, next_at = 0, time.monotonic() + own.uniform(0, TRICKLE_SECONDS)
            with httpx.Client(timeout=30) as http:
                while next_at < until:
                    time.sleep(max(0.0, next_at - time.monotonic()))
                    place = number, product % PRODUCTS
                    rises = (product + number) % 2 == 0
                    # Never the same price twice, so that each change is found again in the label's history.
                    self.cents[place] += 100 if rises else -7
                    raw = body(*place, 1, self.cents[place])
                    now_at = price(self.cents[place])
                    change = Change(f"S{number}", code(*place), now_at, rises, time.time())
                    while not _send(http, self.address, number, raw).is_success:
                        time.sleep(0.5)
                    changes.append(change)
                    product += 1
                    next_at += own.uniform(0.5, 1.5) * TRICKLE_SECONDS

        with ThreadPoolExecutor(SHOPS) as pool:
            for done in [pool.submit(shop, number) for number in range(1, SHOPS)]:
                done.result()
        return changes


def _latencies(labels: str, changes: list[Change], within: float) -> list[tuple[bool, float | None]]:
    """Per change whether it is a rise, and the seconds until its label was accepted; None: it was not."""

    def look() -> list[tuple[bool, float | None]]:
        history = httpx.get(f"{labels}/sandbox/state", timeout=120).json()["history"]
        found = []
        for change in changes:
            at = next(
                (
                    datetime.fromisoformat(entry["at"]).timestamp()
                    for entry in history.get(change.store, {}).get(change.code, [])
                    if entry["record"] and entry["record"]["pp"] == change.price
                ),
                None,
            )
            found.append((change.rises, at and at - change.sent))
        return found

    deadline = time.monotonic() + within
    while True:
        found = look()
        if all(took is not None for _, took in found) or time.monotonic() > deadline:
            return found
        time.sleep(1)


def _quantiles(took: list[float]) -> tuple[float, float]:
    return statistics.median(took), statistics.quantiles(took, n=20, method="inclusive")[18]


def main(seconds: float) -> int:
    """Measure, print, judge."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    with deployment(durable=False) as deployed:
        labels, address = deployed.labels[DEFAULT], deployed.receiver
        deployed.map_shops({shop_name(number): f"S{number}" for number in range(SHOPS)}, STORE_SETTINGS)
        small = Small(address)
        small.open()
        with httpx.Client(timeout=10) as http:
            for n in range(FLOOD_PRODUCTS):
                _send(http, address, FLOODER, body(FLOODER, n, VARIANTS, 999)).raise_for_status()
        eventually("the first fill", deployed.is_idle, 300)

        busy = Busy(deployed.pids)
        rng = random.Random(11)  # noqa: S311 (repeatable on purpose, guards nothing)
        before = small.trickle(seconds, rng)
        busy.tell("without")
        eventually("the labels without the flood", deployed.is_idle, 120)
        with process(
            *("-m", "benchmarks.fair", "--flood", address, str(seconds + 3)), log=deployed.home / "flood.log"
        ) as flooder:
            time.sleep(3)
            busy.tell()
            beside = small.trickle(seconds, rng)
            busy.tell("beside the flood")
            flooded: dict[str, int] = told(flooder)
        found = {
            "without": _latencies(labels, before, 30),
            "beside the flood": _latencies(labels, beside, 120),
        }
        ((left,),) = deployed.rows(
            "select count(*) from esl.webhook_inbox where state in ('ready', 'leased')"
        )
        peaks = dict(deployed.memory.peaks)
    return _judge(seconds, found, flooded | {"left": left}, peaks)


def _judge(
    seconds: float,
    found: dict[str, list[tuple[bool, float | None]]],
    told: dict[str, int],
    peaks: dict[str, float],
) -> int:
    print(
        f"the flood: {told['taken']:,} bodies of {VARIANTS} variants taken in {seconds + 3:.0f} s "
        f"({told['bytes'] / 2**20:.0f} MiB), {told['refused']:,} refused; {told['left']:,} deliveries wait at the end"
    )
    problems, ratios = [], dict[str, float]()
    for what, limit, kinds in (("all", ALL_RATIO, (True, False)), ("rises", RISE_RATIO, (True,))):
        p95 = {}
        for when, changes in found.items():
            mine = [took for rises, took in changes if rises in kinds]
            took = [seconds for seconds in mine if seconds is not None]
            if len(took) < len(mine):
                problems.append(f"{len(mine) - len(took)} changes {when} never arrived")
            p50, p95[when] = _quantiles(took)
            print(f"{what:6} {when:17} {len(took):5} changes   p50 {p50:6.3f} s   p95 {p95[when]:6.3f} s")
        ratios[what] = p95["beside the flood"] / p95["without"]
        if ratios[what] > limit:
            problems.append(f"p95 of {what} is {ratios[what]:.2f} times that without, more than {limit}")
    for name, peak in sorted(peaks.items()):
        print(f"{name:13} {peak:6.0f} MiB")
        if peak > MIB:
            problems.append(f"{name} took {peak:.0f} MiB, more than {MIB}")
    summary = (
        f"fair {seconds:g} s: p95 beside the flood {ratios['all']:.2f} x that without, rises {ratios['rises']:.2f} x, "
        f"largest process {max(peaks.values()):.0f} MiB"
    )
    print(summary + (f" - BROKEN: {'; '.join(problems)}" if problems else ", all within bounds"))
    return 1 if problems else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--flood", address, seconds]:
            flood(address, float(seconds))
        case arguments:
            raise SystemExit(main(float(arguments[0]) if arguments else 60))
