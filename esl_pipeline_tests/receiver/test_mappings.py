import json
import uuid
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline_tests.receiver.support import PRODUCT, SHOP, TOKEN, call, deliver, kept_app, make_app
from esl_pipeline_tests.watched import WatchedBuffer

PATH = "/api/store-mappings/"
MAPPING = {
    "source_system": "shopify",
    "source_store_id": SHOP,
    "hipoink_store_code": "001",
    "is_active": True,
}
ANY_ID = str(uuid.UUID(int=7))


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def ask(
    buffer: WatchedBuffer, method: str, path: str = PATH, body: Any = None, **overrides: Any
) -> httpx.Response:
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return call(kept_app(buffer, **overrides), method, path, content=content, headers=headers)


def problems(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422
    return {problem["field"]: problem["message"] for problem in answer.json()["detail"]}


# Who may ask

ROUTES = [("POST", PATH), ("GET", PATH), ("GET", PATH + ANY_ID), ("PUT", PATH + ANY_ID)]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_any_token_the_api_is_closed_and_says_what_opens_it(
    buffer: WatchedBuffer, method: str, path: str
) -> None:
    answer = ask(buffer, method, path, MAPPING, esl_admin_token=None)
    assert answer.status_code == 403
    assert "ESL_ADMIN_TOKEN" in answer.json()["detail"]
    assert buffer.calls == ["token_check"]


def test_a_closed_api_leaves_the_webhooks_open(buffer: WatchedBuffer) -> None:
    assert deliver(make_app(buffer, esl_admin_token=None), "products/update", PRODUCT).status_code == 200


AUTHORIZATIONS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "no token": b"Bearer ",
    "wrong": b"Bearer wrong-token-of-some-length",
    "shortened": b"Bearer " + TOKEN[:-1].encode(),
    "lengthened": b"Bearer " + TOKEN.encode() + b"x",
    "other case": b"Bearer " + TOKEN.upper().encode(),
    "other scheme": b"Basic " + TOKEN.encode(),
    "not ASCII": b"Bearer \xff\xfe",
}


@pytest.mark.parametrize("value", AUTHORIZATIONS.values(), ids=AUTHORIZATIONS)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_wrong_token_is_401_whatever_the_body(
    buffer: WatchedBuffer, method: str, path: str, value: bytes | None
) -> None:
    headers, app = {} if value is None else {b"Authorization": value}, make_app(buffer)
    for body in (b"not JSON", json.dumps(MAPPING).encode(), b" " * 100_000):
        answer = call(app, method, path, content=body, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert set(buffer.calls) <= {"token_check"}


# Create


def test_a_mapping_is_created(buffer: WatchedBuffer) -> None:
    answer = ask(buffer, "POST", body={**MAPPING, "settings": {"expected_currency": "EUR"}})
    assert answer.status_code == 201
    created = answer.json()
    assert uuid.UUID(created.pop("id"))
    assert {key: created[key] for key in (*MAPPING, "settings")} == {
        **MAPPING,
        "settings": {"expected_currency": "EUR"},
    }
    assert buffer.calls == ["mapping_create"]


def test_is_active_and_settings_may_be_left_out(buffer: WatchedBuffer) -> None:
    created = ask(buffer, "POST", body={k: v for k, v in MAPPING.items() if k != "is_active"}).json()
    assert (created["is_active"], created["settings"]) == (True, {})


def test_the_shop_is_kept_in_lower_case(buffer: WatchedBuffer) -> None:
    created = ask(buffer, "POST", body={**MAPPING, "source_store_id": "Corner-Shop.myshopify.com"}).json()
    assert created["source_store_id"] == SHOP


def test_only_the_settings_that_were_given_are_kept(buffer: WatchedBuffer) -> None:
    """A default that changes later must reach the stores that never chose."""
    ask(buffer, "POST", body={**MAPPING, "settings": {"send_images": False}})
    assert buffer.mapping_list()[0]["settings"] == {"send_images": False}


def test_a_duplicate_is_409(buffer: WatchedBuffer) -> None:
    assert ask(buffer, "POST", body=MAPPING).status_code == 201
    answer = ask(buffer, "POST", body={**MAPPING, "source_store_id": SHOP.upper()})
    assert answer.status_code == 409
    assert "exists already" in answer.json()["detail"]


def test_one_shop_may_feed_several_stores(buffer: WatchedBuffer) -> None:
    codes = ["001", "Store_2", "a-b", "x" * 32]
    answers = [ask(buffer, "POST", body={**MAPPING, "hipoink_store_code": code}) for code in codes]
    assert {answer.status_code for answer in answers} == {201}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("hipoink_store_code", code)
            for code in [
                "",
                "001/../admin",
                "001?x=",
                "a b",
                "a\n",
                "é",
                "x" * 33,
                1,
                None,
                "001\u0000",
                "\u0661",
            ]
        ),
        *(
            ("source_store_id", shop)
            for shop in ["", "shop", "https://a.myshopify.com", "a.myshopify.com\n", "x),id.gt.(0", 5, None]
        ),
        *(("source_system", system) for system in ["", "Shopfy", "square", None, 1]),
        *(("is_active", active) for active in ["true", 1, None, [], "yes"]),
        *(("settings", policy) for policy in (None, (), "x", 1)),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_wrong_field_is_422_by_its_name(buffer: WatchedBuffer, method: str, field: str, value: Any) -> None:
    answer = ask(buffer, method, PATH if method == "POST" else PATH + ANY_ID, {**MAPPING, field: value})
    assert list(problems(answer)) == [field]
    assert buffer.calls == []


