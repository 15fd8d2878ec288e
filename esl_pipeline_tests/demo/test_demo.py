"""The demo: its truth, its comparison, and once the whole of it."""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from esl_pipeline.demo.day import DemoDay, Difference, Shelf, compare, label_of, on_sale
from esl_pipeline.demo.night import meddle
from esl_pipeline.demo.report import NightReport, Report, WaveReport, print_report
from esl_pipeline.demo.run import run_demo
from esl_pipeline.demo.shelf import shelf_of
from esl_pipeline.sandbox.shopify.catalogue import Product
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.hipoink.servers import running_sandbox

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
MILK = {"pc": "2000000000015", "pn": "Milk - 1 l", "pp": "1.19"}
TEA = {"pc": "2000000000022", "pn": "Tea", "pp": "4.00"}
EXPECTED = {label["pc"]: label for label in (MILK, TEA)}


def shown(*labels: dict[str, str], store: str = "DEMO") -> dict[str, dict[str, dict[str, Any]]]:
    return {store: {label["pc"]: {"pi": "", "pim": "", **label} for label in labels}}


def test_labels_as_they_must_be_are_no_difference() -> None:
    assert compare(EXPECTED, "DEMO", shown(MILK, TEA)) == []


def test_a_wrong_price_is_found() -> None:
    wrong = MILK | {"pp": "1.29"}
    assert compare(EXPECTED, "DEMO", shown(wrong, TEA)) == [Difference("DEMO", MILK["pc"], MILK, wrong)]


def test_a_field_that_should_be_empty_is_found() -> None:
    (found,) = compare(EXPECTED, "DEMO", shown(MILK | {"pim": "https://example.com/a.jpg"}, TEA))
    assert found.kind == "different"


def test_a_missing_label_is_found() -> None:
    (found,) = compare(EXPECTED, "DEMO", shown(MILK))
    assert (found.code, found.kind, found.shown) == (TEA["pc"], "missing", None)


def test_an_extra_label_is_found() -> None:
    extra = {"pc": "666", "pn": "What", "pp": "1.00"}
    (found,) = compare(EXPECTED, "DEMO", shown(MILK, TEA, extra))
    assert (found.code, found.kind, found.expected) == ("666", "extra", None)


def test_a_label_in_another_store_is_extra() -> None:
    (found,) = compare(EXPECTED, "DEMO", shown(MILK, TEA) | shown(MILK, store="OTHER"))
    assert (found.store, found.kind) == ("OTHER", "extra")


def a_shop(count: int = 3) -> tuple[Shop, list[Product]]:
    shop = Shop(1, START)
    products = [
        shop.catalogue.product(
            shop.now, f"Product {n}", vendor="V", product_type="T", option_names=["Size"], options=[("1 l",)]
        )
        for n in range(count)
    ]
    for product in products:
        shop.add(product)
    return shop, products


def settled(shop: Shop, shelf: Shelf) -> set[str]:
    shelf.settle(shop.products.values())
    return set(shelf.labels)


def test_the_truth_of_a_plain_variant() -> None:
    shop, (product, *_) = a_shop()
    shop.rename(product, "Cre\u0301me  <b>brûlée</b> 🥖 ")
    variant = product.variants[0]
    shop.set_price(product, variant, "5")
    variant.sku = "SKU-1"
    assert label_of(product, variant) == {
        "pc": variant.barcode,
        "pn": "Créme brûlée - 1 l",
        "pp": "5.00",
        "pi": "SKU-1",
    }


@pytest.mark.parametrize("barcode", [None, "", " ", "29 000", "0000", "٢٩", "2" * 33, "a/b"])
def test_the_truth_of_a_bad_barcode_is_the_label_before(barcode: str | None) -> None:
    shop, (product, *_) = a_shop()
    shelf = Shelf()
    before = settled(shop, shelf)
    labels = dict(shelf.labels)
    shop.set_barcode(product, product.variants[0], barcode)
    assert settled(shop, shelf) == before
    assert shelf.labels == labels
    assert shelf.held_back == 1
    assert len(settled(shop, Shelf())) == 2


@pytest.mark.parametrize("price", [None, "", "abc", "0", "0.00", "-1", "1,50", "1e3", "1.999", "NaN", "٣"])
def test_the_truth_of_a_bad_price_is_the_label_before(price: str | None) -> None:
    shop, (product, *_) = a_shop()
    shelf = Shelf()
    before = settled(shop, shelf)
    shop.set_price(product, product.variants[0], price)
    assert settled(shop, shelf) == before
    assert len(settled(shop, Shelf())) == 2


