"""What the Admin API says of a shop, as facts: everything, what changed lately, or one product.

Content made here equals that of a webhook about the same product, so that a product which nobody changed is found
unchanged whichever way it comes. The Admin API says everything: a row without some content does not come from here.

Every reader is complete only when it has returned, or its iterator has ended by itself: after an error
(AdminError) nothing may be concluded from what is absent.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from esl_pipeline.labels.lengths import LENGTHS
from esl_pipeline.sources.content import instant, product_content, text_of, variant_row
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.shopify.admin import bulk, queries
from esl_pipeline.sources.shopify.admin.bulk import OnPoll, Sleep
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.download import download
from esl_pipeline.sources.shopify.admin.errors import AdminAuthenticationError, AdminError, AdminTooLargeError
from esl_pipeline.sources.shopify.gids import gid, number_in

Node = Mapping[str, Any]

_SYSTEM = "shopify"
# Shopify ends any paging at 25,000 objects (shopify.md section 7).
_LONGEST_LISTING = 20_000
# Of variants with their products: 2,500 ordinary ones have 2 MB.
_BATCH_BYTES = 4_000_000
# Page sizes, to be tried in turn when a page costs more than the shop's bucket holds.
_WINDOW_PAGES = ({"first": 25, "variants": 25}, {"first": 10, "variants": 10}, {"first": 2, "variants": 5})
_PRODUCT_PAGES = ({"first": 250}, {"first": 100}, {"first": 25}, {"first": 5})


def read_catalogue(
    client: AdminClient,
    *,
    shop: str,
    chunk: int = 2500,
    timeout_seconds: float = 4 * 3600,
    on_poll: OnPoll | None = None,
    sleep: Sleep = time.sleep,
) -> Iterator[Facts]:
    """All variants of the shop with their products and details, at most `chunk` variants at a time.

    They come in the order of variant ids: a product may be in several chunks, and no row lists its
    variants. `triggered_at` of every row is the start of the snapshot, by Shopify's clock; `on_poll`
    sees the bulk operation from its start to its end.
    """
    operation = bulk.run(
        client, queries.BULK_CATALOGUE, timeout_seconds=timeout_seconds, on_poll=on_poll, sleep=sleep
    )
    for nodes in _batches(download(client, operation, sleep=sleep), chunk):
        yield facts_of_variants(nodes, shop=shop, read_at=operation.created_at)


def read_stock(
    client: AdminClient,
    *,
    shop: str,
    chunk: int = 2500,
    timeout_seconds: float = 4 * 3600,
    on_poll: OnPoll | None = None,
    sleep: Sleep = time.sleep,
) -> Iterator[Facts]:
    """The stock of all items at all locations that have them, at most `chunk` levels at a time."""
    operation = bulk.run(
        client, queries.BULK_STOCK, timeout_seconds=timeout_seconds, on_poll=on_poll, sleep=sleep
    )
    levels = (node for node in download(client, operation, sleep=sleep) if "__parentId" in node)
    for nodes in _batches(levels, chunk):
        yield Facts(levels=[_level(node, shop, operation.created_at) for node in nodes])


def read_changed_since(client: AdminClient, *, shop: str, since: datetime) -> Iterator[Facts]:
    """Products whose updated_at is `since` or later, oldest change first, each with all its variants.

    Shopify's search lags behind its changes: let `since` overlap with the last read. A product that
    changes meanwhile comes twice. `since` in the future gives nothing. Raises ValueError without a zone.
    """
    if since.tzinfo is None:
        raise ValueError("since needs a time zone")
    return _changed_since(client, shop, since.astimezone(UTC).replace(microsecond=0))


def _changed_since(client: AdminClient, shop: str, since: datetime) -> Iterator[Facts]:
    sizes, product_sizes = list(_WINDOW_PAGES), list(_PRODUCT_PAGES)
    after, listed = None, 0
    while True:
        read_at = datetime.now(UTC)
        window = {"query": f"updated_at:>='{since:%Y-%m-%dT%H:%M:%SZ}'", "after": after}
        page = _sized(client, queries.CHANGED_PRODUCTS, window, sizes)["products"]
        facts = Facts()
        for product in page["nodes"]:
            if not product["variants"]["pageInfo"]["hasNextPage"]:
                facts.extend(_facts_of_product(product, product["variants"]["nodes"], shop, read_at))
            elif whole := _product(client, product["id"], shop, product_sizes):
                facts.extend(whole)
        yield facts
        if not page["pageInfo"]["hasNextPage"]:
            return
        after = page["pageInfo"]["endCursor"]
        listed += len(page["nodes"])
        newest = instant(page["nodes"][-1]["updatedAt"]) if page["nodes"] else None
        if listed >= _LONGEST_LISTING and newest is not None and newest > since:
            since, after, listed = newest, None, 0


def read_product(client: AdminClient, product_id: str, shop: str) -> Facts | None:
    """One product (by its number, as text) with all its variants; None when the shop has no such product."""
    return _product(client, gid("Product", product_id), shop, list(_PRODUCT_PAGES))


def _product(client: AdminClient, its_gid: str, shop: str, sizes: list[dict[str, int]]) -> Facts | None:
    read_at = datetime.now(UTC)
    first: Node | None = None
    nodes: list[Node] = []
    after = None
    while True:
        product = _sized(client, queries.PRODUCT, {"id": its_gid, "after": after}, sizes)["product"]
        if product is None:
            return None
        first = first or product
        nodes += product["variants"]["nodes"]
        if not product["variants"]["pageInfo"]["hasNextPage"]:
            break
        after = product["variants"]["pageInfo"]["endCursor"]
    # Between two pages a variant may have moved to where we had been already: then the list proves no absence.
    steady = product["updatedAt"] == first["updatedAt"]
    return _facts_of_product(first, nodes, shop, read_at, complete=steady)


def read_shop(client: AdminClient, shop: str) -> Facts:
    """The shop's currency, time zone and whether its prices include taxes."""
    said = client.execute(queries.SHOP)["shop"]
    row = {
        "source_system": _SYSTEM,
        "source_store_id": shop,
        "currency": text_of(said["currencyCode"], LENGTHS["currency"]),
        "time_zone": text_of(said["ianaTimezone"], LENGTHS["time_zone"]),
        "taxes_included": said["taxesIncluded"],
        "updated_at": _at(said["updatedAt"]).isoformat(),
    }
    return Facts(shops=[row])


