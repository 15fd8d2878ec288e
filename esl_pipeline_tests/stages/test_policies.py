"""Store policies at work: what a changed setting changes on the labels, and what it leaves alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from esl_pipeline.receiver.app import create_app
from esl_pipeline_tests.receiver.support import TOKEN, call, make_settings
from esl_pipeline_tests.world import AT_ONCE, LOCATION, SHOP, STORE, World, level, product, variant

OTHER_SHOP = "other-shop.myshopify.com"
OTHER_STORE = "S2"


def put(world: World, mapping: str, **changes: Any) -> None:
    """Change a mapping through the API, as a shopkeeper's administrator does."""
    app = create_app(make_settings(), world.buffer)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = call(app, "PUT", f"/api/store-mappings/{mapping}", json=changes, headers=headers)
    assert answer.status_code == 200, answer.text


def change(world: World, mapping: str, **settings: Any) -> None:
    """Replace a mapping's policy, with no webhook; the drain follows."""
    put(world, mapping, settings=AT_ONCE | settings)


def shop_of(*codes: str, **fields: Any) -> list[dict[str, Any]]:
    """One product per code, with a variant of its own."""
    return [product(n, variants=[variant(n, code)], **fields) for n, code in enumerate(codes, start=1)]


# --- one shop, several stores


def test_two_stores_of_one_shop_show_other_price_fields_stock_and_titles(world_over: World) -> None:
    world = world_over
    world.map(
        settings={
            "show_compare_at": "if_higher",
            "fields": {"pop": "", "vp": "{price}", "f3": "was {compare_at_price}"},
            "stock_field": "kc",
            "location_id": str(LOCATION),
            "title_template": "{vendor}: {title}",
            "title_max_length": 9,
        }
    )
    world.map(
        store=OTHER_STORE,
        settings={
            "show_compare_at": "if_higher",
            "stock_field": "qty",
            "location_id": "78",
            "fields": {"f1": "[{sku} ]{product_type}", "extend": {"e001": "{price} {currency}"}},
            "expected_currency": "EUR",
        },
    )
    world.stock(level(1, 5), level(1, 6, location=78))
    world.settle(
        product(
            variants=[variant(price="2.50", compare_at_price="3.00", sku="")],
            title="Jam &amp; jelly 🍓",
            vendor="Hill",
            product_type="Spread",
        )
    )
    assert world.labels(STORE)["C-1"] == {
        "pc": "C-1", "pn": "Hill: Jam", "pp": "2.50", "pi": "", "pim": "", "pop": "", "vp": "2.50",
        "f3": "was 3.00", "kc": "5",
    }  # fmt: skip
    assert world.labels(OTHER_STORE)["C-1"] == {
        "pc": "C-1", "pn": "Jam & jelly", "pp": "2.50", "pi": "", "pim": "", "pop": "3.00", "f1": "Spread",
        "extend": {"e001": "2.50 EUR"}, "qty": "6",
    }  # fmt: skip


# --- a changed policy


@pytest.mark.long
def test_a_policy_change_changes_exactly_its_labels_as_the_preview_said(world: World) -> None:
    mapping = world.map(is_dry_run=True)
    world.map(store=OTHER_STORE)
    world.settle(
        product(1, variants=[variant(1, price="1.00", compare_at_price="2.00"), variant(2, price="1.00")]),
        product(2, variants=[variant(3, price="0.00")]),
    )
    (preview,) = world.buffer.preview(store=STORE)
    assert (preview["new"], preview["changed"], preview["removed"], preview["held"]) == (2, 0, 0, 1)
    assert world.labels(STORE) == {}  # nothing is pushed in a dry run, the other store is live
    assert set(world.labels(OTHER_STORE)) == {"C-1", "C-2"}

    put(world, mapping, is_dry_run=False)
    world.settle()
    assert set(world.labels(STORE)) == {"C-1", "C-2"}
    calls, others = world.calls(), world.labels(OTHER_STORE)

    put(
        world,
        mapping,
        is_dry_run=True,
        settings={"show_compare_at": "if_higher", "zero_price": "allow"},
    )
    world.settle()
    assert world.calls() == calls
    (preview,) = world.buffer.preview(store=STORE)
    promised = {change["code"]: change["after"] for change in preview["changes"]}
    assert {code: label["pop"] for code, label in promised.items()} == {"C-1": "2.00", "C-3": ""}
    assert [change["before"] and change["before"]["pop"] for change in preview["changes"]] == ["", None]
    untouched = world.labels(STORE)["C-2"]

    put(world, mapping, is_dry_run=False)
    world.settle()
    assert world.labels(STORE) == promised | {"C-2": untouched}
    assert world.shown("C-2") == ["1.00"]
    assert world.labels(OTHER_STORE) == others
    assert world.buffer.preview(store=STORE)[0]["changes"] == []


