"""A small world for tests of behaviour: deliveries in, rounds drained, and a real sandbox that took the labels."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import psycopg
import psycopg.rows
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.hipoink import HipoinkClient
from esl_pipeline.model.push import PushRules
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.stages.drain import Portion, Round, read_round
from esl_pipeline.stages.push import push_batch
from esl_pipeline.stages.refresh import refresh_stores
from esl_pipeline_tests.hipoink.servers import Sandbox
from esl_pipeline_tests.waiting import eventually

SHOP = "corner-shop.myshopify.com"
STORE = "S1"
LOCATION = 77
RUN = "run-1"
ASSET = "hipoink_sync_results"

# Fast, with no jitter worth waiting for.
RULES = PushRules(
    initial_delay=0.01,
    multiplier=1,
    max_delay=0.02,
    max_attempts=5,
    max_refusals=1,
    refused_delay=0.01,
    refused_multiplier=1,
    max_refused_delay=0.02,
    pause=0.3,
    probe=0.02,
    max_probe=0.05,
)

# Shopify's times must be in the past and its deliveries at most 48 h old.
_EPOCH = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)

# Removals wait for nothing: what most tests are about is what goes, not when (that is stages/test_grace.py).
AT_ONCE: dict[str, Any] = {"unbind_grace_hours": 0}

_numbers = itertools.count(1)

Body = dict[str, Any]


def when(version: int) -> str:
    """The time at which Shopify made this version."""
    return (_EPOCH + timedelta(seconds=version)).isoformat()


def variant(number: int = 1, code: str | None = "auto", price: Any = "1.00", **fields: Any) -> Body:
    """A variant as Shopify sends it; its code is `C-<number>` unless given."""
    return {
        "id": number,
        "admin_graphql_api_id": f"gid://shopify/ProductVariant/{number}",
        "title": "Default Title",
        "barcode": f"C-{number}" if code == "auto" else code,
        "sku": f"sku-{number}",
        "price": price,
        "inventory_item_id": 10_000 + number,
        **dict.fromkeys(("compare_at_price", "created_at", "option1", "option2", "option3")),
    } | fields


def product(number: int = 1, version: int = 1, variants: Sequence[Body] | None = None, **fields: Any) -> Body:
    """A product body as Shopify sends it; without variants it has one of its own number."""
    variants = [variant(number)] if variants is None else list(variants)
    return {
        "id": number,
        "admin_graphql_api_id": f"gid://shopify/Product/{number}",
        "title": f"Product {number}",
        "status": "active",
        "updated_at": when(version),
        "published_at": when(0),
        **dict.fromkeys(("handle", "vendor", "product_type", "tags"), ""),
        "images": [],
        "variants": variants,
        "variant_gids": [
            {
                "admin_graphql_api_id": f"gid://shopify/ProductVariant/{v.get('id')}",
                "updated_at": when(version),
            }
            for v in variants
        ],
    } | fields


def level(number: int = 1, available: int | None = 5, version: int = 1, location: int = LOCATION) -> Body:
    """The stock of the variant of this number at one location."""
    return {
        "inventory_item_id": 10_000 + number,
        "location_id": location,
        "available": available,
        "updated_at": when(version),
    }


def kept(topic: str, body: Body, *, shop: str = SHOP, at: str | None = None) -> dict[str, Any]:
    """One delivery with an id of its own, as the receiver keeps it."""
    raw = json.dumps(body).encode()
    headers = Headers(
        {
            "x-shopify-topic": topic,
            "x-shopify-shop-domain": shop,
            "x-shopify-webhook-id": f"delivery-{next(_numbers)}",
            "x-shopify-triggered-at": at or str(body.get("updated_at") or when(1)),
        }
    )
    found = delivery(topic, headers, raw, datetime.now(UTC))
    assert found["state"] == "ready", found["reason"]
    return found


def map_shop(buffer: Buffer, shop: str = SHOP, store: str = STORE, **fields: Any) -> dict[str, Any]:
    """Map a shop to a store. Where several shops feed one, the tests mean it. Removals go at once, unless told else."""
    named = {"source_system": "shopify", "source_store_id": shop, "hipoink_store_code": store, "shared": True}
    return buffer.mapping_create(named | fields | {"settings": AT_ONCE | fields.get("settings", {})})


def drain_round(
    buffer: Buffer,
    client: HipoinkClient,
    rules: PushRules,
    *,
    run_id: str = RUN,
    asset: str = ASSET,
    portion: Portion | None = None,
) -> Round:
    """What a drain does, one step after another: read and evaluate once, then push until nothing is due."""
    done = read_round(buffer, run_id=run_id, portion=portion)
    done.results = list(iter_results(buffer, client, rules, run_id=run_id, asset=asset))
    return done


def iter_results(
    buffer: Buffer, client: HipoinkClient, rules: PushRules, **who: str
) -> Iterator[pd.DataFrame]:
    """Push until nothing is due."""
    while not (results := push_batch(buffer, client, rules, **who)).empty:
        yield results


@dataclass
class World:
    """One buffer and one label server, with the verbs of the tests."""

    buffer: Buffer
    dsn: str
    sandbox: Sandbox
    client: HipoinkClient
    rules: PushRules = RULES

    def map(self, shop: str = SHOP, store: str = STORE, **fields: Any) -> str:
        """Map a shop to a store; the mapping's id."""
        return str(map_shop(self.buffer, shop, store, **fields)["id"])

    def send(self, topic: str, body: Body, *, shop: str = SHOP, at: str | None = None) -> None:
        """One delivery with an id of its own, as the receiver keeps it."""
        self.buffer.inbox_add([kept(topic, body, shop=shop, at=at)])

    def update(self, *bodies: Body, shop: str = SHOP) -> None:
        """Deliver products/update for each body."""
        for body in bodies:
            self.send("products/update", body, shop=shop)

    def delete(self, number: int, version: int, shop: str = SHOP) -> None:
        """Deliver products/delete, triggered at the time of this version."""
        self.send("products/delete", {"id": number}, shop=shop, at=when(version))

    def stock(self, *bodies: Body) -> None:
        """Deliver inventory_levels/update for each body."""
        for body in bodies:
            self.send("inventory_levels/update", body)

    def round(self, **rules: Any) -> Round:
        """Read, validate and push once what is due now, and have the labels refreshed, as a drain does."""
        done = drain_round(self.buffer, self.client, replace(self.rules, **rules))
        if done.was_accepted:
            refresh_stores(self.buffer, self.client, run_id=RUN)
        return done

    def settle(self, *bodies: Body, **rules: Any) -> None:
        """Deliver updates, then drain until nothing is due, now or after a back-off."""
        self.update(*bodies)

        def quiet() -> bool:
            return not self.round(**rules).did_something and not self.waiting()

        eventually(quiet)

    def settle_of(self, shop: str, *bodies: Body) -> None:
        """The same for updates of another shop."""
        self.update(*bodies, shop=shop)
        self.settle()

    def waiting(self) -> int:
        """Queue rows that will be pushed one day without anybody's help."""
        (row,) = self.sql(
            "select count(*) as n from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id"
            " where q.state in ('ready', 'leased') and m.is_active and not m.is_dry_run"
            " and not exists (select from esl.sync_queue u"
            " where u.mapping_id = q.mapping_id and u.variant_id = q.variant_id and u.state in ('failed', 'dead'))"
        )
        return int(row["n"])

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Look (or tamper) behind the functions."""
        with psycopg.connect(self.dsn, row_factory=psycopg.rows.dict_row) as connection:
            cursor = connection.execute(query.encode(), values)
            return [] if cursor.description is None else cursor.fetchall()

    def age_prices(self, days: int) -> None:
        """What the passing of time does to the price history, which nobody may change."""
        self.sql(
            "set session_replication_role = replica; "  # without its trigger
            f"update esl.price_history set since = since - interval '{days} days'"
        )

    def expire_leases(self) -> None:
        """What the passing of time does to the claims of a worker that died."""
        self.sql("update esl.sync_queue set lease_until = now() - interval '1 s' where state = 'leased'")
        self.sql("update esl.webhook_inbox set lease_until = now() - interval '1 s' where state = 'leased'")

    # What the label server has seen

    def labels(self, store: str = STORE) -> dict[str, Any]:
        """The records on the labels of a store, by code."""
        return dict(self.sandbox.state()["labels"].get(store, {}))

    def prices(self, store: str = STORE) -> dict[str, str]:
        """The prices on the labels of a store, by code."""
        return {code: record["pp"] for code, record in self.labels(store).items()}

    def shown(self, code: str, store: str = STORE) -> list[str | None]:
        """Every price that the label has shown, in order; None after a removal."""
        changes = self.sandbox.state()["history"].get(store, {}).get(code, [])
        return [change["record"] and change["record"]["pp"] for change in changes]

    def calls(self) -> int:
        """Calls that changed labels, or tried to."""
        return sum(n for action, n in self.sandbox.state()["calls"].items() if action != "bind_task")

    # What the buffer says

    def queue(self) -> dict[str, dict[str, Any]]:
        """The queue by code (of all stores)."""
        return {row["code"]: row for row in self.sql("select * from esl.sync_queue")}

    def outcomes(self, code: str) -> list[str]:
        """The results of all pushes of a code, oldest first."""
        rows = self.sql(
            "select outcome from esl.sync_log where code = %s and kind = 'result' order by id", code
        )
        return [row["outcome"] for row in rows]

    def findings(self, level: str = "error") -> set[tuple[str, str]]:
        """(variant id, check) of the open findings of one level."""
        found = self.buffer.findings()
        return {(row["variant_id"], row["check_name"]) for row in found if row["level"] == level}

    def inbox(self) -> list[str]:
        """States of all deliveries, oldest first."""
        return [row["state"] for row in self.sql("select state from esl.webhook_inbox order by id")]
