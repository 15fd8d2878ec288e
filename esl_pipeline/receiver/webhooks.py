"""The webhook routes: an address per topic, its answers, and a line in the log for each delivery."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader

from esl_pipeline.receiver.answers import Answers, Kept, refusals
from esl_pipeline.receiver.deliveries import LIFECYCLE_TOPICS, TOPICS
from esl_pipeline.receiver.intake import Intake, Limits
from esl_pipeline.receiver.protocol import ReceiverBuffer
from esl_pipeline.settings import Settings
from esl_pipeline.shop_names import SHOP

log = logging.getLogger(__name__)


def webhook_router(settings: Settings, buffer: ReceiverBuffer, limits: Limits) -> APIRouter:
    """`POST /webhooks/shopify/<topic>` for each topic in use."""
    intake = Intake(settings, buffer, limits)

    def route(topic: str) -> Callable[[Request], Awaitable[JSONResponse]]:
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


def _described(topic: str, request: Request) -> str:
    """The delivery in one line. Its headers are a stranger's text: cut, and escaped to plain ASCII."""
    shop, webhook_id = (
        request.headers.get(name, "")[:128] for name in ("x-shopify-shop-domain", "x-shopify-webhook-id")
    )
    return f"{topic} from shop {shop!a} with id {webhook_id!a}"
