"""Pushing beside reading: neither a long queue nor a slow label server keeps a drain from what has just come in."""

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import pandas as pd

from esl_pipeline.model.push import Claim, Later


def batches_at_once(concurrency: int) -> int:
    """How many batches a run has in hand at a time: in flight, and beside them some that are recorded or wait."""
    return concurrency + max(1, concurrency // 2)


class Pusher:
    """Threads that push batch after batch until nothing is due, whenever they are asked.

    `claim` claims a batch, `push` pushes it (push.claim_batch, push.push_claimed); there are more threads than calls
    may be in flight, so that the next batch is ready when a call ends. A context manager: at its end, and once `stop`
    is set, the batches at hand are finished and no other begun. An exception sets `stop`.
    """

    def __init__(
        self,
        claim: Callable[[], Claim | Later | None],
        push: Callable[[Claim], pd.DataFrame],
        stop: threading.Event,
        *,
        concurrency: int,
    ) -> None:
        self._claim, self._push, self._stop = claim, push, stop
        self._changed = threading.Condition()
        self._asked = self._looks = self._ends = self._woken = self._is_paced = False
        self._again_at: float | None = None
        self._pushing = 0
        self._results: list[pd.DataFrame] = []
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"push-{number}", daemon=True)
            for number in range(batches_at_once(concurrency))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
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

    def until_idle(self) -> Iterator[pd.DataFrame]:
        """Ask, and give the results as they come until nothing is due. Raises what has ended the pushing."""
        self.ask()
        results: list[pd.DataFrame] | None = None
        while results is None or results:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._results) or not self.is_busy)
                results, self._results = self._results, []
            yield from results
        self.check()

    @property
    def is_busy(self) -> bool:
        """Whether it is pushing, or about to."""
        with self._changed:
            return self._failure is None and (
                self._asked or self._looks or self._pushing > 0 or self._again_at is not None
            )

    def _work(self) -> None:
        try:
            while (claim := self._next()) is not None:
                results = self._push(claim)
                with self._changed:  # at once, so that it never looks idle between
                    self._pushing -= 1
                    self._results.append(results)
                    self._asked = True  # of this store, more may be due
                    self._changed.notify_all()
        except Exception as error:
            with self._changed:
                self._failure = self._failure or error
                self._ends = True
                self._changed.notify_all()

    def _next(self) -> Claim | None:
        """Wait until asked, and claim; None at the end. One claims at a time: the others would only wait for it."""
        while True:
            with self._changed:
                while not self._is_over and not self._may_look:
                    self._changed.wait(self._seconds_until_again)
                if self._is_over:
                    return None
                self._asked, self._again_at, self._looks = False, None, True
            found: Claim | Later | None = None
            try:
                found = self._claim()
            finally:
                with self._changed:
                    self._looks = False
                    self._is_paced = isinstance(found, Later) and found.is_paced
                    if isinstance(found, Later):
                        self._again_at = time.monotonic() + found.seconds
                    elif found is not None:
                        self._pushing += 1
                        self._asked |= found.has_more
                    self._changed.notify_all()
            if isinstance(found, Claim):
                return found

    @property
    def _may_look(self) -> bool:
        is_time = self._again_at is not None and self._again_at <= time.monotonic()
        return not self._looks and (is_time or (self._asked and not self._is_paced))

    @property
    def _seconds_until_again(self) -> float | None:
        return None if self._again_at is None else max(0.0, self._again_at - time.monotonic())

    @property
    def _is_over(self) -> bool:
        return self._ends or self._stop.is_set()
