"""Requests of strangers begin a few at a time: a thousand at once would be a second in which nobody is heard.

First requests of their connections go before others, the latest of them first: when there is more than can be done,
whoever comes is answered, and who waits is one of those that have filled the place. Every fourth turn goes to who
waits for longest. A connection that has carried a right signature waits for no turn.
"""

import asyncio
from collections import deque

AT_ONCE = 16


class Turns:
    """Lets so many begin in each round of the event loop."""

    def __init__(self) -> None:
        self._first: deque[asyncio.Future[None]] = deque()
        self._further: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    async def turn(self, *, first: bool) -> None:
        """Wait for the turn; first: of the connection's requests."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        (self._first if first else self._further).append(mine)
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._begin, loop)
        await mine

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in range(min(AT_ONCE, len(self._first) + len(self._further))):
            turn = self._next(oldest=number % 4 == 3)
            if not turn.done():
                turn.set_result(None)
        self._is_due = bool(self._first or self._further)
        if self._is_due:
            loop.call_soon(self._begin, loop)

    def _next(self, *, oldest: bool) -> asyncio.Future[None]:
        if oldest or not self._first:
            return self._further.popleft() if self._further else self._first.popleft()
        return self._first.pop()
