"""A shop read through Shopify's Admin API, in the words of `source.Reader`."""

import time
from collections.abc import Iterator
from datetime import datetime

from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.admin import (
    AdminClient,
    read_catalogue,
    read_changed_since,
    read_product,
    read_shop,
    read_stock,
    takes_token,
)
from esl_pipeline.sources.shopify.admin.bulk import BulkOperation, OnPoll, Sleep
from esl_pipeline.sources.source import OnStart, Reader


class ShopifyReader(Reader):
    """Reads a shop (its domain) with a client of its Admin API; the client is closed with it."""

    def __init__(self, client: AdminClient, shop: str, *, sleep: Sleep = time.sleep) -> None:
        self._client, self._shop, self._sleep = client, shop, sleep

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def lets_in(self) -> bool | None:
        """Whether the shop takes our token."""
        return takes_token(self._client)

    def shop(self) -> Facts:
        """Currency, taxes and time zone."""
        return read_shop(self._client, self._shop)

    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        """By a bulk operation, which began when Shopify says so."""
        return read_catalogue(
            self._client, shop=self._shop, chunk=chunk, on_poll=_told(on_start), sleep=self._sleep
        )

    def stock(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        """By another one."""
        return read_stock(
            self._client, shop=self._shop, chunk=chunk, on_poll=_told(on_start), sleep=self._sleep
        )

    def changes(self, since: datetime) -> Iterator[Facts]:
        """By Shopify's search, which lags."""
        return read_changed_since(self._client, shop=self._shop, since=since)

    def product(self, product_id: str) -> Facts | None:
        """By its id."""
        return read_product(self._client, product_id, self._shop)


def _told(on_start: OnStart) -> OnPoll:
    def note(operation: BulkOperation) -> None:
        on_start(operation.created_at)

    return note
