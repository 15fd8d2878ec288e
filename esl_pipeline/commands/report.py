"""`esl-pipeline report`: last night as a shop manager reads it: was, should be, done; what is held back, what waits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.markup import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.findings import all_findings
from esl_pipeline.commands.queue import CsvFile, Limit, StoreOption, known_store, reason, title
from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json, settings_here
from esl_pipeline.commands.spreadsheets import write_csv
from esl_pipeline.commands.tables import Sheet
from esl_pipeline.commands.times import moment
from esl_pipeline.printable import printable

Row = Mapping[str, Any]

# From when the doors close until somebody has looked, in the time zone of the nightly run.
_BEGINS, _ENDS = time(18), time(10)
_COLUMNS = {
    "store": "store",
    "shop": "shop",
    "part": "part",
    "code": "code",
    "title": "title",
    "what": "what",
    "was": "was",
    "should_be": "should_be",
    "done": "done",
    "why": "why",
    "to_do": "what_to_do",
}
# What became of a label, in the order in which somebody wants to read it.
_WHAT = {
    "repaired": "repaired",
    "rise": "price up",
    "cut": "price down",
    "removed": "removed",
    "other": "other text",
    "new": "new",
}
_DRIFT = {
    "missing": "the label server had lost it",
    "different": "the label server showed something else",
    "foreign": "the label server had a label that nobody wants",
    "ours": "the label server had it, and we did not know",
}


@dataclass(frozen=True)
class Line:
    """One label: what it was, what it should be, when that was done (None: not yet), why, and what to do."""

    store: str
    shop: str | None
    part: str
    code: str | None
    title: str | None
    what: str
    was: str | None
    should_be: str | None
    done: str | None = None
    why: str | None = None
    to_do: str | None = None


@dataclass(frozen=True)
class StoreNight:
    """A store's night. compared: in words, whether the label server's own list was looked at."""

    store: str
    shops: str
    labels: int
    compared: str
    done: list[Line] = field(default_factory=list)
    waiting: list[Line] = field(default_factory=list)
    held: list[Line] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The night in one sentence."""
        counts = Counter(line.what for line in self.done)
        changes = ", ".join(f"{counts[what]} {what}" for what in _WHAT.values() if counts[what])
        waits = ", ".join(f"{n} {what}" for what, n in Counter(line.what for line in self.waiting).items())
        return "; ".join(
            [
                f"{self.labels} labels, {len(self.done)} of them changed"
                + (f" ({changes})" if changes else ""),
                f"not done yet: {waits}" if waits else "nothing waits",
                f"{len({line.title for line in self.held})} products held back"
                if self.held
                else "nothing is held back",
            ]
        )


@dataclass(frozen=True)
class Night:
    """All stores' nights between these times."""

    night: date
    since: datetime
    until: datetime
    stores: list[StoreNight]

    @property
    def lines(self) -> Iterator[Line]:
        """Every line, in the order of its parts."""
        for store in self.stores:
            yield from (*store.done, *store.waiting, *store.held)


