"""Bulk operations: a query over the whole shop, run beside everything else, whose result is a file to download.

The shop is read at one instant, when the operation starts to run; what changes afterwards is not in the result.
"""

import hmac
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from graphql import GraphQLSchema

from esl_pipeline.sandbox.shopify.bulk_query import BulkQueryError, Shape, blocks, shape_of
from esl_pipeline.sandbox.shopify.faults import BulkEndless, BulkFailed, BulkSlow, ExpiredUrl, Faults
from esl_pipeline.sandbox.shopify.graph import (
    CatalogueRoot,
    Connection,
    SubscriptionNode,
    instant,
    matcher,
    number_of,
)
from esl_pipeline.sandbox.shopify.oauth import App
from esl_pipeline.sandbox.shopify.search import Fields, an_id
from esl_pipeline.sandbox.shopify.shop import Shop, Snapshot
from esl_pipeline.sandbox.shopify.subscriptions import RefusedError, Subscription
from esl_pipeline.sandbox.shopify.webhooks import gid

MAX_AT_ONCE = 5
"""Operations of one app in one shop, from API version 2026-01 on."""
URL_SECONDS = 7 * 86_400.0

_GOING_ON = ("CREATED", "RUNNING", "CANCELING")
_SEARCH: Fields = {
    "id": (an_id, lambda operation: operation.number),
    "status": (str.lower, lambda operation: operation.status.lower()),
    "operation_type": (str.lower, lambda _: "query"),
}


@dataclass
class Operation:
    """One bulk operation, as the schema's BulkOperation shows it."""

    number: int
    query: str
    created_at: datetime
    shape: Shape
    file: Path
    status: str = "CREATED"
    error_code: str | None = None
    completed_at: datetime | None = None
    object_count: int = 0
    root_object_count: int = 0
    file_size: int | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def id(self) -> str:
        return gid("BulkOperation", self.number)


