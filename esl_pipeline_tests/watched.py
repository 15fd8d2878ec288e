"""The real buffer, watched: its transport notes what is called, and fails, stalls or answers as a test says.

For tests of what stands before the buffer. Faults are put where they come from, on the way to the database: all of our
own code on both sides of it is real.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.buffer.transports import PsycopgTransport, Transport

# Called by timers and by whoever asks for the health, not by what comes in.
_BESIDE = frozenset({"version", "probe", "refusals_note"})
_FORGOTTEN_SECONDS = 10


class WatchedTransport:
    """A transport around another one. Functions go by their names without esl_."""

    def __init__(self, real: Transport) -> None:
        self._real = real
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Nothing noted, nothing in the way."""
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.done: list[tuple[str, Mapping[str, Any]]] = []
        self.failure: BufferError | None = None
        self.gates: dict[str, threading.Event] = {}
        self.answers: dict[str, Any] = {}

    @property
    def calls(self) -> int:
        return self._real.calls

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        # Whether the login can do its work, is asked by doing it with nothing in hand (buffer/logins.py).
        is_probe = p.get("deliveries") == [] or p.get("sha256") == "of nobody"
        name = "probe" if is_probe else function.removeprefix("esl_")
        with self._lock:
            self.asked.append((name, p))
        if name in self.gates and not self.gates[name].wait(_FORGOTTEN_SECONDS):
            raise BufferUnavailable("the test forgot to let the call go on")
        if self.failure:
            raise self.failure
        answer = self.answers[name] if name in self.answers else self._real.call(function, p)
        with self._lock:
            self.done.append((name, p))
        return answer

    def close(self) -> None:
        self._real.close()

    def describe(self) -> str:
        return self._real.describe()


class WatchedBuffer(Buffer):
    """As the command `receiver` opens it, with what a test wants to know and to break."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.watched = WatchedTransport(PsycopgTransport(SecretStr(dsn), attempts=1, pool_size=8))
        super().__init__(self.watched)
        with psycopg.connect(dsn) as connection:
            found = connection.execute("select tablename from pg_tables where schemaname = 'esl'").fetchall()
            tables = [sql.Identifier("esl", name) for (name,) in found]
            # What a migrated buffer has from the beginning stays.
            self._emptied = [table for table in tables if _is_empty(connection, table)]
        self._cleaned_at = self.watched.calls

    def clean(self, *, whatever: bool = False) -> None:
        """As freshly migrated, with nothing noted and nothing in the way.

        What a test writes there by another way than this buffer it has to remove itself: whatever=True.
        """
        self.watched.reset()
        if whatever or self.watched.calls != self._cleaned_at:
            with psycopg.connect(self.dsn) as connection:
                connection.execute("set session_replication_role = replica")  # some rows may only be added
                for table in self._emptied:
                    connection.execute(sql.SQL("delete from {}").format(table))
            self._cleaned_at = self.watched.calls

    # What was asked

    @property
    def calls(self) -> list[str]:
        """The functions that were called for what came in, oldest first."""
        return [name for name, _ in self.watched.asked if name not in _BESIDE]

    @property
    def pings(self) -> int:
        return sum(name == "probe" for name, _ in self.watched.asked)

    @property
    def told(self) -> list[dict[str, Any]]:
        """What was told of wrong signatures and arrived, with the receiver that told it."""
        return [
            row | {"receiver": p["receiver"]}
            for name, p in self.watched.done
            if name == "refusals_note"
            for row in p["refused"]
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The deliveries in the inbox, oldest first."""
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute("select to_jsonb(i) from esl.webhook_inbox i order by id").fetchall()
        return [row for (row,) in found]

    def forget_calls(self) -> None:
        self.watched.asked.clear()

    # What goes wrong

    @contextmanager
    def failing(self, error: BufferError) -> Iterator[None]:
        """Every call fails so meanwhile."""
        self.watched.failure = error
        try:
            yield
        finally:
            self.watched.failure = None

    def stall(self, function: str) -> threading.Event:
        """Calls of this function wait until the event that is given is set."""
        return self.watched.gates.setdefault(function, threading.Event())

    @contextmanager
    def answering(self, function: str, answer: Any) -> Iterator[None]:
        """Calls of this function are answered so meanwhile, and do nothing."""
        self.watched.answers[function] = answer
        try:
            yield
        finally:
            del self.watched.answers[function]


def _is_empty(connection: psycopg.Connection, table: sql.Identifier) -> bool:
    return connection.execute(sql.SQL("select from {} limit 1").format(table)).fetchone() is None
