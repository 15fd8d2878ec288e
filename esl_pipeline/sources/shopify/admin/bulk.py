"""Bulk operations: Shopify runs a query over everything and leaves the result in a file, which `download` reads."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import (
    AdminError,
    AdminQueryError,
    BulkOperationFailedError,
    BulkOperationUnfinishedError,
)

Sleep = Callable[[float], None]
OnPoll = Callable[["BulkOperation"], None]

# So that the end is seen a fifth too late at most: a night is made of such waits.
_FIRST_LOOK, _LATER_LOOK = 0.3, 1.25
_LONGEST_PAUSE = 30.0
_BUSY = frozenset({"OPERATION_IN_PROGRESS", "LIMIT_REACHED"})
_GOING_ON = frozenset({"CREATED", "RUNNING", "CANCELING"})
_ADVICE = {
    "ACCESS_DENIED": "Give the app the scopes read_products and read_inventory.",
    "INTERNAL_SERVER_ERROR": "Shopify failed; start it again.",
    "TIMEOUT": "Shopify ran out of time; start it again, or read fewer fields.",
}


@dataclass(frozen=True)
class BulkOperation:
    """One bulk operation, as Shopify last described it; its URLs are keys to the data and stay out of the repr."""

    id: str
    type: str
    status: str
    error_code: str | None
    query: str = field(repr=False)
    created_at: datetime
    object_count: int
    file_size: int | None
    url: str | None = field(repr=False)
    partial_data_url: str | None = field(repr=False)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Self:
        """From a BulkOperation node with the fields that `queries` asks for."""
        return cls(
            id=node["id"],
            type=node["type"],
            status=node["status"],
            error_code=node["errorCode"],
            query=node["query"],
            created_at=datetime.fromisoformat(node["createdAt"]),
            object_count=int(node["objectCount"]),
            file_size=None if node["fileSize"] is None else int(node["fileSize"]),
            url=node["url"],
            partial_data_url=node["partialDataUrl"],
        )


def run(
    client: AdminClient,
    query: str,
    *,
    timeout_seconds: float = 4 * 3600,
    on_poll: OnPoll | None = None,
    sleep: Sleep = time.sleep,
) -> BulkOperation:
    """Start the query and wait for its end; `on_poll` sees every state on the way.

    An operation that has not ended in time is cancelled, so that it does not hold one of the few places.
    """
    operation = start(client, query, sleep=sleep)
    try:
        return wait(client, operation.id, timeout_seconds=timeout_seconds, on_poll=on_poll, sleep=sleep)
    except BulkOperationUnfinishedError:
        with suppress(AdminError):
            cancel(client, operation.id)
        raise


def start(
    client: AdminClient, query: str, *, timeout_seconds: float = 600, sleep: Sleep = time.sleep
) -> BulkOperation:
    """Start a bulk query.

    Shopify lets only a few run at once: where all places are taken, a running one of the same query is
    adopted (it was left by a run that died), else a place is waited for. Raises BulkOperationUnfinishedError
    when none became free, AdminQueryError when Shopify refuses the query.
    """
    pauses = _pauses()
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = client.execute(queries.RUN_BULK, {"query": query})["bulkOperationRunQuery"] or {}
        errors = answer.get("userErrors") or []
        if not errors and answer.get("bulkOperation"):
            return BulkOperation.of(answer["bulkOperation"])
        said = "; ".join(error["message"] for error in errors) or "Shopify named neither operation nor error"
        codes = tuple(error["code"] for error in errors if error["code"])
        if not _BUSY.intersection(codes):
            raise AdminQueryError(f"The bulk query was not started: {said}.", codes=codes)
        if same := _running(client, query):
            return same
        pause = next(pauses)
        if time.monotonic() + pause > deadline:
            raise BulkOperationUnfinishedError(
                f"The bulk query was not started within {timeout_seconds:.0f} s, since others of this app are "
                f"running ({said}). Try again when they have ended.",
                retry_after=_LONGEST_PAUSE,
            )
        sleep(pause)


def wait(
    client: AdminClient,
    operation_id: str,
    *,
    timeout_seconds: float = 4 * 3600,
    on_poll: OnPoll | None = None,
    sleep: Sleep = time.sleep,
) -> BulkOperation:
    """Ask, at growing distance, until the operation has ended; gives it when its result is whole.

    Raises BulkOperationFailedError for any other end, BulkOperationUnfinishedError after `timeout_seconds`.
    """
    pauses = _pauses(_FIRST_LOOK, _LATER_LOOK)
    deadline = time.monotonic() + timeout_seconds
    while True:
        operation = read(client, operation_id)
        if on_poll is not None:
            on_poll(operation)
        if operation.status not in _GOING_ON:
            if operation.error_code == "ACCESS_DENIED":
                client.check_scopes()
            return whole(operation)
        pause = next(pauses)
        if time.monotonic() + pause > deadline:
            raise BulkOperationUnfinishedError(
                f"Bulk operation {operation_id} is still {operation.status} after {timeout_seconds:.0f} s, "
                f"at {operation.object_count:,} objects.",
                retry_after=_LONGEST_PAUSE,
            )
        sleep(pause)


def read(client: AdminClient, operation_id: str) -> BulkOperation:
    """The operation as it is now, with a URL that is good for a while."""
    node = client.execute(queries.BULK_OPERATION, {"id": operation_id})["bulkOperation"]
    if node is None:
        raise BulkOperationFailedError(
            f"Shopify knows no bulk operation {operation_id} any more; start a new one.",
            status="UNKNOWN",
            error_code=None,
            partial=False,
        )
    return BulkOperation.of(node)


def cancel(client: AdminClient, operation_id: str) -> None:
    """Ask Shopify to stop the operation; one that has already ended is no error."""
    client.execute(queries.CANCEL_BULK, {"id": operation_id})


def whole(operation: BulkOperation) -> BulkOperation:
    """The operation, if it completed and left all of its result; BulkOperationFailedError else, saying why."""
    has_result = operation.url is not None or operation.object_count == 0
    if operation.status == "COMPLETED" and has_result and operation.partial_data_url is None:
        return operation
    state = " ".join(filter(None, [operation.status, operation.error_code]))
    said = f"Bulk operation {operation.id} is {state} after {operation.object_count:,} objects"
    if operation.partial_data_url is not None:
        said += ", with a partial result that is not used"
    elif operation.status == "COMPLETED":
        said += ", without a result"
    advice = _ADVICE.get(operation.error_code or "", "Start it again.")
    raise BulkOperationFailedError(
        f"{said}. {advice}",
        status=operation.status,
        error_code=operation.error_code,
        partial=operation.partial_data_url is not None,
    )


def _running(client: AdminClient, query: str) -> BulkOperation | None:
    """The newest running operation of the same query."""
    nodes = client.execute(queries.RUNNING_BULK)["bulkOperations"]["nodes"]
    same = [
        operation
        for operation in map(BulkOperation.of, nodes)
        if operation.type == "QUERY"
        and operation.status in ("CREATED", "RUNNING")
        and operation.query.split() == query.split()
    ]
    return max(same, key=lambda operation: operation.created_at, default=None)


def _pauses(first: float = 1.0, growth: float = 1.5) -> Iterator[float]:
    """Seconds between questions: often at first, then seldom."""
    pause = first
    while True:
        yield pause
        pause = min(pause * growth, _LONGEST_PAUSE)
