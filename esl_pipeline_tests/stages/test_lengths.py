"""How long what comes from outside may be: what is longer is cut or refused, with a finding or a reason."""

import base64
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from starlette.datastructures import Headers

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands.status import print_status
from esl_pipeline.labels.lengths import CUT, LENGTHS
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline.stages import inbox
from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.memory import peak_memory
from esl_pipeline_tests.world import RUN, SHOP, STORE, World, product, variant, when

pytestmark = pytest.mark.long

HOSTILE = "hostile-shop.myshopify.com"
MOST_MIB = 250


def delivered(body: Any, *, shop: str = SHOP) -> dict[str, Any]:
    """A delivery as the receiver makes it of a signed body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"x-shopify-topic": "products/update", "x-shopify-shop-domain": shop}
    return delivery("products/update", Headers(headers), raw, datetime.now(UTC))


def claimed(body: Any) -> dict[str, Any]:
    """A delivery as the buffer gives it to the reader."""
    return delivered(body) | {"id": 1, "received_at": when(3600)}


@pytest.mark.parametrize("variants", [250, 280])
def test_s30_a_title_of_a_million_letters_costs_its_shop_a_finding_and_others_nothing(
    world: World, variants: int
) -> None:
    world.map(shop=HOSTILE, store="S9")
    world.map()
    world.buffer.ping()  # its connection is measured
    huge = product(1, title="x" * 1_000_000, variants=[variant(n) for n in range(1, variants + 1)])
    world.update(huge, shop=HOSTILE)
    world.update(product(501, variants=[variant(501, price="2.50")]))
    began = time.monotonic()
    with peak_memory(world.dsn) as peak:
        for _ in range(2):  # a body this long is a round's portion
            world.round(batch_size=1000)
    assert time.monotonic() - began < 30
    assert world.prices(STORE) == {"C-501": "2.50"}
    assert max(peak.process, peak.backend) < MOST_MIB
    label = world.labels("S9")["C-1"]
    assert len(world.labels("S9")) == variants
    assert label["pn"] == "x" * 254 + "…"
    assert ("1", "text_cut") in world.findings("warning")


def test_s30_tags_of_a_product_with_all_its_variants_are_no_hundred_megabytes(world: World) -> None:
    world.map(shop=HOSTILE, store="S9")
    world.buffer.ping()
    tags = ", ".join(f"tag {n:04d} é" for n in range(1_000))
    world.update(
        product(1, tags=tags, variants=[variant(n) for n in range(1, 2_049)], body_html="<" * 1_000_000),
        shop=HOSTILE,
    )
    with peak_memory(world.dsn) as peak:
        read_inbox(world.buffer, run_id=RUN)
        variants, mappings = due_variants(world.buffer)
        stage(world.buffer, variants, validate(variants, mappings))
    assert max(peak.process, peak.backend) < MOST_MIB
    # Pages of due variants are bounded by their text: 2,048 times 13 kB are more than one.
    assert 0 < len(variants) < 1_000
    assert set(variants["tags"].str.len()) == {10_000}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"variants": [{"id": n} for n in range(1, 2_050)]},
            "the body lists 2,049 variants, and a product has at most 2,048 variants",
        ),
        (
            {"variant_gids": [{}] * 2_049},
            "the body lists 2,049 variant_gids, and a product has at most 2,048 variants",
        ),
        (
            {"metafields": [{}] * 100_000},
            "the body has more than 100,000 objects and lists, as no product has",
        ),
    ],
    ids=["variants", "variants by name", "parts"],
)
def test_s30_a_body_of_more_than_a_product_has_is_kept_with_its_reason(
    world: World, fields: dict[str, Any], reason: str
) -> None:
    world.map(shop=HOSTILE, store="S9")
    kept = delivered(product(1) | fields, shop=HOSTILE)
    assert (kept["state"], kept["reason"]) == ("unusable", reason)
    # The reader does not trust that the receiver has looked.
    world.buffer.inbox_add([kept | {"state": "ready", "reason": None}])
    (event,) = read_inbox(world.buffer, run_id=RUN)
    assert (event["outcome"], event["reason"]) == ("unusable", reason)
    (row,) = world.sql("select octet_length(body) > 0 as is_kept from esl.webhook_inbox")
    assert row["is_kept"]


def test_s30_every_text_has_a_length_and_a_finding_when_it_is_cut(world: World) -> None:
    world.map(settings={"code_source": "variant_id", "fields": {"f1": "{vendor}", "f2": "{option1}"}})
    long = "y" * 300_000
    texts = ("vendor", "product_type", "handle", "tags", "title")
    own = {**dict.fromkeys(("sku", "barcode", "option1", "option2", "option3"), long), "title": long}
    images = [{"id": 1, "src": f"https://cdn.shopify.com/{long}"}]
    world.settle(product(1, variants=[variant(1) | own], images=images, **dict.fromkeys(texts, long)))
    (row,) = world.sql("select * from esl.products")
    lengths = {name: len(row[name]) for name in LENGTHS if name in row and row[name] and row[name][-1] == CUT}
    not_said = {"price", "compare_at_price", "status", "published_at", "source_created_at"}
    assert lengths == {
        name: most
        for name, most in LENGTHS.items()
        if name not in not_said | {"unit_price", "currency", "time_zone", "origin"}
    }
    (finding,) = [f for f in world.buffer.findings() if f["check_name"] == "text_cut"]
    assert set(finding["value"].split(", ")) == set(lengths)
    label = world.labels()["1"]
    assert (label["f1"], label["f2"], label["pim"]) == ("y" * 254 + CUT, "y" * 254 + CUT, "")


@pytest.mark.parametrize("price", ["9" * 1_000_000, "1." + "0" * 1_000_000, 1e300, True, [["1"] * 9]])
def test_s30_a_price_that_is_none_is_held_and_short(world: World, price: Any) -> None:
    world.map()
    world.settle(product(1, variants=[variant(1, price=price)]))
    assert ("1", "price_form") in world.findings()
    (row,) = world.sql("select length(price) as n from esl.products")
    assert row["n"] <= 45
    assert world.labels() == {}


def test_s30_a_number_beyond_all_numbers_is_no_json(world: World) -> None:
    raw = b'{"id": 1, "updated_at": "x", "variants": [{"id": 1, "price": 1e400}]}'
    assert "not JSON" in str(delivered(raw)["reason"])


def test_s30_a_template_that_multiplies_a_text_gives_a_bearable_label(world: World) -> None:
    fields = {"f1": "{title} " * 60, "extend": {"e1": "{tags}{tags}"}}
    world.map(settings={"title_template": "{title} " * 60, "fields": fields})
    world.settle(product(1, title="t" * 200, tags=", ".join(map(str, range(2_000)))))
    label = world.labels()["C-1"]
    assert [len(label[name]) for name in ("pn", "f1")] == [500, 500]
    assert len(label["extend"]["e1"]) == 500
    (finding,) = [f for f in world.buffer.findings() if f["check_name"] == "field_cut"]
    assert finding["value"] == "pn, f1, extend.e1"


def test_s30_thousands_of_images_are_no_matter_of_minutes(world: World) -> None:
    images = [{"id": n, "src": f"https://x/{n}", "variant_ids": [*range(1, 2_049)]} for n in range(1, 101)]
    variants = [{"id": n, "image_id": 100 if n == 7 else None} for n in range(1, 2_049)]
    began = time.process_time()
    facts = read_deliveries([claimed(product(1, variants=variants, images=images))])
    assert time.process_time() - began < 5
    assert {row["image_url"] for row in facts.variants} == {"https://x/1"}


def test_s30_merges_are_split_by_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.map()
    monkeypatch.setattr(inbox, "MERGE_BYTES", 5_000)
    world.update(*[product(n, vendor="v" * 200) for n in range(1, 21)])
    sizes = []
    call = world.buffer.variants_merge

    def merge(**p: Any) -> Any:
        sizes.append(len(json.dumps([p["products"], p["variants"]])))
        return call(**p)

    monkeypatch.setattr(world.buffer, "variants_merge", merge)
    events = read_inbox(world.buffer, run_id=RUN)
    assert [event["outcome"] for event in events] == ["done"] * 20
    assert len(sizes) > 2 and max(sizes) < 7_000
    world.settle()
    assert len(world.labels()) == 20


def test_s30_what_the_buffer_cannot_take_dies_alone_and_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.map(shop=HOSTILE, store="S9")
    world.map()
    call = world.buffer.variants_merge

    def merge(**p: Any) -> Any:
        if any(row["title"] == "too much" for row in p["products"]):
            raise BufferError("total size of jsonb array elements exceeds the maximum", code="54000")
        return call(**p)

    monkeypatch.setattr(world.buffer, "variants_merge", merge)
    world.update(product(1), product(2, title="too much"), product(3), shop=HOSTILE)
    world.update(product(501))
    world.settle(batch_size=1000)
    assert world.inbox() == ["done", "dead", "done", "done"]
    (dead,) = world.sql("select reason from esl.webhook_inbox where state = 'dead'")
    assert dead["reason"].startswith("the buffer cannot take it: total size of jsonb")
    assert set(world.labels("S9")) == {"C-1", "C-3"} and set(world.labels()) == {"C-501"}
    monkeypatch.undo()
    assert world.buffer.redrive()["deliveries"] == 1
    world.settle()
    assert "C-2" in world.labels("S9")


def test_s30_a_shop_whose_deliveries_cannot_be_read_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(ShopifySource):
        @classmethod
        def read_deliveries(cls, deliveries: Sequence[Any]) -> Facts:
            if deliveries[0]["source_store_id"] == HOSTILE:
                raise KeyError("a defect that one shop brings out")
            return super().read_deliveries(deliveries)

    monkeypatch.setitem(SOURCES, "shopify", Breaks)
    world.map(shop=HOSTILE, store="S9")
    world.map()
    world.update(product(1), shop=HOSTILE)
    world.update(product(501))
    assert isinstance(world.round().failure, KeyError)
    assert world.inbox() == ["leased", "done"]
    world.settle()
    assert set(world.labels()) == {"C-501"}


# --- what waits for a store


def waiting(world: World) -> dict[str, tuple[int, int]]:
    """Of each shop the deliveries that wait and their bytes: as counted, after a look that it is right."""
    rows = world.sql(
        "select source_store_id as shop, sum(deliveries)::int as n, sum(bytes)::int as bytes"
        " from esl.shop_waiting group by 1"
    )
    counted = {row["shop"]: (row["n"], row["bytes"]) for row in rows if row["n"] or row["bytes"]}
    rows = world.sql(
        "select source_store_id as shop, count(*)::int as n, coalesce(sum(octet_length(body)), 0)::int as bytes"
        " from esl.webhook_inbox where state in ('ready', 'leased') group by 1"
    )
    assert counted == {row["shop"]: (row["n"], row["bytes"]) for row in rows}
    return counted


@pytest.mark.parametrize(
    ("size", "cap"),
    [(5_000, {"unmapped_bytes": 64_000}), pytest.param(4_990_000, {}, marks=pytest.mark.slow)],
    ids=["5 kB", "5 MB"],
)
def test_s35_thirty_bodies_of_a_shop_without_a_store_do_not_all_wait(
    world: World, size: int, cap: dict[str, int]
) -> None:
    world.map()

    def add(kept: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = world.buffer.transport.call("esl_inbox_add", {"deliveries": [kept]} | cap)
        return answer

    answers = [add(delivered(product(n, body_html="x" * size), shop=HOSTILE)) for n in range(1, 31)]
    most = cap.get("unmapped_bytes", 64_000_000)
    n, bytes_ = waiting(world)[HOSTILE]
    assert n in (10, 11, 12) and most - 1.3 * size < bytes_ <= most
    assert [answer["inserted"] for answer in answers] == [1] * n + [0] * (30 - n)
    assert {answer.get("refused") for answer in answers[n:]} == {
        f"no store is mapped for the shop, and no more than {most // 1_000_000} MB or 20000 deliveries of it may wait"
    }
    assert answers[-1]["waiting"] == {"deliveries": n, "bytes": bytes_}
    # A copy of what is kept is a duplicate and no refusal; another shop's deliveries are kept.
    again = delivered(product(1, body_html="x" * size), shop=HOSTILE)
    assert "refused" not in add(again | {"webhook_id": kept_id(world)})
    assert add(delivered(product(501)))["inserted"] == 1
    (shop,) = [s for s in world.buffer.status()["shops"] if s["source_store_id"] == HOSTILE]
    assert (shop["not_kept"], shop["waiting"], shop["waiting_bytes"]) == (30 - n, n, bytes_)
    output = StringIO()
    print_status(Console(file=output, width=200), world.buffer.status())
    assert f"its deliveries wait ({30 - n} were not kept, because too much waited)" in output.getvalue()


def kept_id(world: World) -> str:
    (row,) = world.sql("select webhook_id from esl.webhook_inbox order by id limit 1")
    return str(row["webhook_id"])


def test_s35_what_waits_too_long_for_a_store_goes_and_is_counted(world: World) -> None:
    world.map()
    world.update(product(1), product(2), shop=HOSTILE)
    world.sql("update esl.webhook_inbox set received_at = now() - interval '31 days'")
    world.update(product(3), shop=HOSTILE)
    world.update(product(501))
    aged = "update esl.webhook_inbox set received_at = received_at - interval '31 days' where source_store_id = %s"
    world.sql(aged, SHOP)
    done = world.buffer.housekeep(keep_bodies_days=30)
    assert (done["unmapped"], done["more"]) == (2, False)
    assert waiting(world)[HOSTILE][0] == 1
    (shop,) = [s for s in world.buffer.status()["shops"] if s["source_store_id"] == HOSTILE]
    assert (shop["expired"], shop["waiting"]) == (2, 1)
    assert waiting(world)[SHOP][0] == 1  # for a drain, however long
    world.sql(aged.replace("- interval", "+ interval"), SHOP)
    world.map(shop=HOSTILE, store="S9")
    world.settle()
    assert (set(world.labels("S9")), set(world.labels())) == ({"C-3"}, {"C-501"})


def test_s35_what_waits_is_counted_whatever_becomes_of_it(world: World) -> None:
    world.map()
    world.update(product(1), product(2))
    assert waiting(world)[SHOP][0] == 2
    world.buffer.inbox_claim(run_id=RUN, limit=1)
    assert waiting(world)[SHOP][0] == 2  # on its way
    world.expire_leases()
    world.buffer.inbox_claim(run_id=RUN, max_attempts=1)
    assert waiting(world)[SHOP][0] == 1  # given up after its attempts
    assert world.buffer.redrive()["deliveries"] == 1
    assert waiting(world)[SHOP][0] == 2
    world.expire_leases()
    world.settle(product(3))
    assert waiting(world) == {}
    # Unusable at first, ready once its good copy has come.
    body = product(4)
    bad = delivered(body) | {"state": "unusable", "reason": "replay suspected: a header", "said_at": None}
    assert world.buffer.inbox_add([bad])["waiting"] == {"deliveries": 0, "bytes": 0}
    assert world.buffer.inbox_add([bad | {"state": "ready", "reason": None}])["waiting"]["deliveries"] == 1
    assert waiting(world)[SHOP][0] == 1


def test_s35_an_unusable_body_of_a_shop_without_a_store_is_not_kept(world: World) -> None:
    world.buffer.inbox_add([delivered(b"[" * 1_000_000, shop=HOSTILE)])
    (row,) = world.sql("select state, body, length(body_sha256) as hash from esl.webhook_inbox")
    assert row == {"state": "unusable", "body": None, "hash": 64}


def test_s39_a_body_longer_than_any_webhook_is_refused_by_the_table(world: World) -> None:
    world.map()
    kept = delivered(product(1)) | {"body_base64": base64.b64encode(bytes(10_000_001)).decode()}
    with pytest.raises(BufferError) as refused:
        world.buffer.inbox_add([kept])
    assert refused.value.code == "23514"
