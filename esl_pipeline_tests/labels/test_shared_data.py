"""Public test data from webhook body to label: what each of them must come to, counted by other means than ours."""

import base64
import csv
import json
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import pandas as pd
import pytest

from esl_pipeline.labels.policy import Policy
from esl_pipeline.sources.content import CONTENT
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline_tests.labels.support import (
    Judged,
    evaluate,
    frame,
    judge_all,
    judge_each,
    store,
)
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.whole import whole

pytestmark = pytest.mark.shared_data("data")

WEBHOOKS = DATA / "shopify-webhooks" / "metadatas" / "2026-04"
REST = DATA / "shopify-rest" / "shopify_python_api"
RECEIVED = "2026-11-22T12:00:00+00:00"
Body = dict[str, Any]


def read(bodies: Iterable[Body]) -> Facts:
    """Product bodies as webhooks that arrived together."""
    facts = read_deliveries(
        [
            {
                "id": number,
                "source_system": "shopify",
                "source_store_id": "shop",
                "topic": "products/update",
                "received_at": RECEIVED,
                "triggered_at": RECEIVED,
                "body_sha256": f"{number:064x}",
                "body_base64": base64.b64encode(json.dumps(body).encode()).decode(),
            }
            for number, body in enumerate(bodies, start=1)
        ]
    )
    return whole(facts)


def judged(bodies: Iterable[Body], **policy: Any) -> dict[str, Judged]:
    """What becomes of every variant of these products, by variant id."""
    facts = read(bodies)
    assert {event["state"] for event in facts.events} == {"done"}
    rows = [
        dict.fromkeys(CONTENT) | {"unsaid": " ".join(sorted(CONTENT - row.keys()))} | row
        for row in facts.variants
    ]
    return judge_all(frame(*rows), store(Policy.model_validate(policy)))


def having(check: str, variants: Iterable[Judged]) -> int:
    return sum(check in one.findings for one in variants)


@pytest.mark.parametrize("topic", ["products__update", "products__create"])
def test_shopifys_own_sample(topic: str) -> None:
    body = json.loads((WEBHOOKS / f"{topic}.json").read_text(encoding="utf-8"))["response"]
    # The gids, not the rounded numbers beside them.
    small, medium = "642667041472713922", "757650484644203962"
    held = judged([body])
    assert {id_: (one.state, one.findings) for id_, one in held.items()} == {
        small: ("held", {"code_missing": "error"}),
        medium: ("held", {"code_missing": "error"}),
    }
    shown = judged([body], code_source="variant_id", show_compare_at="if_higher", fields={"pm": "{vendor}"})
    assert {id_: (one.findings, one.label) for id_, one in shown.items()} == {
        id_: (
            {},
            {
                "pc": id_,
                "pn": f"Example T-Shirt - {size}",
                "pp": "19.99",
                "pop": "24.99",
                "pim": "",
                "pm": "Acme",
                "pi": "",
            },
        )
        for id_, size in ((small, "Small"), (medium, "Medium"))
    }


def test_rest_fixtures() -> None:
    """An older shape, which says neither status nor barcode: held until both are said, if only empty.

    The listings have no product id and are refused.
    """
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(REST.glob("*.json"))}
    products = [files["product"]["product"], *files["products"]]
    product_of_variants = files["product"]["product"] | {"id": 9, **files["variants"]}
    product_of_variant = files["product"]["product"] | {"id": 8, "variants": [files["variant"]["variant"]]}
    for one in judged(products).values():
        assert (one.state, one.findings) == ("held", {"not_said": "error"})
    for body in (*products, product_of_variants, product_of_variant):
        body |= {"status": ""}
        body["variants"] = [{"barcode": None} | variant for variant in body["variants"]]
    expected = {"IPOD2008PINK", "IPOD2008RED", "IPOD2008GREEN", "IPOD2008BLACK"}

    for body in (products[0], product_of_variants):
        without_codes = judged([body]).values()
        assert len(without_codes) == 4
        for one in without_codes:
            assert (one.state, one.findings) == (
                "held",
                {"code_missing": "error", "status_unknown": "warning"},
            )
        by_sku = judged([body], code_source="sku").values()
        assert {one.shown("pc") for one in by_sku} == expected
        assert {one.shown("pp") for one in by_sku} == {"199.00"}
        assert "IPod Nano - 8GB - Pink" in {one.shown("pn") for one in by_sku}
        assert all(one.findings == {"status_unknown": "warning"} for one in by_sku)

    for body in (*products[1:], product_of_variant):
        (one,) = judged([body], code_source="sku", send_images=True).values()
        assert (one.shown("pc"), one.shown("pim")) == ("IPOD2008PINK", "")
        # http, and a host of the time before cdn.shopify.com
        assert one.findings == {"status_unknown": "warning", "image_refused": "warning"}

    listings = [files["product_listing"], *files["product_listings"]]
    assert {event["reason"] for event in read(listings).events} == {"the product has no id"}


