"""Bulk operations of the pretend Shopify: one instant, lines in order, downloads in parts, and every way to fail."""

import json
from datetime import datetime
from typing import Any

import httpx
import pytest

from esl_pipeline.sandbox.shopify.admin import load_schema
from esl_pipeline.sandbox.shopify.bulk import MAX_AT_ONCE
from esl_pipeline.sandbox.shopify.bulk_query import BulkQueryError, blocks, shape_of
from esl_pipeline.sandbox.shopify.graph import CatalogueRoot
from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline_tests.sandbox.shopify.support import Running, running, small_shop
from esl_pipeline_tests.waiting import eventually

pytestmark = pytest.mark.long

PRODUCTS = "{ products { edges { node { id title variants { edges { node { id title } } } } } } }"
LEVELS = """{ productVariants { edges { node { id inventoryItem { inventoryLevels { edges { node {
    id quantities(names: ["available"]) { quantity }
} } } } } } } }"""


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def completed(shopify: Running, query: str = queries.BULK_CATALOGUE) -> dict[str, Any]:
    operation = shopify.ended_bulk(shopify.start_bulk(query))
    assert operation["status"] == "COMPLETED"
    return operation


# --- results ------------------------------------------------------------------------------------


def test_the_catalogue_comes_whole(shopify: Running) -> None:
    operation = completed(shopify)
    answer = httpx.get(operation["url"])
    found = lines(answer.text)
    wanted = {v.id: (p, v) for p in shopify.shop.products.values() for v in p.variants}
    assert int(operation["objectCount"]) == len(found) == len(wanted)
    assert int(operation["fileSize"]) == int(answer.headers["Content-Length"]) == len(answer.content)
    for line in found:
        product, variant = wanted.pop(int(line["id"].rpartition("/")[2]))
        assert (line["price"], line["barcode"]) == (variant.price, variant.barcode)
        assert line["product"]["id"] == f"gid://shopify/Product/{product.id}"
        assert line["product"]["isGiftCard"] is product.gift_card
    assert wanted == {}


@pytest.mark.parametrize(("query", "children"), [(PRODUCTS, "ProductVariant"), (LEVELS, "InventoryLevel")])
def test_children_come_after_their_parents_and_name_them(shopify: Running, query: str, children: str) -> None:
    found = lines(httpx.get(completed(shopify, query)["url"]).text)
    variants = sum(len(product.variants) for product in shopify.shop.products.values())
    roots, below = (122, variants) if query == PRODUCTS else (variants, 2 * variants)
    seen: set[str] = set()
    for line in found:
        is_child = line["id"].split("/")[3] == children
        assert is_child is ("__parentId" in line)
        assert not is_child or line["__parentId"] in seen
        seen.add(line["id"])
    assert (sum("__parentId" not in line for line in found), len(found)) == (roots, roots + below)
    # groupObjects false: a child does not stand beside its parent.
    assert "__parentId" not in found[1]


def test_stock_is_told_for_each_location(shopify: Running) -> None:
    found = [
        line
        for line in lines(httpx.get(completed(shopify, queries.BULK_STOCK)["url"]).text)
        if "item" in line
    ]
    variant = next(iter(shopify.shop.products.values())).variants[0]
    item = f"gid://shopify/InventoryItem/{variant.inventory_item_id}"
    told = {
        int(line["location"]["id"].rpartition("/")[2]): line["quantities"][0]["quantity"]
        for line in found
        if line["item"]["id"] == item
    }
    assert told == {place: level.available for place, level in variant.levels.items()}
    assert len(told) == 2


def test_a_result_is_of_one_instant() -> None:
    shop = small_shop()
    first, second, *_ = shop.products.values()
    prices = {variant.id: variant.price for product in shop.products.values() for variant in product.variants}
    with shop.snapshot() as snapshot:
        found = blocks(shape_of(load_schema(), queries.BULK_CATALOGUE), CatalogueRoot(shop, snapshot))
        some, _ = next(found)
        shop.delete(first)
        for product in list(shop.products.values())[-3:]:
            shop.set_price(product, product.variants[0], "123.45")
            shop.rename(product, "New")
        shop.remove_variant(second, second.variants[0])
        shop.add(shop.catalogue.bolt(shop.now))
        rest = [line for block, _ in found for line in block]
    told = [json.loads(line) for line in [*some, *rest]]
    assert {int(line["id"].rpartition("/")[2]): line["price"] for line in told} == prices
    assert "New" not in {line["product"]["title"] for line in told}


