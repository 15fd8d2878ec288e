"""Who is signed in: what a browser's cookie stands for. Kept in memory: a restart asks everybody for their token again.

The cookie is a random key, never the token; the token's hash behind it is asked about anew with every page, so that a
token which is revoked or has expired opens nothing from then on.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal, NamedTuple

HOURS = 12
_SESSIONS = 1_000


class Notice(NamedTuple):
    """What an action has done, told on the next page."""

    level: Literal["done", "refused"]
    says: str


@dataclass
class Session:
    """One sign-in. form_key: what every form of it carries, and no page of anybody else knows."""

    key: str
    hashed: str
    until: float
    form_key: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    notices: list[Notice] = field(default_factory=list)

    def say(self, level: Literal["done", "refused"], says: str) -> None:
        """Tell it on the next page."""
        self.notices.append(Notice(level, says))

    def told(self) -> list[Notice]:
        """What is to be told, once."""
        said, self.notices = self.notices, []
        return said


class Sessions:
    """The sign-ins of this process, each for some hours; beyond so many the oldest ends. For several threads."""

    def __init__(self, hours: float = HOURS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = hours * 3600, clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = Lock()

    def begin(self, hashed: str) -> Session:
        """A session of whoever bears the token of this hash."""
        session = Session(secrets.token_urlsafe(32), hashed, self._clock() + self._seconds)
        with self._lock:
            self._sessions[session.key] = session
            if len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def find(self, key: str | None) -> Session | None:
        """The session of a cookie, while it lasts."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session and session.until <= self._clock():
                del self._sessions[session.key]
                return None
            return session

    def end(self, key: str | None) -> None:
        """Sign out."""
        with self._lock:
            self._sessions.pop(key or "", None)
