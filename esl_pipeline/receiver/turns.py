"""Requests of strangers are read one at a time: a thousand at once would be a second in which nobody is heard.

A request that is signed needs several rounds of the event loop, from its first byte to its answer, and waits in each
for all that begins there: of sixteen a round, sixteen strangers each time. With one a round a flood is answered more
slowly, and who has signed is not.

First requests of their connections go before others, the latest of them first: when there is more than can be done,
whoever comes is answered, and who waits is one of those that have filled the place. Every fourth turn goes to who
waits for longest, of both kinds in turn. A connection that has carried a right signature waits for no turn.
"""

import asyncio
from collections import deque
from itertools import count


class Turns:
    """Lets one begin in each round of the event loop."""

    def __init__(self) -> None:
        self._first: deque[asyncio.Future[None]] = deque()
        self._further: deque[asyncio.Future[None]] = deque()
        self._is_due, self._taken = False, count(1)

    def turn(self, *, first: bool) -> asyncio.Future[None]:
        """Done when it is its turn; first: of the connection's requests."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        (self._first if first else self._further).append(mine)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._begin, loop)
        return mine

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._first or self._further:
            turn = self._next(next(self._taken))
            if not turn.done():  # else who waited has gone
                turn.set_result(None)
                break
        self._is_due = bool(self._first or self._further)
        if self._is_due:
            loop.call_soon(self._begin, loop)

    def _next(self, number: int) -> asyncio.Future[None]:
        if not self._first or (number % 8 == 0 and self._further):
            return self._further.popleft()
        return self._first.popleft() if number % 4 == 0 else self._first.pop()
