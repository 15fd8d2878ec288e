"""What kind of number a code is."""

import csv
from typing import get_args

import hypothesis.strategies as st
import pytest
from biip import ParseError
from biip.checksums import gs1_standard_check_digit
from biip.gtin import Gtin
from biip.rcn import Rcn
from hypothesis import example, given

from esl_pipeline.labels.codes import CodeClass, CodeForm, Kind, classify, in_form, pad_lost_zero
from esl_pipeline_tests.shared_data import DATA

VECTORS = DATA / "gtin" / "gtin_vectors.csv"
PRODUCTS = VECTORS.with_name("off_1000_products.csv")

FORMS = st.sampled_from(get_args(CodeForm))
PADDABLE = {"gtin8", "gtin12", "gtin13", "gtin14", "isbn", "restricted"}


def with_check_digit(payload: str) -> str:
    return f"{payload}{gs1_standard_check_digit(payload)}"


GTINS = (
    st.sampled_from([8, 12, 13, 14])
    .flatmap(lambda n: st.text("0123456789", min_size=n - 1, max_size=n - 1))
    .filter(lambda payload: payload.strip("0") != "")
    .map(with_check_digit)
)
CODES = st.one_of(st.text(), st.text("0123456789", max_size=20), GTINS)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("96385074", "gtin8"),
        ("000096385074", "gtin12"),
        ("0000096385074", "gtin13"),
        ("00000096385074", "gtin14"),
        ("036000291452", "gtin12"),
        ("5901234123457", "gtin13"),
        ("00614141000036", "gtin14"),
        ("9780306406157", "isbn"),
        ("09780306406157", "isbn"),
        (with_check_digit("979026000043"), "isbn"),
        (with_check_digit("21350400397"), "restricted"),  # UPC-A number system 2 is 02
        (with_check_digit("41234567890"), "restricted"),  # and 4 is 04
        (with_check_digit("51234567890"), "restricted"),  # and 5 is 05
        (with_check_digit("021234567890"), "restricted"),
        (with_check_digit("041234567890"), "restricted"),
        (with_check_digit("051234567890"), "restricted"),
        (with_check_digit("061234567890"), "gtin13"),
        (with_check_digit("200000000001"), "restricted"),
        (with_check_digit("299999999999"), "restricted"),
        (with_check_digit("981234567890"), "restricted"),
        (with_check_digit("991234567890"), "restricted"),
        (with_check_digit("1200000000001"), "gtin14"),
        (with_check_digit("1978030640615"), "gtin14"),
        (with_check_digit("2000001"), "restricted"),
        (with_check_digit("0200001"), "restricted"),
        ("02135040039753", "restricted"),
        ("10614141000415", "gtin14"),
        ("5901234123458", "bad_check_digit"),
        ("96385075", "bad_check_digit"),
        ("00000001", "bad_check_digit"),
        ("", "internal"),
        ("1234_pink", "internal"),
        ("20653", "internal"),
        ("12345678901234567890", "internal"),
        ("5901234123457 ", "internal"),
        ("٥٩٠١٢٣٤١٢٣٤٥٧", "internal"),
        ("0123456789⁰⁰⁰", "internal"),
        ("0", "zero"),
        ("0" * 13, "zero"),
        ("0" * 40, "zero"),
    ],
)
def test_each_kind(code: str, kind: Kind) -> None:
    assert classify(code).kind == kind
    assert classify(code).candidate is None


def test_a_upc_e_tells_its_upc_a() -> None:
    assert classify("04252614") == CodeClass("upc_e", candidate="042100005264")
    assert classify("425261") == CodeClass("upc_e", candidate="042100005264")
    assert classify("14252611").candidate == "142100005261"
    assert classify("34252614").kind == "bad_check_digit", "UPC-E has the number systems 0 and 1 only"


@pytest.mark.parametrize(
    ("code", "candidate"),
    [("36000291452", "036000291452"), ("4252614", "04252614"), ("0200004", "00200004")],
)
def test_a_lost_zero_is_told_and_padded_on_demand(code: str, candidate: str) -> None:
    assert classify(code) == CodeClass("leading_zero_lost", candidate=candidate)
    assert pad_lost_zero(code) == candidate


@pytest.mark.parametrize("code", ["36000291453", "4252615", "36000291452x", "5901234123457", "", "425261"])
def test_no_other_code_is_padded(code: str) -> None:
    assert pad_lost_zero(code) == code


@pytest.mark.parametrize(("indicator", "case"), [("0", False), ("1", True), ("8", True), ("9", False)])
def test_indicator_digits_1_to_8_are_cases(indicator: str, case: bool) -> None:
    assert classify(with_check_digit(f"{indicator}590123412345")) == CodeClass("gtin14", case=case)


@pytest.mark.parametrize(
    ("code", "form", "expected"),
    [
        ("96385074", "as_is", "96385074"),
        ("96385074", "gtin13", "0000096385074"),
        ("614141000036", "gtin13", "0614141000036"),
        ("614141000036", "gtin14", "00614141000036"),
        ("00614141000036", "gtin13", "0614141000036"),
        ("10614141000415", "gtin13", "10614141000415"),
        ("9780306406157", "gtin14", "09780306406157"),
        ("2135040039753", "gtin14", "02135040039753"),
        ("5901234123458", "gtin14", "5901234123458"),
        ("36000291452", "gtin13", "36000291452"),
        ("04252614", "gtin13", "04252614"),
        ("20653", "gtin14", "20653"),
        ("00000000", "gtin14", "00000000"),
    ],
)
def test_forms(code: str, form: CodeForm, expected: str) -> None:
    assert in_form(code, form) == expected


