"""Passes over a store's physical labels: what is kept, what is told, and what is concluded from an incomplete one."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.devices import (
    DevicePass,
    _Reading,
    device_of,
    read_devices,
    read_in_turn,
    utc_of,
    zone_called,
)
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.world import RUN, STORE, World, product

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture(scope="module")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(time_zone="Europe/Berlin", auto_trigger=False)) as sandbox:
        yield sandbox


class Shelf:
    """A world with products in its store, and what tests do with the labels that hang there."""

    def __init__(self, world: World, products: int = 3) -> None:
        self.world, self.http = world, world.sandbox.http
        world.map()
        world.settle(*map(product, range(1, products + 1)))

    def hang(self, **wish: Any) -> list[str]:
        answer = self.http.put("/sandbox/devices", json={"store": STORE, **wish}).raise_for_status()
        codes: list[str] = answer.json()["esl_codes"]
        return codes

    def change(self, *codes: str, **what: Any) -> None:
        self.http.patch(
            "/sandbox/devices", json={"store": STORE, "esl_codes": list(codes), **what}
        ).raise_for_status()

    def take_away(self, code: str = "") -> None:
        self.http.delete(f"/sandbox/devices/{STORE}" + f"/{code}" * bool(code)).raise_for_status()

    def read(self, **options: Any) -> DevicePass:
        devices = Devices(self.world.client)
        return read_devices(self.world.buffer, devices, store=STORE, run_id=RUN, **options)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["esl_code"]: row for row in self.world.sql("select * from esl.devices")}

    def told(self) -> list[tuple[str, str, str | None, str | None]]:
        """What has been told so far, and is forgotten then."""
        found = self.world.sql("select * from esl.device_changes order by id")
        self.world.sql("delete from esl.device_changes")
        return [(row["esl_code"], row["what"], row["old"], row["new"]) for row in found]

    def passes(self) -> list[dict[str, Any]]:
        return self.world.sql("select * from esl.device_passes order by started_at")

    def server(self) -> dict[str, Any]:
        return self.world.sql("select * from esl.label_servers where server = 'default'")[0]


@pytest.fixture
def shelf(world: World) -> Shelf:
    return Shelf(world)


def test_the_first_pass_keeps_every_label_as_the_server_has_it(shelf: Shelf) -> None:
    codes = shelf.hang(count=4, unbound=1, aps=["AP-1", "AP-2"])
    done = shelf.read()
    assert (done.outcome, done.devices, done.changed, done.gone) == ("complete", 5, 5, 0)
    rows, (kept,) = shelf.rows(), shelf.passes()
    assert [rows[code]["product_code"] for code in codes] == ["C-1", "C-2", "C-3", "C-1", None]
    first = rows[codes[0]]
    assert (first["model"], first["ap_code"], first["battery_mv"], first["online"]) == (
        "ESL29",
        "AP-1",
        3000,
        True,
    )
    assert first["first_seen_at"] == first["last_seen_at"] == first["bound_at"] == kept["started_at"]
    assert (first["moved_at"], first["moved_after"]) == (None, None), "it may have moved long ago"
    assert rows[codes[4]]["bound_at"] is None
    assert (kept["counted_online"], kept["counted_offline"], kept["devices"], kept["pages"]) == (5, 0, 5, 1)
    assert shelf.told() == [(code, "seen", None, rows[code]["product_code"]) for code in codes]


def test_the_servers_own_times_become_utc_by_its_zone(shelf: Shelf) -> None:
    (code,) = shelf.hang(products=["C-1"], shown=False)
    shelf.read()
    row = shelf.rows()[code]
    assert abs(row["server_created_at"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert row["server_updated"] == f"{row['server_updated_at'].astimezone(BERLIN):%Y-%m-%d %H:%M:%S}"
    assert shelf.server()["zone"] == "Europe/Berlin" and shelf.server()["knows_devices"] is True


def test_an_unchanged_pass_writes_no_row(shelf: Shelf) -> None:
    shelf.hang(count=30)
    shelf.read(page_size=10)
    before = shelf.world.sql("select xmin::text as x, * from esl.devices order by esl_code")
    shelf.told()
    done = shelf.read(page_size=10)
    assert (done.outcome, done.devices, done.changed) == ("complete", 30, 0)
    assert shelf.world.sql("select xmin::text as x, * from esl.devices order by esl_code") == before
    assert shelf.told() == []
    (seen,) = shelf.world.sql("select distinct esl.device_seen_at(d) as at from esl.devices d")
    assert seen["at"] == shelf.passes()[-1]["started_at"] > before[0]["last_seen_at"]
    assert shelf.world.sql("select from esl.device_sightings") == []


def test_what_changes_is_told_once(shelf: Shelf) -> None:
    one, two = shelf.hang(products=["C-1", "C-2"])
    shelf.read()
    shelf.told()
    shelf.change(one, ap="AP-9", model="ESL42", offline=True)
    Devices(shelf.world.client).unbind(STORE, two)
    shelf.read()
    assert set(shelf.told()) == {
        (one, "ap", "AP-1", "AP-9"),
        (one, "model", "ESL29", "ESL42"),
        (one, "online", "true", "false"),
        (two, "binding", "C-2", None),
    }
    shelf.read()
    assert shelf.told() == []


def test_a_battery_is_told_of_when_it_crosses_a_step(shelf: Shelf) -> None:
    (code,) = shelf.hang(products=["C-1"], battery=3005)
    shelf.read()
    shelf.told()
    told = []
    for reading in (2996, 3004, 2991, 2984, 2930, 2903, 2895, 3200):
        shelf.change(code, battery=reading)
        shelf.read()
        told += [(what, old, new) for _, what, old, new in shelf.told()]
        assert abs(shelf.rows()[code]["battery_mv"] - reading) < 20
    assert told == [("battery", "3005", "2984"), ("battery", "2903", "3200")]


def test_a_row_that_moves_is_noted_and_not_told(shelf: Shelf) -> None:
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    shelf.read()
    before = shelf.passes()[-1]["started_at"]
    shelf.told()
    shelf.world.settle(product(1, 2, title="Another"))
    shelf.world.client.bind_task(STORE)
    shelf.read()
    row, newest = shelf.rows()[code], shelf.passes()[-1]["started_at"]
    assert (row["moved_after"], row["moved_at"]) == (before, newest)
    assert shelf.told() == []
    shelf.read()
    assert shelf.rows()[code]["moved_at"] == newest


def test_a_zone_that_becomes_known_moves_no_row(shelf: Shelf) -> None:
    (code,) = shelf.hang(products=["C-1"])
    devices = Devices(shelf.world.client)
    devices._zone = ""  # as a server that does not say it
    read_devices(shelf.world.buffer, devices, store=STORE, run_id=RUN)
    row = shelf.rows()[code]
    assert row["server_updated_at"] is None and row["server_updated"] is not None
    shelf.read()
    after = shelf.rows()[code]
    assert after["server_updated_at"] is not None and after["moved_at"] is None


def test_a_label_that_is_not_listed_any_more_is_gone_and_may_come_back(shelf: Shelf) -> None:
    one, two = shelf.hang(products=["C-1", "C-2"])
    shelf.read()
    shelf.told()
    shelf.take_away(one)
    assert shelf.read().gone == 1
    gone, passes = shelf.rows()[one], shelf.passes()
    assert (gone["gone_at"], gone["last_seen_at"]) == (passes[1]["started_at"], passes[0]["started_at"])
    assert shelf.told() == [(one, "gone", None, None)]
    shelf.hang(products=["C-1"], esl_codes=[one])
    assert shelf.read().changed == 1
    back = shelf.rows()[one]
    assert (back["gone_at"], back["first_seen_at"]) == (None, passes[0]["started_at"])
    assert back["bound_at"] == shelf.passes()[-1]["started_at"], "it may have been elsewhere meanwhile"
    assert (one, "back", None, None) in shelf.told()
    assert shelf.rows()[two]["gone_at"] is None


def test_a_pass_that_fails_concludes_nothing(shelf: Shelf) -> None:
    codes = shelf.hang(count=40)
    shelf.read(page_size=10)
    shelf.take_away(codes[0])
    shelf.world.sandbox.faults({"kind": "status", "status": 503, "action": "esl/query", "probability": 0.5})
    done = shelf.read(page_size=10, pages_ahead=0)
    assert done.outcome == "failed" and "503" in str(done.reason)
    assert shelf.rows()[codes[0]]["gone_at"] is None
    kept = shelf.passes()[-1]
    assert kept["state"] == "failed" and 0 < kept["devices"] < 39
    shelf.world.sandbox.faults()
    assert (shelf.read().outcome, shelf.rows()[codes[0]]["gone_at"] is None) == ("complete", False)


def test_most_labels_are_gone_only_when_two_passes_say_so(shelf: Shelf) -> None:
    shelf.hang(count=30)
    shelf.read()
    shelf.take_away()
    done = shelf.read()
    assert done.outcome == "failed" and "30 of the labels known here are not in the list of 0" in str(
        done.reason
    )
    assert not [row for row in shelf.rows().values() if row["gone_at"]]
    assert (shelf.read().outcome, len([r for r in shelf.rows().values() if r["gone_at"]])) == ("complete", 30)


def test_what_the_database_lost_of_a_pass_makes_it_worthless(shelf: Shelf) -> None:
    shelf.hang(count=3)
    pass_id, buffer = str(uuid4()), shelf.world.buffer
    buffer.device_pass_begin(pass_id=pass_id, store=STORE, run_id=RUN)
    buffer.device_page(pass_id=pass_id, page=1, devices=[{"esl_code": "A"}], malformed=0)
    shelf.world.sql("truncate esl.device_sightings")
    ended = buffer.device_pass_finish(pass_id=pass_id, state="complete")
    assert (ended["state"], ended["error"]) == ("failed", "the database has lost what the pass had seen")


def test_every_call_may_be_repeated(shelf: Shelf) -> None:
    pass_id, buffer = str(uuid4()), shelf.world.buffer
    assert buffer.device_pass_begin(pass_id=pass_id, store=STORE, run_id=RUN) == buffer.device_pass_begin(
        pass_id=pass_id, store=STORE, run_id=RUN
    )
    rows = [{"esl_code": "A", "battery_mv": 3000}, {"esl_code": "B", "product_code": "C-1"}]
    for _ in range(2):
        buffer.device_page(pass_id=pass_id, page=1, devices=rows, malformed=2)
    ended = [buffer.device_pass_finish(pass_id=pass_id, state="complete") for _ in range(2)]
    assert ended[0] == ended[1] and (ended[0]["devices"], ended[0]["changed"]) == (2, 2)
    (kept,) = shelf.passes()
    assert (kept["pages"], kept["malformed"]) == (1, 2)
    assert len(shelf.told()) == 2
    assert buffer.device_page(pass_id=pass_id, page=2, devices=rows, malformed=0)["open"] is False


def test_one_store_is_read_by_one_at_a_time_and_not_again_for_nothing(shelf: Shelf) -> None:
    shelf.hang(count=1)
    asked = datetime.now(UTC)
    assert shelf.read(since=asked).outcome == "complete"
    assert shelf.read(since=asked).outcome == "read"
    other = str(uuid4())
    shelf.world.buffer.device_pass_begin(pass_id=other, store=STORE, run_id="other")
    assert shelf.read().outcome == "busy"
    shelf.world.sql("update esl.device_passes set noted_at = now() - interval '3 min' where state = 'open'")
    assert shelf.read().outcome == "complete", "who was not heard of for minutes has died"
    assert shelf.world.buffer.device_pass_finish(pass_id=other, state="complete")["state"] == "failed"


def test_a_store_that_moves_meanwhile_is_not_known_by_what_was_read(shelf: Shelf) -> None:
    shelf.hang(count=1)
    shelf.read()
    (seen,) = shelf.world.sql("select esl.complete_pass('S1') as pass")
    assert seen["pass"] is not None
    shelf.world.sql("insert into esl.stores (store_code, label_server) values ('S1', 'north')")
    (seen,) = shelf.world.sql("select (esl.complete_pass('S1')).id as pass")
    assert seen["pass"] is None
    assert shelf.read().outcome == "elsewhere"


def test_a_server_that_is_down_is_left_alone(shelf: Shelf) -> None:
    shelf.world.sql("update esl.label_servers set probe_at = now() + interval '1 min'")
    shelf.world.sql(
        "insert into esl.label_servers (server, probe_at) values ('default', now() + interval '1 min')"
        " on conflict (server) do update set probe_at = excluded.probe_at"
    )
    assert shelf.read().outcome == "down"
    assert shelf.world.buffer.device_stores() == []


def test_a_server_of_2020_is_asked_again_more_and_more_rarely_and_told_of_once(world: World) -> None:
    world.map()
    with running_sandbox(generation=2020) as old, client_of(old.url, retries=1) as client:

        def read() -> DevicePass:
            return read_devices(world.buffer, Devices(client), store=STORE, run_id=RUN)

        news, waits = [], []
        for _ in range(4):
            done = read()
            assert done.outcome == "not_known"
            news.append(done.is_news)
            assert world.buffer.device_stores() == [] and read().outcome == "not_known"
            (row,) = world.sql(
                "select devices_again_at - now() as wait, knows_devices from esl.label_servers"
            )
            assert row["knows_devices"] is False
            waits.append(round(row["wait"].total_seconds() / 60))
            world.sql("update esl.label_servers set devices_again_at = now()")
        assert news == [True, False, False, False] and waits == [1, 60, 1440, 1440]
        assert old.state()["calls"] == {"env": 4}, "no more than one look each time"
        assert len(world.buffer.device_stores()) == 1
    with client_of(world.sandbox.url, retries=1) as client:  # it was renewed
        assert read_devices(world.buffer, Devices(client), store=STORE, run_id=RUN).outcome == "complete"


def test_a_server_that_has_known_labels_only_fails(shelf: Shelf) -> None:
    shelf.read()
    shelf.world.sandbox.faults({"kind": "status", "status": 404, "action": "esl/query"})
    assert shelf.read().outcome == "failed"
    assert shelf.server()["knows_devices"] is True


def test_malformed_rows_are_counted_and_named() -> None:
    zone = BERLIN
    good, wrong = device_of({"esl_code": 12, "product_code": 0, "esl_battery": "3000.0", "online": "1"}, zone)
    assert good is not None and (good["esl_code"], good["product_code"]) == ("12", None)
    assert (good["online"], good["battery_mv"], wrong) == (
        True,
        None,
        ["'12': esl_battery '3000.0' is no voltage in mV"],
    )
    for code in (None, "", "  ", True, 1.5, [], "a\x00b", "\ud800", "x" * 101):
        device, wrong = device_of({"esl_code": code, "product_code": "C-1"}, zone)
        assert device is None and wrong[0].startswith("a row names no label: {'esl_code'")
    odd, wrong = device_of(
        {"esl_code": "A", "online": 2, "esl_battery": True, "product_code": "a\x00" * 300}, zone
    )
    assert odd is not None and odd["product_code"] == ("a\ufffd" * 100)
    assert len(wrong) == 2
    fine, wrong = device_of(
        {"esl_code": "A", "online": 0, "esl_battery": 0, "updated_at": "0000-00-00 00:00:00"}, zone
    )
    assert fine is not None and (fine["online"], fine["battery_mv"], fine["server_updated_at"]) == (
        False,
        None,
        None,
    )
    assert wrong == []


def test_rows_that_are_none_spoil_no_pass(shelf: Shelf) -> None:
    good = {"esl_code": "A", "product_code": "C-1"}
    pass_id = str(uuid4())
    shelf.world.buffer.device_pass_begin(pass_id=pass_id, store=STORE, run_id=RUN)
    result = DevicePass(STORE)
    reading = _Reading(shelf.world.buffer, Devices(shelf.world.client), result, pass_id, None)
    assert reading._add([good, {}, {"esl_code": None}, {"esl_code": "B", "online": "perhaps"}], None)
    assert (result.devices, result.malformed, len(result.complaints)) == (2, 2, 3)


@pytest.mark.parametrize(
    ("zone", "text", "utc"),
    [
        ("Europe/Berlin", "2026-07-01 12:00:00", "2026-07-01T10:00:00+00:00"),
        ("Europe/Berlin", "2026-10-25 02:30:00", "2026-10-25T00:30:00+00:00"),  # twice: the earlier one
        ("Europe/Berlin", "2026-03-29 02:30:00", "2026-03-29T01:30:00+00:00"),  # never
        ("Asia/Shanghai", "2026-01-01 00:00:00", "2025-12-31T16:00:00+00:00"),
        ("PRC", "2026-01-01 00:00:00", "2025-12-31T16:00:00+00:00"),
        ("+08:00", "2026-01-01 00:00:00", "2025-12-31T16:00:00+00:00"),
        ("UTC-0330", "2026-01-01 00:00:00", "2026-01-01T03:30:00+00:00"),
        (None, "2026-01-01 00:00:00", None),
        ("Nowhere/Land", "2026-01-01 00:00:00", None),
        ("../etc", "2026-01-01 00:00:00", None),
        ("Europe", "2026-01-01 00:00:00", None),
        (None, "2026-01-01T00:00:00+02:00", "2025-12-31T22:00:00+00:00"),
        ("UTC", "0000-00-00 00:00:00", None),
        ("Asia/Shanghai", "0001-01-01 00:00:00", None),
        ("UTC", "", None),
    ],
)
def test_times_in_the_servers_zone(zone: str | None, text: str, utc: str | None) -> None:
    assert utc_of(text, zone_called(zone)) == utc


def test_stores_are_read_in_turn_until_the_time_is_up() -> None:
    def read(store: str) -> DevicePass:
        time.sleep(0.02)
        return DevicePass(store, "complete")

    assert [done.store_code for done in read_in_turn(["A", "B", "C"], read, seconds=0.01)] == ["A"]
    assert len(list(read_in_turn(["A", "B", "C"], read, seconds=60))) == 3


def test_it_is_the_turn_of_the_store_that_a_night_has_compared_then_of_the_one_that_waits_longest(
    world: World,
) -> None:
    for store in ("S1", "S2", "S3", "S4"):
        world.map(f"{store.lower()}.myshopify.com", store)
    world.map("other.myshopify.com", "S1")
    for store in ("S3", "S2", "S1"):
        pass_id = str(uuid4())
        world.buffer.device_pass_begin(pass_id=pass_id, store=store, run_id=RUN)
        world.buffer.device_pass_finish(pass_id=pass_id, state="complete")

    def turns() -> list[str]:
        return [row["store_code"] for row in world.buffer.device_stores()]

    assert turns() == ["S4", "S3", "S2", "S1"]
    world.sql(
        "insert into esl.comparisons (store_code, at, complete, listed, ledger, skipped, given_up)"
        " values ('S1', now(), true, 0, 0, 0, 0)"
    )
    assert turns() == ["S1", "S4", "S3", "S2"]
    assert len(world.buffer.device_stores()[0]["shops"]) == 2


def test_what_a_shop_is_told_of_its_stores(world: World) -> None:
    shelf = Shelf(world, products=3)
    world.map("other.myshopify.com", STORE)
    world.settle_of("other.myshopify.com", product(9))
    Devices(world.client)
    codes = shelf.hang(products=["C-1", "C-1", "C-2", "C-9"], unbound=1, aps=["AP-1", "AP-2"])
    world.client.create(STORE, {"pc": "X-1", "pn": "Strange", "pp": "1.00"})
    shelf.hang(products=["X-1"])
    shelf.change(codes[1], codes[3], offline=True)
    shelf.change(codes[2], battery=2600)
    shelf.read()
    shop = {"source_system": "shopify", "source_store_id": "corner-shop.myshopify.com"}
    (store,) = world.buffer.shelf(shop=shop)
    counts = {name: store[name] for name in ("products", "with_label", "labels", "online", "offline", "low")}
    assert counts == {"products": 3, "with_label": 2, "labels": 3, "online": 2, "offline": 1, "low": 1}
    assert store["hanging"] == 6
    assert {kind: store["kinds"][kind]["count"] for kind in ("unbound", "strangers")} == {
        "unbound": 1,
        "strangers": 1,
    }
    assert store["offline_by_ap"] == [{"ap_code": "AP-2", "labels": 1, "offline": 1}]
    assert store["pass"]["state"] == "complete" and store["read_at"] == store["pass"]["started_at"]
    (other,) = world.buffer.shelf(shop=shop | {"source_store_id": "other.myshopify.com"})
    assert (other["labels"], other["offline"], other["products"]) == (1, 1, 1)


def test_old_passes_and_what_was_told_of_reach_go_with_time(shelf: Shelf) -> None:
    (code,) = shelf.hang(products=["C-1"])
    shelf.read()
    shelf.change(code, offline=True, ap="AP-7", battery=2500)
    shelf.read()
    shelf.read()
    for table, column in (("device_passes", "started_at"), ("device_changes", "at")):
        shelf.world.sql(
            f"set session_replication_role = replica; update esl.{table} set {column} = {column} - interval '100 d'"
        )
    kept = shelf.world.buffer.housekeep(keep_bodies_days=30, keep_deliveries_days=90)
    assert (kept["passes"], kept["reach"]) == (2, 2)
    assert len(shelf.passes()) == 1 and {what for _, what, *_ in shelf.told()} == {"seen", "battery"}
