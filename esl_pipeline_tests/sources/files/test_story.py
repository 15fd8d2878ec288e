"""Files through the whole pipeline: what is written into a folder, and what hangs on the shelf afterwards."""

import os

import pytest

from esl_pipeline.sources.source import NothingToReadError, SourceError
from esl_pipeline.stages.memory import BufferMemory
from esl_pipeline_tests.sources.files.conftest import Till

pytestmark = pytest.mark.long

TEA, MILK, SOAP = "4006381333931;Tea;1,99", "4006381333948;Milk;0,99", "4006381333955;Soap;2,50"
T, M, S = (row.partition(";")[0] for row in (TEA, MILK, SOAP))


def test_a_full_list_is_the_shelf_and_a_change_list_changes_it(till: Till) -> None:
    till.write("full.csv", TEA, MILK, SOAP, at=1)
    assert till.night() == {T: "1.99", M: "0.99", S: "2.50"}
    till.write("changes-1.csv", f"{T};1,49;", f"{M};;ja", at=2, header="EAN;Preis;Gelöscht")
    assert till.changes() == {T: "1.49", S: "2.50"}
    assert till.world.labels()[T]["pn"] == "Tea"  # a change list without titles says nothing of them
    till.write("full-2.csv", TEA.replace("1,99", "1,59"), SOAP, MILK, at=3)
    assert till.night() == {T: "1.59", S: "2.50", M: "0.99"}
    assert set(till.states().values()) == {"applied"}


def test_what_a_full_list_leaves_out_is_gone_and_what_came_after_it_stays(till: Till) -> None:
    till.write("full.csv", TEA, MILK, SOAP, at=1)
    till.night()
    till.write("changes.csv", "4006381333962;Bread;3,00", at=5)
    assert len(till.changes()) == 4
    till.write(
        "full-2.csv", TEA, MILK, SOAP + "0", at=4
    )  # written before Bread was told of, and found after it
    assert len(till.night()) == 4
    till.write("full-3.csv", MILK, TEA, SOAP, at=6)
    assert till.night() == {T: "1.99", M: "0.99", S: "2.50"}


def test_a_late_change_list_does_not_undo_what_is_newer(till: Till) -> None:
    till.write("full.csv", TEA, MILK, at=10)
    till.night()
    till.write("changes.csv", f"{T};9,99", at=5, header="EAN;Preis")
    assert till.changes()[T] == "1.99"


def test_an_older_full_list_changes_nothing(till: Till) -> None:
    till.write("full-b.csv", TEA, MILK, at=10)
    till.night()
    till.write("full-a.csv", TEA.replace("1,99", "9,99"), at=5)
    assert till.night() == {T: "1.99", M: "0.99"}
    assert "older than full-b.csv" in till.reason("full-a.csv")


def test_the_same_list_again_changes_nothing_and_after_others_it_waits(till: Till) -> None:
    till.write("full.csv", TEA, MILK, at=1)
    till.night()
    calls = till.world.calls()
    till.write("full.csv", TEA, MILK, at=2)  # sent again
    till.night()
    assert till.world.calls() == calls
    till.write("changes.csv", f"{T};1,00", at=3, header="EAN;Preis")
    assert till.changes()[T] == "1.00"
    till.write("full-old.csv", TEA, MILK, at=4)  # yesterday's, or a price that went back: only a person knows
    assert till.night()[T] == "1.00"
    assert till.states()["full-old.csv"] == "waiting"
    approved = till.world.buffer.files_approve(shop=till.shop, name="full-old.csv", by="ann")
    assert approved is not None and approved["approved_by"] == "ann"
    assert till.night()[T] == "1.99"


def test_a_change_list_is_applied_once(till: Till) -> None:
    till.write("full.csv", TEA, at=1)
    till.night()
    till.write("changes.csv", f"{T};1,00", at=2, header="EAN;Preis")
    till.changes()
    assert till.read_changes()["products"] == 0


