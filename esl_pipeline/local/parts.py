"""A part of a running stack: a process that is started again when it ends by itself."""

import time
from collections.abc import Callable
from typing import Protocol

STEADY_SECONDS = 60.0
"""A part that was up for so long counts as sound: an end after that is the first in a row again."""
MOST_ENDS = 8
LONGEST_PAUSE_SECONDS = 30.0


class StackError(Exception):
    """A part could not be started or has ended; the message says which and shows the end of its log."""


class Running(Protocol):
    """A process that was started."""

    def poll(self) -> int | None:
        """The exit code (128 + n after signal n), or None while it runs."""

    def log_tail(self, n: int) -> str:
        """The last `n` lines of its log."""

    def stop(self) -> None:
        """Stop it and all that it has started; also after its end."""


class Part:
    """A process and the way to start it.

    The first pause before it is started again is `pause` seconds; it doubles with each end in a row.
    """

    def __init__(
        self, name: str, running: Running, start: Callable[[], Running], *, pause: float = 1
    ) -> None:
        self.name = name
        self._running, self._start, self._pause = running, start, pause
        self._since = time.monotonic()
        self._ends = 0
        self._again_at: float | None = None

    def check(self) -> None:
        """Raise StackError when it has ended."""
        if (code := self._running.poll()) is not None:
            raise StackError(f"{self.name} has ended (exit code {code}):\n{self._running.log_tail(15)}")

    def keep_up(self, say: Callable[[str], None]) -> None:
        """Start it again when it has ended and its pause is over, and tell that.

        Raises StackError when it has ended `MOST_ENDS` times in a row.
        """
        now = time.monotonic()
        if self._again_at is not None:
            if now >= self._again_at:
                self._start_again(say)
        elif (code := self._running.poll()) is not None:
            if now - self._since > STEADY_SECONDS:
                self._ends = 0
            self._has_ended(f"has ended (exit code {code})", self._running.log_tail(15), say)

    def stop(self) -> None:
        """Stop it."""
        self._running.stop()

    def _start_again(self, say: Callable[[str], None]) -> None:
        self._running.stop()  # what a killed process has left behind
        self._again_at = None
        try:
            self._running = self._start()
        except Exception as error:  # whatever it is, the next try may be luckier
            self._has_ended("could not be started", str(error), say)
        else:
            self._since = time.monotonic()

    def _has_ended(self, what: str, details: str, say: Callable[[str], None]) -> None:
        self._ends += 1
        if self._ends >= MOST_ENDS:
            raise StackError(f"{self.name} {what}, for the {self._ends}th time in a row:\n{details}")
        pause = min(self._pause * 2 ** (self._ends - 1), LONGEST_PAUSE_SECONDS)
        self._again_at = time.monotonic() + pause
        say(f"{self.name} {what}: it is started again in {pause:.0f} s")
