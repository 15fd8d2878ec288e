"""The demo's shop whose till writes CSV files into a folder: full lists, change lists, and what goes wrong."""

import csv
import io
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.demo.day import Label, Shelf, made_label
from esl_pipeline.demo.shop import BY, POLICY, STORE, Act, DemoError, ShopUnderDemo, Tell
from esl_pipeline.sandbox.shopify.catalogue import Catalogue
from esl_pipeline.settings import Settings
from esl_pipeline.sources.facts import Row

_SEED = 2026
_READ_SECONDS = 120.0
_HEADER = ("Artikelnummer", "EAN", "Bezeichnung", "Warengruppe", "Preis")
_CODE = "4,00638E+12"  # what a spreadsheet makes of one


@dataclass
class Article:
    """One line of a full list. odd: what the till writes instead of a cell, by its column."""

    number: int
    code: str
    title: str
    group: str
    price: Decimal
    odd: dict[str, str] = field(default_factory=dict)

    def line(self) -> list[str]:
        """Its cells, with a decimal comma."""
        cells = (str(self.number), self.code, self.title, self.group, _comma(self.price))
        return [self.odd.get(name, cell) for name, cell in zip(_HEADER, cells, strict=True)]

    def label(self) -> Label | None:
        """What its label must show; None: it stays as it is."""
        if self.odd:
            return None
        return made_label(self.code, [self.title], f"{self.price:.2f}", str(self.number))