class Operations:
    """The shop's bulk operations, run in threads of their own. Close it: the results are temporary files."""

    def __init__(self, shop: Shop, schema: GraphQLSchema, faults: Faults, app: App) -> None:
        self.url_seconds = URL_SECONDS
        self._shop, self._schema, self._faults, self._app = shop, schema, faults, app
        self._folder = tempfile.TemporaryDirectory(prefix="esl-shopify-")
        self._key = secrets.token_bytes(32)
        self._lock = threading.RLock()
        self._operations: dict[int, Operation] = {}
        self._threads: list[threading.Thread] = []

    def close(self) -> None:
        """Stop what runs, and throw the results away."""
        for operation in self._operations.values():
            operation.stopped.set()
        for thread in self._threads:
            thread.join()
        self._folder.cleanup()

    def start(self, query: str) -> Operation:
        """Begin an operation. Raises BulkQueryError for a query that cannot be run in bulk."""
        shape = shape_of(self._schema, query)
        with self._lock:
            number = 4_321_000_000_000 + len(self._operations) + 1
            file = Path(self._folder.name) / f"{number}.jsonl"
            operation = Operation(number, query, self._shop.time(), shape, file)
            self._operations[number] = operation
        thread = threading.Thread(target=self._run, args=(operation,), name=f"bulk-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return operation

    def busy(self) -> bool:
        """Whether as many operations run as may."""
        with self._lock:
            return sum(one.status in _GOING_ON for one in self._operations.values()) >= MAX_AT_ONCE

    def get(self, number: int) -> Operation | None:
        return self._operations.get(number)

    def all(self) -> list[Operation]:
        with self._lock:
            return list(self._operations.values())

    def cancel(self, operation: Operation) -> None:
        """Stop an operation that goes on; nothing happens to one that has ended."""
        with self._lock:
            if operation.status in _GOING_ON:
                operation.status = "CANCELED"
        operation.stopped.set()

    def _run(self, operation: Operation) -> None:
        endless = self._faults.fire(BulkEndless)
        denied = self._app.denied(set(re.findall(r"\w+", operation.query)))
        failed = BulkFailed(error_code="ACCESS_DENIED") if denied else self._faults.fire(BulkFailed)
        slow = self._faults.fire(BulkSlow)
        with self._shop.snapshot() as snapshot:
            self._go_on(operation, "RUNNING")
            self._write(operation, snapshot)
        if failed:
            operation.object_count = keep_lines(operation.file, failed.keep or 0)
            operation.root_object_count = min(operation.root_object_count, operation.object_count)
        if endless:
            operation.stopped.wait()
        elif slow:
            operation.stopped.wait(slow.seconds)
        if operation.stopped.is_set():
            return
        with self._lock:
            operation.completed_at = self._shop.time()
            if failed:
                operation.error_code = failed.error_code
            else:
                operation.file_size = operation.file.stat().st_size or None
            self._go_on(operation, "FAILED" if failed else "COMPLETED")

    def _write(self, operation: Operation, snapshot: Snapshot) -> None:
        found = blocks(operation.shape, CatalogueRoot(self._shop, snapshot))
        with operation.file.open("wb") as file:
            while not operation.stopped.is_set():
                with self._shop.lock:
                    lines, roots = next(found, ([], 0))
                if not lines:
                    return
                file.writelines(lines)
                operation.object_count += len(lines)
                operation.root_object_count += roots

    def _go_on(self, operation: Operation, status: str) -> None:
        with self._lock:
            if operation.status in _GOING_ON:
                operation.status = status

    # --- the addresses of results

    def signed(self, operation: Operation, base_url: str) -> str | None:
        """The address of an ended operation's file, good for a time; None while there is nothing to read."""
        if operation.status not in ("COMPLETED", "FAILED") or not operation.object_count:
            return None
        expired = self._faults.fire(ExpiredUrl)
        expires = int(time.time() + (-60 if expired else self.url_seconds))
        signature = self._signature(operation.number, expires)
        return f"{base_url}bulk/{operation.number}.jsonl?Expires={expires}&Signature={signature}"

    def opened(self, number: int, expires: str, signature: str) -> Operation | None:
        """The operation of a rightly signed address, expired or not."""
        if not hmac.compare_digest(signature, self._signature(number, expires)):
            return None
        return self._operations.get(number)

    def _signature(self, number: int, expires: object) -> str:
        return hmac.digest(self._key, f"{number}-{expires}".encode(), "sha256").hex()


def keep_lines(file: Path, part: float) -> int:
    """Cut a file after this part of its lines; returns how many are left."""
    with file.open("rb+") as lines:
        total = sum(1 for _ in lines)
        kept = int(total * part)
        lines.seek(0)
        for _ in range(kept):
            lines.readline()
        lines.truncate()
    return kept


class OperationNode:
    """What the schema's BulkOperation shows of an operation to one caller."""

    type = "QUERY"

    def __init__(self, operation: Operation, operations: Operations, base_url: str) -> None:
        self._operation, self._operations, self._base_url = operation, operations, base_url
        self.id, self.query = operation.id, operation.query
        self.status, self.error_code = operation.status, operation.error_code
        self.created_at = instant(operation.created_at)
        self.object_count = str(operation.object_count)
        self.file_size = None if operation.file_size is None else str(operation.file_size)

    @property
    def url(self) -> str | None:
        return self._signed("COMPLETED")

    @property
    def partial_data_url(self) -> str | None:
        return self._signed("FAILED")

    def _signed(self, status: str) -> str | None:
        if self.status != status:
            return None
        return self._operations.signed(self._operation, self._base_url)


class Root(CatalogueRoot):
    """All of the query's and the mutation's fields, for one call."""

    def __init__(self, shop: Shop, operations: Operations, app: App, base_url: str) -> None:
        super().__init__(shop)
        self._operations, self._app, self._base_url = operations, app, base_url

    @property
    def current_app_installation(self) -> Mapping[str, Any]:
        return {"access_scopes": [{"handle": scope} for scope in self._app.scopes]}

    def bulk_operation(self, id: str) -> OperationNode | None:
        found = self._operations.get(number_of("BulkOperation", id))
        return self._node(found) if found else None

    def bulk_operations(
        self, first: int | None = None, after: str | None = None, query: str | None = None
    ) -> Connection:
        match = matcher(query, _SEARCH)
        found = (one for one in self._operations.all() if match(one))
        return Connection((((one.number,), self._node(one)) for one in found), first, after)

    def bulk_operation_run_query(self, query: str, group_objects: bool = False) -> Mapping[str, Any]:
        if group_objects:
            return _refused("INVALID", "this sandbox does not group objects", "groupObjects")
        if self._operations.busy():
            return _refused("LIMIT_REACHED", "Bulk operations limit reached. Please try again later.")
        try:
            started = self._operations.start(query)
        except BulkQueryError as error:
            return _refused("INVALID", str(error), "query")
        return {"bulk_operation": self._node(started), "user_errors": []}

    def bulk_operation_cancel(self, id: str) -> Mapping[str, Any]:
        found = self._operations.get(number_of("BulkOperation", id))
        if found is None:
            error = {"field": ["id"], "message": "Bulk operation does not exist"}
            return {"bulk_operation": None, "user_errors": [error]}
        self._operations.cancel(found)
        return {"bulk_operation": self._node(found), "user_errors": []}

    def webhook_subscription_create(
        self, topic: str, webhook_subscription: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        uri, format = _asked(webhook_subscription)
        return _subscribed(lambda: self._shop.subscriptions.create(_topic(topic), uri, format))

    def webhook_subscription_update(
        self, id: str, webhook_subscription: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        number, (uri, format) = number_of("WebhookSubscription", id), _asked(webhook_subscription)
        return _subscribed(lambda: self._shop.subscriptions.update(number, uri, format))

    def webhook_subscription_delete(self, id: str) -> Mapping[str, Any]:
        try:
            self._shop.subscriptions.delete(number_of("WebhookSubscription", id))
        except RefusedError as refused:
            error = {"field": ["id"], "message": str(refused)}
            return {"deleted_webhook_subscription_id": None, "user_errors": [error]}
        return {"deleted_webhook_subscription_id": id, "user_errors": []}

    def _node(self, operation: Operation) -> OperationNode:
        return OperationNode(operation, self._operations, self._base_url)


def _asked(given: Mapping[str, Any]) -> tuple[str, str]:
    """Address and format of a WebhookSubscriptionInput."""
    return given.get("uri") or "", given.get("format") or "JSON"


def _topic(name: str) -> str:
    """`INVENTORY_LEVELS_UPDATE` as a delivery names it; of those that no shop here sends it may be another name."""
    of, _, what = name.lower().rpartition("_")
    return f"{of}/{what}"


def _subscribed(change: Callable[[], Subscription]) -> Mapping[str, Any]:
    try:
        changed = change()
    except RefusedError as refused:
        error = {"field": ["webhookSubscription", "callbackUrl"], "message": str(refused)}
        return {"webhook_subscription": None, "user_errors": [error]}
    return {"webhook_subscription": SubscriptionNode(changed), "user_errors": []}


def _refused(code: str, message: str, argument: str | None = None) -> Mapping[str, Any]:
    error = {"code": code, "field": [argument] if argument else None, "message": message}
    return {"bulk_operation": None, "user_errors": [error]}
