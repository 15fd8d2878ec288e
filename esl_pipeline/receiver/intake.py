"""What becomes of one webhook: read, verified, counted, kept with those that came together with it."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import ceil
from typing import Any

from fastapi import HTTPException, Request

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.receiver.body import read_body
from esl_pipeline.receiver.groups import Crowded, Groups
from esl_pipeline.receiver.held import vouch
from esl_pipeline.receiver.large import LARGE_BYTES, one_at_a_time
from esl_pipeline.receiver.pace import Backlog, Pace
from esl_pipeline.receiver.places import Room
from esl_pipeline.receiver.refusals import Refusals
from esl_pipeline.settings import Settings
from esl_pipeline.sources.source import DeliveryError, Source, Webhooks

RETRY_AFTER_SECONDS = 5
REFUSED_SECONDS = 600
SMALL_BYTES = 8_000
"""Up to here a body is parsed by the event loop itself: a thread would take longer to begin."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one receiver process carries at a time; beyond it, deliveries are answered 503 or 429 and come again.

    Bodies take room in bytes (`room_bytes`), from their first byte to the answer. `reading` of them may be unfinished
    at a time; `storing` signed ones may queue for the buffer (kept in groups, by `threads` calls at most, large ones
    each alone by `large`), so that a burst or a short stall of the database costs time and not a failed delivery. How
    they are shared is in `places` and `groups`.

    One shop may send `per_second` and `bytes_per_second`, and `burst` and `burst_bytes` at once, while no more of it
    than `waiting` and `waiting_bytes` is still to be worked off. What is more is answered 429.
    """

    body_seconds: float = 5  # senders give up: Shopify on the whole request after 5 s
    room_bytes: int = 64_000_000
    reading: int = 2_000
    storing: int = 256
    threads: int = 5
    large: int = 2
    per_second: float = 500
    burst: float = 10_000
    bytes_per_second: float = 1_000_000
    burst_bytes: float = 20_000_000
    waiting: int = 50_000
    waiting_bytes: int = 1_000_000_000


class Intake:
    """Keeps the webhooks of one receiver process, within its limits."""

    def __init__(self, settings: Settings, buffer: Buffer, limits: Limits, refusals: Refusals) -> None:
        self._buffer, self._limits, self._refusals = buffer, limits, refusals
        self._longest = settings.esl_webhook_body_limit_bytes
        self._room = Room(max(limits.room_bytes, 4 * self._longest), limits.reading, limits.storing)
        self._deliveries = Pace(limits.per_second, limits.burst)
        self._bytes = Pace(limits.bytes_per_second, limits.burst_bytes)
        self._backlog = Backlog(limits.waiting, limits.waiting_bytes)
        self._groups = Groups(buffer, limits.threads)
        self._large_threads = ThreadPoolExecutor(limits.large, thread_name_prefix="large")

    async def keep(self, source: Source[Any], hooks: Webhooks, topic: str | None, request: Request) -> str:
        """Keep the delivery; answers "accepted", "duplicate" or "greeted". Raises HTTPException for everything else.

        topic: the route's, None for the one that takes all of them.
        """
        headers = request.headers
        with self._room.place() as place:
            _refuse_encoded(request)
            raw = await read_body(request, self._longest, self._limits.body_seconds, place)
            now, shop = datetime.now(UTC), hooks.claimed_shop(headers)
            if hooks.is_greeting(headers, raw):
                return "greeted"
            signed = headers, raw, now
            large = len(raw) > LARGE_BYTES
            if not (await asyncio.to_thread(hooks.is_signed, *signed) if large else hooks.is_signed(*signed)):
                if hooks.claims_signature(headers):  # who signs nothing has no wrong secret
                    self._refusals.refused(source.system, shop, now)
                raise HTTPException(401, "The signature is missing or wrong.")
            vouch(request.scope)
            # A request that names no shop is refused when it is read; until then it is nobody's.
            party = f"{source.system}:{shop or ''}"
            with self._room.share(party, len(raw)) as fits:
                if not fits:
                    raise _come_again()
                self._hold_back(party, len(raw))
                read = partial(_delivery, hooks, topic, request, raw, now)
                stored = await self._stored(read, party, len(raw))
            self._backlog.told(party, stored.get("waiting"), time.monotonic())
        if refused := stored.get("refused"):
            raise _later(REFUSED_SECONDS, f"The shop has sent too much: {refused}")
        return "accepted" if stored["inserted"] else "duplicate"

    async def _stored(self, read: Callable[[], dict[str, Any]], shop: str, size: int) -> dict[str, Any]:
        """What the buffer says of the delivery, once it is committed."""
        loop = asyncio.get_running_loop()
        try:
            if size > LARGE_BYTES:
                return await loop.run_in_executor(self._large_threads, self._store_large, read)
            row = read() if size <= SMALL_BYTES else await asyncio.to_thread(read)
            return await self._groups.keep(row, shop, size)
        except Crowded:
            raise _come_again() from None
        except BufferError as error:
            raise _come_again() from error

    def _store_large(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with one_at_a_time():
            row = read()
        try:
            return self._buffer.inbox_add([row])
        except BufferError as error:
            log.error("the buffer kept nothing: %a", str(error))
            raise

    def _hold_back(self, shop: str, size: int) -> None:
        now = time.monotonic()
        if wait := max(self._deliveries.wait(shop, now), self._bytes.wait(shop, now, size)):
            raise _later(wait, "The shop sends too much at once.")
        if wait := self._backlog.wait(shop, now):
            raise _later(wait, "Too much of the shop is still to be worked off.")


def _delivery(
    hooks: Webhooks, topic: str | None, request: Request, raw: bytes, now: datetime
) -> dict[str, Any]:
    """The delivery as the inbox keeps it. Raises HTTPException 400 where the headers do not say what it is."""
    try:
        kept = hooks.delivery(topic, request.headers, raw, now)
    except DeliveryError as error:
        raise HTTPException(400, str(error)) from None
    return {**kept, "proven": hooks.proves(kept["source_store_id"])}


def _come_again() -> HTTPException:
    return HTTPException(
        503,
        "The delivery could not be kept; send it again.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _later(seconds: float, detail: str) -> HTTPException:
    return HTTPException(429, detail, headers={"Retry-After": str(ceil(seconds))})


def _refuse_encoded(request: Request) -> None:
    # The signature is over the bytes as sent, and unpacking what a stranger packed can exhaust the memory.
    if any(value.lower() != "identity" for value in request.headers.getlist("content-encoding")):
        raise HTTPException(415, "The body must be sent without a content encoding.")
