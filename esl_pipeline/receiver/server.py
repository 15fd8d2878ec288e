"""The receiver's HTTP server: uvicorn, with a limit on the time that a request's head may take."""

from asyncio import Transport

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 5.0
# Connections at once; their requests are answered 503 beyond it. Far above what bodies and the buffer take at a time.
CONNECTIONS = 1_000


class BoundedHead(H11Protocol):
    """Closes a connection whose next request does not begin in time; uvicorn itself would wait for its head for ever.

    A head that is longer than 64 KiB is refused by h11.
    """

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look(None)

    def _look(self, before: object) -> None:
        if self.transport.is_closing():
            return
        # Idle: no head is complete. The cycle is that of the last request, so an equal one means none came since.
        idle = (self.cycle, self.conn.their_state) if self.conn.their_state is h11.IDLE else None
        if idle is not None and idle == before:
            self.transport.close()
        else:
            self.loop.call_later(HEAD_SECONDS, self._look, idle)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way get five seconds to end."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=BoundedHead,
        ws="none",
        limit_concurrency=CONNECTIONS,
        log_config=None,
        server_header=False,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
