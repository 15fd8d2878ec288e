"""Every check that a finding can name, but for the two that ELSEWHERE names: what is checked, and what people are told.

The rules are facts true for every store. An error holds the variant back (the old label stays), a warning lets it flow;
both leave a finding with the reason in a shopkeeper's words. A policy may raise or lower the level of some. Source of
each: data-quality.md section 2. They are applied in schema.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd
from iso4217 import Currency

from esl_pipeline.labels.attributes import PRICE
from esl_pipeline.labels.codes import NUMBER_ARTEFACT, ZERO
from esl_pipeline.labels.policy import Policy

CODE_PATTERN = r"[0-9A-Za-z._-]{1,32}"
# With which the codes of probes begin, in any case; esl.is_reserved says the same.
RESERVED = "ESLPROBE"
STATUSES = ("active", "draft", "archived", "unlisted")
# Stands where a source sent NUL or half a surrogate pair, which text columns cannot hold.
UNREADABLE = "\ufffd"
_GTINS = ("gtin8", "gtin12", "gtin13", "gtin14", "isbn", "restricted")
_MAX_ID = 2**63
_NAME = r"[0-9A-Za-z]+(?:[-_:][0-9A-Za-z]+)*"

Level = Literal["error", "warning"]
Check = Callable[[pd.Series], pd.Series]


@dataclass(frozen=True)
class Rule:
    """One check: on which column of the facts, how grave, and what a shopkeeper is told (with the value of `shown`).

    {source} and {how_to_read} in what is told are those of the variant's source.
    """

    name: str
    level: Level
    checked: str
    right: Check
    reason: str
    action: str
    shown: str | None = None
    applies: Callable[[Policy], bool] = lambda _policy: True

    @property
    def column(self) -> str:
        """The column whose value stands in the finding."""
        return self.shown or self.checked


def _filled(values: pd.Series) -> pd.Series:
    return values.ne("")


def _is_id(values: pd.Series) -> pd.Series:
    """A number above 0 that a database can hold, or a name."""
    digits = values.str.fullmatch("[0-9]+")
    number = values.where(digits & values.str.len().lt(20), "0").map(int).between(1, _MAX_ID - 1)
    return number.where(digits, values.str.fullmatch(_NAME) & values.str.len().le(64))


def _no(values: pd.Series) -> pd.Series:
    """For facts that are findings where they are true."""
    return ~values


_RULES = [
    Rule("id_form", "error", "variant_id", _is_id, "{source} sent no usable variant id", "report it to us"),
    Rule(
        "id_duplicate",
        "error",
        "id_is_doubled",
        _no,
        "the same variant was read twice at once",
        "report it to us",
        shown="variant_id",
    ),
    Rule(
        "not_said",
        "error",
        "unsaid",
        lambda s: s.eq(""),
        "what came from {source} leaves out what this store needs to know, and nobody has said it yet",
        "add the fields shown: to the subscription (include_fields), to the file; or let the shop be read: "
        "{how_to_read}",
    ),
    Rule(
        "row_unusable",
        "error",
        "problem",
        lambda s: s.eq(""),
        "what {source} says of this product cannot be used, or not all of it",
        "correct the line shown where the file is made; the next file then sets it right",
    ),
    Rule(
        "code_missing",
        "error",
        "code",
        _filled,
        "the variant has no code: every source that the store uses is empty, or says so in a word like none",
        "give it a barcode in {source}, or let the store use another code_source",
    ),
    Rule(
        "code_form",
        "error",
        "code",
        lambda s: s.eq("") | s.str.fullmatch(CODE_PATTERN) | s.str.fullmatch(NUMBER_ARTEFACT),
        "the code has characters that a label code cannot have, or is longer than 32",
        "use letters, digits, dot, dash or underscore only",
    ),
    Rule(
        "number_artefact",
        "error",
        "code",
        lambda s: ~s.str.fullmatch(NUMBER_ARTEFACT),
        "the code is a number that a spreadsheet has rewritten (4006381333931.0, 4.00638E12)",
        "enter the digits under the bars again, in a column of text",
    ),
    Rule(
        "code_reserved",
        "error",
        "code",
        lambda s: ~s.str.upper().str.startswith(RESERVED),
        f"codes that begin with {RESERVED} are for the labels that measure (esl-pipeline probe)",
        "give the variant a code of its own",
    ),
    Rule(
        "code_zero",
        "error",
        "code",
        lambda s: ~s.str.fullmatch(ZERO),
        "the code is all zeros",
        "enter the real barcode",
    ),
    Rule(
        "gtin_bad_check_digit",
        "warning",
        "code_kind",
        lambda s: s.ne("bad_check_digit"),
        "the code has the length of a GTIN but a wrong check digit",
        "compare it with the package",
        shown="code",
    ),
    Rule(
        "gtin_required",
        "error",
        "code_kind",
        lambda s: s.isin((*_GTINS, "", "bad_check_digit", "zero")),
        "the code is not a GTIN, and this store takes no others",
        "enter the number under the bars, or turn require_gtin off",
        shown="code",
        applies=lambda policy: policy.require_gtin,
    ),
    Rule(
        "leading_zero_suspect",
        "warning",
        "code_kind",
        lambda s: s.ne("leading_zero_lost"),
        "the code seems to have lost its leading zero: with it, it is the valid number shown here",
        "compare with the package and correct it in {source}, or turn pad_upc on",
        shown="code_candidate",
    ),
    Rule(
        "upc_e",
        "warning",
        "code_kind",
        lambda s: s.ne("upc_e"),
        "the code looks like a shortened UPC (UPC-E), which scanners read as the longer number",
        "enter the twelve digits in {source}",
        shown="code",
    ),
    Rule(
        "case_code",
        "warning",
        "code_is_case",
        _no,
        "the code is that of a case, not of one piece",
        "enter the number on the piece",
        shown="code",
    ),
    Rule(
        "restricted_code",
        "warning",
        "code_kind",
        lambda s: s.ne("restricted"),
        "the code is from a range for use within a shop (weighed goods, coupons)",
        "check that it is a fixed code and not made by a scale",
        shown="code",
    ),
    Rule(
        "title_missing",
        "error",
        "title",
        _filled,
        "the product has no title that a label can show",
        "give it a title in {source}",
    ),
    Rule(
        "title_unreadable",
        "error",
        "title",
        lambda s: ~s.str.contains(UNREADABLE, regex=False),
        "the title holds a character that cannot be shown",
        "type the title again",
    ),
    Rule(
        "title_cut",
        "warning",
        "title_is_cut",
        _no,
        "the title is longer than the label",
        "shorten it in {source}, or change title_template or title_max_length",
        shown="title",
    ),
    Rule(
        "text_cut",
        "warning",
        "cut_texts",
        lambda s: s.eq(""),
        "{source} sent more text than is kept: what is named here was cut, and ends in …",
        "shorten it in {source}",
    ),
    Rule(
        "field_cut",
        "warning",
        "cut_fields",
        lambda s: s.eq(""),
        "a field of the label came out longer than 500 characters: what is named here was cut, and ends in …",
        "shorten the text in {source}, or change the field's template",
    ),
    Rule(
        "price_missing",
        "error",
        "price",
        _filled,
        "the variant has no price",
        "set a price in {source}",
    ),
    Rule(
        "price_form",
        "error",
        "price",
        lambda s: s.eq("") | s.str.fullmatch(PRICE.pattern),
        "the price is not a plain number of 0 or more",
        "correct the price",
    ),
    Rule(
        "price_zero",
        "error",
        "price",
        lambda s: ~s.str.fullmatch(r"0+(?:\.0+)?"),
        "the price is zero",
        "set the real price, or let the store allow zero_price",
    ),
    Rule(
        "price_decimals",
        "error",
        "price_is_too_fine",
        _no,
        "the price has more decimals than the currency or the label server has",
        "round the price in {source}, or set the store's expected_currency",
        shown="price",
    ),
    Rule(
        "price_jump",
        "warning",
        "price_jumps",
        _no,
        "the price differs from the label's by more than half",
        "check the price in {source}",
        shown="price",
    ),
    Rule(
        "currency_unknown",
        "error",
        "shop_currency",
        lambda s: s.eq("") | s.isin(list(Currency.__members__)),
        "the shop's currency is not one of ISO 4217, so that its decimals are not known",
        "report it to us",
    ),
    Rule(
        "currency_mismatch",
        "error",
        "currency_differs",
        _no,
        "the shop sells in another currency than the store expects",
        "map a shop with the store's currency, or correct expected_currency",
        shown="shop_currency",
    ),
    Rule(
        "tax_differs",
        "warning",
        "tax_differs",
        _no,
        "the shop's prices include tax or not, other than price_includes_tax says",
        "show prices with tax where the law asks for it; correct the shop or the policy",
        shown="price",
    ),
    Rule(
        "compare_at_form",
        "warning",
        "compare_at_price",
        lambda s: s.eq("") | s.str.fullmatch(PRICE.pattern),
        "the compare-at price is not a plain number, so it is not shown",
        "correct or clear it in {source}",
    ),
    Rule(
        "compare_at_decimals",
        "warning",
        "compare_at_is_too_fine",
        _no,
        "the compare-at price has more decimals than the currency or the label server has, so it is not shown",
        "round it in {source}",
        shown="compare_at_price",
    ),
    Rule(
        "compare_at_low",
        "warning",
        "compare_at_is_low",
        _no,
        "the compare-at price is not above the price, so it is not shown",
        "clear it in {source}",
        shown="compare_at_price",
    ),
    Rule(
        "compare_at_unproven",
        "warning",
        "compare_at_is_unproven",
        _no,
        "the label showed a lower price in the last 30 days, or has no 30 days of prices yet: compare-at is not shown",
        "wait, or correct it to the lowest price of the last 30 days",
        shown="compare_at_price",
    ),
    Rule(
        "unit_price_missing",
        "warning",
        "measure",
        lambda s: s.ne("missing"),
        "there is no unit price: {source} holds no measurement of the content",
        "enter the content and unit in {source}",
    ),
    Rule(
        "unit_price_quantity",
        "error",
        "measure",
        lambda s: s.ne("quantity"),
        "the content for the unit price is zero or negative",
        "correct the content in {source}",
    ),
    Rule(
        "unit_price_differs",
        "warning",
        "measure",
        lambda s: s.ne("differs"),
        "{source}'s unit price is not price divided by content; the label shows the latter",
        "save the variant again in {source}",
    ),
    Rule(
        "stock_missing",
        "warning",
        "stock_is_missing",
        _no,
        "no stock is known at the store's location, so the label shows none",
        "stock the product at this location, or check location_id",
        shown="variant_id",
    ),
    Rule(
        "status_unknown",
        "warning",
        "status",
        lambda s: s.isin(STATUSES),
        "{source} sent a product status that is not known here; it is treated as active",
        "check that the product should be on the shelf",
    ),
    Rule(
        "image_missing",
        "warning",
        "image_url",
        _filled,
        "the product has no image",
        "add one in {source}, or turn send_images off",
        applies=lambda policy: policy.send_images,
    ),
    Rule(
        "image_refused",
        "warning",
        "image_is_refused",
        _no,
        "the image's address is not https or not of an allowed host, so the label has no image",
        "use an image stored at {source}, or add its host to image_hosts",
        shown="image_url",
        applies=lambda policy: policy.send_images,
    ),
]
RULES = {rule.name: rule for rule in _RULES}
# Found elsewhere, into the same findings: the name, and where.
ELSEWHERE = {
    # Which of several wins is known only where all variants of the store are.
    "duplicate_code": "buffer/functions, where it is decided which variant has a code",
    # Content that is not as we know it, so that no check could be asked.
    "not_judged": "labels/evaluate.py, held_back",
}
# With an error of these the code itself is wrong, or there is none.
CODE_RULES = frozenset(rule.name for rule in _RULES if rule.checked.startswith("code"))


class Facts(NamedTuple):
    """What is checked of one variant that should be on the shelf. Text is never null: "" where there is none."""

    variant_id: str
    id_is_doubled: bool
    unsaid: str
    problem: str
    code: str
    code_kind: str
    code_candidate: str
    code_is_case: bool
    title: str
    title_is_cut: bool
    cut_texts: str
    cut_fields: str
    price: str
    price_is_too_fine: bool
    price_jumps: bool
    shop_currency: str
    currency_differs: bool
    tax_differs: bool
    compare_at_price: str
    compare_at_is_too_fine: bool
    compare_at_is_low: bool
    compare_at_is_unproven: bool
    measure: str
    stock_is_missing: bool
    status: str
    image_url: str
    image_is_refused: bool


# Columns of the facts, one row per variant.
FACTS = {name: kind.__name__ for name, kind in Facts.__annotations__.items()}


def level_of(rule: str, policy: Policy) -> Level:
    """How grave a finding is in a store: the rule's own level, unless the policy is stricter or more lenient."""
    if rule == "price_zero" and policy.zero_price == "allow":
        return "warning"
    if rule == "gtin_bad_check_digit" and policy.require_gtin:
        return "error"
    if rule == "case_code" and not policy.allow_case_codes:
        return "error"
    return RULES[rule].level
