"""Who holds a place, what counts as shown, and settings that stop nobody else: rows 1, 2 and 17 to 27 and 30."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import dagster as dg
import psycopg
import pytest

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.labels.policy import Policy
from esl_pipeline.model.push import Outcome
from esl_pipeline.orchestration.checks import label_accuracy
from esl_pipeline.receiver.app import create_app
from esl_pipeline.stages import drain
from esl_pipeline.stages.drift import compare_store
from esl_pipeline.stages.evaluate import due_variants
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.receiver.support import TOKEN, call, make_settings
from esl_pipeline_tests.world import ASSET, AT_ONCE, RULES, RUN, SHOP, STORE, World, product, variant, when

pytestmark = pytest.mark.long

OTHER_SHOP = "other-shop.myshopify.com"
OTHER_STORE = "S2"
SLOW = {"initial_delay": 60, "max_delay": 60}
PENDING: dict[str, Any] = {"kind": "status", "status": 503}

ACCEPTED, LOW = (
    "labels are accepted as the source has them now",
    "less than the 98 % that an inspection asks for",
)


def tea(
    number: int = 1, price: Any = "1.00", version: int = 1, code: str | None = "auto", **fields: Any
) -> Any:
    """A product with one variant."""
    return product(number, version, [variant(number, code, price)], **fields)


def window(*, is_open: bool) -> dict[str, str]:
    now = datetime.now(UTC) + timedelta(hours=0 if is_open else 12)
    return {
        "opens": f"{now - timedelta(hours=3):%H:%M}",
        "closes": f"{now + timedelta(hours=3):%H:%M}",
        "time_zone": "UTC",
    }


def states(world: World) -> list[str]:
    return sorted(row["state"] for row in world.queue().values())


def accuracy(world: World) -> dict[str, Any]:
    (mapping,) = world.buffer.accuracy()
    return mapping


def said(world: World) -> tuple[bool | None, str]:
    """What the asset check says: passed, and its words."""
    result = label_accuracy(world.buffer.accuracy())
    return result.passed, result.description or ""


def duplicates(world: World) -> set[tuple[str, str]]:
    """(store, variant) of the open findings of a shared code."""
    found = world.buffer.findings()
    return {
        (row["hipoink_store_code"], row["variant_id"])
        for row in found
        if row["check_name"] == "duplicate_code"
    }


# --- one mapping's settings are its own trouble

NONSENSE: list[Any] = [3_000_000_000, -1, 1.5, "many", None, [{}], 10**299]
NUMBERS = ("guard_labels", "guard_share_pct", "guard_hours", "max_change_pct", "max_held_share_pct")


@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: repr(value)[:12])
def test_field_01_numbers_in_settings_that_cannot_be_read_stop_nobody(world: World, value: Any) -> None:
    mapping = world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    world.settle(*(tea(n) for n in range(1, 9)))
    settings = json.dumps(dict.fromkeys(NUMBERS, value) | {"raise_window": value, "owns_store": value})
    world.sql("update esl.store_mappings set settings = %s::jsonb where id = %s::uuid", settings, mapping)
    world.delete(1, version=2)
    world.update(tea(9), shop=OTHER_SHOP)
    world.settle()
    assert world.prices(OTHER_STORE) == {"C-9": "1.00"}
    assert len(world.prices()) == 8  # its own labels stay as they are
    # A queue that is there already is judged with the defaults.
    world.sql("update esl.store_mappings set problem = null")
    world.sql("select esl.requeue(array_agg(store_code), array_agg(code)) from esl.hipoink_products")
    world.sql("select esl.window_is_open(settings -> 'raise_window') from esl.store_mappings")
    assert world.buffer.preview(store=STORE)[0]["max_held_share_pct"] == 20
    assert world.buffer.due().anything is False
    world.buffer.status()


def test_field_01_a_number_that_no_process_could_read_is_refused_by_the_table(world: World) -> None:
    world.map()
    for settings in ({"guard_labels": 10**400}, {"fields": {"f1": [-(10**400)]}}):
        with pytest.raises(psycopg.errors.CheckViolation):
            world.sql("update esl.store_mappings set settings = %s::jsonb", json.dumps(settings))


def test_field_01_the_policy_bounds_what_sql_reads() -> None:
    for name in ("guard_labels", "max_change_pct"):
        assert Policy.model_validate({name: 1_000_000_000})
        with pytest.raises(ValueError, match=name):
            Policy.model_validate({name: 3_000_000_000})


def test_field_01_a_mapping_with_settings_of_no_use_says_so_and_pushes_nothing_old(world: World) -> None:
    mapping = world.map(is_dry_run=True)
    world.settle(tea())
    world.buffer.mapping_update(mapping, {"is_dry_run": False, "settings": {"guard_labels": 3_000_000_000}})
    for _ in range(3):
        world.round()
    assert world.labels() == {}  # what is queued is of the settings before
    (store,) = world.buffer.status()["stores"]
    assert "guard_labels" in store["problem"]
    assert "guard_labels" in accuracy(world)["problem"]
    assert said(world)[0] is False
    world.buffer.mapping_update(mapping, {"settings": {}})
    world.settle()
    assert (world.prices(), accuracy(world)["problem"]) == ({"C-1": "1.00"}, None)


BAD_WINDOWS = [
    {"opens": "08:00", "closes": "10:00", "time_zone": "localtime"},
    {"opens": "08:00", "closes": "10:00", "time_zone": "No/Where"},
    {"opens": "8 o'clock", "closes": "10:00", "time_zone": "UTC"},
]


@pytest.mark.parametrize("bad", BAD_WINDOWS, ids=lambda bad: bad["time_zone"] + bad["opens"])
def test_field_02_a_window_that_this_database_cannot_read_is_refused(
    world: World, bad: dict[str, str]
) -> None:
    mapping = world.map()
    body: dict[str, Any] = {"settings": {"raise_window": bad}}
    for door in (
        lambda: world.map(store=OTHER_STORE, **body),
        lambda: world.buffer.mapping_update(mapping, body),
    ):
        with pytest.raises(BufferError, match="raise_window") as caught:
            door()
        assert caught.value.code == "22023"
    app = create_app(make_settings(), world.buffer)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with mock.patch("esl_pipeline.labels.policy.ZoneInfo"):  # as where Python knows the zone
        answer = call(app, "PUT", f"/api/store-mappings/{mapping}", json=body, headers=headers)
    assert answer.status_code == 422
    assert "raise_window" in answer.text


@pytest.mark.parametrize("bad", BAD_WINDOWS, ids=lambda bad: bad["time_zone"] + bad["opens"])
def test_field_02_a_window_that_is_there_already_stops_nobody(world: World, bad: dict[str, str]) -> None:
    mapping = world.map()
    world.settle(tea())
    world.update(tea(price="2.00", version=2))
    world.round(batch_size=0)
    window_there = json.dumps({"raise_window": bad})
    world.sql("update esl.store_mappings set settings = %s::jsonb where id = %s::uuid", window_there, mapping)
    assert world.buffer.due().queue is True
    world.settle()
    assert world.prices() == {"C-1": "2.00"}
    assert "raise_window" in accuracy(world)["problem"]
    passed, words = said(world)
    assert passed is False and "raise_window" in words
    # It can be put right, or anything else changed, at any time.
    assert world.buffer.mapping_update(mapping, {"is_dry_run": True}) is not None
    world.buffer.mapping_update(mapping, {"settings": {}, "is_dry_run": False})
    assert accuracy(world)["problem"] is None


# --- who holds a place


def test_field_17_a_variant_with_an_error_keeps_its_claim(world: World) -> None:
    world.map()
    world.settle(tea(1, "1.00", code="A"))
    world.settle(tea(2, "7.00", code="A"))
    assert duplicates(world) == {(STORE, "1"), (STORE, "2")}
    world.settle(tea(1, "0.00", 2, code="A"))
    assert world.shown("A") == ["1.00"]
    assert {check for _, check in world.findings()} == {"duplicate_code", "price_zero"}
    assert duplicates(world) == {(STORE, "1"), (STORE, "2")}
    world.settle(tea(1, "5.50", 3, code="A"))
    assert world.shown("A") == ["1.00"]
    world.settle(tea(2, "7.00", 2, code=None))  # the barcode is cleared
    assert world.prices() == {"A": "5.50"}
    assert duplicates(world) == set()


@pytest.mark.parametrize(("held", "price"), [(1, "1.00"), (2, "3.00")], ids=["first held", "second held"])
def test_field_17_of_ranked_ones_only_the_first_blocks_when_it_is_held(
    world: World, held: int, price: str
) -> None:
    world.map(settings={"duplicate_rule": "lowest_id"})
    world.settle(tea(1, "1.00", code="A"), tea(2, "2.00", code="A"))
    assert world.prices() == {"A": "1.00"}
    other = 3 - held
    world.settle(tea(held, "0.00", 2, code="A"), tea(other, "3.00", 2, code="A"))
    assert world.prices() == {"A": price}


@pytest.mark.parametrize("barcode", ["two words", "0000", "x" * 40_000])
def test_field_17_a_code_that_is_wrong_itself_claims_nothing(world: World, barcode: str) -> None:
    world.map()
    world.settle(tea(1, code=barcode), tea(2, code=barcode))
    assert duplicates(world) == set()
    assert world.sql("select distinct code from esl.labels") == [{"code": None}]


def test_field_17_a_deleted_product_leaves_though_a_held_one_claims_its_code(world: World) -> None:
    world.map()
    world.settle(tea(1, code="A"))
    world.delete(1, version=2)
    world.settle(tea(2, None, code="A"))
    assert world.labels() == {}


def test_field_18_findings_end_only_at_the_place_where_they_were_found(world: World) -> None:
    world.map()
    world.map(OTHER_SHOP, OTHER_STORE)
    world.update(tea(11, "1.00", code="X"), tea(12, "2.00", code="X"), shop=OTHER_SHOP)
    world.settle()
    assert duplicates(world) == {(OTHER_STORE, "11"), (OTHER_STORE, "12")}
    world.settle(tea(1, "5.00", code="X"))
    assert world.prices() == {"X": "5.00"}
    assert duplicates(world) == {(OTHER_STORE, "11"), (OTHER_STORE, "12")}
    world.update(tea(12, "2.00", 2, code="Y"), shop=OTHER_SHOP)
    world.settle()
    assert duplicates(world) == set()


# --- what waits for the window


@pytest.fixture
def closed(world: World) -> World:
    """One shop whose prices may not rise now, with a label of 5.00."""
    mapping = world.map()
    world.settle(tea(price="5.00"))
    world.buffer.mapping_update(mapping, {"settings": {"raise_window": window(is_open=False)}})
    world.settle()
    return world


def test_field_19_a_rise_waits_and_a_late_workers_correction_does_not(closed: World) -> None:
    world = closed
    world.update(tea(price="4.00", version=2))
    world.round(batch_size=0)
    late = world.buffer.push_claim(limit=10, lease_seconds=0, max_attempts=5, run_id="late", asset=ASSET)
    world.settle(tea(price="4.50", version=3))
    assert world.shown("C-1") == ["5.00", "4.50"]
    assert late is not None
    world.client.create_multiple(STORE, [row.label for row in late.rows if row.label is not None])
    world.buffer.push_finish(late, Outcome("accepted"), RULES)
    world.settle()
    assert world.shown("C-1") == ["5.00", "4.50", "4.00", "4.50"]
    world.update(tea(price="6.00", version=4))
    for _ in range(3):
        world.round()
    assert world.prices() == {"C-1": "4.50"}
    assert (world.queue()["C-1"]["is_rise"], world.queue()["C-1"]["priority"]) == (True, 0)


def test_field_19_a_cut_below_a_price_in_doubt_goes_out(world: World) -> None:
    mapping = world.map()
    world.settle(tea(price="5.00"))
    world.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    world.update(tea(price="9.00", version=2))
    world.round(**SLOW)
    world.buffer.mapping_update(mapping, {"settings": {"raise_window": window(is_open=False)}})
    world.settle(tea(price="7.00", version=3))
    assert world.shown("C-1") == ["5.00", "9.00", "7.00"]


def test_field_19_a_rise_that_an_unanswered_push_put_in_doubt_waits_no_longer(world: World) -> None:
    mapping = world.map(settings={"raise_window": window(is_open=True)})
    world.settle(tea(price="5.00"))
    world.update(tea(price="9.00", version=2))
    world.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    world.round(**SLOW)
    settings = json.dumps({"raise_window": window(is_open=False)})
    world.sql("update esl.store_mappings set settings = %s::jsonb where id = %s::uuid", settings, mapping)
    world.sql("update esl.sync_queue set next_attempt_at = now()")
    world.settle()
    assert accuracy(world)["accurate"] == 1


def test_field_19_a_label_that_never_hung_is_corrected_upwards_at_once(world: World) -> None:
    world.map(settings={"raise_window": window(is_open=False)})
    world.update(tea(price="1.00"))
    world.round(batch_size=0)
    world.settle(tea(price="2.00", version=2))
    assert world.shown("C-1") == ["2.00"]


def test_field_19_a_dearer_product_that_takes_a_deleted_ones_code_is_no_rise(closed: World) -> None:
    closed.delete(1, version=2)
    closed.settle(product(2, 3, [variant(2, "C-1", "8.00")]))
    assert closed.prices() == {"C-1": "8.00"}


def test_field_19_what_somebody_changed_at_the_label_server_is_corrected_at_once(closed: World) -> None:
    closed.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pp": "0.50"}).raise_for_status()
    assert compare_store(closed.buffer, closed.client, store=STORE, run_id=RUN).requeued == 1
    closed.settle()
    assert closed.prices() == {"C-1": "5.00"}


def test_field_19_a_price_after_a_blank_label_is_no_rise(world: World) -> None:
    world.map(settings={"on_unpublish": "blank", "raise_window": window(is_open=False)})
    world.settle(tea(price="5.00"))
    world.settle(tea(version=2, status="draft"))
    assert world.prices() == {"C-1": "0.00"}
    world.settle(tea(price="5.00", version=3))
    assert world.prices() == {"C-1": "5.00"}


# --- decisions to keep


@pytest.mark.parametrize("leaving", ["remove", "blank"])
@pytest.mark.parametrize("applied", [False, True], ids=["not removed", "removed"])
def test_field_20_a_held_variant_gets_its_label_back_when_a_removal_is_in_doubt(
    world: World, leaving: str, applied: bool
) -> None:
    world.map(settings={"on_unpublish": leaving})
    world.settle(tea(price="3.00"))
    right = world.labels()
    world.sandbox.faults(PENDING | {"apply": applied, "times": 1})
    world.update(tea(price="3.00", version=2, status="draft"))
    world.round(**SLOW)
    world.settle(tea(price="0.00", version=3))
    assert world.labels() == right
    assert world.queue() == {}


def test_field_20_a_policy_that_keeps_puts_back_what_a_removal_in_doubt_took(world: World) -> None:
    mapping = world.map()
    world.settle(tea(price="3.00"))
    right = world.labels()
    world.sandbox.faults(PENDING | {"apply": True, "times": 1})
    world.delete(1, version=2)
    world.round(**SLOW)
    assert world.labels() == {}
    world.buffer.mapping_update(mapping, {"settings": {"on_delete": "keep"}})
    world.settle()
    assert (world.labels(), world.queue()) == (right, {})


# --- what waits for evaluation


def test_field_21_nothing_is_pushed_that_is_not_evaluated_for_its_mapping(world: World) -> None:
    mapping = world.map(is_dry_run=True, settings={"title_template": "WRONG {title}"})
    world.settle(*(tea(n) for n in range(1, 31)))
    assert len(world.queue()) == 30
    world.buffer.mapping_update(mapping, {"is_dry_run": False, "settings": {}})
    assert world.buffer.due().queue is False
    # Of 6,000 labels 5,000 are evaluated in a round; so are 10 of these.
    with mock.patch.object(drain, "due_variants", lambda buffer, limit: due_variants(buffer, limit=10)):
        for evaluated in (10, 20, 30):
            world.round()
            assert len(world.labels()) == evaluated
    history = world.sandbox.state()["history"][STORE]
    titles = {change["record"]["pn"] for changes in history.values() for change in changes}
    assert titles == {f"Product {n}" for n in range(1, 31)}


def test_field_21_a_removal_waits_for_its_variants_evaluation_too(world: World) -> None:
    world.map()
    world.settle(tea())
    world.delete(1, version=2)
    world.round(batch_size=0)
    world.update(tea(version=3))  # it is back
    read_inbox(world.buffer, run_id=RUN)
    claim = world.buffer.push_claim(limit=9, lease_seconds=9, max_attempts=9, run_id=RUN, asset=ASSET)
    assert claim is None
    world.settle()
    assert world.shown("C-1") == ["1.00"]


# --- the guard


@pytest.mark.long
def test_field_22_products_deleted_one_after_another_are_counted_together(world: World) -> None:
    world.map()
    world.settle(*(tea(n) for n in range(1, 31)))
    for number in range(1, 31):
        world.delete(number, version=2)
        world.round()
    assert len(world.labels()) == 24  # 20 % of 30 are 6
    assert states(world) == ["guarded"] * 24
    # An approval is for those, and then it starts anew.
    world.settle(*(tea(n, version=3) for n in range(11, 31)))
    assert world.buffer.changes_approve(store=STORE, by="Ada")["removals"] == 4
    world.settle()
    assert len(world.labels()) == 20
    for number in range(11, 16):
        world.update(tea(number, version=4, status="draft"))
        world.round()
    assert (len(world.labels()), states(world)) == (15, [])
    world.update(tea(16, version=4, status="draft"))
    world.round()
    assert (len(world.labels()), states(world)) == (15, ["guarded"])
    # When the others are out of the window, it goes on.
    world.sql("update esl.drastic_changes set at = at - interval '25 hours'")
    snapshot(world, SHOP, [])
    world.settle()
    assert len(world.labels()) == 14


@pytest.mark.parametrize(("hours", "left"), [(24, 4), (48, 5)])
def test_field_22_how_long_changes_count_is_a_setting(world: World, hours: int, left: int) -> None:
    world.map(settings={"guard_hours": hours})
    world.settle(*(tea(n) for n in range(1, 11)))
    world.settle(*(tea(n, version=2, status="draft") for n in range(1, 6)))
    world.sql("update esl.drastic_changes set at = at - interval '25 hours'")
    world.settle(tea(6, version=2, status="draft"))
    assert len(world.labels()) == left


@pytest.mark.long
def test_field_22_prices_times_100_one_by_one_are_counted_together(world: World) -> None:
    world.map()
    world.settle(*(tea(n) for n in range(1, 31)))
    for number in range(1, 31):
        world.update(tea(number, "100.00", 2))
        world.round()
    assert list(world.prices().values()).count("100.00") == 6
    assert states(world) == ["guarded"] * 24
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 0, "prices": 24}
    world.settle()
    assert set(world.prices().values()) == {"100.00"}


def test_field_22_blanking_many_labels_at_once_is_guarded(world: World) -> None:
    world.map(settings={"on_unpublish": "blank"})
    world.settle(*(tea(n) for n in range(1, 31)))
    world.settle(*(tea(n, version=2, status="draft") for n in range(1, 21)))
    assert set(world.prices().values()) == {"1.00"}
    assert states(world) == ["guarded"] * 20
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 20, "prices": 0}
    world.settle()
    assert list(world.prices().values()).count("0.00") == 20


def test_field_23_another_max_change_pct_judges_what_waits_again(world: World) -> None:
    mapping = world.map()
    world.settle(*(tea(n) for n in range(1, 11)))
    world.settle(*(tea(n, "3.00", 2) for n in range(1, 9)))
    assert states(world) == ["guarded"] * 8
    world.buffer.mapping_update(mapping, {"settings": {"max_change_pct": 300}})
    world.settle()
    assert list(world.prices().values()).count("3.00") == 8


def test_field_23_what_is_queued_becomes_drastic_with_a_stricter_policy(world: World) -> None:
    mapping = world.map()
    world.settle(*(tea(n) for n in range(1, 11)))
    world.sandbox.faults(PENDING)
    world.update(*(tea(n, "1.50", 2) for n in range(1, 9)))
    world.round(batch_size=0)
    world.sandbox.faults()
    world.buffer.mapping_update(mapping, {"settings": {"max_change_pct": 30}})
    for _ in range(3):
        world.round()
    assert set(world.prices().values()) == {"1.00"}
    assert states(world) == ["guarded"] * 8


# --- what a policy no longer wants


def foreign(world: World, count: int) -> None:
    for number in range(count):
        world.sandbox.http.put(
            f"/sandbox/labels/{STORE}/F{number}", json={"pn": "not ours", "pp": "x"}
        ).raise_for_status()


def test_field_24_foreign_labels_are_let_go_when_the_store_is_not_owned_after_all(world: World) -> None:
    mapping = world.map()
    world.settle(*(tea(n) for n in range(1, 4)))
    foreign(world, 40)
    world.buffer.mapping_update(mapping, {"settings": AT_ONCE | {"owns_store": True}})
    world.settle()
    for _ in range(3):  # however often it is looked at before
        compare_store(world.buffer, world.client, store=STORE, run_id=RUN)
    world.settle()
    assert states(world) == ["guarded"] * 40
    world.buffer.mapping_update(mapping, {"settings": {}})
    assert world.queue() == {}
    assert world.sql("select code from esl.hipoink_products where variant_id = ''") == []
    world.settle(*(tea(n) for n in range(4, 300)))  # the store grows
    assert {code for code in world.labels() if code.startswith("F")} == {f"F{n}" for n in range(40)}


def test_field_25_compare_at_is_the_same_after_a_product_was_away(world: World) -> None:
    world.map(settings={"show_compare_at": "if_prior_30d_ok"})

    def sell(version: int, price: str, **fields: Any) -> str | None:
        offer = variant(price=price, compare_at_price="10.00")
        world.settle(product(version=version, variants=[offer], **fields))
        label = world.labels().get("C-1")
        return None if label is None else label["pop"]

    sell(1, "10.00")
    world.age_prices(31)
    assert sell(2, "8.00") == "10.00"
    assert sell(3, "8.00", status="draft") is None
    assert sell(4, "8.00") == "10.00"


def test_field_26_what_a_mapping_leaves_behind_goes(world: World) -> None:
    mapping = world.map(settings={"on_delete": "keep", "on_unpublish": "blank", "guard_labels": 9})
    world.settle(*(tea(n) for n in range(1, 6)))
    world.delete(1, version=2)  # kept
    world.settle(tea(2, "0.00", 2), tea(3, version=2, status="draft"))  # held, blank
    world.sandbox.faults(PENDING)
    world.update(tea(4, version=2, status="draft"))  # to be blank
    world.round(**SLOW)
    world.sandbox.faults()
    assert set(world.labels()) == {f"C-{n}" for n in range(1, 6)}
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle()
    assert set(world.labels(OTHER_STORE)) == {"C-5"}
    assert world.labels(STORE) == {}
    assert world.queue() == {}


def test_field_26_what_was_left_behind_is_guarded_where_it_is_much(world: World) -> None:
    mapping = world.map(settings={"on_delete": "keep"})
    world.settle(*(tea(n) for n in range(1, 9)))
    for number in range(1, 9):
        world.delete(number, version=2)
    world.settle()
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle()
    assert len(world.labels(STORE)) == 8
    assert states(world) == ["guarded"] * 8
    assert accuracy(world)["unsettled"] == 8


# --- accuracy


def test_field_27_a_label_in_doubt_is_not_accurate(world: World) -> None:
    world.map()
    world.settle(tea(price="1.00"))
    assert said(world)[0] is True
    world.sandbox.faults({"kind": "reset", "apply": True, "times": 1})
    world.update(tea(price="2.00", version=2))
    world.round(**SLOW)
    world.update(tea(price="1.00", version=3))
    world.round(batch_size=0)
    assert (accuracy(world)["publishable"], accuracy(world)["accurate"]) == (1, 0)
    assert said(world) == (
        False,
        f"0 of 1 {ACCEPTED} (0.000 %, {LOW})",
    )


def test_field_27_a_label_that_should_be_gone_is_not_accurate(world: World) -> None:
    world.map()
    world.settle(tea(1), tea(2))
    world.sandbox.faults({"kind": "error", "error_msg": "no"})
    world.delete(1, version=2)
    for _ in range(3):
        world.round(**SLOW)
    assert (accuracy(world)["accurate"], accuracy(world)["unsettled"]) == (1, 1)
    assert said(world) == (
        False,
        f"1 of 2 {ACCEPTED} (50.000 %, {LOW})",
    )


def test_field_27_a_mapping_with_a_problem_is_not_accurate(world: World) -> None:
    mapping = world.map()
    world.settle(tea())
    world.buffer.mapping_update(mapping, {"settings": {"expected_currency": "EURO"}})
    world.settle()
    passed, words = said(world)
    assert passed is False
    assert words.startswith(f"{STORE}: its settings are not valid") and "expected_currency" in words
    assert label_accuracy(world.buffer.accuracy()).severity == dg.AssetCheckSeverity.ERROR


# --- a shop under another name


def snapshot(world: World, shop: str, variants: Sequence[int]) -> None:
    """A complete read of a shop that has these products, as esl_snapshot_* takes it."""
    key = {"source_system": "shopify", "source_store_id": shop}
    snapshot_id, as_of = str(uuid.uuid4()), when(0)
    world.buffer.snapshot_begin(snapshot_id=snapshot_id, shop=key, run_id=RUN)
    version = {"version_at": when(5), "triggered_at": when(5), "body_sha256": "s", "event_ids": []}
    shared = [
        key | version | {"product_id": str(n), "title": f"Product {n}", "status": "active"} for n in variants
    ]
    world.buffer.snapshot_merge(
        snapshot_id=snapshot_id,
        products=[row | {"deleted": False, "missing_variants": 0, "variant_ids": None} for row in shared],
        variants=[
            row
            | {"variant_id": row["product_id"], "barcode": f"C-{row['product_id']}", "price": "1.00"}
            | {
                "inventory_item_id": f"1000{row['product_id']}",
                "content_hash": "read",
                "sku": "",
                "variant_title": "",
            }
            for row in shared
        ],
    )
    assert world.buffer.snapshot_finish(snapshot_id=snapshot_id, as_of=as_of, counts={})["finished"]


def test_field_30_a_renamed_shop_loses_nothing(world: World) -> None:
    mapping = world.map()
    world.settle(*(tea(n) for n in range(1, 5)))
    right = world.labels()
    world.buffer.mapping_update(mapping, {"source_store_id": OTHER_SHOP})
    world.settle()
    assert world.labels() == right
    waits = f"waits for the first complete read of {OTHER_SHOP}"
    assert waits in accuracy(world)["problem"]
    assert waits in world.buffer.status()["stores"][0]["problem"]
    assert said(world)[0] is False
    # What its webhooks tell of is up to date at once.
    world.update(tea(1, "2.00", 6), shop=OTHER_SHOP)
    world.settle()
    assert world.prices() == {"C-1": "2.00", "C-2": "1.00", "C-3": "1.00", "C-4": "1.00"}
    snapshot(world, SHOP, [1])  # of the name before: says nothing
    world.settle()
    assert len(world.labels()) == 4
    snapshot(world, OTHER_SHOP, [1, 2, 3])
    world.settle()
    assert set(world.labels()) == {"C-1", "C-2", "C-3"}
    assert (accuracy(world)["problem"], world.queue()) == (None, {})


def test_field_30_what_another_shop_does_not_have_leaves_under_the_guard(world: World) -> None:
    mapping = world.map()
    world.settle(*(tea(n) for n in range(1, 11)), tea(11, None))
    world.buffer.mapping_update(mapping, {"source_store_id": OTHER_SHOP})
    world.update(tea(21), shop=OTHER_SHOP)
    world.settle()
    assert len(world.labels()) == 11
    snapshot(world, OTHER_SHOP, [21])
    world.settle()
    assert states(world) == ["guarded"] * 10
    assert world.findings() == set()
    world.buffer.changes_approve(store=STORE, by="Ada")
    world.settle()
    assert set(world.labels()) == {"C-21"}


def test_field_30_nothing_evaluated_under_the_old_name_goes_out_under_the_new_one(world: World) -> None:
    mapping = world.map(is_dry_run=True, settings={"title_template": "WRONG {title}"})
    world.settle(tea(1), tea(2))
    changes = {"source_store_id": OTHER_SHOP, "is_dry_run": False, "settings": {}}
    world.buffer.mapping_update(mapping, changes)
    for _ in range(3):
        world.round()
    assert world.labels() == {}
    snapshot(world, OTHER_SHOP, [1])
    world.settle()
    assert [label["pn"] for label in world.labels().values()] == ["Product 1"]


def test_field_20_a_label_that_only_rivals_keep_in_its_place_is_put_back_when_somebody_edits_it(
    world: World,
) -> None:
    world.map(settings={"guard_labels": 1000})
    world.settle(product(1, 1, [variant(1, "X", "9.00")]))
    world.delete(1, 2)
    world.settle(product(2, 2, [variant(2, "X", "5.00")]), product(3, 2, [variant(3, "X", "6.00")]))
    assert world.prices() == {"X": "9.00"}
    world.sandbox.http.put(f"/sandbox/labels/{STORE}/X", json={"pp": "0.30"}).raise_for_status()
    drift = compare_store(world.buffer, world.client, store=STORE, run_id="night")
    assert (drift.different_count, drift.requeued) == (1, 1)
    world.settle()
    assert world.prices() == {"X": "9.00"}
