"""What stands outside the pipeline and is the truth about it: Shopify and the label server. They are never killed
for good: the shop lives in this process, the label server in one of its own with its memory in a file.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.types.json import Jsonb

from esl_pipeline.demo.day import Difference, Shelf, compare
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.stack import Ports
from esl_pipeline.sandbox.shopify.catalogue import Product
from esl_pipeline.sandbox.shopify.sandbox import TOKEN, ProductEdit, ShopifySandbox, VariantEdit
from esl_pipeline.sandbox.shopify.shop import CURRENCY, DOMAIN, Shop, real_time
from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline_tests.waiting import eventually

STORE = "001"
NORTH, NORTHERN_STORE = "north", "003"
NEIGHBOUR, NEIGHBOURS_STORE = "neighbour.myshopify.com", "002"
WEBHOOK_SECRET, SIGN = "webhook-secret-of-tests", "sign-of-tests"
ADMIN_TOKEN = "admin-token-of-tests-0123456789abcdef"
# The guard against mass changes is for people; here nobody is there to approve them.
MAPPING = {
    "source_system": "shopify",
    "source_store_id": DOMAIN,
    "hipoink_store_code": STORE,
    "settings": {"expected_currency": CURRENCY, "guard_share_pct": 100, "unbind_grace_hours": 0},
}

Row = dict[str, Any]


@contextmanager
def scratch_home(prefix: str) -> Iterator[Path]:
    """A short path that every user can reach (the socket of Postgres is in it); it goes when all went well."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def map_shop(dsn: str, **fields: Any) -> None:
    """Let the shop feed the store, or another one (fields of the mapping)."""
    with psycopg.connect(dsn) as connection:
        connection.execute("select public.esl_mapping_create(%s)", [Jsonb(MAPPING | fields)])


def open_shop(seed: int) -> Shop:
    """The groceries and the teas, all fit for a label; it changes in the real time."""
    shop = Shop(seed, real_time() - timedelta(hours=1))
    for product in [*shop.catalogue.groceries(shop.now), shop.catalogue.loose_tea(shop.now)]:
        shop.add(product)
    shop.clock = real_time
    return shop


class LabelServer:
    """The label-server sandbox, a process that may refuse connections for a while. A context manager.

    name: as the settings call it. store: the one there that the shop feeds.
    """

    def __init__(self, folder: Path, name: str = "default", store: str = STORE) -> None:
        self.name, self.store = name, store
        self._folder, self._port = folder, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._running: Leashed | None = None

    def __enter__(self) -> "LabelServer":
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def refuse(self) -> None:
        """Kill it: connections are refused. What it has accepted is in its file."""
        if self._running is not None:
            os.kill(self._running.pid, 9)
            self._running.stop()
            self._running = None

    def accept(self) -> None:
        """Start it, unless it runs."""
        if self._running is not None:
            return
        data = ("--port", str(self._port), "--data", str(self._folder / "labels.sqlite"), "--no-auto-trigger")
        self._running = Leashed.start(
            "label server",
            [sys.executable, "-m", "esl_pipeline.sandbox.label_server.server", *data],
            env=os.environ | {"HIPOINK_API_SECRET": SIGN},
            log=self._folder / "label-server.log",
        )
        eventually(self._answers, 30, "the label server's start")

    def faults(self, *rules: Row) -> None:
        """Put these rules in force, instead of all earlier ones."""
        httpx.post(f"{self.url}/sandbox/faults", json=list(rules), timeout=30).raise_for_status()

    def state(self) -> Row:
        """Everything that it remembers."""
        found: Row = httpx.get(f"{self.url}/sandbox/state", timeout=60).json()
        return found

    def wrong(self, products: Sequence[Product]) -> list[Difference]:
        """Every label that is not what the shop says now."""
        return self._unlike(products, "labels")

    def not_shown(self, products: Sequence[Product]) -> list[Difference]:
        """Every physical label that does not show what the shop says now."""
        return self._unlike(products, "shown")

    def _unlike(self, products: Sequence[Product], what: str) -> list[Difference]:
        shelf = Shelf()
        shelf.settle(products)
        assert shelf.held_back == 0, (
            "only changes that can be on a label, or what it must show depends on the past"
        )
        others = {store: found for store, found in self.state()[what].items() if store != NEIGHBOURS_STORE}
        return compare(shelf.labels, self.store, others)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api/query/env", timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


