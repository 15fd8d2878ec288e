"""A label server that answers late, never, or with a refusal: what the labels and the audit show afterwards."""

import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.shop import DOMAIN, stocked_shop
from esl_pipeline.sources.shopify.admin import AdminAuthenticationError, AdminClient
from esl_pipeline.sources.shopify.reader import ShopifyReader
from esl_pipeline.stages.snapshot import read_snapshot
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.reliability.chaos import ChaosProxy, LimitData, ResetPeer, Timeout, Toxic
from esl_pipeline_tests.sandbox.shopify.support import running as running_shop
from esl_pipeline_tests.world import RUN, STORE, World, product, variant

pytestmark = pytest.mark.long

OTHER_SHOP, OTHER_STORE = "other-shop.myshopify.com", "S2"


@pytest.fixture
def proxied(world: World, labels_proxy: ChaosProxy) -> Iterator[World]:
    """The world, with its label server behind the proxy."""
    with client_of(f"http://127.0.0.1:{labels_proxy.port}", retries=1, timeout_seconds=0.5) as client:
        world.client = client
        yield world


@pytest.mark.parametrize(
    "toxic",
    [Timeout(way="down"), ResetPeer(way="down"), LimitData(20, way="down")],
    ids=["silence", "reset", "half an answer"],
)
def test_f16_a_push_without_an_answer_is_unknown_and_repeated_as_it_was(
    proxied: World, labels_proxy: ChaosProxy, toxic: Toxic
) -> None:
    proxied.map()
    proxied.settle(product(1, 1, [variant(price="1.00")]))
    labels_proxy.toxics = (toxic,)
    proxied.update(product(1, 2, [variant(price="2.00")]))
    proxied.round(initial_delay=60, max_delay=60)
    assert proxied.prices() == {"C-1": "2.00"}, "the server took it, and nobody heard of it"
    assert proxied.outcomes("C-1")[-1] == "unknown"
    assert proxied.queue()["C-1"]["in_doubt"] is True

    labels_proxy.toxics = ()
    proxied.sql("update esl.sync_queue set next_attempt_at = now()")
    proxied.settle()

    assert proxied.outcomes("C-1") == ["accepted", "unknown", "accepted"]
    first, again = proxied.sandbox.state()["history"][STORE]["C-1"][1:]
    assert first["record"] == again["record"]
    assert proxied.queue() == {}
    intents = proxied.sql("select label_hash from esl.sync_log where kind = 'intent' order by id")
    assert len(intents) == 3 and intents[1] == intents[2]


@pytest.mark.parametrize("times", [1, 6], ids=["once", "for a while"])
def test_f36_credentials_refused_for_a_while_pause_one_store_and_cost_no_label_an_attempt(
    world: World, times: int
) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    # Refused in the middle: the store has passed, so that it may be about the batch, until nothing passes any more.
    world.update(product(1, 1, [variant(n) for n in range(1, 7)]))
    world.round(batch_size=2, pause=0.5)
    assert len(world.prices()) == 6
    world.sandbox.faults({"kind": "error", "error_msg": "invalid sign", "store": STORE, "times": times})
    world.update(product(1, 2, [variant(n, price="1.20") for n in range(1, 7)]))
    world.update(product(7), shop=OTHER_SHOP)
    began = time.monotonic()
    world.round(batch_size=2, pause=0.5, max_attempts=1)
    assert world.prices(OTHER_STORE) == {"C-7": "1.00"}, "the other store goes on"
    assert {row["attempts"] for row in world.queue().values()} <= {0}
    world.settle(batch_size=2, max_attempts=1)
    assert (time.monotonic() - began >= 0.5) or times == 1
    assert set(world.prices().values()) == {"1.20"} and len(world.prices()) == 6
    refused = sum(world.outcomes(f"C-{n}").count("authentication") for n in range(1, 7))
    assert refused == 2 if times == 1 else refused >= times
    assert world.queue() == {}


def test_f36_a_token_that_shopify_refuses_once_ends_the_read_and_removes_nothing(world: World) -> None:
    shop = stocked_shop(1, variants=30)
    key = {"source_system": "shopify", "source_store_id": DOMAIN}
    world.map(DOMAIN)
    with (
        running_shop(shop) as shopify,
        AdminClient(shopify.url, SecretStr(TOKEN), "2026-10", sleep=lambda _: time.sleep(0.01)) as admin,
    ):
        reader = ShopifyReader(admin, DOMAIN, sleep=lambda _: time.sleep(0.01))
        read_snapshot(world.buffer, reader, shop=key, run_id=RUN)
        world.settle()
        before = world.prices()
        assert before
        shopify.faults({"kind": "unauthorized", "times": 1})
        with pytest.raises(AdminAuthenticationError):
            read_snapshot(world.buffer, reader, shop=key, run_id=RUN)
        world.settle()
        assert world.prices() == before
        read_snapshot(world.buffer, reader, shop=key, run_id=RUN)
    world.settle()
    assert world.prices() == before
    states = world.sql("select state from esl.snapshots order by started_at")
    assert [row["state"] for row in states] == ["finished", "abandoned", "finished"]
