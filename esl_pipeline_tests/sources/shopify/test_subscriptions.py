"""A shop's subscriptions: what is wrong with them is said, and set right over the sandbox's real HTTP."""

import tomllib
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.subscriptions import RefusedError, Subscriptions
from esl_pipeline.sources.shopify.admin import AdminClient, AdminQueryError
from esl_pipeline.sources.shopify.subscriptions import (
    WANTED,
    Subscription,
    address_at,
    as_toml,
    compare,
    mend,
    read_subscriptions,
    remove,
)
from esl_pipeline_tests.sandbox.shopify.support import Running, receiving, running, small_shop

HERE = "https://hooks.example.com/webhooks/shopify"
OLD = "https://old.example.com/webhooks/shopify"
ELSEWHERE = "https://somebody.example.com/orders"


@pytest.fixture
def there(served: Running) -> Subscriptions:
    """What the shop has: nothing yet."""
    served.shop.subscriptions.clear()
    return served.shop.subscriptions


@pytest.fixture
def client(served: Running) -> Iterator[AdminClient]:
    with AdminClient(served.url, SecretStr(TOKEN), "2026-10") as client:
        yield client


def all_at(there: Subscriptions, uri: str) -> None:
    for topic in WANTED:
        there.add(topic, uri)


def told(there: Subscriptions) -> list[tuple[str, str]]:
    return sorted((one.topic, one.uri) for one in there.all())


def as_wanted(uri: str = HERE) -> list[tuple[str, str]]:
    return sorted((topic, uri) for topic in WANTED)


def test_an_empty_shop_gets_all_of_them_and_a_second_time_changes_nothing(
    client: AdminClient, there: Subscriptions
) -> None:
    found = compare(read_subscriptions(client), HERE)
    assert found.problems() == [f"nothing is subscribed for {', '.join(WANTED)}"]
    assert list(mend(client, found)) == [f"subscribed {topic}" for topic in WANTED]
    assert told(there) == as_wanted()
    again = compare(read_subscriptions(client), HERE)
    assert again.problems() == [] and len(again.right) == len(WANTED)
    assert list(mend(client, again)) == []


def one_is_missing(there: Subscriptions) -> None:
    all_at(there, HERE)
    there.remove(there.of("inventory_levels/connect")[0].id)


def moved(there: Subscriptions) -> None:
    all_at(there, OLD)


def by_hand(there: Subscriptions) -> None:
    for topic in WANTED:
        there.add(topic, f"{HERE}/{topic}")


def doubled(there: Subscriptions) -> None:
    all_at(there, OLD)
    all_at(there, HERE)


def thin(there: Subscriptions) -> None:
    all_at(there, HERE)
    there.remove(there.of("products/update")[0].id)
    there.add("products/update", HERE, include_fields=("id", "title"))


def thin_elsewhere(there: Subscriptions) -> None:
    one_is_missing(there)
    there.add("inventory_levels/connect", OLD, filter="available:>3")


def as_xml(there: Subscriptions) -> None:
    all_at(there, HERE)
    there.remove(there.of("products/update")[0].id)
    there.add("products/update", HERE, format="XML")


@pytest.mark.parametrize(
    ("wrong", "says", "does"),
    [
        (one_is_missing, "nothing is subscribed for inventory_levels/connect", "subscribed inventory_levels"),
        (moved, f"go to {OLD} instead of {HERE}", f"moved products/create here from {OLD}"),
        (by_hand, f"go to {HERE}/app/uninstalled, ", "moved products/delete here from"),
        (doubled, "are subscribed more than once", f"removed one of app/uninstalled at {OLD}"),
        (thin, "keeps back parts of products/update", "subscribed products/update"),
        (
            thin_elsewhere,
            "keeps back parts of inventory_levels/connect",
            "subscribed inventory_levels/connect",
        ),
        (as_xml, "products/update come as XML instead of JSON", "moved products/update here"),
    ],
)
def test_what_is_wrong_is_said_and_mended(
    client: AdminClient,
    there: Subscriptions,
    wrong: Callable[[Subscriptions], None],
    says: str,
    does: str,
) -> None:
    wrong(there)
    there.add("products/update", ELSEWHERE)
    there.add("orders/create", HERE)
    found = compare(read_subscriptions(client), HERE)
    (problem,) = found.problems()
    assert says in problem
    done = list(mend(client, found))
    assert any(step.startswith(does) for step in done), done
    assert told(there) == sorted([*as_wanted(), ("products/update", ELSEWHERE), ("orders/create", HERE)])
    after = compare(read_subscriptions(client), HERE)
    assert after.problems() == [] and {one.uri for one in after.foreign} == {ELSEWHERE, HERE}
    assert not any(one.narrowed or one.format != "JSON" for one in read_subscriptions(client))


