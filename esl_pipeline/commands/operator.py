"""What operators do from the command line: push again, replay, pause, approve, try; each is kept with who did it."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from esl_pipeline import done as came_of
from esl_pipeline.commands import shown
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    SourceOption,
    buffer_here,
    cli_user,
    out,
    print_json,
    settings_here,
    shop_named,
)
from esl_pipeline.commands.times import moment
from esl_pipeline.moments import moment_named

changes_app = typer.Typer(
    help="Removals and large price changes that wait for somebody's word.", no_args_is_help=True
)
servers_app = typer.Typer(help="Label servers.", no_args_is_help=True)

StoreOption = Annotated[str, typer.Option("--store", help="The Hipoink store code.")]
StoreArgument = Annotated[str, typer.Argument(help="The Hipoink store code.")]


class State(StrEnum):
    """How a delivery has ended."""

    DONE = "done"
    SUPERSEDED = "superseded"
    UNUSABLE = "unusable"
    DEAD = "dead"


class Fate(StrEnum):
    """What becomes of the labels of a store that is removed."""

    KEEP = "keep"
    BLANK = "blank"
    REMOVE = "remove"


def push(
    store: StoreOption,
    codes: Annotated[list[str] | None, typer.Argument(help="The labels' codes.")] = None,
    product: Annotated[str | None, typer.Option(help="All of a product, by its id or handle.")] = None,
    sku: Annotated[str | None, typer.Option(help="Those of a SKU.")] = None,
    vendor: Annotated[str | None, typer.Option(help="Those of a vendor.")] = None,
    tag: Annotated[str | None, typer.Option(help="Those with a tag.")] = None,
    product_type: Annotated[str | None, typer.Option("--type", help="Those of a product type.")] = None,
    whole: Annotated[bool, typer.Option("--all", help="All labels of the store.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push labels once more: new physical labels, or a label server restored from an old backup."""
    with buffer_here() as buffer:
        answer = buffer.labels_push(
            store=store,
            codes=codes or None,
            product=product,
            sku=sku,
            vendor=vendor,
            tag=tag,
            product_type=product_type,
            whole=whole,
            by=cli_user(),
        )
    print_json(answer) if as_json else _say(came_of.pushed(store, answer))


def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Webhook ids, or numbers of the inbox.")] = None,
    shop: Annotated[str | None, typer.Option(help="Those of a shop, by its domain.")] = None,
    since: Annotated[
        str | None, typer.Option(help='Received then or later: "2026-11-28 18:00" (UTC), or 2h ago as 2h.')
    ] = None,
    until: Annotated[str | None, typer.Option(help="Received before then.")] = None,
    reason: Annotated[str | None, typer.Option(help="A part of why they were not used.")] = None,
    state: Annotated[State | None, typer.Option(help="Those that have ended so.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the oldest.")] = 10_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Read webhook deliveries again that have ended; what is older than what is known changes nothing."""
    with buffer_here() as buffer:
        answer = buffer.deliveries_replay(
            ids=ids or None,
            shop=None if shop is None else shop_named(shop, source),
            since=_moment(since, ahead=False),
            until=_moment(until, ahead=False),
            reason=reason,
            state=None if state is None else state.value,
            limit=limit,
            dry_run=dry_run,
            by=cli_user(),
        )
    print_json(answer) if as_json else _say(came_of.replayed(answer, dry_run=dry_run))


def actions(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    action: Annotated[
        str | None, typer.Option(help="One kind only: push, pause, resume, replay, redrive, try, approve, …")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Shown at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who did what with labels, stores and deliveries, newest first."""
    with buffer_here() as buffer:
        kept = buffer.operator_actions(store=store, action=action, limit=limit)
    if as_json:
        print_json(kept)
    elif not kept:
        out.print("nobody has done anything yet")
    else:
        columns = ("at", "by", "login", "action", "store", "count", "asked for", "run")
        rows = (
            [
                moment(row["at"]),
                row["by"] if row["verified"] else f"{row['by']} (not verified)",
                row["db_user"],
                row["action"],
                row["store_code"],
                row["how_many"],
                ", ".join(f"{name} {_short(value)}" for name, value in row["asked"].items()),
                row["run_id"],
            ]
            for row in kept
        )
        out.print(shown.table(columns, rows))


