"""The sandbox's physical labels: what the server tells of them, and what they really show, over real HTTP."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from hypothesis import strategies as st

from esl_pipeline.sandbox.label_server.devices import DeviceError
from esl_pipeline.sandbox.label_server.floor import Change, Floor, Hang
from esl_pipeline.sandbox.label_server.shelf import places
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox

pytestmark = pytest.mark.long

COMMON = {"store_code": "001", "is_base64": "0", "sign": "sandbox-sign"}
SUCCESS = {"error_code": 0, "error_msg": ""}


class Shop:
    """A sandbox with products, and what tests ask of its devices."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.http = sandbox, sandbox.http

    def post(self, path: str, **fields: Any) -> Any:
        return self.http.post(f"/api/default/{path}", json={**COMMON, **fields}).raise_for_status().json()

    def get(self, path: str, **params: Any) -> Any:
        return self.http.get(f"/api/default/{path}", params={**COMMON, **params}).raise_for_status().json()

    def push(self, **prices: str) -> None:
        records = [{"pc": code, "pn": f"Tea {code}", "pp": price} for code, price in prices.items()]
        assert self.post("product/create_multiple", f1=records) == SUCCESS

    def trigger(self) -> None:
        assert self.post("esl/bind_task") == SUCCESS

    def put(self, path: str, **body: Any) -> Any:
        return self.http.put(f"/sandbox/{path}", json=body).raise_for_status().json()

    def hang(self, **wish: Any) -> list[str]:
        return self.sandbox.hang("001", **wish)

    def change(self, esl: str, **what: Any) -> None:
        assert self.sandbox.change_devices("001", esl_codes=[esl], **what) == 1

    def tick(self, seconds: float) -> None:
        self.sandbox.tick(seconds)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["esl_code"]: row for row in self.get("esl/query", f1=1, f2=100)}

    def places(self) -> dict[str, dict[str, Any]]:
        return self.sandbox.places("001")

    def prices(self) -> list[str | None]:
        return [place["shown"] and place["shown"]["price"] for place in self.places().values()]

    def states(self) -> list[tuple[str, str]]:
        return [(place["state"], place["why"]) for place in self.places().values()]


@contextmanager
def shop_of(floor: Floor | None = None, *, auto_trigger: bool = False, **options: Any) -> Iterator[Shop]:
    with running_sandbox(LabelStore(auto_trigger=auto_trigger, floor=floor), **options) as sandbox:
        yield Shop(sandbox)


@pytest.fixture
def shop() -> Iterator[Shop]:
    """Without auto-trigger, and three products with a label each that shows them."""
    with shop_of() as running:
        running.push(A="1.00", B="2.00", C="3.00")
        running.hang()
        yield running


# --- what the server tells


def test_a_row_has_the_documented_fields(shop: Shop) -> None:
    (row, *_) = shop.get("esl/query", f1=1, f2=10)
    assert set(row) == {
        "id", "esl_code", "esl_version", "action", "online", "esl_battery", "product_code", "created_at", "updated_at",
        "ap_code", "esltype_code",
    }  # fmt: skip
    assert (row["product_code"], row["online"], row["esl_battery"]) == ("A", 1, 3000)
    assert (row["ap_code"], row["esltype_code"]) == ("AP-1", "ESL29")


