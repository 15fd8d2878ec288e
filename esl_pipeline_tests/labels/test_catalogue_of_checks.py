"""One test per row of the table in data-quality.md, section 2: what passes, what does not, and what the policy changes.

What the database decides (the winner among variants with one code, prices that wait for their window) is tested with
the buffer; here is what evaluation hands to it.
"""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from esl_pipeline.labels.policy import Policy
from esl_pipeline.sources.content import text_of
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline_tests.labels.support import (
    LOCATION,
    MAPPING,
    Judged,
    frame,
    judge,
    judge_all,
    judge_each,
    store,
)
from esl_pipeline_tests.shared_data import SHARED

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
IMAGE = "https://cdn.shopify.com/s/files/tea.png?v=1"
ERROR, WARNING = "error", "warning"


def delivery(**product: Any) -> dict[str, Any]:
    """A products/update with one variant, received NOW."""
    variant = {"id": 1, "title": "Default Title", "barcode": "4006381333931", "price": "1.50"}
    body = {
        "id": 10,
        "title": "Tea",
        "status": "active",
        "updated_at": NOW.isoformat(),
        "variants": [variant],
    }
    return {
        "id": 5,
        "source_system": "shopify",
        "source_store_id": "shop",
        "topic": "products/update",
        "received_at": NOW.isoformat(),
        "triggered_at": NOW.isoformat(),
        "body_sha256": "0" * 64,
        "body_base64": base64.b64encode(json.dumps(body | product).encode()).decode(),
    }


def history(shown: str | None = None, prior: str | None = None) -> str:
    return json.dumps({MAPPING: {"shown": shown, "prior": prior}})


def measurement(quantity: float, unit: str = "G", reference: int = 1, reference_unit: str = "KG") -> str:
    return json.dumps(
        {
            "measuredType": "WEIGHT",
            "quantityValue": quantity,
            "quantityUnit": unit,
            "referenceValue": reference,
            "referenceUnit": reference_unit,
        }
    )


def sold_in(currency: str | None, row: dict[str, Any] | None = None, **policy: Any) -> Judged:
    (judged,) = judge_all(frame(row or {}), store(Policy.model_validate(policy), currency)).values()
    return judged


def test_ids() -> None:
    for right in (str(2**63 - 1), "x", "A-17", "17-4:b"):
        assert judge({"variant_id": right}).findings == {}, right
    for wrong in (
        "0",
        "-1",
        "a--b",
        "a" * 65,
        "1.0",
        "٣",
        "gid://shopify/ProductVariant/1",
        str(2**63),
        None,
    ):
        judged = judge({"variant_id": wrong})
        assert (judged.state, judged.findings) == ("held", {"id_form": ERROR}), wrong
    # The gid is the id: Shopify's own sample has a number beside it that a double has rounded.
    gid = "gid://shopify/ProductVariant/642667041472713922"
    body = {"id": 642667041472714000, "admin_graphql_api_id": gid, "price": "1.50"}
    (variant,) = read_deliveries([delivery(variants=[body])]).variants
    assert variant["variant_id"] == "642667041472713922"
    # One frame with one variant twice cannot be trusted at all.
    (twice,) = judge_all(frame({"variant_id": "1"}, {"variant_id": "1"}), store()).values()
    assert (twice.state, twice.findings) == ("held", {"id_duplicate": ERROR})


def test_product_code_present() -> None:
    assert judge().shown("pc") == "4006381333931"
    for _, judged in judge_each("barcode", (None, "", " \t")):
        assert (judged.state, judged.findings) == ("held", {"code_missing": ERROR})
    assert judge({"barcode": None}, code_source="sku").shown("pc") == "SKU-1"
    in_order = {"code_source": ["sku", "variant_id"]}
    assert judge({"barcode": None}, **in_order).shown("pc") == "SKU-1"
    assert judge({"barcode": None, "sku": None}, **in_order).shown("pc") == "1"
    # Shopify's ids have 14 digits, as cases have: they are no GTINs, and are shown as they are.
    for id_ in ("44000000000001", "44000000000008"):
        own = judge(
            {"variant_id": id_}, code_source="variant_id", allow_case_codes=False, label_code_form="gtin14"
        )
        assert (own.findings, own.shown("pc"), own.row["code_kind"]) == ({}, id_, "internal")
    assert judge({"sku": None}, code_source="sku").findings == {"code_missing": ERROR}


