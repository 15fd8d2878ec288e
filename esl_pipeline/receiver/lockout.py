"""Whoever guesses waits: after some wrong tokens what an address does not show to be right is refused for a while.

Each process counts for itself, on purpose: a shared count would let strangers write to the buffer, and a token is at
least 32 characters long, so some more guesses a minute bring nobody nearer. Requests that are under way together are
all judged before the first of them counts; there are never more of them than worker threads.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import Lock

from esl_pipeline.addresses import whose


class Lockout:
    """The times of the last wrong tokens by address. Safe to call from several threads.

    tries: wrong tokens within `seconds` that make an address wait as long again. addresses: how many are remembered;
    beyond that the one that was wrong least lately is forgotten.
    """

    def __init__(
        self,
        tries: int = 5,
        seconds: float = 60,
        addresses: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tries, self._seconds, self._addresses, self._clock = tries, seconds, addresses, clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = Lock()

    def wait(self, address: str) -> float:
        """Seconds that this address has still to wait; 0 when it may try."""
        with self._lock:
            times = self._wrong.get(whose(address))
            if times is None or len(times) < self._tries or times[-1] - times[0] > self._seconds:
                return 0
            return max(times[-1] + self._seconds - self._clock(), 0)

    def wrong(self, address: str) -> None:
        """A wrong token came from this address."""
        network = whose(address)
        with self._lock:
            self._wrong.setdefault(network, deque(maxlen=self._tries)).append(self._clock())
            self._wrong.move_to_end(network)
            if len(self._wrong) > self._addresses:
                self._wrong.popitem(last=False)