def naughty() -> list[str]:
    strings: list[str] = json.loads((DATA / "security" / "blns.json").read_text(encoding="utf-8"))
    assert len(strings) == 515
    return strings


def products_named(strings: Sequence[str]) -> Iterator[Body]:
    """One product each, with the string for its title, vendor and SKU."""
    for number, text in enumerate(strings, start=1):
        variant = {
            "id": number,
            "title": "Default Title",
            "sku": text,
            "price": "1.00",
            "barcode": f"C-{number}",
        }
        yield {
            "id": number,
            "title": text,
            "vendor": text,
            "status": "active",
            "updated_at": "2026-11-22T11:00:00Z",
            "variants": [variant],
        }


# Comments, tags of HTML whose attributes have values, and what cannot be seen.
NOTHING_TO_SHOW = re.compile(
    r"""(?:[\s\x00-\x1f\x7f-\x9f\u200b\ufeff]|<!--(?:(?!-->).)*-->
    |<(?!foo|plaintext|title[ ]title)/?[A-Za-z]+(?:\s+[^\s"'<>/=]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'=<>`]+))*\s*/?>)*""",
    re.VERBOSE,
)
ONLY_EMOJI = 13  # counted by eye; the string of keycaps is one of them


def cut(text: str) -> dict[str, str]:
    """The finding of a text that is longer than Shopify's own limit."""
    return {"text_cut": "warning"} if len(text) > 255 else {}


@pytest.mark.parametrize("emoji", ["strip", "keep"])
def test_f28_naughty_titles(emoji: str) -> None:
    strings = naughty()
    results = judged(products_named(strings), emoji=emoji, fields={"pm": "{vendor}", "f1": "<{title}>"})
    held: list[str] = []
    hidden: list[str] = []
    for text, one in zip(strings, results.values(), strict=True):
        if one.state == "held":
            assert one.findings == {"title_missing": "error"}
            (hidden if NOTHING_TO_SHOW.fullmatch(text) else held).append(text)
            continue
        assert one.findings == cut(text), text
        assert not NOTHING_TO_SHOW.fullmatch(text)
        title = one.shown("pn")
        assert (
            title == one.shown("pm") == one.shown("f1")[1:-1] == unicodedata.normalize("NFC", title).strip()
        )
        assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]|  ", title), text
    assert len(hidden) == sum(NOTHING_TO_SHOW.fullmatch(text) is not None for text in strings) > 30
    assert len(held) == (ONLY_EMOJI if emoji == "strip" else 0)
    assert not any(char.isalpha() for text in held for char in text)


def test_naughty_codes() -> None:
    strings = naughty()
    results = judged((body | {"title": "Tea"} for body in products_named(strings)), code_source="sku")
    usable = re.compile("[0-9A-Za-z._-]{1,32}")
    published = 0
    for text, one in zip(strings, results.values(), strict=True):
        code = text.strip()
        if not code:
            assert one.findings == {"code_missing": "error"}
        elif code in ("0", "0.00", "0,00"):
            assert "code_zero" in one.findings
        elif code.lower() in ("undefined", "null", "nil", "none", "nan", "n/a") or re.fullmatch(
            r"[-._?/*#]+", code
        ):
            assert one.findings == {"code_missing": "error"}, text
        elif re.fullmatch(r"[0-9]+[.,]0+|[0-9]E\+[0-9]+", code):
            assert one.findings == {"number_artefact": "error"}, text
        elif not usable.fullmatch(code):
            assert one.findings == {"code_form": "error"} | cut(text), text
        else:
            assert (one.findings, one.shown("pc"), one.shown("pi")) == ({}, code, code)
            published += 1
    assert published == 52