def test_code_form() -> None:
    for right, judged in judge_each("barcode", ("1234_pink", "a", "A.b-c_1", "x" * 32)):
        assert (judged.findings, judged.shown("pc")) == ({}, right)
    assert judge({"barcode": " 4006381333931\n"}).shown("pc") == "4006381333931"
    wrong = (
        "1 2",
        "1,2",
        "x" * 33,
        "1\n2",
        "1\x002",
        "٤٠٠٦٣٨١٣٣٣٩٣١",
        "0123456789⁰⁰⁰",
        "'4006381333931",
        "ä",
    )
    for code, judged in judge_each("barcode", wrong):
        assert (judged.state, judged.findings) == ("held", {"code_form": ERROR}), code


def test_field_31_numbers_that_a_spreadsheet_rewrote_are_held() -> None:
    rewritten = (
        "4006381333931.0",
        "4.00638E12",
        "4.00638e+12",
        "4,00638E+12",
        "4E+12",
        "20653.00",
        "049000050103,0",
    )
    for code, judged in judge_each("barcode", rewritten, code_source=["barcode", "sku"]):
        assert (judged.state, judged.findings) == ("held", {"number_artefact": ERROR}), code
    for code, judged in judge_each("sku", rewritten, code_source="sku"):
        assert (judged.state, judged.findings) == ("held", {"number_artefact": ERROR}), code
    # House codes that only look a little like it.
    for code, judged in judge_each(
        "sku", ("12E3", "1E10", "5E2", "12.50", "1.0.0", "E12", "2.5EL"), code_source="sku"
    ):
        assert (judged.findings, judged.shown("pc")) == ({}, code)


def test_field_31_words_that_mean_nothing_count_as_empty() -> None:
    words = (
        "none",
        "null",
        "n/a",
        "nan",
        "-",
        "0",
        "#N/A",
        "no barcode",
        "None",
        " NULL ",
        "N/A",
        "No  Barcode",
    )
    more = (
        "<NA>",
        "undefined",
        "--",
        "?",
        "n.a.",
        "Does not apply",
        "#REF!",
        "0000000000000",
        "0.0",
        "kein Barcode",
    )
    for word, judged in judge_each("barcode", words + more, code_source=["barcode", "sku"]):
        assert (judged.findings, judged.shown("pc")) == ({}, "SKU-1"), word
    for word, judged in judge_each("barcode", words):
        finding = "code_zero" if word == "0" else "code_missing"
        assert (judged.state, judged.findings) == ("held", {finding: ERROR}), word
    # The SKU is a word too: the same, and no label shows it.
    for word, judged in judge_each("sku", ("none", "N/A"), code_source=["sku", "barcode"]):
        assert (judged.shown("pc"), judged.shown("pi")) == ("4006381333931", ""), word
    # Whole words only.
    for code, judged in judge_each(
        "sku", ("NONE-1", "NA12", "null0", "nan_1", "KEIN1", "0-1"), code_source="sku"
    ):
        assert (judged.findings, judged.shown("pc"), judged.shown("pi")) == ({}, code, code)


def test_field_33_the_only_variant_has_no_option() -> None:
    policy: dict[str, Any] = {"fields": {"f1": "{option1}[ / {option2}]", "f2": "{variant_title}"}}
    alone = judge({"option1": "Default Title", "variant_title": "Default Title"}, **policy)
    assert (alone.shown("f1"), alone.shown("f2")) == ("", "")
    one_of_two = judge({"option1": "Red", "option2": "XL", "variant_title": "Red / XL"}, **policy)
    assert (one_of_two.shown("f1"), one_of_two.shown("f2")) == ("Red / XL", "Red / XL")