def test_all_wrong_fields_are_named_at_once(buffer: WatchedBuffer) -> None:
    body = {
        "source_store_id": "no shop of any source",
        "hipoink_store_code": "/",
        "colour": "red",
        "settings": {"expected_currency": "euro", "stock_field": "weight", "hipoink_sign": "hush-hush"},
    }
    answer = ask(buffer, "POST", body=body)
    assert set(problems(answer)) == {
        "source_system",
        "source_store_id",
        "hipoink_store_code",
        "colour",
        "settings.expected_currency",
        "settings.stock_field",
        "settings.hipoink_sign",
    }
    assert "hush-hush" not in answer.text


def test_settings_that_do_not_agree_with_each_other_are_422(buffer: WatchedBuffer) -> None:
    found = problems(ask(buffer, "POST", body={**MAPPING, "settings": {"stock_field": "kc"}}))
    assert "location_id" in found["settings"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"NaN", b"[" * 5_000, b'{"a":"\\ud800"}']
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_that_is_no_json_object_is_422(buffer: WatchedBuffer, method: str, body: bytes) -> None:
    answer = ask(buffer, method, PATH if method == "POST" else PATH + ANY_ID, body)
    assert list(problems(answer)) == ["body"]


def test_a_long_body_is_413(buffer: WatchedBuffer) -> None:
    assert ask(buffer, "POST", body=b" " * 70_000).status_code == 413


# Read and change


def test_mappings_are_listed_and_read(buffer: WatchedBuffer) -> None:
    assert ask(buffer, "GET").json() == []
    created = ask(buffer, "POST", body=MAPPING).json()
    assert ask(buffer, "GET").json() == [created]
    assert ask(buffer, "GET", PATH + created["id"]).json() == created
    assert ask(buffer, "GET", PATH + created["id"].upper()).json() == created


@pytest.mark.parametrize(
    "change",
    [
        {"is_active": False},
        {"is_dry_run": True},
        {"hipoink_store_code": "002"},
        {"source_store_id": "other.myshopify.com", "source_system": "shopify"},
        {"settings": {"expected_currency": "JPY"}},
        {"settings": {}},
    ],
)
def test_a_change_touches_only_the_given_fields(buffer: WatchedBuffer, change: dict[str, Any]) -> None:
    created = ask(buffer, "POST", body={**MAPPING, "settings": {"send_images": False}}).json()
    buffer.forget_calls()
    answer = ask(buffer, "PUT", PATH + created["id"], change)
    updated = {"updated_at": answer.json()["updated_at"]}
    assert (answer.status_code, answer.json()) == (200, {**created, **change, **updated})
    assert updated["updated_at"] > created["updated_at"]
    assert buffer.calls == ["mapping_update"]


def test_an_empty_change_is_422(buffer: WatchedBuffer) -> None:
    assert list(problems(ask(buffer, "PUT", PATH + ANY_ID, {}))) == ["body"]


def test_an_unknown_field_in_a_change_is_refused_by_name(buffer: WatchedBuffer) -> None:
    assert list(problems(ask(buffer, "PUT", PATH + ANY_ID, {"active": False}))) == ["active"]


def test_a_change_into_a_duplicate_is_409(buffer: WatchedBuffer) -> None:
    ask(buffer, "POST", body=MAPPING)
    other = ask(buffer, "POST", body={**MAPPING, "hipoink_store_code": "002"}).json()
    assert ask(buffer, "PUT", PATH + other["id"], {"hipoink_store_code": "001"}).status_code == 409


