"""The pretend shop: bodies of Shopify's shape, the same ones for a seed, rightly signed."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from biip.gtin import Gtin
from starlette.datastructures import Headers

from esl_pipeline.sandbox.shopify.catalogue import Catalogue, Product, check_digit
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks, as_double, sign
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.sources.signature import verify
from esl_pipeline_tests.shared_data import DATA

SAMPLES = DATA / "shopify-webhooks"
START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


def stocked(seed: int = 1) -> tuple[Shop, Webhooks]:
    shop = Shop(seed, START)
    for product in [*shop.catalogue.groceries(shop.now), shop.catalogue.loose_tea(shop.now)]:
        shop.add(product)
    return shop, Webhooks(shop)


def all_kinds(seed: int = 1) -> list[Delivery]:
    shop, webhooks = stocked(seed)
    deliveries = [webhooks.created(product) for product in shop.products.values()]
    first, second, *_ = shop.products.values()
    shop.set_price(first, first.variants[0], "1.23")
    deliveries.append(webhooks.updated(first))
    shop.set_stock(first, first.variants[0], 5)
    deliveries.append(webhooks.level(first.variants[0]))
    shop.delete(second)
    deliveries.append(webhooks.deleted(second))
    return deliveries


def body_of(product: Product, webhooks: Webhooks) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(webhooks.updated(product).body)
    return body


def sample(path: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SAMPLES / path).read_text())
    return read


def same_shape(ours: Any, theirs: Any, where: str = "") -> None:
    """The same keys, and values of the same type, at every level; null and empty lists say nothing of a type."""
    if isinstance(theirs, Mapping) and ours is not None:
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            same_shape(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        for item in ours if theirs else []:
            same_shape(item, theirs[0], f"{where}[]")
    elif theirs is not None and ours is not None:
        assert type(ours) is type(theirs), where


@pytest.mark.shared_data("data/shopify-webhooks")
def test_product_bodies_have_the_shape_of_shopifys_2026_04_sample() -> None:
    theirs = sample("metadatas/2026-04/products__update.json")["response"]
    shop, webhooks = stocked()
    for product in shop.products.values():
        ours = body_of(product, webhooks)
        same_shape(ours, theirs)
        assert [type(ours[key]) for key in ("id", "title", "updated_at", "status")] == [int, str, str, str]
        assert all(type(v["inventory_item_id"]) is int and type(v["price"]) is str for v in ours["variants"])


@pytest.mark.shared_data("data/shopify-webhooks")
def test_images_media_and_options_have_the_fields_of_shopifys_exemplar() -> None:
    theirs = sample("exemplars/2025-04/products/1.json")
    shop, webhooks = stocked()
    ours = [body_of(product, webhooks) for product in shop.products.values()]
    for part in ("images", "media", "options"):
        items = [item for body in ours for item in body[part]]
        assert len(items) > 50
        for item in items:
            assert item.keys() == theirs[part][0].keys()
    pictured = [body for body in ours if body["images"]]
    assert all(body["image"] == body["images"][0] for body in pictured)
    for body in pictured:
        for variant in body["variants"]:
            owners = [image["id"] for image in body["images"] if variant["id"] in image["variant_ids"]]
            assert owners == ([variant["image_id"]] if variant["image_id"] else [])


@pytest.mark.shared_data("data/shopify-webhooks")
def test_deletions_and_levels_have_shopifys_shape() -> None:
    *_, level, deletion = all_kinds()
    assert (
        json.loads(deletion.body).keys()
        == sample("metadatas/2026-04/products__delete.json")["response"].keys()
    )
    assert json.loads(level.body).keys() == sample("exemplars/2025-04/inventory_levels/1.json").keys()


def test_the_receiver_takes_every_delivery_as_usable() -> None:
    for sent in all_kinds():
        kept = delivery(sent.topic, Headers(sent.headers("secret")), sent.body, START + timedelta(hours=1))
        assert (kept["state"], kept["reason"]) == ("ready", None)
        assert (kept["webhook_id"], kept["event_id"]) == (sent.webhook_id, sent.event_id)
        assert (kept["source_store_id"], kept["api_version"]) == (sent.shop, "2026-04")
        assert kept["triggered_at"] is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert all_kinds(1) == all_kinds(1)
    assert not {sent.body for sent in all_kinds(1)} & {sent.body for sent in all_kinds(2)}


def test_the_signature_is_the_one_that_the_receiver_verifies() -> None:
    body = '{"title":"Käsespätzle 🥖"}'.encode()
    assert verify(body, sign(body, "secret"), [b"another", b"secret"])
    assert not verify(body + b" ", sign(body, "secret"), [b"secret"])
    assert not verify(body, sign(body, "Secret"), [b"secret"])


@pytest.mark.parametrize(
    ("gid", "number"),
    [
        (788032119674292922, 788032119674292900),  # the pairs of Shopify's own samples
        (642667041472713922, 642667041472714000),
        (757650484644203962, 757650484644203900),
        (8970540406108, 8970540406108),
    ],
)
def test_huge_ids_are_rounded_as_in_shopifys_samples(gid: int, number: int) -> None:
    assert as_double(gid) == number


def test_a_few_products_have_huge_ids_exact_in_the_gid_only() -> None:
    shop, webhooks = stocked()
    huge = [product for product in shop.products.values() if product.id > 2**53]
    assert 0 < len(huge) < 20
    for product in huge:
        body = body_of(product, webhooks)
        assert body["admin_graphql_api_id"].endswith(f"/{product.id}")
        assert body["id"] != product.id
        assert float(body["id"]) == float(product.id)
        assert all(variant["product_id"] == body["id"] for variant in body["variants"])


def test_check_digits_and_codes() -> None:
    assert [check_digit(digits) for digits in ("400638133393", "978020137962", "000000000000")] == [
        "1",
        "4",
        "0",
    ]
    catalogue = Catalogue(Shop(3, START).rng)
    codes = [catalogue.code() for _ in range(500)]
    assert len(set(codes)) == 500
    assert all(len(code) == 13 and Gtin.parse(code) for code in codes)
    assert any(code.startswith("0") for code in codes)


def test_the_catalogue_is_large_enough_and_speaks_many_scripts() -> None:
    shop, _ = stocked()
    products = list(shop.products.values())
    assert sorted({len(product.variants) for product in products}) == [1, 2, 3, 100]
    assert len(products) == len({product.title for product in products}) == 121
    letters = "".join(product.title for product in products)
    for script in ("ß", "é", "ł", "Φ", "味", "ت", "ж", "म", "🥑"):
        assert script in letters


def test_every_change_makes_the_product_newer() -> None:
    shop, webhooks = stocked()
    product = next(product for product in shop.products.values() if len(product.variants) == 3)
    variant = product.variants[0]
    seen = [body_of(product, webhooks)["updated_at"]]
    changes: tuple[Callable[[], None], ...] = (
        lambda: shop.rename(product, "Other"),
        lambda: shop.set_price(product, variant, "9.99"),
        lambda: shop.set_barcode(product, variant, None),
        lambda: shop.set_status(product, "draft"),
        lambda: shop.remove_variant(product, variant),
        lambda: shop.touch(product),
    )
    for change in changes:
        change()
        seen.append(body_of(product, webhooks)["updated_at"])
    assert seen == sorted(set(seen))
    body = body_of(product, webhooks)
    assert (body["title"], body["status"], body["published_at"]) == ("Other", "draft", None)
    assert len(body["variants"]) == len(body["variant_gids"]) == 2


def test_beyond_100_variants_only_the_gids_are_complete() -> None:
    shop = Shop(1, START)
    sizes = [(f"{n} g",) for n in range(150)]
    product = shop.catalogue.product(
        shop.now, "Sugar", vendor="V", product_type="T", option_names=["Size"], options=sizes
    )
    shop.add(product)
    shop.set_price(product, product.variants[149], "5.00")
    body = body_of(product, Webhooks(shop))
    assert [variant["title"] for variant in body["variants"]] == [f"{n} g" for n in range(100)]
    gids = [gid["admin_graphql_api_id"] for gid in body["variant_gids"]]
    assert len(gids) == 150
    assert gids[0].endswith(f"/{product.variants[149].id}")