def test_gtin_check_digit() -> None:
    kinds = {
        "96385074": "gtin8",
        "614141000036": "gtin12",
        "4006381333931": "gtin13",
        "00614141000036": "gtin14",
    }
    for code, judged in judge_each("barcode", kinds):
        assert (judged.findings, judged.row["code_kind"]) == ({}, kinds[code])
    wrong = [code[:-1] + str((int(code[-1]) + 1) % 10) for code in kinds]
    for code, judged in judge_each("barcode", wrong):
        assert (judged.findings, judged.shown("pc")) == ({"gtin_bad_check_digit": WARNING}, code)
    for _, judged in judge_each("barcode", wrong, require_gtin=True):
        assert (judged.state, judged.findings) == ("held", {"gtin_bad_check_digit": ERROR})
    assert judge({"barcode": "20653"}).row["code_kind"] == "internal"
    assert judge({"barcode": "20653"}, require_gtin=True).findings == {"gtin_required": ERROR}
    for _, judged in judge_each("barcode", ("0", "00000000", "0000000000000")):
        assert (judged.state, judged.findings) == ("held", {"code_zero": ERROR})


def test_leading_zero_lost() -> None:
    for lost, whole in (("36000291452", "036000291452"), ("6385071", "06385071")):
        judged = judge({"barcode": lost})
        assert (judged.findings, judged.shown("pc")) == ({"leading_zero_suspect": WARNING}, lost)
        assert judge({"barcode": lost}, pad_upc=True).shown("pc") == whole
        assert "leading_zero_suspect" not in judge({"barcode": lost}, pad_upc=True).findings
    # Eleven digits that no zero makes valid are a house code, whatever the policy.
    assert judge({"barcode": "36000291453"}).findings == {}
    assert judge({"barcode": "36000291453"}, pad_upc=True).shown("pc") == "36000291453"


def test_one_code_form() -> None:
    upc = {"barcode": "036000291452"}
    assert judge(upc).shown("pc") == "036000291452"
    assert judge(upc, label_code_form="gtin13").shown("pc") == "0036000291452"
    assert judge(upc, label_code_form="gtin14").shown("pc") == "00036000291452"
    for own, judged in judge_each("barcode", ("20653", "036000291453", "C-1"), label_code_form="gtin14"):
        assert judged.shown("pc") == own


def test_upc_e() -> None:
    for short in ("425261", "14252611"):
        judged = judge({"barcode": short})
        assert (judged.findings, judged.shown("pc")) == ({"upc_e": WARNING}, short)
        assert judge({"barcode": short}, require_gtin=True).state == "held"
    assert judge({"barcode": "042100005264"}).findings == {}


def test_gtin14_of_a_case() -> None:
    case = {"barcode": "10614141000415"}
    assert (judge(case).state, judge(case).findings) == ("publish", {"case_code": WARNING})
    refused = judge(case, allow_case_codes=False)
    assert (refused.state, refused.findings) == ("held", {"case_code": ERROR})
    assert judge({"barcode": "00614141000036"}, allow_case_codes=False).findings == {}


def test_restricted_codes() -> None:
    # 02, 04, 2x: scales and house codes; 05, 98, 99: coupons. Each with its right check digit.
    codes = (
        "0212345678909",
        "0412345678903",
        "2135040039753",
        "0512345678900",
        "9812345678902",
        "9912345678909",
    )
    for code, judged in judge_each("barcode", codes):
        assert (judged.state, judged.findings) == ("publish", {"restricted_code": WARNING}), code
        assert judged.row["code_kind"] == "restricted"
    book = judge({"barcode": "9780306406157"}, require_gtin=True)
    assert (book.state, book.findings, book.row["code_kind"]) == ("publish", {}, "isbn")


