"""A shop's first day by the command, against the pretend Shopify over real HTTP and a real buffer."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands import cli, shared
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, App, AppEdit
from esl_pipeline.sandbox.shopify.sandbox import ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, Shop
from esl_pipeline.sources.shopify.subscriptions import WANTED
from esl_pipeline_tests.orchestration.world import arrive, map_shop, product
from esl_pipeline_tests.sandbox.shopify.support import receiving, small_shop

SECRET = "secret-of-the-first-day"
BASE = "https://hooks.example.com"
HERE = f"{BASE}/webhooks/shopify"


@dataclass
class Done:
    code: int
    out: str
    err: str

    def line(self, what: str) -> str:
        """The only line about this, with its mark."""
        (line,) = [line for line in self.out.splitlines() if line[8:].startswith(f"{what} ")]
        return line


Run = Callable[..., Done]


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, buffer_dsn: str) -> Iterator[ShopifySandbox]:
    """A shop, its app and the settings that know both."""
    with running_shopify(small_shop(), app=App(secrets=[SECRET])) as served:
        monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", served.url)
        monkeypatch.setenv("SHOPIFY_APPS", f"{DOMAIN}={CLIENT_ID}:{SECRET}")
        monkeypatch.setenv("APP_BASE_URL", BASE)
        yield served.sandbox


@pytest.fixture
def shop(sandbox: ShopifySandbox) -> Shop:
    return sandbox.shop


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(shared.out, "width", 200)
    monkeypatch.setattr(shared.err, "width", 200)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["esl-pipeline", "shopify", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert SECRET not in said.out + said.err and "shpat_" not in said.out + said.err
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


def there(shop: Shop) -> list[tuple[str, str]]:
    return sorted((one.topic, one.uri) for one in shop.subscriptions.all() if one.by_api)


def all_here() -> list[tuple[str, str]]:
    return sorted((topic, HERE) for topic in WANTED)


def connection(buffer: Buffer) -> Any:
    (row,) = buffer.connection_list()
    return row


def test_a_shop_is_connected_and_connecting_again_changes_nothing(
    run: Run, shop: Shop, buffer: Buffer
) -> None:
    done = run("connect", "corner-market")
    assert done.code == 0, done
    assert done.line("access").endswith("the app's id and secret are good for a token")
    assert done.line("scopes").endswith("read_inventory, read_locations, read_products: all that is needed")
    assert "Corner Market: prices in EUR with taxes, time zone America/Panama" in done.line("shop")
    assert "Laden Marktplatz (71203456789), Lager Süd (71203456790); for stock" in done.line("locations")
    assert done.line("subscriptions").endswith(f"7 topics go to {HERE}, 7 of them subscribed now")
    assert there(shop) == all_here() and buffer.mapping_list() == []
    first = connection(buffer)
    assert (first["source_store_id"], first["subscriptions"]) == (DOMAIN, "api")
    again = run("connect", f"https://{DOMAIN}/admin")
    assert again.line("subscriptions").endswith(f"7 topics go to {HERE}") and there(shop) == all_here()
    assert connection(buffer)["connected_at"] == first["connected_at"]


@pytest.mark.long
def test_what_is_wrong_with_subscriptions_is_shown_by_status_and_mended_by_connect(
    run: Run, shop: Shop, buffer: Buffer
) -> None:
    run("connect", DOMAIN)
    first = connection(buffer)
    shop.subscriptions.remove(shop.subscriptions.of("products/update")[0].id)
    moved = shop.subscriptions.of("products/delete")[0]
    shop.subscriptions.update(moved.id, "https://old.example.com/webhooks/shopify", "JSON")
    shop.subscriptions.add("orders/create", "https://somebody.example.com/")
    before = there(shop)
    looked = run("status")
    assert looked.code == 1 and looked.out.startswith(DOMAIN) and there(shop) == before
    assert looked.line("subscriptions").startswith("wrong ")
    assert "nothing is subscribed for products/update; products/delete go to" in looked.line("subscriptions")
    mended = run("connect", DOMAIN)
    assert mended.code == 0 and "; 1 foreign ones left alone" in mended.line("subscriptions")
    assert "moved products/delete here from https://old.example.com/webhooks/shopify" in mended.out
    assert there(shop) == sorted([*all_here(), ("orders/create", "https://somebody.example.com/")])
    assert run("status").code == 0
    assert connection(buffer)["connected_at"] > first["connected_at"], "its first webhook is awaited anew"


@pytest.mark.long
def test_with_a_store_that_others_feed_it_has_to_be_meant(run: Run, buffer: Buffer, shop: Shop) -> None:
    map_shop(buffer, "other.myshopify.com", "S1")
    done = run("connect", DOMAIN, "--store", "S1")
    assert done.code == 1 and "other.myshopify.com" in done.err and len(done.err.splitlines()) == 1
    assert run("connect", DOMAIN, "--store", "S1", "--share").code == 0
    assert len(buffer.mapping_list()) == 2


@pytest.mark.long
def test_with_a_store_it_is_mapped_in_dry_run_read_and_shown(run: Run, shop: Shop, buffer: Buffer) -> None:
    done = run("connect", DOMAIN, "--store", "S1", "--location", "laden marktplatz")
    assert done.code == 0, done
    (mapping,) = buffer.mapping_list()
    assert (mapping["is_active"], mapping["is_dry_run"]) == (True, True)
    assert mapping["settings"]["expected_currency"] == "EUR"
    assert mapping["settings"]["location_id"] == "71203456789"
    variants = sum(len(one.variants) for one in shop.products.values())
    assert f" {variants} variants in " in done.line("read")
    (shown,) = buffer.preview(store="S1")
    assert shown["to_evaluate"] == 0 and shown["new"] > 300
    assert f"{shown['new']} new, 0 changed, 0 removed; " in done.line("preview")
    assert done.line("go live").endswith(f"esl-pipeline stores set {mapping['id']} --live")
    changed = mapping["settings"] | {"zero_price": "allow"}
    buffer.mapping_update(mapping["id"], {"is_dry_run": False, "settings": changed}, by="test")
    again = run("connect", DOMAIN, "--store", "S1", "--location", "71203456790")
    assert again.line("store").endswith("S1: live") and "go live" not in again.out
    (kept,) = buffer.mapping_list()
    assert kept["settings"] == changed | {"location_id": "71203456790"} and not kept["is_dry_run"]
    buffer.mapping_update(mapping["id"], {"is_active": False}, by="test")
    paused = run("connect", DOMAIN, "--store", "S1")
    assert "S1: paused, nothing is read or pushed" in paused.line("store") and "variants in" not in paused.out


def test_a_location_that_is_none_is_refused_with_those_that_are(run: Run, shop: Shop) -> None:
    done = run("connect", DOMAIN, "--store", "S1", "--location", "Kiosk (closed)")
    assert done.code == 1 and "no active location is called Kiosk (closed); there are Laden" in done.out
    assert there(shop) == []


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("", "APP_BASE_URL is not set: set the address"),
        (
            "http://hooks.example.com",
            "APP_BASE_URL: http://hooks.example.com is no address that Shopify sends",
        ),
    ],
)
def test_without_an_address_that_shopify_sends_to_nothing_is_made(
    run: Run, shop: Shop, monkeypatch: pytest.MonkeyPatch, base: str, says: str
) -> None:
    monkeypatch.setenv("APP_BASE_URL", base)
    done = run("connect", DOMAIN)
    assert done.code == 1 and says in done.line("subscriptions")
    assert there(shop) == []


@pytest.mark.parametrize(
    ("edit", "what", "says"),
    [
        (AppEdit(secrets=["another"]), "access", "The app's client id or secret for"),
        (AppEdit(installed=False), "access", f"The app is not installed in {DOMAIN}"),
        (AppEdit(scopes=["read_products"]), "scopes", "lacks the scopes read_inventory, read_locations"),
        (AppEdit(frozen=True), "access", "is frozen"),
    ],
)
def test_a_shop_that_does_not_let_us_in_is_one_line(
    run: Run, sandbox: ShopifySandbox, buffer: Buffer, edit: AppEdit, what: str, says: str
) -> None:
    sandbox.edit_app(edit)
    for done in (run("connect", DOMAIN), run("status")):
        assert done.code == 1 and done.err == "", done
        assert done.line(what).startswith("wrong ") and says in done.line(what)
    assert there(sandbox.shop) == [] and buffer.connection_list() == []


def test_a_shop_without_app_and_token_is_told_what_to_set(
    run: Run, sandbox: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOPIFY_APPS")
    assert "set SHOPIFY_API_KEY and SHOPIFY_API_SECRET, or SHOPIFY_APPS=" in run("connect", DOMAIN).line(
        "access"
    )
    nobody = run("status")
    assert nobody.code == 1 and nobody.err.startswith("no shop is connected: esl-pipeline shopify connect")


def test_toml_prints_the_block_makes_none_and_stays_so(run: Run, shop: Shop, buffer: Buffer) -> None:
    done = run("connect", DOMAIN, "--toml")
    assert done.code == 0 and there(shop) == []
    assert '    "customers/redact",\n' in done.out and f'  uri = "{HERE}"' in done.out
    assert connection(buffer)["subscriptions"] == "toml"
    shop.subscriptions.declare(WANTED, HERE)
    again = run("connect", DOMAIN)
    assert "left to the app's shopify.app.toml" in again.line("subscriptions") and there(shop) == []
    assert run("status").code == 0
    buffer.connection_end({"source_system": "shopify", "source_store_id": DOMAIN}, "app/uninstalled")
    assert run("connect", DOMAIN).code == 0 and there(shop) == [], (
        "installed again, the app subscribes as before"
    )
    assert connection(buffer)["subscriptions"] == "toml"


def test_a_shop_whose_app_subscribes_is_told_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer_dsn: str
) -> None:
    shop = small_shop()
    with (
        receiving() as receiver,
        WebhookSender(None, SECRET, subscriptions=shop.subscriptions) as sender,
        running_shopify(shop, app=App(secrets=[SECRET]), sender=sender) as served,
    ):
        monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", served.url)
        monkeypatch.setenv("SHOPIFY_APPS", f"{DOMAIN}={CLIENT_ID}:{SECRET}")
        monkeypatch.setenv("APP_BASE_URL", receiver.url.removesuffix("/webhooks/shopify"))
        shop.subscriptions.declare(WANTED, receiver.url)
        for _ in range(2):
            assert run("connect", DOMAIN, "--toml").code == run("connect", DOMAIN).code == 0
        served.sandbox.delete(next(iter(shop.products.values())))
        assert sender.wait(5)
    (request,) = receiver.received
    assert request.path == "/webhooks/shopify" and request.headers["x-shopify-topic"] == "products/delete"


def test_a_shop_goes_over_to_toml_without_a_gap(run: Run, shop: Shop) -> None:
    run("connect", DOMAIN)
    first = run("connect", DOMAIN, "--toml")
    assert "7 made by API stay until it is released" in first.line("subscriptions")
    assert there(shop) == all_here()
    shop.subscriptions.declare(WANTED, HERE)
    looked = run("status").line("subscriptions")
    assert looked.startswith("warning") and looked.endswith("; 7 made by API double them")
    assert "7 made by API are removed" in run("connect", DOMAIN).line("subscriptions")
    assert there(shop) == []
    assert "7 of them subscribed now" in run("connect", DOMAIN, "--api").line("subscriptions")


def test_where_webhooks_arrive_already_none_are_doubled(run: Run, shop: Shop, buffer: Buffer) -> None:
    arrive(buffer, product(1), shop=DOMAIN)
    map_shop(buffer, DOMAIN, "S1")
    done = run("connect", DOMAIN)
    assert done.code == 1 and "its webhooks arrive already" in done.line("subscriptions")
    assert there(shop) == []
    assert run("connect", DOMAIN, "--toml").code == 0 and there(shop) == []
    assert run("connect", DOMAIN, "--api").code == 0 and there(shop) == all_here()


@pytest.mark.long
def test_disconnecting_removes_ours_pauses_the_store_and_keeps_the_labels(
    run: Run, shop: Shop, buffer: Buffer
) -> None:
    run("connect", DOMAIN, "--store", "S1")
    shop.subscriptions.add("products/update", "https://somebody.example.com/")
    (before,) = buffer.preview(store="S1")
    done = run("disconnect", DOMAIN)
    assert done.code == 0 and "7 removed; 1 foreign ones left alone" in done.line("subscriptions")
    assert there(shop) == [("products/update", "https://somebody.example.com/")]
    (mapping,) = buffer.mapping_list()
    assert not mapping["is_active"] and "S1: paused, its labels stay" in done.line("store")
    (after,) = buffer.preview(store="S1")
    assert after["removed"] == before["removed"] == 0
    assert connection(buffer)["subscriptions"] is None
    assert "0 removed" in run("disconnect", DOMAIN).line("subscriptions")
    back = run("connect", DOMAIN)
    assert back.code == 0 and "7 of them subscribed now" in back.line("subscriptions")


def test_an_app_that_was_uninstalled_can_be_disconnected_and_connects_again(
    run: Run, sandbox: ShopifySandbox, buffer: Buffer
) -> None:
    run("connect", DOMAIN)
    map_shop(buffer, DOMAIN, "S1")
    sandbox.edit_app(AppEdit(installed=False))
    assert there(sandbox.shop) == []
    done = run("disconnect", DOMAIN)
    assert done.code == 0 and done.line("subscriptions").startswith("warning")
    assert not buffer.mapping_list()[0]["is_active"] and connection(buffer)["subscriptions"] is None
    sandbox.edit_app(AppEdit(installed=True))
    assert run("connect", DOMAIN).code == 0 and there(sandbox.shop) == all_here()


def test_status_tells_what_arrives(run: Run, shop: Shop, buffer: Buffer) -> None:
    run("connect", DOMAIN)
    map_shop(buffer, DOMAIN, "S1")
    assert "none yet since" in run("status").line("webhooks")
    arrive(buffer, product(1), shop=DOMAIN)
    looked = run("status", "corner-market")
    assert "the newest came at" in looked.line("webhooks") and looked.line("webhooks").startswith("ok ")
    assert looked.line("store").endswith("S1: live")


def test_status_tells_of_wrong_signatures(run: Run, shop: Shop, buffer: Buffer) -> None:
    run("connect", DOMAIN)
    map_shop(buffer, DOMAIN, "S1")
    at = datetime.now(UTC).isoformat()
    refused = {
        "source_system": "shopify",
        "source_store_id": DOMAIN,
        "refused": 5,
        "since": at,
        "last_at": at,
    }
    buffer.refusals_note(receiver="r", refused=[refused])
    looked = run("status")
    assert looked.code == 1 and "5 refused since" in looked.line("arrivals")
    assert "wrong secret?" in looked.line("arrivals")
    arrive(buffer, product(1), shop=DOMAIN)
    assert "arrivals" not in run("status").out


def test_json_is_all_that_is_printed(run: Run, shop: Shop) -> None:
    done = json.loads(run("connect", DOMAIN, "--json").out)
    assert [line["what"] for line in done["lines"]][:2] == ["access", "scopes"]
    assert done["mapping"] is None and done["toml"] is None
    assert list(json.loads(run("status", "--json").out)) == [DOMAIN]
    shop.subscriptions.clear()
    refused = run("connect", DOMAIN, "--location", "nowhere", "--json")
    assert refused.code == 1 and json.loads(refused.out)["lines"][-1]["state"] == "wrong"


def test_what_is_no_shop_or_no_store_is_refused(run: Run, sandbox: ShopifySandbox) -> None:
    assert "is no shop's domain" in run("connect", "corner market").err
    assert "must be 1 to 32 letters" in run("connect", DOMAIN, "--store", "../S1").err
    assert there(sandbox.shop) == []