def pause(
    store: StoreArgument,
    reason: Annotated[str, typer.Option(help="Why; whoever finds the store paused reads it.")],
    until: Annotated[
        str | None,
        typer.Option(
            help='When it ends by itself: "2026-11-28 18:00" (UTC), or 2h. Without: when it is resumed.'
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Push nothing to a store for a while; what comes meanwhile waits, and goes out once."""
    with buffer_here() as buffer:
        answer = buffer.store_pause(
            store=store, reason=reason, until=_moment(until, ahead=True), by=cli_user()
        )
    print_json(answer) if as_json else _say(came_of.paused(answer))


def resume(store: StoreArgument, as_json: AsJson = False) -> None:
    """End the pause of a store: what waits goes out."""
    with buffer_here() as buffer:
        answer = buffer.store_resume(store=store, by=cli_user())
    print_json(answer) if as_json else _say(came_of.resumed(answer))


def pauses(
    store: Annotated[str | None, typer.Argument(help="One Hipoink store only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Shown at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Which stores are and were paused, why and by whom, newest first."""
    with buffer_here() as buffer:
        kept = buffer.store_pauses(store=store, limit=limit)
    if as_json:
        print_json(kept)
    elif not kept:
        out.print("no store was ever paused by anybody")
    else:
        columns = ("store", "since", "until", "ended", "by", "ended by", "reason")
        rows = (
            [
                row["store_code"],
                *(moment(row[key]) for key in ("since", "until", "ended_at")),
                *(row[key] for key in ("by", "ended_by", "reason")),
            ]
            for row in kept
        )
        out.print(shown.table(columns, rows))


def remove(
    store: StoreArgument,
    labels: Annotated[Fate, typer.Option(help="What becomes of its labels at the label server.")],
    shop: Annotated[str | None, typer.Option(help="Only this shop leaves it.")] = None,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """End a store's mappings; its labels stay as they are, become blank or are removed."""
    with buffer_here() as buffer:
        answer = buffer.store_remove(
            store=store,
            labels=labels.value,
            shop=None if shop is None else shop_named(shop, source),
            by=cli_user(),
        )
    print_json(answer) if as_json else _say(came_of.removed(answer, labels.value))


@changes_app.command("list")
def list_changes(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Shown at most.")] = 1_000,
    as_json: AsJson = False,
) -> None:
    """What waits for somebody's word, and what was rejected."""
    with buffer_here() as buffer:
        found = buffer.changes_waiting(store=store, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        out.print("nothing waits for approval")
    else:
        columns = ("store", "code", "title", "change", "from", "to", "since", "rejected")
        rows = (
            [
                row["store_code"],
                row["code"],
                " ".join(filter(None, (row["title"], row["variant_title"]))),
                row["kind"],
                row["before"],
                row["after"],
                moment(row["since"]),
                _rejection(row),
            ]
            for row in found
        )
        out.print(shown.table(columns, rows))


@changes_app.command()
def approve(
    codes: Annotated[list[str], typer.Argument(help="The labels' codes.")],
    store: StoreOption,
    as_json: AsJson = False,
) -> None:
    """Let these changes go on, rejected ones as well; all that wait: `stores approve`."""
    with buffer_here() as buffer:
        answer = buffer.changes_approve(store=store, codes=codes, by=cli_user())
    print_json(answer) if as_json else _say(came_of.approved(store, answer))


@changes_app.command()
def reject(
    codes: Annotated[list[str], typer.Argument(help="The labels' codes.")],
    store: StoreOption,
    reason: Annotated[str | None, typer.Option(help="Why; the list of changes shows it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Leave these labels as they are until the source says something else of them."""
    with buffer_here() as buffer:
        answer = buffer.changes_reject(store=store, codes=codes, reason=reason, by=cli_user())
    print_json(answer) if as_json else _say(came_of.rejected(store, answer))


@servers_app.callback()
def _servers() -> None:
    """Label servers."""


@servers_app.command("try")
def try_(
    name: Annotated[str, typer.Argument(help="The label server's name in the settings, or `default`.")],
    as_json: AsJson = False,
) -> None:
    """Try a label server that is down now, with one label, instead of at its next turn."""
    with buffer_here() as buffer:
        # The settings may name none: then the buffer knows which there are.
        buffer.label_servers = tuple(settings_here().label_servers)
        answer = buffer.label_server_try(label_server=name, by=cli_user())
    print_json(answer) if as_json else _say(came_of.tried(answer))


def _moment(text: str | None, *, ahead: bool) -> str | None:
    try:
        return None if text is None else moment_named(text, now=datetime.now(UTC), ahead=ahead)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _rejection(row: dict[str, str]) -> str | None:
    if not row["rejected_at"]:
        return None
    return f"{moment(row['rejected_at'])} by {row['rejected_by']}" + (
        f": {row['reason']}" if row["reason"] else ""
    )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _say(sentence: str) -> None:
    out.print(sentence, markup=False, highlight=False, soft_wrap=True)
