"""A list that is read page by page while it changes: nothing that was there all the time is missed.

WordPress counts its pages from the beginning of the list: when something before a page is deleted, all that follows
moves up, and what stood first on the next page is on none. So each page begins with the last thing of the one before;
when that is not there, the list has slipped, and is read again from further up until something known is met.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.woocommerce.client import Answer, Client
from esl_pipeline.sources.woocommerce.errors import IncompleteError, UnavailableError

PER_PAGE = 100
PASSES = 3
_STEPS_WITHOUT_NEWS = 50
_SLIPS = 200


class Listing:
    """All things of a path, in the order of their ids: iterate once, then ask `missing`.

    answer: of the first page. missing: how many things the list counts and does not show, because the key's user may
    not see them or they are damaged; nothing may be concluded from absence then. Iterating raises IncompleteError when
    the list changes faster than it can be read, or cannot be counted. Not `whole`: what comes in behind the reader may
    be missed, for it is read another time.
    """

    def __init__(self, client: Client, path: str, *, whole: bool = True, **parameters: Any) -> None:
        self.answer: Answer | None = None
        self.missing = 0
        self._whole, self._total = whole, 0
        self._client, self._path, self._parameters = client, path, parameters

    def __iter__(self) -> Iterator[Row]:
        seen: set[int] = set()
        for _ in range(PASSES):
            for row in self._once():
                if row["id"] not in seen:
                    seen.add(row["id"])
                    yield row
            # More than there are now: some were deleted meanwhile. Fewer: something came in where we had been already.
            if not self._whole or len(seen) + self.missing >= self._total:
                return
        raise IncompleteError(
            f"{self._path}: the list changed while it was read, {PASSES} times over: {len(seen)} things were read of "
            f"{self._total}. Try again when less is going on in the shop."
        )

    def _once(self) -> Iterator[Row]:
        """From the first thing to the last."""
        self.missing = 0
        last, offset, back, slips, without_news = 0, 0, 1, 0, 0
        while True:
            rows = self._page(offset)
            hidden = max(0, min(PER_PAGE, self._total - offset) - len(rows))
            if last and (rows[0]["id"] > last if rows else not hidden):
                offset, back, slips = max(0, offset - back), 2 * back, slips + 1
                if slips > _SLIPS:
                    raise IncompleteError(f"{self._path}: the list slipped {_SLIPS} times while it was read.")
                if offset == 0:
                    last, back = 0, 1
                continue
            back = 1
            news = [row for row in rows if row["id"] > last]
            yield from news
            self.missing += hidden
            offset += len(rows) + hidden
            if offset >= self._total:
                return
            without_news = 0 if news else without_news + 1
            if without_news > _STEPS_WITHOUT_NEWS:
                raise IncompleteError(
                    f"{self._path}: page after page holds nothing new: something keeps old answers."
                )
            last = rows[-1]["id"] if rows else last
            offset -= 1 if rows else 0

    def _page(self, offset: int) -> list[Row]:
        answer = self._client.get(
            self._path,
            offset=offset,
            per_page=PER_PAGE,
            orderby="id",
            order="asc",
            **self._parameters,
        )
        self.answer = self.answer or answer
        rows = answer.content
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and _is_id(row.get("id")) for row in rows
        ):
            raise UnavailableError(f"{self._path}: the answer is no list of things with ids.")
        if answer.total is None:
            raise IncompleteError(
                f"{self._path}: the answer does not count the list (X-WP-Total); something in between takes that "
                "header away."
            )
        ids = [row["id"] for row in rows]
        if any(first >= second for first, second in pairwise(ids)):
            raise IncompleteError(
                f"{self._path}: the list is not in the order of its ids; a plugin sorts it anew."
            )
        self._total = answer.total
        return rows


def _is_id(value: object) -> bool:
    return type(value) is int and value > 0
