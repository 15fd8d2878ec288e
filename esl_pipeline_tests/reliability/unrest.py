"""What else happens around a soak: settings, a neighbour, messages that come late, again or with half of their content.

None of it is a statement about the shop's prices, so the labels at the end are those of the shop all the same.
"""

import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
from psycopg.types.json import Jsonb

from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks
from esl_pipeline_tests.reliability.outside import (
    MAPPING,
    NEIGHBOUR,
    NEIGHBOURS_STORE,
    WEBHOOK_SECRET,
    LabelServer,
    Row,
    Senders,
    body_hash,
)
from esl_pipeline_tests.waiting import eventually

_NEIGHBOURS_CODE = "NEIGHBOUR-1"
OURS = "unrest-"
"""What this module sends is known by its webhook ids."""
_SETTINGS: Row = MAPPING["settings"]
# What a person with SQL can put there; none of it can be carried out.
_BAD_SETTINGS: tuple[Row, ...] = (
    {"raise_window": {"opens": "25:99", "closes": "soon", "time_zone": "Europe/Nowhere"}},
    {"guard_labels": "many", "guard_share_pct": 10**30},
    {"title_template": "{unknown}", "statuses": "active"},
    {"max_change_pct": None, "max_held_share_pct": [], "guard_hours": -1},
)


