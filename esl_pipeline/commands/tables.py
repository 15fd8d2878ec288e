"""Tables that people read and copy from: no word of a cell, an id above all, is ever broken.

Where a table is too narrow for that it becomes a block of lines for each row; into a file or another program each row
is one line, however long.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from esl_pipeline.printable import printable

_GAP = 2
# What a cell of several words is given at least.
_SENTENCE = 20
# No line of ours is as long; rich needs some number.
_ENDLESS = 100_000


class Terminal(Console):
    """A console that wraps nothing for a program that reads on, or a file: unless COLUMNS says how wide it is."""

    @property
    def is_endless(self) -> bool:
        """Whether lines may be as long as they are."""
        return not self.is_terminal and self._width is None and "COLUMNS" not in os.environ

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does, but sentences and tables of ours are one line each where nobody looks at them."""
        if self.is_endless and all(isinstance(thing, str | Sheet) for thing in objects):
            options["soft_wrap"] = True
        super().print(*objects, **options)


class Sheet:
    """A table by its columns and rows, of any cells; shown as text, never as markup.

    lift: a column whose cell becomes a line above its rows where the table is too wide with it.
    """

    def __init__(
        self,
        columns: Iterable[str],
        rows: Iterable[Iterable[Any]],
        *,
        title: str | None = None,
        lift: str | None = None,
    ) -> None:
        self._columns = list(columns)
        self._rows = [[text(cell) for cell in row] for row in rows]
        self._title, self._lift = title, lift

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        endless = isinstance(console, Terminal) and console.is_endless
        if self._title:
            yield Text(self._title, style="italic")
        for line, style in self._lines(_ENDLESS if endless else options.max_width):
            yield Text(line, style, no_wrap=True, overflow="ignore", end="\n")

    def _lines(self, most: int) -> Iterator[tuple[str, str]]:
        """Each line and its style."""
        every = list(range(len(self._columns)))
        if widths := self._widths(every, most):
            yield from self._table(every, widths)
            return
        if self._lift in self._columns:
            above = self._columns.index(self._lift)
            rest = [n for n in every if n != above]
            if widths := self._widths(rest, most):
                yield from self._table(rest, widths, above)
                return
        yield from self._blocks(most)

    def _widths(self, shown: Sequence[int], most: int) -> list[int] | None:
        """How wide each column is in a table of at most this width; None: it would be hard to read, or break a word."""
        cells = [[self._columns[n], *(row[n] for row in self._rows)] for n in shown]
        least = [max(map(_least, column)) for column in cells]
        wanted = [max(map(cell_len, column)) for column in cells]
        left = most - sum(least) - _GAP * (len(least) - 1)
        return _shared_out(least, wanted, left) if left >= 0 else None

    def _table(
        self, shown: Sequence[int], widths: Sequence[int], above: int | None = None
    ) -> Iterator[tuple[str, str]]:
        yield from _row([self._columns[n] for n in shown], widths, "bold")
        last = None
        for row in self._rows:
            if above is not None and row[above] != last:
                last = row[above]
                yield f"{self._columns[above]} {last}", ""
            yield from _row([row[n] for n in shown], widths, "")

    def _blocks(self, most: int) -> Iterator[tuple[str, str]]:
        indent = max(map(cell_len, self._columns)) + _GAP
        for number, row in enumerate(self._rows):
            if number:
                yield "", ""
            for column, cell in zip(self._columns, row, strict=True):
                if cell != "-":
                    yield from _row([column, cell], [indent - _GAP, max(most - indent, 1)], "")


def _row(cells: Sequence[str], widths: Sequence[int], style: str) -> Iterator[tuple[str, str]]:
    wrapped = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, wrapped))):
        parts = [lines[number] if number < len(lines) else "" for lines in wrapped]
        yield (" " * _GAP).join(map(_padded, parts, widths)).rstrip(), style


def _padded(says: str, width: int) -> str:
    return says + " " * (width - cell_len(says))


def _wrapped(says: str, width: int) -> list[str]:
    """Lines of at most this width; a word that is longer stays whole."""
    lines = [""]
    for word in says.split(" "):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _least(says: str) -> int:
    """How narrow a cell may become: no word is broken, and a sentence needs some room."""
    return max(*map(cell_len, says.split(" ")), min(cell_len(says), _SENTENCE))


def _shared_out(least: Sequence[int], wanted: Sequence[int], left: int) -> list[int]:
    """Widths between these, of which the narrow wishes are fulfilled first."""
    widths = list(least)
    for position in sorted(range(len(least)), key=lambda n: wanted[n] - least[n]):
        waiting = sum(w > now for w, now in zip(wanted, widths, strict=True))
        more = min(wanted[position] - widths[position], left // max(waiting, 1))
        widths[position] += more
        left -= more
    return widths


def text(value: Any) -> str:
    """A cell as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))
