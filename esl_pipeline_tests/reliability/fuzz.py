"""A hostile shop with a valid signature beside two honest ones: `make fuzz MINUTES=10`. Linux.

    python -m esl_pipeline_tests.reliability.fuzz 10 [--seed N]

Everything is played twice: the honest shops alone, and beside the hostile one. There the hostile shop sends over real
HTTP to the receiver as it is run, on several connections at once, while the honest ones change a thing each and drain
rounds go on. After each round what is left of an honest shop must be the same in both: labels, findings, ledger, queue,
audit, and what the label server has seen. And: no call of the buffer fails; every delivery is answered as it may be and
then is finished, unusable for a reason or waiting; the receiver lives and logs no failure; memory stays bounded.

What is sent follows from the seed alone (hostile.py draws it). One honest shop has a secret of its own, the other
shares the hostile one's: of its things the hostile shop names only those that it has told of already, for what nobody
has told of is contested (SECURITY.md). Exits 1 on the first thing that is wrong, with the deliveries of its round.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import psycopg
import psycopg.rows
from pydantic import SecretStr
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport, Transport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.stages import drift as drift_stage
from esl_pipeline.stages.drain import Portion
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.memory import Peak, peak_memory
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.reliability.hostile import Delivery, Hostile, Taken
from esl_pipeline_tests.reliability.machine import SLOW
from esl_pipeline_tests.reliability.remains import is_due, let_time_pass, what_is_left
from esl_pipeline_tests.reliability.test_receiver import Receiver, running
from esl_pipeline_tests.scratch import scratch
from esl_pipeline_tests.world import LOCATION, Body, World, drain_round, level, product, variant, when

HOSTILE = "hostile.myshopify.com"
SECRETS = {"own.myshopify.com": "a-secret-of-this-shop-alone", "sharing.myshopify.com": "a-shared-secret"}
SHARED = SECRETS["sharing.myshopify.com"]
STORES = {"own.myshopify.com": "B1", "sharing.myshopify.com": "C1", HOSTILE: "A1"}
FIRST = {"own.myshopify.com": 20_000_000, "sharing.myshopify.com": 30_000_000, HOSTILE: 10_000_000}
PER_ROUND, CONNECTIONS, AGAIN = 24, 4, 10
MIB = 2**20
MOST_MIB = 400
NIGHT = 10  # rounds
# A honest shop's policy lets little pass unseen: stock on labels, a guard, names that two have.
POLICY = {
    "title_template": "{title}",
    "stock_field": "qty",
    "location_id": str(LOCATION),
    "guard_labels": 1_000,
}
_ALL = {
    f"f{n}": f"{{{name}}}"
    for n, name in enumerate(("vendor", "tags", "handle", "option1", "option2", "sku"), 1)
}
HOSTILE_POLICIES: tuple[Mapping[str, Any], ...] = (
    POLICY,
    POLICY | {"title_template": "{title}" * 50, "fields": _ALL, "emoji": "keep"},
    POLICY
    | {"code_source": ["sku", "barcode", "variant_id"], "duplicate_rule": "lowest_id", "zero_price": "allow"},
    POLICY
    | {
        "on_delete": "blank",
        "on_unpublish": "keep",
        "show_compare_at": "if_prior_30d_ok",
        "send_images": True,
    },
    POLICY
    | {
        "guard_labels": 0,
        "guard_share_pct": 0,
        "label_code_form": "gtin13",
        "pad_upc": True,
        "title_max_length": 1,
    },
)


class FoundError(Exception):
    """Something that may not be."""


class Watched:
    """A transport that notes each call that failed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.failed: list[str] = []

    @property
    def calls(self) -> int:
        return self._transport.calls

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        try:
            return self._transport.call(function, p)
        except BufferError as error:
            self.failed.append(f"{function}: {error}")
            raise

    def close(self) -> None:
        self._transport.close()

    def describe(self) -> str:
        return self._transport.describe()