_TAKEN: Mapping[str | None, bool] = {
    "wrong_secret": False,
    "not_installed": False,
    "token_refused": False,
    "scope_missing": True,
}


def takes_token(client: AdminClient) -> bool | None:
    """Whether the shop takes the client's token; None when that cannot be told now."""
    try:
        client.execute(queries.SHOP)
    except AdminAuthenticationError as refused:
        # Whom a scope is refused has been recognised; a shop that is frozen or has moved says nothing of the token, and
        # a 403 may be a guard's.
        return _TAKEN.get(refused.problem)
    except AdminError:
        return None
    return True


def read_locations(client: AdminClient) -> list[Row]:
    """The shop's locations, closed ones as well: location_id, name, is_active."""
    rows: list[Row] = []
    after = None
    while True:
        page = client.execute(queries.LOCATIONS, {"first": 100, "after": after})["locations"]
        rows += [
            {"location_id": _id(node["id"]), "name": node["name"], "is_active": node["isActive"]}
            for node in page["nodes"]
        ]
        if not page["pageInfo"]["hasNextPage"]:
            return rows
        after = page["pageInfo"]["endCursor"]


def count_variants(client: AdminClient) -> tuple[int, bool]:
    """How many variants the shop has, and whether that is exact: Shopify may stop counting."""
    count = client.execute(queries.VARIANTS_COUNT)["productVariantsCount"]
    return count["count"], count["precision"] == "EXACT"


def facts_of_variants(nodes: Iterable[Node], *, shop: str, read_at: datetime) -> Facts:
    """Facts of variant nodes that each carry their product, as BULK_CATALOGUE asks for them.

    A product that changed while they were read is told as its newest node says; its variants keep the
    version that they were read with.
    """
    facts = Facts()
    products: dict[str, Row] = {}
    told: dict[bytes, tuple[Row, Row]] = {}
    for node in nodes:
        said = orjson.dumps(node["product"])
        if said not in told:
            told[said] = (
                _version(node["product"], shop, read_at),
                product_content(_content_of(node["product"])),
            )
        version, content = told[said]
        known = products.get(version["product_id"])
        if known is None or version["version_at"] > known["version_at"]:
            products[version["product_id"]] = version | content | _PRESENT
        variant_id = _id(node["id"])
        row = variant_row(
            product_id=version["product_id"],
            variant_id=variant_id,
            product=content,
            variant=_content_of_variant(node),
        )
        facts.variants.append(row | version)
        facts.details.append(_details(node, variant_id, shop))
    facts.products += products.values()
    return facts