def test_a_shop_without_barcodes_works_with_other_code_sources(world: World) -> None:
    mapping = world.map()
    bodies = [
        product(1, variants=[variant(1, None, sku="SKU-1"), variant(2, "", sku=None)]),
        product(2, variants=[variant(3, "  ", sku=" ")]),
    ]
    world.settle(*bodies)
    assert world.labels() == {}
    assert world.findings() == {(str(n), "code_missing") for n in (1, 2, 3)}
    change(world, mapping, code_source=["sku", "variant_id"])
    world.settle()
    assert set(world.labels()) == {"SKU-1", "2", "3"}
    assert world.findings() == set()


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("remove", {"C-2": "1.00"}),
        ("keep", {"C-1": "1.00", "C-2": "1.00"}),
        ("blank", {"C-1": "0.00", "C-2": "1.00"}),
    ],
)
@pytest.mark.parametrize("leaving", ["on_delete", "on_unpublish"])
def test_what_becomes_of_a_label_whose_product_leaves(
    world: World, leaving: str, rule: str, left: dict[str, str]
) -> None:
    world.map(settings={leaving: rule, "fields": {"extend": {"e1": "{title}"}}})
    world.settle(*shop_of("C-1", "C-2"))
    if leaving == "on_delete":
        world.delete(1, version=2)
    else:
        world.update(product(1, version=2, variants=[variant(1, "C-1")], status="draft"))
    world.settle()
    assert world.prices() == left
    if rule == "blank":
        assert world.labels()["C-1"] == {
            "pc": "C-1", "pn": "-", "pp": "0.00", "pi": "", "pop": "", "pim": "", "extend": {"e1": ""},
        }  # fmt: skip
    calls = world.calls()
    world.settle(product(2, version=3, variants=[variant(2, "C-2")]))
    assert (world.calls(), world.prices()) == (calls, left)
    # Another product may take the code over, whatever became of the label.
    world.settle(product(3, variants=[variant(3, "C-1", "7.00")]))
    assert world.prices()["C-1"] == "7.00"


def test_excluded_products_lose_their_labels_and_come_back(world: World) -> None:
    mapping = world.map()
    bodies = shop_of("A", "B", "C", "D")
    bodies[0]["product_type"], bodies[1]["vendor"], bodies[2]["tags"] = "Cigarettes", "Acme", "Web-Only, new"
    world.settle(*bodies)
    exclude = {"product_types": ["cigarettes"], "vendors": ["ACME"], "tags": ["web-only"]}
    change(world, mapping, exclude=exclude)
    world.settle()
    assert set(world.labels()) == {"D"}
    change(world, mapping)
    world.settle()
    assert set(world.labels()) == {"A", "B", "C", "D"}


# --- many with one code


