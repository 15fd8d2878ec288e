"""By hand at the shelf: labels are bound, replaced, found, looked at and measured; refusals say what is there."""

import csv
import getpass
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.connections import open_label_server, push_rules
from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.labels.checks import RESERVED
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.settings import load_settings
from esl_pipeline.stages.devices import read_devices
from esl_pipeline_tests.commands.conftest import Done, Run
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.world import (
    OTHER_SHOP,
    OTHER_STORE,
    SHOP,
    STORE,
    arrive,
    map_shop,
    product,
)
from esl_pipeline_tests.world import drain_round

pytestmark = pytest.mark.long

BY = f"cli:{getpass.getuser()}"


class Shop:
    """Products C-1 and C-2 in store S1, C-2 and C-3 in S2, each on a label but C-2 in S1; and spare labels."""

    def __init__(self, buffer: Buffer, dsn: str, sandbox: Sandbox) -> None:
        self.buffer, self.dsn, self.sandbox = buffer, dsn, sandbox
        map_shop(buffer)
        map_shop(buffer, OTHER_SHOP, OTHER_STORE)
        arrive(buffer, product(1), product(2))
        arrive(buffer, product(3), product(4, codes=["C-2"]), shop=OTHER_SHOP)
        settings = load_settings()
        with open_label_server(settings, buffer) as client:
            drain_round(buffer, client, push_rules(settings), run_id="r", asset="hipoink_sync_results")
        sandbox.set_floor(STORE, auto_trigger=False)
        sandbox.hang(STORE, products=["C-1"], esl_codes=["AD1"])
        sandbox.hang(STORE, products=[], unbound=2, esl_codes=["AD8", "AD9"])
        sandbox.hang(OTHER_STORE, products=["C-2", "C-3"], esl_codes=["AD2", "AD3"])
        self.read()

    def read(self) -> None:
        """What the job shelf does."""
        with open_label_server(load_settings(), self.buffer) as client:
            for store in (STORE, OTHER_STORE):
                done = read_devices(self.buffer, Devices(client), store=store, run_id="r")
                assert done.outcome == "complete", done

    def hanging(self, store: str = STORE) -> dict[str, str | None]:
        """Label to product, as the label server has it."""
        return {code: place["product_code"] for code, place in self.sandbox.places(store).items()}

    def calls(self) -> list[str]:
        """The actions for labels that changed something, in order."""
        return [
            action for action, _ in self.actions("select action, outcome from esl.label_actions order by id")
        ]

    def actions(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
def shop(buffer: Buffer, buffer_dsn: str, sandbox: Sandbox) -> Shop:
    return Shop(buffer, buffer_dsn, sandbox)


def said(done: Done) -> str:
    assert done.code == 0, done
    return done.out.strip()


# Bind


def test_bind_shows_a_product_on_a_spare_label_and_has_it_refreshed(shop: Shop, run: Run) -> None:
    assert said(run("labels", "bind", "AD8", "C-2")) == (
        "S1: AD8 shows C-2 (Product 2, 1.50); the store is being refreshed"
    )
    assert shop.hanging()["AD8"] == "C-2"
    place = shop.sandbox.places(STORE)["AD8"]
    assert place["state"] == "right", "though nobody but the command has triggered it"
    kept = shop.actions(
        "select by, db_user, store_code, action, esl_code, code, outcome from esl.label_actions order by id"
    )
    assert [row[2:] for row in kept] == [
        (STORE, "bind", "AD8", "C-2", "begun"),
        (STORE, "bind", "AD8", "C-2", "accepted"),
    ]
    assert {row[0] for row in kept} == {BY} and all(row[1] for row in kept)


def test_bind_takes_the_default_template_of_the_labels_model(shop: Shop, run: Run) -> None:
    for number, is_default in ((71, False), (72, True), (73, False)):
        shop.sandbox.http.put(
            "/sandbox/templates",
            json={"id": number, "model": "ESL77", "name": f"T{number}", "is_default": is_default},
        ).raise_for_status()
    shop.sandbox.change_devices(STORE, esl_codes=["AD8"], model="ESL77")
    said(run("labels", "bind", "AD8", "C-2"))
    assert shop.sandbox.places(STORE)["AD8"]["template"] == 72


def test_bind_says_what_the_label_showed_before_and_that_it_is_offline(shop: Shop, run: Run) -> None:
    shop.sandbox.change_devices(STORE, esl_codes=["AD1"], offline=True)
    done = run("labels", "bind", "AD1", "C-2", "--store", STORE)
    assert "AD1 shows C-2 (Product 2, 1.50), no longer C-1; " in said(done)
    assert "the label server does not reach AD1 now" in done.err


def test_bind_finds_the_store_by_the_label_where_several_have_the_product(
    shop: Shop, run: Run, refused: Callable[..., str]
) -> None:
    assert said(run("labels", "bind", "AD3", "C-2")).startswith("S2: AD3 shows C-2")
    assert refused("labels", "bind", "NEW-1", "C-2") == "product C-2 is in 2 stores (S1, S2): say --store"


def test_bind_asks_the_label_server_for_a_label_that_nobody_has_read_yet(shop: Shop, run: Run) -> None:
    shop.sandbox.hang(STORE, products=[], unbound=1, esl_codes=["NEW-1"])
    assert said(run("labels", "bind", "NEW-1", "C-1", "--json")).startswith("{")
    assert shop.hanging()["NEW-1"] == "C-1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("bind", "AD8", "C-9"),
            "the label server has accepted no label C-9 for any store: esl-pipeline trace C-9",
        ),
        (("bind", "AD8", "C-3", "--store", "S1"), "the label server has accepted no label C-3 for store S1"),
        (("bind", "NO-1", "C-1"), "store S1 has no label NO-1 at its label server"),
        (("bind", "AD8", "C-1", "--store", "S7"), "no shop is mapped to store S7: there are S1, S2"),
        (("replace", "NO-1", "AD8"), "nothing called NO-1 is known in any store (S1, S2): say --store"),
        (("replace", "AD8", "AD9"), "AD8 shows nothing in store S1: esl-pipeline labels bind AD9 CODE"),
        (("replace", "AD1", "AD1"), "a label cannot take over from itself: name two"),
        (("replace", "AD1", "AD2"), "store S1 has no label AD2 at its label server"),
        (("seen", "C-9"), "the label server has accepted no label C-9 for any store"),
        (("seen", "C-2"), "product C-2 is in 2 stores (S1, S2): say --store"),
    ],
)
def test_what_is_refused_says_what_is_there(
    shop: Shop, refused: Callable[..., str], arguments: tuple[str, ...], sentence: str
) -> None:
    before = shop.hanging() | shop.hanging(OTHER_STORE)
    assert refused("labels", *arguments).startswith(sentence)
    assert shop.hanging() | shop.hanging(OTHER_STORE) == before and shop.calls() == []


