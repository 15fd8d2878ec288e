"""The ladder of evidence: how far each price has come, what is in its way, and nothing is claimed without proof."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from esl_pipeline.hipoink.devices import Binding, Devices
from esl_pipeline.orchestration.shelf_checks import CHECKS
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.stages.test_devices import Shelf
from esl_pipeline_tests.world import RUN, SHOP, STORE, World, product, variant

pytestmark = pytest.mark.long

NO_PRICE = 2  # the sandbox's template of its usual model that has none
SHOP_KEY = {"source_system": "shopify", "source_store_id": SHOP}


@pytest.fixture(scope="module")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(auto_trigger=False)) as sandbox:
        yield sandbox


class Ladder(Shelf):
    """A store whose labels are known to move their rows, and what the pipeline says of them."""

    def probed(self, *, rows_move: bool = True, auto_triggers: bool = False) -> None:
        """What a probe finds out."""
        self.world.sql(
            "insert into esl.label_servers (server, rows_move, auto_triggers) values ('default', %s, %s)"
            " on conflict (server) do update set rows_move = excluded.rows_move,"
            " auto_triggers = excluded.auto_triggers",
            rows_move,
            auto_triggers,
        )

    def policy(self, **settings: Any) -> None:
        """Change the policy of the shop's mapping."""
        self.world.sql("update esl.store_mappings set settings = settings || %s", Jsonb(settings))

    def price(self, number: int, price: str, version: int) -> None:
        """A new price arrives and is accepted; nothing is triggered yet."""
        self.world.update(product(number, version, [variant(number, price=price)]))
        self.world.settle()

    def trigger(self) -> None:
        """The store's labels are refreshed, whatever the policy says, and not in the second in which they changed."""
        self.world.sandbox.tick(2)
        self.world.client.bind_task(STORE)
        self.world.sql(
            "insert into esl.refreshes (claim_id, store_code, begun_at, outcome)"
            " values (gen_random_uuid(), %s, now(), 'accepted')",
            STORE,
        )

    def compared(self) -> None:
        """The night reads the label server's own list of products."""
        world = self.world
        compare_store(world.buffer, world.client, store=STORE, run_id=RUN)

    def look(self, code: str, *, is_right: bool = True) -> None:
        """Somebody looks at the labels of a product, and sees what the ledger says or something else."""
        self.world.sql(
            "insert into esl.seen_labels (store_code, code, label_hash, by)"
            " select store_code, code, case when %s then label_hash end, 'anna' from esl.hipoink_products"
            " where code = %s",
            is_right,
            code,
        )

    def wait(self, *, minutes: int) -> None:
        """So much time passes for what was pushed, triggered, read and seen."""
        for table, columns in (
            ("hipoink_products", ["accepted_at"]),
            ("refreshes", ["begun_at"]),
            ("price_history", ["since"]),
            ("seen_labels", ["at"]),
            ("devices", ["first_seen_at", "last_seen_at", "bound_at", "moved_at", "moved_after"]),
            ("device_passes", ["started_at"]),
        ):
            changes = ", ".join(f"{column} = {column} - interval '{minutes} min'" for column in columns)
            self.world.sql(f"set session_replication_role = replica; update esl.{table} set {changes}")

    def not_showing(self) -> set[str]:
        """The labels whose picture is not what the label server holds for them."""
        places = self.http.get("/sandbox/shelf", params={"store": STORE}).raise_for_status().json()
        return {place["esl_code"] for place in places if place["state"] != "right"}

    def labels(self) -> dict[str, dict[str, Any]]:
        """What is known of each physical label."""
        rows, _ = self.world.buffer.shelf_list(store=STORE)
        return {row["esl_code"]: row for row in rows if row["esl_code"]}

    def rung(self, code: str) -> int:
        (place,) = self.world.buffer.ladder(code, store=STORE)
        return int(place["rung"])

    def says(self) -> dict[str, Any]:
        (store,) = self.world.buffer.shelf(shop=SHOP_KEY)
        return store

    def first(self, kind: str) -> list[str]:
        """The first labels of a kind, by their code."""
        found = self.says()["kinds"].get(kind, {"first": []})
        return [row["esl_code"] for row in found["first"]]


@pytest.fixture
def shelf(world: World) -> Ladder:
    return Ladder(world)


