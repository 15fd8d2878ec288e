"""The sandbox label server against the documented contract, over real HTTP."""

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.waiting import eventually

COMMON = {"store_code": "001", "is_base64": "0", "sign": "sandbox-sign"}
SUCCESS = {"error_code": 0, "error_msg": ""}


def product(code: str = "4006", price: Any = "5.00", **fields: Any) -> dict[str, Any]:
    return {"pc": code, "pn": "Earl Grey", "pp": price, **fields}


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox) -> Sandbox:
    server.clear()
    return server


def post(sandbox: Sandbox, action: str, client: str = "default", **fields: Any) -> Any:
    answer = sandbox.http.post(f"/api/{client}/product/{action}", json={**COMMON, **fields})
    assert answer.status_code == 200
    return answer.json()


def get(sandbox: Sandbox, action: str, **params: Any) -> Any:
    answer = sandbox.http.get(f"/api/default/product/{action}", params={**COMMON, **params})
    assert answer.status_code == 200
    return answer.json()


def refused(message: str) -> dict[str, Any]:
    return {"error_code": 1, "error_msg": f"default {message}"}


# --- changes ------------------------------------------------------------------------------------


def test_create_takes_a_product_and_query_returns_its_row(sandbox: Sandbox):
    assert (
        post(sandbox, "create", **product(pi="SKU-1", pim="https://x/y.png", f1="a", f16="p", vp=1))
        == SUCCESS
    )
    (row,) = get(sandbox, "query", f1=1, f2=10)
    assert row | {"created_at": "", "updated_at": ""} == row | {
        "product_code": "4006",
        "product_name": "Earl Grey",
        "product_price": "5.00",
        "product_inner": "SKU-1",
        "product_image": "https://x/y.png",
        "product_vip_price": "1.00",
        "product_spec": "",
        "field1": "a",
        "field2": "",
        "field16": "p",
        "store_code": "001",
        "enabled": 1,
        "created_at": "",
        "updated_at": "",
    }
    for name in ("created_at", "updated_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[name])


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("8.9", "8.90"), (56.8, "56.80"), (0, "0.00"), ("001", "1.00"), ("2.675", "2.68"), ("1250", "1250.00")],
)
def test_prices_are_kept_with_two_decimals(sandbox: Sandbox, sent: Any, kept: str):
    post(sandbox, "create", **product(price=sent))
    assert get(sandbox, "query")[0]["product_price"] == kept


@pytest.mark.parametrize("name", ["kc", "qty"])
def test_stock_is_storage(sandbox: Sandbox, name: str):
    post(sandbox, "create", **product(), **{name: "7"})
    assert get(sandbox, "query")[0]["product_storage"] == "7"


def test_an_upsert_replaces_the_whole_record(sandbox: Sandbox):
    post(sandbox, "create", **product(pi="SKU-1", f1="old", ps="500 g"))
    (first,) = get(sandbox, "query")
    post(sandbox, "create_multiple", f1=[product(price="6", ps="")])
    (row,) = get(sandbox, "query")
    assert (row["id"], row["product_price"]) == (first["id"], "6.00")
    assert (row["product_inner"], row["field1"], row["product_spec"]) == ("", "", "")


def test_codes_are_trimmed_text_and_unknown_fields_ignored(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product(" 00001  ", colour="red")], f2="AP-1")
    assert sandbox.state()["labels"] == {"001": {"00001": product("00001")}}


def test_stores_are_apart(sandbox: Sandbox):
    post(sandbox, "create", **product(price="1"))
    post(sandbox, "create", store_code="002", **product(price="2"))
    post(sandbox, "del_multiple", store_code="002", f1=["4006"])
    assert get(sandbox, "query")[0]["product_price"] == "1.00"
    assert get(sandbox, "query", store_code="002") == []


def test_deleting_tells_how_many_there_were(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product("1"), product("2"), product("3")])
    assert post(sandbox, "del_multiple", f1=["1", "3", "none"]) == {**SUCCESS, "count": 2}
    assert post(sandbox, "del_multiple", f1=["1"]) == {**SUCCESS, "count": 0}
    assert [row["product_code"] for row in get(sandbox, "query")] == ["2"]


# --- reads --------------------------------------------------------------------------------------


