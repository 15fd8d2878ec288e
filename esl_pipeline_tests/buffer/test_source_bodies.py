"""Bodies that a receiver sends on unread are judged in SQL by the rules that the Python receiver has."""

import base64
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.labels.lengths import MOST_PARTS, MOST_VARIANTS
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS, delivery
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import BODIES, CANARY, LEVEL, LIFECYCLE_BODIES, PRODUCT, SHOP, signed
from esl_pipeline_tests.shared_data import DATA

OTHER = "other-shop.myshopify.com"
UNJUDGED = dict.fromkeys(("state", "reason", "said_at"))
IDS = (1, 0, -1, True, None, "1", 1.0, 1.5, 2**53 + 1, 2**63 - 1, 2**63, 2**64, {"$ne": 1}, [1])
TIMES = (
    *("2026-03-01T10:00:00-05:00", "2026-03-01T10:00:00Z", "2026-03-01 10:00:00.123456789+00:00"),
    *("2026-03-01T10:00:00", "2026-02-30T10:00:00Z", "now", "infinity", "yesterday", "", None, 5),
    (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
)
HOSTILE = (
    *(
        b"",
        b"null",
        b"1",
        b'"x"',
        b"[]",
        b"[1]",
        b"{}",
        b"{",
        b"\xff",
        b"\x00",
        b'{"id":NaN}',
        b'{"id":1}{"id":1}',
    ),
    *(b'\xef\xbb\xbf{"id":1}', b'{"id":1,"x":"\\ud800"}', b'{"id":1,"id":2}', b' \n{"id":1}\t', b'{"id":01}'),
    *(b'{"id":1,"x":"\\u0000"}', b'{"id":1,"x":"\\\\u0000"}', b'{"id":1,"\\u0000":"\\u0000\\u0000"}'),
    *(b"[" * 5_000, b"[" * (MOST_PARTS + 1)),
    b'{"id":1,"id":632910392,"updated_at":"x","variants":[],"title":"\\u0000\\u202e"}',
)


def bodies() -> Iterator[bytes]:
    """What a hostile or broken shop could sign."""
    yield from HOSTILE
    for body in (*BODIES.values(), *LIFECYCLE_BODIES.values(), {**PRODUCT, "new": [{}]}):
        yield json.dumps(body).encode()
    for id in IDS:
        yield from (json.dumps(body).encode() for body in ({"id": id}, {**PRODUCT, "id": id}))
        yield json.dumps({"inventory_item_id": id, "location_id": 1}).encode()
    for time in TIMES:
        yield json.dumps({**PRODUCT, "updated_at": time}).encode()
        yield json.dumps({**LIFECYCLE_BODIES["app/uninstalled"], "updated_at": time}).encode()
    for variants in (None, {}, [], [{}] * MOST_VARIANTS, [{}] * (MOST_VARIANTS + 1)):
        yield json.dumps({**PRODUCT, "variants": variants}).encode()
        yield json.dumps({**PRODUCT, "variant_gids": variants}).encode()
    for shop in (OTHER, SHOP.upper(), "evil.com", "\u212aiosk.myshopify.com", SHOP + "\n", None, 5):
        for topic, field in (("shop/redact", "shop_domain"), ("app/uninstalled", "myshopify_domain")):
            yield json.dumps({**LIFECYCLE_BODIES[topic], field: shop}).encode()
    yield json.dumps({**LEVEL, "inventory_item_id": 2**53 + 1}).encode()


def by_python(topic: str, raw: bytes) -> dict[str, Any]:
    return delivery(topic, Headers(signed(topic, raw)), raw, datetime.now(UTC))


def by_sql(dsn: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("select esl.judged(%s)", [Jsonb(rows)]).fetchone()
    assert found
    judged: list[dict[str, Any]] = found[0]
    return judged


def essence(row: dict[str, Any]) -> dict[str, Any]:
    """What both must say alike: of JSON that is none each parser has words of its own."""
    reason = row["reason"] and row["reason"].partition("not JSON:")[0]
    said = row["said_at"] and datetime.fromisoformat(row["said_at"])
    return {**row, "reason": reason, "said_at": said}


def differing(dsn: str, raws: list[bytes]) -> list[tuple[bytes, str, dict[str, tuple[Any, Any]]]]:
    """Where SQL and Python say otherwise: body, topic, column to what each says."""
    cases = [(topic, raw) for topic in (*TOPICS, *LIFECYCLE_TOPICS) for raw in raws]
    expected = [by_python(topic, raw) for topic, raw in cases]
    bare = [
        row | UNJUDGED | {"body_base64": base64.b64encode(raw).decode()}
        for row, (_, raw) in zip(expected, cases, strict=True)
    ]
    judged = zip(map(essence, by_sql(dsn, bare)), map(essence, expected), cases, strict=True)
    return [
        (raw[-200:], topic, {name: (sql[name], python[name]) for name in python if sql[name] != python[name]})
        for sql, python, (topic, raw) in judged
        if sql != python
    ]


def test_f23_sql_judges_a_body_as_python_does(buffer_dsn: str) -> None:
    assert differing(buffer_dsn, list(bodies())) == []


@pytest.mark.shared_data("data/security/json_test_parsing")
def test_f25_sql_judges_the_json_test_suite_as_python_does(buffer_dsn: str) -> None:
    files = sorted((DATA / "security" / "json_test_parsing").glob("*.json"))
    assert len(files) == 318
    found = differing(buffer_dsn, [file.read_bytes() for file in files])
    # Numbers that no float holds, of which RFC 8259 leaves each parser its own opinion.
    assert all(re.fullmatch(rb"\[-?[0-9.]+[eE][+-]?[0-9]+\]", raw) for raw, *_ in found)
    assert {name for *_, difference in found for name in difference} == {"reason"}


def test_what_is_judged_already_stays_as_it_is(buffer_dsn: str) -> None:
    rows = [by_python("products/update", raw) for raw in (b"{}", json.dumps(PRODUCT).encode())]
    assert by_sql(buffer_dsn, rows) == rows


def test_s12_a_body_about_people_is_dropped_where_it_is_judged(buffer: Buffer, buffer_dsn: str) -> None:
    for topic, body in LIFECYCLE_BODIES.items():
        raw = json.dumps(body).encode()
        row = by_python(topic, raw) | UNJUDGED | {"body_base64": base64.b64encode(raw).decode()}
        assert buffer.inbox_add([row])["inserted"] == 1
    with psycopg.connect(buffer_dsn) as connection:
        found = connection.execute("select state, body, i::text from esl.webhook_inbox i").fetchall()
    assert [(state, body) for state, body, _ in found] == [("done", None)] * len(LIFECYCLE_BODIES)
    assert not any(CANARY in text or CANARY.encode().hex() in text for *_, text in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"source_system": "woocommerce", "source_store_id": "shop.example.com", "topic": "product.updated"},
        {"source_system": "new_source", "source_store_id": "corner"},
        {"topic": "orders/create"},
        {"body_base64": "§"},
    ],
)
def test_what_nobody_here_can_judge_needs_a_state(buffer: Buffer, changes: dict[str, Any]) -> None:
    row = by_python("products/update", json.dumps(PRODUCT).encode()) | UNJUDGED | changes
    with pytest.raises(BufferError):
        buffer.inbox_add([row])
