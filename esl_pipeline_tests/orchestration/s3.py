"""A bucket on loopback that answers what frames need of S3: put, get, look, list, delete. It makes no bucket."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from fastapi import FastAPI, Request, Response

from esl_pipeline_tests.hipoink.servers import running

BUCKET = "frames"
WRITTEN = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
"""When everything in it has been written."""
_WHEN, _HTTP_WHEN = "2026-03-02T12:00:00.000Z", "Mon, 02 Mar 2026 12:00:00 GMT"


def _answer(kind: str, content: str) -> Response:
    xmlns = "http://s3.amazonaws.com/doc/2006-03-01/"
    return Response(f'<?xml version="1.0"?><{kind} xmlns="{xmlns}">{content}</{kind}>', media_type="text/xml")


def _error(status: int, code: str) -> Response:
    return Response(f"<Error><Code>{code}</Code></Error>", status, media_type="text/xml")


def bucket(objects: dict[str, bytes]) -> FastAPI:
    """The app of one bucket with these objects, by key."""
    app = FastAPI()

    @app.api_route(f"/{BUCKET}", methods=["GET", "POST"])
    async def whole(request: Request) -> Response:
        if request.method == "POST":  # ?delete
            gone = re.findall(r"<Key>(.*?)</Key>", (await request.body()).decode())
            for key in gone:
                objects.pop(key, None)
            return _answer("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in gone))
        prefix, delimiter = (request.query_params.get(name, "") for name in ("prefix", "delimiter"))
        keys = sorted(key for key in objects if key.startswith(prefix))
        below = {
            key.removeprefix(prefix).partition("/")[0] + "/"
            for key in keys
            if "/" in key.removeprefix(prefix)
        }
        if delimiter:
            keys = [key for key in keys if "/" not in key.removeprefix(prefix)]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_WHEN}</LastModified><ETag>1</ETag>"
            f"<Size>{len(objects[key])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys
        )
        if delimiter:
            found += "".join(
                f"<CommonPrefixes><Prefix>{escape(prefix + name)}</Prefix></CommonPrefixes>"
                for name in sorted(below)
            )
        return _answer(
            "ListBucketResult",
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{found}",
        )

    @app.api_route(f"/{BUCKET}/{{key:path}}", methods=["PUT", "GET", "HEAD", "DELETE"])
    async def one(key: str, request: Request) -> Response:
        if request.method == "PUT":
            objects[key] = _unwrapped(await request.body(), request)
            return Response(headers={"ETag": "1"})
        if request.method == "DELETE":
            objects.pop(key, None)
            return Response(status_code=204)
        if key not in objects:
            return _error(404, "NoSuchKey")
        content, told = objects[key], {"ETag": "1", "Last-Modified": _HTTP_WHEN}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", "")):
            begin, end = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            told["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            return Response(content[begin : end + 1], 206, headers=told)
        return Response(content, headers=told)

    @app.api_route("/{path:path}", methods=["PUT", "GET", "HEAD", "POST", "DELETE"])
    async def other(path: str) -> Response:
        return _error(403, "AccessDenied")

    return app


def _unwrapped(body: bytes, request: Request) -> bytes:
    """The content of a body that was sent in signed chunks."""
    if "aws-chunked" not in request.headers.get("content-encoding", ""):
        return body
    content = b""
    while True:
        head, _, body = body.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if not size:
            return content
        content, body = content + body[:size], body[size + 2 :]


@contextmanager
def running_bucket(objects: dict[str, bytes]) -> Iterator[str]:
    """The address of the server."""
    with running(bucket(objects)) as url:
        yield url