class FilesDemo(ShopUnderDemo):
    """Some 400 articles; a day of price files, one of them cut off, one of yesterday; and the list of the night."""

    system = "files"
    sends = "files"
    acts = (
        Act(
            "opening",
            "The till's first list comes into the folder, in Windows-1252, with mistakes of its own",
        ),
        Act(
            "trading",
            "A working day: price files, one cut off, one with the same article twice, a list that is too small",
        ),
        Act("evening", "The list of the evening, in UTF-8 with tabs: lines mended, a price, an article less"),
    )
    first_day = "as by FILES_FOLDERS and esl-pipeline stores add --source files"

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(_SEED)  # noqa: S311 (repeatable on purpose, guards nothing)
        self._articles = _articles(self._rng)
        self._shelf = Shelf()
        self._folder: Path | None = None
        self._buffer: Buffer | None = None
        self._written = 0
        self._clock = time.time() - 3_600
        self._repriced = ""

    @property
    def shop(self) -> str:
        """Its short name."""
        return "corner-market"

    @property
    def rng(self) -> random.Random:
        """The till's."""
        return self._rng

    @contextmanager
    def running(self) -> Iterator[None]:
        """A folder that the till writes into."""
        with tempfile.TemporaryDirectory(prefix="esl-demo-files-") as folder:
            self._folder = Path(folder)
            yield

    def environment(self) -> dict[str, str]:
        """The folder."""
        return {"FILES_FOLDERS": f"{self.shop}={self._folder}", "FILES_SETTLE_SECONDS": "1"}

    def connect(self, settings: Settings, buffer: Buffer, receiver: str, tell: Tell) -> None:  # noqa: ARG002
        """A mapping is all."""
        self._buffer = buffer
        for check in settings.sources[self.system].checks([self.shop], [self.shop]):
            tell("folder", check.says)
        key = {"source_system": self.system, "source_store_id": self.shop, "hipoink_store_code": STORE}
        buffer.mapping_create({**key, "settings": {"expected_currency": "EUR"} | POLICY}, by=BY)
        tell("store", f"{STORE}: live, by esl-pipeline stores add")

    def play(self, act: str, receiver: str) -> Iterator[tuple[int, int]]:  # noqa: ARG002
        """Write the files, and wait until each was read, refused or put aside."""
        {"opening": self._open, "trading": self._trade, "evening": self._close}[act]()
        deadline = time.monotonic() + _READ_SECONDS
        while (done := self._judged()) < self._written:
            yield done, self._written
            if time.monotonic() > deadline:
                raise DemoError(f"not all files were looked at within {_READ_SECONDS:.0f} s")
            time.sleep(0.5)
        yield done, self._written
        self._settle(self._articles.values())

    @property
    def labels(self) -> Mapping[str, Label]:
        """By the files that could be read."""
        return self._shelf.labels

    @property
    def held_back(self) -> int:
        """By the same."""
        return self._shelf.held_back

    @property
    def files(self) -> Mapping[str, int]:
        """How many files were applied, refused, and wait."""
        states = [file["state"] for file in self._found()]
        return {state: states.count(state) for state in ("applied", "refused", "waiting")}

    def night_falls(self) -> None:
        """The night reads the list of the evening again."""

    def example(self) -> str:
        """Of a price file."""
        return self._repriced

    def _open(self) -> None:
        articles = list(self._articles.values())
        articles[3].odd = {"EAN": _CODE}
        articles[4].odd = {"Preis": "auf Anfrage"}
        articles[5].odd = {"Bezeichnung": ""}
        self._write("artikel-full-1.csv", self._lines(), encoding="cp1252")

    def _trade(self) -> None:
        articles = [article for article in self._articles.values() if not article.odd]
        prices, twice, gone, first = articles[:60], articles[60], articles[61:64], articles[0]
        for article in prices:
            article.price += Decimal(self._rng.choice((1, 2, 5))) / 10
        self._repriced = first.code
        lines = [[str(article.number), _comma(article.price), ""] for article in prices]
        lines += [[str(article.number), "", "ja"] for article in gone]
        for article in gone:
            del self._articles[article.number]
        header = ("Artikelnummer", "Preis", "Gelöscht")
        self._write("preise-changes-1.csv", [header, *lines])
        # Two prices for one article: neither is believed.
        twice.odd = {"Preis": "?"}
        wrong = [[str(twice.number), "1,11"], [str(twice.number), "9,99"]]
        self._write("preise-changes-2.csv", [header[:2], *wrong, [str(first.number), _comma(first.price)]])
        cut_off = [[str(article.number), "0,01"] for article in articles[70:90]]
        self._write("preise-changes-3.csv", [header[:2], *cut_off], keep=0.6)
        # An export that was stopped half-way: whole lines, but too few of them.
        self._write("artikel-full-0.csv", self._lines()[:50])

    def _close(self) -> None:
        articles = list(self._articles.values())
        for article in articles:
            article.odd = {}
        dearer, gone = articles[20], articles[21]
        dearer.price += 1
        del self._articles[gone.number]
        self._write("artikel-full-2.csv", self._lines(), encoding="utf-8-sig", delimiter="\t")

    def _lines(self) -> list[Sequence[str]]:
        return [_HEADER, *(article.line() for article in self._articles.values())]

    def _settle(self, articles: Iterable[Article]) -> None:
        self._shelf.place({article.number: article.label() for article in articles})

    def _write(
        self,
        name: str,
        lines: Sequence[Sequence[str]],
        *,
        encoding: str = "utf-8",
        delimiter: str = ";",
        keep: float = 1,
    ) -> None:
        """Write a file as tills do; `keep` is the part of it that comes, where it is cut off."""
        assert self._folder is not None
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows(lines)
        raw = text.getvalue().encode(encoding, "replace")
        path = self._folder / name
        path.write_bytes(raw if keep == 1 else raw[: int(len(raw) * keep)].rstrip(b"\r\n"))
        self._clock += 1
        os.utime(path, (self._clock, self._clock))
        self._written += 1

    def _found(self) -> list[Row]:
        assert self._buffer is not None
        return self._buffer.files_list()

    def _judged(self) -> int:
        return sum(file["state"] in ("applied", "refused", "waiting") for file in self._found())


def _articles(rng: random.Random) -> dict[int, Article]:
    """The catalogue's variants that can be sold, each as an article."""
    made = Catalogue(rng)
    found: dict[int, Article] = {}
    codes = set[str]()
    for product in [*made.groceries(datetime.now(UTC)), made.loose_tea(datetime.now(UTC))]:
        for variant in product.variants:
            names = [product.title] if variant.title == "Default Title" else [product.title, variant.title]
            code, price = variant.barcode or "", variant.price or ""
            if made_label(code, names, price, "") is None or code in codes:
                continue
            codes.add(code)
            number = 10_000 + len(found)
            title = " ".join(names).encode("cp1252", "ignore").decode("cp1252").strip()
            if title:
                found[number] = Article(number, code, title, product.product_type, Decimal(price))
    return found


def _comma(price: Decimal) -> str:
    return f"{price:,.2f}".translate(str.maketrans(",.", ".,"))