def test_a_refusal_of_the_label_server_is_said_and_kept(shop: Shop, refused: Callable[..., str]) -> None:
    shop.sandbox.faults({"kind": "error", "error_msg": "no", "action": "esl/bind"})
    assert "bind for store S1" in refused("labels", "bind", "AD8", "C-2")
    rows = shop.actions("select outcome, answer from esl.label_actions order by id")
    assert [row[0] for row in rows] == ["begun", "rejected"] and rows[1][1]


# Replace


def test_replace_binds_the_new_label_before_the_old_one_goes(shop: Shop, run: Run) -> None:
    assert said(run("labels", "replace", "AD1", "AD9")) == (
        "S1: AD9 shows C-1, AD1 shows nothing any more; the store is being refreshed"
    )
    assert (shop.hanging()["AD9"], shop.hanging()["AD1"]) == ("C-1", None)
    kept = shop.actions("select action, esl_code, code, outcome from esl.label_actions order by id")
    assert kept == [
        ("bind", "AD9", "C-1", "begun"),
        ("bind", "AD9", "C-1", "accepted"),
        ("unbind", "AD1", "C-1", "begun"),
        ("unbind", "AD1", "C-1", "accepted"),
    ]


def test_replace_leaves_the_old_label_where_the_new_one_cannot_be_bound(
    shop: Shop, refused: Callable[..., str]
) -> None:
    shop.sandbox.faults({"kind": "error", "error_msg": "no", "action": "esl/bind"})
    refused("labels", "replace", "AD1", "AD9")
    assert shop.hanging()["AD1"] == "C-1" and shop.calls() == ["bind", "bind"]


def test_replace_goes_on_where_it_stopped(shop: Shop, run: Run, refused: Callable[..., str]) -> None:
    shop.sandbox.faults({"kind": "error", "error_msg": "no", "action": "esl/unbind"})
    refused("labels", "replace", "AD1", "AD9")
    assert (shop.hanging()["AD9"], shop.hanging()["AD1"]) == ("C-1", "C-1"), "both show it"
    shop.sandbox.faults()
    said(run("labels", "replace", "AD1", "AD9"))
    assert shop.hanging()["AD1"] is None and shop.calls().count("bind") == 2, "not bound again"


