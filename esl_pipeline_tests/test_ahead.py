"""Reading ahead: the same items and the same error, sooner."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from esl_pipeline.ahead import ahead
from esl_pipeline_tests.waiting import eventually


class Items:
    """Numbers, and an error after them; read: so many were asked for."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self._count, self._error = count, error
        self.read, self.is_closed = 0, False
        self.threads = set[str]()

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self._count):
                self.read += 1
                self.threads.add(threading.current_thread().name)
                yield number
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


@pytest.mark.parametrize("most", [0, 1, 2, 50])
def test_the_items_come_in_their_order(most: int) -> None:
    items = Items(20)
    assert list(ahead(iter(items), most)) == list(range(20))
    assert items.threads == ({"ahead"} if most else {"MainThread"})


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("error", [ValueError("no more"), KeyboardInterrupt()])
def test_an_error_comes_after_the_items_before_it(most: int, error: BaseException) -> None:
    seen = []
    with pytest.raises(type(error)):
        for item in ahead(iter(Items(3, error)), most):
            seen.append(item)
    assert seen == [0, 1, 2]


def test_no_more_than_asked_for_is_read_ahead() -> None:
    items = Items(100)
    with closing(ahead(iter(items), 2)) as numbers:
        assert next(numbers) == 0
        time.sleep(0.1)
        assert items.read <= 4  # the one that is used, two that wait, one at hand
    eventually(lambda: items.is_closed)


def test_the_next_is_read_while_one_is_used() -> None:
    items = Items(2)
    numbers = ahead(iter(items), 2)
    next(numbers)
    eventually(lambda: items.read == 2)
    assert list(numbers) == [1]