def test_pages_and_counts(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product(str(number)) for number in range(1, 26)])
    pages = [[row["product_code"] for row in get(sandbox, "query", f1=page, f2=10)] for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [code for page in pages for code in page] == [str(number) for number in range(1, 26)]
    assert get(sandbox, "query_count") == {"count": 25}


def test_query_with_code(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product(str(number)) for number in range(1, 6)])
    rows = post(sandbox, "query_with_code", f1=["4", "2", "none"])
    assert [row["product_code"] for row in rows] == ["2", "4"]


def test_the_environment_needs_no_key(sandbox: Sandbox):
    env = sandbox.http.get("/api/query/env").json()
    assert set(env) == {
        "name", "env", "version", "debug", "url", "timezone", "locale", "fallback_locale", "cipher", "log",
        "log_level", "log_max_files",
    }  # fmt: skip


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"store_code": ""}, "missing store_code field"),
        ({"sign": ""}, "missing sign field"),
        ({"sign": "guess"}, "invalid sign"),
        ({"is_base64": "1"}, "is_base64 must be 0"),
        ({"pc": "  "}, "missing pc field"),
        ({"pn": ""}, "missing pn field"),
        ({"pp": None}, "missing pp field"),
        ({"pp": "abc"}, "pp must be a number"),
        ({"pp": "5,00"}, "pp must be a number"),
        ({"pp": "NaN"}, "pp must be a number"),
        ({"pop": [1]}, "pop must be a number"),
    ],
)
def test_logical_errors_come_with_http_200(sandbox: Sandbox, fields: dict[str, Any], message: str):
    assert post(sandbox, "create", **{**product(), **fields}) == refused(message)
    assert sandbox.state()["labels"] == {}


@pytest.mark.parametrize("items", [None, "[]", {}, 3, ["4006"], [[]]])
def test_arrays_must_be_arrays_of_products(sandbox: Sandbox, items: Any):
    assert post(sandbox, "create_multiple", f1=items) == refused("Invalid argument supplied for foreach()")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"text"'])
def test_a_body_that_is_no_object_has_no_fields(sandbox: Sandbox, body: bytes):
    answer = sandbox.http.post("/api/default/product/create", content=body)
    assert (answer.status_code, answer.json()) == (200, refused("missing store_code field"))


def test_listings_fail_with_an_object(sandbox: Sandbox):
    assert get(sandbox, "query", sign="guess") == refused("invalid sign")
    assert get(sandbox, "query_count", store_code="") == refused("missing store_code field")
    assert get(sandbox, "query", f1="one") == refused("f1 and f2 must be numbers")
    assert get(sandbox, "query", f1=0) == refused("f1 and f2 must be above 0")


def test_a_foreign_client_is_refused(sandbox: Sandbox):
    answer = post(sandbox, "create", client="tenant", **product())
    assert answer == {"error_code": 1, "error_msg": "tenant app_key not exists"}


def test_a_batch_with_a_bad_item_changes_nothing(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product("1"), {"pc": "2", "pn": "no price"}])
    assert sandbox.state()["labels"] == {}


@pytest.mark.parametrize(("method", "action"), [("POST", "delete"), ("POST", "query"), ("GET", "create")])
def test_other_actions_do_not_exist(sandbox: Sandbox, method: str, action: str):
    assert sandbox.http.request(method, f"/api/default/product/{action}").status_code == 404


# --- memory -------------------------------------------------------------------------------------


def test_state_tells_calls_pushes_and_history(sandbox: Sandbox):
    for price in ("1", "2", "3"):
        post(sandbox, "create", **product(price=price))
    post(sandbox, "del_multiple", f1=["4006"])
    post(sandbox, "create", sign="guess", **product(price="4"))
    state = sandbox.state()
    assert state["calls"] == {"create": 4, "del_multiple": 1} == sandbox.http.get("/sandbox/calls").json()
    assert state["pushes"] == {"001": {"4006": 5}}
    history = state["history"]["001"]["4006"]
    assert [entry["record"] and entry["record"]["pp"] for entry in history] == ["1.00", "2.00", "3.00", None]
    assert [entry["action"] for entry in history] == ["create"] * 3 + ["del_multiple"]
    assert all(earlier["at"] <= later["at"] for earlier, later in pairwise(history))