def test_the_truth_of_a_shared_code_is_the_label_before() -> None:
    shop, (victim, rival, third) = a_shop()
    shelf = Shelf()
    before = settled(shop, shelf)
    labels = dict(shelf.labels)
    shop.set_barcode(rival, rival.variants[0], victim.variants[0].barcode)
    shop.set_price(victim, victim.variants[0], "77.00")
    assert settled(shop, shelf) == before
    assert shelf.labels == labels
    assert shelf.held_back == 2
    assert settled(shop, Shelf()) == {third.variants[0].barcode}
    shop.delete(rival)
    assert settled(shop, shelf) == before - {labels_code(labels, "Product 1")}
    assert shelf.labels[victim.variants[0].barcode or ""]["pp"] == "77.00"


def labels_code(labels: dict[str, dict[str, str]], title: str) -> str:
    return next(code for code, label in labels.items() if label["pn"].startswith(title))


def test_the_truth_of_what_leaves_and_what_moves() -> None:
    shop, (deleted, draft, moved) = a_shop()
    shelf = Shelf()
    settled(shop, shelf)
    shop.delete(deleted)
    shop.set_status(draft, "draft")
    shop.set_barcode(moved, moved.variants[0], "NEW-1")
    assert settled(shop, shelf) == {"NEW-1"}
    shop.set_status(draft, "active")
    assert settled(shop, shelf) == {"NEW-1", draft.variants[0].barcode}


def test_the_story_has_all_that_it_promises() -> None:
    day, shelf = DemoDay(2026, START), Shelf()
    opening = day.opening()
    shelf.settle(day.shop.products.values())
    opened = dict(shelf.labels)
    assert shelf.held_back == 13
    trading = day.trading()
    shelf.settle(day.shop.products.values())

    topics = Counter(delivery.topic for wave in (opening, trading) for delivery in wave.deliveries)
    assert topics["products/create"] > 121
    assert topics["products/update"] > 100
    assert topics["products/delete"] >= 5
    assert topics["inventory_levels/update"] >= 20
    assert 280 <= len(opening) + len(trading) <= 320
    for wave in (opening, trading):
        ids = Counter(delivery.webhook_id for delivery in wave.deliveries)
        bodies = Counter((delivery.topic, delivery.body) for delivery in wave.deliveries)
        assert max(ids.values()) == 1
        assert sum(n - 1 for n in bodies.values()) >= 2, "copies of a body come as another delivery"
    assert len(trading.forged) == 1

    shared = opened.keys() & shelf.labels.keys()
    assert sum(opened[code]["pp"] != shelf.labels[code]["pp"] for code in shared) >= 75
    assert len(opened.keys() - shelf.labels.keys()) >= 10
    assert len(shelf.labels.keys() - opened.keys()) >= 3
    assert {product.status for product in day.shop.products.values()} == {"active", "draft", "archived"}
    assert len(list(on_sale(day.shop.products.values()))) == len(shelf.labels) + 13 - 2  # two repaired


def test_who_misses_webhooks_knows_the_last_state_that_came() -> None:
    day = DemoDay(2026, START)
    shop, webhooks = day.shop, day.webhooks
    one, other = (
        shop.catalogue.product(
            shop.now, title, vendor="V", product_type="T", option_names=["Size"], options=[("1 l",)]
        )
        for title in ("One", "Other")
    )
    sent = []
    for product in (one, other):
        shop.add(product)
        sent.append(webhooks.created(product))
    for title in ("One, renamed", "One, renamed again"):
        shop.rename(one, title)
        sent.append(webhooks.updated(one))
    shop.delete(other)
    sent.append(webhooks.deleted(other))
    created, other_created, renamed, again, gone = (delivery.event_id for delivery in sent)

    def titles(*events: str) -> list[str]:
        return sorted(product.title for product in day.as_told(events))

    assert titles(created, other_created, renamed, again, gone) == ["One, renamed again"]
    assert titles(again, renamed, gone, other_created) == ["One, renamed again"], "in whatever order"
    assert titles(created, other_created, renamed) == ["One, renamed", "Other"]
    assert titles(gone) == titles("unknown") == []