def test_replace_takes_no_label_that_shows_another_product(shop: Shop, refused: Callable[..., str]) -> None:
    shop.sandbox.hang(STORE, products=["C-2"], esl_codes=["AD5"])
    assert refused("labels", "replace", "AD1", "AD5") == "AD5 shows C-2: take a label that shows nothing"


# Seen


def test_seen_keeps_who_has_seen_which_label(shop: Shop, run: Run) -> None:
    assert said(run("labels", "seen", "C-1")) == f"S1: recorded that {BY} has seen C-1 (Product 1, 1.50)"
    ((store, code, label_hash, by, db_user),) = shop.actions(
        "select store_code, code, label_hash, by, db_user from esl.seen_labels"
    )
    assert (store, code, by, bool(db_user)) == (STORE, "C-1", BY, True)
    assert [(label_hash,)] == shop.actions(
        "select label_hash from esl.hipoink_products where code = 'C-1' and store_code = 'S1'"
    )


def test_seen_with_another_price_is_kept_as_such(shop: Shop, run: Run) -> None:
    assert "has seen C-1" in said(run("labels", "seen", "C-1", "--price", "1,50"))
    done = run("labels", "seen", "C-1", "--price", "1.40")
    assert done.code == 0 and "seen 1.40 instead of C-1 (Product 1, 1.50)" in done.err
    rows = shop.actions("select label_hash is null from esl.seen_labels order by at")
    assert rows == [(False,), (True,)]


# Flash


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("C-1", "S1: 1 label flashes: AD1"),
        ("AD9", "S1: 1 label flashes: AD9"),
        ("C-3", "S2: 1 label flashes: AD3"),
    ],
)
def test_flash_finds_a_products_labels_or_one(shop: Shop, run: Run, name: str, sentence: str) -> None:
    assert said(run("flash", name)) == sentence
    label = sentence.rpartition(" ")[2]
    (place,) = [
        p for s in (STORE, OTHER_STORE) for p in shop.sandbox.places(s).values() if p["esl_code"] == label
    ]
    assert place["flashes"] == 1 and shop.calls() == ["flash", "flash"]


def test_flash_knows_what_was_bound_since_the_last_pass(shop: Shop, run: Run) -> None:
    said(run("labels", "replace", "AD1", "AD9"))
    assert said(run("flash", "C-1")) == "S1: 1 label flashes: AD9"
    said(run("labels", "bind", "AD8", "C-1"))
    assert said(run("flash", "C-1")) == "S1: 2 labels flash: AD8, AD9"


def test_flash_of_what_nobody_knows(shop: Shop, run: Run, refused: Callable[..., str]) -> None:
    assert refused("flash", "X-1") == "nothing called X-1 is known in any store (S1, S2): say --store"
    assert refused("flash", "X-1", "--store", "S1") == (
        "store S1: no physical label is known to show X-1, or is called so"
    )
    shop.sandbox.hang(STORE, products=[], unbound=1, esl_codes=["NEW-1"])
    assert said(run("flash", "NEW-1", "--store", "S1")) == "S1: 1 label flashes: NEW-1"


# Shelf


def test_shelf_says_how_far_prices_have_come_and_who_is_needed(shop: Shop, run: Run) -> None:
    said(run("labels", "bind", "AD8", "C-2", "--store", STORE))
    shop.sandbox.change_devices(STORE, esl_codes=["AD1"], offline=True)
    run("probe", "--store", STORE, "--label", "AD9", "--wait", "1")
    shop.read()
    done = run("shelf", "--store", STORE)
    assert done.code == 0
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert lines[0] == "S1: 2 products, 2 with a label; 2 labels, 1 online, 0 with a low battery"
    assert "  5 reachable            1         1" in lines and "  4 triggered            1         1" in lines
    assert "  7 seen                 0         0" in lines
    assert "  labels that are not reached: 1" in lines and "    AD1 (C-1)" in lines
    assert "    by AP: AP-1 1 of 2" in lines
    assert "product of no shop" not in done.out, "the probe's label is nobody's business"
    run("labels", "seen", "C-1", "--store", STORE)
    assert "  7 seen                 1         1" in run("shelf", "--store", STORE).out


def test_shelf_is_80_columns_wide_and_names_no_internal_id(shop: Shop, run: Run) -> None:
    long = [f"ESL-{'9' * 60}-{n}" for n in range(7)]
    shop.sandbox.hang(STORE, products=[], unbound=7, esl_codes=long)
    shop.read()
    out = run("shelf").out
    assert max(map(len, out.splitlines())) <= 80
    assert "  labels that show no product: 9" in out and "4 more" in out and "S2: 2 products" in out
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", out)