def test_state_can_be_cleared(sandbox: Sandbox):
    post(sandbox, "create", **product())
    empty = {"labels": {}, "shown": {}, "calls": {}, "pushes": {}, "history": {}, "refreshes": {}}
    assert sandbox.http.delete("/sandbox/state").json() == empty == sandbox.state()


def test_a_call_that_is_on_its_way_when_all_is_forgotten_leaves_nothing(sandbox: Sandbox):
    sandbox.faults({"kind": "latency", "ms": 500})
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(create, sandbox)
        eventually(lambda: sandbox.state()["calls"])
        sandbox.http.delete("/sandbox/state").raise_for_status()
        assert answer.result().json()["error_code"] == 1
    assert codes(sandbox) == []


def test_an_edit_by_hand_is_no_push(sandbox: Sandbox):
    post(sandbox, "create", **product(pi="SKU-1"))
    before = sandbox.state()
    sandbox.http.put("/sandbox/labels/001/4006", json={"pp": "99.00"}).raise_for_status()
    after = sandbox.state()
    assert after["labels"]["001"]["4006"] == product(price="99.00", pi="SKU-1")
    assert {name: after[name] for name in ("calls", "pushes", "history")} == {
        name: before[name] for name in ("calls", "pushes", "history")
    }
    assert get(sandbox, "query")[0]["product_price"] == "99.00"
    assert sandbox.http.delete("/sandbox/labels/001/4006").json() == {"count": 1}
    assert sandbox.http.delete("/sandbox/labels/001/4006").json() == {"count": 0}
    gone = sandbox.state()
    assert gone["labels"] == {} and gone["history"] == before["history"]
    assert "del_multiple" not in gone["calls"]


def test_labels_survive_a_restart(tmp_path: Path):
    file = tmp_path / "labels.db"
    with running_sandbox(LabelStore(file)) as sandbox:
        post(sandbox, "create", **product(price="1"))
        post(sandbox, "create", **product(price="2"))
        before = sandbox.state()
    with running_sandbox(LabelStore(file)) as sandbox:
        assert sandbox.state() == before
        assert get(sandbox, "query")[0]["product_price"] == "2.00"


@pytest.mark.long
def test_the_command_serves_and_labels_survive_a_kill(tmp_path: Path):
    command = [sys.executable, "-m", "esl_pipeline.sandbox.label_server.server", "--port", "0"]
    command += ["--data", str(tmp_path / "labels.db"), "--client-id", "tenant", "--sign", "own"]
    body = {**COMMON, **product(price="3"), "sign": "own"}
    for round_number in (1, 2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                url = process.stdout.readline().split()[-1]
                assert url.startswith("http://127.0.0.1:")
                if round_number == 1:
                    assert httpx.post(f"{url}/api/tenant/product/create", json=body).json() == SUCCESS
                else:
                    labels = httpx.get(f"{url}/sandbox/state").json()["labels"]
                    assert labels["001"]["4006"]["pp"] == "3.00"
            finally:
                process.kill()


# --- physical labels ----------------------------------------------------------------------------


@pytest.fixture
def waiting() -> Iterator[Sandbox]:
    """A server without auto-trigger."""
    with running_sandbox(LabelStore(auto_trigger=False)) as sandbox:
        yield sandbox


def refresh(sandbox: Sandbox, **fields: Any) -> Any:
    return sandbox.http.post("/api/default/esl/bind_task", json={**COMMON, **fields}).json()


def prices_shown(sandbox: Sandbox, store: str = "001") -> dict[str, str]:
    return {code: record["pp"] for code, record in sandbox.state()["shown"].get(store, {}).items()}


def test_with_auto_trigger_a_physical_label_shows_each_change_at_once(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product("1"), product("2")])
    post(sandbox, "create", **product("1", price="6"))
    post(sandbox, "del_multiple", f1=["2"])
    sandbox.http.put("/sandbox/labels/001/3", json={"pp": "7.00"}).raise_for_status()
    assert prices_shown(sandbox) == {"1": "6.00", "3": "7.00"}
    assert sandbox.state()["shown"] == sandbox.state()["labels"]
    assert refresh(sandbox) == SUCCESS
    assert sandbox.state()["refreshes"] == {}, "nothing was waiting"


