"""The label server's limits, shared by all runs: how many calls it gets at a time, and how fast."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.errors import NotSentError
from esl_pipeline.hipoink.limiter import Call

# Between two looks whether a call of another run has ended: of who is next, and of all others; what hinders a call is
# noticed as soon.
_NEXT_PAUSE, _PAUSE = 0.015, 0.05
# So long does the end of a call wait for the next one, to be told with it.
_TELL_SECONDS = 0.1
# Of the rate, for all calls of the background; so long does one of them let others go first, and so rarely it asks.
BACKGROUND_SHARE = 0.2
_PATIENT_SECONDS = 5.0
_BACKGROUND_PAUSE = 0.25


class SharedLimiter:
    """At most `concurrency` calls of one label server in flight and `rate_per_second` begun (hipoink.limiter.Limiter).

    Who waits and what is in flight stands in the buffer, so that of all runs' calls those begin first that asked first;
    here no more than `concurrency` ask at a time. A call that is not heard of again is over `call_seconds` after it
    began. Which calls have ended is told with the next one, with what is recorded of them, or soon after.

    Calls of the background begin one at a time, no more than a fifth of the rate, while the pace and a call are free;
    one that has waited some seconds for that stands in line as others do.
    """

    def __init__(
        self, buffer: Buffer, *, server: str, rate_per_second: float, concurrency: int, call_seconds: float
    ) -> None:
        self._buffer, self._server = buffer, server
        self._rate, self._concurrency, self._call_seconds = rate_per_second, concurrency, call_seconds
        self._lock = threading.Lock()
        self._free, self._line = concurrency, deque[threading.Event]()
        self._ended: list[str] = []
        self._teller: threading.Timer | None = None

    @contextmanager
    def slot(self, call: Call) -> Iterator[None]:
        """Wait until the call may begin; it is in flight until the end of the context."""
        if not call.is_background:
            self._enter(call)
        call_id, asked = str(uuid4()), time.monotonic()
        try:
            seconds, is_next = self._take(call_id, call, asked)
            while seconds is None:
                _wait(_NEXT_PAUSE if is_next else _BACKGROUND_PAUSE if call.is_background else _PAUSE, call)
                seconds, is_next = self._take(call_id, call, asked)
            _wait(seconds, call)
            yield
        finally:
            self._note_end(call_id, is_recorded=call.recorded_as is not None)
            if not call.is_background:
                self._leave()

    def close(self) -> None:
        """Tell of the calls that have ended since the last one began."""
        with self._lock:
            if self._teller is not None:
                self._teller.cancel()
        self._tell()

    def _note_end(self, call_id: str, *, is_recorded: bool) -> None:
        with self._lock:
            self._ended.append(call_id)
            if self._teller is None and not is_recorded:
                self._teller = threading.Timer(_TELL_SECONDS, self._tell)
                self._teller.daemon = True
                self._teller.start()

    def _tell(self) -> None:
        with self._lock:
            self._teller = None
        if ended := self._told():
            with suppress(BufferError):  # then they are over when their time is
                self._buffer.rate_give(ended=ended)

    def _take(self, call_id: str, call: Call, asked: float) -> tuple[float | None, bool]:
        ended = self._told()
        is_patient = time.monotonic() - asked < _PATIENT_SECONDS
        try:
            return self._buffer.rate_take(
                server=self._server,
                rate_per_second=self._rate,
                concurrency=self._concurrency,
                call_id=call_id,
                recorded_as=call.recorded_as,
                background={"share": BACKGROUND_SHARE, "patient": is_patient} if call.is_background else None,
                ended=ended,
                seconds=self._call_seconds,
            )
        except BaseException:
            with self._lock:
                self._ended += ended
            raise

    def _told(self) -> list[str]:
        with self._lock:
            ended, self._ended = self._ended, []
            return ended

    def _enter(self, call: Call) -> None:
        """First come, first served."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._line.append(turn)
        try:
            while not turn.wait(_PAUSE):
                _check(call)
        except BaseException:
            with self._lock:
                if turn in self._line:
                    self._line.remove(turn)
                    raise
            self._leave()  # its turn came in this very moment
            raise

    def _leave(self) -> None:
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self._free += 1


def _wait(seconds: float, call: Call) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        _check(call)
        time.sleep(min(left, _PAUSE))


def _check(call: Call) -> None:
    if (why := call.hindrance()) is not None:
        raise NotSentError(why)
