"""The store-mapping API on the real buffer: who is let in, what is kept of it, and what a stranger learns."""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.tokens import NAME, digest, new_token
from esl_pipeline_tests.receiver.support import (
    PRODUCT,
    SECRET,
    SHOP,
    TOKEN,
    call,
    deliver,
    make_app,
    make_settings,
)
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

PATH = "/api/store-mappings/"
MAPPING = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": "001"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token(buffer: Buffer, name: str, scope: str, days: int | None = None) -> str:
    made = new_token()
    buffer.token_add(name=name, sha256=digest(made), scope=scope, days=days)
    return made


def the_app(buffer: Buffer, token: str | None = None) -> FastAPI:
    return create_app(make_settings(esl_admin_token=token), buffer)


# S13: tokens


def test_s13_a_token_is_32_random_bytes_and_only_its_hash_is_kept(buffer: Buffer, buffer_dsn: str) -> None:
    made = token(buffer, "ana-laptop", "write")
    assert re.fullmatch(r"esl_[A-Za-z0-9_-]{43}", made) and made != new_token()
    call(the_app(buffer), "POST", PATH, json=MAPPING, headers=bearer(made))
    with psycopg.connect(buffer_dsn) as connection:
        tables = connection.execute(
            "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where nspname in ('esl', 'public') and relkind = 'r'"
        ).fetchall()
        kept = [str(connection.execute(f"table {name}".encode()).fetchall()) for (name,) in tables]
    assert any(digest(made) in rows for rows in kept)
    assert not any(made in rows or made.removeprefix("esl_") in rows for rows in kept)
    assert digest(made) not in str(buffer.token_list())


@pytest.mark.parametrize(("scope", "changes"), [("read", False), ("write", True)])
def test_s13_scopes(buffer: Buffer, scope: str, changes: bool) -> None:
    app, headers = the_app(buffer), bearer(token(buffer, "ana", scope))
    made = buffer.mapping_create(MAPPING | {"hipoink_store_code": "002"})
    assert [m["id"] for m in call(app, "GET", PATH, headers=headers).json()] == [made["id"]]
    assert call(app, "GET", PATH + made["id"], headers=headers).status_code == 200
    post = call(app, "POST", PATH, json=MAPPING, headers=headers)
    put = call(app, "PUT", PATH + made["id"], json={"is_active": False}, headers=headers)
    assert [post.status_code, put.status_code] == ([201, 200] if changes else [403, 403])
    if not changes:
        assert post.json()["detail"] == (
            "The bearer token ana may only read; changes need one with the scope write."
        )
    assert len(buffer.mapping_list()) == (2 if changes else 1)


def test_s13_without_any_valid_token_the_api_is_closed(buffer: Buffer) -> None:
    app = the_app(buffer)
    answer = call(app, "GET", PATH, headers=bearer(new_token()))
    assert answer.status_code == 403 and "esl-pipeline tokens add" in answer.json()["detail"]
    assert call(app, "GET", PATH).status_code == 401
    old = token(buffer, "old", "write", days=-1)
    assert call(app, "GET", PATH, headers=bearer(new_token())).status_code == 403
    assert call(app, "GET", PATH, headers=bearer(old)).status_code == 401
    token(buffer, "new", "read")
    assert call(app, "GET", PATH, headers=bearer(new_token())).status_code == 401


def test_s13_an_expired_or_revoked_token_is_refused_at_once(buffer: Buffer, buffer_dsn: str) -> None:
    app = the_app(buffer)
    lasting, ending = token(buffer, "lasting", "write", days=2), token(buffer, "ending", "read", days=1)
    assert [call(app, "GET", PATH, headers=bearer(t)).status_code for t in (lasting, ending)] == [200, 200]
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("update esl.admin_tokens set expires_at = expires_at - interval '24 hours'")
    buffer.token_add(name="other", sha256=digest(new_token()), scope="read")
    answers = [call(app, "GET", PATH, headers=bearer(t)) for t in (lasting, ending)]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert answers[1].json() == {"detail": "The bearer token ending is expired."}
    assert answers[1].headers["www-authenticate"] == "Bearer"
    buffer.token_revoke("lasting")
    answer = call(app, "GET", PATH, headers=bearer(lasting))
    assert (answer.status_code, answer.json()["detail"]) == (401, "The bearer token lasting is revoked.")


def test_s13_the_check_is_one_round_trip_and_none_without_a_token_to_check(buffer: Buffer) -> None:
    app, admin = the_app(buffer, TOKEN), bearer(token(buffer, "ana", "write"))

    def round_trips(headers: dict[str, str], method: str = "GET", **request: object) -> int:
        before = buffer.transport.calls
        call(app, method, PATH, headers=headers, **request)
        return buffer.transport.calls - before

    assert round_trips(admin) == 2
    assert round_trips(admin, "POST", json=MAPPING) == 2
    assert round_trips(bearer(TOKEN)) == 1
    assert round_trips({}) == 0
    for malformed in ("Bearer", "Bearer short", f"Bearer {'é' * 40}", f"Bearer {'x' * 2_000}"):
        assert round_trips({"Authorization": malformed.encode("latin-1")}) == 0  # type: ignore[dict-item]


