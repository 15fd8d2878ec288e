"""The webhook routes: one address for all topics, one for each, their answers, and a line in the log per delivery."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader

from esl_pipeline.receiver.answers import Answers, Kept, refusals
from esl_pipeline.receiver.intake import Intake, Limits
from esl_pipeline.receiver.protocol import ReceiverBuffer
from esl_pipeline.receiver.refusals import Refusals
from esl_pipeline.settings import Settings
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS
from esl_pipeline.sources.shopify.shop_names import SHOP
from esl_pipeline.sources.shopify.topics import PATH, TOPICS

log = logging.getLogger(__name__)


def webhook_router(
    settings: Settings, buffer: ReceiverBuffer, limits: Limits, refusals: Refusals
) -> APIRouter:
    """`POST /webhooks/shopify` for all topics in use, and `POST /webhooks/shopify/<topic>` for each."""
    intake = Intake(settings, buffer, limits, refusals)

    def route(topic: str | None) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def receive(request: Request) -> JSONResponse:
            try:
                outcome = await intake.keep(topic, request)
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

    # For the OpenAPI page only: who signed is decided in `Intake`, from the raw body.
    signed = APIKeyHeader(name="X-Shopify-Hmac-Sha256", scheme_name="signature", auto_error=False)
    router = APIRouter(prefix=PATH, tags=["webhooks"], dependencies=[Depends(signed)])
    topics = (*TOPICS, *LIFECYCLE_TOPICS)
    for topic in (None, *topics):
        router.add_api_route(
            f"/{topic}" if topic else "",
            route(topic),
            methods=["POST"],
            name=topic or "any topic",
            summary=f"Receive {topic or 'any of the topics below'}",
            responses=_ANSWERS,
            openapi_extra=_takes(*([topic] if topic else topics)),
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


def _takes(*topics: str) -> dict[str, Any]:
    """Headers and body for the OpenAPI page. A signed body is kept whatever it is, so none is described as wrong."""
    headers = {
        "X-Shopify-Topic": {"type": "string", "enum": list(topics)},
        "X-Shopify-Shop-Domain": {"type": "string", "pattern": f"^{SHOP.pattern}$"},
    }
    parameters = [{"name": n, "in": "header", "required": True, "schema": s} for n, s in headers.items()]
    return {"parameters": parameters, "requestBody": {"content": {"application/json": {"schema": {}}}}}


def _described(topic: str | None, request: Request) -> str:
    """The delivery in one line. Its headers are a stranger's text: cut, and escaped to plain ASCII."""
    claimed, shop, webhook_id = (
        request.headers.get(f"x-shopify-{name}", "")[:128] for name in ("topic", "shop-domain", "webhook-id")
    )
    return f"{topic or ascii(claimed)} from shop {shop!a} with id {webhook_id!a}"