def test_duplicate_code_in_a_store() -> None:
    old, new = "2020-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"
    rows = (
        {"variant_id": "9", "source_created_at": old},
        {"variant_id": "10", "source_created_at": new},
        {"variant_id": "8", "source_created_at": None},
    )

    def ranked(rule: str) -> list[str]:
        judged = judge_all(frame(*rows), store(Policy.model_validate({"duplicate_rule": rule})))
        # Evaluation knows no other variants: all are published as far as it goes.
        assert {one.state for one in judged.values()} == {"publish"}
        by_rank = {one.row["precedence"]: id_ for id_, one in judged.items()}
        return [by_rank[rank] for rank in sorted(by_rank)]

    assert ranked("lowest_id") == ["8", "9", "10"]
    assert ranked("first_created") == ["9", "10", "8"]
    unranked = judge_all(frame(*rows), store(Policy(duplicate_rule="quarantine")))
    assert all(isinstance(one.row["precedence"], float) for one in unranked.values())  # null: none may win


def test_duplicate_across_stores() -> None:
    """Nothing to check: the same code in two stores of one shop has a label in each."""
    rows = frame({})
    for code in ("S1", "S2"):
        (judged,) = judge_all(rows, store()).values()
        assert (judged.findings, judged.shown("pc")) == ({}, "4006381333931"), code


def test_price_missing_or_not_a_number() -> None:
    for price, judged in judge_each("price", ("1.50", "1", "999999999.99", "0.01", "007.5")):
        assert judged.findings == {}, price
    for _, judged in judge_each("price", (None, "")):
        assert (judged.state, judged.findings) == ("held", {"price_missing": ERROR})
    wrong = (
        "NaN",
        "Infinity",
        "-1",
        "-0.00",
        "abc",
        "1e3",
        "1,50",
        "١.٥٠",
        "1.50\n",
        " 1",
        "+1",
        "1.",
        "1234567890",
    )
    for price, judged in judge_each("price", wrong):
        assert (judged.state, judged.findings) == ("held", {"price_form": ERROR}), price


def test_price_zero() -> None:
    zeros = ("0", "0.00", "00.0000")
    for _, judged in judge_each("price", zeros):
        assert (judged.state, judged.findings) == ("held", {"price_zero": ERROR})
    for _, judged in judge_each("price", zeros, zero_price="allow"):
        assert (judged.findings, judged.shown("pp")) == ({"price_zero": WARNING}, "0.00")
    assert judge({"price": "0.01"}).findings == {}


def test_decimals_against_the_currency() -> None:
    fits = [
        ("EUR", "8.9", "8.90"),
        ("EUR", "1.500", "1.50"),
        ("JPY", "100.00", "100"),
        ("KWD", "1.250", "1.250"),
    ]
    for currency, price, shown in fits:
        judged = sold_in(currency, {"price": price})
        assert (judged.findings, judged.shown("pp")) == ({}, shown)
    # The label server keeps two decimals: a third one that says something is held, not rounded.
    for unknown_or_not, price in (("EUR", "1.505"), ("JPY", "100.50"), ("KWD", "1.255"), (None, "1.505")):
        judged = sold_in(unknown_or_not, {"price": price})
        assert (judged.state, judged.findings) == ("held", {"price_decimals": ERROR})
    assert sold_in(None, {"price": "100.50"}, expected_currency="JPY").state == "held"
    finer = judge({"price": "1.00", "compare_at_price": "1.999"}, show_compare_at="if_higher")
    assert (finer.findings, finer.shown("pop")) == ({"compare_at_decimals": WARNING}, "")


def test_currency() -> None:
    assert sold_in("EUR", expected_currency="EUR").findings == {}
    mismatch = sold_in("USD", expected_currency="EUR")
    assert (mismatch.state, mismatch.findings) == ("held", {"currency_mismatch": ERROR})
    assert sold_in("USD").findings == {}
    unknown = sold_in("ABC")
    assert (unknown.state, unknown.findings) == ("held", {"currency_unknown": ERROR})
    with pytest.raises(ValidationError, match="ISO 4217"):
        Policy(expected_currency="ABC")
    # Until the shop's record has been read its currency is not known.
    assert sold_in(None, expected_currency="EUR").findings == {}


