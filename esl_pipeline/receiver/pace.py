"""How fast one shop may send: a token bucket per shop, in the memory of one receiver process.

Counted after the signature, for the shop that it names: nobody without a secret can use up a shop's share. There is
no share per client address: behind a proxy all senders have one address, and before the signature a stranger could
then use up everybody's; the places and time limits of `webhooks.Limits` bound what a stranger costs, and a proxy that
sees the addresses can do the rest.

It fails open: a process that starts, or forgets a shop, gives it a full bucket, for a webhook lost to the limit would
be worse than one too many. A bucket that is empty is closed for that shop alone: 429, and Shopify sends again.
"""

from collections import OrderedDict

_SHOPS = 10_000


class Pace:
    """Tokens per shop: `per_second` of them flow in, up to `burst`. For one thread."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second, self._burst = per_second, burst
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, shop: str, now: float) -> float:
        """Take one token of the shop's: 0, or the seconds until there is one. `now` is of a clock that never jumps."""
        full_at = max(self._full_at.get(shop, now), now) + 1 / self._per_second
        late = full_at - now - self._burst / self._per_second
        if late > 1e-9:
            return late
        self._full_at[shop] = full_at
        self._full_at.move_to_end(shop)
        if len(self._full_at) > _SHOPS:
            self._full_at.popitem(last=False)
        return 0