@given(CODES)
@example("9" * 5000)
@example("\ud800")
def test_any_text_has_a_class(code: str) -> None:
    found = classify(code)
    assert found.kind in get_args(Kind)
    assert (found.candidate is not None) == (found.kind in ("upc_e", "leading_zero_lost"))
    assert found.case is (found.kind == "gtin14" and code[0] in "12345678")


@given(CODES, FORMS)
def test_a_form_is_the_same_number_and_stays_as_it_is(code: str, form: CodeForm) -> None:
    formed = in_form(code, form)
    assert in_form(formed, form) == formed
    if formed != code:
        assert formed.lstrip("0") == code.lstrip("0")
        assert formed.isascii()


@given(GTINS, FORMS)
def test_a_form_of_a_valid_number_is_valid(code: str, form: CodeForm) -> None:
    before, after = classify(code).kind, classify(in_form(code, form)).kind
    assert before in PADDABLE
    assert after in PADDABLE
    assert (before in ("isbn", "restricted") or after in ("isbn", "restricted")) <= (before == after)


PREFIXES = st.sampled_from(
    ["", "0", "00", "2", "02", "4", "04", "000000", "00000002", "0000002", "000001", "00002"]
)


@given(PREFIXES, GTINS, st.booleans())
def test_biip_as_a_whole_says_the_same(prefix: str, gtin: str, valid: bool) -> None:
    code = prefix + gtin[len(prefix) :]
    code = with_check_digit(code[:-1]) if valid else code
    kind = classify(code).kind
    if kind == "zero":
        return
    try:
        parsed = Gtin.parse(code)
    except ParseError:
        assert kind in {"bad_check_digit", "upc_e"}
    else:
        assert kind in PADDABLE
        coupon = code.zfill(14)[:3] in ("005", "098", "099")
        assert (kind == "restricted") is (isinstance(parsed, Rcn) or coupon)


@given(GTINS, st.integers(0, 13), st.integers(1, 9))
def test_one_wrong_digit_is_never_a_valid_gtin(code: str, place: int, by: int) -> None:
    place %= len(code)
    wrong = f"{code[:place]}{(int(code[place]) + by) % 10}{code[place + 1 :]}"
    assert classify(wrong).kind in {"bad_check_digit", "zero"} | ({"upc_e"} if len(code) == 8 else set())


@given(st.text("0123456789", min_size=11, max_size=11).filter(lambda code: code.strip("0") != ""))
def test_padding_gives_a_valid_code_or_nothing(code: str) -> None:
    padded = pad_lost_zero(code)
    assert (classify(padded).kind in PADDABLE) == (padded != code)


@pytest.mark.shared_data("data/gtin/gtin_vectors.csv")
def test_the_shared_gtin_vectors() -> None:
    with VECTORS.open(encoding="utf-8", newline="") as file:
        vectors = list(csv.DictReader(file))
    assert len(vectors) > 20
    kinds = {"GTIN-8": "gtin8", "GTIN-12": "gtin12", "GTIN-13": "gtin13", "GTIN-14": "gtin14"}
    kinds |= {"RCN-13": "restricted", "GTIN-13 (ISBN)": "isbn"}
    padded = {12: "gtin12", 13: "gtin13", 14: "gtin14"}  # "GTIN-8 padded to 12": the kind follows the length
    for vector in vectors:
        code, kind = vector["value"], classify(vector["value"]).kind
        match vector["expected"]:
            case "valid" if " padded to " in vector["format"] or " as " in vector["format"]:
                assert kind == padded[len(code)], vector
            case "valid":
                assert kind == kinds[vector["format"]], vector
            case "valid-after-trim":
                assert kind == "internal", vector
                assert classify(code.strip()).kind == kinds[vector["format"]], vector
            case "invalid":
                assert kind == "bad_check_digit", vector
            case "invalid-length":
                assert kind == ("leading_zero_lost" if len(code) == 11 else "internal"), vector
            case "upc-e":
                assert kind == "upc_e", vector
            case "reject-by-rule":
                assert kind == "zero", vector
            case "invalid-chars" | "internal-code" | "missing":
                assert kind == "internal", vector
            case unknown:
                pytest.fail(f"a vector of an unknown class: {unknown}")


@pytest.mark.shared_data("data/gtin/off_1000_products.csv")
def test_a_thousand_real_codes() -> None:
    with PRODUCTS.open(encoding="utf-8", newline="") as file:
        kinds = [classify(row["code"]).kind for row in csv.DictReader(file)]
    assert len(kinds) == 1000
    assert {"gtin13", "restricted"} <= set(kinds) <= PADDABLE | {"bad_check_digit", "upc_e"}
    assert kinds.count("bad_check_digit") + kinds.count("upc_e") == 3