def test_a_meddler_changes_takes_away_and_adds_what_the_drift_says() -> None:
    codes = [f"C-{number}" for number in range(20)]
    with running_sandbox() as sandbox:
        for code in codes:
            sandbox.http.put(f"/sandbox/labels/DEMO/{code}", json={"pn": code, "pp": "1.00"})
        before = sandbox.state()["labels"]["DEMO"]
        done = meddle(str(sandbox.http.base_url), "DEMO", codes, random.Random(1))
        after = sandbox.state()["labels"]["DEMO"]
    assert done.drift == {"missing": 3, "different": 5, "foreign": 2}
    assert before.keys() - after.keys() == set(done.missing)
    assert after.keys() - before.keys() == set(done.foreign)
    assert {code for code in before.keys() & after.keys() if before[code] != after[code]} == set(
        done.different
    )


def test_the_story_is_the_same_for_a_seed() -> None:
    one, other = DemoDay(5, START), DemoDay(5, START)
    assert (one.opening(), one.trading()) == (other.opening(), other.trading())


def test_a_wrong_label_makes_the_report_wrong_and_is_printed() -> None:
    wrong = MILK | {"pp": "1.29"}
    labels = shown(wrong, TEA)
    wave = WaveReport("opening", labels=2, wrong=compare(EXPECTED, "DEMO", labels))
    report = report_of(wave, labels, night=None)
    assert report.figures()["right"] is False
    said = io.StringIO()
    print_report(Console(file=said, width=100), report, as_json=False)
    assert "1 label is wrong." in said.getvalue()
    assert re.search(rf"DEMO {MILK['pc']}\s+different\s+pp '1.19'\s+pp '1.29'", said.getvalue())
    assert "Every label is right" not in said.getvalue()


def test_field_41_a_label_that_is_right_but_not_on_the_shelf_makes_the_report_wrong_and_is_printed() -> None:
    repaired = {"missing": 0, "different": 0}
    drift = repaired | {"foreign": 0}
    night = NightReport(
        labels=2, outdated=0, drift=drift, drift_in_dagster=drift, repaired=repaired, seconds=1
    )
    labels, on_shelf = shown(MILK, TEA), shown(TEA)
    wave = WaveReport("opening", labels=2, not_shown=compare(EXPECTED, "DEMO", on_shelf))
    report = report_of(wave, labels, night)
    report.sandbox = {**report.sandbox, "shown": on_shelf}
    figures = report.figures()
    assert (figures["right"], figures["wrong"]) == (False, [])
    assert [entry["kind"] for entry in figures["not_shown"]] == ["missing"]
    assert (figures["labels"]["on_server"], figures["labels"]["on_shelf"]) == (2, 1)
    said = io.StringIO()
    print_report(Console(file=said, width=100), report, as_json=False)
    assert "1 label is wrong on the shelf." in said.getvalue()
    assert re.search(rf"DEMO {MILK['pc']}\s+missing", said.getvalue())
    assert "Every label is right" not in said.getvalue()


def place(
    esl: str = "AD1", label: dict[str, str] | None = MILK, price: str | None = "1.19", **more: Any
) -> dict[str, Any]:
    shows = {"name": (label or MILK)["pn"], "price": price} if price else None
    bound = {"esl_code": esl, "product_code": label and label["pc"], "shown": shows}
    return {**bound, "state": "right", "why": "", **more}


def test_the_shelf_counts_each_physical_label_once_and_names_those_that_do_not_show_their_price() -> None:
    places = [
        place("AD1"),
        place("AD2", MILK, "1.09", state="stale", why="waits for its refresh"),
        place("AD3", MILK, None, state="unreachable", why="offline"),
        place("AD4", None, "9.99", state="unbound", why="not bound"),
        place("AD5", None, None, state="unbound"),
    ]
    shelf = shelf_of(places, EXPECTED)
    assert (shelf.hanging, shelf.right, shelf.spare, shelf.without_label) == (4, 1, 1, [TEA["pc"]])
    assert [shelf.count(state) for state in ("stale", "unreachable", "unbound")] == [1, 1, 1]
    assert [(p.esl_code, p.must_show, p.shows) for p in shelf.not_right] == [
        ("AD2", "1.19", "1.09"), ("AD3", "1.19", None), ("AD4", None, "9.99"),
    ]  # fmt: skip


def test_a_label_that_shows_what_the_server_wrongly_holds_is_not_right() -> None:
    for wrong in (place(price="1.29"), place(label=TEA, price="4.00")):
        shelf = shelf_of([wrong], {MILK["pc"]: MILK})
        assert (shelf.right, [p.state for p in shelf.not_right]) == (0, ["stale"])


