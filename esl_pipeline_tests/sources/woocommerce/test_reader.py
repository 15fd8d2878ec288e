"""A shop read over real HTTP: whole though its pages slip, by what changed, by product; and what failures say."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from esl_pipeline.sandbox.woocommerce.faults import (
    CutBody,
    Notice,
    NoTotals,
    Redirect,
    Status,
    StrippedKey,
)
from esl_pipeline.sandbox.woocommerce.shop import Shop, real_time, stocked_shop
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.source import SourceError, SourceRefusedError
from esl_pipeline.sources.woocommerce import pages
from esl_pipeline.sources.woocommerce.client import Client
from esl_pipeline.sources.woocommerce.connection import look
from esl_pipeline.sources.woocommerce.errors import IncompleteError, NotLetInError, UnavailableError
from esl_pipeline.sources.woocommerce.reader import WooCommerceReader
from esl_pipeline.sources.woocommerce.settings import Key
from esl_pipeline_tests.sources.woocommerce.support import KEY, body_of, prices, read, served, whole


def small(count: int = 7) -> Shop:
    shop = Shop()
    for number in range(1, count + 1):
        shop.add(f"Product {number}", f"{number}.00", gtin=f"29{number:011d}")
    return shop


# --- the whole shop


def test_a_shop_is_read_whole_with_stock_and_variations() -> None:
    shop = Shop()
    simple = shop.add("Tea", "2.50", gtin="4006381333931", sku="T", manage_stock=True, stock=7, brand="Leaf")
    variable = shop.add(
        "Bread", options={("1 kg",): "4.00", ("2 kg",): "7.00"}, image="https://x.example/b.png"
    )
    shop.change(variable, variable.variations[0], sale_price="3.50")
    shop.add("Draft", "1.00", status="draft")
    shop.add("Set", kind="grouped")
    with served(shop) as (_, reader):
        started: list[datetime] = []
        facts = Facts()
        for part in reader.catalogue(started.append, chunk=2):
            assert len(part.variants) <= 2
            facts.extend(part)
    one, two = variable.variations
    assert prices(facts) == {
        str(simple.id): ("2.50", None),
        str(one.id): ("3.50", "4.00"),
        str(two.id): ("7.00", None),
        "5": ("1.00", None),
    }
    rows = {row["variant_id"]: row for row in facts.variants}
    tea = rows[str(simple.id)]
    assert (tea["barcode"], tea["sku"], tea["vendor"], tea["variant_title"]) == (
        "4006381333931",
        "T",
        "Leaf",
        None,
    )
    bread = rows[str(one.id)]
    assert (bread["title"], bread["variant_title"], bread["option1"]) == ("Bread", "1 kg", "1 kg")
    assert bread["image_url"] == "https://x.example/b.png"
    assert rows["5"]["status"] == "draft"
    assert {row["product_id"]: row["variant_ids"] for row in facts.products}[str(variable.id)] == ["3", "4"]
    assert facts.products[-1]["variant_ids"] == []
    stock = {row["inventory_item_id"]: (row["location_id"], row["available"]) for row in facts.levels}
    assert stock == {"1": ("0", 7), "3": ("0", None), "4": ("0", None), "5": ("0", None)}
    (start,) = started
    assert all(row["triggered_at"] == start.isoformat() for row in (*facts.products, *facts.variants))


def test_the_start_is_no_later_than_the_question() -> None:
    shop = small()
    shop.clock = real_time
    with served(shop) as (_, reader):
        before, started = datetime.now(UTC), list[datetime]()
        list(reader.catalogue(started.append, chunk=100))
    assert before - timedelta(seconds=5) < started[0] <= before


def test_an_empty_shop_has_been_read() -> None:
    with served(Shop()) as (_, reader):
        started: list[datetime] = []
        assert [part.products for part in reader.catalogue(started.append, chunk=10)] == [[]]
    assert len(started) == 1


@pytest.mark.parametrize("gone", [[1], [1, 2, 3], [3, 4], [1, 2, 3, 4, 5, 6]])
def test_what_moves_up_when_something_is_deleted_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, gone: list[int]
) -> None:
    monkeypatch.setattr(pages, "PER_PAGE", 3)
    shop = small(12)
    with served(shop) as (running, reader):
        asked: list[str] = []

        def meddle(path: str) -> None:
            asked.append(path)
            if len(asked) == 3:
                for number in gone:
                    shop.delete(shop.products[number])

        running.sandbox.before = meddle
        read_now = {row["product_id"] for row in whole(reader).products}
    assert read_now >= {str(number) for number in shop.products}


def test_what_comes_in_behind_the_reader_is_read_in_another_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PER_PAGE", 3)
    shop = small(9)
    back = shop.products[2]
    shop.trash(back)
    with served(shop) as (running, reader):
        asked: list[str] = []

        def meddle(path: str) -> None:
            asked.append(path)
            if len(asked) == 3:
                shop.restore(back, "publish")

        running.sandbox.before = meddle
        products = [row["product_id"] for row in whole(reader).products]
    assert sorted(products, key=int) == [str(n) for n in range(1, 10)]


def test_a_list_that_never_stands_still_concludes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PER_PAGE", 3)
    shop = small(9)
    trashed = [shop.products[n] for n in (1, 2, 3)]
    for product in trashed:
        shop.trash(product)
    with served(shop) as (running, reader):

        def meddle(path: str) -> None:  # in each pass one comes back at the front, when the reader is past it
            *_, before, now = ["", *running.sandbox.calls]
            if "offset=0" in before and "offset=0" not in now:
                shop.restore(trashed.pop(), "publish")

        running.sandbox.before = meddle
        with pytest.raises(IncompleteError, match="changed while it was read"):
            whole(reader)


def test_products_that_are_counted_and_not_shown_are_told_of_when_all_others_were_given() -> None:
    shop = small(5)
    shop.products[3].hidden = True
    with served(shop) as (_, reader):
        facts = Facts()
        with pytest.raises(IncompleteError, match="1 products are counted and not shown"):
            for part in reader.catalogue(lambda _: None, chunk=2):
                facts.extend(part)
    assert [row["product_id"] for row in facts.products] == ["1", "2", "4", "5"]


def test_a_variation_that_is_named_and_not_listed_is_asked_for() -> None:
    shop = Shop()
    product = shop.add("Bread", options={("1 kg",): "4.00", ("2 kg",): "7.00"})
    kept, taken = product.variations
    with served(shop) as (running, reader):

        def meddle(path: str) -> None:
            if path.endswith("/variations") and taken in product.variations:
                shop.remove_variation(product, taken)

        running.sandbox.before = meddle
        facts = whole(reader)
        assert facts.products[0]["variant_ids"] == [str(kept.id)]
        assert f"/products/{product.id}/variations/{taken.id}" in [
            call.partition("?")[0] for call in running.sandbox.calls
        ]


def test_no_header_that_counts_is_no_complete_list() -> None:
    with served(small()) as (running, reader):
        running.sandbox.faults.replace([NoTotals()])
        with pytest.raises(IncompleteError, match="X-WP-Total"):
            whole(reader)


def test_a_thousand_variants_come_in_parts() -> None:
    with served(stocked_shop(variants=1000)) as (_, reader):
        sizes = [len(part.variants) for part in reader.catalogue(lambda _: None, chunk=250)]
    assert sum(sizes) == 1000
    assert max(sizes) <= 250


# --- changes, one product, the shop itself


def test_only_what_was_modified_since_is_read_again() -> None:
    shop = small(5)
    shop.clock = real_time
    for product in shop.products.values():
        shop.sneak(product, modified_at=product.modified_at - timedelta(minutes=1))
    since = shop.time() - timedelta(seconds=1)
    shop.change(shop.products[4], regular_price="9.00")
    with served(shop) as (_, reader):
        assert [prices(facts) for facts in reader.changes(since)] == [{"4": ("9.00", None)}]
        # The very second counts: WordPress leaves it out.
        at = shop.products[4].modified_at
        assert len(list(reader.changes(at))) == 1
        assert list(reader.changes(at + timedelta(seconds=1))) == []


def test_what_a_shop_dates_by_a_clock_that_is_behind_is_read() -> None:
    shop = Shop()
    shop.now = (datetime.now(UTC) - timedelta(minutes=30)).replace(microsecond=0)
    shop.add("Tea", "2.00")
    with served(shop) as (_, reader):
        assert [prices(facts) for facts in reader.changes(datetime.now(UTC) - timedelta(minutes=10))] == [
            {"1": ("2.00", None)}
        ]


def test_a_product_is_read_by_its_id() -> None:
    shop = Shop()
    product = shop.add("Bread", options={("1 kg",): "4.00"})
    gone = shop.add("Tea", "2.00")
    shop.trash(gone)
    with served(shop) as (_, reader):
        facts = reader.product(str(product.id))
        assert facts is not None
        assert prices(facts) == {str(product.variations[0].id): ("4.00", None)}
        assert reader.product(str(gone.id)) is None
        assert reader.product("999") is None
        assert reader.product(str(product.variations[0].id)) is None  # no product: a part of one
        with pytest.raises(SourceRefusedError, match="no id"):
            reader.product("../settings")


def test_a_variable_product_is_as_new_as_its_newest_variation() -> None:
    shop = Shop()
    product = shop.add("Bread", options={("1 kg",): "4.00"})
    with served(shop) as (_, reader):
        newer = (shop.time() + timedelta(minutes=5)).replace(microsecond=0)
        shop.sneak(product, product.variations[0], modified_at=newer)
        (row,) = whole(reader).products
    assert row["version_at"] == product.variations[0].modified_at.isoformat()


def test_a_time_that_is_still_to_come_does_not_stand_above_what_changes_until_then() -> None:
    shop = Shop()
    product = shop.add("Tea", "2.00")
    with served(shop) as (_, reader):
        shop.sneak(product, modified_at=(shop.time() + timedelta(days=365)).replace(microsecond=0))
        (row,) = whole(reader).products
    assert datetime.fromisoformat(row["version_at"]) <= shop.time()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("EUR", True, "Europe/Berlin")),
        ({"prices_include_tax": False}, ("EUR", False, "Europe/Berlin")),
        ({"prices_include_tax": False, "calc_taxes": False}, ("EUR", True, "Europe/Berlin")),
        ({"time_zone": "", "gmt_offset": -3.5}, ("EUR", True, "UTC-03:30")),
    ],
)
def test_currency_taxes_and_time_zone(fields: dict[str, Any], expected: tuple[object, ...]) -> None:
    shop = Shop()
    for name, value in fields.items():
        setattr(shop, name, value)
    with served(shop) as (_, reader):
        (row,) = reader.shop().shops
    assert (row["currency"], row["taxes_included"], row["time_zone"]) == expected


# --- the same content whichever way it comes


def test_webhook_and_reader_say_the_same_of_a_product() -> None:
    shop = Shop()
    made = {"brand": "Leaf", "category": "Drinks", "tags": ("b", "a"), "image": "https://x.example/t.png"}
    simple = shop.add("Tea", "2.50", sale_price="2.00", manage_stock=True, stock=3, **made)
    variable = shop.add("Bread", options={("1 kg", "rye"): "4.00"}, **made)
    told = read(body_of(simple))
    (by_webhook,) = told.variants
    alone = read(body_of(variable, variable.variations[0])).variants[0]
    with served(shop) as (_, reader):
        facts = whole(reader)
    by_reader = {row["variant_id"]: row for row in facts.variants}
    own = {"source_store_id", "triggered_at", "body_sha256", "event_ids", "version_at"}
    said = {**told.products[0], **by_webhook}
    for name in by_reader["1"].keys() - own:
        assert said[name] == by_reader["1"][name], name
    for name in alone.keys() - own:
        assert alone[name] == by_reader[alone["variant_id"]][name], name
    assert [level["available"] for level in told.levels] == [3]


# --- failures


@pytest.mark.long
def test_a_passing_failure_is_tried_again() -> None:
    with served(small(2)) as (running, reader):
        for fault in (
            Status(status=503, times=1),
            Status(status=429, retry_after="0", times=1),
            CutBody(times=1),
        ):
            running.sandbox.faults.replace([fault])
            assert len(whole(reader).products) == 2


@pytest.mark.parametrize("fault", [Status(status=500, body="oops"), CutBody(), Notice()])
def test_a_lasting_failure_is_an_error_that_concludes_nothing(fault: Any) -> None:
    with served(small(2)) as (running, reader):
        running.sandbox.faults.replace([fault])
        with pytest.raises(UnavailableError):
            whole(reader)


SENTENCES = {
    "key": (lambda sandbox: setattr(sandbox, "consumer_key", "ck_other00000"), "is wrong or was revoked"),
    "secret": (
        lambda sandbox: setattr(sandbox, "consumer_secret", "cs_other00000"),
        "is wrong or was revoked",
    ),
    "stripped": (lambda sandbox: sandbox.faults.replace([StrippedKey()]), "Authorization header"),
    "firewall": (lambda sandbox: sandbox.faults.replace([Status(status=403)]), "firewall"),
    "none": (
        lambda sandbox: sandbox.faults.replace([Status(status=404, body="Not Found")]),
        "no WooCommerce",
    ),
    "moved": (
        lambda sandbox: sandbox.faults.replace([Redirect(to="https://elsewhere.example")]),
        "answers at another address now (https://elsewhere.example/wp-json/wc/v3/products)",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_who_is_not_let_in_is_told_why_in_one_sentence_everywhere(case: str) -> None:
    spoil, sentence = SENTENCES[case]
    with served(small(1)) as (running, reader):
        spoil(running.sandbox)
        with pytest.raises(NotLetInError) as caught:
            whole(reader)
        assert sentence in str(caught.value)
        assert KEY.consumer_key not in str(caught.value)
        assert KEY.consumer_secret not in str(caught.value)
        assert reader.lets_in() is False
        reachable, said = look(reader._client, running.shop_id)
    assert (reachable, said.replace("per_page=1", "")) == (False, str(caught.value))


def test_a_key_that_may_not_read_the_settings_is_told_so() -> None:
    with served(small(1)) as (running, reader):
        running.sandbox.role = "customer"
        with pytest.raises(NotLetInError, match="Administrator or Shop manager"):
            reader.shop()


def test_nobody_listening_is_no_answer() -> None:
    with Client("http://127.0.0.1:1", KEY, shop="127.0.0.1:1", retries=1) as client:
        reader = WooCommerceReader(client, "127.0.0.1:1")
        with pytest.raises(UnavailableError, match="no answer"):
            reader.shop()
        assert reader.lets_in() is None


def test_an_answer_without_end_is_not_read() -> None:
    with (
        served(small(50)) as (running, _),
        Client(running.url, KEY, shop="s", max_answer_bytes=2000) as client,
        pytest.raises(SourceError, match="longer than 2,000 bytes"),
    ):
        whole(WooCommerceReader(client, "s"))


@pytest.mark.parametrize(
    "url", ["http://shop.example.com", "ftp://shop.example.com", "https://a:b@shop.example.com", "https://"]
)
def test_the_key_goes_over_https_only(url: str) -> None:
    with pytest.raises(ValueError, match="its key goes nowhere else"):
        Client(url, KEY, shop="shop.example.com")


def test_the_key_follows_no_redirect() -> None:
    with served(small(1)) as (other, _), served(small(1)) as (running, reader):
        running.sandbox.faults.replace([Redirect(to=other.url)])
        with pytest.raises(NotLetInError):
            whole(reader)
        assert other.sandbox.calls == []


def test_a_key_shows_nowhere() -> None:
    key = Key("ck_canary000", "cs_canary000")
    assert "canary" not in repr(key)
    with Client("https://shop.example.com", key, shop="shop.example.com") as client:
        assert "canary" not in repr(client)
