"""Prices, codes and stocks as people and spreadsheets write them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esl_pipeline.sources.files.numbers import (
    code_of,
    decimal_sign_of,
    price_of,
    quantity_of,
    rounded,
    without_decimals,
)

CENTS = st.integers(0, 99_999_999_999).map(lambda n: Decimal(n) / 100)


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("12", "12"),
        ("12,5", "12.5"),
        ("12.50", "12.50"),
        ("1.234,50", "1234.50"),
        ("1,234.50", "1234.50"),
        ("1'234.50", "1234.50"),
        ("1 234,50", "1234.50"),
        ("1.234.567", "1234567"),
        ("0,999", "0.999"),
        ("1234.567", "1234.567"),
        ("007,50", "7.50"),
        (",99", "0.99"),
        *(
            (wrong, None)
            for wrong in ("", "-1", "1e3", "12,50 €", "NaN", "1.23.45", "1,2,3", "abc", "1.234,5,6")
        ),
        *((wrong, None) for wrong in ("1.2345,50", "१२", "1,234,50", "9" * 10, "1,23456")),
    ],
)
def test_a_price_has_one_meaning_or_none(text: str, price: str | None) -> None:
    assert price_of(text, None) == price


@pytest.mark.parametrize(("sign", "price"), [(None, None), (".", "1.234"), (",", "1234")])
def test_one_point_and_three_digits_mean_what_the_other_prices_show(
    sign: str | None, price: str | None
) -> None:
    assert price_of("1.234", sign) == price  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "sign"),
    [
        (["1.234", "12,50"], ","),
        (["1,234", "12.50"], "."),
        (["1.234.567"], ","),
        (["1.234", "7"], None),
        (["12,50", "12.50"], None),
    ],
)
def test_the_sign_is_what_all_prices_agree_on(texts: list[str], sign: str | None) -> None:
    assert decimal_sign_of(texts) == sign


@given(
    CENTS,
    st.sampled_from([("", ","), ("", "."), (".", ","), (",", "."), ("'", "."), (" ", ","), ("\u202f", ",")]),
)
def test_every_price_with_cents_comes_back_however_it_is_written(
    price: Decimal, signs: tuple[str, str]
) -> None:
    thousands, decimals = signs
    whole, cents = f"{price:.2f}".split(".")
    grouped = f"{int(whole):,}".replace(",", thousands)
    found = price_of(f"{grouped}{decimals}{cents}", None)
    assert found is not None and Decimal(found) == price


@given(st.text(max_size=20))
def test_no_text_is_a_price_that_the_label_would_refuse(text: str) -> None:
    for sign in (None, ",", "."):
        found = price_of(text, sign)  # type: ignore[arg-type]
        assert found is None or Decimal(found) >= 0
        assert quantity_of(text, None) is None or found is not None or "-" in text or sign


@pytest.mark.parametrize(
    ("text", "code"),
    [("'4006381333931", "4006381333931"), ('="0012345678905"', "0012345678905"), (" 40 ", "40"), ("", "")],
)
def test_what_keeps_a_code_a_text_is_no_part_of_it(text: str, code: str) -> None:
    assert code_of(text) == code


@given(st.integers(10**11, 10**13 - 1), st.integers(3, 8), st.booleans())
def test_a_rounded_code_may_have_been_the_one_that_it_was(code: int, digits: int, has_comma: bool) -> None:
    written = f"{code:.{digits - 1}E}"
    span = rounded(written.replace(".", ",") if has_comma else written)
    assert span is not None
    # Rounding up may add a digit; such a code is one of the next length.
    assert int(span.lowest) <= code <= int(span.highest) or len(str(code)) < len(span.lowest)


def test_a_span_is_of_numbers_of_one_length() -> None:
    assert rounded("4.00638E+12") == ("4006375000000", "4006390000000")
    assert rounded("1E+12") is not None and len(rounded("1E+12")[0]) == 13  # type: ignore[index]
    assert rounded("4006381333931") is None and rounded("E12") is None and rounded("12E3") is None


def test_a_number_with_a_zero_behind_its_sign_is_the_number() -> None:
    assert without_decimals("4006381333931.0") == "4006381333931"
    assert without_decimals("4006381333931,00") == "4006381333931"
    assert without_decimals("4006381333931") is None


@pytest.mark.parametrize(
    ("text", "pieces"), [("12", 12), ("-3", -3), ("12,0", 12), ("many", None), ("", None)]
)
def test_a_stock_is_whole_pieces(text: str, pieces: int | None) -> None:
    assert quantity_of(text, None) == pieces
