"""What kind of number a product code is: GTIN knowledge, from the biip library.

Whether a code is acceptable (its characters, its length, empty or not) is not judged here.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from biip import ParseError
from biip.checksums import gs1_standard_check_digit
from biip.gs1_prefixes import GS1Prefix, GS18Prefix
from biip.upc import Upc

Kind = Literal[
    "gtin8",
    "gtin12",
    "gtin13",
    "gtin14",
    "isbn",
    "restricted",
    "upc_e",
    "internal",
    "zero",
    "bad_check_digit",
    "leading_zero_lost",
]
CodeForm = Literal["as_is", "gtin13", "gtin14"]


@dataclass(frozen=True, slots=True)
class CodeClass:
    """What a code is.

    candidate: for leading_zero_lost the code with its zero, for upc_e the UPC-A that it stands for, else None.
    case: a GTIN-14 whose indicator digit 1-8 says that it names a case, not the item that is sold.
    """

    kind: Kind
    candidate: str | None = None
    case: bool = False


_BY_LENGTH: dict[int, Kind] = {8: "gtin8", 12: "gtin12", 13: "gtin13", 14: "gtin14"}
ZERO = "0+(?:[.,]0+)?"
_ZERO = re.compile(ZERO)
_DASHES = re.compile("[-–—._?/*#]{1,5}")
_PADDABLE: frozenset[Kind] = frozenset((*_BY_LENGTH.values(), "isbn", "restricted"))
# Prefixes of the number written with 14 digits. Coupons (data-quality.md section 2) are no RCN to biip.
_COUPONS = ("005", "098", "099")
_ISBN = ("0978", "0979")


# What a spreadsheet or a script makes of a number: 4006381333931.0, 4.00638E12 (or 4,00638E+12).
NUMBER_ARTEFACT = r"0*[1-9][0-9]*[.,]0+|[0-9](?:[.,][0-9]+)?[eE]\+[0-9]{1,3}|[0-9][.,][0-9]+[eE][0-9]{1,3}"
# Whole entries, small letters and single spaces: nobody's code, but what people and scripts write for "there is none".
_NOTHING = frozenset(
    (
        *("none", "null", "nil", "nan", "<na>", "undefined", "empty", "blank", "missing", "unknown"),
        *(
            "n/a",
            "na",
            "n.a",
            "n.a.",
            "#n/a",
            "not applicable",
            "does not apply",
            "not available",
            "tbd",
            "tba",
        ),
        *("#null!", "#ref!", "#value!", "#name?", "#num!", "#div/0!"),
        *(f"no {thing}" for thing in ("barcode", "bar code", "code", "ean", "gtin", "upc", "isbn", "sku")),
        *("no-barcode", "no_barcode", "nobarcode", "without barcode"),
        *("kein", "keine", "keiner", "kein barcode", "kein code", "keine ean", "keine gtin", "k.a.", "k. a."),
    )
)


def means_nothing(code: str) -> bool:
    """Whether an entry says that there is no code: a word for it (`none`, `N/A`), a dash or the like, or only zeros.

    Whole entries only: `NONE-1` and `NA12` are codes.
    """
    if code.isascii() and code.isalnum() and not code.isalpha():  # most codes
        return is_zero(code)
    text = " ".join(code.split()).casefold()
    return text in _NOTHING or is_zero(text) or _DASHES.fullmatch(text) is not None


def is_zero(code: str) -> bool:
    """Whether a code is all zeros, also as a number (`0.0`)."""
    return _ZERO.fullmatch(code) is not None


def classify(code: str) -> CodeClass:
    """What kind of number `code` is; never raises.

    The kind follows the length of the text: a GTIN-8 padded to 13 digits is gtin13. Two kinds go before it:
    restricted (biip's restricted circulation numbers 02, 04, 2x, for GTIN-8 also 0x; coupons 05, 98, 99), which
    means something else in every shop, and isbn (978, 979; some 979 are sheet music).

    Short codes are a guess. Six digits are upc_e, although a house code of six digits looks the same: it has no
    check digit. Seven digits are leading_zero_lost when the eight are a GTIN-8 or a UPC-E, by chance one in five,
    else internal. Eight digits that are both a GTIN-8 and a UPC-E are taken as the GTIN-8.
    """
    # ASCII first: biip takes the digits of every script, and spaces around them.
    if not (code.isascii() and code.isdigit()):
        return CodeClass("internal")
    if not code.strip("0"):
        return CodeClass("zero")
    return _of_digits(code) if len(code) <= 14 else CodeClass("internal")


def pad_lost_zero(code: str) -> str:
    """`code` with the leading zero it has lost; any other code as it is."""
    found = classify(code)
    return found.candidate if found.kind == "leading_zero_lost" and found.candidate else code


def in_form(code: str, form: CodeForm) -> str:
    """A valid GTIN (restricted ones and ISBN too) with 13 or 14 digits; any other code as it is.

    A GTIN-14 that does not begin with 0 has no form of 13 digits and stays as it is.
    """
    if form == "as_is" or classify(code).kind not in _PADDABLE:
        return code
    if form == "gtin14":
        return code.zfill(14)
    return code.zfill(14).removeprefix("0")


# A catalogue is evaluated again and again. The parts of biip are used, not its Gtin.parse, which takes 25 us a code.
@lru_cache(maxsize=100_000)
def _of_digits(code: str) -> CodeClass:
    """The class of 1 to 14 ASCII digits that are not all zero."""
    length = len(code)
    if length in _BY_LENGTH:
        if _check_digit_is_right(code):
            return CodeClass(_kind_of_gtin(code), case=length == 14 and code[0] in "12345678")
        upc_a = _upc_a(code) if length == 8 else None
        return CodeClass("upc_e", upc_a) if upc_a else CodeClass("bad_check_digit")
    padded = f"0{code}"
    if (length in (7, 11) and _check_digit_is_right(padded)) or (length == 7 and _upc_a(padded)):
        return CodeClass("leading_zero_lost", padded)
    return CodeClass("upc_e", _upc_a(code)) if length == 6 else CodeClass("internal")


def _kind_of_gtin(code: str) -> Kind:
    full = code.zfill(14)
    if _is_rcn(full) or full.startswith(_COUPONS):
        return "restricted"
    return "isbn" if full.startswith(_ISBN) else _BY_LENGTH[len(code)]


def _is_rcn(full: str) -> bool:
    """Whether a GTIN written with 14 digits is a restricted circulation number; there are none with an indicator."""
    if full[0] != "0":
        return False
    prefix = GS18Prefix.extract(full[6:]) if full.startswith("000000") else GS1Prefix.extract(full[1:])
    return prefix is not None and "Restricted Circulation Numbers" in prefix.usage


def _check_digit_is_right(digits: str) -> bool:
    return gs1_standard_check_digit(digits[:-1]) == int(digits[-1])


def _upc_a(digits: str) -> str | None:
    """The UPC-A of 12 digits that a UPC-E of 6 or 8 stands for."""
    try:
        return Upc.parse(digits).as_upc_a()
    except ParseError:
        return None
