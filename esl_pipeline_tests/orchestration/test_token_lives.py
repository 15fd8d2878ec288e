"""Tokens that live for seconds: nights and catch-ups end right, with as many token requests as lives."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from esl_pipeline.sandbox.shopify.faults import BulkSlow
from esl_pipeline.sandbox.shopify.oauth import App
from esl_pipeline.sandbox.shopify.sandbox import VariantEdit
from esl_pipeline.sandbox.shopify.server import RunningShopify, running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop, real_time, stocked_shop
from esl_pipeline.sources.shopify.admin.tokens import forget_tokens
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import STORE, map_shop
from esl_pipeline_tests.sandbox.shopify.support import small_shop

RENEWED_AFTER = 0.9
KEY = f"shopify:{DOMAIN}"


@contextmanager
def opened(shop: Shop, monkeypatch: pytest.MonkeyPatch, life: float) -> Iterator[RunningShopify]:
    """A sandbox whose only way in is the app's."""
    shop.clock = real_time
    with running_shopify(shop, app=App("an-app", ["secret"], expires_in=life)) as shopify:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", shopify.url)
        monkeypatch.setenv("SHOPIFY_APPS", f"{DOMAIN}=an-app:secret")
        yield shopify
    forget_tokens()


def a_night_and_a_day(pipeline: Pipeline, shopify: RunningShopify, life: float) -> str:
    """Labels are right after a night, and after what the day changed; token requests are as many as lives, at most."""
    map_shop(pipeline.buffer, DOMAIN, settings={"expected_currency": "EUR", "guard_share_pct": 100})
    pipeline.instance.add_dynamic_partitions("shops", [KEY])
    began = time.monotonic()
    night = pipeline.definitions.resolve_job_def("full_reconciliation")
    assert night.execute_in_process(instance=pipeline.instance, partition_key=KEY).success
    assert wrong(pipeline, shopify.sandbox.shop) == {}
    products = [p for p in shopify.sandbox.shop.products.values() if p.status == "active"][:50]
    for number, product in enumerate(products):
        shopify.sandbox.edit_variant(product, product.variants[0], VariantEdit(price=f"{number + 7}.77"))
    day = pipeline.definitions.resolve_job_def("catch_up")
    assert day.execute_in_process(instance=pipeline.instance).success
    pipeline.drain()
    assert wrong(pipeline, shopify.sandbox.shop) == {}
    seconds = time.monotonic() - began
    requests = shopify.sandbox.app.requests()
    assert 2 <= requests == shopify.sandbox.app.requests("granted") <= 1 + seconds / (life * RENEWED_AFTER)
    return f"{seconds:.0f} s, {requests} token requests"


def wrong(pipeline: Pipeline, shop: Shop) -> dict[str, Any]:
    """What hangs with another price than the shop says, by code."""
    labels = pipeline.labels(STORE)
    wanted = {
        variant.barcode: f"{float(variant.price or 0):.2f}"
        for product in shop.products.values()
        for variant in product.variants
        if product.status == "active" and not product.gift_card and variant.barcode
    }
    shown = {code: labels.get(code, {}).get("pp") for code in wanted}
    return {code: (shown[code], price) for code, price in wanted.items() if shown[code] != price}


@pytest.mark.long
def test_a_night_and_a_catch_up_outlive_their_tokens(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(small_shop(), monkeypatch, life=0.6) as shopify:
        a_night_and_a_day(pipeline, shopify, life=0.6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_night_and_a_catch_up_of_10000_variants_with_tokens_of_five_seconds(
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HIPOINK_BATCH_SIZE", "500")
    with opened(stocked_shop(3, variants=10_000), monkeypatch, life=5) as shopify:
        shopify.sandbox.faults.replace([BulkSlow(seconds=10, times=1)])
        print(a_night_and_a_day(pipeline, shopify, life=5))