def test_what_shopify_refuses_is_named(client: AdminClient, there: Subscriptions) -> None:
    found = compare([], "ftp://hooks.example.com/webhooks/shopify")
    with pytest.raises(
        AdminQueryError, match=r"\(Address protocol ftp:// is not supported\): nothing is subscribed for prod"
    ):
        list(mend(client, found))
    assert told(there) == []


def test_a_call_that_was_done_already_is_no_trouble(client: AdminClient, there: Subscriptions) -> None:
    """As after an answer that was lost: what is there counts."""
    found = compare(read_subscriptions(client), HERE)
    all_at(there, HERE)
    assert list(mend(client, found)) == []
    assert told(there) == as_wanted()


def test_removing_takes_ours_and_leaves_the_others(client: AdminClient, there: Subscriptions) -> None:
    all_at(there, HERE)
    there.add("products/update", ELSEWHERE)
    ours = compare(read_subscriptions(client), HERE).ours
    assert len(ours) == len(WANTED)
    remove(client, ours)
    remove(client, ours)
    assert told(there) == [("products/update", ELSEWHERE)]


def test_what_shopify_does_not_remove_is_told(
    client: AdminClient, there: Subscriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_at(there, HERE)
    kept = there.of("products/update")[0].id

    def delete(number: int) -> None:
        if number == kept:
            raise RefusedError("Not now")
        there.remove(number)

    monkeypatch.setattr(there, "delete", delete)  # Shopify's own will
    ours = compare(read_subscriptions(client), HERE).ours
    with pytest.raises(AdminQueryError, match=r"refused to remove.*\(Not now\): products/update$"):
        remove(client, ours)
    assert told(there) == [("products/update", HERE)]


def test_more_than_a_page_is_read_whole(client: AdminClient, there: Subscriptions) -> None:
    for number in range(205):
        there.add("products/update", f"{ELSEWHERE}/{number}")
    assert len(read_subscriptions(client)) == 205


def test_the_order_of_the_list_does_not_matter() -> None:
    ones = [Subscription(str(n), "products/update", uri) for n, uri in enumerate([OLD, HERE, HERE, OLD])]
    found = compare(ones, HERE)
    assert compare(reversed(ones), HERE) == found
    assert [one.id for one in found.right] == ["1"] and {one.id for one in found.doubled} == {"0", "2", "3"}


@pytest.mark.parametrize("base", ["http://hooks.example.com", "http://10.0.0.1", "https://user@host"])
def test_an_address_that_shopify_does_not_send_to_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="it has to be https://"):
        address_at(base)
    assert address_at("https://hooks.example.com/esl/") == "https://hooks.example.com/esl/webhooks/shopify"
    assert address_at("http://127.0.0.1:8000") == "http://127.0.0.1:8000/webhooks/shopify"


def test_the_block_for_the_apps_file_has_every_topic_once() -> None:
    block = tomllib.loads(as_toml(HERE, "2026-10"))["webhooks"]
    ordinary, compliance = block["subscriptions"]
    assert block["api_version"] == "2026-10"
    assert ordinary == {"topics": list(WANTED), "uri": HERE}
    assert compliance == {
        "compliance_topics": ["customers/data_request", "customers/redact", "shop/redact"],
        "uri": HERE,
    }


def test_only_what_is_subscribed_is_sent_and_to_its_address() -> None:
    shop = small_shop()
    with (
        receiving() as receiver,
        WebhookSender(None, "quiet", subscriptions=shop.subscriptions) as sender,
        running(shop, sender) as sandbox,
        AdminClient(sandbox.url, SecretStr(TOKEN), "2026-10") as client,
    ):
        product, other, *_ = shop.products.values()
        sandbox.sandbox.delete(other)
        assert sender.wait(5) and sender.attempts()[0].outcome == "unsubscribed"
        list(mend(client, compare([], receiver.url)))
        shop.subscriptions.remove(shop.subscriptions.of("products/create")[0].id)
        shop.subscriptions.declare(["products/delete"], receiver.url + "/of-the-app")
        sandbox.sandbox.delete(product)
        sandbox.sandbox.add(product)
        assert sender.wait(5)
        listed = read_subscriptions(client)
    deletions = {(request.path, request.headers["x-shopify-topic"]) for request in receiver.received}
    assert deletions == {
        ("/webhooks/shopify", "products/delete"),
        ("/webhooks/shopify/of-the-app", "products/delete"),
    }
    assert len({request.headers["x-shopify-webhook-id"] for request in receiver.received}) == 2
    assert len(listed) == len(WANTED) - 1, "what the app's file declares is listed by no API"
