"""The real client of the Admin API against the pretend one: what it reads is what the shop has."""

import pytest
from pydantic import SecretStr

from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sources.shopify.admin import catalogue
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import BulkOperationFailedError, IncompleteDownloadError
from esl_pipeline_tests.sandbox.shopify.support import Running, running

SHOP = "corner-market.myshopify.com"


def client_of(shopify: Running) -> AdminClient:
    return AdminClient(shopify.url, SecretStr(TOKEN), "2026-10", sleep=lambda _: None)


def test_it_reads_the_catalogue_through_broken_and_expired_downloads() -> None:
    with running() as shopify, client_of(shopify) as client:
        shopify.faults(
            {"kind": "broken_download", "times": 2},
            {"kind": "expired_url", "times": 1},
            {"kind": "throttled", "times": 1},
        )
        facts = list(catalogue.read_catalogue(client, shop=SHOP, chunk=100, sleep=lambda _: None))
        read = {row["variant_id"]: row["price"] for part in facts for row in part.variants}
        fired = [rule["fired"] for rule in shopify.http.get("/sandbox/faults").json()]
    assert read == {
        str(variant.id): variant.price
        for product in shopify.shop.products.values()
        for variant in product.variants
    }
    assert fired == [2, 1, 1]


def test_it_takes_no_cut_and_no_partial_result() -> None:
    with running() as shopify, client_of(shopify) as client:
        shopify.faults({"kind": "cut_download"})
        with pytest.raises(IncompleteDownloadError):
            list(catalogue.read_catalogue(client, shop=SHOP, sleep=lambda _: None))
        shopify.faults({"kind": "bulk_failed", "keep": 0.5})
        with pytest.raises(BulkOperationFailedError):
            list(catalogue.read_catalogue(client, shop=SHOP, sleep=lambda _: None))


@pytest.mark.long
def test_it_reads_all_2048_variants_of_a_product() -> None:
    with running() as shopify, client_of(shopify) as client:
        bolt = shopify.shop.catalogue.bolt(shopify.shop.now)
        shopify.shop.add(bolt)
        facts = catalogue.read_product(client, str(bolt.id), SHOP)
    assert facts is not None
    assert {row["variant_id"] for row in facts.variants} == {str(variant.id) for variant in bolt.variants}
