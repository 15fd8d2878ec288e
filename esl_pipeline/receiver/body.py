"""Reading a request's body without trusting its sender."""

import asyncio
import random

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from esl_pipeline.receiver.held import WHOLE
from esl_pipeline.receiver.places import Place


async def read_body(request: Request, limit: int, seconds: float, place: Place | None = None) -> bytes:
    """The raw body: at most `limit` bytes, in `seconds` or little more; place: where it counts while it comes.

    Raises HTTPException 413 before more than the limit is held, 408 when the sender is too slow, 503 when it has to
    give way to another, 400 when it goes away. The server closes the connection then.
    """
    try:
        declared = int(request.headers.get("content-length", "0"))
    except ValueError:  # the server has framed the body already; what is read is counted below
        declared = 0
    if declared > limit:
        raise _too_long(limit)
    place = place or Place()
    try:
        if WHOLE in request.scope.get("extensions", ()):
            await _take_whole(request, limit, place)
        else:
            # Not all at one time: those who came together would all be answered together, and others would wait.
            async with asyncio.timeout(seconds * random.uniform(1, 1.4)) as place.time:  # noqa: S311
                await _take(request, limit, place)
    except TimeoutError:
        if place.gave_way:
            raise HTTPException(
                503, "Too much comes in at once; send it again.", {"Retry-After": "1"}
            ) from None
        raise HTTPException(408, f"The body did not arrive within {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The sender went away.") from None
    return place.arrived()


async def _take(request: Request, limit: int, place: Place) -> None:
    async for chunk in request.stream():
        if len(place.body) + len(chunk) > limit:
            raise _too_long(limit)
        place.add(chunk)


async def _take_whole(request: Request, limit: int, place: Place) -> None:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if len(message["body"]) > limit:
        raise _too_long(limit)
    place.add(message["body"])


def _too_long(limit: int) -> HTTPException:
    return HTTPException(413, f"The body is longer than {limit} bytes.")
