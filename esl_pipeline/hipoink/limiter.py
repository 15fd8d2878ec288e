"""How fast calls may leave: one small protocol, and a limiter for a single process."""

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Limiter(Protocol):
    """Anything that can hold a caller back until the next call may leave."""

    def acquire(self) -> None:
        """Return when one call may be made; every call, retries included, takes one."""


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

    def acquire(self) -> None:
        """Take the next slot and sleep until it begins."""
        with self._lock:
            now = self._clock()
            slot = max(self._next_slot, now - self._head_start)
            self._next_slot = slot + self._interval
        if slot > now:
            self._sleep(slot - now)