@pytest.mark.parametrize("guess", ["a-guess-as-long-as-a-token-has-to-be", "short"])
def test_s13_five_wrong_tokens_lock_the_address_out(
    buffer: Buffer, guess: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, right = the_app(buffer, TOKEN), token(buffer, "ana", "write")
    for _ in range(20):  # neither a missing token nor one that was good once is a guess
        assert call(app, "GET", PATH).status_code == 401
    for _ in range(5):
        assert call(app, "GET", PATH, headers=bearer(guess)).status_code == 401
    before = buffer.transport.calls
    for headers in (bearer(guess), {}):
        answer = call(app, "GET", PATH, headers=headers)
        assert answer.status_code == 429
        assert 55 <= int(answer.headers["retry-after"]) <= 60
    assert buffer.transport.calls <= before + 1
    # Whoever shares the address and has a right token is not refused for it (s41).
    for good in (right, TOKEN):
        assert call(app, "GET", PATH, headers=bearer(good)).status_code == 200
    assert deliver(app, "products/update", PRODUCT).status_code == 200
    (said,) = [record for record in caplog.records if record.name == "esl_pipeline.receiver.tokens"]
    assert said.levelno == logging.WARNING and guess not in said.getMessage()


def test_s13_tokens_are_compared_as_hashes_of_one_length(
    watched: WatchedBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By compare_digest alone: without it nobody gets in."""
    lengths = []

    def never(one: str, other: str) -> bool:
        lengths.append((len(one), len(other)))
        return False

    monkeypatch.setattr("esl_pipeline.receiver.tokens.hmac.compare_digest", never)
    app = make_app(watched)
    for given in (TOKEN, TOKEN + "x", "y"):
        assert call(app, "GET", PATH, headers=bearer(given)).status_code == 401
    assert lengths == [(64, 64)] * 3


# S14: audit, and no other way in


def test_s14_every_change_is_kept_with_who_old_and_new(buffer: Buffer) -> None:
    app, headers = the_app(buffer, TOKEN), bearer(token(buffer, "ana-laptop", "write"))
    made = call(app, "POST", PATH, json=MAPPING, headers=headers).json()
    call(app, "PUT", PATH + made["id"], json={"settings": {"zero_price": "allow"}}, headers=bearer(TOKEN))
    call(app, "PUT", PATH + made["id"], json={"settings": {"zero_price": "allow"}}, headers=headers)
    call(app, "PUT", PATH + made["id"], json={"is_active": 1}, headers=headers)
    call(app, "POST", PATH, json=MAPPING, headers=headers)
    update, create = buffer.mapping_history()
    assert (create["by"], create["old"], update["by"]) == ("ana-laptop", None, "ESL_ADMIN_TOKEN")
    assert {key: create["new"][key] for key in MAPPING} == MAPPING
    assert update["old"] == create["new"]
    assert update["new"]["settings"] == {"zero_price": "allow"}
    assert not NAME.fullmatch("ESL_ADMIN_TOKEN") and not NAME.fullmatch("cli:ana")


def test_s14_the_change_and_its_row_stand_or_fall_together(buffer: Buffer, buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("alter table esl.mapping_changes add check (by <> 'ana')")
    kept = buffer.mapping_create(MAPPING, by="bob")
    for change in (
        lambda: buffer.mapping_create(MAPPING | {"hipoink_store_code": "002"}, by="ana"),
        lambda: buffer.mapping_update(kept["id"], {"is_active": False}, by="ana"),
    ):
        with pytest.raises(BufferError):
            change()
    assert [mapping["is_active"] for mapping in buffer.mapping_list()] == [True]
    assert [change["by"] for change in buffer.mapping_history()] == ["bob"]


def test_s14_no_other_origin_may_read_and_production_shows_no_page(watched: WatchedBuffer) -> None:
    app = make_app(watched, app_environment="production")
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for path in (PATH, "/health", "/webhooks/shopify/products/update"):
        for method in ("OPTIONS", "GET", "POST"):
            answer = call(app, method, path, headers=asked | bearer(TOKEN))
            assert not [name for name in answer.headers if name.startswith("access-control-")]
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert call(app, "GET", path).status_code == 404


def test_s14_no_redirect_takes_the_token_to_where_the_request_says(watched: WatchedBuffer) -> None:
    answer = call(make_app(watched), "GET", PATH[:-1], headers=bearer(TOKEN) | {"Host": "evil.example"})
    assert answer.status_code == 404 and "location" not in answer.headers


ONLY = {"webhooks": (200, 404), "admin": (404, 200), None: (200, 200)}


@pytest.mark.parametrize(("only", "expected"), ONLY.items())
def test_s14_each_part_alone_does_not_have_the_other(
    watched: WatchedBuffer, only: Literal["webhooks", "admin"] | None, expected: tuple[int, int]
) -> None:
    app = create_app(make_settings(), watched, only=only)
    webhook = deliver(app, "products/update", PRODUCT)
    assert (webhook.status_code, call(app, "GET", PATH, headers=bearer(TOKEN)).status_code) == expected
    assert call(app, "GET", "/health").status_code == 200
    parts = {path.split("/")[1] for path in call(app, "GET", "/openapi.json").json()["paths"]}
    of_admins = {"api", "metrics"}
    assert (
        parts - {"", "health"}
        == {"webhooks": {"webhooks"}, "admin": of_admins, None: {"webhooks"} | of_admins}[only]
    )


@contextmanager
def receiver(dsn: str, log: Path, *arguments: str) -> Iterator[str]:
    """The command itself; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"ESL_DATABASE_URL": dsn, "SHOPIFY_WEBHOOK_SECRET": SECRET, "ESL_ADMIN_TOKEN": TOKEN}
    command = [sys.executable, "-m", "esl_pipeline.commands.cli", "receiver", "--port", str(port), *arguments]
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("w") as file,
        subprocess.Popen(command, env=os.environ | environment, stderr=file) as process,
    ):

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return httpx.get(f"{url}/health").status_code == 200
            except httpx.ConnectError:
                return False

        try:
            eventually(answers, 60)
            yield url
        finally:
            process.terminate()
            process.wait(15)


