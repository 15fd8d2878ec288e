"""What a label can say of a variant, as text: the values behind a policy's templates."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from esl_pipeline.labels import codes, unit_price
from esl_pipeline.labels.lengths import FIELD_LENGTH
from esl_pipeline.labels.policy import LABEL_SERVER_DECIMALS, Policy
from esl_pipeline.labels.text import clean, without_emoji
from esl_pipeline.model.rows import SHOWN

# Shopify's name for the only variant of a product without options.
DEFAULT_VARIANT_TITLE = "Default Title"
# [0-9], never \d: Python's takes Arabic digits. Checked before Decimal, which takes NaN, Infinity and 1e3.
PRICE = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,4})?")

# Where Shopify's name for the only variant may stand.
_NAMES_OF_ONE = {"variant_title", "option1", "option2", "option3"}
_CODES = {"sku", "barcode"}

Attributes = dict[str, str]


class PerUnit(NamedTuple):
    """The unit price as text and what it is for ("kg"), "" without one; and what is wrong with it."""

    amount: str
    per: str
    verdict: Literal["ok", "missing", "quantity", "differs"]


def attributes_of(variant: Mapping[str, Any], policy: Policy, shop_currency: str | None = None) -> Attributes:
    """What the policy shows of a variant, by name, and PerUnit's verdict; "" where the variant has no such thing.

    In: a row of the buffer's variants, stock as {location id: quantity}, unit_price_measurement as a Measurement (both
    may be missing), prior_price as the lowest price on the label in the 30 days before the present reduction. Pure;
    never raises for the content of a row.
    """
    used = policy.used_attributes
    texts = {name: _text(variant.get(name), policy.emoji) for name in SHOWN & used}
    for name in _NAMES_OF_ONE & texts.keys():
        if texts[name] == DEFAULT_VARIANT_TITLE:
            texts[name] = ""
    for name in _CODES & texts.keys():
        if codes.means_nothing(texts[name]):
            texts[name] = ""
    decimals = policy.decimals(shop_currency)
    amount, per, verdict = per_unit(variant, policy, decimals)
    available = (variant.get("stock") or {}).get(policy.location_id)
    return texts | {
        "code": code_of(variant, policy),
        "price": price_text(variant.get("price"), decimals),
        "compare_at_price": _compare_at(variant, policy, decimals),
        "currency": policy.expected_currency or shop_currency or "",
        "unit_price": amount,
        "unit_price_per": per,
        "unit_price_verdict": verdict,
        "stock": str(available) if type(available) is int else "",
        "status": variant.get("status") or "",
        "variant_id": variant.get("variant_id") or "",
        "product_id": variant.get("product_id") or "",
        "shop": variant.get("source_store_id") or "",
    }


def code_of(variant: Mapping[str, Any], policy: Policy) -> str:
    """The label server's product code of a variant, always text; "" when every source of the policy is empty.

    A word that means nothing (codes.means_nothing) counts as empty. Zeros do too, but where there is nothing else they
    are the code, so that the finding shows them.
    """
    filled = {name: code for name in policy.code_source if (code := (variant.get(name) or "").strip())}
    said = {name: code for name, code in filled.items() if not codes.means_nothing(code)}
    if not said:
        return next((code for code in filled.values() if codes.is_zero(code)), "")
    source, code = next(iter(said.items()))
    if source == "variant_id":
        return code
    if policy.pad_upc:
        code = codes.pad_lost_zero(code)
    return codes.in_form(code, policy.label_code_form)


def code_class(code: str, variant: Mapping[str, Any]) -> codes.CodeClass:
    """What kind of number a variant's code is. A variant id is never a GTIN, though Shopify's are as long as one."""
    return codes.CodeClass("internal") if code == variant.get("variant_id") else codes.classify(code)


def is_too_fine(price: str, decimals: int) -> bool:
    """Whether a price has digits beyond what currency and label server keep, so that rounding would change it."""
    if not PRICE.fullmatch(price):
        return False
    return price.partition(".")[2][min(decimals, LABEL_SERVER_DECIMALS) :].strip("0") != ""


def price_text(price: str | None, decimals: int) -> str:
    """A valid price as dot-decimal text with the currency's digits: ("8.9", 2) -> "8.90"; "" for anything else."""
    if price is None or not PRICE.fullmatch(price):
        return ""
    return f"{Decimal(price):.{decimals}f}"


def compare_at_is_higher(variant: Mapping[str, Any]) -> bool:
    """Whether the compare-at price is above the price, so that it may stand as the one before."""
    before, price = variant.get("compare_at_price") or "", variant.get("price") or ""
    return bool(PRICE.fullmatch(before) and PRICE.fullmatch(price)) and Decimal(before) > Decimal(price)


def compare_at_is_proven(variant: Mapping[str, Any]) -> bool:
    """Whether our own labels showed no lower price in the 30 days before the reduction (Directive 98/6/EC, 6a)."""
    prior: str = variant.get("prior_price") or ""
    return prior != "" and Decimal(variant["compare_at_price"]) <= Decimal(prior)


def per_unit(variant: Mapping[str, Any], policy: Policy, decimals: int) -> PerUnit:
    """The unit price under the policy, and whether it agrees with the shop's own. Never raises."""
    price, stated = variant.get("price") or "", variant.get("unit_price") or ""
    if policy.unit_price_mode == "off" or not PRICE.fullmatch(price):
        return PerUnit("", "", "ok")
    measured: unit_price.Measurement | None = variant.get("unit_price_measurement")
    if measured is None:
        return PerUnit("", "", "missing")
    if measured.quantity_value <= 0:
        return PerUnit("", "", "quantity")
    found = unit_price.unit_price(Decimal(price), measured, policy.unit_price_mode)
    if found is None:
        return PerUnit("", "", "missing")
    agrees = not PRICE.fullmatch(stated) or unit_price.agrees(
        found, Decimal(price), measured, Decimal(stated), decimals
    )
    return PerUnit(unit_price.rounded(found.amount, decimals), found.per, "ok" if agrees else "differs")


def _compare_at(variant: Mapping[str, Any], policy: Policy, decimals: int) -> str:
    if policy.show_compare_at == "never" or not compare_at_is_higher(variant):
        return ""
    if is_too_fine(variant["compare_at_price"], decimals):
        return ""
    if policy.show_compare_at == "if_prior_30d_ok" and not compare_at_is_proven(variant):
        return ""
    return price_text(variant["compare_at_price"], decimals)


def _text(value: str | None, emoji: Literal["strip", "keep"]) -> str:
    text = clean(value)
    text = text if emoji == "keep" else without_emoji(text)
    return text[: FIELD_LENGTH + 1]  # no field shows more, and a template may name it many times
