"""Listings page by page: which page is asked for next, how large, and when all of it was read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from esl_pipeline.hipoink.errors import HipoinkError, TransientError

LARGEST_PAGE = 2_000
# A larger page may take three times as long as the one before it; below this nobody can tell a slow server from a busy
# moment.
_SLOWER = 3.0
_QUICK_SECONDS = 0.1
_SMALLEST_CAP = 10
# An exact list that grows beyond what was counted by so much, or where nothing was counted, has no end.
_MOST_MORE, _MOST_UNCOUNTED = 10_000, 2_000_000


Row = dict[str, object]


@dataclass(frozen=True)
class Page:
    """Rows of a listing, and what their answer has cost."""

    rows: list[Row] = field(repr=False)
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


@dataclass(frozen=True)
class Listing:
    """A list that a server gives in pages.

    called, of: for messages ("query for store 001", "products"). page: asks for one of this number and size. count: how
    many rows the server counts now; None: it does not say (of an exact one). name_of: a hash of what tells a row from
    others. is_exact: conclusions rest on what is not in it, so a count that is too small ends it no more than a short
    page does.
    """

    called: str
    of: str
    page: Callable[[int, int], Page]
    count: Callable[[], int | None]
    name_of: Callable[[Row], int]
    is_exact: bool = False


def every_page(listing: Listing, turns: Turns) -> Iterator[list[Row]]:
    """All rows, once each, as the server has them; as many as it counts, or TransientError at the end.

    Neither order nor page limits are documented: the server may cap the size, repeat pages, or shift rows while we
    read. So the listing goes on until a page is empty or brings nothing new, and must then have reached the count
    asked for at the start, or the one of the end. A row may still be missing, when it slipped from one page to
    another while we read and a new one came. What tells rows apart is kept to the end: 100 bytes each.
    """
    expected, count = listing.count(), 0
    seen: dict[int, int] = {}
    left = (expected or 0) + 1
    while left or listing.is_exact:
        turns.next(LARGEST_PAGE if expected is None else expected - count)
        page = _turned(listing, turns)
        fresh, names = _new_rows(page.rows, seen, listing.name_of)
        is_whole = len(fresh) == len(page.rows) == turns.size
        is_last = len(page.rows) < turns.size and _is_reached(listing, count + len(fresh), expected)
        if turns.is_trial and not (is_whole or is_last):
            turns.failed()
            continue
        left -= 1
        seen |= names
        count += len(fresh)
        yield fresh
        if not fresh or is_last:
            break
        turns.read(page, is_whole=is_whole)
        if listing.is_exact and count > (2 * expected + _MOST_MORE if expected else _MOST_UNCOUNTED):
            raise TransientError(f"{listing.called}: the listing of {listing.of} did not end after {count}.")
    if expected is not None and count < expected and count < (expected := listing.count() or 0):
        raise TransientError(f"{listing.called}: the listing ended after {count} of {expected} {listing.of}.")


def _is_reached(listing: Listing, count: int, expected: int | None) -> bool:
    return count == expected or (expected is not None and count > expected and not listing.is_exact)


def _turned(listing: Listing, turns: Turns) -> Page:
    """The page whose turn it is; a trial that fails brings nothing."""
    try:
        return listing.page(turns.number, turns.size)
    except HipoinkError:
        if not turns.is_trial:
            raise
        return Page([], 0, 0)


def _new_rows(
    rows: Sequence[Row], seen: Mapping[int, int], name_of: Callable[[Row], int]
) -> tuple[list[Row], dict[int, int]]:
    """The rows that no earlier page had, as the server counts them, whatever their codes; and what is seen now of them.

    `seen`: how often a page held what has this name; without a number of their own rows may be equal.
    """
    here: dict[int, int] = {}
    fresh = []
    for row in rows:
        name = name_of(row)
        here[name] = times = here.get(name, 0) + 1
        if times > seen.get(name, 0):
            fresh.append(row)
    return fresh, {name: max(times, seen.get(name, 0)) for name, times in here.items()}
