"""`esl-pipeline preview`, `findings`, `reconcile`, `status`, `trace` and `redrive`: what hangs, what waits, and why."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from esl_pipeline.commands import console as shown
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    SourceOption,
    buffer_here,
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


def findings(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all of them to this file.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Shown at most; a file has all.")] = 50,
    as_json: AsJson = False,
) -> None:
    """What is wrong with the shop's data: what is held back, what only deserves a look, and what to do."""
    from esl_pipeline.commands.findings import all_findings, write_csv

    with buffer_here() as buffer:
        if csv is not None:
            count = write_csv(csv, all_findings(buffer, store=store))
            out.print(f"{count} findings in {csv}")
            return
        found = buffer.findings(store=store, limit=limit + 1)
    if as_json:
        print_json(found[:limit])
    else:
        shown.print_findings(out, found[:limit], more=len(found) > limit)


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


def status(as_json: AsJson = False) -> None:
    """Inbox, queue, labels and dead letters per store."""
    with buffer_here() as buffer:
        found = buffer.status()
    settings = settings_here()
    not_readable = settings.not_readable(store for store in found["stores"] if store["is_active"])
    if as_json:
        print_json(found | ({"not_readable": list(not_readable)} if not_readable else {}))
    else:
        shown.print_status(out, found, not_readable=not_readable, servers=settings.label_servers)


def trace(
    code: Annotated[str, typer.Argument(help="The label's product code.")],
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Why a label shows what it shows: back through push, run, variant and webhook."""
    with buffer_here() as buffer:
        places = buffer.trace(code, store=store)
    if not places:
        raise CommandError(f"nothing is known of code {code}" + (f" in store {store}" if store else ""))
    print_json(places) if as_json else shown.print_trace(out, places)


def redrive(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    code: Annotated[str | None, typer.Option(help="One label only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send failed and dead letters again."""
    with buffer_here() as buffer:
        done = buffer.redrive(store=store, code=code)
    if as_json:
        print_json(done)
    else:
        out.print(f"{done['labels']} labels and {done['deliveries']} deliveries are due again")
