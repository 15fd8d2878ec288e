"""Pushing beside reading: neither a long queue nor a slow label server keeps a drain from what has just come in."""

import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import pandas as pd

from esl_pipeline.model.push import Claim

CALLS_IN_FLIGHT = 4


class Pusher:
    """Threads that push batch after batch until nothing is due, whenever they are asked: one call at a time per store.

    `claim` claims a batch of none of these stores, `push` pushes it (push.claim_batch, push.push_claimed). So a store
    waits for no call of another one's. A context manager: at its end, and once `stop` is set, the batches at hand are
    finished and no other begun.
    """

    def __init__(
        self,
        claim: Callable[[Collection[str]], Claim | None],
        push: Callable[[Claim], pd.DataFrame],
        stop: threading.Event,
    ) -> None:
        self._claim, self._push, self._stop = claim, push, stop
        self._changed = threading.Condition()
        self._asked = self._looks = self._ends = self._woken = False
        self._busy = set[str]()
        self._results: list[pd.DataFrame] = []
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"push-{number}", daemon=True)
            for number in range(CALLS_IN_FLIGHT)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def ask(self) -> None:
        """Something may be due."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()

    def take(self) -> list[pd.DataFrame]:
        """The results since they were last taken."""
        with self._changed:
            results, self._results = self._results, []
            return results

    def check(self) -> None:
        """Raises what has ended the pushing (BufferError)."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def wait(self, seconds: float) -> bool:
        """Wait so long for results, for what has ended the pushing or to be woken; whether there is any."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: bool(self._results) or self._failure is not None or self._woken, seconds
            )
            self._woken = False
            return came

    def wake(self) -> None:
        """End the wait: something else has come."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    @property
    def is_busy(self) -> bool:
        """Whether it is pushing, or about to."""
        with self._changed:
            return self._failure is None and (self._asked or self._looks or bool(self._busy))

    def _work(self) -> None:
        try:
            while (claim := self._next()) is not None:
                results = self._push(claim)
                with self._changed:  # at once, so that it never looks idle between
                    self._busy.remove(claim.store_code)
                    self._results.append(results)
                    self._asked = True  # of this store, more may be due
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._failure = self._failure or error
                self._ends = True
                self._changed.notify_all()

    def _next(self) -> Claim | None:
        """Wait until asked, and claim; None at the end. One claims at a time, so that no two take one store."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or (self._asked and not self._looks))
                if self._is_over:
                    return None
                self._asked, self._looks = False, True
                busy = frozenset(self._busy)
            claim = None
            try:
                claim = self._claim(busy)
            finally:
                with self._changed:
                    self._looks = False
                    if claim is not None:
                        self._busy.add(claim.store_code)
                        self._asked = True  # another store may be due too
                    self._changed.notify_all()
            if claim is not None:
                return claim

    @property
    def _is_over(self) -> bool:
        return self._ends or self._stop.is_set()