@pytest.mark.parametrize("raw", [b"EAN;Name;Preis\n1;Tea;1,9", b"no such header\n1\n", b"", b"PK\x03\x04"])
def test_a_fault_of_the_file_applies_nothing_of_it(till: Till, raw: bytes) -> None:
    till.write("full.csv", TEA, MILK, at=1)
    till.night()
    till.write_raw("full-2.csv", raw, at=2)
    assert till.night() == {T: "1.99", M: "0.99"}
    assert till.states()["full-2.csv"] == "refused"
    assert till.reason("full-2.csv")
    (open_,) = [row["name"] for row in till.world.buffer.files_list(shop=till.shop) if row["is_open"]]
    assert open_ == "full-2.csv"
    till.write("full-3.csv", TEA, at=3)
    till.settings["files_smallest_share_pct"] = 0
    assert till.night() == {T: "1.99"}
    assert not [row for row in till.world.buffer.files_list(shop=till.shop) if row["is_open"]]


def test_a_much_smaller_full_list_waits_for_a_person(till: Till) -> None:
    till.write("full.csv", *(f"40063813{n:05};Item {n};1,00" for n in range(10)), at=1)
    assert len(till.night()) == 10
    till.write("full-2.csv", *(f"40063813{n:05};Item {n};2,00" for n in range(7)), at=2)
    assert set(till.night().values()) == {"1.00"}
    assert "it lists 7 products, and full.csv" in till.reason("full-2.csv")
    assert till.world.buffer.files_approve(shop=till.shop, name="full-2.csv", by="ann") is not None
    assert till.world.buffer.files_approve(shop=till.shop, name="full-2.csv", by="ann") is None
    assert list(till.night().values()) == ["2.00"] * 7


def finding(till: Till, check: str) -> dict[str, str]:
    return next(row for row in till.world.buffer.findings() if row["check_name"] == check)


def test_a_wrong_row_is_held_back_with_its_line_and_everything_else_flows(till: Till) -> None:
    till.write("full.csv", TEA, MILK, SOAP, at=1)
    till.night()
    till.write("full-2.csv", TEA.replace("1,99", "1,49"), MILK.replace("0,99", "gratis"), SOAP, at=2)
    assert till.night() == {T: "1.49", M: "0.99", S: "2.50"}
    assert finding(till, "row_unusable")["value"] == "full-2.csv line 3: the price 'gratis' is no number"
    assert finding(till, "price_form")["value"] == "gratis"
    till.write("changes.csv", f"{M};0,89", at=3, header="EAN;Preis")
    assert till.changes()[M] == "0.89"
    assert not till.world.findings()
    till.read_all()  # the full list is older than what has set it right
    assert till.prices()[M] == "0.89"
    assert not till.world.findings()


def test_of_one_code_twice_the_label_stays_as_it_is(till: Till) -> None:
    till.write("full.csv", TEA, MILK, at=1)
    till.night()
    till.write("full-2.csv", TEA.replace("1,99", "5,00"), MILK, TEA.replace("1,99", "6,00"), at=2)
    assert till.night() == {T: "1.99", M: "0.99"}
    assert "line 2: the same product stands in line 4" in finding(till, "row_unusable")["value"]
    till.write("full-3.csv", TEA.replace("1,99", "6,00"), MILK, at=3)
    assert till.night() == {T: "6.00", M: "0.99"}


def test_a_ruined_code_is_no_absence(till: Till) -> None:
    till.write("full.csv", TEA, MILK, "96385074;Gum;0,50", SOAP, at=1)
    till.night()
    till.settings["files_smallest_share_pct"] = 0
    till.write("full-2.csv", TEA, "4.00638E+12;Milk;0,79", at=2)
    # Milk or Soap may be meant, and Gum cannot be.
    assert till.night() == {T: "1.99", M: "0.99", S: "2.50"}
    assert finding(till, "number_artefact")["value"] == "4.00638E+12"
    assert "full-2.csv line 3: a spreadsheet has made" in finding(till, "row_unusable")["value"]
    till.write("full-3.csv", TEA, MILK, at=3)
    assert till.night() == {T: "1.99", M: "0.99"}
    assert not till.world.findings()