def test_tax() -> None:
    for shop, note, expected in (
        (True, True, {}),
        (False, False, {}),
        (True, None, {}),
        (None, True, {}),
        (False, True, {"tax_differs": WARNING}),
        (True, False, {"tax_differs": WARNING}),
    ):
        (judged,) = judge_all(frame({}), store(Policy(price_includes_tax=note), taxes_included=shop)).values()
        assert (judged.state, judged.findings) == ("publish", expected)


def test_price_jump() -> None:
    for shown, price in (("10.00", "15.00"), ("10.00", "5.00"), ("10.00", "10.00"), (None, "999.00")):
        assert judge({"price": price, "history": history(shown)}).findings == {}, (shown, price)
    for shown, price in (("10.00", "100.00"), ("10.00", "1.00"), ("10.00", "15.01"), ("10.00", "4.99")):
        judged = judge({"price": price, "history": history(shown)})
        assert (judged.findings, judged.shown("pp")) == ({"price_jump": WARNING}, price)
    other_store = json.dumps({"another mapping": {"shown": "1.00", "prior": None}})
    assert judge({"price": "100.00", "history": other_store}).findings == {}


def test_compare_at() -> None:
    reduced = {"price": "8.00", "compare_at_price": "10.00"}
    assert judge(reduced).findings == {}
    assert judge(reduced).shown("pop") == ""
    assert judge(reduced, show_compare_at="if_higher").shown("pop") == "10.00"
    for low in ("0", "0.00", "7.99", "8.00"):
        judged = judge(reduced | {"compare_at_price": low}, show_compare_at="if_higher")
        assert (judged.findings, judged.shown("pop")) == ({"compare_at_low": WARNING}, ""), low
    odd = judge(reduced | {"compare_at_price": "ten"}, show_compare_at="if_higher")
    assert (odd.findings, odd.shown("pop")) == ({"compare_at_form": WARNING}, "")

    proven = {"show_compare_at": "if_prior_30d_ok"}
    for prior in ("10.00", "10.01"):
        judged = judge(reduced | {"history": history("8.00", prior)}, **proven)
        assert (judged.findings, judged.shown("pop")) == ({}, "10.00")
    for unproven in (history("8.00", "9.99"), history("8.00", None), None):
        judged = judge(reduced | {"history": unproven}, **proven)
        assert (judged.findings, judged.shown("pop")) == ({"compare_at_unproven": WARNING}, "")


def test_title_empty() -> None:
    assert judge({"title": "0"}).shown("pn") == "0"
    for empty, judged in judge_each("title", (None, "", " \u3000", "\u202e", "<b></b>", "\x00", "🎉")):
        assert (judged.state, judged.findings) == ("held", {"title_missing": ERROR}), empty
    assert judge({"title": "🎉"}, emoji="keep").shown("pn") == "🎉"


def test_title_text() -> None:
    shown = {
        "Salt &amp; Pepper": "Salt & Pepper",
        "&amp;quot;Tea&amp;quot;": "&quot;Tea&quot;",
        "<b>Tea</b>": "Tea",
        "Te\x07a\r\n pot": "Te a pot",
        "cafe\u0301": "café",
        "a\u202eb\u2066c\u2069": "abc",
        "Tea 🎉": "Tea",
        "緑茶": "緑茶",
        "{title}%s[x]": "{title}%s[x]",
    }
    for title, judged in judge_each("title", shown):
        assert (judged.findings, judged.shown("pn")) == ({}, shown[title])
    assert judge({"title": "Tea 🎉"}, emoji="keep").shown("pn") == "Tea 🎉"

    # NUL comes in as U+FFFD, since Postgres cannot hold it; JSON with half a surrogate pair is refused as a whole.
    (read,) = read_deliveries([delivery(title="a\x00b")]).products
    judged = judge({"title": read["title"]})
    assert (judged.state, judged.findings) == ("held", {"title_unreadable": ERROR})
    half = read_deliveries([delivery(title="a\ud800b")])
    assert ([event["state"] for event in half.events], half.variants) == (["unusable"], [])
    assert judge({"title": text_of("a\ud800b")}).findings == {"title_unreadable": ERROR}

    cut = judge({"title": "Crème brûlée"}, title_max_length=6)
    assert (cut.findings, cut.shown("pn")) == ({"title_cut": WARNING}, "Crème")
    family = "👨‍👩‍👧‍👦👍🏽x"
    assert judge({"title": family}, title_max_length=2, emoji="keep").shown("pn") == family[:-1]
    assert judge({"title": "Crème"}, title_max_length=5).findings == {}


