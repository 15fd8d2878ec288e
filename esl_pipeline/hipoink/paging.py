"""Which page of a listing is asked for next, and how large: as large as the server gives without slowing down."""

from dataclasses import dataclass, field

LARGEST_PAGE = 2_000
# A larger page may take three times as long as the one before it; below this nobody can tell a slow server from a busy
# moment.
_SLOWER = 3.0
_QUICK_SECONDS = 0.1
_SMALLEST_CAP = 10


@dataclass(frozen=True)
class Page:
    """Rows of a listing, and what their answer has cost."""

    rows: list[dict[str, object]] = field(repr=False)
    seconds: float
    bytes: int


class Turns:
    """The turns of one listing's pages: of `size` rows at first, doubled up to LARGEST_PAGE as far as the server goes.

    Neither limits nor their effect are documented: a server may cap pages and turn them by our size or by its own,
    ignore the size, or fail of a large one. A page of another size has another number, so the size changes only where
    a page of the new one begins. The first of them is a trial: it counts when it is just what it should be, else it is
    as if it had never been asked for, and none is tried again. As far as the last answer tells, a larger one stays
    below most_bytes and most_seconds.
    """

    def __init__(self, size: int, *, most_bytes: int, most_seconds: float) -> None:
        self.number, self.size, self.is_trial = 1, size, False
        self._largest = max(size, LARGEST_PAGE)
        self._most_bytes, self._most_seconds = most_bytes, most_seconds
        self._last: Page | None = None

    def next(self, expected: int) -> None:
        """Settle number and size of the next page, with so many rows still expected."""
        larger, last = 2 * self.size, self._last
        self.is_trial = (
            last is not None
            and larger <= self._largest
            and self._rows_before % larger == 0
            and expected > self.size
            and 2 * last.bytes <= self._most_bytes
            and 2 * last.seconds <= self._most_seconds
        )
        if self.is_trial:
            self._turn_by(larger)

    def failed(self) -> None:
        """The trial counts for nothing: go on where it began, by what was good before it."""
        self._largest = self.size // 2
        self._turn_by(self._largest)

    def read(self, page: Page, *, is_whole: bool) -> None:
        """The page was read; is_whole: it held as many rows as asked for, all of them new."""
        is_first, is_slow = self.number == 1, self.is_trial and self._is_slow(page)
        self.number += 1
        if is_slow:
            self.failed()
        elif is_whole:
            self._last = page
        else:
            if is_first and _SMALLEST_CAP <= len(page.rows) < self.size:
                self.size = len(
                    page.rows
                )  # a server that caps its pages may turn them by our size, or by its own
            self._largest = self.size

    def _is_slow(self, page: Page) -> bool:
        before = self._last.seconds if self._last else 0
        return page.seconds > max(_QUICK_SECONDS, _SLOWER * before)

    @property
    def _rows_before(self) -> int:
        return (self.number - 1) * self.size

    def _turn_by(self, size: int) -> None:
        self.number, self.size = self._rows_before // size + 1, size
