"""How fast one shop may send: token buckets per shop, in the memory of one receiver process.

Counted after the signature, for the shop that it names: nobody without a secret can use up a shop's share. There is
no share per client address: behind a proxy all senders have one address, and before the signature a stranger could
then use up everybody's; what a stranger costs is bounded by `held` and `places`, and a proxy that sees the addresses
can do the rest.

It fails open: a process that starts, or forgets a shop, gives it a full bucket, for a webhook lost to the limit would
be worse than one too many. A bucket that is empty is closed for that shop alone: 429, and Shopify sends again.
"""

from collections import OrderedDict
from typing import Any

_SHOPS = 10_000
PAUSE_SECONDS = 10.0


class Pace:
    """Tokens per shop: `per_second` of them flow in, up to `burst`. For one thread."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, shop: str, now: float, tokens: float = 1) -> float:
        """Take tokens of the shop's: 0, or the seconds until there are as many. `now` is of a clock that never jumps.

        More than the burst holds are there as soon as it is full.
        """
        full_at = max(self._full_at.get(shop, now), now)
        late = full_at - now - max(self._burst - tokens, 0) / self._per_second
        if late > 1e-9:
            return late
        self._full_at[shop] = full_at + tokens / self._per_second
        self._full_at.move_to_end(shop)
        if len(self._full_at) > _SHOPS:
            self._full_at.popitem(last=False)
        return 0


class Backlog:
    """Shops of which as much waits to be worked off as may: they pause. Learnt from the buffer's own answers."""

    def __init__(self, deliveries: int, size: int) -> None:
        self._deliveries, self._size = deliveries, size
        self._until: OrderedDict[str, float] = OrderedDict()

    def told(self, shop: str, waiting: dict[str, Any] | None, now: float) -> None:
        """The buffer's `waiting` of a shop, {deliveries, bytes}; None where it says nothing of it."""
        self._until.pop(shop, None)
        if waiting and (waiting["deliveries"] > self._deliveries or waiting["bytes"] > self._size):
            self._until[shop] = now + PAUSE_SECONDS
            if len(self._until) > _SHOPS:
                self._until.popitem(last=False)

    def wait(self, shop: str, now: float) -> float:
        """Seconds that the shop has still to wait; then one delivery asks again."""
        return max(self._until.get(shop, now) - now, 0)