def test_variant_title() -> None:
    assert judge({"variant_title": "Default Title"}).shown("pn") == "Tea"
    assert judge({"variant_title": None}).shown("pn") == "Tea"
    assert judge({"variant_title": " 50  g "}).shown("pn") == "Tea - 50 g"
    named = judge({"variant_title": "50 g", "vendor": "Me"}, title_template="[{vendor} ]{title}")
    assert named.shown("pn") == "Me Tea"
    assert judge({"variant_title": "50 g", "title": None}, title_template="{title}").state == "held"


def test_image() -> None:
    assert judge({"image_url": IMAGE}).shown("pim") == ""
    assert judge({"image_url": None}).findings == {}
    assert judge({"image_url": IMAGE}, send_images=True).shown("pim") == IMAGE
    missing = judge({"image_url": None}, send_images=True)
    assert (missing.findings, missing.shown("pim")) == ({"image_missing": WARNING}, "")
    refused = (
        IMAGE.replace("https", "http"),
        "https://evil.example/cdn.shopify.com/",
        "https://cdn.shopify.com.evil.example/a.png",
        "https://user@cdn.shopify.com/a.png",
        "https://cdn.shopify.com:8080/a.png",
        "https://cdn.shopify.com/a b.png",
        "https://cdn.shopify.com/a.png\n",
        "javascript:alert(1)",
    )
    for url, judged in judge_each("image_url", refused, send_images=True):
        assert (judged.findings, judged.shown("pim")) == ({"image_refused": WARNING}, ""), url
    for _, judged in judge_each("image_url", refused):
        assert (judged.findings, judged.shown("pim")) == ({}, "")
    own = judge({"image_url": "https://img.example/a"}, send_images=True, image_hosts=["img.example"])
    assert (own.findings, own.shown("pim")) == ({}, "https://img.example/a")


def test_status() -> None:
    def state(status: str | None, published: str | None = "2026-01-01T00:00:00+00:00", **policy: Any) -> str:
        return judge({"status": status, "published_at": published}, **policy).state

    assert [state(s) for s in ("active", "unlisted", "archived", "draft")] == [
        "publish",
        "publish",
        "withdrawn",
        "withdrawn",
    ]
    assert state("archived", statuses=["active", "archived"]) == "publish"
    assert state("unlisted", statuses=["active"]) == "withdrawn"
    assert [state("draft", on_unpublish=choice) for choice in ("remove", "keep", "blank")] == [
        "withdrawn",
        "kept",
        "blank",
    ]
    assert state("active", published=None) == "publish"
    assert state("active", published=None, require_published=True) == "withdrawn"
    with pytest.raises(ValidationError, match="statuses"):
        Policy.model_validate({"statuses": ["draft"]})
    for _, judged in judge_each("status", ("brand new", None)):
        assert (judged.state, judged.findings) == ("publish", {"status_unknown": WARNING})
    # What is not on the shelf needs no advice.
    assert judge({"status": "draft", "price": None, "barcode": None, "title": None}).findings == {}


def test_product_deleted() -> None:
    for choice, state in (("remove", "withdrawn"), ("keep", "kept"), ("blank", "blank")):
        judged = judge({"removed": True, "price": None}, on_delete=choice)
        assert (judged.state, judged.findings, judged.label) == (state, {}, None)
    # on_unpublish is another matter.
    assert judge({"removed": True}, on_unpublish="keep").state == "withdrawn"
    assert judge({"removed": False}, on_delete="keep").state == "publish"