def test_field_41_without_it_nothing_is_shown_before_the_trigger_of_that_store(waiting: Sandbox):
    post(waiting, "create_multiple", f1=[product("1"), product("2")])
    post(waiting, "create", store_code="002", **product("9"))
    assert waiting.state()["shown"] == {}
    assert refresh(waiting) == SUCCESS
    assert prices_shown(waiting) == {"1": "5.00", "2": "5.00"}
    assert prices_shown(waiting, "002") == {}
    post(waiting, "create", **product("1", price="6"))
    assert prices_shown(waiting) == {"1": "5.00", "2": "5.00"}
    refresh(waiting)
    assert prices_shown(waiting) == {"1": "6.00", "2": "5.00"}
    state = waiting.state()
    assert state["calls"]["bind_task"] == len(state["refreshes"]["001"]) == 2
    assert "" not in state["history"]["001"], "a refresh changes no product"


def test_a_deleted_product_is_on_its_label_until_the_refresh(waiting: Sandbox):
    post(waiting, "create", **product("1"))
    post(waiting, "create", **product("2"))
    refresh(waiting)
    post(waiting, "del_multiple", f1=["1", "2"])
    post(
        waiting, "create", **product("2", price="8")
    )  # comes back before the refresh: its label is hung again
    assert prices_shown(waiting) == {"1": "5.00", "2": "5.00"}
    refresh(waiting)
    assert prices_shown(waiting) == {"2": "8.00"}


def test_the_trigger_wants_the_key_and_can_be_made_to_fail(waiting: Sandbox):
    post(waiting, "create", **product())
    assert refresh(waiting, sign="guess") == refused("invalid sign")
    waiting.faults({"kind": "status", "status": 503, "action": "bind_task", "times": 1})
    assert waiting.http.post("/api/default/esl/bind_task", json=COMMON).status_code == 503
    assert waiting.state()["shown"] == {}
    assert refresh(waiting) == SUCCESS
    assert waiting.http.get("/api/default/esl/bind_task", params=COMMON).status_code == 404
    assert waiting.http.post("/api/default/product/bind_task", json=COMMON).status_code == 404


def test_physical_labels_survive_a_restart_and_those_of_an_older_file_hang_already(tmp_path: Path):
    file = tmp_path / "labels.db"
    with running_sandbox(LabelStore(file, auto_trigger=False)) as sandbox:
        post(sandbox, "create", **product())
        refresh(sandbox)
        post(sandbox, "create", **product(price="6"))
        before = sandbox.state()
    with running_sandbox(LabelStore(file, auto_trigger=False)) as sandbox:
        assert sandbox.state() == before
        assert prices_shown(sandbox) == {"4006": "5.00"}
    with closing(sqlite3.connect(file)) as old, old:
        old.execute("drop table physical")
    with running_sandbox(LabelStore(file, auto_trigger=False)) as sandbox:
        assert prices_shown(sandbox) == {"4006": "6.00"}


def test_the_page_shows_the_physical_label_and_marks_one_that_waits(waiting: Sandbox):
    post(waiting, "create", **product("1"))
    (card,) = cards(waiting)["labels"]
    assert (card["blank"], card["waits"], card["price"], card["next"]) == (True, True, "", "5.00")
    before = cards(waiting)
    assert (before["labels_total"], before["waiting"]) == (1, 1)
    refresh(waiting)
    after = cards(waiting, since=before["revision"])
    (card,) = after["labels"]
    assert (card["blank"], card["waits"], card["price"], after["waiting"]) == (False, False, "5.00", 0)
    post(waiting, "del_multiple", f1=["1"])
    (card,) = cards(waiting, q="Earl")["labels"]
    assert (card["waits"], card["price"], card["next"]) == (True, "5.00", "")
    refresh(waiting)
    assert cards(waiting)["labels"] == []


# --- faults -------------------------------------------------------------------------------------


def create(sandbox: Sandbox, code: str = "4006", **fields: Any) -> httpx.Response:
    return sandbox.http.post("/api/default/product/create", json={**COMMON, **product(code), **fields})


def codes(sandbox: Sandbox, store: str = "001") -> list[str]:
    return list(sandbox.state()["labels"].get(store, {}))


