"""Pages from templates: escaped, without what steers a page, and with headers that let nothing else in."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from esl_pipeline.console import words
from esl_pipeline.hipoink.words import price_on

# What a page may load and where its forms may go: this server, and no inline script or style.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: a browser would then send its forms with the origin null.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def page(
    template: str, status: int = 200, headers: Mapping[str, str] | None = None, **shown: Any
) -> HTMLResponse:
    """A page of the console; what it shows is escaped."""
    text = _environment().get_template(template).render(shown)
    return HTMLResponse(text, status, HEADERS | dict(headers or {}))


def static(name: str) -> Response | None:
    """A file of ours by its name, for ever: its address changes when it does. None: there is none."""
    found = _files().get(name)
    if found is None:
        return None
    headers = HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(found, 200, headers, _KINDS[name.rpartition(".")[2]])


def label_address(store: str, code: str) -> str:
    """The address of a label's page; a code may hold whatever a shop takes for one."""
    return f"/console/label?{urlencode({'store': store, 'code': code})}"


def _address(name: str, under: str = "/console") -> str:
    return f"{under}/static/{name}?{hashlib.sha256(_files()[name]).hexdigest()[:12]}"


@cache
def _files() -> dict[str, bytes]:
    folder = files("esl_pipeline.console") / "static"
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _KINDS
    }


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("esl_pipeline.console", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.globals |= {
        "static": _address,
        "counted": words.counted,
        "RUNGS": words.RUNGS,
        "label_address": label_address,
        "price": price_on,
        "new_id": uuid4,
    }
    made.filters |= {"moment": words.moment, "exact": words.exact, "ago": words.ago, "exactly": Markup.escape}
    return made


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    return words.harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value