def test_pages_counts_and_chosen_labels(shop: Shop) -> None:
    more = shop.hang(unbound=4, products=[], aps=["AP-2", "AP-3"])
    pages = [[row["esl_code"] for row in shop.get("esl/query", f1=page, f2=3)] for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert [code for page in pages for code in page][3:] == more
    shop.change(more[0], offline=True)
    assert shop.get("esl/query_count") == {"online_count": 6, "offline_count": 1}
    chosen = shop.post("esl/query_status", f1=1, f2=10, f3=[more[1], "none", more[0]])
    assert [(row["esl_code"], row["online"], row["ap_code"]) for row in chosen] == [
        (more[0], 0, "AP-2"),
        (more[1], 1, "AP-3"),
    ]
    assert chosen[0]["product_code"] == ""
    assert shop.get("esl/query", store_code="002") == []
    assert shop.post("esl/query_status", f1=1, f2=10)["error_code"] == 1


def test_times_are_in_the_servers_zone_which_the_environment_tells() -> None:
    with running_sandbox(LabelStore(time_zone="Asia/Shanghai")) as sandbox:
        shop = Shop(sandbox)
        shop.push(A="1.00")
        shop.hang(shown=False)
        zone = shop.http.get("/api/query/env").json()["timezone"]
        assert zone == "Asia/Shanghai"
        for row in (shop.get("product/query")[0], shop.get("esl/query")[0]):
            at = datetime.strptime(row["created_at"], "%Y-%m-%d %H:%M:%S").replace(tzinfo=ZoneInfo(zone))
            assert abs(datetime.now(UTC) - at) < timedelta(seconds=60)


def test_a_server_of_2020_knows_only_products_and_the_trigger() -> None:
    with shop_of(generation=2020) as shop:
        shop.push(A="1.00")
        for method, path in [
            ("GET", "esl/query"), ("GET", "esl/query_count"), ("POST", "esl/query_status"), ("POST", "esl/bind"),
            ("POST", "esl/bind_multiple"), ("POST", "esl/unbind"), ("POST", "esl/search"), ("POST", "esl/sync"),
            ("GET", "template/query"),
        ]:  # fmt: skip
            assert shop.http.request(method, f"/api/default/{path}").status_code == 404
        shop.trigger()
        assert shop.get("product/query_count") == {"count": 1}


def test_calls_and_faults_tell_the_actions_of_devices_by_their_resource(shop: Shop) -> None:
    shop.sandbox.faults({"kind": "status", "status": 503, "action": "esl/query", "times": 1})
    assert len(shop.get("product/query")) == 3
    assert shop.http.get("/api/default/esl/query", params=COMMON).status_code == 503
    calls = shop.sandbox.state()["calls"]
    assert (calls["query"], calls["esl/query"]) == (1, 1)
    first = next(iter(shop.rows()))
    shop.sandbox.faults({"kind": "hidden", "hides": [first], "action": "esl/query"})
    assert len(shop.rows()) == 2
    assert shop.get("esl/query_count")["online_count"] == 3
    shop.sandbox.faults({"kind": "hidden", "hides": [first, "none"]})
    assert shop.get("esl/query_count") == {"online_count": 2, "offline_count": 0}


def test_templates_are_listed_by_page(shop: Shop) -> None:
    first, *rest = shop.get("template/query", f1=1, f2=100)
    assert first == {
        "id": 1, "esltype_code": "ESL29", "esltemplate_name": "Price", "esltemplate_default": 1,
    }  # fmt: skip
    assert shop.get("template/query", f1=2, f2=1) == rest[:1]


# --- what the labels show


def test_a_price_is_on_the_label_after_the_trigger_and_not_before(shop: Shop) -> None:
    assert shop.states() == [("right", "")] * 3
    shop.push(A="1.50")
    assert shop.states()[0] == ("stale", "waits for its refresh")
    assert shop.prices() == ["1.00", "2.00", "3.00"]
    place = next(iter(shop.places().values()))
    assert (place["held"]["price"], place["waits"], place["reachable"]) == ("1.50", True, True)
    shop.trigger()
    assert shop.prices() == ["1.50", "2.00", "3.00"]
    assert shop.states() == [("right", "")] * 3
    assert shop.sandbox.state()["shown"]["001"]["A"]["pp"] == "1.50"
    assert len(shop.sandbox.state()["refreshes"]["001"]) == 1


def test_with_auto_trigger_it_is_there_at_once_and_a_store_may_differ_from_its_server() -> None:
    with shop_of(auto_trigger=True) as shop:
        shop.push(A="1.00")
        shop.hang()
        shop.push(A="2.00")
        assert shop.prices() == ["2.00"]
        shop.sandbox.set_floor("001", auto_trigger=False)
        shop.push(A="3.00")
        assert shop.prices() == ["2.00"]


def test_a_device_fetches_its_picture_at_its_next_poll_as_the_product_is_then() -> None:
    with shop_of(Floor(poll_seconds=600)) as shop:
        shop.push(A="1.00", B="2.00")
        shop.hang()
        shop.push(A="1.50", B="2.50")
        shop.trigger()
        assert shop.prices() == ["1.00", "2.00"]
        assert {why for _, why in shop.states()} == {"is being refreshed"}
        shop.push(A="1.75")
        shop.tick(600)
        assert shop.prices() == ["1.75", "2.50"]
        at = [place["shown_at"] for place in shop.places().values()]
        assert at[0] != at[1], "one after the other, not all at once"
        shop.push(B="9.00")
        assert shop.prices() == ["1.75", "2.50"]


@pytest.mark.parametrize(
    ("what", "why", "online"),
    [
        ({"offline": True}, "offline", 0),
        ({"asleep": True}, "asleep", 1),
        ({"fallen": True}, "fallen off", 0),
        ({"battery": 2100}, "battery empty", 0),
    ],
)
def test_what_cannot_be_reached_keeps_its_picture_until_it_can(
    shop: Shop, what: dict[str, Any], why: str, online: int
) -> None:
    esl = next(iter(shop.rows()))
    shop.change(esl, **what)
    shop.push(A="1.50")
    shop.trigger()
    shop.tick(3600)
    assert shop.places()[esl]["shown"]["price"] == "1.00"
    assert shop.states() == [("unreachable", why), ("right", ""), ("right", "")]
    assert shop.rows()[esl]["online"] == online
    shop.change(esl, **{name: 3000 if name == "battery" else False for name in what})
    assert shop.places()[esl]["shown"]["price"] == "1.50"
    assert shop.rows()[esl]["online"] == 1


def test_a_dead_access_point_takes_its_labels_with_it_and_the_server_notices_late() -> None:
    with shop_of(Floor(offline_after=300)) as shop:
        shop.push(A="1.00", B="2.00")
        behind, other = shop.hang(aps=["AP-1", "AP-2"])
        assert shop.put("aps/001/AP-1", dead=True) == {"count": 1}
        shop.push(A="1.50", B="2.50")
        shop.trigger()
        assert shop.states() == [("unreachable", "access point dead"), ("right", "")]
        assert [row["online"] for row in shop.rows().values()] == [1, 1]
        shop.tick(301)
        assert {esl: row["online"] for esl, row in shop.rows().items()} == {behind: 0, other: 1}
        assert shop.get("esl/query_count") == {"online_count": 1, "offline_count": 1}
        shop.put("aps/001/AP-1", dead=False)
        assert shop.prices() == ["1.50", "2.50"]


def test_a_battery_runs_down_and_then_the_label_stays_as_it_is() -> None:
    with shop_of(Floor(poll_seconds=60)) as shop:
        shop.push(A="1.00")
        (esl,) = shop.hang(battery=2500, drain=10)
        shop.tick(10 * 3600)
        assert shop.rows()[esl]["esl_battery"] in (2399, 2400)
        shop.tick(20 * 3600)
        assert (shop.rows()[esl]["esl_battery"] <= 2200, shop.rows()[esl]["online"]) == (True, 0)
        shop.push(A="1.50")
        shop.trigger()
        shop.tick(3600)
        assert shop.prices() == ["1.00"]
        shop.change(esl, battery=3000)
        assert shop.prices() == ["1.00"]
        shop.tick(60)
        assert shop.prices() == ["1.50"]


def test_after_a_long_sleep_the_first_refresh_is_slow() -> None:
    with shop_of(Floor(poll_seconds=10, sleep_after=3600, wake_seconds=240)) as shop:
        shop.push(A="1.00")
        shop.hang()
        for seconds, wanted in [(60, "2.00"), (7200, "3.00")]:
            shop.tick(seconds)
            before = shop.prices()
            shop.push(A=wanted)
            shop.trigger()
            shop.tick(11)
            assert shop.prices() == ([wanted] if seconds == 60 else before)
        shop.tick(230)
        assert shop.prices() == ["3.00"]


def test_a_template_without_a_price_keeps_the_old_one_or_has_none(shop: Shop) -> None:
    old, *_ = shop.rows()
    (new,) = shop.hang(products=["A"], template=2, shown=False)
    shop.change(old, template=2)
    shop.push(A="1.50")
    shop.trigger()
    places = shop.places()
    assert (places[old]["shown"]["price"], places[new]["shown"]["price"]) == ("1.00", "")
    assert places[new]["shown"]["name"] == "Tea A"
    for esl in (old, new):
        assert (places[esl]["state"], places[esl]["why"]) == ("stale", "template without a price")
        assert not places[esl]["template_has_price"]
    shop.put("templates", id=9, model="ESL29", name="Price only", fields=["pp"])
    shop.change(new, template=9)
    shop.push(A="1.75")
    shop.trigger()
    assert shop.places()[new]["state"] == "right"
    assert shop.places()[new]["shown"]["name"] == ""


@pytest.mark.parametrize(
    ("moves", "after_push", "after_refresh", "after_a_day"),
    [
        ("on_refresh", False, True, True),
        ("never", False, False, False),
        ("on_push", True, True, True),
        ("on_poll", False, False, True),
    ],
)
def test_rows_move_as_the_floor_says(
    moves: Any, after_push: bool, after_refresh: bool, after_a_day: bool
) -> None:
    # Polls are so far apart that none falls between two looks, but one into a day.
    with shop_of(Floor(rows_move=moves, poll_seconds=0 if moves != "on_poll" else 80_000)) as shop:
        shop.push(A="1.00")
        (esl,) = shop.hang()
        before = shop.rows()[esl]["updated_at"]
        shop.tick(2)
        shop.push(A="2.00")
        assert (shop.rows()[esl]["updated_at"] != before) == after_push
        shop.trigger()
        assert (shop.rows()[esl]["updated_at"] != before) == after_refresh
        shop.tick(86_400)
        assert (shop.rows()[esl]["updated_at"] != before) == after_a_day
        assert shop.prices() == ["2.00"]


def test_a_row_that_moves_with_each_poll_stands_still_while_the_label_is_offline() -> None:
    with shop_of(Floor(rows_move="on_poll", poll_seconds=60)) as shop:
        (esl,) = shop.hang(unbound=1)
        shop.change(esl, offline=True)
        before = shop.rows()[esl]["updated_at"]
        shop.tick(600)
        assert shop.rows()[esl]["updated_at"] == before
        shop.change(esl, offline=False)
        shop.tick(60)
        assert shop.rows()[esl]["updated_at"] > before


# --- bindings


def test_deleting_a_product_unbinds_its_labels_and_bringing_it_back_does_not_bind_them(shop: Shop) -> None:
    esl, *_ = shop.rows()
    assert shop.post("product/del_multiple", f1=["A"])["count"] == 1
    assert shop.rows()[esl]["product_code"] == ""
    assert shop.places()[esl]["shown"]["price"] == "1.00", "until the refresh"
    assert shop.states()[0] == ("unbound", "not bound")
    shop.push(A="1.00")
    shop.trigger()
    place = shop.places()[esl]
    assert (place["product_code"], place["shown"], place["state"]) == (None, None, "unbound")
    assert shop.sandbox.state()["shown"]["001"].keys() == {"B", "C"}


def test_binding_fills_the_queue_and_takes_what_there_is(shop: Shop) -> None:
    spare, large = shop.hang(unbound=1, products=[]) + shop.hang(unbound=1, products=[], model="ESL42")
    assert shop.post("esl/bind", f1=spare, f2="A", f3=2) == SUCCESS
    assert (shop.rows()[spare]["product_code"], shop.places()[spare]["shown"]) == ("A", None)
    shop.trigger()
    assert shop.places()[spare]["shown"]["name"] == "Tea A"
    both = [
        {"esl_code": large, "product_code": "B", "esltemplate_id": 3},
        {"esl_code": spare, "product_code": "B", "esltemplate_id": 1},
    ]
    assert shop.post("esl/bind_multiple", f1=both) == SUCCESS
    shop.trigger()
    assert [shop.places()[esl]["shown"]["price"] for esl in (spare, large)] == ["2.00", "2.00"]
    for wrong in (
        {"f1": "none", "f2": "A"},
        {"f1": spare, "f2": "none"},
        {"f1": spare, "f2": "A", "f3": 3},
        {"f1": spare, "f2": "A", "f3": "x"},
        {"f2": "A"},
    ):
        assert shop.post("esl/bind", **wrong)["error_code"] == 1
    assert shop.post("esl/bind_multiple", f1=[{**both[0], "product_code": "C"}, {"esl_code": spare}])[
        "error_code"
    ]
    assert shop.rows()[large]["product_code"] == "B", "all or nothing"
    assert shop.post("esl/unbind", f1=spare) == SUCCESS
    assert shop.post("esl/unbind", f1=[spare])["error_code"] == 1
    assert shop.rows()[spare]["product_code"] == ""
    shop.trigger()
    assert shop.places()[spare]["shown"] is None


def test_a_flash_and_a_sync(shop: Shop) -> None:
    esl, *_ = shop.rows()
    assert shop.post("esl/search", f1=[esl]) == SUCCESS
    assert shop.places()[esl]["flashes"] == 1
    assert shop.post("esl/search", f1=["none"])["error_code"] == 1
    assert shop.post("esl/sync") == SUCCESS


def test_labels_go_for_good(shop: Shop) -> None:
    esl, *rest = shop.rows()
    assert shop.http.delete(f"/sandbox/devices/001/{esl}").json() == {"count": 1}
    assert list(shop.rows()) == rest
    assert shop.http.delete("/sandbox/devices/001").json() == {"count": 2}
    assert shop.get("esl/query_count") == {"online_count": 0, "offline_count": 0}


def test_devices_may_be_many_to_a_product_and_wait_for_one_that_is_not_there_yet() -> None:
    with shop_of() as shop:
        shop.push(A="1.00", B="2.00")
        shop.hang(count=5)
        assert [row["product_code"] for row in shop.rows().values()] == ["A", "B", "A", "B", "A"]
        (late,) = shop.hang(products=["LATE"], esl_codes=["MINE"])
        assert (late, shop.places()["MINE"]["shown"]) == ("MINE", None)
        shop.push(LATE="3.00")
        shop.trigger()
        assert shop.places()["MINE"]["shown"]["price"] == "3.00"
        last = [*shop.rows()][4]
        shop.change(last, offline=True)
        shop.push(A="1.50")
        shop.trigger()
        assert shop.sandbox.state()["shown"]["001"]["A"]["pp"] == "1.00", "the one that differs counts"
        for codes in (["X"], ["X", "X"], ["MINE", "X"]):
            wish = {"store": "001", "products": ["A", "B"], "esl_codes": codes}
            assert shop.http.put("/sandbox/devices", json=wish).status_code == 422


# --- staff


def test_staff_bind_a_label_to_each_product_without_one_and_use_spare_ones_again() -> None:
    with shop_of(Floor(staff=True)) as shop:
        shop.push(A="1.00", B="2.00")
        assert (len(shop.rows()), shop.prices()) == (2, [None, None])
        shop.trigger()
        shop.push(A="1.50")
        assert (len(shop.rows()), shop.prices()) == (2, ["1.00", "2.00"])
        first, *_ = shop.rows()
        shop.post("product/del_multiple", f1=["A"])
        shop.push(N="7.00")
        assert len(shop.rows()) == 3, "a label that still shows the old price is no spare one"
        shop.trigger()
        shop.push(M="8.00")
        shop.trigger()
        assert len(shop.rows()) == 3
        assert shop.rows()[first]["product_code"] == "M"
        assert shop.prices() == ["8.00", "2.00", "7.00"]


def test_devices_survive_a_restart_and_labels_that_hung_before_become_devices(tmp_path: Path) -> None:
    file = tmp_path / "labels.db"
    with running_sandbox(LabelStore(file, auto_trigger=False)) as sandbox:
        shop = Shop(sandbox)
        shop.push(A="1.00", B="2.00")
        shop.trigger()
        shop.push(A="1.50")
        before = sandbox.state()
    for _ in range(2):
        with running_sandbox(LabelStore(file, auto_trigger=False, floor=Floor(staff=True))) as sandbox:
            assert sandbox.state() == before
            places = list(Shop(sandbox).places().values())
            assert [(place["shown"]["price"], place["waits"]) for place in places] == [
                ("1.00", True),
                ("2.00", False),
            ]
    with running_sandbox(LabelStore(file, auto_trigger=False)) as sandbox:
        assert sandbox.state() == before
        Shop(sandbox).trigger()
        assert Shop(sandbox).prices() == ["1.50", "2.00"]


def test_everything_can_be_cleared(shop: Shop) -> None:
    shop.sandbox.set_floor("001", staff=True)
    shop.sandbox.clear()
    assert shop.rows() == {} == shop.sandbox.state()["shown"]
    shop.push(A="1.00")
    assert shop.rows() == {}
    shop.trigger()
    assert shop.sandbox.state()["shown"]["001"]["A"]["pp"] == "1.00", "a store without devices is as ever"


# --- the page


def test_the_page_shows_the_labels_picture_and_beside_it_what_the_server_holds(shop: Shop) -> None:
    esl, *_ = shop.rows()
    shop.hang(unbound=1, products=[])
    shop.change(esl, offline=True)
    shop.push(A="1.50")
    shop.trigger()
    answer = shop.http.get("/sandbox/labels").json()
    assert (answer["labels_total"], answer["matching"], answer["stores"]) == (3, 3, 1), "no spare labels"
    card, other, _ = answer["labels"]
    assert (card["price"], card["holds"]["price"], card["why"]) == ("1.00", "1.50", "offline")
    assert (other["price"], other["holds"], other["why"]) == ("2.00", None, "")
    found = shop.http.get("/sandbox/labels", params={"q": "tea a"}).json()
    assert (found["matching"], [card["esl"] for card in found["labels"]]) == (1, [esl])
    shop.change(esl, offline=False)
    again = shop.http.get("/sandbox/labels", params={"since": answer["revision"]}).json()["labels"]
    assert (again[0]["price"], again[0]["holds"]) == ("1.50", None)


# --- laziness

CODES = ["A", "B"]
DEEDS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(CODES), st.integers(100, 999)),
    st.tuples(st.just("delete"), st.sampled_from(CODES)),
    st.tuples(st.just("trigger")),
    st.tuples(st.just("pass"), st.sampled_from([1, 20, 61, 4000])),
    st.tuples(
        st.just("change"),
        st.integers(0, 3),
        st.sampled_from([
            {"offline": True}, {"offline": False}, {"asleep": True}, {"asleep": False}, {"fallen": True},
            {"template": 2}, {"template": 1}, {"battery": 2201.0, "drain": 100.0}, {"battery": 3000.0, "drain": 0.0},
        ]),
    ),
    st.tuples(st.just("ap"), st.booleans()),
    st.tuples(st.just("bind"), st.integers(0, 3), st.sampled_from(CODES)),
    st.tuples(st.just("unbind"), st.integers(0, 3)),
)  # fmt: skip