def test_gift_cards_and_what_is_excluded() -> None:
    assert judge({"gift_card": True}).state == "withdrawn"
    assert judge({"product_type": "Gift Cards"}).state == "withdrawn"
    assert judge({"gift_card": True}, exclude={"gift_cards": False}).state == "publish"
    row = {"product_type": "Tea", "vendor": "Me", "tags": "new, sample, sale"}
    for excluded in ({"product_types": ["tea"]}, {"vendors": [" ME "]}, {"tags": ["Sample"]}):
        assert judge(row, exclude=excluded).state == "withdrawn", excluded
        assert judge({}, exclude=excluded).state == "publish", excluded
    for other in ({"product_types": ["te"]}, {"vendors": ["Tea"]}, {"tags": ["samples", "new, sample"]}):
        assert judge(row, exclude=other).state == "publish", other
    # An excluded variant's label goes, whatever happens to deleted ones.
    assert judge(row, exclude={"tags": ["sale"]}, on_delete="keep", on_unpublish="keep").state == "withdrawn"


def test_inventory_at_several_locations() -> None:
    two = {"stock": json.dumps({LOCATION: 3, "8": 90})}
    here = {"stock_field": "kc", "location_id": LOCATION}
    assert judge(two, **here).shown("kc") == "3"
    assert judge(two, stock_field="qty", location_id="8").shown("qty") == "90"
    assert judge(two, location_id=LOCATION, fields={"f1": "{stock} left"}).shown("f1") == "3 left"
    label = judge(two).label
    assert label is not None
    assert label.keys().isdisjoint({"kc", "qty"})
    for unknown in (json.dumps({"8": 90}), json.dumps({LOCATION: None}), None):
        judged = judge({"stock": unknown}, **here)
        assert (judged.findings, judged.shown("kc")) == ({"stock_missing": WARNING}, "")
        assert judge({"stock": unknown}).findings == {}
    assert judge({"stock": json.dumps({LOCATION: 0})}, **here).shown("kc") == "0"
    with pytest.raises(ValidationError, match="location_id"):
        Policy(stock_field="kc")


def test_unit_price() -> None:
    fields = {"f1": "{unit_price}/{unit_price_per}"}

    def of(pack: str | None, stated: str | None = None, mode: str = "eu", price: str = "2.50") -> Any:
        row = {"price": price, "unit_price_measurement": pack, "unit_price": stated}
        return judge(row, unit_price_mode=mode, fields=fields)

    assert of(measurement(250)).findings == {}
    assert of(measurement(250)).shown("f1") == "10.00/kg"
    assert of(measurement(250, reference=100, reference_unit="G")).shown("f1") == "10.00/kg"
    assert of(measurement(250, reference=100, reference_unit="G"), mode="uk").shown("f1") == "1.00/100 g"
    assert of(measurement(16, "OZ", reference_unit="LB"), mode="us").shown("f1") == "2.50/lb"

    # Shopify's own figure agrees to rounding, or the finding says that ours is shown.
    assert of(measurement(250), stated="10.01").findings == {}
    wrong = of(measurement(250), stated="10.02")
    assert (wrong.findings, wrong.shown("f1")) == ({"unit_price_differs": WARNING}, "10.00/kg")

    for none in (None, measurement(250, reference_unit="L"), measurement(250, unit="UNKNOWN")):
        missing = of(none)
        assert (missing.findings, missing.shown("f1")) == ({"unit_price_missing": WARNING}, "/")
    for nothing in (0, -1):
        assert of(measurement(nothing)).findings == {"unit_price_quantity": ERROR}
        assert of(measurement(nothing)).state == "held"

    # Off: no field shows it, and no finding asks for it.
    assert judge({"unit_price_measurement": measurement(0)}).findings == {}
    with pytest.raises(ValidationError, match="unit_price_mode"):
        Policy.model_validate({"fields": fields})


def test_deposit() -> None:
    """Excluded from both prices: a deposit that the shop sells as a variant of its own type has no label."""
    fields = {"fields": {"f1": "{unit_price}"}, "unit_price_mode": "uk"}
    bottle = {"price": "1.00", "unit_price_measurement": measurement(500)}
    assert judge(bottle, **fields).shown("pp") == "1.00"
    assert judge(bottle, **fields).shown("f1") == "2.00"
    deposit = {"product_type": "Deposit", "price": "0.25"}
    assert judge(deposit, exclude={"product_types": ["deposit"]}).state == "withdrawn"
    assert judge(deposit).state == "publish"


