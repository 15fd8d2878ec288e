"""What is said of a shop's connection, by what the sandbox answers over real HTTP and by what has arrived."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from esl_pipeline.refused import refused_sentence
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.subscriptions import Subscriptions
from esl_pipeline.sources.shopify.admin import AdminClient
from esl_pipeline.sources.shopify.subscriptions import WANTED, compare, mend, read_subscriptions
from esl_pipeline.sources.shopify.watch import WEBHOOKS_VERSION, Verdict, watch
from esl_pipeline_tests.sandbox.shopify.support import Running

SHOP = "corner-market.myshopify.com"
BASE = "https://hooks.example.com"
HERE = f"{BASE}/webhooks/shopify"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PATIENCE = timedelta(hours=24)


def ago(**since: float) -> str:
    return (NOW - timedelta(**since)).isoformat()


def a_row(**changes: Any) -> dict[str, Any]:
    """A healthy shop, as Buffer.connection_list tells of it."""
    return {
        "source_system": "shopify",
        "source_store_id": SHOP,
        "subscriptions": "api",
        "connected_at": ago(days=9),
        "connected_by": "anna",
        "ended_at": None,
        "ended_by": None,
        "first_webhook_at": ago(days=8),
        "last_webhook_at": ago(hours=1),
        "last_api_version": WEBHOOKS_VERSION,
        "is_active": True,
        "refused": 0,
        "refused_since": None,
        "last_refused_at": None,
    } | changes


def judged(client: AdminClient | None, base_url: str | None = BASE, **changes: Any) -> Verdict:
    return watch(a_row(**changes), client, base_url=base_url, patience=PATIENCE, now=NOW)


@pytest.fixture
def there(served: Running) -> Subscriptions:
    """All that is wanted."""
    served.shop.subscriptions.clear()
    for topic in WANTED:
        served.shop.subscriptions.add(topic, HERE)
    return served.shop.subscriptions


@pytest.fixture
def client(served: Running) -> Iterator[AdminClient]:
    with AdminClient(served.url, SecretStr(TOKEN), "2026-10", shop=SHOP) as client:
        yield client


def test_a_healthy_shop(client: AdminClient, there: Subscriptions) -> None:
    verdict = judged(client)
    assert verdict.problems == ()
    assert verdict.remarks[0].startswith(f"{SHOP} is reachable: prices in EUR with taxes")


@pytest.mark.parametrize("trouble", ["one topic short", "doubled", "old address", "none at all"])
def test_what_is_wrong_with_subscriptions_is_found_and_connect_mends_it(
    client: AdminClient, there: Subscriptions, trouble: str
) -> None:
    first = there.of("products/update")[0]
    if trouble in ("one topic short", "old address"):
        there.remove(first.id)
    if trouble in ("doubled", "old address"):
        there.add("products/update", "https://old.example.com/webhooks/shopify")
    if trouble == "none at all":
        there.clear()
    (problem,) = judged(client).problems
    assert "products/update" in problem and problem.endswith(
        f": esl-pipeline shopify connect {SHOP} mends it"
    )
    assert judged(client, subscriptions=None).problems == ()  # whose nobody has connected
    list(mend(client, compare(read_subscriptions(client), HERE)))
    assert judged(client).problems == ()


def test_subscriptions_of_the_app_are_in_no_list_and_doubled_by_ours(
    client: AdminClient, there: Subscriptions
) -> None:
    (problem,) = judged(client, base_url=None, subscriptions="toml").problems
    assert problem.startswith(f"{len(WANTED)} subscriptions made by API double those of shopify.app.toml")
    there.clear()
    there.declare(WANTED, "https://old.example.com/webhooks/shopify")
    assert judged(client, subscriptions="toml").problems == ()
    there.declare((), HERE)


def test_where_webhooks_should_go_must_be_known(client: AdminClient, there: Subscriptions) -> None:
    (problem,) = judged(client, base_url=None).problems
    assert problem.startswith("APP_BASE_URL is not set")
    (problem,) = judged(client, base_url="http://hooks.example.com").problems
    assert "https://" in problem


def test_a_refused_token_is_the_one_sentence_that_the_error_is(served: Running) -> None:
    with AdminClient(served.url, SecretStr("another"), "2026-10", shop=SHOP) as client:
        (problem,) = judged(client).problems
        with pytest.raises(Exception) as error:
            read_subscriptions(client)
    assert problem == str(error.value)


def test_an_admin_version_that_falls_forward(served: Running, there: Subscriptions) -> None:
    with AdminClient(served.url, SecretStr(TOKEN), "2025-01", shop=SHOP) as client:
        (problem,) = judged(client).problems
    assert "has retired Admin API 2025-01 and answers with 20" in problem


@pytest.mark.parametrize("version", ["2026-01", "2025-10"])
def test_an_old_webhooks_version_and_where_it_is_set(version: str) -> None:
    (problem,) = judged(None, subscriptions="toml", last_api_version=version).problems
    assert (
        f"of version {version}" in problem
        and "Dev Dashboard" in problem
        and "not to a subscription" in problem
    )


@pytest.mark.parametrize("version", ["2026-04", "2026-10", "2027-01", "unstable", None])
def test_a_webhooks_version_that_is_read(version: str | None) -> None:
    assert judged(None, subscriptions="toml", last_api_version=version).problems == ()


def test_the_first_webhook_is_awaited_and_missed() -> None:
    waiting = {"first_webhook_at": None, "last_webhook_at": None, "last_api_version": None}
    patient = judged(None, subscriptions="toml", connected_at=ago(hours=23), **waiting)
    assert (
        patient.problems == ()
        and patient.remarks[-1] == "its first webhook since 2026-02-28 13:00Z is awaited"
    )
    (toml,) = judged(None, subscriptions="toml", connected_at=ago(hours=25), **waiting).problems
    assert toml.startswith("no webhook has come since it was connected at 2026-02-28 11:00Z: was the version")
    assert "APP_BASE_URL" in judged(None, connected_at=ago(hours=25), **waiting).problems[-1]
    assert judged(None, subscriptions=None, connected_at=None, **waiting).problems == ()


def test_a_connection_that_has_ended_while_its_store_is_active() -> None:
    ended = {"subscriptions": None, "ended_at": ago(days=1), "ended_by": "app/uninstalled of 2026-02-28"}
    (problem,) = judged(None, **ended).problems
    assert "ended by app/uninstalled" in problem and f"esl-pipeline shopify connect {SHOP}" in problem
    assert judged(None, is_active=False, **ended).problems == ()


def test_without_app_and_token_subscriptions_cannot_be_compared() -> None:
    assert judged(None, subscriptions="toml").problems == ()
    (problem,) = judged(None).problems
    assert "neither an app nor a token" in problem


def test_wrong_signatures_are_a_problem_until_a_good_one_comes() -> None:
    refused = {"refused": 5, "refused_since": ago(minutes=61), "last_refused_at": ago(minutes=5)}
    (problem,) = judged(None, subscriptions="toml", last_webhook_at=ago(hours=3), **refused).problems
    assert problem.startswith("5 refused since 10:59: wrong secret?")
    assert judged(None, subscriptions="toml", last_webhook_at=ago(minutes=1), **refused).problems == ()


def test_the_sentence_on_wrong_signatures() -> None:
    def said(accepted_at: str | None) -> str:
        return refused_sentence(5, ago(hours=13, minutes=1), ago(minutes=9), accepted_at, now=NOW)

    assert said(None).startswith("5 refused since 2026-02-28 22:59: wrong secret?")
    assert said(ago(hours=20)) == said(None)
    assert "others were accepted" in said(ago(hours=2)) and "wrong secret" not in said(ago(hours=2))
    assert said(ago(minutes=1)).endswith("but the newest webhook was accepted")


def test_times_are_told_in_utc_whatever_the_buffer_speaks() -> None:
    (problem,) = judged(
        None, subscriptions="toml", connected_at="2026-02-20T12:00:00+05:00", first_webhook_at=None
    ).problems
    assert "since it was connected at 2026-02-20 07:00Z" in problem