def played(deeds: list[tuple[Any, ...]], floor: Floor, *, looks: bool) -> list[dict[str, Any]]:
    """What the shelf shows after these deeds; looks: somebody looks at every second of it."""
    now = [1_000_000_000.25]
    with LabelStore(auto_trigger=False, floor=floor, clock=lambda: now[0]) as store:
        store.put("001", [{"pc": code, "pn": code, "pp": "1.00"} for code in CODES], "create")
        devices = store.fleet.hang(Hang(store="001", count=4, aps=["AP-1", "AP-2"]))
        for what, *how in deeds:
            if what == "push":
                price = f"{how[1] / 100:.2f}"
                store.put("001", [{"pc": how[0], "pn": how[0], "pp": price}], "create")
            elif what == "delete":
                store.delete("001", how, "del_multiple")
            elif what == "trigger":
                store.refresh("001")
            elif what == "pass":
                for _ in range(how[0] if looks else 1):
                    now[0] += 1 if looks else how[0]
                    if looks:
                        store.fleet.settle()
            elif what == "change":
                store.fleet.change(Change(store="001", esl_codes=[devices[how[0]]], **how[1]))
            elif what == "ap":
                store.fleet.set_ap("001", "AP-1", dead=how[0])
            elif what == "bind":
                with contextlib.suppress(DeviceError):
                    store.fleet.bind("001", [(devices[how[0]], how[1], None)])
            else:
                store.fleet.unbind("001", devices[how[0]])
        shelf = list(places(store.fleet, "001"))
        rows = store.fleet.page("001", 0, 10)
    kept = ("esl_code", "product_code", "shown", "shown_at", "held", "state", "why", "waits", "refreshing")
    times = [{name: row[name] for name in ("updated_at", "online", "esl_battery")} for row in rows]
    return [{name: place[name] for name in kept} | row for place, row in zip(shelf, times, strict=True)]