def test_a_row_without_a_code_keeps_what_is_called_so(till: Till) -> None:
    till.settings["files_smallest_share_pct"] = 0
    till.write("full.csv", TEA, MILK, SOAP, at=1)
    till.night()
    till.write("full-2.csv", TEA, ";MILK;0,79", at=2)
    assert till.night() == {T: "1.99", M: "0.99"}
    till.write("full-3.csv", "Tea;a;1,99;" + T, at=3, header="Name;Preis;EAN")
    till.write("full-4.csv", "Tea;x;1,99;" + T, "Nut;1,00;4006381333979", at=4, header="Name;Preis;EAN")
    # Nobody knows what the row with a cell too many is about, so nothing is concluded from what is not there.
    assert till.night() == {T: "1.99", M: "0.99", "4006381333979": "1.00"}


def test_an_article_number_keeps_a_row_whose_code_is_ruined(till: Till) -> None:
    header = "Artikelnummer;EAN;Name;Preis"
    till.write("full.csv", f"A-1;{TEA}", f"A-2;{MILK}", at=1, header=header)
    assert till.night() == {T: "1.99", M: "0.99"}
    till.write(
        "full-2.csv", "A-1;4,00638E+12;Tea;1,49", f"A-2;{MILK.replace('0,99', '1,09')}", at=2, header=header
    )
    assert till.night() == {T: "1.99", M: "1.09"}
    till.write("changes.csv", f"{T};1,00", at=3, header="EAN;Preis")
    till.changes()
    assert "it tells products by their code, and the full list full-2.csv" in till.reason("changes.csv")


def test_stock_comes_with_the_list(till: Till) -> None:
    mapping = till.world.buffer.mapping_list()[0]
    settings = mapping["settings"] | {"stock_field": "kc", "location_id": "0"}
    till.world.buffer.mapping_update(mapping["id"], {"settings": settings})
    till.write("full.csv", f"{TEA};12", f"{MILK};", at=1, header="EAN;Name;Preis;Bestand")
    till.night()
    assert till.world.labels()[T]["kc"] == "12"
    till.write("changes.csv", f"{T};7", at=2, header="EAN;Bestand")
    till.changes()
    assert till.world.labels()[T]["kc"] == "7"


def test_an_empty_folder_concludes_nothing(till: Till) -> None:
    with pytest.raises(SourceError, match="no full list that can be read"):
        till.read_all()
    till.write("full.csv", TEA, at=1)
    till.night()
    (till.folder / "full.csv").unlink()
    with pytest.raises(NothingToReadError, match="not in its folder any more"):
        till.read_all()
    assert till.prices() == {T: "1.99"}
    assert till.read_changes()["products"] == 0


def test_stores_of_one_shop_name_the_same_columns(till: Till) -> None:
    till.world.map(
        shop="corner", source_system="files", store="S2", settings={"columns": {"price": "Betrag"}}
    )
    till.write("full.csv", f"{TEA};3,00", at=1, header="EAN;Name;Preis;Betrag")
    with pytest.raises(SourceError, match="the stores S1 and S2 name different columns"):
        till.read_all()
    mapping = next(row for row in till.world.buffer.mapping_list() if row["hipoink_store_code"] == "S1")
    till.world.buffer.mapping_update(mapping["id"], {"settings": {"columns": {"price": "Betrag"}}})
    assert till.night() == {T: "3.00"}