@pytest.mark.slow
def test_s14_s28_the_command_serves_webhooks_only_and_says_nothing_of_itself(
    buffer_dsn: str, tmp_path: Path
) -> None:
    with receiver(buffer_dsn, tmp_path / "log", "--only", "webhooks") as url:
        for method in ("GET", "POST", "PUT"):
            assert httpx.request(method, url + PATH, headers=bearer(TOKEN)).status_code == 404
        health = httpx.get(f"{url}/health")
        bodies = [health, httpx.get(f"{url}/nothing"), httpx.post(f"{url}/webhooks/shopify/products/update")]
    assert health.json() == {"status": "ok"}
    guarded = {"x-frame-options", "x-content-type-options", "cross-origin-resource-policy"}
    assert (
        set(health.headers) == {"date", "content-length", "content-type", "content-security-policy"} | guarded
    )
    for answer in bodies:
        assert "server" not in answer.headers and "x-powered-by" not in answer.headers
        assert not re.search(r"uvicorn|fastapi|python|postgres|\d+\.\d+", answer.text.lower())


# S15: what a mapping may hold

HOSTILE = [
    "",
    "001/../admin",
    "../admin",
    "001?x=",
    "001#x",
    "001%2f",
    "a b",
    "a\n",
    "é",
    "١",
    "x" * 33,
    "001\x00",
]


@pytest.mark.parametrize("code", HOSTILE)
def test_s15_a_store_code_cannot_leave_its_place_in_an_address(buffer: Buffer, code: str) -> None:
    """Nor by any other way than the API: the table itself refuses it."""
    app, made = the_app(buffer, TOKEN), buffer.mapping_create(MAPPING)
    for method, path in (("POST", PATH), ("PUT", PATH + made["id"])):
        body = MAPPING | {"hipoink_store_code": code}
        answer = call(app, method, path, json=body, headers=bearer(TOKEN))
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["field"] == "hipoink_store_code"
    with pytest.raises(BufferError):
        buffer.mapping_create(MAPPING | {"hipoink_store_code": code})
    with pytest.raises(BufferError):
        buffer.mapping_update(made["id"], {"hipoink_store_code": code})
    assert [mapping["hipoink_store_code"] for mapping in buffer.mapping_list()] == ["001"]


@pytest.mark.long
def test_s15_no_address_of_a_label_server_comes_from_a_request(buffer: Buffer) -> None:
    for field in ("hipoink_api_base_url", "base_url", "url", "client_id"):
        for body in (
            MAPPING | {field: "https://evil.example"},
            MAPPING | {"settings": {field: "x"}},
            MAPPING | {"label_server": "https://evil.example"},
        ):
            answer = call(the_app(buffer, TOKEN), "POST", PATH, json=body, headers=bearer(TOKEN))
            assert answer.status_code == 422


# S28: what everybody may see


def test_s28_health_says_one_word(watched: WatchedBuffer) -> None:
    watched.mapping_create(MAPPING)
    app = the_app(watched, TOKEN)
    answers = [call(app, "GET", path) for path in ("/", "/health")]
    with watched.failing(BufferError("db.example.com, version 11, is not there")):
        answers += [call(make_app(watched), "GET", path) for path in ("/", "/health")]
    seen = [(answer.status_code, answer.text, sorted(answer.headers)) for answer in answers]
    headers = ["content-length", "content-type"]
    assert seen == [(200, '{"status":"ok"}', headers)] * 2 + [(503, '{"status":"unavailable"}', headers)] * 2