@pytest.mark.parametrize("moves", ["on_refresh", "on_poll"])
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(deeds=st.lists(DEEDS, max_size=12))
def test_it_does_not_matter_when_somebody_looks(moves: Any, deeds: list[tuple[Any, ...]]) -> None:
    floor = Floor(poll_seconds=60, sleep_after=3600, wake_seconds=90, rows_move=moves)
    assert played(deeds, floor, looks=True) == played(deeds, floor, looks=False)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(deeds=st.lists(DEEDS, max_size=12))
def test_no_label_is_right_that_does_not_show_its_price(deeds: list[tuple[Any, ...]]) -> None:
    for place in played(deeds, Floor(poll_seconds=60), looks=False):
        if place["state"] == "right":
            assert place["shown"]["price"] == place["held"]["price"]
            assert place["shown"]["code"] == place["product_code"]


# --- many


@pytest.mark.long
def test_a_hundred_thousand_devices_cost_little() -> None:
    with LabelStore(auto_trigger=False) as store:
        store.put("001", ({"pc": f"C{n}", "pn": "Tea", "pp": "1.00"} for n in range(1000)), "create_multiple")
        store.fleet.set_floor("001", Floor(poll_seconds=600))
        store.fleet.hang(Hang(store="001", count=100_000, aps=[f"AP-{n}" for n in range(50)]))
        store.fleet.page("001", 0, 100)
        began = time.process_time()
        for offset in range(90_000, 100_000, 1000):
            assert len(store.fleet.page("001", offset, 1000)) == 1000
        pages = time.process_time() - began
        began = time.process_time()
        for n in range(100):
            store.put("001", [{"pc": f"C{n}", "pn": "Tea", "pp": "2.00"}], "create")
        assert store.refresh("001") == 10_000
        store.fleet.tick(600)
        assert store.fleet.change(Change(store="001", products=["C1"], offline=True)) == 100
        changes = time.process_time() - began
    assert pages < 1, "10 pages of 1,000: nothing is counted over for a page"
    assert changes < 4
