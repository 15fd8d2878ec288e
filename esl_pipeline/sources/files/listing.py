"""From a file's bytes to entries: what it says of which product, and what is wrong with it, by line. Pure, no I/O.

A fault of the file raises FileError, and nothing of it is used. A fault of a row holds that row back: its entry has a
problem, and the label stays as it is.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

from esl_pipeline.labels.codes import means_nothing
from esl_pipeline.sources.files import columns, numbers
from esl_pipeline.sources.files.columns import Places
from esl_pipeline.sources.files.faults import Complaint, FileError
from esl_pipeline.sources.files.numbers import Sign
from esl_pipeline.sources.files.table import Row, Table, shown, table_of

Kind = Literal["full", "changes"]
Key = Literal["id", "code"]

_YES = frozenset(("1", "true", "yes", "y", "x", "ja", "j", "wahr", "deleted", "gelöscht"))
_NO = frozenset(("", "0", "false", "no", "n", "nein", "falsch"))
_PRICES = ("price", "compare_at_price")
# Ids that stand for a key that is no number lie above those that are.
_HASHED, _IDS = 10**18, 2**63


class Unclear(NamedTuple):
    """What is known of the product that a row is about, when the row does not say which one it is.

    Codes within span, else the title; with neither it may be any.
    """

    lowest: str | None = None
    highest: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Entry:
    """What a file says of one product. said: field -> text, "" for a cell that is empty; a missing column has no key.

    id: product and variant. problem: why the row is held back, with its line.
    """

    line: int
    id: str
    said: Mapping[str, str]
    is_deleted: bool = False
    problem: str | None = None
    unclear: Unclear | None = None


@dataclass
class Listing:
    """A file that was read through once. rows: that hold anything; entries: products that it names, deletions not."""

    kind: Kind
    table: Table
    places: Places
    key: Key
    decimal_sign: Sign | None = None
    rows: int = 0
    _lines: dict[str, list[int]] = field(default_factory=dict)
    """Of ids that come more than once, all lines."""
    _agreed: dict[str, dict[str, str]] = field(default_factory=dict)
    """What all of these lines say alike; "" where they differ, so that none of them passes for right later."""

    def entries(self) -> Iterator[Entry]:
        """Every product once, in the order of the file."""
        told = set[str]()
        for row in self.table.rows():
            entry = _entry(row, self)
            lines = self._lines.get(entry.id)
            if lines is None:
                yield entry
            elif entry.id not in told:
                told.add(entry.id)
                yield _twice(entry, lines, self._agreed[entry.id])

    def complaints(self) -> Iterator[Complaint]:
        """What is wrong with rows, by line."""
        for row in self.table.rows():
            says = list[str]()
            entry = _entry(row, self, says.append)
            if lines := self._lines.get(entry.id):
                says.append(_same(entry, lines))
            yield from (Complaint(row[0], text) for text in says)

    @property
    def header(self) -> Mapping[str, str]:
        """Field -> the column that says it, as the file writes it."""
        return {name: self.table.header[position] for name, position in self.places.items()}


def read(raw: bytes, kind: Kind, named: Mapping[str, str]) -> Listing:
    """Read a file of that kind. named: field -> column, of the store's policy. Raises FileError."""
    table = table_of(raw, partial(columns.known, named=named))
    places = columns.places(table.header, named, is_full=kind == "full")
    listing = Listing(kind, table, places, "id" if "id" in places else "code")
    last: Row | None = None
    listing.decimal_sign = numbers.decimal_sign_of(
        cells[places[name]]
        for _, cells in table.rows()
        for name in _PRICES
        if name in places and places[name] < len(cells)
    )
    first: dict[str, int] = {}
    for last in table.rows():
        listing.rows += 1
        id_ = _entry(last, listing).id
        if id_ in first:
            listing._lines.setdefault(id_, [first[id_]]).append(last[0])
        else:
            first[id_] = last[0]
    if listing._lines:
        _agree(listing)
    if last is not None and len(last[1]) < len(table.header):
        raise FileError(
            f"it is cut off: its last line, {last[0]}, has {len(last[1])} of the header's {len(table.header)} columns"
        )
    if kind == "full" and not listing.rows:
        raise FileError("it is a full list and lists nothing")
    return listing