def test_labels_that_do_not_show_their_price_make_the_report_wrong_and_are_named() -> None:
    repaired = {"missing": 0, "different": 0}
    drift = repaired | {"foreign": 0}
    night = NightReport(
        labels=2, outdated=0, drift=drift, drift_in_dagster=drift, repaired=repaired, seconds=1
    )
    report = report_of(WaveReport("opening", labels=2), shown(MILK, TEA), night)
    assert report.right
    stale = place("AD7", MILK, None, state="stale", why="waits for its refresh")
    report.shelf = shelf_of([stale, place("AD8", TEA, "4.00")], EXPECTED)
    figures = report.figures()
    assert (figures["right"], figures["shelf"]["right"], figures["shelf"]["stale"]) == (False, 1, 1)
    assert [found["esl_code"] for found in figures["shelf"]["not_right"]] == ["AD7"]
    said = io.StringIO()
    print_report(Console(file=said, width=100), report, as_json=False)
    assert "1 of 2 physical labels do not show their price." in said.getvalue()
    assert re.search(rf"AD7\s+{MILK['pc']}\s+1.19\s+nothing\s+stale\s+waits for its refresh", said.getvalue())
    assert "Every label is right" not in said.getvalue()


@pytest.mark.parametrize("told", ["drift_in_dagster", "repaired"])
def test_drift_that_is_not_told_exactly_makes_the_report_wrong_and_is_printed(told: str) -> None:
    repaired = {"missing": 3, "different": 5}
    drift = repaired | {"foreign": 0}
    night = NightReport(
        labels=2, outdated=0, drift=drift, drift_in_dagster=drift, repaired=repaired, seconds=1
    )
    labels = shown(MILK, TEA)
    assert report_of(WaveReport("opening", labels=2), labels, night).right
    report = report_of(
        WaveReport("opening", labels=2),
        labels,
        replace(night, **{told: getattr(night, told) | {"missing": 2}}),
    )
    assert report.figures()["right"] is False
    said = io.StringIO()
    print_report(Console(file=said, width=100), report, as_json=False)
    assert "The drift was not told exactly." in said.getvalue()
    assert "Every label is right" not in said.getvalue()


def report_of(
    wave: WaveReport, labels: dict[str, dict[str, dict[str, Any]]], night: NightReport | None
) -> Report:
    return Report(
        waves=[wave],
        night=night,
        inbox={"superseded": 0, "unusable": 0, "dead": 0},
        held_back=0,
        expected_held_back=0,
        findings=[],
        sandbox={
            "labels": labels,
            "shown": labels,
            "history": {},
            "calls": {},
            "pushes": {},
            "refreshes": {},
        },
        traced_code="",
        trace=None,
        start_seconds=1,
        total_seconds=2,
    )


