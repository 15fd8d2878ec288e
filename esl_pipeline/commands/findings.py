"""`esl-pipeline findings`: what is wrong with the shop's data, for a shopkeeper, and as a file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.commands.queue import CsvFile, Limit, StoreOption, known_store, title, together
from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json
from esl_pipeline.commands.spreadsheets import write_csv
from esl_pipeline.commands.tables import Sheet
from esl_pipeline.commands.times import moment
from esl_pipeline.environment import did_you_mean
from esl_pipeline.printable import printable

Row = Mapping[str, Any]

CSV_COLUMNS = {
    "hipoink_store_code": "store",
    "source_store_id": "shop",
    "variant_id": "variant_id",
    "title": "title",
    "variant_title": "variant_title",
    "sku": "sku",
    "level": "level",
    "check_name": "check",
    "column_name": "column",
    "value": "value",
    "reason": "reason",
    "action": "what_to_do",
    "first_seen_at": "first_seen",
    "last_seen_at": "last_seen",
}


def findings(
    store: StoreOption = None,
    level: Annotated[
        Literal["error", "warning"] | None, typer.Option(help="error: held back; warning: deserves a look.")
    ] = None,
    check: Annotated[str | None, typer.Option(help="One check only, e.g. price_missing.")] = None,
    csv: CsvFile = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """What is wrong with the shop's data: what is held back, what only deserves a look, and what to do."""
    if check is not None:
        _known_check(check)
    with buffer_here() as buffer:
        known_store(buffer, store)
        if csv is not None:
            every = all_findings(buffer, store=store, level=level, check=check)
            out.print(f"{write_csv(csv, CSV_COLUMNS, every)} findings in {csv}")
            return
        shared: list[dict[str, Any]] = []
        if as_json or check is not None:
            found = buffer.findings(store=store, level=level, check=check, limit=limit + 1)
        else:
            found, shared = buffer.findings_folded(store=store, level=level, limit=limit + 1)
    if as_json:
        print_json(found[:limit])
    else:
        print_findings(found[:limit], shared, more=len(found) > limit)


def _known_check(name: str) -> None:
    from esl_pipeline.labels.checks import ELSEWHERE, RULES

    if name not in (known := [*RULES, *ELSEWHERE]):
        hint = did_you_mean(name, known, str.lower) or f": there are {', '.join(sorted(known))}"
        raise CommandError(f"no check is called {name}{hint}")


def print_findings(findings: Sequence[Row], shared: Sequence[Row], *, more: bool) -> None:
    """Open findings, the grave ones first, those together that say the same; a warning that a whole store shares is
    one line."""
    if not findings and not shared:
        out.print("no findings: nothing is held back")
        return
    for row in shared:
        says = (
            f"store {row['hipoink_store_code']}: {row['variants']} of {row['of_variants']} variants have the warning "
            f"{row['check_name']}: {row['reason']}; {row['action']}"
        )
        out.print(escape(printable(says)), soft_wrap=True, highlight=False)
    keys = ("hipoink_store_code", "level", "check_name", "reason", "action")
    for number, (group, rows) in enumerate(
        together(findings, lambda row: tuple(row[k] for k in keys)).items()
    ):
        if number or shared:
            out.print()
        store, grade, name, reason, action = (escape(printable(str(part))) for part in group)
        out.print(
            f"[bold]store {store}[/], {grade} {name}: {reason}; {action}", soft_wrap=True, highlight=False
        )
        lines = ([r["variant_id"], title(r), r["value"], moment(r["first_seen_at"])] for r in rows)
        out.print(Sheet(("variant", "title", "value", "since"), lines))
    if more:
        out.print("\nthere are more: --limit, or --csv FILE for all", style="yellow")


def all_findings(
    buffer: Buffer, *, store: str | None = None, level: str | None = None, check: str | None = None
) -> Iterator[dict[str, Any]]:
    """Every open finding, in calls of at most 5,000 rows. Raises BufferError."""
    after: list[str] | None = None
    while page := buffer.findings(
        store=store, level=level, check=check, limit=MAX_ROWS_PER_CALL, after=after
    ):
        yield from page
        after = [page[-1][key] for key in ("level", "check_name", "variant_id", "mapping_id")]
