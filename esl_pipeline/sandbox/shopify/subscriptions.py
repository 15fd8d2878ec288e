"""What the app wants to be told, and where: its webhook subscriptions in the shop. No I/O.

Those made through the Admin API, which lists them, and those of the app's own configuration (`shopify.app.toml`), which
it does not.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from urllib.parse import urlsplit

from esl_pipeline.addresses import is_loopback

_FIRST_ID = 1_412_000_000_001


class RefusedError(Exception):
    """Shopify does not take this; the message is its user error."""


@dataclass(frozen=True)
class Subscription:
    """One of them. `topic` as in a delivery's header; `by_api`: made through the Admin API."""

    id: int
    topic: str
    uri: str
    format: str = "JSON"
    filter: str | None = None
    include_fields: tuple[str, ...] = ()
    by_api: bool = True


class Subscriptions:
    """All of them, safe to share between threads. `changed` is called after each change."""

    def __init__(self, kept: Iterable[Subscription] = ()) -> None:
        self._lock = threading.Lock()
        self._all = {one.id: one for one in kept}
        self._ids = count(max(self._all, default=_FIRST_ID - 1) + 1)
        self.changed: Callable[[], None] = lambda: None

    def all(self) -> list[Subscription]:
        """Of both kinds, oldest first."""
        with self._lock:
            return list(self._all.values())

    def of(self, topic: str) -> list[Subscription]:
        """Who is told of this topic."""
        return [one for one in self.all() if one.topic == topic]

    def get(self, number: int) -> Subscription | None:
        return self._all.get(number)

    def add(self, topic: str, uri: str, **fields: object) -> Subscription:
        """Subscribe; even to what Shopify would refuse, for tests."""
        with self._lock:
            one = replace(Subscription(next(self._ids), topic, uri), **fields)  # type: ignore[arg-type]
            self._all[one.id] = one
        self.changed()
        return one

    def declare(self, topics: Iterable[str], uri: str) -> None:
        """The app's configuration, as deployed now: it replaces the one before."""
        for one in self.all():
            if not one.by_api:
                self.remove(one.id)
        for topic in topics:
            self.add(topic, uri, by_api=False)

    def create(self, topic: str, uri: str, format: str) -> Subscription:
        """Subscribe as the API does. Raises RefusedError."""
        self._check(None, topic, uri)
        return self.add(topic, uri, format=format)

    def update(self, number: int, uri: str, format: str) -> Subscription:
        """Change one as the API does. Raises RefusedError."""
        one = self._made_by_api(number)
        self._check(number, one.topic, uri)
        with self._lock:
            self._all[number] = moved = replace(one, uri=uri, format=format)
        self.changed()
        return moved

    def delete(self, number: int) -> None:
        """Delete one as the API does. Raises RefusedError."""
        self._made_by_api(number)
        self.remove(number)

    def remove(self, number: int) -> None:
        """It is gone, e.g. because its deliveries failed again and again."""
        with self._lock:
            self._all.pop(number, None)
        self.changed()

    def clear(self) -> None:
        """The app was uninstalled: what it made here is gone."""
        for one in self.all():
            if one.by_api:
                self.remove(one.id)

    def _made_by_api(self, number: int) -> Subscription:
        one = self.get(number)
        if one is None or not one.by_api:
            raise RefusedError("Webhook subscription does not exist")
        return one

    def _check(self, number: int | None, topic: str, uri: str) -> None:
        parts = urlsplit(uri)
        # http:// to this machine is the sandbox's own exception.
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise RefusedError(f"Address protocol {parts.scheme}:// is not supported")
        # Not those of the app's configuration: a shop that has both is told twice.
        if any(one.uri == uri and one.by_api and one.id != number for one in self.of(topic)):
            raise RefusedError("Address for this topic has already been taken")
