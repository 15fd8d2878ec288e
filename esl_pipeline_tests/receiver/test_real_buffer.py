"""The receiver and the buffer together: what becomes of a delivery and of a mapping, and of an absent database."""

import socket
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.receiver.app import create_app
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import BODIES, PRODUCT, SHOP, TOKEN, call, deliver, make_settings

PATH = "/api/store-mappings/"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
MAPPING = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": "001"}


@pytest.mark.parametrize("topic", TOPICS)
def test_a_delivery_is_kept_once(buffer: Buffer, topic: str) -> None:
    app, now = create_app(make_settings(), buffer), datetime.now(UTC)
    answers = [
        deliver(app, topic, BODIES[topic], webhook_id=name, triggered_at=at.isoformat()).json()["status"]
        for name, at in (("a", now), ("a", now - timedelta(1)), ("b", now), ("c", now - timedelta(1)))
    ]
    # The same body that was triggered at another time was said twice.
    assert answers == ["accepted", "duplicate", "duplicate", "accepted"]
    assert buffer.status()["shops"][0]["waiting"] == 2


def test_whatever_is_signed_is_kept(buffer: Buffer) -> None:
    bodies = [b"", b"\x00\xff", b'"\\ud800"', b'{"id":1,"title":"\\u0000"}', b"[" * 3_000]
    app = create_app(make_settings(), buffer)
    assert {deliver(app, "products/update", body).status_code for body in bodies} == {200}
    assert buffer.status()["shops"][0]["unusable"] == len(bodies)


def test_an_odd_time_is_no_fault_of_the_buffer(buffer: Buffer) -> None:
    app = create_app(make_settings(), buffer)
    for number, time in enumerate(["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "infinity", ""]):
        answer = deliver(app, "products/delete", {"id": number + 1}, triggered_at=time)
        assert answer.status_code == 200
    assert buffer.status()["shops"][0]["unusable"] == 4


def test_store_mappings_are_made_listed_changed_and_not_doubled(buffer: Buffer) -> None:
    app = create_app(make_settings(), buffer)
    made = call(app, "POST", PATH, json={**MAPPING, "settings": {"expected_currency": "EUR"}}, headers=ADMIN)
    assert made.status_code == 201
    mapping = made.json()
    assert mapping["is_active"] is True
    assert call(app, "POST", PATH, json=MAPPING, headers=ADMIN).status_code == 409
    assert call(app, "GET", PATH, headers=ADMIN).json() == [mapping]
    assert call(app, "GET", PATH + mapping["id"], headers=ADMIN).json() == mapping
    changed = call(app, "PUT", PATH + mapping["id"], json={"is_active": False}, headers=ADMIN)
    assert changed.status_code == 200
    assert changed.json() == {**mapping, "is_active": False, "updated_at": changed.json()["updated_at"]}
    unknown = PATH + str(uuid.uuid4())
    assert call(app, "GET", unknown, headers=ADMIN).status_code == 404
    assert call(app, "PUT", unknown, json={"is_active": False}, headers=ADMIN).status_code == 404


def test_a_database_that_is_not_there_is_503_everywhere() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and never listening, so that nobody else answers there
        address = f"postgresql://esl:canary@127.0.0.1:{taken.getsockname()[1]}/esl"
        buffer = Buffer(PsycopgTransport(SecretStr(address)))
        try:
            app = create_app(make_settings(), buffer)
            answers = [
                deliver(app, "products/update", PRODUCT),
                call(app, "GET", PATH, headers=ADMIN),
                call(app, "GET", "/health"),
            ]
        finally:
            buffer.close()
    assert [answer.status_code for answer in answers] == [503, 503, 503]
    assert not [answer for answer in answers if "canary" in answer.text or "127.0.0.1" in answer.text]


NUL, HALF = b"\\u0000", b"\\ud800"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"settings":{"title_template":"a%s"}}', "settings.title_template"),
        (b'{"settings":{"fields":{"extend":{"e1":"%s"}}}}', "settings.fields.extend.e1"),
        (b'{"settings":{"exclude":{"vendors":["ok","%s"]}}}', "settings.exclude.vendors.1"),
        (b'{"settings":{"expected_currency":"EUR%s"}}', "settings.expected_currency"),
        (b'{"settings":{"nonsense%s":1}}', "settings"),
        (b'{"hipoink_store_code":"0%s"}', "hipoink_store_code"),
        (b'{"source_store_id":"%s.myshopify.com"}', "source_store_id"),
        (b'{"%s":1}', "body"),
    ],
)
def test_s42_what_no_database_can_hold_is_422_and_named(buffer: Buffer, body: bytes, field: str) -> None:
    app = create_app(make_settings(), buffer)
    made = call(app, "POST", PATH, json=MAPPING, headers=ADMIN).json()
    for method, path in (("PUT", PATH + made["id"]), ("POST", PATH)):
        answer = call(app, method, path, content=body.replace(b"%s", NUL), headers=ADMIN)
        assert answer.status_code == 422
        assert answer.json()["detail"] == [{"field": field, "message": "must not hold the character U+0000"}]
        half = call(app, method, path, content=body.replace(b"%s", HALF), headers=ADMIN)
        assert half.status_code == 422 and half.json()["detail"][0]["field"] == "body"
    assert buffer.mapping_list()[0]["settings"] == {}


def test_s36_the_api_needs_a_word_for_a_store_that_another_shop_feeds(buffer: Buffer) -> None:
    app = create_app(make_settings(), buffer)
    assert call(app, "POST", PATH, json=MAPPING, headers=ADMIN).status_code == 201
    tenant = MAPPING | {"source_store_id": "tenant-b.myshopify.com"}
    refused = call(app, "POST", PATH, json=tenant, headers=ADMIN)
    assert refused.status_code == 409
    assert f"store 001 is fed by {SHOP} already" in refused.json()["detail"]
    elsewhere = call(app, "POST", PATH, json=tenant | {"hipoink_store_code": "002"}, headers=ADMIN).json()
    change = {"hipoink_store_code": "001"}
    assert call(app, "PUT", PATH + elsewhere["id"], json=change, headers=ADMIN).status_code == 409
    said = call(app, "PUT", PATH + elsewhere["id"], json=change | {"shared": True}, headers=ADMIN)
    assert (said.status_code, said.json()["hipoink_store_code"]) == (200, "001")
    assert call(app, "PUT", PATH + elsewhere["id"], json={"shared": True}, headers=ADMIN).status_code == 422
