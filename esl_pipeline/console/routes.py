"""How the console answers: what is refused or out of order is a page as well, with a sentence and its status."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.console.render import page
from esl_pipeline.storable import unstorable

HOME = "/console"

log = logging.getLogger(__name__)


class SignedOut(Exception):  # noqa: N818 - the name says the state
    """Nobody is signed in here, or no longer."""


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's own, and an error is answered here."""
        answer = super().get_route_handler()

        async def or_a_page(request: Request) -> Response:
            try:
                return await answer(request)
            except SignedOut:
                return _signed_out(request)
            except HTTPException as refused:
                return page("error.html", refused.status_code, refused.headers, says=refused.detail)
            except RequestValidationError:
                return page("error.html", 422, says="Something is missing in this address.")
            except BufferError as error:
                log.error("the buffer cannot serve the console: %a", str(error))
                says = "The database cannot be used now. Labels go on as they are; look again in a moment."
                return page("error.html", 503, {"Retry-After": "5"}, says=says)

        return or_a_page


def own_path(path: str) -> str:
    """Where to go on: an address of the console, whatever was asked for."""
    is_ours = path == HOME or path.startswith((f"{HOME}/", f"{HOME}?"))
    return path if is_ours and path.isascii() and path.isprintable() and "\\" not in path else HOME


def storable(text: str) -> str:
    """The text of an address; what no database can hold is found nowhere."""
    if any(True for _ in unstorable(text)):
        raise HTTPException(404, "There is nothing of that name.")
    return text


def _signed_out(request: Request) -> Response:
    if request.method != "GET":
        return page(
            "error.html",
            401,
            says="You are signed out, so nothing was done. Sign in and do it again.",
        )
    # The cookie goes to no page that another site has linked to. The page itself asks once more, and that is us.
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return page("arrive.html")
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    onward = "" if asked == HOME else f"?next={quote(asked, safe='')}"
    return RedirectResponse(f"{HOME}/sign-in{onward}", 303)