@pytest.mark.parametrize(
    ("rule", "winner"), [("quarantine", None), ("lowest_id", "2.00"), ("first_created", "3.00")]
)
def test_the_duplicate_rule_decides_across_batches(world: World, rule: str, winner: str | None) -> None:
    world.map(settings={"duplicate_rule": rule})
    created = ["2026-03-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]
    for number, price, at in zip((2, 10, 30), ("2.00", "3.00", "4.00"), created, strict=True):
        world.settle(product(number, variants=[variant(number, "A", price, created_at=at)]))
    # The first came alone and was shown; a collision leaves what hangs.
    assert world.prices() == {"A": winner or "2.00"}
    found = {f["variant_id"]: f for f in world.buffer.findings() if f["check_name"] == "duplicate_code"}
    assert set(found) == {"2", "10", "30"}
    assert [level for level in (found[v]["level"] for v in found) if level == "warning"] == [
        "warning"
    ] * bool(winner)
    for finding in found.values():
        assert all(f"{v} of {SHOP}" in finding["reason"] for v in ("2", "10", "30"))
    world.settle(*(product(n, version=2, variants=[variant(n, f"A-{n}", "5.00")]) for n in (2, 10, 30)))
    assert set(world.labels()) == {"A-2", "A-10", "A-30"}
    assert world.findings() == set() == {f for f in world.findings("warning") if f[1] == "duplicate_code"}


def test_equal_labels_of_one_shop_are_no_conflict(world: World) -> None:
    world.map()
    twins = [product(n, variants=[variant(n, "A", sku="same")], title="Twin") for n in (1, 2)]
    world.settle(*twins)
    assert world.prices() == {"A": "1.00"} and world.findings() == set()
    world.delete(1, version=2)
    world.settle()
    assert world.prices() == {"A": "1.00"}
    world.delete(2, version=2)
    world.settle()
    assert world.labels() == {}


def test_ranks_do_not_decide_between_shops(world: World) -> None:
    world.map(settings={"duplicate_rule": "lowest_id"})
    world.map(OTHER_SHOP, settings={"duplicate_rule": "lowest_id"})
    world.update(product(1, variants=[variant(1, "A", "1.00")]))
    world.update(product(2, variants=[variant(2, "A", "2.00")]), shop=OTHER_SHOP)
    world.settle()
    assert world.labels() == {}
    (one, other) = world.buffer.findings()
    assert f"1 of {SHOP}, 2 of {OTHER_SHOP}" in one["reason"] == other["reason"]


def test_a_dry_run_does_not_disturb_a_live_store(world: World) -> None:
    world.map()
    dry = world.map(OTHER_SHOP, is_dry_run=True)
    world.settle(product(1, variants=[variant(1, "A", "1.00")]))
    world.update(product(2, variants=[variant(2, "A", "2.00")]), shop=OTHER_SHOP)
    world.settle(product(1, version=2, variants=[variant(1, "A", "1.50")]))
    assert world.prices() == {"A": "1.50"}
    assert world.findings() == {("2", "duplicate_code")}
    world.buffer.mapping_update(dry, {"is_dry_run": False})
    world.settle(product(1, version=3, variants=[variant(1, "A", "1.70")]))
    assert world.prices() == {"A": "1.50"}  # now they collide for real, and the label stays
    assert world.findings() == {("1", "duplicate_code"), ("2", "duplicate_code")}


# --- mass removals


def gone(world: World, count: int) -> None:
    for number in range(1, count + 1):
        world.delete(number, version=9)
    world.settle()


def test_many_removals_at_once_wait_for_approval(world: World) -> None:
    mapping = world.map()
    world.settle(*shop_of(*(f"C-{n}" for n in range(1, 21))))
    gone(world, 6)
    assert len(world.labels()) == 20
    assert world.buffer.status()["stores"][0]["queue"]["guarded"] == 6
    # Other changes go on, and what comes back needs no approval.
    world.settle(product(20, version=10, variants=[variant(20, "C-20", "9.00")]))
    assert world.prices()["C-20"] == "9.00"
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 6, "prices": 0}
    world.settle()
    assert set(world.labels()) == {f"C-{n}" for n in range(7, 21)}
    assert world.sql("select store_code, removals, prices, by from esl.approvals") == [
        {"store_code": STORE, "removals": 6, "prices": 0, "by": "Ada"}
    ]
    # Approval is for those removals, not for the next ones.
    change(world, mapping, statuses=["archived"])
    world.settle()
    assert len(world.labels()) == 14