def _entry(row: Row, listing: Listing, say: Callable[[str], None] | None = None) -> Entry:
    line, cells = row
    says = list[str]()
    said = {
        name: cells[position].strip() if position < len(cells) else ""
        for name, position in listing.places.items()
    }
    if "code" in said:
        said["code"] = numbers.code_of(said["code"])
    is_whole = len(cells) == len(listing.table.header)
    if not is_whole:
        says.append(f"{len(cells)} columns where the header has {len(listing.table.header)}")
    id_, unclear = _identity(said, listing, is_whole=is_whole, say=says.append)
    if not is_whole:  # of cells that may have shifted only the key is believed
        said = {} if unclear else {listing.key: said[listing.key]}
    if is_whole:
        _check_code(said, says.append)
        _read_prices(said, listing, says.append)
        _check_title(said, says.append)
    is_deleted = _is_deleted(said.pop("deleted", ""), says.append)
    if is_deleted and unclear is None and is_whole:
        says.clear()  # of what goes, nobody needs to know the price
    for text in says:
        if say:
            say(text)
    problem = f"line {line}: {'; '.join(says)}" if says else None
    return Entry(line, id_, said, is_deleted and problem is None, problem, unclear)


def _identity(
    said: Mapping[str, str], listing: Listing, *, is_whole: bool, say: Callable[[str], None]
) -> tuple[str, Unclear | None]:
    """The product's id; and where the row does not tell it, one of the row's own with what is known."""
    text, title = said[listing.key], said.get("title") or None
    if (
        not is_whole
        and listing.places[listing.key] > 0
        and not (listing.key == "code" and text.isascii() and text.isdigit() and len(text) >= 8)
    ):
        return _hashed(f"? {said}"), Unclear()  # its cells may have shifted
    if listing.key == "id" and text:
        return id_of(text), None
    if listing.key == "code":
        if span := numbers.rounded(text):
            return _hashed(f"? {text} {title}"), Unclear(span.lowest, span.highest, None)
        if whole := numbers.without_decimals(text):
            return id_of(whole), None
        if text and not means_nothing(text):
            return id_of(text), None
    say(
        f"no {'code' if listing.key == 'code' else 'number of the article'}, so that nobody knows which product it is"
    )
    return _hashed(f"? {text} {title}"), Unclear(title=title)


def id_of(key: str) -> str:
    """The id of the product of this key: a number as itself, however many zeros lead it; any other text by its hash."""
    digits = key.lstrip("0")
    if key.isascii() and digits.isdigit() and len(digits) <= 18:
        return digits
    return _hashed(key)


def _hashed(text: str) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    return str(_HASHED + number % (_IDS - _HASHED))


def _check_code(said: Mapping[str, str], say: Callable[[str], None]) -> None:
    code = said.get("code", "")
    if numbers.rounded(code) or numbers.without_decimals(code):
        say(f"a spreadsheet has made {shown(code)} of the code: keep that column as text")


def _read_prices(said: dict[str, str], listing: Listing, say: Callable[[str], None]) -> None:
    """Prices as the pipeline writes them; one that is none stays as it is, for people to see."""
    for name in _PRICES:
        if name not in said:
            continue
        text = said[name]
        price = numbers.price_of(text, listing.decimal_sign) if text else None
        if price is not None:
            said[name] = price
        elif name == "price" or text:
            say(_price_complaint(text, listing))


def _price_complaint(text: str, listing: Listing) -> str:
    if not text:
        return "no price"
    either = listing.decimal_sign is None and (
        numbers.price_of(text, ",") is not None and numbers.price_of(text, ".") is not None
    )
    if either:
        return f"the price {shown(text)} may be a thousand or have three decimals: write it with two"
    return f"the price {shown(text)} is no number"


def _check_title(said: Mapping[str, str], say: Callable[[str], None]) -> None:
    if said.get("title") == "":
        say("no title")


def _is_deleted(text: str, say: Callable[[str], None]) -> bool:
    word = text.casefold()
    if word not in _YES and word not in _NO:
        say(f"deleted is {shown(text)}: write 1 or leave it empty")
    return word in _YES


def _same(entry: Entry, lines: list[int]) -> str:
    others = [line for line in lines if line != entry.line]
    return f"the same product stands in line {', '.join(map(str, islice(others, 5)))}: which one is right?"


def _agree(listing: Listing) -> None:
    for row in listing.table.rows():
        entry = _entry(row, listing)
        if entry.id in listing._lines:
            agreed = listing._agreed.setdefault(entry.id, dict(entry.said))
            agreed.update({name: "" for name, text in agreed.items() if entry.said.get(name) != text})


def _twice(entry: Entry, lines: list[int], agreed: Mapping[str, str]) -> Entry:
    said = entry.problem or f"line {entry.line}: "
    separator = "; " if entry.problem else ""
    problem = f"{said}{separator}{_same(entry, lines)}"
    return Entry(entry.line, entry.id, agreed, False, problem, entry.unclear)


def counts(listing: Listing) -> Mapping[str, int]:
    """How many entries are listed, deleted and held back; in one pass."""
    found = Counter[str]()
    for entry in listing.entries():
        found["deleted" if entry.is_deleted else "held" if entry.problem else "listed"] += 1
    return found
