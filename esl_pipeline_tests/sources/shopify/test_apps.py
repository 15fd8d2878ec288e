"""Which app opens which shop, and what signs its webhooks: from the settings, without a network."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from esl_pipeline.settings import SettingsError, load_settings
from esl_pipeline.sources.secrets import keys_for, proves
from esl_pipeline.sources.shopify.apps import App, app_for, read_apps
from esl_pipeline.sources.shopify.settings import ShopifySettings

A, B, C = (f"{name}.myshopify.com" for name in "abc")
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def problems(**settings: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**settings)
    return caught.value.problems


def test_a_shop_has_its_own_app_or_the_one_of_all() -> None:
    apps = (*read_apps([f"{A}=id-a:new:old", "https://B.myshopify.com/admin = id-b : s "]), App("id", ("s",)))
    assert app_for(apps, A) == App("id-a", ("new", "old"), A)
    assert app_for(apps, B) == App("id-b", ("s",), B)
    assert app_for(apps, C) == App("id", ("s",))
    assert app_for(apps[:2], C) is None


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("canary:s", "names no shop"),
        ("www.example.com=canary:s", "names no shop"),
        ("a=canary", "lacks the app's id or its secret"),
        ("a=:canary", "lacks the app's id or its secret"),
        ("a=canary:s:", "lacks the app's id or its secret"),
        ("a=can ary:s", "characters that no id and no secret has"),
        ("z=canary:s", "second app for z.myshopify.com"),
    ],
)
def test_a_wrong_entry_is_named_by_its_number(entry: str, says: str) -> None:
    (said,) = problems(shopify_apps=f"z=id:s,{entry}")
    assert said.startswith("SHOPIFY_APPS: entry 2 ") and says in said
    assert "canary" not in said and "can ary" not in said


def test_half_a_pair_is_said_with_all_the_other_problems() -> None:
    assert problems(shopify_api_key="id", shopify_apps=",", log_level="x") == [
        "LOG_LEVEL: is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL; correct it, or remove it for the default",
        "SHOPIFY_API_SECRET: is missing while SHOPIFY_API_KEY is set; set both, or neither",
        "SHOPIFY_APPS: holds only commas; write shop.myshopify.com=id:secret, or remove it",
    ]
    assert problems(shopify_api_secret="s") == [
        "SHOPIFY_API_SECRET: is set without SHOPIFY_API_KEY; set both, or neither"
    ]
    assert len(problems(shopify_api_key="two words", shopify_api_secret=",")) == 2


def access(shop: str, **settings: Any) -> str | None:
    found = load_settings(**settings).of(ShopifySettings).admin_access(shop)
    return found.get_secret_value() if isinstance(found, SecretStr) else found and found.client_id


def test_what_is_set_for_a_shop_goes_before_what_is_for_all_and_a_token_before_an_app() -> None:
    everyone = {"shopify_api_key": "id", "shopify_api_secret": "s"}
    assert access(A) is None
    assert access(A, **everyone) == "id"
    assert access(A, **everyone, shopify_admin_token="shpat") == "shpat"
    assert access(A, **everyone, shopify_admin_token="shpat", shopify_apps="a=own:s") == "own"
    assert access(A, **everyone, shopify_admin_token="a=shpat", shopify_apps="a=own:s") == "shpat"
    assert access(B, **everyone, shopify_admin_token="a=shpat", shopify_apps="a=own:s") == "id"
    assert load_settings(shopify_apps="a=own:s").sources["shopify"].not_readable([A, B]) == [B]
    assert load_settings(**everyone).sources["shopify"].not_readable([A, B]) == []


def test_the_apps_secrets_sign_unless_others_are_set() -> None:
    settings = load_settings(
        shopify_api_key="id", shopify_api_secret="new, old", shopify_apps="a=own:mine:mine-before"
    )
    secrets = settings.of(ShopifySettings).webhook_secrets
    assert keys_for(secrets, A, NOW) == [b"mine", b"mine-before"]
    assert keys_for(secrets, B, NOW) == [b"new", b"old"]
    assert proves(secrets, A) and not proves(secrets, B)
    assert not settings.warnings() or "SHOPIFY_WEBHOOK_SECRET" not in " ".join(settings.warnings())
    # For a process that need not know the ids: the same secrets.
    entries = settings.of(ShopifySettings).signing_entries
    assert entries
    same = load_settings(shopify_webhook_secret=entries.get_secret_value())
    assert same.of(ShopifySettings).webhook_secrets == secrets
    assert "id" not in entries.get_secret_value().replace("mine", "")

    by_hand = load_settings(shopify_api_key="id", shopify_api_secret="s", shopify_webhook_secret="hand")
    assert keys_for(by_hand.of(ShopifySettings).webhook_secrets, A, NOW) == [b"hand"]
    assert load_settings().of(ShopifySettings).signing_entries is None


def test_no_app_shows_its_id_or_secret() -> None:
    settings = load_settings(
        shopify_api_key="canary1", shopify_api_secret="canary2", shopify_apps="a=canary3:canary4"
    )
    ours = settings.of(ShopifySettings)
    assert "canary" not in f"{settings!r} {settings} {ours!r} {ours.apps!r} {ours.webhook_secrets!r}"