class Senders:
    """Everything that a shop sends, to each of several receivers; it knows what it sent."""

    def __init__(self, *senders: Any) -> None:
        self._senders = senders
        self.sent: dict[str, Delivery] = {}
        """By webhook id."""

    def to(self, *senders: Any) -> None:
        """From now on by these."""
        self._senders = senders

    def send(self, delivery: Delivery) -> None:
        self.sent[delivery.webhook_id] = delivery
        for sender in self._senders:
            sender.send(delivery)


class Traffic:
    """Random changes of a shop, none of which makes a variant unfit for a label."""

    def __init__(self, sandbox: ShopifySandbox, rng: random.Random) -> None:
        self._sandbox, self._rng = sandbox, rng
        self._shop = sandbox.shop
        self._gone: list[Product] = []
        self._price_of = {
            variant.barcode: int((variant.price or "").replace(".", ""))
            for product in self._shop.products.values()
            for variant in product.variants
        }
        self.made: Counter[str] = Counter()

    def change(self) -> None:
        """Make one random change."""
        kinds = {"price": 55, "title": 12, "stock": 18, "status": 6, "delete": 4, "create": 5}
        if not self._gone:
            del kinds["create"]
        (kind,) = self._rng.choices(list(kinds), list(kinds.values()))
        with self._shop.lock:
            product = self._rng.choice(list(self._shop.products.values()))
            getattr(self, f"_{kind}")(product)
        self.made[kind] += 1

    def _price(self, product: Product) -> None:
        variant = self._rng.choice(product.variants)
        cents = int(self._price_of[variant.barcode] * self._rng.uniform(0.8, 1.25)) + 1
        edit = VariantEdit(price=f"{cents // 100}.{cents % 100:02d}")
        self._sandbox.edit_variant(product, variant, edit)

    def _title(self, product: Product) -> None:
        name = product.title.partition(" #")[0]
        self._sandbox.edit_product(product, ProductEdit(title=f"{name} #{self._rng.randrange(1000)}"))

    def _stock(self, product: Product) -> None:
        edit = VariantEdit(stock=self._rng.randrange(200))
        self._sandbox.edit_variant(product, self._rng.choice(product.variants), edit)

    def _status(self, product: Product) -> None:
        edit = ProductEdit(status="draft" if product.status == "active" else "active")
        self._sandbox.edit_product(product, edit)

    def _delete(self, product: Product) -> None:
        self._sandbox.delete(product)
        self._gone.append(product)

    def _create(self, _: Product) -> None:
        """What was deleted comes back as another product with the same codes, as when somebody imports it again."""
        gone = self._gone.pop(self._rng.randrange(len(self._gone)))
        self._sandbox.add(again(gone, self._rng))


def again(product: Product, rng: random.Random) -> Product:
    """The same product under ids of its own."""
    variants = [
        replace(
            variant,
            id=rng.randrange(10**13, 9 * 10**13),
            inventory_item_id=rng.randrange(10**13, 9 * 10**13),
            levels=dict(variant.levels),
        )
        for variant in product.variants
    ]
    return replace(product, id=rng.randrange(10**12, 9 * 10**12), status="active", variants=variants)


def pipeline_settings(labels: str, shopify: str) -> dict[str, str]:
    """The variables of a pipeline that works for this shop and this label server."""
    return {
        "SHOPIFY_ADMIN_URL": shopify,
        "SHOPIFY_ADMIN_TOKEN": f"{DOMAIN}={TOKEN}",
        "SHOPIFY_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "ESL_ADMIN_TOKEN": ADMIN_TOKEN,
        "HIPOINK_API_BASE_URL": labels,
        "HIPOINK_API_SECRET": SIGN,
    }


def further_server(labels: LabelServer, folder: Path) -> dict[str, str]:
    """The variables that name a label server beside the first, and the file that they name."""
    file = folder / "servers.toml"
    file.write_text(f'[{labels.name}]\nbase_url = "{labels.url}"\n')
    return {"HIPOINK_SERVERS_FILE": str(file), f"HIPOINK_API_SECRET__{labels.name.upper()}": SIGN}


def fixed_ports() -> Ports:
    """Free ports that stay the same when a pipeline is started again."""
    return Ports(receiver=free_port(), ui=free_port(), labels=0, shop=0)


def body_hash(delivery: Delivery) -> str:
    """How the inbox knows a body."""
    return hashlib.sha256(delivery.body).hexdigest()


def applied(state: Row, store: str) -> Iterator[tuple[str, Row]]:
    """Every change of a label of a store at the label server -> (code, entry), per label in order."""
    for code, history in state["history"].get(store, {}).items():
        for entry in history:
            yield code, entry


def as_text(record: Mapping[str, Any] | None) -> str:
    """A record in a form that compares."""
    return json.dumps(record, sort_keys=True)