def test_shelf_csv_has_every_label_and_product(shop: Shop, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "shelf.csv"
    assert said(run("shelf", "--csv", str(file))).startswith("6 labels and products without one in")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {(row["store"], row["label"], row["code"]) for row in rows} == {
        ("S1", "AD1", "C-1"),
        ("S1", "AD8", ""),
        ("S1", "AD9", ""),
        ("S1", "", "C-2"),
        ("S2", "AD2", "C-2"),
        ("S2", "AD3", "C-3"),
    }
    first = next(row for row in rows if row["label"] == "AD1")
    assert (first["shop"], first["price"], first["online"]) == (SHOP, "1.50", "yes")
    assert first["rung_name"] in ("accepted", "reachable")
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", file.read_text())


def test_shelf_of_a_store_that_is_not_mapped(shop: Shop, refused: Callable[..., str]) -> None:
    assert refused("shelf", "--store", "S7") == "no shop is mapped to store S7: there are S1, S2"


def test_a_row_that_moved_because_somebody_bound_its_label_anew_is_no_refresh(shop: Shop, run: Run) -> None:
    (mapping,) = [m for m in shop.buffer.mapping_list() if m["hipoink_store_code"] == STORE]
    shop.buffer.mapping_update(mapping["id"], {"settings": {"templates_show_price": True}})
    run("labels", "bind", "AD9", "C-2", "--store", STORE)  # so that AD1 alone shows C-1
    shop.read()
    shop.sandbox.set_floor(STORE, rows_move="never")
    with psycopg.connect(shop.dsn) as connection:
        connection.execute("update esl.label_servers set rows_move = true where server = 'default'")
    shop.sandbox.tick(5)
    said(run("labels", "bind", "AD1", "C-1", "--store", STORE))
    shop.read()
    (place,) = [p for p in shop.buffer.ladder("C-1") if p["store_code"] == STORE]
    assert place["rung"] == 5 and not place["labels"][0]["has_moved"]


# Probe, doctor and status


def test_probe_says_what_it_found_and_doctor_and_status_go_on_saying_it(
    shop: Shop, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not probed yet (esl-pipeline probe)" in run("doctor").out
    shop.sandbox.set_floor(STORE, auto_trigger=False, rows_move="never")
    done = run("probe", "--store", STORE, "--label", "AD8", "--wait", "1")
    assert said(done).splitlines() == [
        "label server default: no row tells when its label is refreshed",
        "label server default: whether it refreshes by itself is not known",
        "AD8: its row does not move within 1 s",
    ]
    assert shop.hanging()["AD8"] == f"{RESERVED}-AD8"
    words = "its times are in UTC; no row tells when its label is refreshed"
    assert words in run("status").out and words in run("doctor").out


def test_probe_that_finds_out_nothing_ends_with_1(shop: Shop, run: Run) -> None:
    done = run("probe", "--store", STORE, "--label", "AD1", "--wait", "1")
    assert done.code == 1 and done.out.startswith(
        "store S1: nothing was found out: AD1 shows C-1: dedicate a label"
    )
    assert "store S1: probe label AD1" in run("status").out


def test_status_and_doctor_tell_how_the_labels_were_read(shop: Shop, run: Run) -> None:
    status = run("status")
    assert [line.split()[:4] for line in status.out.splitlines() if line.startswith(("S1", "S2"))][-2:] == [
        ["S1", "3", "1", "3"],
        ["S2", "2", "2", "2"],
    ]
    assert "store S1: 3 physical labels, 1 bound, 3 online; read " in run("doctor").out
    (first, _) = run("status", "--json").json["shelf"]
    assert (first["store_code"], first["labels"], first["probe"]) == (STORE, 3, None)


@pytest.fixture
def old(configured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with running_sandbox(generation=2020) as found:
        monkeypatch.setenv("HIPOINK_API_BASE_URL", found.url)
        monkeypatch.setenv("HIPOINK_API_SECRET", SIGN)
        yield found


def test_a_server_of_2020_is_told_of_and_binds_nothing(
    buffer: Buffer, old: Sandbox, run: Run, refused: Callable[..., str]
) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    settings = load_settings()
    with open_label_server(settings, buffer) as client:
        drain_round(buffer, client, push_rules(settings), run_id="r", asset="hipoink_sync_results")
        read_devices(buffer, Devices(client), store=STORE, run_id="r")
    assert refused("labels", "bind", "AD1", "C-1") == "store S1 has no label AD1 at its label server"
    assert "does not know the actions for physical labels" in " ".join(run("shelf").out.split())
    for command in ("doctor", "status"):
        assert "does not know the actions for physical labels (esl/query)" in run(command).out
    assert SHOP in run("status").out
