"""Sends webhooks as Shopify does: with little patience, again and again, and not always once or in order.

A delivery succeeds with any 2xx within the time-out. Else it is sent again, 8 times over 4 hours, at doubling
intervals and with its original body and headers. When all of that fails, the subscription is gone. (Shopify
speaks of "8 consecutive failures"; that these are one delivery's is our reading.)
"""

import asyncio
import random
import threading
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import NAMESPACE_OID, uuid5

import httpx
from pydantic import BaseModel, ConfigDict, Field

from esl_pipeline.http import trusted
from esl_pipeline.sandbox.shopify.subscriptions import Subscriptions
from esl_pipeline.sandbox.shopify.webhooks import Delivery

RETRIES = 8
RETRY_HOURS = 4.0
TIMEOUT_SECONDS = 5.0
CONNECT_SECONDS = 1.0
ATTEMPTS_KEPT = 100_000


class Switches(BaseModel):
    """What goes wrong on the way. Chances are of a delivery; `drop_numbers` are deliveries, counted from 1."""

    model_config = ConfigDict(extra="forbid")

    drop: float = Field(default=0, ge=0, le=1)
    drop_numbers: list[int] = []
    duplicate: float = Field(default=0, ge=0, le=1)
    delay: float = Field(default=0, ge=0, le=1)
    delay_seconds: float = Field(default=1, ge=0)
    """Up to so much later than others; those sent in the meantime overtake it."""


@dataclass(frozen=True)
class Attempt:
    """One line of the log: a try to deliver, or why there was none."""

    at: str
    number: int
    """The delivery's, counted from 1."""
    topic: str
    webhook_id: str
    attempt: int
    """1, and 2 to 9 for retries; 0 when nothing was sent."""
    outcome: str
    """`delivered`, `failed`, `dropped` (by a switch) or `unsubscribed`."""
    detail: str
    """The HTTP status, or what went wrong instead."""
    seconds: float


def retry_gaps(hours: float = RETRY_HOURS) -> list[float]:
    """The seconds before each retry: each twice the one before, all of them in so many hours."""
    first = hours * 3600 / (2**RETRIES - 1)
    return [first * 2**number for number in range(RETRIES)]


@dataclass(frozen=True)
class _Target:
    """Where a delivery goes, and by which subscription; None for the address by hand."""

    uri: str
    subscription: int | None = None


