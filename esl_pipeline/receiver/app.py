"""The webhook function: webhooks in, store mappings, health. One FastAPI application."""

import asyncio
import logging

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.receiver.mappings import buffer_failure, mapping_router
from esl_pipeline.receiver.protocol import ReceiverBuffer
from esl_pipeline.receiver.webhooks import Limits, webhook_router
from esl_pipeline.settings import Settings

PING_SECONDS = 2.0

log = logging.getLogger(__name__)


def create_app(settings: Settings, buffer: ReceiverBuffer, limits: Limits | None = None) -> FastAPI:
    """The application; it holds no state of its own beside the buffer."""
    if not settings.webhook_secrets:
        # 401 and not 503: without a secret nothing can be verified, and a stranger shall not learn from the
        # answer how the receiver is set up.
        log.warning("SHOPIFY_WEBHOOK_SECRET is not set: every webhook is refused with 401 until it is.")
    shown = settings.app_environment != "production"
    app = FastAPI(
        title="Shelf label webhooks",
        openapi_url="/openapi.json" if shown else None,
        docs_url="/docs" if shown else None,
        redoc_url=None,
    )
    app.add_exception_handler(BufferError, buffer_failure)  # type: ignore[arg-type]
    app.include_router(webhook_router(settings, buffer, limits or Limits()))
    app.include_router(mapping_router(settings, buffer))
    app.include_router(_health_router(buffer))
    return app


def _health_router(buffer: ReceiverBuffer) -> APIRouter:
    pending: asyncio.Task[bool] | None = None

    def reachable() -> bool:
        try:
            buffer.ping()
        except BufferError as error:
            log.warning("health: the buffer cannot be reached: %a", str(error))
            return False
        return True

    async def health() -> JSONResponse:
        # Everybody may ask: all who ask at a time share one ping, and nobody waits long for a silent buffer.
        nonlocal pending
        if pending is None or pending.done():
            pending = asyncio.create_task(asyncio.to_thread(reachable))
        done, _ = await asyncio.wait([pending], timeout=PING_SECONDS)
        if done and pending.result():
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unavailable"}, 503)

    router = APIRouter(tags=["health"])
    for path in ("/", "/health"):
        router.add_api_route(
            path,
            health,
            methods=["GET"],
            summary="Whether webhooks can be kept",
            responses={503: {"description": "The buffer cannot be reached."}},
        )
    return router
