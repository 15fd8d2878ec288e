"""Deliveries that arrive together are kept by one call: whatever waited while the last commit was under way.

No timer: who comes alone is kept at once. Each sender is told of its own delivery, after the commit that keeps it. A
shop is in one call at a time, so two calls never wait for each other's rows, and what a shop has to wait for holds up
that shop; and those that came along with it for half a second, then the call fails (esl_inbox_add). A call that fails
for what may be one row's fault is tried again shop by shop, and what fails then half by half, until each delivery has
its own answer. Deliveries that have an effect beyond the inbox (a shop has left) go alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.door import Row
from esl_pipeline.buffer.errors import BufferError

AT_ONCE = 1
"""So many calls are under way at a time: of two, each is half as large, and costs nearly as much (measured)."""
SLOW_SECONDS = 0.25
"""A call that takes longer is no longer counted as one of those."""
ROWS, BYTES = 100, 1_000_000
"""Of a group; one delivery goes however large."""
PATIENCE_SECONDS = 5.0

log = logging.getLogger(__name__)


class Crowded(Exception):  # noqa: N818 - the name says the state
    """The delivery waited for so long that nobody waits for the answer any more."""


@dataclass(eq=False)
class _Delivery:
    row: Row
    shop: str
    size: int
    since: float
    told: asyncio.Future[Row]

    @property
    def goes_alone(self) -> bool:
        return bool(self.row["state"] == "done")


class Groups:
    """What waits to be kept, and the calls that keep it. For one event loop. threads: calls at most, slow ones too."""

    def __init__(self, buffer: Buffer, threads: int) -> None:
        self._buffer, self._most = buffer, threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="inbox")
        self._waiting: deque[_Delivery] = deque()
        self._busy: set[str] = set()
        self._under_way: dict[asyncio.Future[list[Row]], float] = {}
        self._is_due = self._is_watched = False

    def __len__(self) -> int:
        """How many wait for a call."""
        return len(self._waiting)

    async def keep(self, row: Row, shop: str, size: int) -> Row:
        """What the buffer says of the delivery, {inserted, waiting, refused}, once it is kept; size: in bytes.

        Raises BufferError, and Crowded.
        """
        loop = asyncio.get_running_loop()
        one = _Delivery(row, shop, size, loop.time(), loop.create_future())
        self._waiting.append(one)
        self._look(loop)
        return await one.told

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # In the next round, so that all who are here in this one go together.
        if not self._is_due:
            self._is_due = True
            loop.call_soon(self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_due = False
        while self._waiting and self._has_room(loop.time()) and (group := self._next()):
            self._start(loop, group)
        if self._waiting and not self._is_watched:
            self._is_watched = True
            loop.call_later(SLOW_SECONDS, self._watch, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Calls may have become slow, and deliveries have waited too long."""
        self._is_watched = False
        while self._waiting and loop.time() - self._waiting[0].since > PATIENCE_SECONDS:
            _fail([self._waiting.popleft()], Crowded())
        self._begin(loop)

    def _has_room(self, now: float) -> bool:
        fresh = sum(now - since < SLOW_SECONDS for since in self._under_way.values())
        return fresh < AT_ONCE and len(self._under_way) < self._most

    def _next(self) -> list[_Delivery]:
        """Those that go together, taken from what waits; none where all their shops are busy."""
        group, size, later = list[_Delivery](), 0, list[_Delivery]()
        while self._waiting and len(group) < ROWS:
            one = self._waiting.popleft()
            alone = one.goes_alone or bool(group and group[0].goes_alone)
            if one.shop in self._busy or (group and (alone or size + one.size > BYTES)):
                later.append(one)
                continue
            group.append(one)
            size += one.size
        self._waiting.extendleft(reversed(later))
        return group

    def _start(
        self, loop: asyncio.AbstractEventLoop, group: list[_Delivery], behind: Sequence[list[_Delivery]] = ()
    ) -> None:
        """behind: of the same shop, to be kept after it."""
        shops = {one.shop for one in group}
        self._busy |= shops
        call = loop.run_in_executor(self._threads, self._buffer.inbox_add_each, [one.row for one in group])
        self._under_way[call] = loop.time()

        def ended(call: asyncio.Future[list[Row]]) -> None:
            del self._under_way[call]
            self._busy -= shops
            error = asyncio.CancelledError() if call.cancelled() else call.exception()
            parts = _to_try_again(group, error)
            if len({part[0].shop for part in parts}) > 1:
                for part in parts:
                    self._start(loop, part)
            elif after := [*parts, *behind]:
                self._start(loop, after[0], after[1:])
            self._begin(loop)  # before those are answered who were in this call
            if error is None:
                _tell(group, call.result())
            elif not parts:
                _fail(group, error)

        call.add_done_callback(ended)


def _to_try_again(group: list[_Delivery], error: BaseException | None) -> Sequence[list[_Delivery]]:
    """The parts of a group that failed, none where that is each one's answer."""
    if not isinstance(error, BufferError):
        return ()
    log.error("the buffer kept none of %d: %a", len(group), str(error))
    if len(group) == 1 or not error.may_be_of_one_row:
        return ()
    return parts if len(parts := _by_shop(group)) > 1 else _halves(group)


def _by_shop(group: list[_Delivery]) -> list[list[_Delivery]]:
    shops: dict[str, list[_Delivery]] = {}
    for one in group:
        shops.setdefault(one.shop, []).append(one)
    return list(shops.values())


def _halves(group: list[_Delivery]) -> tuple[list[_Delivery], list[_Delivery]]:
    return group[: len(group) // 2], group[len(group) // 2 :]


def _tell(group: Iterable[_Delivery], answers: Iterable[Row]) -> None:
    for one, answer in zip(group, answers, strict=True):
        if not one.told.done():  # else who asked has gone
            one.told.set_result(answer)


def _fail(group: Iterable[_Delivery], error: BaseException) -> None:
    for one in group:
        if not one.told.done():
            one.told.set_exception(error)