def test_many_large_price_changes_at_once_wait_for_approval(world: World) -> None:
    world.map()
    world.settle(*shop_of(*(f"C-{n}" for n in range(1, 21))))
    # A misplaced decimal point, and two honest changes.
    world.settle(
        *(product(n, version=2, variants=[variant(n, price="100.00")]) for n in range(1, 7)),
        *(product(n, version=2, variants=[variant(n, price="1.80")]) for n in (7, 8)),
    )
    assert set(world.prices().values()) == {"1.00", "1.80"}
    (preview,) = world.buffer.preview(store=STORE)
    assert (preview["changed"], preview["guarded"]) == (6, 6)
    world.settle(product(1, version=3, variants=[variant(1, price="1.10")]))
    assert sorted(world.prices().values()).count("100.00") == 5  # five are not too many
    world.settle(*(product(n, version=4, variants=[variant(n, price="9.00")]) for n in range(9, 21)))
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 0, "prices": 12}
    world.settle()
    assert world.prices()["C-20"] == "9.00"


def test_few_removals_need_no_approval_and_products_that_return_release_the_rest(world: World) -> None:
    world.map()
    world.settle(*shop_of(*(f"C-{n}" for n in range(1, 21))))
    gone(world, 6)
    world.settle(product(1, version=10, variants=[variant(1, "C-1")]))
    assert len(world.labels()) == 15 and "C-1" in world.labels()


def test_a_moved_store_is_written_before_the_old_one_is_cleared_with_approval(world: World) -> None:
    mapping = world.map()
    world.settle(*shop_of(*(f"C-{n}" for n in range(1, 9))))
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle()
    assert len(world.labels(OTHER_STORE)) == 8
    assert len(world.labels(STORE)) == 8
    world.buffer.changes_approve(store=STORE, by="Ada")
    world.settle()
    assert (len(world.labels(OTHER_STORE)), world.labels(STORE)) == (8, {})


def test_a_deactivated_mapping_pushes_nothing_more(world: World) -> None:
    mapping = world.map()
    world.settle(product())
    world.update(product(version=2, variants=[variant(price="2.00")]))
    world.sandbox.faults({"kind": "status", "status": 503, "times": 1})
    world.round(initial_delay=60, max_delay=60)  # not within this round
    world.buffer.mapping_update(mapping, {"is_active": False})
    calls = world.calls()
    world.settle()
    assert (world.calls(), world.prices()) == (calls, {"C-1": "1.00"})


# --- prices


def test_prices_rise_only_in_the_window_and_fall_at_any_time(world: World) -> None:
    now = datetime.now(UTC)
    closed = {
        "opens": f"{now + timedelta(hours=2):%H:%M}",
        "closes": f"{now + timedelta(hours=4):%H:%M}",
        "time_zone": "UTC",
    }
    mapping = world.map(settings={"raise_window": closed})
    world.settle(*shop_of("A", "B"))
    world.update(
        product(1, version=2, variants=[variant(1, "A", "2.00")]),
        product(2, version=2, variants=[variant(2, "B", "0.50")]),
    )
    for _ in range(3):
        world.round()
    assert world.prices() == {"A": "1.00", "B": "0.50"}
    assert world.buffer.due().anything is False
    # 15 hours east the same window is open, over midnight or not.
    opened = closed | {
        "opens": f"{now - timedelta(hours=1):%H:%M}",
        "closes": f"{now + timedelta(hours=1):%H:%M}",
    }
    change(world, mapping, raise_window=opened)
    world.settle()
    assert world.prices() == {"A": "2.00", "B": "0.50"}


