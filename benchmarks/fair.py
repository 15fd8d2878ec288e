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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg

from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.sandbox.shopify.webhooks import sign

SECRET, SIGN = "benchmark-webhook-secret", "benchmark-sign"
SHOPS, PRODUCTS, VARIANTS, FLOOD_PRODUCTS = 20, 10, 100, 20
FLOODER, TRICKLE_SECONDS, CONNECTIONS = 0, 10.0, 4
ALL_RATIO, RISE_RATIO, MIB = 2.0, 1.5, 400
# The guard against mass changes is for people; here nobody is there to approve them.
SETTINGS = {"expected_currency": "EUR", "guard_share_pct": 100}


def _shop(number: int) -> str:
    return f"shop-{number}.myshopify.com"


def _price(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _body(shop: int, product: int, variants: int, cents: int) -> bytes:
    """A products/update as Shopify sends it, all variants at one price."""
    now = datetime.now(UTC).isoformat()
    number = 1_000_000 * (shop + 1) + 1_000 * product
    gid = "gid://shopify/ProductVariant/"
    rows = [
        {
            "id": number + n,
            "admin_graphql_api_id": f"{gid}{number + n}",
            "product_id": number,
            "title": f"Size {n}",
            "price": _price(cents),
            "compare_at_price": None,
            "position": n,
            "inventory_policy": "deny",
            "option1": f"Size {n}",
            "option2": None,
            "option3": None,
            "barcode": f"B{number + n}",
            "sku": f"SKU-{number + n}",
            "taxable": True,
            "fulfillment_service": "manual",
            "grams": 500,
            "inventory_management": "shopify",
            "requires_shipping": True,
            "weight": 0.5,
            "weight_unit": "kg",
            "inventory_item_id": number + n,
            "inventory_quantity": 10,
            "old_inventory_quantity": 10,
            "image_id": None,
            "created_at": now,
            "updated_at": now,
        }
        for n in range(1, variants + 1)
    ]
    said = {
        "id": number,
        "admin_graphql_api_id": f"gid://shopify/Product/{number}",
        "title": f"Product {number}",
        "body_html": "<p>Text</p>",
        "vendor": "Vendor",
        "product_type": "Type",
        "handle": f"product-{number}",
        "tags": "",
        "status": "active",
        "created_at": now,
        "updated_at": now,
        "published_at": now,
        "images": [],
        "options": [{"name": "Size", "values": [row["title"] for row in rows]}],
        "variants": rows,
        "variant_gids": [
            {"admin_graphql_api_id": row["admin_graphql_api_id"], "updated_at": now} for row in rows
        ],
    }
    return json.dumps(said, separators=(",", ":")).encode()


def _send(http: httpx.Client, address: str, shop: int, raw: bytes) -> httpx.Response:
    headers = {
        "Content-Type": "application/json",
        "X-Shopify-Topic": "products/update",
        "X-Shopify-Shop-Domain": _shop(shop),
        "X-Shopify-Webhook-Id": str(uuid4()),
        "X-Shopify-Triggered-At": datetime.now(UTC).isoformat(),
        "X-Shopify-Hmac-Sha256": sign(raw, SECRET),
    }
    return http.post(f"{address}/webhooks/shopify/products/update", content=raw, headers=headers)


def flood(address: str, seconds: float) -> None:
    """In the child: as much as the receiver takes, until the time is up; prints what was taken and refused."""
    os.nice(5)  # it stands for machines elsewhere
    until, told = time.monotonic() + seconds, {"taken": 0, "refused": 0, "bytes": 0}
    lock, rounds = threading.Lock(), iter(range(10**9))

    def connection() -> None:
        with httpx.Client(timeout=10) as http:
            while time.monotonic() < until:
                with lock:
                    n = next(rounds)
                raw = _body(FLOODER, n % FLOOD_PRODUCTS, VARIANTS, 1_000 + n // FLOOD_PRODUCTS)
                try:
                    answer = _send(http, address, FLOODER, raw)
                    taken, pause = answer.is_success, float(answer.headers.get("Retry-After", 0))
                except httpx.TransportError:
                    taken, pause = False, 1
                with lock:
                    told["taken" if taken else "refused"] += 1
                    told["bytes"] += len(raw) if taken else 0
                if not taken:
                    time.sleep(max(0.0, min(pause or 1, until - time.monotonic())))

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(connection) for _ in range(CONNECTIONS)]:
            done.result()
    print(json.dumps(told))


def drain_forever() -> None:
    """In the child: the drain job as the sensor starts it, a next run when one has ended."""
    import dagster as dg

    from esl_pipeline.definitions import build_definitions

    job, parent = build_definitions().resolve_job_def("event_sync"), os.getppid()
    while os.getppid() == parent:
        with dg.DagsterInstance.ephemeral() as instance:
            job.execute_in_process(instance=instance, raise_on_error=False)


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
                    _send(http, self.address, shop, _body(shop, product, 1, 1_000)).raise_for_status()

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
                    raw = _body(*place, 1, self.cents[place])
                    code = f"B{1_000_000 * (number + 1) + 1_000 * place[1] + 1}"
                    change = Change(f"S{number}", code, _price(self.cents[place]), rises, time.time())
                    while not _send(http, self.address, number, raw).is_success:
                        time.sleep(0.5)
                    changes.append(change)
                    product += 1
                    next_at += own.uniform(0.5, 1.5) * TRICKLE_SECONDS

        with ThreadPoolExecutor(SHOPS) as pool:
            for done in [pool.submit(shop, number) for number in range(1, SHOPS)]:
                done.result()
        return changes


@contextmanager
def _process(*command: str, log: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()  # all that it worked on goes as well


class Memory(threading.Thread):
    """The peak of what each process has of its own (without files and shared memory), in MiB, by name."""

    def __init__(self, pids: dict[str, int], dsn: str) -> None:
        super().__init__(daemon=True)
        self._pids, self._stop_now = pids, threading.Event()
        with psycopg.connect(dsn) as connection:
            backend = connection.info.backend_pid
        self._postgres = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1]
        self.peaks: dict[str, float] = {}

    def run(self) -> None:
        while not self._stop_now.wait(0.25):
            for name, pid in (*self._pids.items(), *(("Postgres", pid) for pid in self._backends())):
                self.peaks[name] = max(self.peaks.get(name, 0), _own_mib(pid))

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    def _backends(self) -> list[int]:
        try:
            children = Path(f"/proc/{self._postgres}/task/{self._postgres}/children").read_text()
            return [int(pid) for pid in children.split()]
        except (OSError, ValueError):
            return []


class Busy:
    """Prints how much of a processor each process had, and how busy the machine was with all else."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.tell()

    def tell(self, when: str = "") -> None:
        """Print it, since the last time; without a name only begin anew."""
        now, used = time.monotonic(), {name: self._seconds(pid) for name, pid in self._pids.items()}
        if when:
            shares = (
                f"{name} {100 * (used[name] - self._used[name]) / (now - self._at):.0f} %" for name in used
            )
            print(f"{when}: {', '.join(shares)} of a processor; load average {os.getloadavg()[0]:.1f}")
        self._at, self._used = now, used

    @staticmethod
    def _seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _own_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0)


def _eventually(what: str, ready: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _is_idle(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select exists (select from esl.webhook_inbox where state in ('ready', 'leased'))"
            " or exists (select from esl.products where due) or exists (select from esl.sync_queue)"
        ).fetchone()
    return row == (False,)


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


def _port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(seconds: float) -> int:
    """Measure, print, judge."""
    from pydantic import SecretStr

    from esl_pipeline.buffer.buffer import Buffer
    from esl_pipeline.buffer.migrate import migrate
    from esl_pipeline.buffer.transports import PsycopgTransport

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    here = Path(__file__).resolve().parents[1]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.chdir(home)
        os.environ["PYTHONPATH"] = str(here)
        postgres = stack.enter_context(EmbeddedPostgres.temporary())
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        with PsycopgTransport(SecretStr(dsn)) as transport:
            for number in range(SHOPS):
                mapping = {"source_system": "shopify", "source_store_id": _shop(number), "settings": SETTINGS}
                Buffer(transport).mapping_create(mapping | {"hipoink_store_code": f"S{number}"})

        server = stack.enter_context(
            _process(
                *("-m", "esl_pipeline.sandbox.label_server.server", "--port", "0", "--sign", SIGN),
                log=home / "labels.log",
            )
        )
        assert server.stdout is not None
        labels, port = server.stdout.readline().split()[-1], _port()
        variables = {
            "ESL_DATABASE_URL": dsn,
            "SHOPIFY_WEBHOOK_SECRET": SECRET,
            "HIPOINK_API_BASE_URL": labels,
            "HIPOINK_API_SECRET": SIGN,
            "ESL_DRAIN_IDLE_SECONDS": "3600",
            "ESL_DRAIN_MAX_AGE_SECONDS": "3600",
            "LOG_LEVEL": "WARNING",
        }
        receiver = stack.enter_context(
            _process(
                *("-m", "esl_pipeline.commands.cli", "receiver", "--only", "webhooks", "--port", str(port)),
                log=home / "receiver.log",
                **variables,
            )
        )
        drain = stack.enter_context(
            _process("-m", "benchmarks.fair", "--drain", log=home / "drain.log", **variables)
        )
        address = f"http://127.0.0.1:{port}"
        _eventually("the receiver", lambda: _answers(f"{address}/health"), 60)
        small = Small(address)
        small.open()
        with httpx.Client(timeout=10) as http:
            for n in range(FLOOD_PRODUCTS):
                _send(http, address, FLOODER, _body(FLOODER, n, VARIANTS, 999)).raise_for_status()
        _eventually("the first fill", lambda: _is_idle(dsn), 300)

        memory = Memory({"drain": drain.pid, "receiver": receiver.pid, "label server": server.pid}, dsn)
        memory.start()
        busy = Busy({"drain": drain.pid, "receiver": receiver.pid, "label server": server.pid})
        rng = random.Random(11)  # noqa: S311 (repeatable on purpose, guards nothing)
        before = small.trickle(seconds, rng)
        busy.tell("without")
        _eventually("the labels without the flood", lambda: _is_idle(dsn), 120)
        with _process(
            *("-m", "benchmarks.fair", "--flood", address, str(seconds + 3)), log=home / "flood.log"
        ) as flooder:
            time.sleep(3)
            busy.tell()
            beside = small.trickle(seconds, rng)
            busy.tell("beside the flood")
            told = json.loads(flooder.communicate(timeout=60)[0].splitlines()[-1])
        found = {
            "without": _latencies(labels, before, 30),
            "beside the flood": _latencies(labels, beside, 120),
        }
        with psycopg.connect(dsn) as connection:
            (left,) = connection.execute(
                "select count(*) from esl.webhook_inbox where state in ('ready', 'leased')"
            ).fetchone() or (0,)
        memory.stop()
    return _judge(seconds, found, told | {"left": left}, memory.peaks)


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
        case ["--drain"]:
            drain_forever()
        case ["--flood", address, seconds]:
            flood(address, float(seconds))
        case arguments:
            raise SystemExit(main(float(arguments[0]) if arguments else 60))