def test_another_column_reads_the_list_again(till: Till) -> None:
    till.write("full.csv", f"{TEA};3,00", f"{MILK};4,00", at=1, header="EAN;Name;Preis;Betrag")
    assert till.night() == {T: "1.99", M: "0.99"}
    mapping = till.world.buffer.mapping_list()[0]
    till.world.buffer.mapping_update(mapping["id"], {"settings": {"columns": {"price": "Betrag"}}})
    assert till.night() == {T: "3.00", M: "4.00"}


def test_what_is_no_list_is_left_alone_and_what_might_be_one_is_refused(till: Till) -> None:
    till.write("full.csv.part", TEA, at=1)
    till.write(".full.csv", TEA, at=1)
    till.write("prices.csv", TEA, at=1)
    till.write("full.xlsx", TEA, at=1)
    till.read_changes()
    assert till.states() == {"prices.csv": "refused", "full.xlsx": "refused"}
    assert "neither 'full' nor 'changes'" in till.reason("prices.csv")


def test_a_file_that_is_still_written_is_waited_for(till: Till) -> None:
    path = till.write("full.csv", TEA, at=1)
    source = till.source()
    with source.reader("corner") as reader:
        # Between the two looks at it the other half comes.
        reader._sleep = lambda _: path.write_text(path.read_text() + MILK + "\n")  # type: ignore[attr-defined]
        from esl_pipeline.stages.snapshot import read_snapshot

        with pytest.raises(SourceError):
            read_snapshot(till.world.buffer, reader, shop=till.shop, run_id="r")
    assert till.states() == {}
    assert till.night() == {T: "1.99", M: "0.99"}


def test_a_label_is_traced_to_its_file(till: Till) -> None:
    till.write("full.csv", TEA, MILK, at=1)
    till.write("changes.csv", f"{T};1,00", at=2, header="EAN;Preis")
    till.read_all()
    till.changes()
    (place,) = till.world.buffer.trace(T)
    file = place["variants"][0]["file"]
    assert (file["name"], file["kind"], file["run_id"]) == ("changes.csv", "changes", "catch-up")
    assert len(file["sha256"]) == 64
    (place,) = till.world.buffer.trace(M)
    assert place["variants"][0]["file"]["name"] == "full.csv"


def test_a_change_list_that_is_sent_again_as_a_full_one_is_judged_as_one(till: Till) -> None:
    till.write("full.csv", TEA, MILK, SOAP, at=1)
    till.night()
    till.write("changes.csv", TEA.replace("1,99", "1,49"), at=2)
    till.changes()
    till.write("full-2.csv", TEA.replace("1,99", "1,49"), at=3)  # the same bytes, and two labels less
    assert till.night() == {T: "1.49", M: "0.99", S: "2.50"}
    assert "lists 1 products" in till.reason("full-2.csv")


def test_a_copy_of_an_older_list_waits_also_for_what_is_just_about_to_follow(till: Till) -> None:
    till.write("full.csv", TEA, MILK, at=1)
    till.night()
    till.write("changes.csv", f"{T};1,00", at=2, header="EAN;Preis")
    till.write("full-old.csv", TEA, MILK, at=3)
    assert till.changes()[T] == "1.00"
    assert till.states()["full-old.csv"] == "waiting"
    assert till.night()[T] == "1.00"


def test_columns_may_be_named_otherwise_again_and_again(till: Till) -> None:
    till.write("full.csv", f"{TEA};3,00", f"{MILK};4,00", at=1, header="EAN;Name;Preis;Betrag")
    till.night()
    till.write("full-2.csv", f"{TEA};3,00", f"{MILK};4,00", at=2, header="EAN;Name;Preis;Betrag")  # a copy
    till.night()
    mapping = till.world.buffer.mapping_list()[0]
    for price, wanted in [("Betrag", "3.00"), ("Preis", "1.99"), ("Betrag", "3.00"), (None, "1.99")]:
        till.world.buffer.mapping_update(
            mapping["id"], {"settings": {"columns": {"price": price} if price else {}}}
        )
        assert till.night()[T] == wanted