@pytest.mark.parametrize(
    ("window", "now", "is_open"),
    [
        (("08:00", "10:00", "UTC"), "2026-07-01 09:00+00", True),
        (("08:00", "10:00", "UTC"), "2026-07-01 10:00+00", False),
        (("22:00", "06:00", "UTC"), "2026-07-01 23:00+00", True),
        (("22:00", "06:00", "UTC"), "2026-07-01 05:59+00", True),
        (("22:00", "06:00", "UTC"), "2026-07-01 12:00+00", False),
        (("08:00", "10:00", "Europe/Berlin"), "2026-07-01 07:00+00", True),
        (("08:00", "10:00", "Europe/Berlin"), "2026-12-01 07:00+00", True),
        (("08:00", "10:00", "Europe/Berlin"), "2026-12-01 06:30+00", False),
        (("08:00", "10:00", "Europe/Berlin"), "2028-02-29 08:30+00", True),
        # The clocks go forward: half past one is followed by three, and half past two never comes.
        (("01:00", "03:00", "Europe/Berlin"), "2026-03-29 00:30+00", True),
        (("01:00", "03:00", "Europe/Berlin"), "2026-03-29 01:00+00", False),
        (("02:15", "02:45", "Europe/Berlin"), "2026-03-29 00:59+00", False),
        (("02:15", "02:45", "Europe/Berlin"), "2026-03-29 01:00+00", False),
        # They go back: half past two comes twice.
        (("02:15", "02:45", "Europe/Berlin"), "2026-10-25 00:30+00", True),
        (("02:15", "02:45", "Europe/Berlin"), "2026-10-25 01:00+00", False),
        (("02:15", "02:45", "Europe/Berlin"), "2026-10-25 01:30+00", True),
    ],
)
def test_f22_the_window_is_of_the_stores_own_day(
    world: World, window: tuple[str, str, str], now: str, is_open: bool
) -> None:
    opens, closes, zone = window
    (row,) = world.sql(
        "select esl.window_is_open(jsonb_build_object('opens', %s::text, 'closes', %s::text, 'time_zone', %s::text),"
        " %s::timestamptz) as open",
        opens, closes, zone, now,
    )  # fmt: skip
    assert row["open"] is is_open


NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize(
    ("reduced_at", "thirty_days_before"),
    [
        ("2028-03-15 12:00+00", "2028-02-14 12:00+00"),  # over a leap day
        ("2026-04-10 12:00+00", "2026-03-11 12:00+00"),  # over a night that the clocks go forward
        ("2026-11-10 12:00+00", "2026-10-11 12:00+00"),  # and back
    ],
)
def test_f22_thirty_days_are_the_same_whatever_the_clocks_do(
    world: World, reduced_at: str, thirty_days_before: str, zone: str
) -> None:
    for variant_id, minutes, lowest in (("1", -1, 4), ("2", 1, 3)):
        with psycopg.connect(world.dsn, options=f"-c timezone={zone}") as connection:
            connection.execute(
                "insert into esl.price_history values"
                " (%(variant)s, %(id)s, %(end)s::timestamptz - interval '999 hours', 3),"
                " (%(variant)s, %(id)s, %(end)s::timestamptz + make_interval(mins => %(minutes)s), 4),"
                " (%(variant)s, %(id)s, %(reduced)s, 2)",
                {
                    "variant": variant_id,
                    "id": NOBODY,
                    "end": thirty_days_before,
                    "minutes": minutes,
                    "reduced": reduced_at,
                },
            )
            row = connection.execute("select esl.prior_price(%s, %s, 2)", [NOBODY, variant_id]).fetchone()
            assert row == (lowest,)


@pytest.mark.long
def test_compare_at_is_shown_when_our_own_prices_of_30_days_bear_it_out(world: World) -> None:
    world.map(settings={"show_compare_at": "if_prior_30d_ok"})

    def sell(version: int, price: str, compare_at: str | None) -> str:
        world.settle(product(version=version, variants=[variant(price=price, compare_at_price=compare_at)]))
        return str(world.labels()["C-1"]["pop"])

    def days_pass(days: int) -> None:
        world.age_prices(days)

    assert sell(1, "10.00", "12.00") == ""  # no history yet
    assert ("1", "compare_at_unproven") in world.findings("warning")
    days_pass(31)
    assert sell(2, "8.00", "12.00") == ""  # 12 was never asked
    assert sell(3, "8.00", "10.00") == "10.00"
    assert world.findings("warning") == set()
    days_pass(20)
    assert sell(4, "8.00", "10.00") == "10.00"  # the reduction is still measured from its beginning
    assert sell(5, "7.00", "10.00") == ""  # the lowest of the last 30 days is 8
    assert sell(6, "7.00", "8.00") == "8.00"


def test_a_price_that_jumps_is_pushed_with_a_warning(world: World) -> None:
    world.map()
    world.settle(product(variants=[variant(price="10.00")]))
    world.settle(product(version=2, variants=[variant(price="15.00")]))
    assert world.findings("warning") == set()
    world.update(product(version=3, variants=[variant(price="150.00")]))
    world.round()
    assert world.findings("warning") == {("1", "price_jump")}
    assert world.prices() == {"C-1": "150.00"}
