"""From bytes to entries: what refuses a file, what holds back a row, and what each of them says."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_pipeline.sources.files.faults import FileError
from esl_pipeline.sources.files.listing import Entry, Kind, Listing, Unclear, counts, id_of, read

GERMAN = "Artikelnummer;EAN;Bezeichnung;Preis\n1;4006381333931;Stift;1,99\n2;4006381333948;Block;12,50\n"


def entries(text: str | bytes, kind: Kind = "full", **named: str) -> list[Entry]:
    return list(listing(text, kind, **named).entries())


def listing(text: str | bytes, kind: Kind = "full", **named: str) -> Listing:
    return read(text if isinstance(text, bytes) else text.encode(), kind, named)


def complaints(text: str, kind: Kind = "full", **named: str) -> list[str]:
    return [str(complaint) for complaint in listing(text, kind, **named).complaints()]


def test_a_german_list_needs_no_columns_named() -> None:
    found = entries(GERMAN)
    assert [(entry.id, entry.said["code"], entry.said["title"], entry.said["price"]) for entry in found] == [
        ("1", "4006381333931", "Stift", "1.99"),
        ("2", "4006381333948", "Block", "12.50"),
    ]
    assert [entry.line for entry in found] == [2, 3]
    assert not complaints(GERMAN)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("delimiter", [";", ",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encoding_delimiter_and_line_ends_are_found(encoding: str, delimiter: str, end: str) -> None:
    lines = [["EAN", "Name", "Preis"], ["4006381333931", "Müsli – fein", "3.49"]]
    text = end.join(delimiter.join(line) for line in lines) + end
    (entry,) = entries(text.encode(encoding))
    assert entry.said == {"code": "4006381333931", "title": "Müsli – fein", "price": "3.49"}


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(
    lambda text: " ".join(text.split()) or "x"
)


@given(
    titles=st.lists(CELLS, min_size=1, max_size=8),
    delimiter=st.sampled_from([";", ",", "\t"]),
    order=st.permutations(["EAN", "Title", "Price", "Comment"]),
    mark=st.booleans(),
    empty=st.integers(0, 3),
)
def test_what_was_written_is_what_is_read(
    titles: list[str], delimiter: str, order: list[str], mark: bool, empty: int
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(order)
    for number, title in enumerate(titles, 1):
        row = {"EAN": f"40063813{number:05}", "Title": title, "Price": f"{number},50", "Comment": "a\nb"}
        writer.writerow([row[name] for name in order])
    raw = (file.getvalue() + "\r\n" * empty).encode("utf-8-sig" if mark else "utf-8")
    found = entries(raw)
    assert [entry.said["title"] for entry in found] == titles
    assert [entry.said["price"] for entry in found] == [f"{number}.50" for number, _ in enumerate(titles, 1)]
    # The comment's line end makes each row two lines.
    assert [entry.line for entry in found] == [2 * number for number, _ in enumerate(titles, 1)]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_with_a_sentence(raw: bytes) -> None:
    try:
        list(read(b"EAN;Name;Preis\n" + raw, "full", {}).entries())
    except FileError as fault:
        assert str(fault)


@given(st.integers(1, len(GERMAN) - 1))
def test_a_file_that_is_cut_off_anywhere_is_refused_unless_whole_lines_are_left(end: int) -> None:
    part = GERMAN[:end]
    if part.endswith("\n") and part.count("\n") > 1:
        assert len(entries(part)) == part.count("\n") - 1
    else:
        with pytest.raises(FileError):
            entries(part)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"PK\x03\x04...", "workbook"),
        ("EAN;Preis\n".encode("utf-16"), "UTF-16"),
        (b"EAN;Name;Preis\n1;a\x00;2\n", "line 2 holds a zero byte"),
        (b"EAN;Name;Preis\n1;\x81;2\n", "line 2 is neither UTF-8 nor Windows-1252"),
        ("EAN;Name;Preis\n1;Öl;1,00\n2;Käse;1,00\n".encode() + b"3;M\xfcsli;2,00\n", "line 4 is no UTF-8"),
        (b"\xef\xbb\xbfEAN;Name;Preis\n3;M\xfcsli;2,00\n", "line 2 is no UTF-8"),
        (b"EAN;Name;Preis\n1;a;12,5", "cut off: line 2 has no end"),
        (b"EAN;Name;Preis\n1;a;1,00\n2;b\n", "cut off: its last line, 3, has 2 of the header's 3"),
        (b'EAN;Name;Preis\n1;"a;1,00\n2;b;1,00\n', "begins in line 2"),
        (b"EAN;Name;Preis;ean\n1;a;1,00;1\n", "the column 'ean' twice"),
        (b"EAN;Name;Cost\n1;a;1,00\n", "known as the price"),
        (b"Number;Name;Preis\n1;a;1,00\n", "known as the code or the article's number"),
        (b"EAN;GTIN;Name;Preis\n1;1;a;1,00\n", "'EAN' and 'GTIN' may each be the code"),
        (b"EAN;Name;Preis\n", "lists nothing"),
        (b"<html><body>Not found</body></html>\n", "known as the code"),
    ],
)
def test_a_fault_of_the_file_refuses_all_of_it(raw: bytes, says: str) -> None:
    with pytest.raises(FileError, match=says):
        read(raw, "full", {})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("3;4.00638E+12;Heft;1,00", "a spreadsheet has made '4.00638E+12' of the code"),
        ("3;4006381333955;Heft;abc", "the price 'abc' is no number"),
        ("3;4006381333955;Heft;-1,00", "the price '-1,00' is no number"),
        ("3;4006381333955;Heft;", "no price"),
        ("3;4006381333955;;1,00", "no title"),
        ("3;4006381333955;Heft;1,00;more", "5 columns where the header has 4"),
        ("1;4006381333955;Heft;1,00", "the same product stands in line 2"),
    ],
)
def test_a_fault_of_a_row_holds_back_that_row_alone(row: str, says: str) -> None:
    text = GERMAN + row + "\n9;4006381333979;Ordner;2,00\n"
    assert any(complaint.startswith("line 4: ") and says in complaint for complaint in complaints(text))
    found = {entry.id: entry for entry in entries(text)}
    assert found["9"].problem is None and found["2"].problem is None
    problems = [entry.problem for entry in found.values() if entry.problem]
    assert len(problems) == 1
    assert "line" in problems[0] and (says in problems[0] or "same product" in says)


def test_of_one_code_twice_neither_row_is_believed_and_each_names_the_other() -> None:
    text = "EAN;Name;Preis\n0123;a;1,00\n5;b;1,00\n123;c;2,00\n"
    assert complaints(text) == [
        "line 2: the same product stands in line 4: which one is right?",
        "line 4: the same product stands in line 2: which one is right?",
    ]
    assert [(entry.id, bool(entry.problem)) for entry in entries(text)] == [("123", True), ("5", False)]
    assert counts(listing(text)) == {"held": 1, "listed": 1}


def test_a_row_that_does_not_say_which_product_it_is_tells_what_is_known_of_it() -> None:
    text = "EAN;Name;Preis\n4.00638E+12;Heft;1,00\n;Kiwi;0,30\n;;0,30\n12345678.0;Ei;0,20\n1;ok;1,00\n"
    found = entries(text)
    assert [entry.unclear for entry in found] == [
        Unclear("4006375000000", "4006390000000"),
        Unclear(title="Kiwi"),
        Unclear(),
        None,
        None,
    ]
    assert found[3].id == "12345678"
    assert [bool(entry.problem) for entry in found] == [True, True, True, True, False]


def test_a_row_whose_cells_have_shifted_is_anybodys_unless_its_key_stands_first() -> None:
    first = entries("EAN;Name;Preis\n123;a;b;1,00\n4;x;1,00\n")[0]
    assert (first.id, first.unclear) == ("123", None) and first.problem
    last = entries("Name;Preis;EAN\na;b;1,00;123\nx;1,00;4\n")[0]
    assert last.unclear == Unclear() and last.problem


def test_columns_of_the_policy_win_and_the_others_are_found() -> None:
    text = "Preis;VK neu;GTIN;EAN;Text\n9,99;1,00;77;88;Ei\n"
    (entry,) = entries(text, price="VK neu", code="EAN", title="Text")
    assert (entry.said["price"], entry.said["code"], entry.said["title"]) == ("1.00", "88", "Ei")
    with pytest.raises(FileError, match="no column 'Betrag', which the store's columns name for price"):
        entries(text, price="Betrag")


def test_a_change_list_says_only_what_it_has() -> None:
    text = "EAN;Preis;Gelöscht\n1;1,00;\n2;;ja\n3;2,00;vielleicht\n"
    found = entries(text, "changes")
    assert found[0].said == {"code": "1", "price": "1.00"}
    assert found[1].is_deleted and not found[1].problem
    assert not found[2].is_deleted and "write 1 or leave it empty" in (found[2].problem or "")
    assert entries("EAN;Preis\n", "changes") == []


def test_excels_first_line_and_rows_of_nothing_are_no_rows() -> None:
    text = "sep=;\r\nEAN;Name;Preis\r\n;;\r\n1;a;1,00\r\n;;\r\n\r\n"
    (entry,) = entries(text)
    assert entry.line == 4


@given(st.text(max_size=15))
def test_every_key_has_an_id_that_the_buffer_takes_and_zeros_before_it_count_for_nothing(key: str) -> None:
    found = int(id_of(key))
    assert 0 < found < 2**63
    if key.isascii() and key.isdigit() and key.strip("0"):
        assert found == int(key) and id_of("0" + key) == id_of(key)


def test_the_decimal_sign_is_looked_for_in_the_whole_file() -> None:
    text = "EAN;Name;Preis\n1;a;1.234\n2;b;0,99\n"
    assert [entry.said["price"] for entry in entries(text)] == ["1234", "0.99"]
    assert "may be a thousand" in complaints(text.replace("0,99", "1"))[0]
