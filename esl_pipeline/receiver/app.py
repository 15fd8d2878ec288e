"""The webhook function: webhooks in, store mappings, metrics, the console for staff, health. One FastAPI application,
or one for each part."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, RedirectResponse

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.logins import Work, check_login
from esl_pipeline.receiver.answers import Health
from esl_pipeline.receiver.intake import Intake, Limits
from esl_pipeline.receiver.lockout import Lockout
from esl_pipeline.receiver.mappings import buffer_failure, mapping_router
from esl_pipeline.receiver.metrics import metrics_router
from esl_pipeline.receiver.refusals import Refusals
from esl_pipeline.receiver.tokens import Gate
from esl_pipeline.receiver.webhooks import Receiver, Way, webhook_routers, webhook_ways
from esl_pipeline.settings import Settings

Part = Literal["webhooks", "admin", "console"]

PING_SECONDS = 2.0

log = logging.getLogger(__name__)


def create_app(
    settings: Settings, buffer: Buffer, limits: Limits | None = None, only: Part | None = None
) -> FastAPI:
    """The application; what it holds beside the buffer (limits, lock-outs) may be forgotten.

    only: nothing but that part, and health. So the store-mapping API can be kept off the port that shops reach. With it
    goes the console.
    """
    shown, refusals, ways = settings.app_environment != "production", Refusals(), dict[str, Way]()
    if only in (None, "webhooks"):
        ways = webhook_ways(settings, Intake(settings, buffer, limits or Limits(), refusals))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        telling = asyncio.create_task(refusals.keep_telling(buffer)) if only in (None, "webhooks") else None
        yield
        if telling:
            telling.cancel()

    app = Receiver(
        ways,
        title="Shelf label webhooks",
        openapi_url="/openapi.json" if shown else None,
        docs_url=None,
        redoc_url=None,
        # A redirect would name the host and scheme that the request claims, and a token would follow it there.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_exception_handler(BufferError, buffer_failure)  # type: ignore[arg-type]
    if shown:
        from esl_pipeline.console.reference import add_reference

        add_reference(app)
    if only in (None, "webhooks"):
        hooks = [found for source in settings.sources.values() if (found := source.webhooks())]
        if not any(found.are_verifiable for found in hooks):
            # 401 and not 503: without a secret nothing can be verified, and a stranger shall not learn from the
            # answer how the receiver is set up.
            log.warning(
                "No webhook secret is set, nor an app's: every webhook is refused with 401 until one is."
            )
        for router in webhook_routers(settings, ways):
            app.include_router(router)
    if only != "webhooks":
        _add_staff(app, Gate(settings.esl_admin_token, buffer, Lockout()), buffer, only)
    app.include_router(_health_router(buffer, works_of(only)))
    return app


def _add_staff(app: FastAPI, gate: Gate, buffer: Buffer, only: Part | None) -> None:
    """What asks for a token. Wrong ones count together, wherever they were tried."""
    from esl_pipeline.console.app import console_router

    if only == "console":
        app.add_api_route("/", lambda: RedirectResponse("/console", 303), include_in_schema=False)
    else:
        app.include_router(mapping_router(gate, buffer))
        app.include_router(metrics_router(gate, buffer))
    app.include_router(console_router(gate, buffer))


def works_of(only: Part | None) -> tuple[Work, ...]:
    """What a part asks of the buffer's login."""
    works: dict[Part | None, tuple[Work, ...]] = {None: ("receiver", "admin"), "webhooks": ("receiver",)}
    return works.get(only, ("admin",))


def _health_router(buffer: Buffer, works: tuple[Work, ...]) -> APIRouter:
    pending: asyncio.Task[bool] | None = None

    def works_now() -> bool:
        try:
            for work in works:
                check_login(buffer, work)
        except BufferError as error:
            log.warning("health: the buffer cannot be used: %a", str(error))
            return False
        return True

    async def health() -> JSONResponse:
        # Everybody may ask: all who ask at a time share one ping, and nobody waits long for a silent buffer.
        nonlocal pending
        if pending is None or pending.done():
            pending = asyncio.create_task(asyncio.to_thread(works_now))
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
            summary="Whether webhooks can be kept, and staff can be answered",
            responses={
                200: {"model": Health},
                503: {
                    "model": Health,
                    "description": "The buffer cannot be reached, or does not let this process.",
                },
            },
        )
    return router
