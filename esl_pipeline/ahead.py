"""Reading ahead: what comes from outside is fetched while what has come is worked on."""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# How soon a reader whose items nobody wants any more notices it.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def ahead(items: Iterator[T], most: int = 2) -> Generator[T]:
    """The items in their order, read by a thread of its own, at most so many of them before they are asked for.

    What the iterator raises is raised here, after the items before it. Whoever leaves early waits for nothing: the
    thread ends with the item at hand. most=0: no thread, one thing after the other.
    """
    if not most:
        yield from items
        return
    ready = queue.Queue[T | _End](most)
    is_left = threading.Event()
    threading.Thread(target=_read, args=(items, ready, is_left), name="ahead", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
    finally:
        is_left.set()
    if item.error is not None:
        raise item.error


def _read(items: Iterator[T], ready: "queue.Queue[T | _End]", is_left: threading.Event) -> None:
    def put(item: T | _End) -> bool:
        while not is_left.is_set():
            try:
                ready.put(item, timeout=_LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    try:
        if all(map(put, items)):
            put(_End(None))
    except BaseException as error:
        put(_End(error))