def test_of_full_lists_the_newest_is_read_and_no_older_one_stays_news(till: Till) -> None:
    till.write("full-1.csv", TEA, MILK, at=1)
    till.write("full-2.csv", TEA.replace("1,99", "1,49"), MILK, at=2)
    assert till.night()[T] == "1.49"
    assert till.states() == {"full-1.csv": "refused", "full-2.csv": "applied"}
    with till.source().reader(till.shop["source_store_id"]) as reader:
        reader.remember(BufferMemory(till.world.buffer, till.shop, ""))
        assert not reader.news(reader.news("").state).name


def test_a_change_list_waits_for_the_full_list_before_it(till: Till) -> None:
    till.write("full.csv", f"{TEA};5", f"{MILK};5", at=1, header="EAN;Name;Preis;Bestand")
    till.night()
    till.write(
        "full-2.csv", f"{TEA.replace('1,99', '2,99')};5", f"{MILK};5", at=2, header="EAN;Name;Preis;Bestand"
    )
    till.write("changes.csv", f"{T};4", at=3, header="EAN;Bestand")  # says nothing of the new price
    assert till.changes()[T] == "1.99"
    assert till.night()[T] == "2.99"
    assert till.changes()[T] == "2.99"
    assert set(till.states().values()) == {"applied"}


def test_a_change_list_by_another_key_than_the_list_before_it_touches_nothing(till: Till) -> None:
    till.write("full.csv", "96385074;Gum;0,50", at=1)
    till.night()
    till.write("changes.csv", "96385074;0,10", at=3, header="EAN;Preis")  # judged beside codes
    till.write("full-2.csv", "96385074;4006381333931;Tea;1,99", at=2, header="Artikelnummer;EAN;Name;Preis")
    assert till.changes() == {"96385074": "0.50"}
    assert till.night() == {T: "1.99"}
    with pytest.raises(SourceError, match=r"changes\.csv of corner cannot be used"):
        till.read_changes()
    assert till.prices() == {T: "1.99"}


def test_what_two_rows_differ_in_is_nobodys_word_after_another_list_either(till: Till) -> None:
    till.write("full.csv", f"{TEA};5", f"{MILK};5", at=1, header="EAN;Name;Preis;Bestand")
    till.night()
    till.write("changes-1.csv", f"{T};5,00", f"{T};6,00", at=2, header="EAN;Preis")
    till.changes()
    till.write("changes-2.csv", f"{T};4", at=3, header="EAN;Bestand")  # right, and no word of the price
    assert till.changes()[T] == "1.99"
    till.write("changes-3.csv", f"{T};6,00", at=4, header="EAN;Preis")
    assert till.changes()[T] == "6.00"
    assert not till.world.findings()


def test_a_folder_that_never_stands_still_has_news_all_the_same(till: Till) -> None:
    till.write("full.csv", TEA, at=1)
    till.night()
    state, told = "", set[bool]()
    for number in range(3):
        till.write(f"changes-{number}.csv", f"{T};{number},00", at=2 + number, header="EAN;Preis")
        with till.source().reader(till.shop["source_store_id"]) as reader:
            reader.remember(BufferMemory(till.world.buffer, till.shop, ""))
            news = reader.news(state)
        state, told = news.state, {*told, news.changes}
        assert not news.whole
    assert told == {False, True}


def test_a_name_in_the_letters_of_an_older_system_is_read(till: Till) -> None:
    till.write("full.csv", TEA, at=1)
    till.night()
    till.write(os.fsdecode(b"Preis\xe4nderungen.csv"), f"{T};1,00", at=2, header="EAN;Preis")
    with till.source().reader(till.shop["source_store_id"]) as reader:
        reader.remember(BufferMemory(till.world.buffer, till.shop, ""))
        assert reader.news(reader.news("").state).changes
    assert till.changes()[T] == "1.00"
    assert till.states()["Preisänderungen.csv"] == "applied"