def test_change_timing() -> None:
    window = {"opens": "22:00", "closes": "06:00", "time_zone": "Europe/Berlin"}
    assert Policy.model_validate({"raise_window": window}).raise_window is not None
    assert Policy().raise_window is None
    for wrong in (
        {"opens": "24:00"},
        {"closes": "6:00"},
        {"time_zone": "Berlin"},
        {"time_zone": "../etc"},
        {"days": 1},
    ):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            Policy.model_validate({"raise_window": window | wrong})
    # The window decides when, not what: the label is the same.
    raised = {"price": "1.60", "history": history("1.50")}
    assert judge(raised, raise_window=window) == judge(raised)


def test_updated_at() -> None:
    def reason(updated_at: Any) -> str | None:
        facts = read_deliveries([delivery(updated_at=updated_at)])
        (event,) = facts.events
        assert (event["state"] == "done") == bool(facts.variants)
        reason: str | None = event.get("reason")
        return reason

    assert reason(NOW.isoformat()) is None
    assert reason((NOW + timedelta(minutes=10)).isoformat()) is None
    (read,) = read_deliveries([delivery(updated_at="2026-11-22T16:00:00+05:00")]).products
    assert read["version_at"] == "2026-11-22T11:00:00+00:00"
    for without_zone in ("2026-11-22T12:00:00", "yesterday", None, 1763812800):
        assert reason(without_zone) == "updated_at is not a time with a zone"
    assert "is in the future" in (reason((NOW + timedelta(minutes=10, seconds=1)).isoformat()) or "")


TESTS: dict[str, Callable[[], None]] = {
    "ids": test_ids,
    "product code present": test_product_code_present,
    "code form": test_code_form,
    "GTIN-8/12/13/14 check digit": test_gtin_check_digit,
    "leading zero lost (11 or 7 digits whose padded form is valid)": test_leading_zero_lost,
    "one code form": test_one_code_form,
    "UPC-E (6 / 7 / 8 digits)": test_upc_e,
    "GTIN-14 indicator 1–8 (a case)": test_gtin14_of_a_case,
    "restricted 02, 04, 2x, coupons 05, 98–99 (doc: Prisjakt's GTIN list); ISBN 978/979": test_restricted_codes,
    "duplicate code in a store (variants, products)": test_duplicate_code_in_a_store,
    "duplicate across stores": test_duplicate_across_stores,
    "price missing / not a number / NaN / negative": test_price_missing_or_not_a_number,
    "price 0": test_price_zero,
    "decimals vs currency": test_decimals_against_the_currency,
    "currency": test_currency,
    "tax": test_tax,
    "price jump (×10, /10, > 50 %)": test_price_jump,
    "compare_at": test_compare_at,
    "title empty": test_title_empty,
    "title text": test_title_text,
    "variant title": test_variant_title,
    "image": test_image,
    "status draft / archived / unlisted, published_at null": test_status,
    "product deleted": test_product_deleted,
    "gift card, component bundles, not-tracked": test_gift_cards_and_what_is_excluded,
    "inventory at several locations": test_inventory_at_several_locations,
    "unit price (per kg / l / m / item)": test_unit_price,
    "deposit (UK)": test_deposit,
    "change timing": test_change_timing,
    "updated_at": test_updated_at,
}


@pytest.mark.shared_data("reference/data-quality.md")
def test_every_row_of_the_table_has_its_test() -> None:
    table = SHARED / "reference" / "data-quality.md"
    section = table.read_text(encoding="utf-8").split("\n## 2.")[1].split("\n## ")[0]
    rows = re.findall(r"^\| *(.+?) *\|", section, re.MULTILINE)[2:]
    assert len(rows) == len(set(TESTS.values())) == 30
    assert set(rows) == set(TESTS)
