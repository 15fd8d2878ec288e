"""The price per kilogram, litre, metre ... of a pack, from Shopify's unit price measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

Mode = Literal["eu", "uk", "us"]
Dimension = Literal["weight", "volume", "length", "area", "count"]

# Shopify's UnitPriceMeasurementMeasuredUnit (Admin API 2026-10) but UNKNOWN: dimension, and size in g, ml, cm, m² or
# items. The inch is 2.54 cm, the pound 453.59237 g and the US gallon 231 cubic inches, all exact by definition.
_UNITS: dict[str, tuple[Dimension, Decimal]] = {
    "MG": ("weight", Decimal("0.001")),
    "G": ("weight", Decimal(1)),
    "KG": ("weight", Decimal(1000)),
    "OZ": ("weight", Decimal("28.349523125")),
    "LB": ("weight", Decimal("453.59237")),
    "ML": ("volume", Decimal(1)),
    "CL": ("volume", Decimal(10)),
    "L": ("volume", Decimal(1000)),
    "M3": ("volume", Decimal(1_000_000)),
    "FLOZ": ("volume", Decimal("29.5735295625")),
    "PT": ("volume", Decimal("473.176473")),
    "QT": ("volume", Decimal("946.352946")),
    "GAL": ("volume", Decimal("3785.411784")),
    "MM": ("length", Decimal("0.1")),
    "CM": ("length", Decimal(1)),
    "M": ("length", Decimal(100)),
    "IN": ("length", Decimal("2.54")),
    "FT": ("length", Decimal("30.48")),
    "YD": ("length", Decimal("91.44")),
    "M2": ("area", Decimal(1)),
    "FT2": ("area", Decimal("0.09290304")),
    "ITEM": ("count", Decimal(1)),
}

# What a label calls the quantity that a unit price is for: how many of which unit.
_PER: dict[str, tuple[int, str]] = {
    "kg": (1, "KG"),
    "l": (1, "L"),
    "m": (1, "M"),
    "m²": (1, "M2"),
    "m³": (1, "M3"),
    "item": (1, "ITEM"),
    "10 g": (10, "G"),
    "100 g": (100, "G"),
    "10 ml": (10, "ML"),
    "100 ml": (100, "ML"),
    "75 cl": (75, "CL"),
    "lb": (1, "LB"),
    "oz": (1, "OZ"),
    "fl oz": (1, "FLOZ"),
    "pt": (1, "PT"),
    "qt": (1, "QT"),
    "gal": (1, "GAL"),
    "ft": (1, "FT"),
    "yd": (1, "YD"),
    "in": (1, "IN"),
    "ft²": (1, "FT2"),
}

_METRIC: dict[Dimension, str] = {"weight": "kg", "volume": "l", "length": "m", "area": "m²", "count": "item"}
_US: dict[Dimension, str] = {"weight": "lb", "volume": "qt", "length": "ft", "area": "ft²", "count": "item"}
_UK_OWN = ("10 g", "100 g", "10 ml", "100 ml", "75 cl")
_US_OWN = ("lb", "oz", "fl oz", "pt", "qt", "gal", "ft", "yd", "in", "ft²")

# Beyond these a quantity is a slip of the keyboard, and arithmetic with it would lose digits.
_SMALLEST, _LARGEST = Decimal("1e-6"), Decimal("1e9")


@dataclass(frozen=True)
class Measurement:
    """What a pack holds (quantity) and for how much the shop states its own unit price (reference).

    Units are Shopify's UnitPriceMeasurementMeasuredUnit: KG, ML, ITEM ...
    """

    measured_type: str | None
    quantity_value: Decimal
    quantity_unit: str
    reference_value: int
    reference_unit: str


@dataclass(frozen=True)
class UnitPrice:
    """A price for one `per`: "kg", "100 g", "l", "m²", "item", "fl oz" ...; not rounded."""

    amount: Decimal
    per: str


def measurement_of(value: Mapping[str, Any] | None) -> Measurement | None:
    """Shopify's UnitPriceMeasurement object as a Measurement. Never raises.

    None when it is null or cannot be used: a unit that is missing or not known, no finite number, a reference that is
    no whole number from 1, a quantity beyond a billion or below a millionth. A quantity of 0 or less is kept, for
    `unit_price` to complain about.
    """
    if not isinstance(value, Mapping):
        return None
    quantity, reference = _number(value.get("quantityValue")), _number(value.get("referenceValue"))
    quantity_unit, reference_unit = value.get("quantityUnit"), value.get("referenceUnit")
    if (
        quantity is None
        or not (quantity == 0 or _SMALLEST <= abs(quantity) <= _LARGEST)
        or reference is None
        or not 1 <= reference <= _LARGEST
        or reference % 1 != 0
        or not (isinstance(quantity_unit, str) and quantity_unit in _UNITS)
        or not (isinstance(reference_unit, str) and reference_unit in _UNITS)
    ):
        return None
    measured_type = value.get("measuredType")
    return Measurement(
        measured_type=measured_type if isinstance(measured_type, str) else None,
        quantity_value=quantity,
        quantity_unit=quantity_unit,
        reference_value=int(reference),
        reference_unit=reference_unit,
    )


def unit_price(price: Decimal, measurement: Measurement, mode: Mode) -> UnitPrice | None:
    """The unit price of a pack that costs `price`, as the law of a region wants it.

    eu: per kg, l, m, m², item, or m³ where the shop's own reference is in m³ (Directive 98/6/EC).
    uk: the same, but a reference of 10 g, 100 g, 10 ml, 100 ml or 75 cl is kept (Price Marking Order 2004, schedule;
    read from general knowledge, for which goods is not checked: verify before relying on it).
    us: per unit of the shop's own reference when that is one of lb, oz, fl oz, pt, qt, gal, ft, yd, in, ft², else per
    lb, qt, ft, ft² or item.

    None when a unit is not known, or quantity and reference are of two kinds (g and ml). Raises ValueError when the
    quantity is 0 or less.
    """
    if measurement.quantity_value <= 0:
        raise ValueError(
            f"the unit price measurement says that the pack holds {measurement.quantity_value} "
            f"{measurement.quantity_unit}; enter what it really holds"
        )
    per = _per(measurement, mode)
    if per is None:
        return None
    return UnitPrice(
        price * _size(*_PER[per]) / _size(measurement.quantity_value, measurement.quantity_unit), per
    )


def rounded(amount: Decimal, decimals: int) -> str:
    """Dot-decimal text, halves away from zero: (Decimal("2.345"), 2) -> "2.35"."""
    return f"{amount.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP):f}"


def agrees(
    computed: UnitPrice, price: Decimal, measurement: Measurement, stated: Decimal, decimals: int
) -> bool:
    """Whether the shop's own unit price, per its reference, is the computed one to rounding.

    `stated` may differ by one minor unit (10 ** -decimals) from the price per reference, told from the price and told
    from `computed`, so that one computed from another price or measurement does not agree. The measurement must be
    one that `computed` can come from.
    """
    reference = _size(measurement.reference_value, measurement.reference_unit)
    from_price = price * reference / _size(measurement.quantity_value, measurement.quantity_unit)
    from_computed = computed.amount * reference / _size(*_PER[computed.per])
    tolerance = Decimal(1).scaleb(-decimals)
    return abs(stated - from_price) <= tolerance and abs(stated - from_computed) <= tolerance


def _number(value: object) -> Decimal | None:
    """A JSON number, exactly as it was written."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


def _size(value: Decimal | int, unit: str) -> Decimal:
    """`value` units in g, ml, cm, m² or items."""
    return value * _UNITS[unit][1]


def _per(measurement: Measurement, mode: Mode) -> str | None:
    """For how much the unit price is, as a label says it."""
    quantity, reference = _UNITS.get(measurement.quantity_unit), _UNITS.get(measurement.reference_unit)
    if quantity is None or reference is None or quantity[0] != reference[0]:
        return None
    dimension = quantity[0]
    if mode == "us":
        own = [per for per in _US_OWN if _PER[per][1] == measurement.reference_unit]
        return own[0] if own else _US[dimension]
    if measurement.reference_unit == "M3":
        return "m³"
    size = _size(measurement.reference_value, measurement.reference_unit)
    own = [per for per in _UK_OWN if _UNITS[_PER[per][1]][0] == dimension and _size(*_PER[per]) == size]
    return own[0] if mode == "uk" and own else _METRIC[dimension]
