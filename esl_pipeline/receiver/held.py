"""For how long, and for what, a connection is held: one rule, whatever it is that does not come.

A connection is in one phase at a time. In each that waits for the other end there are a few seconds; those that wait
for us, for a turn or for our own work, have no limit here (the buffer's calls have theirs). When there are more
connections than may be held, the one that has been in its phase for longest is cut, so that whoever comes gets in:
never one whose signature was found right and whose work is under way, and before others those that never had one. Who
waits for a turn gives way as well: else a crowd that waits would push out each newcomer before its request is read.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any, Protocol

VOUCH = "esl.vouch"
WHOLE = "esl.whole"
"""In a request's scope when all of it is here already."""
CUTS = 50
"""At most so many at one sweep."""


class Phase(Enum):
    """What a connection is held for."""

    HEAD = "head"  # of the next request, also while none is begun
    BODY = "body"
    TURN = "turn"  # to be begun, see `turns`
    WORK = "work"
    ANSWER = "answer"  # being taken by the other end
    REST = "rest"  # of a body that nobody reads, once it is answered


@dataclass(frozen=True)
class Holding:
    """The most connections, and the seconds of each phase that waits for the other end."""

    connections: int = 2_000
    head: float = 5
    body: float = 8  # who reads the body gives up before, with a 408; this is for what nobody reads
    answer: float = 5
    rest: float = 2

    def seconds(self, phase: Phase) -> float:
        """How long a connection may be in this phase."""
        return float("inf") if phase in (Phase.TURN, Phase.WORK) else float(getattr(self, phase.value))


class Held(Protocol):
    """A connection, as far as holding it goes."""

    phase: Phase
    since: float
    known: bool
    """Whether a signature was ever right on it."""
    verified: bool
    """Whether one is, of the request that is under way."""

    def look(self) -> None:
        """See whether the phase is another by now."""

    def cut(self) -> None:
        """End the connection at once."""


class Table:
    """The connections that are held, those first that have been in their phase for longest. For one event loop."""

    def __init__(self, holding: Holding) -> None:
        self.holding = holding
        self.is_swept = False
        self._held: dict[Held, None] = {}

    def __len__(self) -> int:
        return len(self._held)

    def moved(self, connection: Held) -> None:
        """The connection is new, or in another phase: it comes last. One too many makes the first give way."""
        self._held.pop(connection, None)
        self._held[connection] = None
        if len(self._held) > self.holding.connections:
            first = self._first_to_go() or connection
            self.gone(first)
            first.cut()

    def gone(self, connection: Held) -> None:
        """The connection is no more."""
        self._held.pop(connection, None)

    def sweep(self, now: float) -> None:
        """Cut what has been in its phase for too long; of many some, so that a crowd's end holds nobody up."""
        for connection in list(self._held):
            connection.look()
        overdue = (c for c in list(self._held) if now - c.since > self.holding.seconds(c.phase))
        for connection in islice(overdue, CUTS):
            self.gone(connection)
            connection.cut()

    def _first_to_go(self) -> Held | None:
        others = (c for c in self._held if not c.known and c.phase is not Phase.WORK)
        return next(others, None) or next((c for c in self._held if not c.verified), None)


def vouch(scope: MutableMapping[str, Any]) -> None:
    """Say that the request's signature is right, so that its connection does not give way to others."""
    if say := scope.get("extensions", {}).get(VOUCH):
        say()
