"""Facts true for every store, as pandera checks at two levels.

ERROR holds the variant back (the old label stays), WARNING lets it flow; both leave a finding with the reason in a
shopkeeper's words. Sources: data-quality.md section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from esl_pipeline.labels.policy import LABEL_SERVER_DECIMALS

# [0-9], never \d: Python's takes Arabic digits. Checked before Decimal, which takes NaN, Infinity and 1e3.
PRICE_PATTERN = r"[0-9]{1,9}(?:\.[0-9]{1,4})?"
CODE_PATTERN = r"[0-9A-Za-z._-]{1,32}"
GTIN_PATTERN = r"[0-9]{8}|[0-9]{12,14}"
STATUSES = ("active", "draft", "archived", "unlisted")
# Stands where a source sent NUL or half a surrogate pair, which text columns cannot hold.
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Rule:
    """One check: on which column, how grave, and what a shopkeeper is told."""

    name: str
    level: Literal["error", "warning"]
    column: str
    reason: str
    action: str


_RULES = [
    Rule("code_missing", "error", "code", "the variant has no barcode", "give it a barcode in Shopify"),
    Rule(
        "code_form",
        "error",
        "code",
        "the barcode has characters that a label code cannot have, or is longer than 32",
        "use letters, digits, dot, dash or underscore only",
    ),
    Rule("code_zero", "error", "code", "the barcode is all zeros", "enter the real barcode"),
    Rule("title_missing", "error", "title", "the product has no title", "give it a title in Shopify"),
    Rule(
        "title_unreadable",
        "error",
        "title",
        "the title holds a character that cannot be shown",
        "type the title again",
    ),
    Rule("price_missing", "error", "price", "the variant has no price", "set a price in Shopify"),
    Rule("price_form", "error", "price", "the price is not a plain number of 0 or more", "correct the price"),
    Rule("price_zero", "error", "price", "the price is zero", "set the real price"),
    Rule(
        "price_decimals",
        "error",
        "price",
        "the price has more decimals than the currency or the label server has",
        "round the price in Shopify, or set the store's currency",
    ),
    Rule(
        "gtin_check_digit",
        "warning",
        "code",
        "the barcode has the length of a GTIN but a wrong check digit",
        "compare it with the package",
    ),
    Rule(
        "status_unknown",
        "warning",
        "status",
        "Shopify sent a product status that is not known here; it is treated as active",
        "check that the product should be on the shelf",
    ),
    Rule(
        "image_not_https",
        "warning",
        "image_url",
        "the image address is not https, so the label has no image",
        "use an image stored at Shopify",
    ),
]
RULES = {rule.name: rule for rule in _RULES}


def gtin_is_valid(code: str) -> bool:
    """GS1 modulo-10 check of a string of ASCII digits."""
    total = sum(int(digit) * (3 if i % 2 == 0 else 1) for i, digit in enumerate(reversed(code[:-1])))
    return (10 - total % 10) % 10 == int(code[-1])


def _filled(values: pd.Series) -> pd.Series:
    return values.fillna("").ne("")


def _well_formed_price(frame: pd.DataFrame) -> pd.Series:
    return frame["price"].fillna("").str.fullmatch(PRICE_PATTERN)


def _price_fits(frame: pd.DataFrame) -> pd.Series:
    """Digits beyond what currency and label server keep are zeros only; malformed prices pass (another rule)."""
    prices = frame["price"].where(_well_formed_price(frame), "0")
    return pd.Series(
        [
            Decimal(price) % Decimal(1).scaleb(-min(decimals, LABEL_SERVER_DECIMALS)) == 0
            for price, decimals in zip(prices, frame["decimals"], strict=True)
        ],
        index=frame.index,
        dtype=bool,
    )


def _price_not_zero(frame: pd.DataFrame) -> pd.Series:
    zero = frame["price"].fillna("").str.fullmatch(r"0+(?:\.0+)?")
    return ~zero


def _gtin_ok(codes: pd.Series) -> pd.Series:
    shaped_like_one = codes.fillna("").str.fullmatch(GTIN_PATTERN)
    return codes.where(shaped_like_one, "0").map(gtin_is_valid).astype(bool)


def _check(rule: str, function: Callable[..., Any]) -> pa.Check:
    return pa.Check(function, error=rule, ignore_na=False)


def _text(*checks: pa.Check) -> pa.Column:
    return pa.Column("str", list(checks), nullable=True, coerce=True)


ERRORS = pa.DataFrameSchema(
    {
        "code": _text(
            _check("code_missing", _filled),
            _check("code_form", lambda s: ~_filled(s) | s.fillna("").str.fullmatch(CODE_PATTERN)),
            _check("code_zero", lambda s: ~s.fillna("").str.fullmatch("0+")),
        ),
        "title": _text(
            _check("title_missing", lambda s: s.fillna("").str.strip().ne("")),
            _check("title_unreadable", lambda s: ~s.fillna("").str.contains(UNREADABLE, regex=False)),
        ),
        "price": _text(
            _check("price_missing", _filled),
            _check("price_form", lambda s: ~_filled(s) | s.fillna("").str.fullmatch(PRICE_PATTERN)),
        ),
        "decimals": pa.Column("int64", coerce=True),
    },
    checks=[_check("price_zero", _price_not_zero), _check("price_decimals", _price_fits)],
)

WARNINGS = pa.DataFrameSchema(
    {
        "code": _text(_check("gtin_check_digit", _gtin_ok)),
        "status": _text(_check("status_unknown", lambda s: s.isin(STATUSES))),
        "image_url": _text(
            _check("image_not_https", lambda s: ~_filled(s) | s.fillna("").str.startswith("https://"))
        ),
    },
)


def findings(candidates: pd.DataFrame) -> pd.DataFrame:
    """Every finding of every row.

    In: one row per variant, columns code, title, price, status, image_url (text or null) and decimals (int).
    Out: columns row (the index label of the candidate), check_name, level, column_name, value, reason, action.
    Never raises for the content of a row; ValueError when a column is missing.
    """
    found = []
    for schema in (ERRORS, WARNINGS):
        try:
            schema.validate(candidates, lazy=True)
        except SchemaErrors as failed:
            cases = failed.failure_cases
            if (
                cases["index"].isna().any()
            ):  # not a row's fault: a check itself raised, or a column is missing
                raise ValueError(f"the schema could not be applied: {cases.to_dict('records')}") from failed
            found.append(cases[["check", "index"]].drop_duplicates())
    columns = ["row", "check_name", "level", "column_name", "value", "reason", "action"]
    if not found:
        return pd.DataFrame(columns=columns)
    cases = pd.concat(found).rename(columns={"check": "check_name", "index": "row"})
    rules = pd.DataFrame([vars(rule) for rule in RULES.values()]).rename(
        columns={"name": "check_name", "column": "column_name"}
    )
    cases = cases.merge(rules, on="check_name", how="left", validate="many_to_one")
    texts = candidates.astype(object).where(candidates.notna(), None).to_dict("index")
    cases["value"] = [
        None if texts[row][column] is None else str(texts[row][column])[:200]
        for row, column in zip(cases["row"], cases["column_name"], strict=True)
    ]
    return pd.DataFrame(cases, columns=columns)
