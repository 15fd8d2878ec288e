"""Admin nodes to facts: the same as a webhook makes of the same product, whichever reader brought them."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from esl_pipeline.sources.content import CONTENT
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.admin import (
    AdminClient,
    AdminTooLargeError,
    IncompleteDownloadError,
    count_variants,
    facts_of_variants,
    read_catalogue,
    read_changed_since,
    read_locations,
    read_product,
    read_shop,
    read_stock,
)
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.sources.shopify.admin.servers import (
    CREATED_AT,
    SHOP,
    Reply,
    Request,
    client_of,
    error,
    graphql,
    jsonl,
    serving,
    shop,
)
from esl_pipeline_tests.whole import whole

SAMPLES = DATA / "shopify-webhooks" / "metadatas" / "2026-04"
READ_AT = datetime(2026, 11, 22, 2, tzinfo=UTC)
# What tells one statement about a product from another; all else is content.
PROVENANCE = {"triggered_at", "body_sha256", "event_ids"}


def node(number: int, **fields: Any) -> dict[str, Any]:
    """A variant as Shopify answers it."""
    return {
        "id": f"gid://shopify/ProductVariant/{number}",
        "title": "500 g",
        "price": "4.50",
        "compareAtPrice": None,
        "barcode": "4006381333931",
        "sku": f"SKU-{number}",
        "createdAt": "2026-01-02T03:04:05Z",
        "selectedOptions": [{"value": "500 g"}],
        "image": None,
        "inventoryItem": {"id": f"gid://shopify/InventoryItem/{number}00"},
        "unitPrice": None,
        "unitPriceMeasurement": None,
    } | fields


def product(number: int, **fields: Any) -> dict[str, Any]:
    """A product as Shopify answers it, without its variants."""
    return {
        "id": f"gid://shopify/Product/{number}",
        "title": f"Muesli {number}",
        "handle": "muesli",
        "status": "ACTIVE",
        "publishedAt": "2026-01-03T00:00:00Z",
        "vendor": "Mill",
        "productType": "",
        "tags": ["organic", "Breakfast"],
        "updatedAt": "2026-11-20T10:00:00Z",
        "isGiftCard": False,
        "featuredImage": None,
    } | fields


def content(facts: Facts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Products and variants without where they come from, in one order."""

    def plain(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        cut = [{name: row[name] for name in row if name not in PROVENANCE} for row in rows]
        return sorted(cut, key=lambda row: str(row[key]))

    return plain(facts.products, "product_id"), plain(facts.variants, "variant_id")


def of_webhook(body: Mapping[str, Any]) -> Facts:
    raw = json.dumps(body).encode()
    delivery = {
        "id": 1,
        "source_system": "shopify",
        "source_store_id": SHOP,
        "topic": "products/update",
        "triggered_at": None,
        "received_at": "2026-11-22T03:00:00+00:00",
        "body_sha256": hashlib.sha256(raw).hexdigest(),
        "body_base64": base64.b64encode(raw).decode(),
    }
    return whole(read_deliveries([delivery]))


# --- the same product, told twice

TOLD_BY_WEBHOOK = {
    "id": 788032119674292900,
    "admin_graphql_api_id": "gid://shopify/Product/788032119674292922",
    "title": "Müsli „Bio“",
    "handle": "muesli-bio",
    "status": "active",
    "published_at": "2026-01-03T01:00:00+01:00",
    "created_at": "2026-01-01T01:00:00+01:00",
    "updated_at": "2026-11-20T11:00:00+01:00",
    "vendor": "Mill",
    "product_type": "",
    "tags": "Breakfast, organic",
    "image": {"id": 1, "src": "https://cdn.shopify.com/front.jpg?v=1"},
    "images": [
        {"id": 1, "src": "https://cdn.shopify.com/front.jpg?v=1", "variant_ids": []},
        {"id": 2, "src": "https://cdn.shopify.com/large.jpg?v=2", "variant_ids": [12]},
    ],
    "variants": [
        {
            "id": 11,
            "admin_graphql_api_id": "gid://shopify/ProductVariant/11",
            "title": "500 g / fine",
            "price": "4.50",
            "compare_at_price": None,
            "barcode": "",
            "sku": None,
            "option1": "500 g",
            "option2": "fine",
            "option3": None,
            "image_id": None,
            "inventory_item_id": 1100,
            "created_at": "2026-01-02T04:04:05+01:00",
        },
        {
            "id": 12,
            "admin_graphql_api_id": "gid://shopify/ProductVariant/12",
            "title": "1 kg / coarse",
            "price": "8.00",
            "compare_at_price": "9.00",
            "barcode": "4006381333931",
            "sku": "M-1",
            "option1": "1 kg",
            "option2": "coarse",
            "option3": None,
            "image_id": 2,
            "inventory_item_id": 1200,
            "created_at": "2026-01-02T04:04:05+01:00",
        },
    ],
}
PRODUCT_TOLD_BY_ADMIN = product(
    788032119674292922,
    title="Müsli „Bio“",
    handle="muesli-bio",
    featuredImage={"url": "https://cdn.shopify.com/front.jpg?v=1"},
)
VARIANTS_TOLD_BY_ADMIN = [
    node(
        11,
        title="500 g / fine",
        barcode=None,
        sku="",
        selectedOptions=[{"value": "500 g"}, {"value": "fine"}],
        inventoryItem={"id": "gid://shopify/InventoryItem/1100"},
    ),
    node(
        12,
        title="1 kg / coarse",
        price="8.0",
        compareAtPrice="9.0",
        sku="M-1",
        selectedOptions=[{"value": "1 kg"}, {"value": "coarse"}],
        image={"url": "https://cdn.shopify.com/large.jpg?v=2"},
        inventoryItem={"id": "gid://shopify/InventoryItem/1200"},
    ),
]


def lines(one: Mapping[str, Any], variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The variants as a bulk result has them."""
    return [variant | {"product": one} for variant in variants]


def test_an_unchanged_product_has_the_same_content_by_webhook_and_by_bulk() -> None:
    told = of_webhook(TOLD_BY_WEBHOOK)
    read = facts_of_variants(lines(PRODUCT_TOLD_BY_ADMIN, VARIANTS_TOLD_BY_ADMIN), shop=SHOP, read_at=READ_AT)
    # The prices are equal as numbers, not as text: the buffer knows.
    products, variants = content(told)
    products_read, variants_read = content(read)
    assert [row | {"variant_ids": None} for row in products] == products_read
    assert [row.keys() for row in variants] == [row.keys() for row in variants_read]
    assert told.products[0].keys() == read.products[0].keys()
    assert variants[0] == variants_read[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"price": "4.51"},
        {"title": "other"},
        {"barcode": "4006381333948"},
        {"selectedOptions": [{"value": "500 g"}, {"value": "whole"}]},
        {"image": {"url": "https://cdn.shopify.com/new.jpg"}},
        {"inventoryItem": {"id": "gid://shopify/InventoryItem/9"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_variant_has_other_content(changed: dict[str, Any]) -> None:
    (now,) = facts_of_variants(
        lines(PRODUCT_TOLD_BY_ADMIN, [VARIANTS_TOLD_BY_ADMIN[0] | changed]), shop=SHOP, read_at=READ_AT
    ).variants
    was = of_webhook(TOLD_BY_WEBHOOK).variants[0]
    assert sum(now[name] != was[name] for name in CONTENT & now.keys() - {"price", "compare_at_price"}) == (
        "price" not in changed
    )


@pytest.mark.shared_data("data/shopify-webhooks")
@pytest.mark.parametrize("topic", ["products__update", "products__create"])
def test_shopifys_own_sample_told_by_the_admin_api(topic: str) -> None:
    body = json.loads((SAMPLES / f"{topic}.json").read_text(encoding="utf-8"))["response"]
    for number, variant in enumerate(body["variants"], start=1):
        variant["inventory_item_id"] = number  # null in the sample; never null in the Admin API
    told = of_webhook(body)
    one = product(
        1,
        id=body["admin_graphql_api_id"],
        title=body["title"],
        handle=body["handle"],
        status=body["status"].upper(),
        publishedAt=utc(body["published_at"]),
        vendor=body["vendor"],
        productType=body["product_type"],
        tags=body["tags"].split(", ")[::-1],
        updatedAt=utc(body["updated_at"]),
    )
    variants = [
        node(
            1,
            id=variant["admin_graphql_api_id"],
            title=variant["title"],
            price=variant["price"],
            compareAtPrice=variant["compare_at_price"],
            barcode=variant["barcode"],
            sku=variant["sku"],
            createdAt=utc(variant["created_at"]),
            selectedOptions=[{"value": variant["option1"]}],
            inventoryItem={"id": f"gid://shopify/InventoryItem/{variant['inventory_item_id']}"},
        )
        for variant in body["variants"]
    ]
    read = facts_of_variants(lines(one, variants), shop=SHOP, read_at=READ_AT)
    assert content(read)[1] == content(told)[1]
    assert "788032119674292922" in {row["product_id"] for row in read.products}


def utc(time: str | None) -> str | None:
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else None


def test_details_that_only_the_admin_api_tells() -> None:
    measure = {
        "measuredType": "WEIGHT",
        "quantityValue": 500.0,
        "quantityUnit": "G",
        "referenceValue": 1,
        "referenceUnit": "KG",
    }
    facts = facts_of_variants(
        [
            node(1, unitPrice={"amount": "9.0"}, unitPriceMeasurement=measure, product=product(1)),
            node(2, product=product(2, isGiftCard=True)),
        ],
        shop=SHOP,
        read_at=READ_AT,
    )
    of_shop = {"source_system": "shopify", "source_store_id": SHOP}
    assert facts.details == [
        of_shop
        | {"variant_id": "1", "unit_price": "9.0", "unit_price_measurement": measure, "gift_card": False},
        of_shop | {"variant_id": "2", "unit_price": None, "unit_price_measurement": None, "gift_card": True},
    ]


def test_a_product_that_changed_while_it_was_read_is_told_as_it_was_last() -> None:
    newer = product(1, title="New", updatedAt="2026-11-20T10:00:01Z")
    nodes = [node(1, product=product(1)), node(2, product=newer), node(3, product=product(1))]
    facts = facts_of_variants(nodes, shop=SHOP, read_at=READ_AT)
    (row,) = facts.products
    assert (row["title"], row["version_at"]) == ("New", "2026-11-20T10:00:01+00:00")
    belong = [
        (v["version_at"], v["body_sha256"]) == (row["version_at"], row["body_sha256"]) for v in facts.variants
    ]
    assert belong == [False, True, False]


# --- bulk readers


def test_a_catalogue_in_chunks() -> None:
    nodes = [node(number, product=product(number // 3)) for number in range(1, 8)]
    seen: list[str] = []
    with shop(jsonl(*nodes)) as (_, client):
        chunks = list(read_catalogue(client, shop=SHOP, chunk=3, on_poll=lambda now: seen.append(now.status)))
    assert [[v["variant_id"] for v in facts.variants] for facts in chunks] == [
        ["1", "2", "3"],
        ["4", "5", "6"],
        ["7"],
    ]
    assert [[p["product_id"] for p in facts.products] for facts in chunks] == [["0", "1"], ["1", "2"], ["2"]]
    assert {p["variant_ids"] for facts in chunks for p in facts.products} == {None}
    versions = {
        tuple(p[key] for key in ("version_at", "triggered_at", "body_sha256"))
        for f in chunks
        for p in f.products
    }
    assert len(versions) == 3
    assert {at for _, at, _ in versions} == {CREATED_AT.replace("Z", "+00:00")}
    assert seen == ["COMPLETED"]


def test_an_empty_shop_is_a_whole_catalogue() -> None:
    with shop(b"") as (_, client):
        assert list(read_catalogue(client, shop=SHOP)) == []


def test_a_cut_catalogue_ends_with_an_error() -> None:
    file = jsonl(*[node(number, product=product(1)) for number in range(1, 6)])
    chunks = []
    with shop(file[:-5], count=5) as (_, client), pytest.raises(IncompleteDownloadError):
        for facts in read_catalogue(client, shop=SHOP, chunk=2):
            chunks.append(facts)
    assert [len(facts.variants) for facts in chunks] == [2, 2]


def stock(item: int, location: int, available: int | None, *, tracked: bool = True) -> dict[str, Any]:
    quantities = [] if available is None else [{"name": "available", "quantity": available}]
    return {
        "id": f"gid://shopify/InventoryLevel/{location}?inventory_item_id={item}",
        "updatedAt": "2026-11-20T10:00:00Z",
        "item": {"id": f"gid://shopify/InventoryItem/{item}", "tracked": tracked},
        "location": {"id": f"gid://shopify/Location/{location}"},
        "quantities": quantities,
        "__parentId": f"gid://shopify/InventoryItem/{item}",
    }


def test_stock_is_told_as_webhooks_tell_it() -> None:
    items = [{"id": f"gid://shopify/InventoryItem/{number}"} for number in (7, 8, 9)]
    file = jsonl(items[0], stock(7, 1, 5), stock(7, 2, -3), items[1], items[2], stock(9, 1, 0, tracked=False))
    with shop(file) as (_, client):
        chunks = list(read_stock(client, shop=SHOP, chunk=2))
    levels = [level for facts in chunks for level in facts.levels]
    assert [len(facts.levels) for facts in chunks] == [2, 1]
    body = {
        "inventory_item_id": 7,
        "location_id": 1,
        "available": 5,
        "updated_at": "2026-11-20T11:00:00+01:00",
    }
    raw = json.dumps(body).encode()
    told = read_deliveries(
        [
            {
                "id": 1,
                "source_system": "shopify",
                "source_store_id": SHOP,
                "topic": "inventory_levels/update",
                "received_at": "2026-11-22T03:00:00+00:00",
                "body_base64": base64.b64encode(raw).decode(),
                "body_sha256": "",
            }
        ]
    )
    read_at = {key: levels[0][key] for key in ("triggered_at", "body_sha256")}
    assert levels[0] == told.levels[0] | read_at
    assert [(level["inventory_item_id"], level["location_id"], level["available"]) for level in levels] == [
        ("7", "1", 5),
        ("7", "2", -3),
        ("9", "1", None),
    ]


# --- windows and single products


class Catalogue:
    """Products, answered page by page as Shopify does, at a price per page."""

    def __init__(self, products: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
        self.products = products
        self.most = 10**9
        self.sizes: list[tuple[str, int]] = []
        self.queries: list[str] = []

    def __call__(self, request: Request) -> Reply:
        sent = request.json
        variables = sent["variables"]
        name = sent["query"].split("(")[0].split()[1]
        if name == "ChangedProducts":
            cost, self.queries = (
                variables["first"] * variables["variants"],
                [*self.queries, variables["query"]],
            )
        else:
            cost = variables["first"]
        self.sizes.append((name, variables["first"]))
        if cost > self.most:
            return graphql(errors=[error("Query cost is too high", "MAX_COST_EXCEEDED")])
        return graphql(getattr(self, name)(variables))

    def ChangedProducts(self, variables: dict[str, Any]) -> object:
        since = variables["query"].removeprefix("updated_at:>='").removesuffix("'")
        changed = sorted(
            [pair for pair in self.products if pair[0]["updatedAt"] >= since],
            key=lambda pair: pair[0]["updatedAt"],
        )
        nodes = [
            one | {"variants": self.page(variants, variables["variants"], None)} for one, variants in changed
        ]
        return {"products": self.page(nodes, variables["first"], variables["after"])}

    def Product(self, variables: dict[str, Any]) -> object:
        for one, variants in self.products:
            if one["id"] == variables["id"]:
                return {
                    "product": one | {"variants": self.page(variants, variables["first"], variables["after"])}
                }
        return {"product": None}

    @staticmethod
    def page(nodes: list[Any], first: int, after: str | None) -> dict[str, Any]:
        start = int(after or 0)
        end = start + first
        info = {"hasNextPage": end < len(nodes), "endCursor": str(end)}
        return {"nodes": nodes[start:end], "pageInfo": info}


@contextmanager
def catalogue(
    *products: tuple[dict[str, Any], list[dict[str, Any]]],
) -> Iterator[tuple[Catalogue, AdminClient]]:
    answers = Catalogue(list(products))
    with serving(answers) as server, client_of(server) as client:
        yield answers, client


def changed(client: AdminClient, since: str = "2026-11-20T00:00:00+00:00") -> list[Facts]:
    return list(read_changed_since(client, shop=SHOP, since=datetime.fromisoformat(since)))


def at(second: int) -> str:
    return f"2026-11-20T10:{second // 60:02}:{second % 60:02}Z"


def test_a_product_with_all_its_variants() -> None:
    variants = [node(number) for number in range(1, 2049)]
    with catalogue((product(7), variants)) as (answers, client):
        facts = read_product(client, "7", SHOP)
    assert facts is not None
    (row,) = facts.products
    assert len(facts.variants) == len(facts.details) == 2048
    assert row["variant_ids"] == sorted(str(number) for number in range(1, 2049))
    assert (row["deleted"], row["missing_variants"]) == (False, 0)
    assert answers.sizes == [("Product", 250)] * 9


def test_a_product_that_is_gone() -> None:
    with catalogue() as (_, client):
        assert read_product(client, "7", SHOP) is None


def test_a_product_that_changes_between_two_pages_proves_no_absence() -> None:
    variants = [node(number) for number in range(1, 301)]
    with catalogue((product(7), variants)) as (answers, client):
        first = answers.products[0][0]
        answers.most = 250
        plain = answers.Product

        def moving(variables: dict[str, Any]) -> object:
            page = plain(variables)
            answers.products[0] = (first | {"updatedAt": at(50), "title": "Moved"}, variants)
            return page

        answers.Product = moving  # type: ignore[method-assign]
        facts = read_product(client, "7", SHOP)
    assert facts is not None
    (row,) = facts.products
    assert (row["variant_ids"], row["version_at"]) == (None, "2026-11-20T10:00:00+00:00")
    assert {v["version_at"] for v in facts.variants} == {row["version_at"]}
    assert len(facts.variants) == 300


def test_a_window_has_the_changed_products_with_all_their_variants() -> None:
    old = (product(1, updatedAt="2026-11-19T23:59:59Z"), [node(1)])
    small = [(product(n, updatedAt=at(n)), [node(10 * n), node(10 * n + 1)]) for n in range(2, 60)]
    large = (product(60, updatedAt=at(60)), [node(number) for number in range(1000, 1300)])
    with catalogue(old, *reversed(small), large) as (answers, client):
        pages = changed(client, "2026-11-20T01:00:00+01:00")
    rows = [row for facts in pages for row in facts.products]
    assert [row["product_id"] for row in rows] == [str(n) for n in range(2, 61)]
    assert rows[0]["variant_ids"] == ["20", "21"]
    assert len(rows[-1]["variant_ids"]) == 300
    assert sum(len(facts.variants) for facts in pages) == 58 * 2 + 300
    assert set(answers.queries) == {"updated_at:>='2026-11-20T00:00:00Z'"}
    assert answers.sizes == [("ChangedProducts", 25)] * 3 + [("Product", 250)] * 2


def test_a_product_of_a_window_equals_the_same_by_webhook() -> None:
    with catalogue((PRODUCT_TOLD_BY_ADMIN, VARIANTS_TOLD_BY_ADMIN)) as (_, client):
        (facts,) = changed(client)
    told = of_webhook(TOLD_BY_WEBHOOK)
    assert content(facts)[0] == content(told)[0]
    assert content(facts)[1][0] == content(told)[1][0]


def test_a_window_from_the_future_is_empty() -> None:
    with catalogue((product(1), [node(1)])) as (_, client):
        assert [facts.products for facts in changed(client, "2126-01-01T00:00:00+00:00")] == [[]]


def test_a_window_without_a_zone_is_refused_at_once() -> None:
    with catalogue() as (_, client), pytest.raises(ValueError, match="time zone"):
        read_changed_since(client, shop=SHOP, since=datetime(2026, 11, 20))


def test_pages_shrink_to_what_the_shop_affords() -> None:
    products = [(product(n, updatedAt=at(n)), [node(n)]) for n in range(1, 31)]
    with catalogue(*products) as (answers, client):
        answers.most = 100
        pages = changed(client)
    assert sum(len(facts.products) for facts in pages) == 30
    assert answers.sizes == [("ChangedProducts", 25)] + [("ChangedProducts", 10)] * 3


def test_pages_do_not_shrink_for_ever() -> None:
    with catalogue((product(1), [node(1)])) as (answers, client):
        answers.most = 0
        with pytest.raises(AdminTooLargeError):
            read_product(client, "1", SHOP)
    assert answers.sizes == [("Product", size) for size in (250, 100, 25, 5)]


def test_a_long_window_goes_on_by_time_since_shopify_ends_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    from esl_pipeline.sources.shopify.admin import catalogue as module

    monkeypatch.setattr(module, "_LONGEST_LISTING", 50)
    products = [(product(n, updatedAt=at(n // 30)), [node(n)]) for n in range(200)]
    with catalogue(*products) as (answers, client):
        pages = changed(client)
    assert {row["product_id"] for facts in pages for row in facts.products} == {str(n) for n in range(200)}
    assert answers.queries[0] == "updated_at:>='2026-11-20T00:00:00Z'"
    assert len(set(answers.queries)) > 3
    assert len(answers.queries) < 20


# --- the shop


def test_the_shops_settings() -> None:
    said = {
        "id": "gid://shopify/Shop/1",
        "name": "Corner",
        "myshopifyDomain": SHOP,
        "currencyCode": "EUR",
        "ianaTimezone": "Europe/Berlin",
        "taxesIncluded": True,
        "updatedAt": "2026-11-20T10:00:00Z",
    }
    with serving(lambda request: graphql({"shop": said})) as server, client_of(server) as client:
        (row,) = read_shop(client, SHOP).shops
    assert row == {
        "source_system": "shopify",
        "source_store_id": SHOP,
        "currency": "EUR",
        "time_zone": "Europe/Berlin",
        "taxes_included": True,
        "updated_at": "2026-11-20T10:00:00+00:00",
    }


def test_the_shops_locations_over_several_pages() -> None:
    nodes = [
        {"id": f"gid://shopify/Location/{number}", "name": f"Store {number}", "isActive": number != 3}
        for number in range(1, 151)
    ]

    def answer(request: Request) -> Reply:
        variables = request.json["variables"]
        return graphql({"locations": Catalogue.page(nodes, variables["first"], variables["after"])})

    with serving(answer) as server, client_of(server) as client:
        rows = read_locations(client)
    assert len(rows) == 150
    assert rows[2] == {"location_id": "3", "name": "Store 3", "is_active": False}


@pytest.mark.parametrize(("precision", "exact"), [("EXACT", True), ("AT_LEAST", False)])
def test_the_number_of_variants(precision: str, exact: bool) -> None:
    count = {"productVariantsCount": {"count": 25001, "precision": precision}}
    with serving(lambda request: graphql(count)) as server, client_of(server) as client:
        assert count_variants(client) == (25001, exact)
