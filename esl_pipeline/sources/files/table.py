"""From a file's bytes to a header and rows with their line numbers. Pure, no I/O."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from esl_pipeline.printable import printable
from esl_pipeline.sources.files.faults import FileError

DELIMITERS = (";", ",", "\t")

_NOT_TEXT = {
    b"PK": "it is a workbook or an archive and no text: save it as CSV",
    b"\xd0\xcf\x11\xe0": "it is an old Excel workbook and no text: save it as CSV",
    b"%PDF": "it is a PDF and no text: save it as CSV",
    codecs.BOM_UTF16_LE: "it is UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16: save it as UTF-8",
}
# Excel's first line, which tells the delimiter and is no header.
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_SHOWN = 60

Row = tuple[int, list[str]]


@dataclass(frozen=True)
class Table:
    """A text that is a table. `rows` may be read more than once; a million of them are never a list."""

    text: str
    encoding: str
    delimiter: str
    header: tuple[str, ...]
    header_line: int

    def rows(self) -> Iterator[Row]:
        """(line, cells) of every row below the header that holds anything. Raises FileError."""
        return (row for row in _records(self.text, self.delimiter) if row[0] > self.header_line)


def decoded(raw: bytes) -> tuple[str, str]:
    """The text and its encoding: UTF-8, with or without its mark, else Windows-1252. Raises FileError."""
    for beginning, what in _NOT_TEXT.items():
        if raw.startswith(beginning):
            raise FileError(what)
    if b"\x00" in raw:
        raise FileError(
            f"line {_line(raw, raw.index(0))} holds a zero byte: it is no text, or UTF-16; save it as UTF-8"
        )
    try:
        return raw.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError as error:
        if raw.startswith(codecs.BOM_UTF8) or _is_mostly_utf8(raw):
            says = (
                f"line {_line(raw, error.start)} is no UTF-8, and the rest of it is: save all of it as UTF-8"
            )
            raise FileError(says) from None
    try:
        return raw.decode("cp1252"), "Windows-1252"
    except UnicodeDecodeError as error:
        says = f"line {_line(raw, error.start)} is neither UTF-8 nor Windows-1252: save the file as UTF-8"
        raise FileError(says) from None


def _is_mostly_utf8(raw: bytes) -> bool:
    """Whether more of what is not ASCII is UTF-8 than is not: in Windows-1252 it hardly ever looks so."""
    text = raw.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return len(text) - len(text.encode("ascii", "ignore")) > 2 * wrong


def table_of(raw: bytes, choose: Callable[[Sequence[str]], int]) -> Table:
    """The table that a file is; choose: how many of the columns of a header are known, which tells the delimiter.

    Raises FileError when it is no text, cut off, or its header is none.
    """
    text, encoding = decoded(raw)
    text = text.removesuffix("\x1a")  # how DOS ended a text
    delimiters: Sequence[str] = DELIMITERS
    start = 1
    if found := _SEPARATOR_LINE.match(text):
        delimiters, start = (found[1],), 2
    if not text.strip():
        raise FileError("it is empty")
    # Half a line may hold half a price, and nobody can tell it from a whole one.
    if not text.endswith(("\n", "\r")):
        raise FileError(
            f"it is cut off: line {_line(text, len(text))} has no end; every line needs one, the last line too"
        )
    headers, faults = list[tuple[str, int, tuple[str, ...]]](), list[FileError]()
    for delimiter in delimiters:
        try:
            headers.append((delimiter, *_header(text, delimiter, start)))
        except FileError as fault:  # a quote ends before what is no delimiter here
            faults.append(fault)
    if not headers:
        raise faults[0]
    delimiter, line, header = max(headers, key=lambda found: (choose(found[2]), len(found[2])))
    _check_header(header, line)
    return Table(text, encoding, delimiter, header, line)


def _header(text: str, delimiter: str, start: int) -> tuple[int, tuple[str, ...]]:
    try:
        line, cells = next(row for row in _records(text, delimiter) if row[0] >= start)
    except StopIteration:
        raise FileError("it has no header") from None
    return line, tuple(" ".join(cell.split()) for cell in cells)


def _check_header(header: Sequence[str], line: int) -> None:
    seen = set[str]()
    for name in map(normal, header):
        if name and name in seen:
            raise FileError(f"line {line}, the header, has the column {shown(name)} twice")
        seen.add(name)


def _records(text: str, delimiter: str) -> Iterator[Row]:
    """Every record that holds anything, with the line where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileError(
            f"the row that begins in line {line} cannot be read ({error}): is a quote not closed?"
        ) from None


def normal(name: str) -> str:
    """A column's name as it is compared: small letters, one space for whatever stands between words."""
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))


def shown(text: str) -> str:
    """A stranger's text in a sentence."""
    text = printable(text)
    return f"'{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + '…'}'"


def _line(text: bytes | str, at: int) -> int:
    before = text[:at]
    return 1 + (before.count(b"\n") if isinstance(before, bytes) else before.count("\n"))