def test_a_status_with_retry_after(sandbox: Sandbox):
    sandbox.faults(
        {"kind": "status", "status": 429, "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT", "body": "slow"}
    )
    answer = create(sandbox)
    assert (answer.status_code, answer.text) == (429, "slow")
    assert answer.headers["Retry-After"] == "Wed, 21 Oct 2026 07:28:00 GMT"
    assert codes(sandbox) == []


@pytest.mark.parametrize("kind", [{"kind": "status", "status": 502}, {"kind": "text"}, {"kind": "error"}])
def test_a_failure_may_take_effect(sandbox: Sandbox, kind: dict[str, Any]):
    sandbox.faults({**kind, "apply": True})
    create(sandbox)
    assert codes(sandbox) == ["4006"]


def test_an_error_and_a_text(sandbox: Sandbox):
    sandbox.faults(
        {"kind": "error", "error_code": 7, "error_msg": "no", "times": 1}, {"kind": "text", "body": "miss f1"}
    )
    assert create(sandbox).json() == {"error_code": 7, "error_msg": "no"}
    assert (create(sandbox).status_code, create(sandbox).text) == (200, "miss f1")
    assert codes(sandbox) == []


@pytest.mark.parametrize(("apply", "kept"), [(False, []), (True, ["1", "2"])])
def test_bad_codes_refuse_their_batch_whole_or_from_there_on(sandbox: Sandbox, apply: bool, kept: list[str]):
    sandbox.faults({"kind": "bad_codes", "codes": ["3"], "apply": apply})
    batch = [product(code) for code in ("1", "2", "3", "4")]
    assert post(sandbox, "create_multiple", f1=batch) == {"error_code": 1, "error_msg": "product data error"}
    assert codes(sandbox) == kept
    assert post(sandbox, "create_multiple", f1=[product("4")]) == SUCCESS
    assert post(sandbox, "create", **product("3"))["error_code"] == 1


def test_hidden_labels_are_in_no_answer_that_the_rule_holds_for(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product(code) for code in ("1", "2", "3")])
    sandbox.faults(
        *({"kind": "hidden", "hides": ["2", "none"], "action": a} for a in ("query", "query_count"))
    )
    assert [row["product_code"] for row in get(sandbox, "query")] == ["1", "3"]
    assert get(sandbox, "query_count") == {"count": 2}
    assert [row["product_code"] for row in post(sandbox, "query_with_code", f1=["2"])] == ["2"]
    sandbox.faults({"kind": "hidden", "hides": ["2"]})
    assert post(sandbox, "query_with_code", f1=["2"]) == []
    assert post(sandbox, "create", **product("2")) == SUCCESS


def test_a_server_may_take_codes_for_numbers(sandbox: Sandbox):
    sandbox.faults({"kind": "drops_zeros"})
    post(sandbox, "create_multiple", f1=[product("00123"), product("7")])
    post(sandbox, "create", **product("0456"))
    assert codes(sandbox) == ["123", "7", "456"]
    assert [row["product_code"] for row in post(sandbox, "query_with_code", f1=["00123"])] == ["123"]
    assert post(sandbox, "del_multiple", f1=["00456", "0123"])["count"] == 2
    assert get(sandbox, "query")[0]["product_code"] == "7"


def test_latency_adds_to_other_faults(sandbox: Sandbox):
    sandbox.faults(
        {"kind": "latency", "ms": 60}, {"kind": "latency", "ms": 60}, {"kind": "status", "status": 500}
    )
    started = time.monotonic()
    assert create(sandbox).status_code == 500
    assert time.monotonic() - started >= 0.12


@pytest.mark.parametrize("apply", [True, False])
def test_held_answers_take_effect_first(sandbox: Sandbox, apply: bool):
    sandbox.faults({"kind": "hold", "seconds": 0.5, "apply": apply})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{sandbox.url}/api/default/product/create", json={**COMMON, **product()}, timeout=0.1)
    assert codes(sandbox) == (["4006"] if apply else [])


@pytest.mark.parametrize("apply", [True, False])
def test_resets_are_real(sandbox: Sandbox, apply: bool):
    sandbox.faults({"kind": "reset", "apply": apply})
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        create(sandbox)
    assert codes(sandbox) == (["4006"] if apply else [])


