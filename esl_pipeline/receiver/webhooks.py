"""The webhook routes of every source: one address for all topics, one for each, and a line in the log per delivery."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader

from esl_pipeline.receiver.answers import Answers, Kept, refusals
from esl_pipeline.receiver.intake import Intake
from esl_pipeline.settings import Settings
from esl_pipeline.sources.source import Source, Webhooks

log = logging.getLogger(__name__)


def webhook_routers(settings: Settings, intake: Intake) -> Iterator[APIRouter]:
    """Of each source that sends webhooks, `POST <its path>` for all topics and `POST <its path>/<topic>` for each."""
    for source in settings.sources.values():
        if hooks := source.webhooks():
            yield _router(source, hooks, intake)


def _router(source: Source[Any], hooks: Webhooks, intake: Intake) -> APIRouter:
    def route(topic: str | None) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def receive(request: Request) -> JSONResponse:
            try:
                outcome = await intake.keep(source, hooks, topic, request)
            except HTTPException as refused:
                log.warning(
                    "webhook %s, outcome %d %s",
                    _described(hooks, topic, request),
                    refused.status_code,
                    refused.detail,
                )
                raise
            log.info("webhook %s, outcome %s", _described(hooks, topic, request), outcome)
            return JSONResponse({"status": outcome})

        return receive

    # For the OpenAPI page only: who signed is decided in `Intake`, from the raw body.
    signed = APIKeyHeader(
        name=hooks.signature_header, scheme_name=f"{source.system} signature", auto_error=False
    )
    router = APIRouter(prefix=hooks.path, tags=[f"{source.name} webhooks"], dependencies=[Depends(signed)])
    for topic in (None, *hooks.topics):
        router.add_api_route(
            f"/{topic}" if topic else "",
            route(topic),
            methods=["POST"],
            name=topic or "any topic",
            summary=f"Receive {topic or 'any of the topics below'}",
            responses=_ANSWERS,
            openapi_extra=_takes(hooks, *([topic] if topic else hooks.topics)),
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


def _takes(hooks: Webhooks, *topics: str) -> dict[str, Any]:
    """Headers and body for the OpenAPI page. A signed body is kept whatever it is, so none is described as wrong."""
    parameters = [
        {"name": name, "in": "header", "required": True, "schema": schema}
        for name, schema in hooks.parameters(topics).items()
    ]
    return {"parameters": parameters, "requestBody": {"content": {"application/json": {"schema": {}}}}}


def _described(hooks: Webhooks, topic: str | None, request: Request) -> str:
    """The delivery in one line. Its headers are a stranger's text: cut, and escaped to plain ASCII."""
    claimed, shop, webhook_id = (text[:128] for text in hooks.described(request.headers))
    return f"{topic or ascii(claimed)} from shop {shop!a} with id {webhook_id!a}"
