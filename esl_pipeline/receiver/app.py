"""The webhook function: webhooks in, store mappings, health. One FastAPI application, or one for each of the two."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.receiver.answers import Health
from esl_pipeline.receiver.intake import Intake, Limits
from esl_pipeline.receiver.lockout import Lockout
from esl_pipeline.receiver.mappings import buffer_failure, mapping_router
from esl_pipeline.receiver.refusals import Refusals
from esl_pipeline.receiver.tokens import Gate
from esl_pipeline.receiver.webhooks import Ways, webhook_routers, webhook_ways
from esl_pipeline.settings import Settings

Part = Literal["webhooks", "admin"]

PING_SECONDS = 2.0

log = logging.getLogger(__name__)


def create_app(
    settings: Settings, buffer: Buffer, limits: Limits | None = None, only: Part | None = None
) -> FastAPI:
    """The application; what it holds beside the buffer (limits, lock-outs) may be forgotten.

    only: nothing but that part, and health. So the store-mapping API can be kept off the port that shops reach.
    """
    shown, refusals = settings.app_environment != "production", Refusals()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telling = asyncio.create_task(refusals.keep_telling(buffer)) if only != "admin" else None
        yield
        if telling:
            telling.cancel()

    app = FastAPI(
        title="Shelf label webhooks",
        openapi_url="/openapi.json" if shown else None,
        docs_url="/docs" if shown else None,
        redoc_url=None,
        # A redirect would name the host and scheme that the request claims, and a token would follow it there.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_exception_handler(BufferError, buffer_failure)  # type: ignore[arg-type]
    if only != "admin":
        hooks = [found for source in settings.sources.values() if (found := source.webhooks())]
        if not any(found.are_verifiable for found in hooks):
            # 401 and not 503: without a secret nothing can be verified, and a stranger shall not learn from the
            # answer how the receiver is set up.
            log.warning(
                "No webhook secret is set, nor an app's: every webhook is refused with 401 until one is."
            )
        ways = webhook_ways(settings, Intake(settings, buffer, limits or Limits(), refusals))
        app.add_middleware(Ways, ways=ways)
        for router in webhook_routers(settings, ways):
            app.include_router(router)
    if only != "webhooks":
        app.include_router(mapping_router(Gate(settings.esl_admin_token, buffer, Lockout()), buffer))
    app.include_router(_health_router(buffer))
    return app


def _health_router(buffer: Buffer) -> APIRouter:
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
            responses={
                200: {"model": Health},
                503: {"model": Health, "description": "The buffer cannot be reached."},
            },
        )
    return router