def test_what_cannot_start_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("ESL_PG_BINDIR", str(tmp_path))
    before = dict(os.environ), Path.cwd()
    said = io.StringIO()
    assert run_demo(load_settings(), Console(file=said, width=100)) is False
    assert "The demo could not be finished: There are no PostgreSQL programs" in said.getvalue()
    said = io.StringIO()
    assert run_demo(load_settings(), Console(file=said, width=100), as_json=True) is False
    answer = json.loads(said.getvalue())
    assert answer["right"] is False
    assert "PostgreSQL" in answer["error"]
    assert (dict(os.environ), Path.cwd()) == before
    assert not list(tmp_path.glob("esl-demo-??????*/postgres*"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.long
def test_ctrl_c_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "esl_pipeline.commands.cli", "demo"],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any("esl_pipeline.definitions" in process for process in processes_of(tmp_path)):
        assert demo.poll() is None, demo.communicate()
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=60)
    assert "Traceback" not in out + err
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def processes_of(folder: Path) -> list[str]:
    """Command lines and environments of the processes that live in a folder of the demo."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder / "esl-demo-").encode() in text:
            found.append(text.decode(errors="replace"))
    return found


@pytest.mark.long
@pytest.mark.timeout(240)
def test_the_whole_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    for folder in (scratch, elsewhere):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    # The user's own label server, buffer and settings: none of it may be touched or even read by the parts.
    with socket.create_server(("127.0.0.1", 0)) as real_server:
        address = f"127.0.0.1:{real_server.getsockname()[1]}"
        monkeypatch.setenv("HIPOINK_API_BASE_URL", f"http://{address}")
        monkeypatch.setenv("ESL_DATABASE_URL", f"postgresql://user:password@{address}/buffer")
        monkeypatch.setenv("HIPOINK_CLIENT_ID", "real-client")
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", f"http://{address}")
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", "real-token")
        (elsewhere / ".env").write_text("SHOPIFY_WEBHOOK_SECRET=real\nAPP_ENVIRONMENT=production\n")
        monkeypatch.chdir(elsewhere)
        said = io.StringIO()
        began = time.monotonic()
        right = run_demo(load_settings(), Console(file=said, width=100), as_json=True)
        seconds = time.monotonic() - began
        real_server.settimeout(0)
        with pytest.raises(BlockingIOError):
            real_server.accept()

    figures = json.loads(said.getvalue())
    assert right, figures
    assert figures["wrong"] == figures["not_shown"] == []
    webhooks, labels, held = figures["webhooks"], figures["labels"], figures["held_back"]
    assert 280 <= webhooks["sent"] <= 320
    received = webhooks["kept"] + webhooks["duplicates"] + webhooks["refused"]
    assert webhooks["sent"] == received + webhooks["dropped"]
    assert 0.05 < webhooks["dropped"] / webhooks["sent"] < 0.15
    assert webhooks["duplicates"] > 6
    assert (webhooks["refused"], webhooks["unusable"], webhooks["dead"]) == (1, 1, 0)
    assert labels["on_shelf"] == labels["on_server"] == labels["expected"] > 280
    shelf = figures["shelf"]
    assert shelf["right"] == shelf["hanging"] == labels["expected"] + 2, "and what somebody else has hung up"
    assert (shelf["not_right"], shelf["without_label"]) == ([], [])
    assert 3 <= labels["refreshes"] <= 2 * labels["calls"], "one a burst, at least one each part of the demo"
    assert labels["written"] > labels["on_shelf"]
    assert labels["removed"] >= 10
    assert labels["written_unchanged"] == 0
    assert 2 <= labels["calls"] <= 60
    night = figures["night"]
    drift = {"missing": 3, "different": 5, "foreign": 2}
    assert night["drift"] == night["drift_in_dagster"] == drift
    assert night["repaired"] == {"missing": 3, "different": 5}
    assert night["outdated"] > 5, "dropped webhooks have to matter"
    assert held["variants"] == held["expected"] == sum(held["findings"].values())
    assert set(held["findings"]) == {
        "code_form", "code_missing", "code_zero", "duplicate_code", "price_decimals", "price_form", "price_zero",
    }, "a missing price is 0.00 in the Admin API"  # fmt: skip
    assert figures["warnings"]["gtin_bad_check_digit"] == 1
    assert figures["seconds"]["first_label"] <= figures["seconds"]["opening_right"] < seconds
    assert processes_of(scratch) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(240)
def test_without_a_refresh_the_demo_names_every_physical_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = io.StringIO()
    assert not run_demo(load_settings(), Console(file=said, width=100), refresh="never", as_json=True)
    figures = json.loads(said.getvalue())
    labels, shelf = figures["labels"], figures["shelf"]
    assert (figures["wrong"], labels["on_shelf"], labels["refreshes"]) == ([], 0, 0)
    assert labels["on_server"] == labels["expected"] > 280, "the label server has everything"
    assert shelf["stale"] == shelf["hanging"] == labels["expected"] + 2
    assert {place["why"] for place in shelf["not_right"]} == {"waits for its refresh"}
    assert all(place["must_show"] and place["shows"] is None for place in shelf["not_right"])
    assert len({place["esl_code"] for place in shelf["not_right"]}) == shelf["stale"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_whole_demo_of_woocommerce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = io.StringIO()
    right = run_demo(load_settings(), Console(file=said, width=100), source="woocommerce", as_json=True)
    figures = json.loads(said.getvalue())
    assert right, figures
    webhooks, labels, night = figures["webhooks"], figures["labels"], figures["night"]
    assert webhooks["dropped"] > 10
    assert webhooks["duplicates"] > 3
    assert (webhooks["refused"], webhooks["unusable"], webhooks["dead"]) == (1, 1, 0)
    assert labels["on_shelf"] == labels["on_server"] == labels["expected"] > 200
    assert labels["written_unchanged"] == 0
    assert night["outdated"] >= 5, "what only the night sees has to matter"
    assert night["drift"] == night["drift_in_dagster"] == {"missing": 3, "different": 5, "foreign": 2}
    held = figures["held_back"]
    assert held["variants"] == held["expected"] == sum(held["findings"].values())
    assert processes_of(tmp_path) == []
