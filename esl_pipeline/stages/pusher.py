"""Pushing beside reading: neither a long queue nor a slow label server keeps a drain from what has just come in."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pandas as pd


class Pusher:
    """A thread that pushes batch after batch until nothing is due, whenever it is asked.

    `push` pushes one batch and returns its results, none when nothing is due (push.push_batch). A context manager: at
    its end, and once `stop` is set, the batch at hand is finished and no other begun.
    """

    def __init__(self, push: Callable[[], pd.DataFrame], stop: threading.Event) -> None:
        self._push, self._stop = push, stop
        self._changed = threading.Condition()
        self._asked = self._busy = self._ends = False
        self._results: list[pd.DataFrame] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="push", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()

    def ask(self) -> None:
        """Something may be due."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def take(self) -> list[pd.DataFrame]:
        """The results since they were last taken. Raises what has ended the pushing (BufferError)."""
        with self._changed:
            results, self._results = self._results, []
            if self._failure is not None and not results:
                raise self._failure
            return results

    def wait(self, seconds: float) -> bool:
        """Wait so long for results, or for what has ended the pushing; whether there is either."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._results) or self._failure is not None, seconds)

    @property
    def is_busy(self) -> bool:
        """Whether it is pushing, or about to."""
        with self._changed:
            return self._failure is None and (self._asked or self._busy)

    def _work(self) -> None:
        try:
            while self._is_asked():
                while not (self._ends or self._stop.is_set()):
                    results = self._push()
                    if results.empty:
                        break
                    with self._changed:
                        self._results.append(results)
                        self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _is_asked(self) -> bool:
        """Wait until asked; False at the end."""
        with self._changed:
            self._busy = False
            self._changed.wait_for(lambda: self._asked or self._ends)
            self._busy, self._asked = self._asked and not self._ends, False
            return self._busy