@dataclass
class Honest:
    """An ordinary shop: one change at a time, of which it says all."""

    domain: str
    rng: random.Random
    products: dict[int, Body] = field(default_factory=dict)
    told: list[int] = field(default_factory=list)  # every product that it ever told of
    webhook_ids: list[str] = field(default_factory=list)

    def begins(self) -> list[tuple[str, Body]]:
        """What it has at first; two have one code, which is held back with a finding."""
        return [self._new(0, code) for code in ("X", "X", "C-1", "auto", "auto", "auto")]

    def changes(self, version: int) -> tuple[str, Body]:
        """The next change: topic and body."""
        rng = self.rng
        number = rng.choice(list(self.products))
        body = self.products[number]
        item = rng.choice(body["variants"])
        match rng.randrange(10):
            case 0 if len(self.products) < 12:
                return self._new(version)
            case 1 if len(self.products) > 3:
                del self.products[number]
                return "products/delete", {"id": number}
            case 2 | 3:
                return "inventory_levels/update", level(item["id"], rng.randint(0, 99), version)
            case 4:
                changed = {"title": f"Title {version}"}
            case 5:
                changed = {"status": rng.choice(("active", "active", "draft"))}
            case 6:  # a code that another of its products may have, and that the hostile shop knows
                changed = {
                    "variants": [item | {"barcode": rng.choice(("X", "C-1", f"C-{item['id']}", None))}]
                }
            case _:
                price = rng.choice((f"{rng.randint(1, 99)}.{rng.randint(0, 99):02}", "0.00", None))
                changed = {"variants": [item | {"price": price}]}
        self.products[number] = body | changed | {"updated_at": when(version)}
        return "products/update", self.products[number]

    def _new(self, version: int, code: str = "auto") -> tuple[str, Body]:
        number = FIRST[self.domain] + 10 * len(self.told)
        self.told.append(number)
        item = variant(number, code, f"{self.rng.randint(1, 99)}.50")
        self.products[number] = product(number, version, [item])
        return "products/create", self.products[number]


