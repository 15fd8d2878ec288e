"""What operators do: push again, pause, replay, redrive, try, approve, reject and remove; and that each is kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from esl_pipeline.buffer.errors import ActionRefused
from esl_pipeline_tests.world import SHOP, STORE, World, product, variant

BY = "Ada"
SHOP_KEY = {"source_system": "shopify", "source_store_id": SHOP}


def last_action(world: World) -> dict[str, Any]:
    """What was done last, without its times and numbers."""
    kept = world.buffer.operator_actions(limit=1)[0]
    return {key: kept[key] for key in ("by", "verified", "run_id", "action", "store_code", "how_many")}


def refused(call: Any, **arguments: Any) -> str:
    """What is said to a wish that is refused."""
    with pytest.raises(ActionRefused) as error:
        call(**arguments, by=BY)
    return str(error.value)


def sent(world: World) -> dict[str, int]:
    """How often each label was accepted."""
    rows = world.sql("select code, count(*) as n from esl.sync_log where outcome = 'accepted' group by 1")
    return {row["code"]: row["n"] for row in rows}


def many(world: World, count: int = 20) -> None:
    """So many labels that hang."""
    world.map()
    world.settle(*(product(n) for n in range(1, count + 1)))


def priced(price: str, version: int, numbers: Any) -> list[Any]:
    """These products at another price."""
    return [product(n, version=version, variants=[variant(n, price=price)]) for n in numbers]


@pytest.fixture
def stocked(world: World) -> World:
    """Three labels that hang."""
    world.map()
    world.settle(
        product(1, vendor="Acme", tags="fruit, Sale"),
        product(2, vendor="Acme"),
        product(3, vendor="Orchard", product_type="Fruit"),
    )
    return world


# --- push again


@pytest.mark.parametrize(
    ("choice", "codes"),
    [
        ({"codes": ["C-1", "C-3"]}, {"C-1", "C-3"}),
        ({"product": "2"}, {"C-2"}),
        ({"sku": "sku-3"}, {"C-3"}),
        ({"vendor": "acme"}, {"C-1", "C-2"}),
        ({"tag": "SALE"}, {"C-1"}),
        ({"product_type": "fruit"}, {"C-3"}),
        ({"whole": True}, {"C-1", "C-2", "C-3"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_pushed_again_goes_out_once_more(
    stocked: World, choice: dict[str, Any], codes: set[str]
) -> None:
    done = stocked.buffer.labels_push(store=STORE, by=BY, run_id="r-7", **choice)
    assert (done["labels"], done["pushed_again"]) == (len(codes), len(codes))
    stocked.settle()
    assert sent(stocked) == {code: 2 if code in codes else 1 for code in ("C-1", "C-2", "C-3")}
    assert stocked.queue() == {}
    who = {"by": BY, "verified": False, "run_id": "r-7"}
    assert last_action(stocked) == who | {"action": "push", "store_code": STORE, "how_many": len(codes)}


def test_a_label_server_restored_from_an_old_backup_is_filled_again(stocked: World) -> None:
    stocked.settle(*priced("2.00", 2, [1, 2, 3]))
    stocked.sandbox.clear()
    assert stocked.labels() == {}
    stocked.buffer.labels_push(store=STORE, whole=True, by=BY)
    stocked.settle()
    assert stocked.prices() == {"C-1": "2.00", "C-2": "2.00", "C-3": "2.00"}


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"codes": ["C-1", "C-9"]}, "store S1 has no label C-9: nothing was done"),
        ({"vendor": "Nobody"}, "no label of store S1 has the vendor Nobody"),
        ({"store": "S9", "whole": True}, "no shop is mapped to store S9: see `esl-pipeline stores list`"),
        ({}, "say which labels in one way"),
        ({"whole": True, "codes": ["C-1"]}, "say which labels in one way"),
    ],
    ids=["code", "vendor", "store", "nothing", "two ways"],
)
def test_what_cannot_be_pushed_is_refused_and_nothing_done(
    stocked: World, choice: dict[str, Any], says: str
) -> None:
    assert says in refused(stocked.buffer.labels_push, **{"store": STORE} | choice)
    assert stocked.queue() == {} and stocked.buffer.operator_actions() == []


def test_what_waits_for_its_window_or_for_a_word_goes_on_waiting(world: World) -> None:
    now = datetime.now(UTC)
    hours = (f"{now + timedelta(hours=n):%H:%M}" for n in (2, 3))
    window = dict(zip(("opens", "closes"), hours, strict=True)) | {"time_zone": "UTC"}
    world.map(settings={"raise_window": window})
    world.settle(*(product(n) for n in range(1, 21)))
    world.update(*priced("9.00", 2, range(1, 7)), *priced("1.10", 2, [7]))
    world.round()
    done = world.buffer.labels_push(store=STORE, whole=True, by=BY)
    counts = ("labels", "pushed_again", "waits_for_approval", "waits_for_window", "held_back")
    assert [done[key] for key in counts] == [20, 13, 6, 1, 0]
    world.round()
    assert set(world.prices().values()) == {"1.00"}


def test_a_refused_label_that_is_pushed_again_is_due_at_once(stocked: World) -> None:
    stocked.sandbox.faults({"kind": "error", "codes": ["C-1"]})
    stocked.settle(*priced("2.00", 2, [1, 2]))
    assert stocked.queue()["C-1"]["state"] == "failed"
    stocked.sandbox.faults()
    done = stocked.buffer.labels_push(store=STORE, codes=["C-1"], by=BY)
    assert (done["already_due"], done["pushed_again"]) == (1, 0)
    stocked.settle()
    assert stocked.prices()["C-1"] == "2.00"


def test_the_same_wish_again_is_not_done_again(stocked: World) -> None:
    wish = "8f14e45f-ceea-467f-a8d9-3e2bd3d8f2a1"
    first = stocked.buffer.labels_push(store=STORE, whole=True, by=BY, action_id=wish)
    stocked.settle()
    assert stocked.buffer.labels_push(store=STORE, whole=True, by=BY, action_id=wish) == first
    assert stocked.queue() == {} and len(stocked.buffer.operator_actions()) == 1


def test_a_wish_that_was_sent_before_with_another_one_in_it_is_refused(stocked: World) -> None:
    wish = "8f14e45f-ceea-467f-a8d9-3e2bd3d8f2a2"
    first = stocked.buffer.store_pause(store=STORE, reason="x", until="2100-01-01", by=BY, action_id=wish)
    # "For four hours" is another end when the form is sent again, and the same wish.
    again = stocked.buffer.store_pause(store=STORE, reason="x", until="2100-01-02", by=BY, action_id=wish)
    assert again == first
    for call, fields in (
        (stocked.buffer.store_resume, {"store": STORE}),
        (stocked.buffer.store_pause, {"store": STORE, "reason": "y"}),
        (stocked.buffer.labels_push, {"store": STORE, "whole": True}),
    ):
        assert "sent before with another wish" in refused(call, action_id=wish, **fields)
    assert len(stocked.buffer.operator_actions()) == 1


@pytest.mark.parametrize("nothing", ["", "  "])
def test_an_empty_word_does_not_mean_all(stocked: World, nothing: str) -> None:
    stocked.sandbox.faults({"kind": "error", "codes": ["C-1"]})
    stocked.settle(*priced("2.00", 2, [1]))
    b = stocked.buffer
    for call, fields in (
        (b.redrive, {"reason": nothing}),
        (b.redrive, {"store": nothing}),
        (b.deliveries_replay, {"reason": nothing}),
        (b.labels_push, {"store": STORE, "vendor": nothing}),
        (b.labels_push, {"store": STORE, "sku": nothing}),
        (b.store_pause, {"store": STORE, "reason": nothing}),
        (b.label_server_try, {"label_server": nothing}),
    ):
        assert "must not be empty" in refused(call, **fields), fields
    assert "longer than 1000" in refused(b.store_pause, store=STORE, reason="x" * 1001)
    assert b.operator_actions() == []


# --- pause and resume


def test_a_paused_store_is_left_alone_and_what_came_meanwhile_is_pushed_once(world: World) -> None:
    many(world, 3)
    world.map("other.myshopify.com", "S2")
    paused = world.buffer.store_pause(store=STORE, reason="stock-taking", by=BY)
    assert (paused["reason"], paused["by"], paused["until"]) == ("stock-taking", BY, None)
    before = world.sandbox.state()["calls"]
    world.update(*priced("2.00", 2, [1, 2, 3]))
    world.update(*priced("3.00", 3, [1, 2]))
    world.delete(3, version=4)
    world.update(product(50), shop="other.myshopify.com")
    world.round()
    assert world.prices() == dict.fromkeys(("C-1", "C-2", "C-3"), "1.00")
    assert world.prices("S2") == {"C-50": "1.00"}
    assert before != world.sandbox.state()["calls"]  # of the other store
    assert world.buffer.due().anything is False  # nobody spins
    state = next(s for s in world.buffer.status()["stores"] if s["hipoink_store_code"] == STORE)
    assert state["pause"]["reason"] == "stock-taking" and state["paused"] is None

    assert world.buffer.store_resume(store=STORE, by="Bob")["waiting"] == 3
    assert world.buffer.due().queue is True
    world.settle()
    assert [world.shown(code) for code in ("C-1", "C-2", "C-3")] == [
        ["1.00", "3.00"],
        ["1.00", "3.00"],
        ["1.00", None],
    ]
    (pause,) = world.buffer.store_pauses(store=STORE)
    assert (pause["by"], pause["ended_by"], pause["holds"]) == (BY, "Bob", False)
    assert [a["action"] for a in world.buffer.operator_actions()] == ["resume", "pause"]


def test_a_paused_store_is_not_refreshed_until_it_is_resumed(stocked: World) -> None:
    stocked.update(*priced("2.00", 2, [1]))
    stocked.sql("update esl.refresh_marks set not_before = now(), next_at = now()")
    stocked.sql(
        "insert into esl.refresh_marks (store_code, since) values ('S1', now())"
        " on conflict (store_code) do update set since = now()"
    )
    assert stocked.buffer.due().refresh is True
    stocked.buffer.store_pause(store=STORE, reason="stock-taking", by=BY)
    assert stocked.buffer.due().refresh is False
    stocked.buffer.store_resume(store=STORE, by=BY)
    assert stocked.buffer.due().refresh is True


def test_a_pause_ends_by_itself(stocked: World) -> None:
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    stocked.buffer.store_pause(store=STORE, reason="the night team works", until=until, by=BY)
    stocked.update(*priced("2.00", 2, [1]))
    stocked.round()
    assert stocked.prices()["C-1"] == "1.00"
    assert stocked.buffer.due().anything is False
    # What the passing of time does to a row that nobody may change.
    stocked.sql(
        "set session_replication_role = replica; update esl.store_pauses set until = clock_timestamp()"
    )
    assert stocked.buffer.due().queue is True
    stocked.settle()
    assert stocked.prices()["C-1"] == "2.00"
    (pause,) = stocked.buffer.store_pauses()
    assert (pause["holds"], pause["ended_by"], pause["ended_at"]) == (False, "its end", pause["until"])
    assert refused(stocked.buffer.store_resume, store=STORE) == "store S1 is not paused"


def test_another_pause_takes_the_place_of_the_one_before_and_both_are_kept(stocked: World) -> None:
    stocked.buffer.store_pause(store=STORE, reason="first", by=BY)
    stocked.buffer.store_pause(store=STORE, reason="second", by="Bob")
    second, first = stocked.buffer.store_pauses()
    assert (second["reason"], second["holds"]) == ("second", True)
    assert (first["reason"], first["holds"], first["ended_by"]) == ("first", False, "Bob")


def test_a_pause_says_why_and_ends_in_the_future(stocked: World) -> None:
    pause = stocked.buffer.store_pause
    assert "no shop is mapped to store S9" in refused(pause, store="S9", reason="x")
    assert "reason must not be empty" in refused(pause, store=STORE, reason=" ")
    assert "over already" in refused(pause, store=STORE, reason="x", until="2020-01-01T00:00:00Z")
    assert "no shop is mapped" in refused(stocked.buffer.store_resume, store="S9")


# --- deliveries and labels again


def test_deliveries_are_replayed_by_id_shop_time_and_reason(stocked: World) -> None:
    replay = stocked.buffer.deliveries_replay
    (row,) = stocked.sql("select max(id) as id, max(webhook_id) as webhook_id from esl.webhook_inbox")

    def set_aside() -> None:
        stocked.sql(
            "update esl.webhook_inbox set state = 'unusable', reason = 'replay suspected: too old' where id = %s",
            row["id"],
        )

    set_aside()
    assert replay(ids=[row["webhook_id"]], by=BY)["deliveries"] == 1
    assert stocked.inbox() == ["done", "done", "ready"]
    stocked.settle()
    set_aside()
    assert replay(ids=[str(row["id"])], by=BY)["deliveries"] == 1
    stocked.settle()
    set_aside()
    assert replay(reason="REPLAY suspected", by=BY, dry_run=True)["deliveries"] == 1
    assert stocked.inbox()[2] == "unusable"  # only counted
    assert replay(reason="REPLAY suspected", by=BY)["deliveries"] == 1
    stocked.settle()
    assert replay(shop=SHOP_KEY, by=BY)["deliveries"] == 3
    assert last_action(stocked)["how_many"] == 3
    stocked.settle()
    assert sent(stocked) == {"C-1": 1, "C-2": 1, "C-3": 1}  # what is known already changes nothing
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert "no delivery is so" in refused(replay, since=soon)
    assert replay(until=soon, limit=2, by=BY) == {
        "deliveries": 2,
        "without_body": 0,
        "waiting": 0,
        "more": True,
    }


def test_a_delivery_without_its_body_stays_as_it_is_and_is_counted(stocked: World) -> None:
    stocked.sql("update esl.webhook_inbox set body = null where id = (select min(id) from esl.webhook_inbox)")
    done = stocked.buffer.deliveries_replay(shop=SHOP_KEY, by=BY)
    assert (done["deliveries"], done["without_body"]) == (2, 1)


def test_unknown_deliveries_are_refused(stocked: World) -> None:
    replay = stocked.buffer.deliveries_replay
    assert "there is no delivery nope: nothing was done" in refused(replay, ids=["nope"])
    other = {"source_system": "shopify", "source_store_id": "nobody.myshopify.com"}
    assert "nothing is known of a shop nobody.myshopify.com" in refused(replay, shop=other)
    assert "say which deliveries" in refused(replay)
    assert "is done, superseded, unusable or dead" in refused(replay, state="gone")


def test_labels_are_redriven_by_reason(stocked: World) -> None:
    stocked.sandbox.faults(
        {"kind": "error", "codes": ["C-1"], "error_msg": "bad barcode"},
        {"kind": "error", "codes": ["C-2"], "error_msg": "no such template"},
    )
    stocked.settle(*priced("2.00", 2, [1, 2]))
    assert {c: r["state"] for c, r in stocked.queue().items()} == {"C-1": "failed", "C-2": "failed"}
    assert stocked.buffer.redrive(reason="BARCODE", by=BY) == {"labels": 1, "deliveries": 0}
    assert {c: r["state"] for c, r in stocked.queue().items()} == {"C-1": "ready", "C-2": "failed"}
    assert 'has "nonsense" in it' in refused(stocked.buffer.redrive, reason="nonsense")
    assert "no shop is mapped to store S9" in refused(stocked.buffer.redrive, store="S9")
    assert "nothing is known of a label C-9 in store S1" in refused(
        stocked.buffer.redrive, store=STORE, code="C-9"
    )
    assert stocked.buffer.redrive(store=STORE, code="C-3", by=BY) == {"labels": 0, "deliveries": 0}


def test_a_label_server_that_is_down_is_tried_at_once_with_one_label(world: World) -> None:
    many(world, 3)
    world.sandbox.faults({"kind": "status", "status": 503})
    world.update(*priced("2.00", 2, [1, 2, 3]))
    world.round(down_after=1, probe=3600, max_probe=3600)
    assert world.buffer.due().queue is False
    world.sandbox.faults()
    done = world.buffer.label_server_try(label_server="default", by=BY)
    assert (done["was_down"], done["waiting"]) == (True, 3)
    assert world.buffer.due().queue is True
    world.settle()
    assert set(world.prices().values()) == {"2.00"} and world.buffer.due().outage is None
    assert world.buffer.label_server_try(label_server="default", by=BY)["was_down"] is False
    assert "there is no label server other" in refused(world.buffer.label_server_try, label_server="other")


# --- changes that wait for a word


@pytest.mark.long
def test_changes_are_approved_one_by_one_and_the_others_go_on_waiting(world: World) -> None:
    many(world)
    world.settle(*priced("100.00", 2, range(1, 13)))
    waiting = world.buffer.changes_waiting(store=STORE)
    assert [c["code"] for c in waiting] == sorted(f"C-{n}" for n in range(1, 13))
    assert [waiting[0][key] for key in ("kind", "before", "after", "title")] == [
        "price",
        "1.00",
        "100.00",
        "Product 1",
    ]
    for number in range(1, 11):  # what is left would be few enough to go by itself
        done = world.buffer.changes_approve(store=STORE, codes=[f"C-{number}"], by=BY)
        assert done == {"removals": 0, "prices": 1}
    world.settle()
    assert sorted(world.prices().values()).count("100.00") == 10
    assert [c["code"] for c in world.buffer.changes_waiting()] == ["C-11", "C-12"]
    world.settle(product(20, version=3, variants=[variant(20, price="1.10")]))  # judged again
    assert [c["code"] for c in world.buffer.changes_waiting()] == ["C-11", "C-12"]
    assert last_action(world)["action"] == "approve"


@pytest.mark.long
def test_a_rejected_change_stays_out_until_the_source_changes_again(world: World) -> None:
    many(world)
    world.settle(*priced("100.00", 2, range(1, 13)))
    codes = [f"C-{n}" for n in range(1, 7)]
    assert (
        world.buffer.changes_reject(store=STORE, codes=codes, reason="a decimal point", by=BY)["prices"] == 6
    )
    assert world.buffer.status()["stores"][0]["queue"]["rejected"] == 6
    assert world.buffer.changes_approve(store=STORE, by=BY)["prices"] == 6  # the others
    world.settle()
    assert sorted(world.prices().values()).count("100.00") == 6
    (first, *_) = world.buffer.changes_waiting()
    assert [first[key] for key in ("code", "rejected_by", "reason")] == ["C-1", BY, "a decimal point"]
    # The same again, a complete read, a stock change: nothing new.
    world.settle(*priced("100.00", 3, [1]))
    assert world.prices()["C-1"] == "1.00"
    world.settle(*priced("1.20", 4, [1]), *priced("1.00", 4, [2]))
    assert (world.prices()["C-1"], world.prices()["C-2"]) == ("1.20", "1.00")
    assert [c["code"] for c in world.buffer.changes_waiting()] == codes[2:]
    # And somebody may change their mind.
    assert world.buffer.changes_approve(store=STORE, codes=["C-3"], by=BY)["prices"] == 1
    world.settle()
    assert world.prices()["C-3"] == "100.00"


def test_rejecting_most_changes_does_not_let_the_rest_go(world: World) -> None:
    many(world)
    world.settle(*priced("100.00", 2, range(1, 13)))
    codes = [f"C-{n}" for n in range(1, 11)]
    world.buffer.changes_reject(store=STORE, codes=codes, by=BY)
    world.settle(product(20, version=3, variants=[variant(20, price="1.10")]))
    assert sorted(world.prices().values()).count("100.00") == 0
    assert world.buffer.status()["stores"][0]["queue"]["guarded"] == 2


def test_a_rejected_removal_leaves_the_label_hanging(world: World) -> None:
    many(world)
    for number in range(1, 7):
        world.delete(number, version=9)
    world.settle()
    assert {c["kind"] for c in world.buffer.changes_waiting()} == {"removal"}
    assert world.buffer.changes_reject(store=STORE, codes=["C-1"], by=BY) == {"removals": 1, "prices": 0}
    world.buffer.changes_approve(store=STORE, by=BY)
    world.settle()
    assert "C-1" in world.labels() and len(world.labels()) == 15
    world.settle(product(1, version=10))  # it is back
    assert world.buffer.changes_waiting() == [] and world.queue() == {}


def test_what_does_not_wait_can_be_neither_approved_nor_rejected(stocked: World) -> None:
    for call in (stocked.buffer.changes_approve, stocked.buffer.changes_reject):
        assert "no change of C-1 waits for approval" in refused(call, store=STORE, codes=["C-1"])
        assert "no shop is mapped to store S9" in refused(call, store="S9", codes=["C-1"])


# --- remove a store


def test_a_removed_store_keeps_its_labels(stocked: World) -> None:
    stocked.update(*priced("2.00", 2, [1]))
    stocked.sandbox.faults({"kind": "status", "status": 503})
    stocked.round()
    done = stocked.buffer.store_remove(store=STORE, labels="keep", by=BY)
    assert [done[key] for key in ("mappings", "labels", "dropped", "is_done")] == [1, 3, 1, True]
    stocked.sandbox.faults()
    stocked.settle(*priced("3.00", 3, [1]))
    assert set(stocked.prices().values()) == {"1.00"}
    assert stocked.buffer.mapping_list() == [] and stocked.buffer.status()["stores"] == []
    assert stocked.queue() == {} and stocked.buffer.due().anything is False
    assert [c["new"]["removed_at"] is not None for c in stocked.buffer.mapping_history()] == [
        True,
        False,
        False,
    ]
    assert "no shop is mapped to store S1" in refused(stocked.buffer.store_remove, store=STORE, labels="keep")
    # Mapped once more, it is filled as ever.
    stocked.map()
    stocked.settle(*priced("4.00", 4, [1]))
    assert stocked.prices() == {"C-1": "4.00", "C-2": "1.00", "C-3": "1.00"}


def test_a_removed_store_whose_labels_are_removed_is_gone_when_they_are(world: World) -> None:
    many(world)
    done = world.buffer.store_remove(store=STORE, labels="remove", by=BY)
    assert [done[key] for key in ("labels", "dropped", "is_done")] == [20, 0, False]
    assert world.buffer.mapping_list()[0]["leaving"] == "remove"
    world.settle(*priced("3.00", 3, [1]))  # nobody asks the shop any more
    assert world.labels() == {} and world.buffer.mapping_list() == []
    assert world.sql("select count(*) as n from esl.hipoink_products") == [{"n": 0}]
    assert world.buffer.due().anything is False
    world.map()
    world.settle()
    assert world.prices()["C-1"] == "3.00" and len(world.labels()) == 20


def test_what_hinders_a_removal_is_told_like_any_trouble(world: World) -> None:
    many(world, 2)
    world.buffer.store_remove(store=STORE, labels="remove", by=BY)
    found = world.buffer.waiting_labels()
    assert {row["why"] for row in found["labels"]} == {"after_others"}, "not: inactive"
    world.sql("update esl.sync_queue set state = 'failed', last_error = 'no such store' where code = 'C-1'")
    conditions = world.buffer.alert_conditions(silence_hours=24)["conditions"]
    assert [(row["kind"], row["subject"], row["labels"]) for row in conditions] == [
        ("labels_refused", STORE, 1)
    ]


def test_labels_that_are_to_be_removed_wait_for_no_grace(world: World) -> None:
    world.map(settings={"unbind_grace_hours": 24})
    world.settle(product(1))
    world.buffer.store_remove(store=STORE, labels="remove", by=BY)
    world.settle()
    assert world.labels() == {} and world.buffer.mapping_list() == []


def test_a_removed_store_whose_labels_are_blanked_is_gone_when_they_are(world: World) -> None:
    many(world)
    assert world.buffer.store_remove(store=STORE, labels="blank", by=BY)["is_done"] is False
    world.settle()
    assert {record["pn"] for record in world.labels().values()} == {"-"} and len(world.labels()) == 20
    assert world.buffer.mapping_list() == []


def test_a_label_that_the_server_does_not_let_go_keeps_the_store_in_the_list(world: World) -> None:
    many(world, 2)
    world.sandbox.faults({"kind": "error", "codes": ["C-1"]})
    world.buffer.store_remove(store=STORE, labels="remove", by=BY)
    world.settle()
    assert set(world.labels()) == {"C-1"} and world.buffer.mapping_list()[0]["leaving"] == "remove"
    world.sandbox.faults()
    world.buffer.redrive(store=STORE, by=BY)
    world.settle()
    assert world.labels() == {} and world.buffer.mapping_list() == []


def test_one_of_two_shops_leaves_a_store(world: World) -> None:
    many(world, 2)
    world.map("other.myshopify.com")
    world.settle_of("other.myshopify.com", product(50))
    other = SHOP_KEY | {"source_store_id": "other.myshopify.com"}
    assert world.buffer.store_remove(store=STORE, labels="remove", shop=other, by=BY)["labels"] == 1
    world.settle()
    assert set(world.labels()) == {"C-1", "C-2"}
    assert [m["source_store_id"] for m in world.buffer.mapping_list()] == [SHOP]
    assert "is not mapped to store S1" in refused(
        world.buffer.store_remove, store=STORE, labels="keep", shop=other
    )


def test_how_a_store_is_removed_must_be_said_and_possible(stocked: World) -> None:
    assert "keep, blank or remove" in refused(stocked.buffer.store_remove, store=STORE, labels="burn")
    assert "no shop is mapped to store S9" in refused(stocked.buffer.store_remove, store="S9", labels="keep")
    stocked.buffer.store_pause(store=STORE, reason="x", by=BY)
    assert "store S1 is paused" in refused(stocked.buffer.store_remove, store=STORE, labels="blank")


def test_a_removal_can_be_taken_back_while_it_goes_on(world: World) -> None:
    mapping = world.map()
    world.settle(product(1), product(2))
    world.buffer.store_remove(store=STORE, labels="remove", by=BY)
    world.buffer.mapping_update(mapping, {"is_active": True})
    world.settle()
    assert set(world.labels()) == {"C-1", "C-2"} and world.buffer.mapping_list()[0]["leaving"] is None


# --- kept


def test_nobody_changes_what_was_done(stocked: World) -> None:
    stocked.buffer.store_pause(store=STORE, reason="x", by=BY)
    stocked.buffer.store_resume(store=STORE, by=BY)
    for statement in (
        "update esl.operator_actions set by = 'somebody else'",
        "delete from esl.operator_actions",
        "truncate esl.operator_actions",
        "update esl.store_pauses set reason = 'another'",
        "update esl.store_pauses set ended_by = 'somebody else'",
        "delete from esl.store_pauses",
        "truncate esl.store_pauses",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            stocked.sql(statement)


def test_what_an_operator_had_pushed_says_so_in_the_audit(stocked: World) -> None:
    def cause(code: str) -> str:
        rows = stocked.sql("select cause from esl.sync_log where code = %s order by id desc limit 1", code)
        return str(rows[0]["cause"])

    stocked.buffer.labels_push(store=STORE, codes=["C-1"], by=BY)
    stocked.sandbox.faults({"kind": "error", "codes": ["C-2"]})
    stocked.settle(*priced("2.00", 2, [2]))
    stocked.sandbox.faults()
    stocked.buffer.redrive(store=STORE, by=BY)
    stocked.settle()
    assert (cause("C-1"), cause("C-2")) == ("push again", "redrive")
    stocked.buffer.store_remove(store=STORE, labels="remove", by=BY)
    stocked.settle()
    assert stocked.labels() == {} and {cause(f"C-{n}") for n in (1, 2, 3)} == {"removal"}