@pytest.mark.parametrize(
    "mapping_id", [ANY_ID, "7", "not-a-uuid", "{" + ANY_ID + "}", ANY_ID.replace("-", ""), "%00"]
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_unknown_id_is_404(buffer: WatchedBuffer, method: str, mapping_id: str) -> None:
    answer = ask(buffer, method, PATH + mapping_id, {"is_active": False} if method == "PUT" else None)
    assert answer.status_code == 404
    assert buffer.calls in ([], ["mapping_list"], ["mapping_update"])
    assert bool(buffer.calls) == (mapping_id == ANY_ID)


# The buffer says no


def test_an_unreachable_buffer_is_503(buffer: WatchedBuffer) -> None:
    away = BufferUnavailable("the buffer at db.example.com is not available", retryable=True)
    for method, path in ROUTES:
        with buffer.failing(away):
            answer = ask(buffer, method, path, MAPPING if method in {"POST", "PUT"} else None)
        assert answer.status_code == 503
        assert "db.example.com" not in answer.text


def test_data_that_the_buffer_refuses_is_422(buffer: WatchedBuffer) -> None:
    with buffer.failing(BufferError("settings: currency is unknown", code="22023")):
        answer = ask(buffer, "POST", body=MAPPING)
    assert problems(answer) == {"settings": "settings: currency is unknown"}


def test_no_secret_is_in_an_answer(buffer: WatchedBuffer) -> None:
    created = ask(buffer, "POST", body=MAPPING).json()
    row = buffer.mapping_list()[0] | {"access_token": "shpat-canary"}
    with buffer.answering("mapping_list", {"mappings": [row]}), buffer.answering("mapping_update", row):
        answers = [ask(buffer, "GET"), ask(buffer, "GET", PATH + created["id"])]
        answers.append(ask(buffer, "PUT", PATH + created["id"], {"is_active": False}))
    assert {answer.status_code for answer in answers} == {200}
    texts = [answer.text for answer in answers]
    assert not [text for text in texts if "canary" in text or TOKEN in text]


# Label servers


@pytest.fixture
def two_servers(buffer: WatchedBuffer, monkeypatch: pytest.MonkeyPatch) -> WatchedBuffer:
    """The API of a process whose settings name two."""
    monkeypatch.setattr(buffer, "label_servers", ("default", "north"))
    return buffer


def test_a_mapping_names_the_label_server_of_its_store(two_servers: WatchedBuffer) -> None:
    made = ask(two_servers, "POST", body=MAPPING | {"label_server": "north"}).json()
    assert (made["label_server"], made["remark"]) == ("north", None)
    listed = ask(two_servers, "GET").json()
    assert [mapping["label_server"] for mapping in listed] == ["north"]
    changed = ask(two_servers, "PUT", f"{PATH}{made['id']}", body={"label_server": "default"})
    assert changed.json()["label_server"] == "default"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_unknown_label_server_is_refused_with_the_names_there_are(
    two_servers: WatchedBuffer, method: str
) -> None:
    made = ask(two_servers, "POST", body=MAPPING).json()
    for name in ("nort", "https://evil.example", "North", "", 7):
        path = f"{PATH}{made['id']}" if method == "PUT" else PATH
        answer = ask(two_servers, method, path, body=MAPPING | {"label_server": name})
        assert answer.status_code == 422
        if isinstance(name, str):
            assert problems(answer) == {
                "label_server": "must be a label server of the settings: default, north"
            }


def test_a_store_that_another_shop_feeds_elsewhere_is_409(two_servers: WatchedBuffer) -> None:
    ask(two_servers, "POST", body=MAPPING)
    other = MAPPING | {"source_store_id": "other.myshopify.com", "shared": True, "label_server": "north"}
    answer = ask(two_servers, "POST", body=other)
    assert answer.status_code == 409
    assert answer.json()["detail"] == (
        f"store {MAPPING['hipoink_store_code']} is at label server default, where {MAPPING['source_store_id']} feeds "
        "it: a store is at one server, so name that one, or none"
    )


# Documentation


def test_the_openapi_page_describes_the_bodies(buffer: WatchedBuffer) -> None:
    page = ask(buffer, "GET", "/openapi.json").json()
    post = page["paths"][PATH]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {*MAPPING, "settings", "label_server", "is_dry_run", "shared"}
    assert "expected_currency" in schema["properties"]["settings"]["properties"]
    assert "$ref" not in json.dumps(post["requestBody"])
    assert post["security"]


@pytest.mark.long
@hypothesis_settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from([*MAPPING, "settings", "id"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
    ),
    st.sampled_from(["POST", "PUT"]),
)
def test_no_body_makes_an_error(buffer: WatchedBuffer, body: dict[str, Any], method: str) -> None:
    buffer.clean()
    answer = ask(buffer, method, PATH if method == "POST" else PATH + ANY_ID, body)
    assert answer.status_code in {201, 404, 422}