def test_changes_during_an_operation_are_not_in_its_result_and_newer_than_its_start(shopify: Running) -> None:
    shopify.faults({"kind": "bulk_slow", "seconds": 0.3})
    operation = shopify.start_bulk(queries.BULK_CATALOGUE)
    eventually(lambda: shopify.bulk(operation)["status"] == "RUNNING")
    product = list(shopify.shop.products.values())[7]
    shopify.shop.set_price(product, product.variants[0], "77.77")
    ended = shopify.ended_bulk(operation)
    assert "77.77" not in httpx.get(ended["url"]).text
    assert product.updated_at > datetime.fromisoformat(ended["createdAt"])


def test_an_empty_shop_has_no_file() -> None:
    shop = small_shop()
    shop.products.clear()
    with running(shop) as shopify:
        operation = completed(shopify)
        assert (operation["objectCount"], operation["url"], operation["fileSize"]) == ("0", None, None)


def test_a_download_can_be_resumed(shopify: Running) -> None:
    url = completed(shopify)["url"]
    whole = httpx.get(url)
    part = httpx.get(url, headers={"Range": "bytes=1000-", "If-Range": whole.headers["ETag"]})
    assert (part.status_code, whole.content[:1000] + part.content) == (206, whole.content)
    size = len(whole.content)
    assert part.headers["Content-Range"] == f"bytes 1000-{size - 1}/{size}"
    assert part.headers["ETag"] == whole.headers["ETag"]
    changed = httpx.get(url, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole.content)
    assert httpx.get(url, headers={"Range": f"bytes={size}-"}).status_code == 416


def test_addresses_are_signed_and_expire(shopify: Running) -> None:
    url = httpx.URL(completed(shopify)["url"])
    assert httpx.get(url.copy_merge_params({"Expires": "9999999999"})).status_code == 403
    assert httpx.get(url.copy_with(query=None)).status_code == 403
    shopify.faults({"kind": "expired_url", "times": 1})
    operation = completed(shopify)  # told once, expired
    assert httpx.get(operation["url"]).status_code == 400
    assert httpx.get(shopify.bulk(operation["id"])["url"]).status_code == 200


# --- queries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("{ shop { id } }", "one connection"),
        ("{ products { edges { node { id } } } locations { edges { node { id } } } }", "one connection"),
        ("{ products { nodes { id } } }", "edges"),
        ("{ products { edges { node { title variants { edges { node { id } } } } } } }", "'id'"),
        ("{ products { edges { node { pony } } } }", "pony"),
        ("{ products", "Syntax Error"),
        (
            "{ products { edges { node { id variants { edges { node { id inventoryItem { id inventoryLevels "
            "{ edges { node { id item { inventoryLevels { edges { node { id } } } } } } } } } } } } } } }",
            "deeper than 2",
        ),
        ("mutation { bulkOperationCancel(id: 1) { bulkOperation { id } } }", "only queries"),
    ],
)
def test_a_query_that_cannot_be_run_in_bulk_is_refused(shopify: Running, query: str, said: str) -> None:
    with pytest.raises(BulkQueryError, match=said):
        shape_of(load_schema(), query)
    answer = shopify.data(queries.RUN_BULK, query=query)["bulkOperationRunQuery"]
    assert (answer["bulkOperation"], answer["userErrors"][0]["code"]) == (None, "INVALID")


def test_objects_are_not_grouped(shopify: Running) -> None:
    grouped = queries.RUN_BULK.replace("groupObjects: false", "groupObjects: true")
    answer = shopify.data(grouped, query=queries.BULK_CATALOGUE)["bulkOperationRunQuery"]
    assert answer["userErrors"][0]["field"] == ["groupObjects"]