class Unrest:
    """One unrest after the other, each kind equally often, drawn from `rng`."""

    def __init__(self, dsn: str, receiver: str, shop: Shop, senders: Senders, rng: random.Random) -> None:
        self._dsn, self._receiver, self._shop, self._senders, self._rng = dsn, receiver, shop, senders, rng
        self._kinds: list[Callable[[], None]] = []
        self._price = 100
        self.made: Counter[str] = Counter()
        self._acknowledged: list[Delivery] = []
        self._sql("select public.esl_mapping_create(%s)", Jsonb(_neighbours_mapping()))

    def stir(self) -> str:
        """Make the next one -> what it was. The database may be away: then it did not happen."""
        if not self._kinds:
            self._kinds = [
                *(self._late_goodbye, self._empty_variants, self._thin_body, self._sent_again, self._sample),
                *(self._neighbours_bad_settings, self._neighbours_price, self._neighbours_good_settings),
                *(self._short_titles, self._closed_window, self._settings_back),
            ]
            self._rng.shuffle(self._kinds)
        kind = self._kinds.pop()
        name = kind.__name__.strip("_").replace("_", " ")
        try:
            kind()
        except psycopg.OperationalError:
            return f"{name}: the database was away"
        self.made[name] += 1
        return name

    def settle(self) -> None:
        """All settings as at first; what was refused is sent again; the neighbour says its price once more."""
        self._settings_back()
        self._neighbours_good_settings()
        self._sql("select public.esl_redrive('{}')")
        self._neighbours_price()

    def problems(self, labels: LabelServer) -> list[str]:
        """What is wrong with the neighbour's label, and which acknowledged messages are not kept."""
        shown = labels.state()["labels"].get(NEIGHBOURS_STORE, {})
        prices = {code: record.get("pp") for code, record in shown.items()}
        wanted = {_NEIGHBOURS_CODE: _money(self._price)}
        found = [] if prices == wanted else [f"the neighbour's labels show {prices} instead of {wanted}"]
        with psycopg.connect(self._dsn) as connection:
            kept = set(connection.execute("select topic, body_sha256 from esl.webhook_inbox").fetchall())
        lost = [one for one in self._acknowledged if (one.topic, body_hash(one)) not in kept]
        return found + [f"an acknowledged message is not kept: {one.topic} {one.webhook_id}" for one in lost]

    # --- messages of the shop

    def _late_goodbye(self) -> None:
        """The shop was uninstalled and installed again an hour ago; Shopify tells the first half now."""
        then = datetime.now(UTC) - timedelta(hours=1)
        body = {"id": 1, "myshopify_domain": DOMAIN, "updated_at": then.isoformat(timespec="seconds")}
        self._send(_message("app/uninstalled", body, DOMAIN))

    def _empty_variants(self) -> None:
        """Shopify's "variants": [] in the middle of a product's life."""
        self._tell_half({"variants": [], "variant_gids": []}, ())

    def _thin_body(self) -> None:
        """A subscription with include_fields that leaves most out."""
        self._tell_half(
            {}, ("vendor", "tags", "product_type", "handle", "status", "options", "image", "images")
        )

    def _sent_again(self) -> None:
        """A delivery of before, under a fresh id and time, as anybody can who has once seen it."""
        if self._senders.sent:
            old = self._rng.choice(list(self._senders.sent.values()))
            self._send(replace(old, webhook_id=_new_id(), event_id=_new_id(), triggered_at=_now()))

    def _sample(self) -> None:
        """The sample that Shopify's admin sends for a test."""
        body = {"id": 788032119674292922, "title": "Example T-Shirt", "updated_at": _now(), "variants": []}
        self._send(_message("products/update", body, DOMAIN), {"X-Shopify-Test": "true"})

    def _tell_half(self, instead: Row, without: tuple[str, ...]) -> None:
        with self._shop.lock:
            product = self._rng.choice(list(self._shop.products.values()))
            whole = Webhooks(self._shop).updated(product)
        body = {name: value for name, value in json.loads(whole.body).items() if name not in without}
        self._send(replace(whole, body=json.dumps(body | instead).encode(), webhook_id=_new_id()))

    # --- the neighbour

    def _neighbours_price(self) -> None:
        self._price += self._rng.randrange(1, 10)
        variant = {
            "id": 7001,
            "title": "Default Title",
            "price": _money(self._price),
            "sku": _NEIGHBOURS_CODE,
        }
        body = {
            **{"id": 7000, "title": "Of the neighbour", "status": "active", "updated_at": _now()},
            **{"variants": [variant | {"inventory_item_id": 7002, "barcode": _NEIGHBOURS_CODE}]},
            **{
                "vendor": "",
                "product_type": "",
                "tags": "",
                "handle": "n",
                "published_at": _now(),
                "options": [],
            },
        }
        self._send(_message("products/update", body, NEIGHBOUR))

    def _neighbours_bad_settings(self) -> None:
        bad = self._rng.choice(_BAD_SETTINGS)
        self._sql(
            "update esl.store_mappings set settings = settings || %s where source_store_id = %s",
            Jsonb(bad),
            NEIGHBOUR,
        )

    def _neighbours_good_settings(self) -> None:
        self._set(NEIGHBOUR, {})

    # --- the shop's own settings

    def _short_titles(self) -> None:
        self._set(DOMAIN, _SETTINGS | {"title_max_length": 12})

    def _closed_window(self) -> None:
        now = datetime.now(UTC)
        opens, closes = (f"{now + timedelta(hours=hours):%H:%M}" for hours in (2, 3))
        window = {"opens": opens, "closes": closes, "time_zone": "UTC"}
        self._set(DOMAIN, _SETTINGS | {"raise_window": window})

    def _settings_back(self) -> None:
        self._set(DOMAIN, _SETTINGS)

    # --- how

    def _set(self, shop: str, settings: Row) -> None:
        self._sql(
            "select public.esl_mapping_update(jsonb_build_object('id', id, 'settings', %s::jsonb))"
            " from esl.store_mappings where source_store_id = %s",
            Jsonb(settings),
            shop,
        )

    def _sql(self, query: str, *values: Any) -> None:
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
            connection.execute(query.encode(), values)

    def _send(self, delivery: Delivery, headers: dict[str, str] | None = None) -> None:
        """Send it until it is acknowledged, as Shopify would; then it must be kept."""
        url = f"{self._receiver}/webhooks/shopify/{delivery.topic}"

        def is_kept() -> bool:
            try:
                answer = httpx.post(
                    url,
                    content=delivery.body,
                    headers=delivery.headers(WEBHOOK_SECRET) | (headers or {}),
                    timeout=5,
                )
            except httpx.HTTPError:
                return False
            return answer.status_code == httpx.codes.OK

        eventually(is_kept, 120, f"the receiver to keep {delivery.topic}")
        self._acknowledged.append(delivery)


def _neighbours_mapping() -> Row:
    return {"source_system": "shopify", "source_store_id": NEIGHBOUR, "hipoink_store_code": NEIGHBOURS_STORE}


def _message(topic: str, body: Row, shop: str) -> Delivery:
    return Delivery(topic, json.dumps(body).encode(), shop, _new_id(), _new_id(), _now())


def _new_id() -> str:
    return f"{OURS}{uuid.uuid4()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"