class WebhookSender:
    """Delivers to whoever subscribed, signed with `secret`, in a thread of its own; use it as a context manager.

    `subscriptions` are the shop's; `address` is one made by hand: it gets every topic, at `{address}/{topic}`.
    With one connection deliveries leave in the order of `send`. `retry_hours` is Shopify's four; tests take less.
    `ca_file` (PEM): the authority that signed the receiver's certificate, where it is not a public one.
    """

    def __init__(
        self,
        address: str | None,
        secret: str,
        *,
        subscriptions: Subscriptions | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_hours: float = RETRY_HOURS,
        connections: int = 1,
        switches: Switches | None = None,
        seed: int = 0,
        ca_file: Path | None = None,
    ) -> None:
        self.switches = switches or Switches()
        self._address, self.secret = address.rstrip("/") if address else None, secret
        self._subscriptions = subscriptions or Subscriptions()
        self._ca_file = ca_file
        self._timeout = httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
        self._whole_timeout = timeout_seconds
        self._gaps = retry_gaps(retry_hours)
        self._connections = connections
        self._rng = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        self._log: deque[Attempt] = deque(maxlen=ATTEMPTS_KEPT)
        self._outcomes: Counter[str] = Counter()
        self._removed: set[str] = set()
        self._unsubscribed = False
        self._sent = self._pending = 0
        self._changed = threading.Condition(threading.RLock())
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="webhook-sender", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop; what is not delivered yet stays undelivered."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def send(self, delivery: Delivery) -> None:
        """Deliver this, soon."""
        with self._changed:
            self._sent += 1
            number, topic = self._sent, delivery.topic
            switches = self.switches
            # Each chance is drawn for each delivery, so that one switch does not move the others' luck.
            dropped, doubled, late = (self._rng.random() for _ in range(3))
            delay = self._rng.uniform(0, switches.delay_seconds) if late < switches.delay else 0.0
            targets = self._targets(topic)
            if not targets:
                gone = topic in self._removed or self._unsubscribed
                why = "the subscription is gone" if gone else "nobody subscribed to this topic"
                self._note(number, delivery, "unsubscribed", why)
                return
            if dropped < switches.drop or number in switches.drop_numbers:
                self._note(number, delivery, "dropped", "by a switch")
                return
            copies = 2 if doubled < switches.duplicate else 1
            self._pending += copies * len(targets)
        for place, target in enumerate(targets):
            # Each subscription's delivery has an id of its own; the event is the same.
            own = str(uuid5(NAMESPACE_OID, f"{delivery.webhook_id} {target.subscription}"))
            sent = replace(delivery, webhook_id=own) if place else delivery
            for _ in range(copies):
                asyncio.run_coroutine_threadsafe(self._deliver(number, sent, target, delay), self._loop)

    def wait(self, timeout: float) -> bool:
        """Whether everything was delivered or given up within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout)

    def unsubscribe(self) -> None:
        """End every subscription. What has been sent by then goes on being tried."""
        with self._changed:
            self._unsubscribed = True

    def subscribe(self) -> None:
        """Subscribe again to the topics whose subscription is gone."""
        with self._changed:
            self._unsubscribed = False
            self._removed.clear()

    def attempts(self) -> list[Attempt]:
        """The log, oldest first."""
        with self._changed:
            return list(self._log)

    def state(self, last: int = 100) -> dict[str, Any]:
        """How it stands, as plain data, with the newest lines of the log first."""
        with self._changed:
            return {
                "address": self._address,
                "subscriptions": [asdict(one) for one in self._subscriptions.all()],
                "sent": self._sent,
                "pending": self._pending,
                "outcomes": dict(self._outcomes),
                "removed": sorted(self._removed),
                "switches": self.switches.model_dump(),
                "attempts": [asdict(one) for one in islice(reversed(self._log), last)],
            }

    def _targets(self, topic: str) -> list[_Target]:
        by_hand = self._address is not None and topic not in self._removed and not self._unsubscribed
        return [
            *([_Target(f"{self._address}/{topic}")] if by_hand else []),
            *(_Target(one.uri, one.id) for one in self._subscriptions.of(topic)),
        ]

    def _is_gone(self, target: _Target, topic: str) -> bool:
        if target.subscription is None:
            return topic in self._removed
        return self._subscriptions.get(target.subscription) is None

    def _remove(self, target: _Target, topic: str) -> None:
        if target.subscription is None:
            self._removed.add(topic)
        else:
            self._subscriptions.remove(target.subscription)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._slots = asyncio.Semaphore(self._connections)
        async with httpx.AsyncClient(
            timeout=self._timeout, trust_env=False, verify=trusted(self._ca_file)
        ) as self._http:
            self._ready.set()
            await self._stop.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, number: int, delivery: Delivery, target: _Target, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            for attempt, gap in enumerate([*self._gaps, 0.0], 1):
                # What was sent before somebody unsubscribed is out: the last one says that the app was uninstalled.
                if attempt > 1 and self._is_gone(target, delivery.topic):
                    self._note(number, delivery, "unsubscribed", "the subscription is gone")
                    return
                if await self._attempt(number, delivery, target.uri, attempt):
                    return
                await asyncio.sleep(gap)
            self._remove(target, delivery.topic)
        finally:
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()

    async def _attempt(self, number: int, delivery: Delivery, uri: str, attempt: int) -> bool:
        """Whether this try succeeded."""
        async with self._slots:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._whole_timeout):
                    answer = await self._http.post(
                        uri,
                        content=delivery.body,
                        headers=delivery.headers(self.secret),
                    )
                done, detail = answer.is_success, str(answer.status_code)
            except (httpx.TransportError, TimeoutError) as error:
                done, detail = False, type(error).__name__
            seconds = round(time.monotonic() - began, 4)
        outcome = "delivered" if done else "failed"
        self._note(number, delivery, outcome, detail, attempt=attempt, seconds=seconds)
        return done

    def _note(
        self,
        number: int,
        delivery: Delivery,
        outcome: str,
        detail: str,
        *,
        attempt: int = 0,
        seconds: float = 0,
    ) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = Attempt(at, number, delivery.topic, delivery.webhook_id, attempt, outcome, detail, seconds)
        with self._changed:
            self._log.append(line)
            self._outcomes[outcome] += 1
