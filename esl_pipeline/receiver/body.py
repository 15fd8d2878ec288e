"""Reading a request's body without trusting its sender."""

import asyncio

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The raw body: at most `limit` bytes, in at most `seconds`.

    Raises HTTPException 413 before more than the limit is held, 408 when the sender is too slow, 400 when it
    goes away; the connection is closed then, since the rest of the body may still be on it.
    """
    try:
        declared = int(request.headers.get("content-length", "0"))
    except ValueError:  # the server has framed the body already; what is read is counted below
        declared = 0
    if declared > limit:
        raise _given_up(413, f"The body is longer than {limit} bytes.")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise _given_up(413, f"The body is longer than {limit} bytes.")
                body += chunk
    except TimeoutError:
        raise _given_up(408, f"The body did not arrive within {seconds:g} seconds.") from None
    except ClientDisconnect:
        raise _given_up(400, "The sender went away.") from None
    return bytes(body)


def _given_up(status: int, detail: str) -> HTTPException:
    return HTTPException(status, detail, headers={"Connection": "close"})
