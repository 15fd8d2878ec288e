"""`esl-pipeline files`: what became of a shop's files, what waits for a person, and what a file would be read as."""

from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    buffer_here,
    out,
    print_json,
    user,
)
from esl_pipeline.printable import printable

app = typer.Typer(help="Shops whose products come in CSV files.", no_args_is_help=True)

Shop = Annotated[str, typer.Argument(help="The shop's short name, as in FILES_FOLDERS.")]

_STYLES = {"applied": "green", "waiting": "yellow", "approved": "green", "refused": "red"}
_SHOWN = 20


@app.command("list")
def list_(
    shop: Annotated[str | None, typer.Argument(help="One shop only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Shown at most.")] = _SHOWN,
    as_json: AsJson = False,
) -> None:
    """Files that were found, the newest first: applied, refused or waiting, and why."""
    with buffer_here() as buffer:
        files = buffer.files_list(shop=None if shop is None else _shop(shop), limit=limit)
    if as_json:
        print_json(files)
        return
    if not files:
        out.print("no file was found yet")
        return
    table = Table("shop", "file", "of", "kind", "products", "state", "says", box=None, pad_edge=False)
    for file in files:
        style = _STYLES.get(file["state"], "")
        table.add_row(
            escape(file["source_store_id"]),
            escape(printable(file["name"])),
            file["modified_at"][:16].replace("T", " "),
            file["kind"] or "?",
            str(file["listed"]),
            f"[{style}]{file['state']}[/]" if style else file["state"],
            escape(printable(_says(file))),
        )
    out.print(table)


@app.command()
def approve(
    shop: Shop, file: Annotated[str, typer.Argument(help="The file's name.")], as_json: AsJson = False
) -> None:
    """Let a file be read that waits for a person: much smaller than the last, or the same as an older one."""
    with buffer_here() as buffer:
        row = buffer.files_approve(shop=_shop(shop), name=file, by=f"{user()}, esl-pipeline files approve")
    if row is None:
        raise CommandError(f"no file {file} of {shop} waits: see `esl-pipeline files list {shop}`")
    if as_json:
        print_json(row)
    else:
        out.print(f"{file}: may be read; the next look at the folder, seconds away, does it", highlight=False)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A file on this machine.", exists=True, dir_okay=False)],
    shop: Annotated[
        str | None, typer.Option(help="Read it as this shop's: by its stores' columns, beside its last list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a file would be read as, and what is wrong, by line; changes nothing. Exit 1 if it would not be read."""
    from esl_pipeline.sources.files.folder import Found
    from esl_pipeline.sources.files.judge import judge

    raw, status = file.read_bytes(), file.stat()
    found = Found(datetime.fromtimestamp(status.st_mtime, UTC), file.name, len(raw))
    named, known, share = _context(found, raw, shop)
    verdict = judge(found, raw, known, named, smallest_share=share)
    listing = verdict.listing
    complaints = list(listing.complaints()) if listing else []
    if as_json:
        told: dict[str, Any] = {name: getattr(verdict, name) for name in ("state", "kind", "reason")}
        told |= {"counts": dict(verdict.counts), "complaints": [asdict(one) for one in complaints]}
        if listing:
            told["listing"] = {
                "encoding": listing.table.encoding,
                "delimiter": listing.table.delimiter,
                "columns": dict(listing.header),
                "decimal_sign": listing.decimal_sign,
                "rows": listing.rows,
            }
        print_json(told)
    else:
        _print(file.name, verdict, complaints)
    if verdict.state in ("refused", "waiting"):
        raise typer.Exit(1)


def _context(found: Any, raw: bytes, shop: str | None) -> tuple[dict[str, str], dict[str, Any], int]:
    """The columns, what is known of other files, and the smallest share."""
    import hashlib
    import json

    from esl_pipeline.commands.shared import settings_here
    from esl_pipeline.sources.files.names import kind_of
    from esl_pipeline.sources.files.reader import columns_of
    from esl_pipeline.sources.files.settings import FilesSettings
    from esl_pipeline.sources.source import SourceError
    from esl_pipeline.stages.memory import BufferMemory

    if shop is None:
        return {}, {"last": None, "same": None, "last_full": None}, 0
    with buffer_here() as buffer:
        memory = BufferMemory(buffer, _shop(shop), "")
        try:
            named = columns_of(memory.policies(), shop)
        except SourceError as error:
            raise CommandError(str(error)) from None
        asked = {"name": found.name, "size": found.size, "modified_at": found.modified_at.isoformat()}
        asked |= {"sha256": hashlib.sha256(raw).hexdigest(), "kind": kind_of(found.name)}
        known = memory.known_files([asked], json.dumps(named, sort_keys=True, ensure_ascii=False))
    return named, known, settings_here().of(FilesSettings).files_smallest_share_pct


def _print(name: str, verdict: Any, complaints: list[Any]) -> None:
    style = {"ready": "green", "applied": "green", "waiting": "yellow"}.get(verdict.state, "red")
    says = {
        "ready": "would be read",
        "applied": "was read already",
        "waiting": "would wait for `files approve`",
    }
    reason = f": {verdict.reason}" if verdict.reason else ""
    state = says.get(verdict.state, "would be refused")
    out.print(
        f"[{style}]{escape(printable(name))} {state}[/]{escape(printable(reason))}",
        soft_wrap=True,
        highlight=False,
    )
    if (listing := verdict.listing) is None:
        return
    kind = "full list" if listing.kind == "full" else "change list"
    delimiter = {"\t": "tab"}.get(listing.table.delimiter, listing.table.delimiter)
    counts = ", ".join(f"{n} {what}" for what, n in verdict.counts.items() if n or what == "listed")
    out.print(
        f"  a {kind}, {listing.table.encoding}, delimiter {delimiter}, {listing.rows} rows: {counts}",
        highlight=False,
    )
    for field, column in listing.header.items():
        out.print(f"  {field:<17}{escape(printable(column))}", highlight=False)
    for complaint in islice(complaints, _SHOWN):
        out.print(f"  [yellow]{escape(printable(str(complaint)))}[/]", soft_wrap=True, highlight=False)
    if len(complaints) > _SHOWN:
        out.print(f"  … and {len(complaints) - _SHOWN} more: --json", highlight=False)


def _shop(name: str) -> dict[str, str]:
    from esl_pipeline.sources.files.names import shop_id

    shop = shop_id(name)
    if shop is None:
        raise CommandError(f"{name} is no shop's short name: write it as in FILES_FOLDERS")
    return {"source_system": "files", "source_store_id": shop}


def _says(file: dict[str, Any]) -> str:
    if file["reason"]:
        return str(file["reason"])
    if not file["complaints"]:
        return ""
    first = file["complaints"][0]
    return f"{file['held']} held back: line {first['line']}: {first['says']}"