def test_a_price_climbs_rung_by_rung(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never", templates_show_price=True)
    (code,) = shelf.hang(products=["C-1"])
    shelf.price(1, "2.00", 2)
    assert shelf.rung("C-1") == 2
    shelf.compared()
    assert shelf.rung("C-1") == 3
    shelf.read()
    assert shelf.labels()[code]["hindrance"] == "not triggered"
    shelf.trigger()
    assert shelf.rung("C-1") == 5
    shelf.read()
    assert shelf.rung("C-1") == 6 and shelf.labels()[code]["hindrance"] is None
    shelf.look("C-1")
    assert shelf.rung("C-1") == 7
    shelf.price(1, "3.00", 3)
    assert shelf.rung("C-1") == 2, "what was seen is another price"


def test_a_move_that_may_have_been_before_the_push_proves_nothing(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never", templates_show_price=True)
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    shelf.price(1, "2.00", 2)
    shelf.trigger()  # before the next pass
    shelf.read()
    assert shelf.rows()[code]["moved_at"] is not None
    assert shelf.rung("C-1") == 5 and shelf.labels()[code]["hindrance"] is None, "nor that it was not"


def test_a_row_that_moved_because_it_was_bound_proves_nothing(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never", templates_show_price=True)
    (code,) = shelf.hang(products=["C-1"])
    shelf.price(2, "2.00", 2)
    shelf.trigger()
    shelf.read()
    Devices(shelf.world.client).bind(STORE, Binding(code, "C-2"))
    shelf.read()
    assert not shelf.labels()[code]["has_moved"] and shelf.rung("C-2") == 5
    shelf.trigger()
    shelf.read()
    assert shelf.rung("C-2") == 6


def test_where_rows_are_not_known_to_move_none_is_called_refreshed(shelf: Ladder) -> None:
    shelf.policy(refresh="never", templates_show_price=True)
    (code,) = shelf.hang(products=["C-1"])
    shelf.price(1, "2.00", 2)
    shelf.read()
    shelf.trigger()
    shelf.read()
    assert shelf.rung("C-1") == 5
    shelf.probed(rows_move=True)
    assert shelf.rung("C-1") == 6
    assert shelf.labels()[code]["stale_seconds"] is None


def test_a_server_that_triggers_by_itself_needs_no_trigger(shelf: Ladder) -> None:
    shelf.policy(refresh="never")
    (code,) = shelf.hang(products=["C-1"])
    shelf.price(1, "2.00", 2)
    shelf.read()
    assert shelf.labels()[code]["hindrance"] == "not triggered"
    shelf.probed(rows_move=False, auto_triggers=True)
    assert (shelf.rung("C-1"), shelf.labels()[code]["hindrance"]) == (5, None)


def test_nothing_is_reachable_that_was_not_read_lately(shelf: Ladder) -> None:
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    assert shelf.rung("C-1") == 5
    shelf.world.sql("update esl.device_passes set started_at = started_at - interval '61 min'")
    assert (shelf.rung("C-1"), shelf.labels()[code]["hindrance"]) == (4, "not read lately")
    shelf.policy(max_pass_age_minutes=62)
    assert shelf.rung("C-1") == 5


def test_a_product_is_refreshed_when_all_of_its_labels_are(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never", templates_show_price=True)
    one, two = shelf.hang(products=["C-1", "C-1"])
    shelf.change(two, asleep=True)
    shelf.price(1, "2.00", 2)
    shelf.read()
    shelf.trigger()
    shelf.read()
    labels = shelf.labels()
    assert (labels[one]["rung"], labels[two]["rung"], shelf.rung("C-1")) == (6, 5, 5)
    shelf.change(two, asleep=False)
    shelf.read()
    assert shelf.rung("C-1") == 6


def test_what_is_on_its_way_is_only_wanted(shelf: Ladder) -> None:
    shelf.hang(products=["C-1"])
    shelf.read()
    shelf.look("C-1")
    assert shelf.rung("C-1") == 7
    shelf.world.sandbox.faults({"kind": "status", "status": 503})
    shelf.world.update(product(1, 2, [variant(1, price="2.00")]))
    shelf.world.round()
    assert shelf.rung("C-1") == 1
    assert shelf.says()["rungs"]["1"] == 1


def test_what_the_nightly_list_had_otherwise_is_not_stored(shelf: Ladder) -> None:
    world = shelf.world
    shelf.hang()
    shelf.compared()
    assert (shelf.says()["rungs"]["4"], shelf.rung("C-1")) == (3, 4), "triggered says no more of it"
    world.sql("delete from esl.label_servers")
    world.sql("set session_replication_role = replica; delete from esl.refreshes")
    assert shelf.rung("C-1") == 3
    world.sql(
        "insert into esl.drift (store_code, code, kind) select %s, 'C-1', 'different' from generate_series(1, 3)",
        STORE,
    )
    world.sql("update esl.comparisons set given_up = 1")
    assert (shelf.rung("C-1"), shelf.rung("C-2")) == (2, 3)


def test_a_sighting_is_of_the_labels_that_hung_then(shelf: Ladder) -> None:
    shelf.hang(products=["C-1"])
    shelf.read()
    shelf.look("C-1")
    (late,) = shelf.hang(products=["C-1"], shown=False)
    shelf.read()
    assert shelf.labels()[late]["rung"] == 5 and shelf.rung("C-1") == 5


def test_without_any_knowledge_of_labels_a_person_may_have_seen_one(shelf: Ladder) -> None:
    shelf.look("C-1")
    assert shelf.rung("C-1") == 7
    shelf.read()
    assert shelf.rung("C-1") == 4, "no label is bound to it"


# Done when: each of these is never counted as refreshed or seen, and found and named by the right check.


def judged(shelf: Ladder) -> dict[str, tuple[bool, str]]:
    """Every check: whether it passes, and what it says."""
    stores = shelf.world.buffer.shelf(shop=SHOP_KEY)
    found = {name: check(stores) for name, check in CHECKS.items()}
    return {name: (one.passed, one.description or "") for name, one in found.items()}


def lies_in_wait(shelf: Ladder, **change: Any) -> str:
    """Four labels, the first of which something happens to; then its price rises, is accepted and triggered."""
    shelf.probed()
    shelf.policy(refresh="never", refresh_minutes=1)
    codes = shelf.hang(products=["C-1", "C-2", "C-3", "C-3"], aps=["AP-1", "AP-2", "AP-2", "AP-2"])
    shelf.read()
    for product_code in ("C-1", "C-2", "C-3"):
        shelf.look(product_code)
    shelf.change(codes[0], **change)
    for number in (1, 2):
        shelf.price(number, "2.00", 2)
    shelf.read()
    shelf.trigger()
    shelf.read()
    shelf.wait(minutes=2)
    return codes[0]


def test_an_offline_label_is_named_by_labels_reachable(shelf: Ladder) -> None:
    code = lies_in_wait(shelf, offline=True)
    label = shelf.labels()[code]
    assert (label["rung"], label["hindrance"], label["is_rise"]) == (4, "offline", True)
    found = judged(shelf)
    assert found["labels_reachable"] == (False, f"{STORE}: 1 of 4 labels are offline ({code})")
    assert found["shelf_is_fresh"] == (
        False,
        f"{STORE}: 1 labels say less than the price is ({code} must show 2.00: offline)",
    )
    assert shelf.says()["label_rungs"] == {"4": 1, "6": 1, "7": 2} | dict.fromkeys("1235", 0)


def test_a_sleeping_label_is_named_by_shelf_is_fresh(shelf: Ladder) -> None:
    code = lies_in_wait(shelf, asleep=True)
    label = shelf.labels()[code]
    assert (label["rung"], label["hindrance"]) == (5, "not refreshed"), "the server calls it online"
    found = judged(shelf)
    assert found["labels_reachable"][0]
    assert found["shelf_is_fresh"] == (
        False,
        f"{STORE}: 1 labels say less than the price is ({code} must show 2.00: not refreshed)",
    )


def test_a_template_without_a_price_is_never_called_refreshed_and_named_once_seen(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never", refresh_minutes=1)
    code, *_ = shelf.hang(products=["C-1"], template=NO_PRICE, shown=False)
    shelf.read()
    shelf.price(1, "2.00", 2)
    shelf.read()
    shelf.trigger()
    shelf.read()
    label = shelf.labels()[code]
    assert (label["rung"], label["has_moved"], label["hindrance"]) == (5, True, None)
    assert shelf.first("unproven") == [code]
    assert judged(shelf)["shelf_is_fresh"][0], "no call tells what its template shows"
    shelf.policy(templates_show_price=True)
    shelf.look("C-1", is_right=False)
    assert shelf.labels()[code]["rung"] == 5, "who has looked knows better than the policy"
    shelf.wait(minutes=2)
    assert judged(shelf)["shelf_is_fresh"] == (
        False,
        f"{STORE}: 1 labels say less than the price is ({code} must show 2.00: seen otherwise)",
    )


def test_a_dead_access_point_is_named_by_labels_reachable(shelf: Ladder) -> None:
    shelf.policy(max_unreachable_pct=100)
    shelf.hang(products=["C-1", "C-2", "C-3", "C-1"], aps=["AP-1", "AP-1", "AP-1", "AP-2"])
    shelf.world.sandbox.set_ap(STORE, "AP-1", dead=True)
    shelf.read()
    assert judged(shelf)["labels_reachable"] == (False, f"{STORE}: all 3 labels of AP-1 are offline")
    assert {row["rung"] for row in shelf.labels().values() if row["ap_code"] == "AP-1"} == {4}


def test_an_unbound_label_is_named_by_bindings(shelf: Ladder) -> None:
    codes = shelf.hang(products=["C-1", "C-2", "C-3"])
    shelf.read()
    shelf.look("C-2")
    Devices(shelf.world.client).unbind(STORE, codes[1])
    shelf.read()
    assert judged(shelf)["bindings"] == (False, f"{STORE}: 1 of 3 labels are bound to nothing ({codes[1]})")
    label = shelf.labels()[codes[1]]
    assert (label["rung"], label["hindrance"], shelf.rung("C-2")) == (None, "bound to nothing", 4)
    shelf.policy(max_unbound_pct=100, max_without_label_pct=30)
    assert judged(shelf)["bindings"] == (False, f"{STORE}: 1 of 3 products have no label (C-2)")


def test_what_labels_are_bound_to_is_told_apart(shelf: Ladder) -> None:
    world = shelf.world
    world.client.create(STORE, {"pc": "X-1", "pn": "Strange", "pp": "1.00"})
    blank, removed, strange = shelf.hang(products=["C-1", "C-2", "X-1"])
    shelf.policy(on_delete="blank")
    world.delete(1, 5)
    world.settle()
    shelf.policy(on_delete="remove")
    world.delete(2, 5)
    world.settle()
    shelf.read()
    bound = {row["esl_code"]: row["product_code"] for row in shelf.labels().values()}
    assert bound == {blank: "C-1", removed: None, strange: "X-1"}, "a removal unbinds"
    assert shelf.first("blanked") == [blank] and shelf.first("strangers") == [strange]
    assert shelf.first("unbound") == [removed]
    world.sql("update esl.devices set product_code = 'C-2' where esl_code = %s", removed)
    assert shelf.first("removed") == [removed], "as a server has it that does not unbind"


def test_low_batteries_are_named_and_dying_ones_told(shelf: Ladder) -> None:
    low, dying, good = shelf.hang(products=["C-1", "C-2", "C-3"])
    shelf.change(low, battery=2600)
    shelf.change(dying, battery=2899)
    shelf.read()
    shelf.world.sql(
        "insert into esl.device_changes (at, store_code, esl_code, pass_id, what, old, new)"
        " values (now() - interval '5 days', %s, %s, gen_random_uuid(), 'battery', '3005', '2999')",
        STORE,
        dying,
    )
    passed, says = judged(shelf)["batteries"]
    assert not passed and says == (
        f"{STORE}: 1 of 3 batteries are below 2660 mV ({low}); "
        f"{STORE}: 1 more will be within 30 days ({dying})"
    )
    assert shelf.labels()[low]["rung"] == 4 and shelf.labels()[good]["rung"] == 5
    shelf.policy(low_battery_mv=2500)
    assert judged(shelf)["batteries"][0] and shelf.labels()[low]["rung"] == 5


def test_a_store_that_cannot_be_read_is_named(shelf: Ladder) -> None:
    shelf.hang()
    assert judged(shelf)["labels_reachable"] == (False, f"{STORE}: its labels were not read yet")


# How long a shelf says something old.


def test_a_label_is_stale_since_the_first_price_that_it_missed(shelf: Ladder) -> None:
    shelf.probed()
    shelf.policy(refresh="never")
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    shelf.change(code, asleep=True)
    shelf.price(1, "2.00", 2)
    shelf.wait(minutes=30)
    shelf.price(1, "1.50", 3)
    shelf.read()
    label = shelf.labels()[code]
    assert 1_800 <= label["stale_seconds"] < 1_900 and label["is_late"] and label["is_rise"]
    assert shelf.says()["stale_rises"] == 1


def test_a_cut_is_no_rise_and_is_late_after_its_minutes(shelf: Ladder) -> None:
    shelf.policy(refresh="never", max_late_pct=0)
    (code,) = shelf.hang(products=["C-1"])
    shelf.trigger()
    shelf.price(1, "0.50", 2)
    shelf.read()
    label = shelf.labels()[code]
    assert (label["hindrance"], label["is_late"], label["is_rise"]) == ("not triggered", False, False)
    assert judged(shelf)["shelf_is_fresh"][0]
    shelf.wait(minutes=16)
    assert judged(shelf)["shelf_is_fresh"] == (
        False,
        f"{STORE}: 1 of 1 labels should show something else ({code} must show 0.50: not triggered)",
    )
    shelf.policy(max_late_pct=100)
    assert judged(shelf)["shelf_is_fresh"][0]


def test_while_labels_sleep_they_are_not_late(shelf: Ladder) -> None:
    shelf.policy(refresh="never")
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    shelf.wait(minutes=60)
    assert shelf.labels()[code]["is_late"]
    now = datetime.now(UTC)
    hours = f"{now - timedelta(hours=3):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    shelf.policy(sleep_hours=hours)
    label = shelf.labels()[code]
    assert label["stale_seconds"] < 1 and not label["is_late"]


@pytest.mark.parametrize(
    ("since", "now", "sleeps", "awake"),
    [
        ("2026-03-01 21:00", "2026-03-02 07:00", ("22:00", "06:00"), 2 * 3600),
        ("2026-03-01 23:00", "2026-03-02 05:00", ("22:00", "06:00"), 0),
        ("2026-03-01 12:00", "2026-03-03 12:00", ("22:00", "06:00"), 32 * 3600),
        ("2026-03-01 12:00", "2026-03-01 16:00", ("13:00", "14:30"), 2.5 * 3600),
        ("2026-03-01 13:30", "2026-03-01 14:00", ("13:00", "14:30"), 0),
        ("2026-03-01 12:00", "2026-03-01 16:00", None, 4 * 3600),
    ],
)
def test_seconds_count_while_labels_are_awake(
    shelf: Ladder, since: str, now: str, sleeps: tuple[str, str] | None, awake: float
) -> None:
    at = [60 * int(hour) + int(minute) for hour, minute in (text.split(":") for text in sleeps or ())]
    (found,) = shelf.world.sql(
        "select esl.awake_seconds(%s::timestamptz, %s::timestamptz, 'UTC', %s::int, %s::int) as n",
        since + "Z",
        now + "Z",
        *([60 * minutes for minutes in at] or [None, None]),
    )
    assert found["n"] == awake


def test_whatever_settings_hold_nothing_here_raises(shelf: Ladder) -> None:
    shelf.hang()
    shelf.read()
    shelf.world.sql(
        "insert into esl.shops (source_system, source_store_id, time_zone, updated_at)"
        " values ('shopify', %s, 'Mars/Phobos', now())",
        SHOP,
    )
    shelf.policy(sleep_hours="22:00-06:00", low_battery_mv="many", max_late_pct=-1, templates_show_price=[1])
    assert shelf.says()["limits"]["max_late_pct"] == 5
    shelf.policy(sleep_hours="at night", max_pass_age_minutes=10**12)
    assert shelf.says()["labels"] == 3


def test_without_a_refresh_exactly_the_labels_are_named_that_do_not_show_their_price(shelf: Ladder) -> None:
    """Done when 1: by what the pipeline says, and by the sandbox's pictures."""
    shelf.policy(refresh="never", refresh_minutes=1, max_late_pct=0)
    old = shelf.hang(products=["C-1", "C-2", "C-2", "C-3"])
    shelf.trigger()
    shelf.price(2, "2.00", 2)
    shelf.world.settle(product(4, 1))
    (new,) = shelf.hang(products=["C-4"], shown=False)
    shelf.read()
    shelf.wait(minutes=2)
    must = {old[1], old[2], new}
    assert shelf.not_showing() == must
    assert {code for code, row in shelf.labels().items() if row["hindrance"]} == must
    assert set(shelf.first("late")) == must and shelf.says()["stale"] == 3
    shelf.trigger()
    assert shelf.not_showing() == set() and shelf.says()["stale"] == 0
