"""Removals know what they unbind: one that may unbind physical labels waits, with its label blank meanwhile."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.commands.shown import print_preview
from esl_pipeline.commands.story_lines import print_story
from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.orchestration.checks import label_accuracy
from esl_pipeline.stages.devices import DevicePass, read_devices
from esl_pipeline.stages.drain import DrainLimits, drain
from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.world import ASSET, AT_ONCE, RULES, RUN, STORE, World, product, variant

pytestmark = pytest.mark.long

OTHER_STORE = "S2"
BLANK = {"pn": "-", "pp": "0.00"}
Row = dict[str, Any]


def waits(**settings: Any) -> Row:
    """Settings of a mapping whose removals wait as they do where nothing is said of it."""
    return {"settings": {"unbind_grace_hours": 24} | settings}


def tea(number: int = 1, version: int = 1, price: str = "1.00", code: str = "auto", **fields: Any) -> Row:
    return product(number, version, [variant(number, code, price)], **fields)


def settle_many(world: World, *bodies: Row) -> None:
    """However long it takes."""
    world.update(*bodies)
    while world.round().did_something:
        pass
    world.settle()


def archive(world: World, *numbers: int, version: int = 2, **settle: Any) -> None:
    world.settle(*(tea(n, version, status="archived") for n in numbers), **settle)


def hang(world: World, *codes: str, store: str = STORE) -> None:
    """A physical label for each of these products."""
    world.sandbox.http.put(
        "/sandbox/devices", json={"store": store, "products": list(codes)}
    ).raise_for_status()


def bound(world: World) -> list[str]:
    """The products that physical labels are bound to."""
    places = world.sandbox.http.get("/sandbox/shelf").raise_for_status().json()
    return sorted(place["product_code"] for place in places if place["product_code"])


def look(world: World, store: str = STORE) -> DevicePass:
    """A pass over the physical labels of a store."""
    return read_devices(world.buffer, Devices(world.client), store=store, run_id=RUN)


def pass_hours(world: World, hours: int) -> None:
    """What the passing of time does to what waits, and who looks then."""
    back = f"interval '{hours} hours'"
    world.sql(
        f"update esl.graces set since = since - {back}, until = until - {back}, decided_at = decided_at - {back}"
    )
    world.sql(f"update esl.store_mappings set activated_at = activated_at - {back}")
    world.sql(f"update esl.device_passes set started_at = started_at - {back}")
    while world.buffer.graces_end():
        pass
    world.settle()


def blank(world: World, store: str = STORE) -> list[str]:
    """The codes of the labels that are blank."""
    return sorted(code for code, record in world.labels(store).items() if record | BLANK == record)


def removals(world: World) -> int:
    return int(world.sandbox.state()["calls"].get("del_multiple", 0))


def said(show: Callable[[Console, list[Row]], None], rows: list[Row]) -> str:
    """What a command prints of these rows."""
    text = io.StringIO()
    show(Console(file=text, width=250), rows)
    return text.getvalue()


def grace(world: World) -> Row:
    (mapping,) = world.buffer.accuracy()
    return dict(mapping["grace"])


# --- how long


def test_a_label_that_is_to_go_is_blank_for_a_day_and_then_goes(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1), tea(2))
    hang(world, "C-1", "C-2")
    archive(world, 1)
    assert (blank(world), bound(world), removals(world)) == (["C-1"], ["C-1", "C-2"], 0)
    pass_hours(world, 23)
    assert (blank(world), bound(world), removals(world)) == (["C-1"], ["C-1", "C-2"], 0)
    pass_hours(world, 1)
    assert (list(world.labels()), bound(world), removals(world)) == (["C-2"], ["C-2"], 1)
    assert world.sql("select * from esl.graces") == []


def test_where_nothing_is_said_of_it_removals_wait(world: World) -> None:
    mapping = world.map()
    world.buffer.mapping_update(mapping, {"settings": {}})
    world.settle(tea(1))
    archive(world, 1)
    assert (blank(world), removals(world)) == (["C-1"], 0)


def test_none_waits_where_the_policy_says_so(world: World) -> None:
    world.map(**waits(**AT_ONCE))
    world.settle(tea(1))
    hang(world, "C-1")
    archive(world, 1)
    assert (world.labels(), bound(world)) == ({}, [])


def test_a_label_may_stay_as_it_is_until_it_goes(world: World) -> None:
    world.map(**waits(during_grace="keep"))
    world.settle(tea(1, price="7.00"))
    archive(world, 1)
    assert (world.prices(), world.queue(), grace(world)["places"]) == ({"C-1": "7.00"}, {}, 1)
    pass_hours(world, 24)
    assert world.labels() == {}


@pytest.mark.parametrize("number", [1, 9])
def test_a_product_that_comes_back_finds_its_labels_bound(world: World, number: int) -> None:
    """The same variant, or another one of the same code."""
    world.map(**waits())
    world.settle(tea(1))
    hang(world, "C-1")
    archive(world, 1)
    pass_hours(world, 23)
    world.settle(tea(number, 3, "2.50", code="C-1"))
    assert (world.prices(), bound(world), removals(world)) == ({"C-1": "2.50"}, ["C-1"], 0)
    assert world.sql("select * from esl.graces") == []
    pass_hours(world, 24)
    assert world.prices() == {"C-1": "2.50"}


def test_a_code_that_moves_to_another_variant_keeps_its_labels(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1), tea(2))
    hang(world, "C-1", "C-2")
    world.settle(tea(1, 2, code="C-9"))  # mistyped
    assert (blank(world), sorted(world.labels())) == (["C-1"], ["C-1", "C-2", "C-9"])
    world.settle(tea(2, 2, "3.00", code="C-1"))
    assert (world.prices(), blank(world)) == ({"C-1": "3.00", "C-2": "0.00", "C-9": "1.00"}, ["C-2"])
    assert (bound(world), removals(world)) == (["C-1", "C-2"], 0)


def test_a_label_is_not_blank_before_its_variants_new_one_is_accepted(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1))
    world.sandbox.faults({"kind": "bad_codes", "codes": ["C-9"]})
    world.update(tea(1, 2, code="C-9"))
    for _ in range(5):
        world.round()
    assert (world.prices(), blank(world)) == ({"C-1": "1.00"}, [])
    world.sandbox.faults()
    world.buffer.redrive()
    world.settle()
    assert (sorted(world.labels()), blank(world)) == (["C-1", "C-9"], ["C-1"])


def test_while_rivals_claim_the_code_nothing_goes_and_afterwards_the_time_begins_anew(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    pass_hours(world, 23)
    world.settle(tea(2, 3, code="C-1"), tea(3, 3, "2.00", code="C-1"))
    assert (blank(world), world.sql("select * from esl.graces")) == (["C-1"], [])
    world.settle(tea(2, 4, status="archived"), tea(3, 4, status="archived"))
    pass_hours(world, 23)
    assert blank(world) == ["C-1"]
    pass_hours(world, 1)
    assert world.labels() == {}


# --- evidence


def test_a_product_without_a_label_goes_once_a_pass_since_then_has_shown_none(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1), tea(2))
    hang(world, "C-2")
    look(world)  # before: says nothing of later
    archive(world, 1, 2)
    assert blank(world) == ["C-1", "C-2"]
    assert look(world).outcome == "complete"
    assert world.buffer.due().graces is True
    while world.buffer.graces_end():
        pass
    world.settle()
    assert (blank(world), list(world.labels()), bound(world)) == (["C-2"], ["C-2"], ["C-2"])


def test_a_pass_that_failed_concludes_nothing(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    world.sandbox.faults({"kind": "status", "status": 500, "action": "esl/query"})
    assert look(world).outcome == "failed"
    assert (world.buffer.due().graces, world.buffer.graces_end()) == (False, 0)


def test_what_another_server_has_shown_of_the_store_is_no_evidence(world: World) -> None:
    mapping = world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    unbound = "select esl.is_unbound('S1', 'C-1', decided_at) as is_so from esl.graces"
    look(world)
    assert world.sql(unbound) == [{"is_so": True}]
    world.buffer.mapping_update(mapping, {"label_server": "north"})
    assert world.sql(unbound) == [{"is_so": False}]
    world.buffer.mapping_update(mapping, {"label_server": "default"})
    assert world.sql(unbound) == [{"is_so": False}], "it was away meanwhile"
    assert look(world).outcome == "complete"
    assert world.sql(unbound) == [{"is_so": True}]


def test_a_server_that_knows_no_devices_removes_as_it_always_did(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1), tea(2))
    archive(world, 1)
    assert blank(world) == ["C-1"], "it was not asked yet"
    with running_sandbox(generation=2020) as old, client_of(old.url, retries=1) as client:
        assert look(replace(world, client=client)).outcome == "not_known"
    while world.buffer.graces_end():
        pass
    world.settle()
    assert list(world.labels()) == ["C-2"]
    archive(world, 2)
    assert world.labels() == {}


# --- the guard and people


def test_the_guard_counts_physical_labels(world: World) -> None:
    world.map(**waits())
    world.settle(*(tea(n) for n in range(1, 13)))
    hang(world, *["C-1"] * 8, *(f"C-{n}" for n in range(2, 13)))
    look(world)
    archive(world, 1)
    assert (world.queue()["C-1"]["state"], blank(world)) == ("guarded", [])
    (preview,) = world.buffer.preview(store=STORE)
    assert preview["guarded"] == 1
    world.buffer.changes_approve(store=STORE, by="Ada")
    world.settle()
    assert blank(world) == ["C-1"]
    assert grace(world) | {"next_at": 0} == {"places": 1, "bound": 8, "next_at": 0}


@pytest.mark.parametrize(
    "count", [60, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_archived_and_approved_by_mistake_no_binding_is_lost(world: World, count: int) -> None:
    numbers = range(1, count + 1)
    world.map(**waits())
    settle_many(world, *(tea(n) for n in numbers))
    codes = sorted(f"C-{n}" for n in numbers)
    hang(world, *codes)
    look(world)
    settle_many(world, *(tea(n, 2, status="archived") for n in numbers))
    held = count - len(blank(world))  # of a mass that comes little by little the guard lets a fifth through
    assert len(world.queue()) == held >= 0.8 * count
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": held, "prices": 0}
    settle_many(world)
    assert (blank(world), bound(world)) == (codes, codes)
    look(world)
    pass_hours(world, 1)
    settle_many(world, *(tea(n, 3) for n in numbers))
    assert (world.prices(), bound(world)) == (dict.fromkeys(codes, "1.00"), codes)
    assert (removals(world), world.queue(), grace(world)["places"]) == (0, {}, 0)


def test_what_somebody_approves_late_waits_from_then_on_and_is_approved_once(world: World) -> None:
    world.map(**waits())
    world.settle(*(tea(n) for n in range(1, 21)))
    archive(world, *range(1, 21))
    pass_hours(world, 100)  # nobody has looked
    assert (blank(world), removals(world), len(world.labels())) == ([], 0, 20)
    world.buffer.changes_approve(store=STORE, by="Ada")
    world.settle()
    pass_hours(world, 23)
    assert len(blank(world)) == 20
    pass_hours(world, 1)
    assert world.labels() == {}


def test_labels_that_stay_meanwhile_are_guarded_at_the_end_and_wait_once_more(world: World) -> None:
    world.map(**waits(during_grace="keep"))
    world.settle(*(tea(n) for n in range(1, 21)))
    archive(world, *range(1, 21))
    pass_hours(world, 24)
    assert {row["state"] for row in world.queue().values()} == {"guarded"}
    assert world.buffer.changes_approve(store=STORE, by="Ada") == {"removals": 20, "prices": 0}
    world.settle()
    assert (len(world.labels()), world.queue()) == (20, {})
    pass_hours(world, 23)
    assert len(world.labels()) == 20
    pass_hours(world, 1)
    assert world.labels() == {}


def test_removals_after_their_wait_are_not_counted_twice(world: World) -> None:
    world.map(**waits(guard_labels=4, guard_share_pct=0))
    world.settle(*(tea(n) for n in range(1, 11)))
    archive(world, 1, 2, 3)
    pass_hours(world, 24)
    assert (len(world.labels()), world.queue()) == (7, {})


def test_while_a_mapping_is_paused_no_time_passes(world: World) -> None:
    mapping = world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    world.buffer.mapping_update(mapping, {"is_active": False})
    pass_hours(world, 100)
    assert blank(world) == ["C-1"]
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.settle()
    pass_hours(world, 23)
    assert blank(world) == ["C-1"]
    pass_hours(world, 1)
    assert world.labels() == {}


def test_a_shorter_wait_holds_at_once(world: World) -> None:
    mapping = world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    pass_hours(world, 2)
    world.buffer.mapping_update(mapping, waits(unbind_grace_hours=1))
    world.settle()
    assert world.labels() == {}


def test_what_a_mapping_has_left_behind_is_blank_until_it_goes(world: World) -> None:
    mapping = world.map(**waits())
    world.settle(tea(1))
    hang(world, "C-1")
    world.buffer.mapping_update(mapping, {"hipoink_store_code": OTHER_STORE})
    world.settle()
    assert (blank(world), world.prices(OTHER_STORE)) == (["C-1"], {"C-1": "1.00"})
    world.buffer.mapping_update(mapping, {"hipoink_store_code": STORE})
    world.settle()
    assert (world.prices(), bound(world), blank(world, OTHER_STORE)) == ({"C-1": "1.00"}, ["C-1"], ["C-1"])
    pass_hours(world, 24)
    assert (world.prices(), world.labels(OTHER_STORE)) == ({"C-1": "1.00"}, {})


def test_a_label_of_nobodys_is_not_written_until_it_goes(world: World) -> None:
    world.map(**waits(owns_store=True))
    world.settle(*(tea(n) for n in range(1, 4)))
    theirs = world.sandbox.http.put(f"/sandbox/labels/{STORE}/F-1", json={"pn": "not ours", "pp": "x"})
    theirs.raise_for_status()
    for _ in range(3):
        compare_store(world.buffer, world.client, store=STORE, run_id=RUN)
        world.settle()
        assert world.labels()["F-1"]["pn"] == "not ours"
    pass_hours(world, 24)
    assert sorted(world.labels()) == ["C-1", "C-2", "C-3"]


def test_an_erased_shop_leaves_nothing_that_waits(world: World) -> None:
    mapping = world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    world.buffer.mapping_update(mapping, {"is_active": False})
    world.sql("select esl.forget_labels(array[%s::uuid])", mapping)
    assert world.sql("select * from esl.graces") == []


# --- what is said of it


def test_a_label_that_waits_is_right_and_named_apart(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1), tea(2))
    hang(world, "C-1")
    archive(world, 1)
    look(world)
    (mapping,) = world.buffer.accuracy()
    assert (mapping["publishable"], mapping["accurate"], mapping["unsettled"]) == (1, 1, 0)
    check = label_accuracy([mapping])
    assert check.passed and "1 removed label waits until" in (check.description or "")
    drift = compare_store(world.buffer, world.client, store=STORE, run_id=RUN)
    assert (drift.different, drift.missing, drift.foreign, drift.requeued) == ([], [], [], 0)
    (place,) = world.buffer.trace("C-1")
    assert (place["grace"]["bound"], place["grace"]["label"]["pp"]) == (1, "1.00")
    story, text = world.buffer.story(store=STORE, code="C-1"), io.StringIO()
    assert story is not None and "to be removed since" in str(story.waits)
    print_story(Console(file=text, width=250), story, place)
    assert "1 physical labels are known to be bound to it; before" in text.getvalue()
    preview = world.buffer.preview(store=STORE)
    assert "1 removed labels wait, the first until 20" in said(print_preview, preview)
    assert world.buffer.status()["stores"][0]["queue"]["waiting"] == 0


@pytest.mark.parametrize("wrong", ["edited", "gone"])
def test_a_blank_label_that_somebody_changes_is_blank_again(world: World, wrong: str) -> None:
    world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    if wrong == "edited":
        world.sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pn": "Tea"}).raise_for_status()
    else:
        world.sandbox.http.delete(f"/sandbox/labels/{STORE}/C-1").raise_for_status()
    assert compare_store(world.buffer, world.client, store=STORE, run_id=RUN).requeued == 1
    world.settle()
    assert (blank(world), world.queue()) == (["C-1"], {})
    pass_hours(world, 24)
    assert world.labels() == {}


# --- at work


def test_a_drain_removes_what_has_waited(world: World) -> None:
    world.map(**waits())
    world.settle(tea(1))
    archive(world, 1)
    assert world.buffer.due().anything is False
    world.sql("update esl.graces set since = since - interval '1 day', until = until - interval '1 day'")
    world.sql("update esl.store_mappings set activated_at = activated_at - interval '1 day'")
    assert world.buffer.due().anything is True
    told: Row = {"run_id": RUN, "holder": "h", "asset": ASSET, "on_idle": lambda: None}
    drain(world.buffer, world.client, RULES, DrainLimits(1, 60), **told, on_round=lambda _: None)
    assert (world.labels(), world.buffer.due().anything) == ({}, False)


def test_removals_that_were_queued_before_there_was_a_grace_wait_as_well(world: World) -> None:
    mapping = world.map(**waits(**AT_ONCE))
    world.settle(tea(1))
    world.sandbox.faults({"kind": "status", "status": 503, "action": "del_multiple"})
    world.update(tea(1, 2, status="archived"))
    world.round(initial_delay=60, max_delay=60)
    world.sandbox.faults()
    world.sql("update esl.store_mappings set settings = '{}' where id = %s", mapping)
    world.sql("delete from esl.schema_migrations where version = 107")
    migrate(world.dsn)
    world.settle()
    assert (blank(world), removals(world)) == (["C-1"], 1)


@pytest.fixture(autouse=True)
def _no_devices_left(world: World) -> Iterator[None]:
    yield
    for store in (STORE, OTHER_STORE):
        world.sandbox.http.delete(f"/sandbox/devices/{store}")
