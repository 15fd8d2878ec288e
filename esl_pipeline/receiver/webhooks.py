"""The webhook routes of every source: one address for all topics, one for each, and a line in the log per delivery."""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import APIKeyHeader
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from esl_pipeline.guard import is_of_a_page
from esl_pipeline.receiver.answers import Answers, Kept, refusals
from esl_pipeline.receiver.intake import Intake
from esl_pipeline.settings import Settings
from esl_pipeline.sources.source import Source, Webhooks

log = logging.getLogger(__name__)


Way = Callable[[Request], Awaitable[Response]]

_KEPT = {outcome: JSONResponse({"status": outcome}) for outcome in ("accepted", "duplicate", "greeted")}


class Receiver(FastAPI):
    """The application, which answers webhooks before all else: past guard, middleware and routing, which take longer
    than all that is done here. None of them is needed: they would let through what no browser sends, and who sent it is
    proven by its signature. All else they answer, and they know the same addresses.

    ways: each by its path.
    """

    def __init__(self, ways: Mapping[str, Way], **of_fastapi: Any) -> None:
        super().__init__(**of_fastapi)
        self._ways = ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application would."""
        way = self._ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if way is None or is_of_a_page(scope):
            await super().__call__(scope, receive, send)
            return
        try:
            answer = await way(_Request(scope, receive))
        except HTTPException as refused:
            answer = JSONResponse({"detail": refused.detail}, refused.status_code, refused.headers)
        await answer(scope, receive, send)


class _Headers(Headers):
    """Each found at once: a delivery's are looked up a dozen times."""

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=list(raw))
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))

    def getlist(self, key: str) -> list[str]:
        """All values of the header."""
        return self._values.get(key.lower(), [])

    def __getitem__(self, key: str) -> str:
        return self._values[key.lower()][0]


class _Request(Request):
    @property
    def headers(self) -> Headers:
        """Of names in lower case, as a server gives them."""
        if not hasattr(self, "_headers"):
            self._headers = _Headers(self.scope["headers"])
        return self._headers


def webhook_ways(settings: Settings, intake: Intake) -> dict[str, Way]:
    """Of each source that sends webhooks, `POST <its path>` for all topics and `POST <its path>/<topic>` for each."""
    return {
        _path(hooks, topic): _way(source, hooks, topic, intake)
        for source in settings.sources.values()
        if (hooks := source.webhooks())
        for topic in (None, *hooks.topics)
    }


def webhook_routers(settings: Settings, ways: Mapping[str, Way]) -> Iterator[APIRouter]:
    """The same for the application: its page says what they are, and other methods are refused."""
    for source in settings.sources.values():
        if hooks := source.webhooks():
            yield _router(source, hooks, ways)


def _path(hooks: Webhooks, topic: str | None) -> str:
    return f"{hooks.path}/{topic}" if topic else hooks.path


def _way(source: Source[Any], hooks: Webhooks, topic: str | None, intake: Intake) -> Way:
    async def receive(request: Request) -> Response:
        try:
            outcome = await intake.keep(source, hooks, topic, request)
        except HTTPException as refused:
            log.warning(
                "webhook %s, outcome %d %s",
                _described(hooks, topic, request),
                refused.status_code,
                refused.detail,
                extra=_about(hooks, topic, request),
            )
            raise
        if log.isEnabledFor(logging.INFO):
            log.info(
                "webhook %s, outcome %s",
                _described(hooks, topic, request),
                outcome,
                extra=_about(hooks, topic, request),
            )
        return _KEPT[outcome]

    return receive


def _router(source: Source[Any], hooks: Webhooks, ways: Mapping[str, Way]) -> APIRouter:
    # For the OpenAPI page only: who signed is decided in `Intake`, from the raw body.
    signed = APIKeyHeader(
        name=hooks.signature_header, scheme_name=f"{source.system} signature", auto_error=False
    )
    router = APIRouter(tags=[f"{source.name} webhooks"], dependencies=[Depends(signed)])
    for topic in (None, *hooks.topics):
        router.add_api_route(
            _path(hooks, topic),
            ways[_path(hooks, topic)],
            methods=["POST"],
            name=topic or "any topic",
            summary=f"Receive {topic or 'any of the topics below'}",
            response_class=JSONResponse,
            response_model=None,
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


def _about(hooks: Webhooks, topic: str | None, request: Request) -> dict[str, str]:
    """The same as fields of the log."""
    claimed, shop, webhook_id = (ascii(text[:128])[1:-1] for text in hooks.described(request.headers))
    return {"topic": topic or claimed, "shop": shop, "webhook_id": webhook_id}


def _described(hooks: Webhooks, topic: str | None, request: Request) -> str:
    """The delivery in one line. Its headers are a stranger's text: cut, and escaped to plain ASCII."""
    claimed, shop, webhook_id = (text[:128] for text in hooks.described(request.headers))
    return f"{topic or ascii(claimed)} from shop {shop!a} with id {webhook_id!a}"