def report(
    night: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The day on whose morning it ended.")
    ] = None,
    store: StoreOption = None,
    csv: CsvFile = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with all of it, to print or send.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Last night, label by label: what it was, what it should be, whether that is done; what is held back or waits."""
    with buffer_here() as buffer:
        known_store(buffer, store)
        zone = ZoneInfo(settings_here().esl_nightly_time_zone)
        found = gathered(
            buffer, *_span(night.date() if night else None, zone, datetime.now(UTC)), store=store
        )
    if csv is not None:
        out.print(f"{write_csv(csv, _COLUMNS, map(asdict, found.lines))} lines in {csv}")
    if html is not None:
        try:
            html.write_text(as_html(found), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{html} cannot be written: {error.strerror}") from None
        out.print(f"the report is in {html}")
    if as_json:
        print_json(_as_json(found))
    elif csv is None and html is None:
        print_report(found, limit=limit)


def _span(night: date | None, zone: ZoneInfo, now: datetime) -> tuple[date, datetime, datetime]:
    """The night that ended on this day (None: the one that has begun last), as far as it has passed. Raises
    CommandError."""
    here = now.astimezone(zone)
    day = night or here.date() + timedelta(days=here.time() >= _BEGINS)
    since = datetime.combine(day - timedelta(days=1), _BEGINS, zone).astimezone(UTC)
    until = datetime.combine(day, _ENDS, zone).astimezone(UTC)
    if since > now:
        raise CommandError(f"the night of {day} has not begun yet")
    return day, since, min(until, now)


def gathered(
    buffer: Buffer, night: date, since: datetime, until: datetime, *, store: str | None = None
) -> Night:
    """What the buffer knows of a night; what waits and what is held back is as it is now. Raises BufferError."""
    labels, comparisons = buffer.night(since=since, until=until, store=store)
    compared = {row["store_code"]: row for row in comparisons}
    found: dict[str, StoreNight] = {}
    for row in buffer.status()["stores"]:
        code = row["hipoink_store_code"]
        if store not in (None, code):
            continue
        before = found.get(code)
        found[code] = StoreNight(
            code,
            f"{before.shops}, {row['source_store_id']}" if before else row["source_store_id"],
            row["on_labels"] + (before.labels if before else 0),
            _compared(compared.get(code), since, until),
        )
    for row in sorted(labels, key=lambda row: [*_WHAT].index(row["what"])):
        _of(found, row["store_code"]).done.append(_done(row))
    for row in buffer.every_waiting_label(store=store):
        _of(found, row["store_code"]).waiting.append(_not_done(row))
    for row in all_findings(buffer, store=store, level="error"):
        _of(found, row["hipoink_store_code"]).held.append(_held(row))
    return Night(night, since, until, [found[code] for code in sorted(found)])


def _of(found: dict[str, StoreNight], store: str) -> StoreNight:
    """A store that no mapping feeds any more has labels all the same."""
    return found.setdefault(store, StoreNight(store, "no shop any more", 0, "not compared"))


def _compared(row: Row | None, since: datetime, until: datetime) -> str:
    if row is None or not since <= datetime.fromisoformat(row["at"]) <= until:
        last = f", the last time {moment(row['at'])}" if row else ""
        return f"not compared with the label server's own list in this night{last}"
    if not row["complete"]:
        return f"the label server's own list of {moment(row['at'])} was not whole: {row['reason']}"
    stays = f"; {row['given_up']} stay wrong however often they are pushed" if row["given_up"] else ""
    return f"compared with the label server's own list at {moment(row['at'])}: {row['listed']} labels there{stays}"


def _done(row: Row) -> Line:
    return Line(
        row["store_code"],
        row["source_store_id"],
        "done",
        row["code"],
        title(row),
        _WHAT[row["what"]],
        row["price_before"],
        row["price_after"] or "no label",
        moment(row["at"]),
        _DRIFT.get(row["drift"]),
    )


_NOT_DONE = {
    "failed": "refused",
    "dead": "given up",
    "approval": "for approval",
    "rejected": "rejected",
    "window": "for the raise_window",
    "waiting": "waiting",
}
_TO_DO = {
    "failed": "esl-pipeline redrive, once the reason is gone",
    "dead": "esl-pipeline redrive, once the reason is gone",
    "approval": "esl-pipeline stores approve, if they are meant",
    "rejected": "esl-pipeline changes approve, if it was meant after all",
}


def _not_done(row: Row) -> Line:
    return Line(
        row["store_code"],
        row["source_store_id"],
        "not done yet",
        row["code"],
        title(row),
        _NOT_DONE[row["state"]],
        row["price_before"],
        row["price_after"] or "no label",
        None,
        reason(row).replace("\n", ": "),
        _TO_DO.get(row["state"]),
    )


def _held(row: Row) -> Line:
    return Line(
        row["hipoink_store_code"],
        row["source_store_id"],
        "held back",
        None,
        title(row) or row["variant_id"],
        row["check_name"],
        None,
        row["value"],
        None,
        row["reason"],
        row["action"],
    )


def print_report(found: Night, *, limit: int) -> None:
    """The night on a screen: each store's headline and its first lines."""
    span = f"{moment(found.since.isoformat())} to {moment(found.until.isoformat())}"
    out.print(f"[bold]The night of {found.night}[/], {span}", soft_wrap=True, highlight=False)
    if not found.stores:
        out.print("no store is mapped yet: esl-pipeline stores add SHOP STORE")
    for store in found.stores:
        out.print()
        says = f"[bold]store {escape(store.store)}[/] ({escape(store.shops)}): {escape(store.headline)}"
        out.print(says, soft_wrap=True, highlight=False)
        out.print(escape(store.compared), soft_wrap=True, highlight=False)
        _print_part(
            "done", store.done, ("code", "title", "what", "was", "should be", "done"), limit, _done_cells
        )
        _print_reasons("not done yet", store.waiting, ("code", "title", "was", "should be"), limit)
        _print_reasons("held back", store.held, ("title", "value"), limit)


def _print_part(part: str, lines: Sequence[Line], columns: Sequence[str], limit: int, cells: Any) -> None:
    if not lines:
        return
    out.print(f"\n[bold]{part}[/]")
    out.print(Sheet(columns, map(cells, lines[:limit])))
    _print_more(len(lines) - limit)


def _print_reasons(part: str, lines: Sequence[Line], columns: Sequence[str], limit: int) -> None:
    """Lines that have the same reason stand below it."""
    groups: dict[tuple[str, str | None, str | None], list[Line]] = {}
    for line in lines[:limit]:
        groups.setdefault((line.what, line.why, line.to_do), []).append(line)
    for (what, because, to_do), members in groups.items():
        says = escape(printable("; ".join(part for part in (because, to_do) if part)))
        out.print(f"\n[bold]{part}[/], {what}: {says}", soft_wrap=True, highlight=False)
        of = {"code": "code", "title": "title", "was": "was", "should be": "should_be", "value": "should_be"}
        out.print(Sheet(columns, ([getattr(line, of[name]) for name in columns] for line in members)))
    _print_more(len(lines) - limit)


def _done_cells(line: Line) -> list[Any]:
    return [line.code, line.title, line.what, line.was, line.should_be, line.done]


def _print_more(count: int) -> None:
    if count > 0:
        out.print(f"{count} more: --limit, --html FILE or --csv FILE for all", style="yellow")


def as_html(found: Night) -> str:
    """The night as one page that needs nothing else; every text of a stranger is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    pages = Environment(
        loader=PackageLoader("esl_pipeline.commands", "."),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["plain"] = lambda text: "" if text is None else printable(str(text))
    pages.filters["moment"] = lambda at: moment(at.isoformat())
    return pages.get_template("report.html").render(night=found)


def _as_json(found: Night) -> dict[str, Any]:
    stores: Iterable[StoreNight] = found.stores
    return {
        "night": found.night.isoformat(),
        "since": found.since.isoformat(),
        "until": found.until.isoformat(),
        "stores": [asdict(store) | {"headline": store.headline} for store in stores],
    }
