"""Where a product comes from: an attribute that WooCommerce's shops say, and other sources never do."""

from typing import Any

import pytest

from esl_pipeline.sandbox.woocommerce.shop import Shop
from esl_pipeline.sources.woocommerce.facts import read_deliveries
from esl_pipeline_tests.sources.woocommerce.support import SHOP, body_of, delivered, hours, read
from esl_pipeline_tests.world import SHOP as OTHER_SHOP
from esl_pipeline_tests.world import World, product

KEY = {"source_system": "woocommerce", "source_store_id": SHOP}


def tea(*attributes: Any, minutes: int = 0) -> dict[str, Any]:
    """Tea with these attributes, saved so many minutes after an hour ago."""
    shop = Shop(start=hours(-1 + minutes / 60))
    return body_of(shop.add("Tea", "2.50", gtin="4006381333931")) | {"attributes": list(attributes)}


def attribute(name: str, *options: Any) -> dict[str, Any]:
    return {"id": 0, "name": name, "visible": True, "variation": False, "options": list(options)}


@pytest.mark.parametrize(
    ("attributes", "origin"),
    [
        ([attribute("Herkunft", "Italien")], "Italien"),
        ([attribute("Size", "1 kg"), attribute(" ORIGIN ", "Spain", "Morocco")], "Spain, Morocco"),
        ([attribute("Size", "1 kg")], None),
        ([attribute("origin")], None),
        (["odd", None, {"name": None}, {"name": "origin", "options": "Spain"}], None),
    ],
)
def test_the_origin_is_an_attribute_of_that_name(attributes: list[Any], origin: str | None) -> None:
    assert read(tea(*attributes)).products[0]["origin"] == origin


def test_without_a_list_of_attributes_nothing_is_said_of_it() -> None:
    assert "origin" not in read(tea() | {"attributes": None}).products[0]


def test_the_origin_is_on_the_label_and_follows_the_shop(world: World) -> None:
    policy = {"title_template": "{title}[ from {origin}]"}
    world.buffer.mapping_create(KEY | {"hipoink_store_code": "W1", "settings": policy})

    def told(*attributes: Any, minutes: int) -> str:
        facts = read_deliveries([delivered(1, tea(*attributes, minutes=minutes))])
        world.buffer.variants_merge(
            claim_id=None, products=facts.products, variants=facts.variants, levels=facts.levels, events=[]
        )
        world.settle()
        return str(world.labels("W1")["4006381333931"]["pn"])

    assert told(minutes=0) == "Tea"
    assert told(attribute("Herkunft", "Assam"), minutes=1) == "Tea from Assam"
    assert told(attribute("Herkunft", "Nepal"), minutes=2) == "Tea from Nepal"
    assert told(minutes=3) == "Tea"


def test_what_a_source_never_says_is_not_waited_for(world: World) -> None:
    world.map(settings={"title_template": "{title}[ from {origin}]"})
    world.settle(product(1, vendor="Hill"))
    assert len(world.labels()) == 1
    shop = {"source_system": "shopify", "source_store_id": OTHER_SHOP}
    assert world.buffer.missing_variants(shop=shop, after=None) == []
