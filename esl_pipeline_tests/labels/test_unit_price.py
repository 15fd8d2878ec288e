"""Unit prices: worked examples per region, and what must hold for every pack."""

import math
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given

from esl_pipeline.labels.unit_price import (
    Measurement,
    Mode,
    UnitPrice,
    agrees,
    measurement_of,
    rounded,
    unit_price,
)

WEIGHT = ("MG", "G", "KG", "OZ", "LB")
VOLUME = ("ML", "CL", "L", "M3", "FLOZ", "PT", "QT", "GAL")
LENGTH = ("MM", "CM", "M", "IN", "FT", "YD")
AREA = ("M2", "FT2")
DIMENSIONS = (WEIGHT, VOLUME, LENGTH, AREA, ("ITEM",))

PRICES = st.decimals("0.01", "99999.99", places=2)
QUANTITIES = st.decimals("0.001", "9999", places=3)
MODES = st.sampled_from(get_args(Mode))
MEASUREMENTS = st.sampled_from(DIMENSIONS).flatmap(
    lambda units: st.builds(
        Measurement,
        measured_type=st.none(),
        quantity_value=QUANTITIES,
        quantity_unit=st.sampled_from(units),
        reference_value=st.sampled_from([1, 10, 75, 100, 1000]),
        reference_unit=st.sampled_from(units),
    )
)
SHOPIFY = {
    "measuredType": "WEIGHT",
    "quantityValue": 250.0,
    "quantityUnit": "G",
    "referenceValue": 100,
    "referenceUnit": "G",
}


def pack(quantity: str, reference: str) -> Measurement:
    """("250 G", "100 G") as a Measurement."""
    (value, unit), (reference_value, reference_unit) = quantity.split(), reference.split()
    return Measurement(None, Decimal(value), unit, int(reference_value), reference_unit)


def shown(price: str, measurement: Measurement, mode: Mode) -> str:
    found = unit_price(Decimal(price), measurement, mode)
    assert found is not None
    return f"{rounded(found.amount, 2)}/{found.per}"


@pytest.mark.parametrize(
    ("price", "quantity", "reference", "mode", "expected"),
    [
        # 250 g for 2.49: 2.49 / 0.25
        ("2.49", "250 G", "100 G", "eu", "9.96/kg"),
        ("2.49", "250 G", "100 G", "uk", "1.00/100 g"),
        ("2.49", "250 G", "1 KG", "uk", "9.96/kg"),
        ("2.49", "250 G", "100 G", "us", "4.52/lb"),  # 9.96 * 0.45359237
        ("2.49", "250 G", "1 OZ", "us", "0.28/oz"),
        ("1.00", "500 MG", "10 G", "uk", "20.00/10 g"),
        ("1.00", "500 MG", "10 G", "eu", "2000.00/kg"),
        ("1.19", "330 ML", "1 L", "eu", "3.61/l"),
        ("9.99", "75 CL", "75 CL", "eu", "13.32/l"),
        ("9.99", "75 CL", "75 CL", "uk", "9.99/75 cl"),
        ("9.99", "1500 ML", "750 ML", "uk", "5.00/75 cl"),  # the same reference in another unit
        ("2.00", "50 ML", "10 CL", "uk", "4.00/100 ml"),
        ("2.00", "50 ML", "10 ML", "uk", "0.40/10 ml"),
        ("2.00", "50 ML", "50 ML", "uk", "40.00/l"),  # no reference that the order names
        ("3.99", "1 GAL", "1 QT", "us", "1.00/qt"),
        ("3.99", "1 GAL", "1 FLOZ", "us", "0.03/fl oz"),
        ("3.99", "1 GAL", "1 PT", "us", "0.50/pt"),
        ("3.99", "0.5 GAL", "1 GAL", "us", "7.98/gal"),
        ("3.99", "1 GAL", "1 L", "us", "1.00/qt"),
        ("3.99", "1 GAL", "1 L", "eu", "1.05/l"),
        ("1.00", "12 FLOZ", "1 L", "eu", "2.82/l"),
        ("60.00", "0.04 M3", "1 M3", "eu", "1500.00/m³"),
        ("60.00", "40 L", "1 M3", "uk", "1500.00/m³"),
        ("60.00", "0.04 M3", "1 L", "eu", "1.50/l"),
        ("60.00", "0.04 M3", "1 M3", "us", "1.42/qt"),
        ("6.00", "250 CM", "1 M", "eu", "2.40/m"),
        ("6.00", "2 YD", "1 YD", "us", "3.00/yd"),
        ("6.00", "2 YD", "10 CM", "us", "1.00/ft"),
        ("6.00", "2 YD", "1 IN", "us", "0.08/in"),
        ("30.00", "4 M2", "1 M2", "eu", "7.50/m²"),
        ("30.00", "4 M2", "1 M2", "us", "0.70/ft²"),
        ("30.00", "20 FT2", "1 FT2", "eu", "16.15/m²"),
        ("5.40", "12 ITEM", "1 ITEM", "eu", "0.45/item"),
        ("5.40", "12 ITEM", "10 ITEM", "uk", "0.45/item"),
        ("5.40", "12 ITEM", "1 ITEM", "us", "0.45/item"),
        ("0.00", "1 KG", "1 KG", "eu", "0.00/kg"),
    ],
)
def test_worked_examples(price: str, quantity: str, reference: str, mode: Mode, expected: str) -> None:
    assert shown(price, pack(quantity, reference), mode) == expected


