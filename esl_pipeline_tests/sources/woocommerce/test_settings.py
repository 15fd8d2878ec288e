"""Shops' names, keys and secrets: whose they are, all that is wrong at once, and no value in any message."""

from datetime import UTC, datetime

import pytest

from esl_pipeline.settings import SettingsError, load_settings
from esl_pipeline.sources.secrets import keys_for, proves
from esl_pipeline.sources.source import SourceError
from esl_pipeline.sources.woocommerce.settings import Key, WooCommerceSettings
from esl_pipeline.sources.woocommerce.shop_names import address, is_here, shop_id, shop_named
from esl_pipeline.sources.woocommerce.source import WooCommerceSource

A, B = "shop.example.com", "example.com/shop"
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def settings(**fields: str) -> WooCommerceSettings:
    return load_settings(**fields).of(WooCommerceSettings)


def problems(**fields: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(**fields)
    assert "canary" not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "shop"),
    [
        ("shop.example.com", A),
        ("https://Shop.Example.com/", A),
        ("http://shop.example.com", A),
        ("https://example.com/Shop/", B),
        ("http://127.0.0.1:8040/", "127.0.0.1:8040"),
        ("localhost:8040/shop", "localhost:8040/shop"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("shop", None),
        ("", None),
        ("https://", None),
        ("bücher.example", None),
        ("shop.example.com:8443", None),
        ("10.0.0.7:80", None),
        ("shop.example.com/../wp", None),
        ("shop.example.com/a b", None),
        ("shop.example.com?x", None),
        ("user@shop.example.com", None),
        ("shop.example.com\n", None),
        ("-shop.example.com", None),
        ("ftp://shop.example.com", None),
    ],
)
def test_a_shop_is_host_and_path_of_its_site(text: str, shop: str | None) -> None:
    assert shop_id(text) == shop
    assert shop is None or shop_id(shop) == shop


def test_people_may_write_the_address_of_an_admin_page() -> None:
    assert shop_named(" https://example.com/shop/wp-admin/admin.php?page=wc-settings ") == B


def test_a_shop_is_reached_over_https_but_on_this_machine() -> None:
    assert address(A) == f"https://{A}"
    assert address("127.0.0.1:8040") == "http://127.0.0.1:8040"
    assert not is_here("127.0.0.1.example.com")
    assert address("localhost.example.com") == "https://localhost.example.com"


def test_keys_are_by_shop() -> None:
    found = settings(
        woocommerce_keys=f"https://{A}/=ck_aaaaaaaa:cs_aaaaaaaa, {B}=ck_bbbbbbbb:cs_bbbbbbbb"
    ).keys
    assert found == {A: Key("ck_aaaaaaaa", "cs_aaaaaaaa"), B: Key("ck_bbbbbbbb", "cs_bbbbbbbb")}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (" , ", "holds only commas"),
        ("ck_canary00:cs_canary00", "entry 1 names its shop wrongly"),
        ("canary=ck_canary00:cs_canary00", "entry 1 names its shop wrongly"),
        (f"{A}=ck_canary00", "entry 1 holds no key"),
        (f"{A}=cs_canary00:ck_canary00", "entry 1 holds no key"),
        (f"{A}=ck_canary00:cs_canary00,{A}=ck_canary00:cs_canary00", f"entry 2 is a second key for {A}"),
    ],
)
def test_a_wrong_key_is_named_by_its_number(value: str, problem: str) -> None:
    (said,) = problems(woocommerce_keys=value)
    assert problem in said


def test_everything_wrong_is_said_at_once() -> None:
    said = problems(
        woocommerce_keys="canary",
        woocommerce_webhook_secret="https://canary=x",
        woocommerce_url="https://canary.example.com",
    )
    assert [line.partition(":")[0] for line in said] == [
        "WOOCOMMERCE_KEYS",
        "WOOCOMMERCE_WEBHOOK_SECRET",
        "WOOCOMMERCE_URL",
    ]


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://shop.example.com", "http://10.0.0.1"])
def test_the_sandboxes_address_is_on_this_machine(url: str) -> None:
    (said,) = problems(woocommerce_url=url)
    assert "http:// to this machine" in said


def test_a_secret_may_be_bound_to_a_shop_and_end() -> None:
    found = settings(
        woocommerce_webhook_secret=f"{A}=own=with=signs@2026-12-01,shared,gone@2026-01-01"
    ).webhook_secrets
    assert keys_for(found, A, NOW) == [b"own=with=signs"]
    assert keys_for(found, B, NOW) == [b"shared"]
    assert proves(found, A)
    assert not proves(found, B)


def test_a_secret_that_holds_an_equals_sign_is_no_shop() -> None:
    (secret,) = settings(woocommerce_webhook_secret="a=b").webhook_secrets
    assert (secret.key, secret.shop) == (b"a=b", None)


def test_warnings_name_what_is_missing_and_what_ends() -> None:
    assert "no webhook of WooCommerce" in next(settings().warnings())
    (said,) = settings(woocommerce_webhook_secret=f"{A}=canary@2026-01-01").warnings()
    assert "entry 1 of WOOCOMMERCE_WEBHOOK_SECRET (for shop.example.com) expired" in said
    assert "canary" not in said


def test_a_shop_without_a_key_is_not_read() -> None:
    source = WooCommerceSource(settings(woocommerce_keys=f"{A}=ck_canary00:cs_canary00"))
    assert (source.opens(A), source.opens(B), source.reads_any) == (True, False, True)
    with pytest.raises(
        SourceError, match=r"no key of the REST API for example\.com/shop: set WOOCOMMERCE_KEYS"
    ):
        source.reader(B)
    assert source.not_readable([A, B]) == [B]
    assert "canary" not in f"{source.settings!r}"


def test_images_come_from_the_shops_own_host() -> None:
    assert WooCommerceSource.image_hosts(B) == ("example.com",)
    assert WooCommerceSource.image_hosts("127.0.0.1:8040/x") == ("127.0.0.1",)
