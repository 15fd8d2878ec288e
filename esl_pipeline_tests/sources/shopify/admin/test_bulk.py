"""Bulk operations: started, adopted, waited for, and every end that is no result said clearly."""

import pytest

from esl_pipeline.sources.shopify.admin import (
    AdminQueryError,
    BulkOperationFailedError,
    BulkOperationUnfinishedError,
    bulk,
)
from esl_pipeline.sources.shopify.admin.queries import BULK_CATALOGUE
from esl_pipeline_tests.sources.shopify.admin.servers import CREATED_AT, OPERATION, jsonl, shop

BUSY = [
    {"code": "OPERATION_IN_PROGRESS", "field": None, "message": "A bulk operation is already in progress."}
]
LINES = jsonl({"id": "1"}, {"id": "2"})


@pytest.mark.long
def test_an_operation_is_asked_for_until_it_has_ended() -> None:
    slept: list[float] = []
    polled: list[str] = []
    with shop(LINES) as (admin, client):
        admin.states = ["CREATED", *["RUNNING"] * 25, "COMPLETED"]
        done = bulk.run(
            client, BULK_CATALOGUE, on_poll=lambda seen: polled.append(seen.status), sleep=slept.append
        )
    assert polled == ["CREATED", *["RUNNING"] * 25, "COMPLETED"]
    assert slept[0] < 1
    assert slept == sorted(slept)
    assert slept[-1] == 30
    waited = 0.0
    for pause in slept:
        assert pause <= max(1, 0.35 * waited), "the end is seen late"
        waited += pause
    assert (done.id, done.object_count, done.file_size) == (OPERATION, 2, len(LINES))
    assert done.created_at.isoformat() == "2026-11-22T02:00:00+00:00"


def test_the_signed_address_is_not_shown() -> None:
    with shop(LINES) as (_, client):
        done = bulk.run(client, BULK_CATALOGUE)
    assert done.url is not None and "s3cret" in done.url
    assert "s3cret" not in repr(done)


def test_a_running_operation_of_the_same_query_is_adopted() -> None:
    with shop(LINES) as (admin, client):
        admin.start_errors = [BUSY]
        same = BULK_CATALOGUE.replace("{", "{\n  ", 1)
        admin.running = [
            admin.operation(
                "RUNNING", id="gid://shopify/BulkOperation/1", query="{ orders { edges { node { id } } } }"
            ),
            admin.operation(
                "RUNNING", id="gid://shopify/BulkOperation/2", query=same, createdAt="2026-11-21T02:00:00Z"
            ),
            admin.operation("RUNNING", id="gid://shopify/BulkOperation/3", query=same),
            admin.operation(
                "COMPLETED", id="gid://shopify/BulkOperation/4", query=same, createdAt="2026-11-23T02:00:00Z"
            ),
        ]
        assert bulk.start(client, BULK_CATALOGUE).id == "gid://shopify/BulkOperation/3"
    assert admin.asked == ["RunBulk", "RunningBulk"]


def test_other_operations_are_waited_for() -> None:
    slept: list[float] = []
    with shop(LINES) as (admin, client):
        admin.start_errors = [BUSY, [BUSY[0] | {"code": "LIMIT_REACHED"}]]
        assert bulk.start(client, BULK_CATALOGUE, sleep=slept.append).status == "CREATED"
    assert slept == [1, 1.5]


def test_other_operations_are_not_waited_for_for_ever() -> None:
    with shop(LINES) as (admin, client):
        admin.start_errors = [BUSY] * 1000
        with pytest.raises(BulkOperationUnfinishedError, match="already in progress") as raised:
            bulk.start(client, BULK_CATALOGUE, timeout_seconds=1.2, sleep=lambda _: None)
    assert raised.value.retry_after == 30


def test_a_query_that_shopify_refuses() -> None:
    with shop() as (admin, client):
        admin.start_errors = [
            [{"code": "INVALID", "field": ["query"], "message": "Invalid bulk query: no connection."}]
        ]
        with pytest.raises(AdminQueryError, match="no connection") as raised:
            bulk.start(client, BULK_CATALOGUE)
    assert raised.value.codes == ("INVALID",)


@pytest.mark.parametrize(
    ("status", "fields", "said", "partial"),
    [
        ("FAILED", {"errorCode": "ACCESS_DENIED", "objectCount": "0"}, "FAILED ACCESS_DENIED.*scopes", False),
        (
            "FAILED",
            {
                "errorCode": "INTERNAL_SERVER_ERROR",
                "partialDataUrl": "https://storage.example/part?Signature=s3cret",
            },
            "after 2 objects, with a partial result that is not used. Shopify failed",
            True,
        ),
        ("FAILED", {"errorCode": "TIMEOUT"}, "ran out of time", False),
        ("CANCELED", {}, "CANCELED", False),
        ("EXPIRED", {}, "EXPIRED", False),
        ("COMPLETED", {"url": None}, "COMPLETED after 2 objects, without a result", False),
        (
            "COMPLETED",
            {"partialDataUrl": "https://storage.example/part?Signature=s3cret"},
            "partial result",
            True,
        ),
    ],
    ids=["denied", "partial", "timeout", "cancelled", "expired", "no result", "completed in part"],
)
def test_an_end_without_a_whole_result(
    status: str, fields: dict[str, object], said: str, partial: bool
) -> None:
    with shop(LINES) as (admin, client):
        admin.states, admin.fields = ["RUNNING", status], fields
        with pytest.raises(BulkOperationFailedError, match=said) as raised:
            bulk.run(client, BULK_CATALOGUE, sleep=lambda _: None)
    assert (raised.value.status, raised.value.partial) == (status, partial)
    assert raised.value.error_code == fields.get("errorCode")
    assert OPERATION in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_an_empty_shop_has_a_whole_result() -> None:
    with shop(b"") as (_, client):
        assert bulk.run(client, BULK_CATALOGUE).url is None


def test_an_operation_that_shopify_forgot() -> None:
    with shop() as (admin, client):
        admin._BulkOperation = lambda variables: {"bulkOperation": None}  # type: ignore[method-assign]
        with pytest.raises(BulkOperationFailedError, match="knows no bulk operation"):
            bulk.wait(client, OPERATION)


def test_an_operation_that_does_not_end_is_cancelled() -> None:
    with shop(LINES) as (admin, client):
        admin.states = ["RUNNING"]
        with pytest.raises(BulkOperationUnfinishedError, match="still RUNNING after 0 s, at 2 objects"):
            bulk.run(client, BULK_CATALOGUE, timeout_seconds=0.1)
    assert admin.asked == ["RunBulk", "BulkOperation", "CancelBulk"]


def test_the_start_of_an_operation_is_shopifys() -> None:
    with shop(LINES) as (_, client):
        assert bulk.start(client, BULK_CATALOGUE).created_at.strftime("%Y-%m-%dT%H:%M:%SZ") == CREATED_AT