def test_rules_hold_for_an_action_a_store_and_some_times(sandbox: Sandbox):
    sandbox.faults({"kind": "status", "status": 500, "action": "create", "store": "002", "times": 2})
    assert get(sandbox, "query", store_code="002") == []
    assert create(sandbox).status_code == 200
    assert [create(sandbox, store_code="002").status_code for _ in range(3)] == [500, 500, 200]
    (rule,) = sandbox.http.get("/sandbox/faults").json()
    assert (rule["kind"], rule["times"], rule["fired"]) == ("status", 2, 2)


def test_chance_is_seeded(sandbox: Sandbox):
    def draw(seed: int) -> list[int]:
        sandbox.faults({"kind": "status", "status": 503, "probability": 0.5, "seed": seed})
        return [create(sandbox).status_code for _ in range(20)]

    first = draw(1)
    assert set(first) == {200, 503}
    assert draw(1) == first != draw(2)


def test_rules_are_replaced_and_cleared(sandbox: Sandbox):
    sandbox.faults({"kind": "status", "status": 500})
    sandbox.faults({"kind": "latency", "ms": 0})
    assert create(sandbox).status_code == 200
    sandbox.faults({"kind": "status", "status": 500})
    assert sandbox.http.delete("/sandbox/faults").json() == []
    assert create(sandbox).status_code == 200


@pytest.mark.parametrize(
    "rule", [{"kind": "strike"}, {"kind": "status"}, {"kind": "hold", "seconds": 1, "often": 2}]
)
def test_unknown_rules_are_refused(sandbox: Sandbox, rule: dict[str, Any]):
    assert sandbox.http.post("/sandbox/faults", json=[rule]).status_code == 422


# --- the page -----------------------------------------------------------------------------------


def cards(sandbox: Sandbox, **params: Any) -> dict[str, Any]:
    return sandbox.http.get("/sandbox/labels", params=params).raise_for_status().json()


def test_the_page_is_self_contained_and_guarded(sandbox: Sandbox):
    answer = sandbox.http.get("/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    outside = re.findall(r"""(?:src|href|action|url)\s*[=(]\s*["']?(?!data:)[\w./#]""", answer.text)
    assert outside == [] and "@import" not in answer.text
    # A shop's text may only enter the page as text.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", answer.text)


def test_the_page_asks_only_for_what_changed(sandbox: Sandbox):
    first = cards(sandbox)
    assert (first["labels"], first["labels_total"], first["last_change"]) == ([], 0, None)
    assert first["calls"] == 0
    post(sandbox, "create", **product(pi="SKU-1", pop="6"))
    second = cards(sandbox, since=first["revision"])
    (card,) = second["labels"]
    assert (card["name"], card["price"], card["was"], card["sku"]) == ("Earl Grey", "5.00", "6.00", "SKU-1")
    assert (second["labels_total"], second["stores"], second["calls"]) == (1, 1, 1)
    assert cards(sandbox, since=second["revision"])["labels"] is None
    sandbox.http.put("/sandbox/labels/001/4006", json={"pp": "7.00"})
    assert cards(sandbox, since=second["revision"])["labels"][0]["price"] == "7.00"
    third = cards(sandbox)["revision"]
    post(sandbox, "del_multiple", f1=["4006"])
    assert cards(sandbox, since=third)["labels"] == []


def test_the_page_shows_the_latest_500(sandbox: Sandbox):
    post(sandbox, "create_multiple", f1=[product(str(number)) for number in range(1, 701)])
    post(sandbox, "create", **product("1"))
    answer = cards(sandbox)
    shown = {card["code"] for card in answer["labels"]}
    assert (answer["matching"], len(shown)) == (700, 500)
    assert "1" in shown and "700" in shown and "2" not in shown


@pytest.mark.parametrize("search", ["süß", "SÜSS", "400%", "sku_9", "Berlin"])
def test_the_page_can_be_searched(sandbox: Sandbox, search: str):
    post(sandbox, "create", store_code="berlin-1", **{**product("400%", pi="SKU_9"), "pn": "Süßkartoffel"})
    post(sandbox, "create", **{**product("4000", pi="SKU-9"), "pn": "Potato"})
    answer = cards(sandbox, q=search)
    assert ([card["code"] for card in answer["labels"]], answer["matching"]) == (["400%"], 1)
