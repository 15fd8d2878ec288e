"""The receiver and the buffer together: what becomes of a delivery and of a mapping, and of an absent database."""

import socket
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, NewerBuffer
from esl_pipeline.buffer.migrate import functions_build
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.commands.running import startable
from esl_pipeline.receiver.app import create_app
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline_tests.receiver.support import BODIES, PRODUCT, SHOP, TOKEN, call, deliver, make_settings
from esl_pipeline_tests.reliability.test_roles import login

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


@pytest.mark.long
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


def newer(dsn: str) -> None:
    """As the next build leaves the buffer."""
    with psycopg.connect(dsn) as connection:
        connection.execute(f"comment on schema esl is '{functions_build() + 1} of-later'".encode())


def test_field_38_on_a_newer_buffer_a_receiver_starts_and_keeps_deliveries_and_no_more(
    buffer: Buffer, buffer_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Between `migrate` and the roll-out: a restart there loses no capacity."""
    assert startable(buffer, None) is None
    newer(buffer_dsn)
    assert startable(buffer, "webhooks") == "webhooks"
    assert "deliveries are kept, but the buffer is at build" in caplog.text
    assert "console stay closed" not in caplog.text
    assert startable(buffer, None) == "webhooks" and "console stay closed until then" in caplog.text
    app = create_app(make_settings(), buffer, only="webhooks")
    assert deliver(app, "products/update", PRODUCT).status_code == 200
    assert call(app, "GET", "/health").status_code == 200
    for only in ("admin", "console"):
        with pytest.raises(NewerBuffer, match="newer than this code"):
            startable(buffer, only)


def test_field_38_on_a_newer_buffer_that_does_not_take_its_deliveries_it_stops(
    buffer: Buffer, buffer_dsn: str
) -> None:
    newer(buffer_dsn)
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("alter function public.esl_inbox_add(jsonb) rename to esl_inbox_take")
    with pytest.raises(
        BufferError, match=r"newer than this code .* nor does it take deliveries of this code: .*"
    ):
        startable(buffer, None)
    assert call(create_app(make_settings(), buffer, only="webhooks"), "GET", "/health").status_code == 503


@pytest.mark.parametrize(
    ("group", "only", "says"),
    [
        ("esl_receiver", "webhooks", None),
        ("esl_admin", "admin", None),
        ("esl_admin", "console", None),
        ("esl_pipeline", "webhooks", "needs one of the group esl_receiver"),
        ("esl_receiver", "admin", "needs one of the group esl_admin"),
        ("esl_receiver", None, "needs one of the group esl_admin .* --only webhooks"),
        ("esl_admin", None, "needs one of the group esl_receiver .* --only admin"),
    ],
)
def test_it_stops_at_start_with_a_sentence_when_its_login_is_another_process(
    buffer_dsn: str, group: str, only: Any, says: str | None
) -> None:
    with PsycopgTransport(SecretStr(login(buffer_dsn, group))) as transport:
        if says is None:
            assert startable(Buffer(transport), only) == only
        else:
            with pytest.raises(BufferError, match=says):
                startable(Buffer(transport), only)