@pytest.mark.parametrize(
    ("of", "many", "unit"),
    [
        ("1 LB", 16, "OZ"),
        ("1 KG", 1_000_000, "MG"),
        ("1 GAL", 4, "QT"),
        ("1 QT", 2, "PT"),
        ("1 PT", 16, "FLOZ"),
        ("1 M3", 1000, "L"),
        ("1 L", 100, "CL"),
        ("1 CL", 10, "ML"),
        ("1 M", 1000, "MM"),
        ("1 YD", 3, "FT"),
        ("1 FT", 12, "IN"),
        ("127 CM", 50, "IN"),
        ("45359237 MG", 100, "LB"),
        ("231000 IN", 5867400, "MM"),
        ("3785411784 ML", 1_000_000, "GAL"),
        ("9290304 M2", 100_000_000, "FT2"),
    ],
)
def test_conversions_are_exact(of: str, many: int, unit: str) -> None:
    reference = f"1 {unit}"
    same = unit_price(Decimal(7), pack(f"{many} {unit}", reference), "eu")
    assert unit_price(Decimal(7), pack(of, reference), "eu") == same is not None


@pytest.mark.parametrize("quantity", ["0", "0.0", "-1"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_an_empty_pack_is_told_in_plain_words(quantity: str, mode: Mode) -> None:
    with pytest.raises(ValueError, match=f"the pack holds {quantity} KG; enter what it really holds"):
        unit_price(Decimal(1), pack(f"{quantity} KG", "1 KG"), mode)


@pytest.mark.parametrize(
    ("quantity", "reference"), [("1 KG", "1 L"), ("1 UNKNOWN", "1 KG"), ("1 KG", "1 UNKNOWN")]
)
@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_cannot_be_compared_has_no_unit_price(quantity: str, reference: str, mode: Mode) -> None:
    assert unit_price(Decimal(1), pack(quantity, reference), mode) is None


@given(PRICES, MEASUREMENTS, MODES, st.integers(1, 1000))
def test_k_times_the_quantity_costs_a_kth(
    price: Decimal, measurement: Measurement, mode: Mode, k: int
) -> None:
    one = unit_price(price, measurement, mode)
    larger = replace(measurement, quantity_value=measurement.quantity_value * k)
    many = unit_price(price, larger, mode)
    assert one is not None
    assert many is not None
    assert many.per == one.per
    assert many.amount * k == pytest.approx(one.amount, rel=Decimal("1e-25"))


@given(PRICES, MEASUREMENTS, MODES, st.integers(1, 1000))
def test_k_times_the_price_is_k_times_the_unit_price(
    price: Decimal, measurement: Measurement, mode: Mode, k: int
) -> None:
    one, many = unit_price(price, measurement, mode), unit_price(price * k, measurement, mode)
    assert one is not None
    assert many is not None
    assert many.amount == pytest.approx(one.amount * k, rel=Decimal("1e-25"))


@given(PRICES, MEASUREMENTS)
def test_a_region_has_its_own_units(price: Decimal, measurement: Measurement) -> None:
    pers = {mode: getattr(unit_price(price, measurement, mode), "per", None) for mode in get_args(Mode)}
    assert pers["eu"] in {"kg", "l", "m", "m²", "m³", "item"}
    assert pers["uk"] in {pers["eu"], "10 g", "100 g", "10 ml", "100 ml", "75 cl"}
    assert pers["us"] in {"lb", "oz", "fl oz", "pt", "qt", "gal", "ft", "yd", "in", "ft²", "item"}


@given(PRICES, MEASUREMENTS, MODES)
def test_a_pack_that_is_its_own_reference_agrees_with_its_price(
    price: Decimal, measurement: Measurement, mode: Mode
) -> None:
    own = replace(
        measurement,
        quantity_value=Decimal(measurement.reference_value),
        quantity_unit=measurement.reference_unit,
    )
    computed = unit_price(price, own, mode)
    assert computed is not None
    assert agrees(computed, price, own, price, 2)
    assert not agrees(computed, price, own, price + Decimal("0.02"), 2)


@given(PRICES, MEASUREMENTS, MODES, st.integers(0, 3))
def test_every_rounding_of_the_right_price_agrees(
    price: Decimal, measurement: Measurement, mode: Mode, decimals: int
) -> None:
    in_one_unit = replace(measurement, quantity_unit=measurement.reference_unit)
    computed = unit_price(price, in_one_unit, mode)
    assert computed is not None
    exact, minor = (
        price * measurement.reference_value / measurement.quantity_value,
        Decimal(1).scaleb(-decimals),
    )
    for rounding in (ROUND_FLOOR, ROUND_CEILING, ROUND_HALF_EVEN):
        stated = exact.quantize(minor, rounding)
        assert agrees(computed, price, in_one_unit, stated, decimals)
        assert not agrees(computed, price, in_one_unit, stated + 3 * minor, decimals)
        assert not agrees(computed, price, in_one_unit, stated - 3 * minor, decimals)


def test_agreement_with_what_shopify_states() -> None:
    price, measurement = Decimal("2.49"), pack("250 G", "100 G")
    computed = UnitPrice(Decimal("9.96"), "kg")
    assert [
        agrees(computed, price, measurement, Decimal(stated), 2)
        for stated in ("0.98", "0.99", "1.00", "1.01", "9.96")
    ] == [False, True, True, False, False]
    assert agrees(computed, price, measurement, Decimal(1), 0)
    assert not agrees(UnitPrice(Decimal("19.92"), "kg"), price, measurement, Decimal("1.00"), 2)
    assert not agrees(computed, Decimal("4.98"), measurement, Decimal("1.00"), 2)


@pytest.mark.parametrize(
    ("amount", "decimals", "expected"),
    [
        ("2.345", 2, "2.35"),
        ("2.335", 2, "2.34"),
        ("2.3449999999", 2, "2.34"),
        ("0.5", 0, "1"),
        ("1.5", 0, "2"),
        ("1", 3, "1.000"),
        ("1E+3", 2, "1000.00"),
        ("0", 2, "0.00"),
        ("0.0000001", 2, "0.00"),
    ],
)
def test_rounding_is_half_up(amount: str, decimals: int, expected: str) -> None:
    assert rounded(Decimal(amount), decimals) == expected


def test_the_measurement_of_shopify_is_read() -> None:
    assert measurement_of(SHOPIFY) == Measurement("WEIGHT", Decimal(250), "G", 100, "G")
    read = measurement_of(SHOPIFY | {"quantityValue": 0.1, "referenceValue": 1.0, "measuredType": None})
    assert read == Measurement(None, Decimal("0.1"), "G", 1, "G")
    assert (read.quantity_value, type(read.reference_value)) == (Decimal("0.1"), int)
    assert measurement_of(SHOPIFY | {"quantityValue": 0.0}) == Measurement(
        "WEIGHT", Decimal(0), "G", 100, "G"
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        "250 g",
        [SHOPIFY],
        SHOPIFY | {"quantityUnit": None},
        SHOPIFY | {"quantityUnit": "UNKNOWN"},
        SHOPIFY | {"quantityUnit": "STONE"},
        SHOPIFY | {"quantityUnit": ["G"]},
        SHOPIFY | {"referenceUnit": None},
        SHOPIFY | {"referenceUnit": "g"},
        SHOPIFY | {"quantityValue": None},
        SHOPIFY | {"quantityValue": "250"},
        SHOPIFY | {"quantityValue": True},
        SHOPIFY | {"quantityValue": math.nan},
        SHOPIFY | {"quantityValue": math.inf},
        SHOPIFY | {"quantityValue": 1e300},
        SHOPIFY | {"quantityValue": 1e-300},
        SHOPIFY | {"quantityValue": 10**5000},
        SHOPIFY | {"quantityValue": Decimal("sNaN")},
        SHOPIFY | {"referenceValue": None},
        SHOPIFY | {"referenceValue": 0},
        SHOPIFY | {"referenceValue": -1},
        SHOPIFY | {"referenceValue": 1.5},
        SHOPIFY | {"referenceValue": True},
    ],
)
def test_what_is_no_measurement(value: Any) -> None:
    assert measurement_of(value) is None


NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), st.text(), st.just(10**5000)
)
UNITS = st.one_of(
    st.sampled_from([*WEIGHT, *VOLUME, *LENGTH, *AREA, "ITEM"]), st.text(), st.none(), st.lists(st.none())
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "measuredType": st.one_of(st.none(), st.text(), st.integers()),
            "quantityValue": NUMBERS,
            "quantityUnit": UNITS,
            "referenceValue": NUMBERS,
            "referenceUnit": UNITS,
        },
    ),
    st.decimals(0, "999999999.9999", places=4),
    MODES,
)
def test_no_measurement_breaks_anything(value: dict[str, Any], price: Decimal, mode: Mode) -> None:
    measurement = measurement_of(value)
    if measurement is None:
        return
    if measurement.quantity_value <= 0:
        with pytest.raises(ValueError, match="the pack holds"):
            unit_price(price, measurement, mode)
        return
    computed = unit_price(price, measurement, mode)
    if computed is not None:
        assert float(rounded(computed.amount, 4)) >= 0
        assert agrees(computed, price, measurement, Decimal(-1), 2) is False


@given(PRICES, st.sampled_from([*WEIGHT, *VOLUME, *LENGTH, *AREA, "ITEM"]), MODES)
def test_the_widest_allowed_numbers_can_be_rounded(price: Decimal, unit: str, mode: Mode) -> None:
    for quantity in ("1e-6", "1e9"):
        computed = unit_price(price, pack(f"{quantity} {unit}", f"1 {unit}"), mode)
        assert computed is not None
        assert rounded(computed.amount, 4).replace(".", "").isdigit()