_PRESENT: Row = {"deleted": False, "missing_variants": 0, "variant_ids": None}


def _facts_of_product(
    product: Node, variants: Sequence[Node], shop: str, read_at: datetime, *, complete: bool = True
) -> Facts:
    """Facts of one product and all its variants."""
    shared = {key: value for key, value in product.items() if key != "variants"}
    facts = facts_of_variants(
        ({**variant, "product": shared} for variant in variants), shop=shop, read_at=read_at
    )
    for row in facts.products:
        if complete:
            row["variant_ids"] = sorted({variant["variant_id"] for variant in facts.variants})
        else:
            row["missing_variants"] = 1  # to be read again
    return facts


def _content_of(product: Node) -> Row:
    """A product node under the names that content.py knows."""
    return {
        "title": product["title"],
        "handle": product["handle"],
        "status": product["status"],
        "published_at": product["publishedAt"],
        "vendor": product["vendor"],
        "product_type": product["productType"],
        "tags": product["tags"],
    }


def _content_of_variant(node: Node) -> Row:
    image = node["image"] or node["product"]["featuredImage"]
    options = [option["value"] for option in node["selectedOptions"]]
    return {
        "inventory_item_id": _id(node["inventoryItem"]["id"]),
        "title": node["title"],
        "barcode": node["barcode"],
        "sku": node["sku"],
        "price": node["price"],
        "compare_at_price": node["compareAtPrice"],
        "image_url": image["url"] if image else None,
        **{f"option{i + 1}": options[i] if i < len(options) else None for i in range(3)},
        "created_at": node["createdAt"],
    }


def _version(product: Node, shop: str, read_at: datetime) -> Row:
    """Which statement about the product this is; the same for all of its variants that were read with it."""
    return {
        "source_system": _SYSTEM,
        "source_store_id": shop,
        "product_id": _id(product["id"]),
        "version_at": _at(product["updatedAt"]).isoformat(),
        "triggered_at": read_at.astimezone(UTC).isoformat(),
        "body_sha256": _digest(product),
        "event_ids": [],
    }


def _details(node: Node, variant_id: str, shop: str) -> Row:
    return {
        "source_system": _SYSTEM,
        "source_store_id": shop,
        "variant_id": variant_id,
        "unit_price": text_of(node["unitPrice"] and node["unitPrice"]["amount"], LENGTHS["unit_price"]),
        "unit_price_measurement": node["unitPriceMeasurement"],
        "gift_card": node["product"]["isGiftCard"],
    }


def _level(node: Node, shop: str, read_at: datetime) -> Row:
    available = {quantity["name"]: quantity["quantity"] for quantity in node["quantities"]}.get("available")
    return {
        "source_system": _SYSTEM,
        "source_store_id": shop,
        "inventory_item_id": _id(node["item"]["id"]),
        "location_id": _id(node["location"]["id"]),
        # As in a webhook: an item that is not tracked has no quantity.
        "available": available if node["item"]["tracked"] else None,
        "updated_at": _at(node["updatedAt"]).isoformat(),
        "triggered_at": read_at.astimezone(UTC).isoformat(),
        "body_sha256": _digest(node),
    }


def _digest(node: Node) -> str:
    return hashlib.sha256(orjson.dumps(node, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _sized(
    client: AdminClient, query: str, variables: Mapping[str, object], sizes: list[dict[str, int]]
) -> dict[str, Any]:
    """The data of one page, as large as the shop affords; sizes that it does not are dropped from the list."""
    while True:
        try:
            return client.execute(query, {**variables, **sizes[0]})
        except AdminTooLargeError:
            if len(sizes) == 1:
                raise
            del sizes[0]


def _batches(nodes: Iterable[Node], size: int) -> Iterator[list[Node]]:
    """As many at a time as `size` says, and as _BATCH_BYTES allow."""
    batch, bytes_ = list[Node](), 0
    for node in nodes:
        batch.append(node)
        bytes_ += len(orjson.dumps(node))
        if len(batch) == size or bytes_ >= _BATCH_BYTES:
            yield batch
            batch, bytes_ = [], 0
    if batch:
        yield batch


def _id(said: str) -> str:
    if (number := number_in(said)) is None:
        raise ValueError(f"{said!r} is not a Shopify id such as gid://shopify/Product/1")
    return number


def _at(time_text: str) -> datetime:
    at = instant(time_text)
    if at is None:
        raise ValueError(f"{time_text!r} is not a time with a zone")
    return at
