"""LISTEN: who waits for work is woken by it. Nothing rests on it: whoever listens looks now and then as well."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from esl_pipeline.buffer.errors import BufferError

if TYPE_CHECKING:
    import psycopg

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0
_LOOK_SECONDS = 0.5


class Listener:
    """A thread that calls `wake` at each notification of a channel; a lost connection is made again.

    `connect` opens a connection in autocommit mode. A context manager.
    """

    def __init__(
        self, connect: Callable[[], psycopg.Connection], channel: str, wake: Callable[[], None]
    ) -> None:
        self._connect, self._channel, self._wake = connect, channel, wake
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"listen-{channel}", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=_AGAIN_SECONDS)

    def _work(self) -> None:
        import psycopg

        while not self._stop.is_set():
            try:
                self._listen()
            except (psycopg.Error, BufferError) as error:
                _log.info("no notifications of %s for now: %s", self._channel, type(error).__name__)
                self._stop.wait(_AGAIN_SECONDS)

    def _listen(self) -> None:
        from psycopg import sql

        with self._connect() as connection:
            connection.execute(sql.SQL("listen {}").format(sql.Identifier(self._channel)))
            self._wake()  # for what came before
            while not self._stop.is_set():
                for _ in connection.notifies(timeout=_LOOK_SECONDS, stop_after=1):
                    self._wake()
