"""The OpenAPI page of the receiver: its operations from /openapi.json, on one page of our own.

FastAPI's pages load a program from a stranger's host (a CDN) into the browser of whoever holds a token. This one loads
its style from here and no script at all; who wants to try a call has curl, and every tool reads /openapi.json.
"""

from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.responses import Response

from esl_pipeline.console.render import page, static

_METHODS = ("get", "post", "put", "patch", "delete")


def add_reference(app: FastAPI) -> None:
    """Serve the page at /docs."""

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        schema = app.openapi()
        return page("openapi.html", info=schema["info"], groups=_by_tag(schema), in_json=_in_json)

    @app.get("/docs/static/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        return static(name) or Response(status_code=404)


def _by_tag(schema: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path, methods in schema["paths"].items():
        for method in _METHODS:
            if operation := methods.get(method):
                told = {"parameters": [], "requestBody": {}, "description": "", **operation}
                tag = operation.get("tags", ["other"])[0]
                found.setdefault(tag, []).append(told | {"path": path, "method": method.upper()})
    return found


def _in_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
