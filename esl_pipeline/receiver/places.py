"""The room for bodies, from their first byte to the answer: bounded in bytes and in number, and fair.

What a stranger sends takes room only while it is there: when there is none left, the unfinished body that is here for
longest gives way, so that whoever comes gets in. What is signed does not give way; of it a shop may have as much as is
left for others after it: half, when it is alone, and with each other shop that does the same a smaller part, so
another one always finds some.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Place:
    """One body's place: what is there of it, and whether it had to give way to another."""

    def __init__(self, room: "Room | None" = None) -> None:
        self.body, self.held, self.gave_way = bytearray(), 0, False
        self.time: asyncio.Timeout | None = None
        self._room = room

    def add(self, chunk: bytes) -> None:
        """More of the body is here."""
        if self.gave_way:  # the bytes came before the word
            return
        self.body += chunk
        self.held += len(chunk)
        if self._room:
            self._room.grown(len(chunk))

    def arrived(self) -> bytes:
        """The whole body; from here on it gives way to nobody."""
        raw = bytes(self.body)
        self.body.clear()
        if self._room:
            self._room.unfinished.pop(self, None)
        return raw

    def give_way(self) -> None:
        """Drop the body, and end whoever waits for the rest of it."""
        self.gave_way, self.held = True, 0
        self.body.clear()
        if self.time:
            self.time.reschedule(asyncio.get_running_loop().time())


class Room:
    """Places for bodies. For one event loop.

    size: bytes of all bodies; unfinished: how many may be arriving; kept: how many signed ones may be in work.
    """

    def __init__(self, size: int, unfinished: int, kept: int) -> None:
        self._size, self._most, self._kept = size, unfinished, kept
        self._held = 0
        self.unfinished: dict[Place, None] = {}
        self._bytes: Counter[str] = Counter()
        self._number: Counter[str] = Counter()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for a body that begins to arrive."""
        place = Place(self)
        self.unfinished[place] = None
        self._make_room()
        try:
            yield place
        finally:
            self.unfinished.pop(place, None)
            self._held -= place.held

    def grown(self, by: int) -> None:
        """So many bytes more are here."""
        self._held += by
        self._make_room()

    @contextmanager
    def share(self, shop: str, size: int) -> Iterator[bool]:
        """Count a signed body as the shop's; gives whether the shop may have so much in work at once."""
        fits = (
            self._bytes[shop] + size <= self._size - self._bytes.total() - size
            and self._number[shop] + 1 <= self._kept - self._number.total() - 1
        )
        if not fits:
            yield False
            return
        self._bytes[shop] += size
        self._number[shop] += 1
        try:
            yield True
        finally:
            self._bytes[shop] -= size
            self._number[shop] -= 1
            if not self._number[shop]:
                del self._bytes[shop], self._number[shop]

    def _make_room(self) -> None:
        while self.unfinished and (self._held > self._size or len(self.unfinished) > self._most):
            first = next(iter(self.unfinished))
            del self.unfinished[first]
            self._held -= first.held
            first.give_way()