def test_five_operations_run_at_once_until_they_are_cancelled(shopify: Running) -> None:
    shopify.faults({"kind": "bulk_endless"})
    ids = [shopify.start_bulk(queries.BULK_STOCK) for _ in range(MAX_AT_ONCE)]
    refused = shopify.data(queries.RUN_BULK, query=queries.BULK_STOCK)["bulkOperationRunQuery"]
    assert [error["code"] for error in refused["userErrors"]] == ["LIMIT_REACHED"]
    listed = shopify.data(queries.RUNNING_BULK)["bulkOperations"]["nodes"]
    assert [node["id"] for node in listed] == ids
    assert all(node["url"] is None for node in listed)
    for operation in ids:
        cancelled = shopify.data(queries.CANCEL_BULK, id=operation)["bulkOperationCancel"]
        assert cancelled["bulkOperation"]["status"] == "CANCELED"
    assert shopify.data(queries.RUNNING_BULK)["bulkOperations"]["nodes"] == []
    gone = shopify.data(queries.CANCEL_BULK, id="gid://shopify/BulkOperation/1")["bulkOperationCancel"]
    assert gone["userErrors"][0]["field"] == ["id"]


# --- failures -----------------------------------------------------------------------------------


def test_an_operation_fails_without_a_result(shopify: Running) -> None:
    shopify.faults({"kind": "bulk_failed", "error_code": "TIMEOUT", "times": 1})
    operation = shopify.ended_bulk(shopify.start_bulk(queries.BULK_CATALOGUE))
    assert (operation["status"], operation["errorCode"]) == ("FAILED", "TIMEOUT")
    assert (operation["url"], operation["partialDataUrl"], operation["fileSize"]) == (None, None, None)
    completed(shopify)


def test_an_operation_fails_with_a_part_of_its_result(shopify: Running) -> None:
    shopify.faults({"kind": "bulk_failed", "keep": 0.25})
    operation = shopify.ended_bulk(shopify.start_bulk(queries.BULK_CATALOGUE))
    assert (operation["status"], operation["errorCode"]) == ("FAILED", "INTERNAL_SERVER_ERROR")
    part = lines(httpx.get(operation["partialDataUrl"]).text)
    whole = sum(len(product.variants) for product in shopify.shop.products.values())
    assert len(part) == int(operation["objectCount"]) == whole // 4
    assert operation["url"] is None


def test_a_download_breaks_in_the_middle_and_can_be_resumed(shopify: Running) -> None:
    operation = completed(shopify)
    size = int(operation["fileSize"])
    shopify.faults({"kind": "broken_download", "keep": 0.4, "times": 1})
    got = bytearray()
    with httpx.stream("GET", operation["url"]) as answer:
        assert int(answer.headers["Content-Length"]) == size
        with pytest.raises(httpx.RemoteProtocolError):
            for chunk in answer.iter_bytes():
                got += chunk
    assert len(got) == int(size * 0.4)
    rest = httpx.get(operation["url"], headers={"Range": f"bytes={len(got)}-"})
    assert bytes(got) + rest.content == httpx.get(operation["url"]).content


def test_a_download_can_look_whole_and_be_cut_at_the_end_of_a_line(shopify: Running) -> None:
    operation = completed(shopify)
    shopify.faults({"kind": "cut_download", "keep": 0.5, "times": 1})
    cut = httpx.get(operation["url"])
    assert cut.text.endswith("}\n")
    assert len(lines(cut.text)) == int(operation["objectCount"]) // 2
    assert int(cut.headers["Content-Length"]) == len(cut.content) < int(operation["fileSize"])
    assert len(httpx.get(operation["url"]).content) == int(operation["fileSize"])


def test_a_download_is_refused_or_slow_for_some_calls(shopify: Running) -> None:
    operation = completed(shopify)
    shopify.faults(
        {"kind": "status", "on": "download", "status": 503, "times": 2},
        {"kind": "latency", "on": "download", "ms": 50},
    )
    answers = [httpx.get(operation["url"]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[2].elapsed.total_seconds() >= 0.05
