"""How many calls may be made at a time, and how fast: one small protocol, and a limiter for a single process."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Call:
    """What limiters know of a call at the label server.

    `hindrance` says why it shall not be made after all, if so; it is asked while the call waits and before it begins.
    `recorded_as`: under which id what comes of it is recorded in the buffer, which tells of its end as well.
    `is_background`: no price waits for it, so it waits for prices, and has a small share of the pace.
    """

    hindrance: Callable[[], str | None] = _nothing
    recorded_as: str | None = None
    is_background: bool = False


class Limiter(Protocol):
    """Anything that can hold a caller back until the next call may leave."""

    def slot(self, call: Call) -> AbstractContextManager[None]:
        """Wait until one request may be made, which is in flight until the end of the context.

        Every request takes one, retries included. Raises NotSentError once something keeps it from being made.
        """

    def close(self) -> None:
        """No request of ours is in flight any more, nor will be."""


class LocalLimiter:
    """Evenly spaced slots, with a small burst after a pause; safe to share between threads.

    `rate_per_second` is the lasting rate, `burst` how many calls may leave together after a quiet
    time. `clock` and `sleep` count seconds.
    """

    def __init__(
        self,
        rate_per_second: float,
        *,
        burst: int = 2,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not (math.isfinite(rate_per_second) and rate_per_second > 0):
            raise ValueError(f"rate_per_second must be a number above 0, not {rate_per_second}")
        if burst < 1:
            raise ValueError(f"burst must be at least 1, not {burst}")
        self._interval = 1 / rate_per_second
        self._head_start = (burst - 1) * self._interval
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_slot = -math.inf

    @contextmanager
    def slot(self, call: Call) -> Iterator[None]:  # noqa: ARG002 - nothing hinders it
        """Take the next slot and sleep until it begins."""
        with self._lock:
            now = self._clock()
            slot = max(self._next_slot, now - self._head_start)
            self._next_slot = slot + self._interval
        if slot > now:
            self._sleep(slot - now)
        yield

    def close(self) -> None:
        """Nothing is kept of a call."""
