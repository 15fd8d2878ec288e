"""`esl-pipeline preview`, `reconcile` and `redrive`: what hangs, what waits, and what to do."""

from dataclasses import asdict
from typing import Annotated
from uuid import uuid4

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
    user,
)


def preview(
    store: Annotated[str, typer.Option(help="The Hipoink store code.")],
    limit: Annotated[int, typer.Option(min=0, help="Labels shown at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What would change on a store's labels: old beside new. Nothing is pushed while its mapping is in dry run."""
    with buffer_here() as buffer:
        found = buffer.preview(store=store, limit=limit)
    if not found:
        raise CommandError(f"no shop is mapped to store {store}: see `esl-pipeline stores list`")
    print_json(found) if as_json else shown.print_preview(out, found)


def reconcile(
    shop: Annotated[str, typer.Option(help="The shop's domain.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count, queue nothing.")] = False,
    approve_removals: Annotated[
        bool, typer.Option("--approve-removals", help="Let drastic changes go on that were too many at once.")
    ] = False,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Compare the label server's own list with what it accepted; queue again what is missing or different."""
    from esl_pipeline.connections import open_label_server
    from esl_pipeline.stages.drift import compare_store

    settings, named = settings_here(), shop_named(shop, source)
    with buffer_here() as buffer:
        mappings = buffer.active_mappings(shop=named)
        if not mappings:
            raise CommandError(f"no active store is mapped to {shop}: see `esl-pipeline stores list`")
        stores = {mapping.store: mapping.label_server for mapping in mappings}
        by, run_id = f"{user()}, esl-pipeline reconcile", f"cli-{uuid4()}"
        if approve_removals and not dry_run:
            for store in stores:
                buffer.changes_approve(store=store, by=by)
        drifts = []
        for store, server in stores.items():
            with open_label_server(settings, buffer, server) as client:
                drifts.append(compare_store(buffer, client, store=store, run_id=run_id, dry_run=dry_run))
    found = [asdict(drift) | {"remarks": drift.remarks()} for drift in drifts]
    if as_json:
        print_json(found)
    else:
        shown.print_drift(out, found, dry_run=dry_run)


def redrive(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    code: Annotated[str | None, typer.Option(help="One label only.")] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only what was refused or given up for a reason with this in it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send failed and dead letters again."""
    with buffer_here() as buffer:
        done = buffer.redrive(store=store, code=code, reason=reason, by=cli_user())
    if as_json:
        print_json(done)
    else:
        out.print(came_of.redriven(done))