@dataclass
class Side:
    """One of the two plays: a buffer, a label server, and the way in."""

    world: World
    connection: psycopg.Connection[dict[str, Any]]
    watched: Watched
    labels: LabelStore
    mappings: dict[str, str]
    send: Callable[[str, bytes, Mapping[str, str]], int]
    portion: Portion = field(default_factory=Portion)

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Look (or tamper) behind the functions."""
        cursor = self.connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def seen(self, store: str) -> dict[str, Any]:
        """What `LabelStore.state` says of one store's labels: the hostile one's are many, and large."""
        labels = self.labels._all("select code, record from label where store = ?", [store])
        history: dict[str, list[dict[str, Any]]] = {}
        for row in self.labels._all(
            "select * from change where store = ? and code <> '' order by id", [store]
        ):
            record = json.loads(row["record"]) if row["record"] else None
            history.setdefault(row["code"], []).append({"action": row["action"], "record": record})
        hang = {row["code"]: json.loads(row["record"]) for row in labels}
        return {"labels": {store: hang}, "history": {store: history}}

    def drain(self, *shops: str) -> None:
        """Until nothing of these shops is due; time passes."""
        for _ in range(300):
            let_time_pass(self.sql)
            done = drain_round(self.world.buffer, self.world.client, SLOW, portion=self.portion)
            if done.failure:
                raise FoundError(f"deliveries cannot be read: {done.failure!r}") from done.failure
            if not is_due(self.sql, *shops):
                return
        raise FoundError(f"work of {', '.join(shops)} is still due after 300 rounds")

    def night(self, store: str) -> None:
        """The nightly comparison, what people look at, and housekeeping."""
        buffer = self.world.buffer
        drift_stage.compare_store(buffer, self.world.client, store=store, run_id="night")
        for look in (buffer.accuracy, buffer.findings, buffer.status):
            look()
        buffer.housekeep(keep_bodies_days=30)


@dataclass
class Fuzz:
    """The run. honest: both shops, whose changes go to both sides."""

    alone: Side
    beside: Side
    receiver: Receiver
    seed: int
    say: Callable[[str], None] = print
    counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.honest = [Honest(domain, random.Random(f"{self.seed} {domain}")) for domain in SECRETS]
        self.rng = random.Random(self.seed)
        self.hostile = Hostile(self.rng, FIRST[HOSTILE])
        self.sent: list[Delivery] = []  # in the last round
        self.acknowledged: list[Delivery] = []  # of the last round
        self.version = self.rounds = self.log_read = 0

    def run(self, go_on: Callable[[], bool]) -> None:
        """Rounds, while it may go on. Raises FoundError."""
        for shop in self.honest:
            for topic, body in shop.begins():
                self._tell(shop, topic, body)
        for side in (self.alone, self.beside):
            side.drain(*SECRETS)
        while go_on():
            self.rounds += 1
            try:
                self._round()
            except (FoundError, BufferError) as found:
                told = "\n".join(f"  {one!r}" for one in self.sent)
                raise FoundError(
                    f"seed {self.seed}, round {self.rounds}: {found}\nsent in it:\n{told}"
                ) from found
        self.beside.drain(HOSTILE)
        self._check_deliveries(at_rest=True)
        self._check_honest()
        self._check_processes()

    def _round(self) -> None:
        self.version += 1
        taken = self._taken()
        drawn = [self.hostile.delivery(self.version, taken) for _ in range(PER_ROUND)]
        self.sent = drawn
        self._let_it_live()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = pool.map(self._send_hostile, drawn, [f"h-{self.rounds}-{n}" for n in range(PER_ROUND)])
            for shop in self.honest:
                self._tell(shop, *shop.changes(self.version))
            for side in (self.alone, self.beside):
                side.drain(*SECRETS)
            self.acknowledged = []
            for one, answer in zip(drawn, answers, strict=True):
                self.counted[f"{one.what} {answer}"] += 1
                if answer == 200:
                    self.acknowledged.append(one)
                if answer not in {*one.answers, 429}:  # beyond its pace it waits longer than a round
                    raise FoundError(f"answered {answer}, not one of {set(one.answers)}: {one!r}")
        if self.rounds % NIGHT == 0:
            self.beside.drain(HOSTILE)
            self._check_deliveries(at_rest=True)
            for domain in SECRETS:
                for side in (self.alone, self.beside):
                    side.night(STORES[domain])
            self.beside.night(STORES[HOSTILE])
            for side in (self.alone, self.beside):
                side.drain(*SECRETS)
        else:
            self.beside.drain(*SECRETS)  # together with what has come meanwhile
            self._check_deliveries(at_rest=False)
        self._check_honest()
        self._check_processes()

    def _taken(self) -> Taken:
        numbers = [number for shop in self.honest for number in shop.told]
        codes = [
            item["barcode"]
            for shop in self.honest
            for body in shop.products.values()
            for item in body["variants"]
        ]
        ids = [webhook_id for shop in self.honest for webhook_id in shop.webhook_ids[-20:]]
        return Taken(numbers, numbers, ["X", "C-1", *filter(None, codes)], ids, list(SECRETS))

    def _let_it_live(self) -> None:
        """Switched off (it sends app/uninstalled as well) it would do no harm; its policy changes now and then."""
        policy = self.rng.choice(HOSTILE_POLICIES) if self.rounds % 5 == 0 else None
        changes: dict[str, Any] = {"is_active": True} | ({"settings": dict(policy)} if policy else {})
        self.beside.world.buffer.mapping_update(self.beside.mappings[HOSTILE], changes)

    def _tell(self, shop: Honest, topic: str, body: Body) -> None:
        """To both sides the same."""
        raw, webhook_id = json.dumps(body).encode(), f"{shop.domain}-{len(shop.webhook_ids)}"
        shop.webhook_ids.append(webhook_id)
        at = str(body.get("updated_at") or when(self.version))
        secret = SECRETS[shop.domain]
        headers = signed(topic, raw, secret, shop_domain=shop.domain, webhook_id=webhook_id, triggered_at=at)
        for side in (self.alone, self.beside):
            if (answer := side.send(topic, raw, headers)) != 200:
                raise FoundError(f"{shop.domain} is answered {answer}")

    def _send_hostile(self, one: Delivery, webhook_id: str) -> int:
        """Like Shopify: what is refused for now comes again."""
        ordinary = {"shop_domain": HOSTILE, "webhook_id": webhook_id, "triggered_at": when(self.version)}
        headers = signed(one.topic, one.raw, SHARED, **(ordinary | {"topic": one.topic} | one.headers))
        answer = 0
        for _ in range(AGAIN):
            answer = self.beside.send(one.topic, one.raw, headers)
            if answer not in (429, 503):
                break
            self.counted[f"again after {answer}"] += 1
            time.sleep(0.5)
        return answer

    # --- what must hold

    def _check_honest(self) -> None:
        for domain in SECRETS:
            store = STORES[domain]
            alone, beside = (
                what_is_left(side.sql, side.mappings[domain], store, side.seen(store))
                for side in (self.alone, self.beside)
            )
            for name, left in alone.items():
                if beside[name] != left:
                    raise FoundError(f"{name} of {domain}:\n  alone  {left}\n  beside {beside[name]}")

    def _check_deliveries(self, *, at_rest: bool) -> None:
        """Of what was answered with 200 nothing is lost, and nothing is given up without a reason."""
        rows = self.beside.sql(
            "select topic, webhook_id, body_sha256, state, reason from esl.webhook_inbox where source_store_id = %s",
            HOSTILE,
        )
        for row in rows:
            if row["state"] in ("dead", "leased") or (row["state"] == "ready" and at_rest):
                raise FoundError(f"a delivery is {row['state']}: {row}")
            if row["state"] == "unusable" and not row["reason"]:
                raise FoundError(f"unusable without a reason: {row}")
        kept = {(row["topic"], row[key]) for row in rows for key in ("body_sha256", "webhook_id")}
        for one in self.acknowledged:
            # The id of another delivery, of this shop too, makes it a copy of that one.
            names = {(one.topic, sha256(one.raw).hexdigest()), (one.topic, one.headers.get("webhook_id"))}
            if names.isdisjoint(kept):
                raise FoundError(f"acknowledged and lost: {one!r}")

    def _check_processes(self) -> None:
        for side in (self.alone, self.beside):
            if side.watched.failed:
                raise FoundError(f"calls of the buffer failed: {side.watched.failed}")
        if self.receiver.process.poll() is not None:
            raise FoundError(f"the receiver died: {self.receiver.log.read_text()[-3_000:]}")
        if (peak := self.receiver.peak_memory() // MIB) > MOST_MIB:
            raise FoundError(f"the receiver took {peak} MiB")
        with self.receiver.log.open(errors="replace") as log:
            log.seek(self.log_read)
            said = log.read()
            self.log_read = log.tell()
        for word in ("Traceback", "the buffer kept nothing", "ERROR"):
            if any(line.startswith(word) or f" {word} " in line for line in said.splitlines()):
                raise FoundError(f"the receiver logged {word}: {said[-3_000:]}")


@contextmanager
def _side(dsn: str, receiver: Receiver | None) -> Iterator[Side]:
    watched = Watched(PsycopgTransport(SecretStr(dsn)))
    buffer = Buffer(watched)
    with (
        LabelStore() as labels,
        running_sandbox(labels) as sandbox,
        client_of(sandbox.url, retries=1) as client,
        psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection,
        ExitStack() as stack,
    ):
        stack.callback(buffer.close)
        world = World(buffer, dsn, sandbox, client, SLOW)
        domains = STORES if receiver else SECRETS
        mappings = {domain: world.map(domain, STORES[domain], settings=dict(POLICY)) for domain in domains}
        if receiver is None:
            yield Side(world, connection, watched, labels, mappings, partial(_keep, buffer))
            return
        http = stack.enter_context(httpx.Client(timeout=60))

        def post(topic: str, raw: bytes, headers: Mapping[str, str]) -> int:
            url = f"{receiver.url}/webhooks/shopify/{topic}"
            return http.post(url, content=raw, headers=headers).status_code

        yield Side(world, connection, watched, labels, mappings, post)


def _keep(buffer: Buffer, topic: str, raw: bytes, headers: Mapping[str, str]) -> int:
    """As the receiver keeps it."""
    kept = delivery(topic, Headers(headers), raw, datetime.now(UTC))
    kept["proven"] = kept["source_store_id"] == "own.myshopify.com"
    buffer.inbox_add([kept])
    return 200


@contextmanager
def fuzzing(
    alone: str, beside: str, folder: Path, seed: int, break_it: Callable[[Side], object] | None = None
) -> Iterator[Fuzz]:
    """A run on two migrated, empty buffers, given by their addresses. break_it: what is made wrong in the second."""
    secrets = f"own.myshopify.com={SECRETS['own.myshopify.com']},{SHARED}"
    with (
        running(beside, folder, secrets) as receiver,
        _side(alone, None) as one,
        _side(beside, receiver) as other,
    ):
        if break_it is not None:
            break_it(other)
        yield Fuzz(one, other, receiver, seed)


def fuzz(minutes: float, seed: int) -> str:
    """Run for so long; a line of figures. Raises FoundError."""
    with EmbeddedPostgres.temporary(under=scratch()) as server, tempfile.TemporaryDirectory() as folder:
        server.create_database("alone")
        migrate(server.dsn("alone"))
        server.create_database("beside", template="alone")
        with fuzzing(server.dsn("alone"), server.dsn("beside"), Path(folder), seed) as run:
            until, told_at = time.monotonic() + minutes * 60, time.monotonic()

            def go_on() -> bool:
                nonlocal told_at
                now = time.monotonic()
                if now > told_at + 30:
                    told_at = now
                    print(f"{run.rounds} rounds, {run.rounds * PER_ROUND} hostile deliveries", flush=True)
                return now < until

            with peak_memory(server.dsn("beside")) as peak:
                run.run(go_on)
            return _figures(run, peak, minutes)


def _figures(run: Fuzz, peak: Peak, minutes: float) -> str:
    receiver = run.receiver.peak_memory() // MIB
    if max(peak.process, peak.backend, receiver) > MOST_MIB:
        raise FoundError(f"memory: {peak} MiB, receiver {receiver} MiB")
    rows = run.beside.sql(
        "select state, count(*) as n from esl.webhook_inbox where source_store_id = %s group by 1 order by 1",
        HOSTILE,
    )
    (pushed,) = run.beside.sql(
        "select count(*) filter (where store_code like 'A%%') as hostile, count(*) as all from esl.sync_log"
        " where kind = 'result' and outcome = %s",
        "accepted",
    )
    kinds = ", ".join(f"{what} {n}" for what, n in sorted(run.counted.items()))
    states = ", ".join(f"{row['state']} {row['n']}" for row in rows)
    return (
        f"{kinds}\nfuzz passed: {minutes:g} min, seed {run.seed}, {run.rounds} rounds, {run.rounds * PER_ROUND} hostile"
        f" deliveries ({states}), {2 * run.rounds} honest changes, {pushed['hostile']} hostile labels accepted and"
        f" {pushed['all'] - pushed['hostile']} honest ones; highest memory in MiB: receiver {receiver}, this process"
        f" {peak.process}, database process {peak.backend}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"fuzz: {options.minutes:g} min, seed {seed}", flush=True)
    try:
        print(fuzz(options.minutes, seed))
    except FoundError as found:
        sys.exit(f"fuzz FAILED: {found}")


if __name__ == "__main__":
    main()