# What each of the 29 vectors must be told; no finding: it is as good as any code.
VECTORS: dict[str, dict[str, str]] = {
    "5901234123457": {},
    "5901234123458": {"gtin_bad_check_digit": "warning"},
    "  \t 5901234123457 \n  ": {},
    "96385074": {},
    "000096385074": {},
    "0000096385074": {},
    "00000096385074": {},
    "614141000036": {},
    "0614141000036": {},
    "00614141000036": {},
    "036000291452": {},
    "36000291452": {"leading_zero_suspect": "warning"},
    "006000291455": {},
    "10614141000415": {"case_code": "warning"},
    "2135040039753": {"restricted_code": "warning"},
    "2712341002251": {"restricted_code": "warning"},
    "425261": {"upc_e": "warning"},
    "14252611": {"upc_e": "warning"},
    "123": {},
    "0123456789abc": {},
    "0123456789⁰⁰⁰": {"code_form": "error"},
    "٥٩٠١٢٣٤١٢٣٤٥٧": {"code_form": "error"},
    "'5901234123457": {"code_form": "error"},
    "5.90123E+12": {"number_artefact": "error"},
    "0000000000000": {"code_zero": "error"},
    "9780306406157": {},
    "1234_pink": {},
    "20653": {},
    "": {"code_missing": "error"},
}


def test_gtin_vectors() -> None:
    with (DATA / "gtin" / "gtin_vectors.csv").open(encoding="utf-8", newline="") as file:
        vectors = [row["value"] for row in csv.DictReader(file)]
    assert len(vectors) == 29
    assert set(vectors) == set(VECTORS)
    for code, one in judge_each("barcode", vectors):
        assert one.findings == VECTORS[code], code
        if one.state == "publish":
            assert one.shown("pc") == code.strip()
    gtins = {
        code for code, one in judge_each("barcode", vectors, require_gtin=True) if one.state == "publish"
    }
    warned = {"10614141000415", "2135040039753", "2712341002251"}
    valid = {code for code, found in VECTORS.items() if not found and len(code.strip()) >= 8}
    assert gtins == warned | valid - {"0123456789abc", "1234_pink"}


