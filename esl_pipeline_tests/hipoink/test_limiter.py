import threading
from collections.abc import Callable

import pytest

from esl_pipeline.hipoink import Call, LocalLimiter


class Time:
    """A clock that only sleeping and waiting move."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def take(limiter: LocalLimiter) -> None:
    with limiter.slot(Call()):
        pass


def times_of(limiter: LocalLimiter, time: Time, calls: int) -> list[float]:
    moments = []
    for _ in range(calls):
        take(limiter)
        moments.append(round(time.now - 100, 6))
    return moments


def test_calls_leave_evenly_after_a_small_burst():
    time = Time()
    limiter = LocalLimiter(4, burst=2, clock=time.clock, sleep=time.sleep)
    assert times_of(limiter, time, 6) == [0, 0, 0.25, 0.5, 0.75, 1.0]


def test_a_pause_earns_the_burst_and_no_more():
    time = Time()
    limiter = LocalLimiter(4, burst=3, clock=time.clock, sleep=time.sleep)
    times_of(limiter, time, 10)
    time.now += 3600
    start = time.now
    assert [round(moment - (start - 100), 6) for moment in times_of(limiter, time, 5)] == [0, 0, 0, 0.25, 0.5]


def test_no_window_holds_more_than_rate_and_burst():
    time = Time()
    limiter = LocalLimiter(10, burst=2, clock=time.clock, sleep=time.sleep)
    moments = []
    for pause in [0, 0, 0.03, 0.2, 0, 0, 0.5, 0, 0, 0, 0.11, 0] * 5:
        time.now += pause
        take(limiter)
        moments.append(time.now)
    for first in moments:
        assert sum(first <= moment < first + 1 - 1e-9 for moment in moments) <= 11


def test_threads_share_one_rate():
    lock = threading.Lock()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        with lock:
            waits.append(round(seconds, 6))

    limiter = LocalLimiter(10, burst=1, clock=lambda: 5.0, sleep=sleep)
    threads = [threading.Thread(target=take, args=(limiter,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == [round(slot / 10, 6) for slot in range(1, 20)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LocalLimiter(0),
        lambda: LocalLimiter(-1),
        lambda: LocalLimiter(float("inf")),
        lambda: LocalLimiter(1, burst=0),
    ],
)
def test_impossible_rates_are_refused(make: Callable[[], LocalLimiter]):
    with pytest.raises(ValueError, match="must be"):
        make()
