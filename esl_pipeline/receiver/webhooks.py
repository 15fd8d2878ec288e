"""The webhook routes: verify, make a delivery of it, keep it with one buffer call, answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.receiver.answers import Answers, Kept, refusals
from esl_pipeline.receiver.body import read_body
from esl_pipeline.receiver.deliveries import LIFECYCLE_TOPICS, TOPICS, HeaderError, claimed_shop, delivery
from esl_pipeline.receiver.pace import Pace
from esl_pipeline.receiver.protocol import ReceiverBuffer
from esl_pipeline.receiver.signature import verify
from esl_pipeline.settings import Settings
from esl_pipeline.shop_names import SHOP
from esl_pipeline.webhook_secrets import keys_for, proves

RETRY_AFTER_SECONDS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one receiver process carries at a time; beyond it, deliveries are answered 503 and come again.

    Few bodies are held while they are unverified (`reading`, ESL_WEBHOOK_BODY_LIMIT_BYTES each at most). More
    of the verified ones may queue for the buffer (`storing`, worked off by `threads`), so that a burst or a
    short stall of the database costs time and not a failed delivery.

    One shop may send `per_second`, and `burst` at once; what is more is answered 429 and comes again, so that a shop
    run wild does not take the others' places.
    """

    body_seconds: float = 5  # Shopify gives up on the whole request after 5 s
    reading: int = 64
    storing: int = 256
    threads: int = 16
    per_second: float = 500
    burst: float = 10_000


def webhook_router(settings: Settings, buffer: ReceiverBuffer, limits: Limits) -> APIRouter:
    """`POST /webhooks/shopify/<topic>` for each topic in use."""
    secrets = settings.webhook_secrets
    reading = _Slots(limits.reading)
    storing = _Slots(limits.storing)
    pace = Pace(limits.per_second, limits.burst)
    threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="inbox")

    async def keep(topic: str, request: Request) -> str:
        """Keep the delivery; answers "accepted" or "duplicate". Raises HTTPException for everything else."""
        with reading.taken():
            _refuse_encoded(request)
            raw = await read_body(request, settings.esl_webhook_body_limit_bytes, limits.body_seconds)
            now = datetime.now(UTC)
            if not verify(raw, _signature(request), keys_for(secrets, claimed_shop(request.headers), now)):
                raise HTTPException(401, "The signature is missing or wrong.")
        try:
            kept = delivery(topic, request.headers, raw, now)
            kept["proven"] = proves(secrets, kept["source_store_id"])
        except HeaderError as error:
            raise HTTPException(400, str(error)) from None
        if wait := pace.wait(kept["source_store_id"], time.monotonic()):
            raise HTTPException(429, "The shop sends too much at once.", {"Retry-After": str(ceil(wait))})
        with storing.taken():
            try:
                stored = await asyncio.get_running_loop().run_in_executor(threads, buffer.inbox_add, [kept])
            except BufferError as error:
                log.error("the buffer kept nothing: %a", str(error))
                raise _come_again() from error
        return "accepted" if stored["inserted"] else "duplicate"

    def route(topic: str) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def receive(request: Request) -> JSONResponse:
            try:
                outcome = await keep(topic, request)
            except HTTPException as refused:
                log.warning(
                    "webhook %s, outcome %d %s",
                    _described(topic, request),
                    refused.status_code,
                    refused.detail,
                )
                raise
            log.info("webhook %s, outcome %s", _described(topic, request), outcome)
            return JSONResponse({"status": outcome})

        return receive

    # For the OpenAPI page only: who signed is decided in `keep`, from the raw body.
    signed = APIKeyHeader(name="X-Shopify-Hmac-Sha256", scheme_name="signature", auto_error=False)
    router = APIRouter(prefix="/webhooks/shopify", tags=["webhooks"], dependencies=[Depends(signed)])
    for topic in (*TOPICS, *LIFECYCLE_TOPICS):
        router.add_api_route(
            f"/{topic}",
            route(topic),
            methods=["POST"],
            name=topic,
            summary=f"Receive {topic}",
            responses=_ANSWERS,
            openapi_extra=_takes(topic),
        )
    return router


_ANSWERS: Answers = {
    200: {"model": Kept, "description": "Kept, or known already."},
    **refusals(
        {
            400: "The topic or shop header does not fit; nothing is kept.",
            401: "The signature is missing or wrong.",
            408: "The body came too slowly.",
            413: "The body is too long.",
            415: "The body is compressed.",
            429: "The shop sends too much at once; send it again.",
            503: "Nothing could be kept; send it again.",
        }
    ),
}


def _takes(topic: str) -> dict[str, Any]:
    """Headers and body for the OpenAPI page. A signed body is kept whatever it is, so none is described as wrong."""
    headers = {
        "X-Shopify-Topic": {"type": "string", "enum": [topic]},
        "X-Shopify-Shop-Domain": {"type": "string", "pattern": f"^{SHOP.pattern}$"},
    }
    parameters = [{"name": n, "in": "header", "required": True, "schema": s} for n, s in headers.items()]
    return {"parameters": parameters, "requestBody": {"content": {"application/json": {"schema": {}}}}}


class _Slots:
    """A count of places, refused instead of waited for when none is free. For one event loop."""

    def __init__(self, free: int) -> None:
        self._free = free

    @contextmanager
    def taken(self) -> Iterator[None]:
        if self._free == 0:
            raise _come_again()
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


def _come_again() -> HTTPException:
    return HTTPException(
        503,
        "The delivery could not be kept; send it again.",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _refuse_encoded(request: Request) -> None:
    # The signature is over the bytes as sent, and unpacking what a stranger packed can exhaust the memory.
    if any(value.lower() != "identity" for value in request.headers.getlist("content-encoding")):
        raise HTTPException(415, "The body must be sent without a content encoding.", {"Connection": "close"})


def _signature(request: Request) -> str:
    """The signature header; empty, which never verifies, when it is missing or given more than once."""
    values = request.headers.getlist("x-shopify-hmac-sha256")
    return values[0] if len(values) == 1 else ""


def _described(topic: str, request: Request) -> str:
    """The delivery in one line. Its headers are a stranger's text: cut, and escaped to plain ASCII."""
    shop, webhook_id = (
        request.headers.get(name, "")[:128] for name in ("x-shopify-shop-domain", "x-shopify-webhook-id")
    )
    return f"{topic} from shop {shop!a} with id {webhook_id!a}"
