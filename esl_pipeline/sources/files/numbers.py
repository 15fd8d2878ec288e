"""Numbers as people and spreadsheets write them: 1.234,50 and 1,234.50, and codes that are none any more. Pure."""

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal, NamedTuple

from esl_pipeline.labels.attributes import PRICE

Sign = Literal[",", "."]

_SPACES = re.compile("[\\s\u00a0\u2007\u202f]")
_PLAIN = re.compile(r"[0-9]+")
_ONE_SIGN = re.compile(r"([0-9]*)([.,])([0-9]+)")
# Groups of three: 1.234.567 and 1'234.
_GROUPED = re.compile(r"[0-9]{1,3}(?:([.,'’])[0-9]{3})(?:\1[0-9]{3})*")
_GROUPED_DECIMAL = re.compile(r"([0-9]{1,3}(?:([.,'’])[0-9]{3})(?:\2[0-9]{3})*)([.,])([0-9]+)")
_SPREADSHEET = re.compile(r'="(.*)"')
_SCIENTIFIC = re.compile(r"([0-9])(?:[.,]([0-9]+))?[eE]\+?([0-9]{1,2})")
_WITH_DECIMALS = re.compile(r"([0-9]+)[.,]0+")


def price_of(text: str, decimal_sign: Sign | None) -> str | None:
    """A price as the rest of the pipeline writes it ("1234.50"), None for what is none, or might be two.

    decimal_sign: what the other prices of the file show; without one, 1.234 may be either.
    """
    bare = _SPACES.sub("", text)
    if _PLAIN.fullmatch(bare):
        return _price(bare)
    if found := _ONE_SIGN.fullmatch(bare):
        whole, sign, rest = found.groups()
        if not _is_doubtful(whole, rest):
            return _price(f"{whole or '0'}.{rest}")
        return (
            _price(f"{whole}.{rest}" if sign == decimal_sign else f"{whole}{rest}") if decimal_sign else None
        )
    return _grouped_price(bare)


def _grouped_price(bare: str) -> str | None:
    if found := _GROUPED.fullmatch(bare):
        return _price(bare.replace(found[1], ""))
    if (found := _GROUPED_DECIMAL.fullmatch(bare)) and found[2] != found[3]:
        return _price(f"{found[1].replace(found[2], '')}.{found[4]}")
    return None


def decimal_sign_of(texts: Iterable[str]) -> Sign | None:
    """The sign before the decimals, where some price shows it and none shows the other."""
    signs = {sign for text in texts if (sign := _shows(text))}
    return signs.pop() if len(signs) == 1 else None


def _shows(text: str) -> Sign | None:
    bare = _SPACES.sub("", text)
    found = _ONE_SIGN.fullmatch(bare)
    if found:
        return None if _is_doubtful(found[1], found[3]) else _sign(found[2])
    both = _GROUPED_DECIMAL.fullmatch(bare)
    if both and both[2] != both[3]:
        return _sign(both[3])
    grouped = _GROUPED.fullmatch(bare)
    if grouped and grouped[1] in ",.":
        return "," if grouped[1] == "." else "."
    return None


def _sign(text: str) -> Sign:
    return "," if text == "," else "."


def _is_doubtful(whole: str, rest: str) -> bool:
    """1.234 may be a thousand; 0.234, 1234.567 and 12.34 may not."""
    return len(rest) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0")


def _price(text: str) -> str | None:
    whole, sign, rest = text.partition(".")
    text = (whole.lstrip("0") or "0") + sign + rest
    return text if PRICE.fullmatch(text) else None


def quantity_of(text: str, decimal_sign: Sign | None) -> int | None:
    """A stock, in whole pieces; None for what is no number. Less than nothing is what it says."""
    bare = _SPACES.sub("", text)
    number = price_of(bare.removeprefix("-"), decimal_sign)
    if number is None:
        return None
    return int(Decimal(number)) * (-1 if bare.startswith("-") else 1)


def code_of(text: str) -> str:
    """A code without what keeps a spreadsheet from taking it for a number: '4006381333931 and ="4006381333931"."""
    text = text.strip()
    if found := _SPREADSHEET.fullmatch(text):
        text = found[1].strip()
    return text.removeprefix("'").strip()


class Span(NamedTuple):
    """The numbers of so many digits that a spreadsheet may have rounded to one."""

    lowest: str
    highest: str


def without_decimals(code: str) -> str | None:
    """The number that 4006381333931.0 was; None for anything else."""
    found = _WITH_DECIMALS.fullmatch(code)
    return found[1] if found else None


def rounded(code: str) -> Span | None:
    """The numbers that 4.00638E+12 may have been; None for a code that is no such thing."""
    found = _SCIENTIFIC.fullmatch(code)
    if not found:
        return None
    digits, exponent = found[1] + (found[2] or ""), int(found[3])
    lost = exponent + 1 - len(digits)
    if lost < 0 or exponent > 18:
        return None
    # Rounded half up or to even, or cut: half a step to either side, and a step above.
    step = 10**lost
    low, high = int(digits) * step - step // 2, int(digits) * step + step
    return Span(str(max(low, 10**exponent)), str(min(high, 10 ** (exponent + 1) - 1)))
