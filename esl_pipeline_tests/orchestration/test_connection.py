"""The daily check shopify_connection in Dagster: every shop by itself, whatever is wrong with the others."""

from collections.abc import Iterator

import dagster as dg
import pytest

from esl_pipeline.orchestration.connection import evaluate
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, CLIENT_SECRET, SCOPES, AppEdit
from esl_pipeline.sandbox.shopify.sandbox import TOKEN, ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.admin import AdminError
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline.sources.shopify.subscriptions import WANTED
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import (
    KEY,
    OTHER_KEY,
    OTHER_SHOP,
    OTHER_STORE,
    SHOP,
    arrive,
    map_shop,
    product,
)
from esl_pipeline_tests.receiver.support import LIFECYCLE_BODIES, deliver, make_app
from esl_pipeline_tests.sandbox.shopify.support import small_shop

pytestmark = pytest.mark.long

OURS = {"source_system": "shopify", "source_store_id": SHOP}
BASE = "https://hooks.example.com"


@pytest.fixture
def shopify(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShopifySandbox]:
    with running_shopify(small_shop(), token=TOKEN) as running:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", running.url)
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{SHOP}={TOKEN},{OTHER_SHOP}=another")
        monkeypatch.setenv("APP_BASE_URL", BASE)
        yield running.sandbox


def check(pipeline: Pipeline) -> dict[str, tuple[bool, str]]:
    """One daily run -> per shop, whether it passed and what was said."""
    job = pipeline.definitions.resolve_job_def("shopify_connections")
    result = job.execute_in_process(instance=pipeline.instance)
    found = result.get_asset_check_evaluations()
    assert result.success
    assert {(one.asset_key.to_user_string(), one.check_name) for one in found} <= {
        ("shopify_products", "shopify_connection")
    }
    return {str(one.partition): (one.passed, one.description or "") for one in found}


def test_one_shops_trouble_is_nobody_elses(pipeline: Pipeline, shopify: ShopifySandbox) -> None:
    assert check(pipeline) == {}
    for topic in WANTED:
        shopify.shop.subscriptions.add(topic, f"{BASE}/webhooks/shopify")
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    pipeline.buffer.connection_set(OURS, "api", "anna")
    arrive(pipeline.buffer, product(1))
    found = check(pipeline)
    assert found[KEY][0] and "is reachable" in found[KEY][1] and "awaited" not in found[KEY][1]
    assert not found[OTHER_KEY][0] and f"{OTHER_SHOP} refuses the access token" in found[OTHER_KEY][1]

    shopify.shop.subscriptions.clear()
    passed, says = check(pipeline)[KEY]
    assert not passed and "nothing is subscribed for products/create" in says

    # Whoever has ended is watched no longer, unless labels are still meant to follow it.
    pipeline.buffer.connection_end(OURS, "anna")
    for mapping in pipeline.buffer.mapping_list():
        pipeline.buffer.mapping_update(mapping["id"], {"is_active": False})
    assert check(pipeline) == {}


TROUBLES = {
    "client id or secret": AppEdit(secrets=["another"], end_tokens=True),
    "is not installed in": AppEdit(installed=False),
    "another organisation": AppEdit(same_organisation=False, end_tokens=True),
    "lacks the scope read_locations": AppEdit(scopes=["read_products", "read_inventory"]),
    "is frozen (HTTP 402)": AppEdit(frozen=True),
    "is called new-name.myshopify.com now": AppEdit(renamed_to="new-name.myshopify.com"),
}
GOOD = AppEdit(
    secrets=[CLIENT_SECRET],
    installed=True,
    same_organisation=True,
    scopes=list(SCOPES),
    frozen=False,
    renamed_to="",
)


def test_each_way_to_be_let_in_no_more_is_one_sentence(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an app's id and secret; the sentence is the one that a run fails with."""
    monkeypatch.delenv("SHOPIFY_ADMIN_TOKEN")
    monkeypatch.setenv("SHOPIFY_API_KEY", CLIENT_ID)
    monkeypatch.setenv("SHOPIFY_API_SECRET", CLIENT_SECRET)
    map_shop(pipeline.buffer)
    assert check(pipeline)[KEY][0]
    for says, trouble in TROUBLES.items():
        shopify.app.edit(trouble)
        passed, said = check(pipeline)[KEY]
        assert not passed and says in said and CLIENT_SECRET not in said
        client = load_settings().sources["shopify"].open_admin(SHOP)
        assert client is not None
        # Of a scope a run tells when it needs it.
        with client, pytest.raises(AdminError) as error:
            client.execute("{ locations(first: 1) { nodes { name } } }")
        assert str(error.value) == said
        shopify.app.edit(GOOD)
        assert check(pipeline)[KEY][0]


def test_an_uninstalled_app_ends_the_connection(pipeline: Pipeline, shopify: ShopifySandbox) -> None:
    mapping = map_shop(pipeline.buffer)
    pipeline.buffer.connection_set(OURS, "toml", "anna")
    pipeline.sql("update esl.store_mappings set activated_at = '2026-01-01'")
    pipeline.sql("update esl.connections set connected_at = '2026-01-01'")
    arrive_lifecycle(pipeline)
    (row,) = pipeline.buffer.connection_list()
    assert row["subscriptions"] is None and row["ended_by"].startswith("app/uninstalled of 2026-03-01")
    assert check(pipeline) == {}  # switched off by the same message, which is an alarm of its own
    pipeline.buffer.mapping_update(mapping["id"], {"is_active": True})
    passed, says = check(pipeline)[KEY]
    assert not passed and says.startswith("its connection was ended by app/uninstalled of 2026-03-01")


def arrive_lifecycle(pipeline: Pipeline) -> None:
    app = make_app(pipeline.buffer)  # type: ignore[arg-type]
    assert deliver(app, "app/uninstalled", LIFECYCLE_BODIES["app/uninstalled"]).status_code == 200


def test_a_shop_that_nothing_opens_while_others_are(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{SHOP}={TOKEN}")
    passed, says = check(pipeline)[OTHER_KEY]
    assert not passed and says == ShopifySource.opens_others
    monkeypatch.delenv("SHOPIFY_ADMIN_TOKEN")
    assert check(pipeline)[OTHER_KEY][0]  # no shop is read at all, on purpose


def test_what_goes_wrong_on_the_way_is_told_by_the_shops_own_check(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    (row,) = pipeline.buffer.connection_list()
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", TOKEN)
    result = evaluate(Sources(load_settings()), row | {"source_store_id": "nowhere.example"})
    assert not result.passed and "'nowhere.example' is no shop's domain" in (result.description or "")


def test_it_can_be_asked_for_by_materializing_the_shop(pipeline: Pipeline, shopify: ShopifySandbox) -> None:
    map_shop(pipeline.buffer)
    job = dg.define_asset_job("one", dg.AssetSelection.assets("shopify_products"))
    more = dg.Definitions.merge(pipeline.definitions, dg.Definitions(jobs=[job]))
    result = more.resolve_job_def("one").execute_in_process(instance=pipeline.instance, partition_key=KEY)
    found = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert found["shopify_connection"].passed
    assert "is reachable" in (found["shopify_connection"].description or "")