def foods() -> list[dict[str, str]]:
    with (DATA / "gtin" / "off_1000_products.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1_000
    return rows


def shelves(rows: Sequence[dict[str, str]]) -> Iterator[Body]:
    """The foods as variants of products in Shopify's own 2026-04 shape, of 1, 3 and 101 variants in turn.

    A body holds the first 100 variants; of the last one in 101, which is no food of ours, only the gid.
    """
    sample = json.loads((WEBHOOKS / "products__update.json").read_text(encoding="utf-8"))["response"]
    chance = random.Random(20261122)
    numbered = iter(enumerate(rows, start=1))
    for shelf, size in enumerate(cycle((1, 3, 100)), start=1):
        variants = [
            sample["variants"][0]
            | {
                "id": 44_000_000_000_000 + number,
                "admin_graphql_api_id": f"gid://shopify/ProductVariant/{44_000_000_000_000 + number}",
                "title": row["product_name"],
                "barcode": row["code"],
                "price": f"{chance.randint(50, 9_999) / 100:.2f}",
                "compare_at_price": None,
                "option1": row["quantity"] or None,
                "option2": row["brands"] or None,
            }
            for number, row in islice(numbered, size)
        ]
        if not variants:
            return
        gids = [variant["admin_graphql_api_id"] for variant in variants]
        if size == 100:
            gids.append(f"gid://shopify/ProductVariant/{45_000_000_000_000 + shelf}")
        yield sample | {
            "id": 7_000_000_000_000 + shelf,
            "admin_graphql_api_id": f"gid://shopify/Product/{7_000_000_000_000 + shelf}",
            "title": f"Shelf {shelf}",
            "variants": variants,
            "variant_gids": [{"admin_graphql_api_id": gid, "updated_at": RECEIVED} for gid in reversed(gids)],
        }


NAME = {"title_template": "{variant_title}"}


def test_a_thousand_foods() -> None:
    rows = foods()
    facts = read(shelves(rows))
    # 9 rounds of 104, then 1, 3 and 60 of a hundred.
    assert [len(facts.products), sum(product["missing_variants"] for product in facts.products)] == [30, 10]
    results = judge_all(frame(*facts.variants), store(Policy.model_validate(NAME)))
    assert len(results) == 1_000
    all_of_them = results.values()

    # data-quality.md: 14 without a name, 41 of 8 digits, 3 of these with a wrong GTIN-8 check digit.
    assert having("title_missing", all_of_them) == 14
    by_code = dict(zip((row["code"] for row in rows), all_of_them, strict=True))
    wrong = {
        code: one.findings
        for code, one in by_code.items()
        if one.findings.keys() & {"gtin_bad_check_digit", "upc_e"}
    }
    assert wrong == {
        "00002220": {"upc_e": "warning"},  # a UPC-E with the right check digit: 000200000220
        "00012444": {"gtin_bad_check_digit": "warning"},
        "00013029": {"gtin_bad_check_digit": "warning"},
    }
    # All other GTIN-8s begin with 0, a range for use within a shop.
    assert having("restricted_code", all_of_them) == 38
    assert {len(code) for code, one in by_code.items() if "restricted_code" in one.findings} == {8}
    known = {"title_missing", "restricted_code", "upc_e", "gtin_bad_check_digit"}
    assert set().union(*(one.findings for one in all_of_them)) == known

    assert sum(one.state == "publish" for one in all_of_them) == 986
    for row in rows:
        one = by_code[row["code"]]
        assert (one.state == "held") == (not row["product_name"].strip())
        if one.state == "publish":
            assert one.shown("pc") == row["code"]
            # The names hold no entity, tag or emoji: all that changes is their spaces.
            assert one.shown("pn") == " ".join(row["product_name"].split())


@pytest.mark.parametrize(
    ("policy", "held", "finding", "found"),
    [
        ({"require_gtin": True}, 17, "gtin_bad_check_digit", 2),
        ({"require_gtin": True}, 17, "gtin_required", 1),
        ({"title_max_length": 60}, 14, "title_cut", 45),
        ({"title_template": "{title}[ - {variant_title}]"}, 0, "title_missing", 0),
        ({"fields": {"f1": "{unit_price}"}, "unit_price_mode": "eu"}, 14, "unit_price_missing", 1_000),
        ({"stock_field": "kc", "location_id": "1"}, 14, "stock_missing", 1_000),
        ({"send_images": True}, 14, "image_missing", 1_000),
        ({"expected_currency": "USD"}, 1_000, "currency_mismatch", 1_000),
        ({"code_source": "sku"}, 1_000, "code_missing", 1_000),
    ],
)
def test_a_thousand_foods_under_other_policies(
    thousand: pd.DataFrame, policy: dict[str, Any], held: int, finding: str, found: int
) -> None:
    labels, findings = evaluate(thousand, store(Policy.model_validate(NAME | policy)))
    assert (labels["state"] == "held").sum() == held
    assert (findings["check_name"] == finding).sum() == found


def test_a_shop_without_barcodes(thousand: pd.DataFrame) -> None:
    without = thousand.assign(barcode=None).astype(thousand.dtypes)
    policy = Policy.model_validate(NAME | {"code_source": ["sku", "variant_id"]})
    labels, findings = evaluate(without, store(policy))
    assert (labels["state"] == "publish").sum() == 986
    assert set(labels["code"].dropna()) <= set(without["variant_id"])
    assert findings["check_name"].value_counts().to_dict() == {"title_missing": 14}


def test_a_thousand_foods_in_one_code_form(thousand: pd.DataFrame) -> None:
    policy = Policy.model_validate(NAME | {"label_code_form": "gtin14"})
    labels, _ = evaluate(thousand, store(policy))
    # 1,000 less 14 without a name; the 3 that are no GTIN keep their 8 digits.
    assert labels.loc[labels["state"] == "publish", "code"].str.len().value_counts().to_dict() == {
        14: 983,
        8: 3,
    }
    assert labels["code"].dropna().is_unique


@pytest.fixture(scope="module")
def thousand() -> pd.DataFrame:
    """The foods as read from their webhooks."""
    return frame(*read(shelves(foods())).variants)
