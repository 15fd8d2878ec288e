"""The esl-pipeline command. Each subcommand reads its settings, calls one room and prints what came back."""

import json
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn
from uuid import uuid4

import typer
from rich.markup import escape

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import console as shown
from esl_pipeline.commands import shared
from esl_pipeline.commands.shared import (
    MARKS,
    AsJson,
    CommandError,
    Share,
    SourceOption,
    buffer_here,
    checked_by,
    cli_user,
    err,
    out,
    print_json,
    said_of_refusals,
    settings_here,
    user,
)
from esl_pipeline.commands.shopify import app as shopify
from esl_pipeline.environment import SettingsError
from esl_pipeline.printable import printable
from esl_pipeline.settings import load_settings
from esl_pipeline.storable import unstorable

app = typer.Typer(
    help="Shopify products to Hipoink electronic shelf labels, through Supabase and Dagster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stores = typer.Typer(help="Which shop feeds which store.", no_args_is_help=True)
app.add_typer(stores, name="stores")
tokens = typer.Typer(help="Who may use the store-mapping API.", no_args_is_help=True)
app.add_typer(tokens, name="tokens")
app.add_typer(shopify.app, name="shopify")

DryRun = Annotated[
    bool | None, typer.Option("--dry-run/--live", help="Only preview what would change, or push labels.")
]
PolicyChanges = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="NAME=VALUE", help="One setting, e.g. fields.f1={vendor}; NAME= resets it."
    ),
]


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Start everything, send about 300 webhooks, check every label, stop. Exit 1 if any label is wrong."""
    from esl_pipeline.demo.run import run_demo

    with _terminable(exit_code=130):
        if not run_demo(load_settings(), out, as_json=as_json):
            raise typer.Exit(1)


@app.command()
def up(
    receiver_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    ui_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 3000,
    labels_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8090,
    shop_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8091,
    json_ready: Annotated[
        Path | None, typer.Option(help="Write the URLs here, as JSON, once everything answers.")
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: what the settings leave out is brought along."""
    from esl_pipeline.local.stack import Ports, Stack

    settings = load_settings()
    ports = Ports(receiver_port, ui_port, labels_port, shop_port)
    with _terminable(), Stack(settings, ports, lambda part: err.print(f"starting {part} …")) as stack:
        for warning in stack.settings.warnings():
            err.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
        urls = asdict(stack.urls)
        if json_ready is not None:
            _write_atomically(json_ready, json.dumps(urls))
        out.print(f"\nDagster UI    {urls['ui']}")
        out.print(f"labels        {urls['labels'] or settings.hipoink_api_base_url}")
        if urls["shop"]:
            out.print(f"shop          {urls['shop']}   (a sandbox: change a price there)")
        out.print(f"receiver      {urls['receiver']}   (API: {urls['receiver']}/docs)")
        out.print(f"state, logs   {settings.esl_home.absolute()}", soft_wrap=True)
        if stack.mapped:
            out.print(stack.mapped, soft_wrap=True)
        out.print("Ctrl-C stops all of it.")
        while True:
            stack.keep_up(lambda what: err.print(f"[yellow]{escape(what)}[/]", soft_wrap=True))
            time.sleep(1)


@app.command()
def receiver(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    only: Annotated[
        Literal["webhooks", "admin"] | None,
        typer.Option(help="One of the two alone, e.g. the store-mapping API on a private address."),
    ] = None,
) -> None:
    """Run the webhook function and the store-mapping API."""
    from esl_pipeline.connections import open_buffer
    from esl_pipeline.guard import Guard
    from esl_pipeline.receiver.app import create_app
    from esl_pipeline.receiver.server import serve

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for warning in settings.warnings():
        if not warning.startswith("HIPOINK_"):  # it knows no label server, and need not have its sign
            logging.getLogger(__name__).warning(warning)
    # One try: a buffer that is away is answered with 503 at once, and the shop sends again.
    buffer = open_buffer(settings, attempts=1, pool_size=8)
    try:
        buffer.check_version()
        app = create_app(settings, buffer, only=only)
        app.add_middleware(
            Guard,
            names=(*settings.host_names, host),
            pages={"/", "/docs", "/health"},
            only_json=False,  # what a body must be, each path says itself
            any_host=("/webhooks/", "/health"),
        )
        serve(app, host, port, settings.trusted_proxies)
    finally:
        buffer.close()


@app.command()
def migrate(
    to_stdout: Annotated[bool, typer.Option("--print", help="Print one SQL file for an SQL editor.")] = False,
) -> None:
    """Bring the buffer's tables and functions to the version of this code."""
    import psycopg

    from esl_pipeline.buffer.migrate import as_one_file, code_version
    from esl_pipeline.buffer.migrate import migrate as apply

    if to_stdout:
        sys.stdout.write(as_one_file())
        return
    settings = settings_here()
    if settings.esl_database_url is None:
        raise CommandError(
            "migrations need a Postgres address: set ESL_DATABASE_URL, or paste the output of "
            "`esl-pipeline migrate --print` into Supabase's SQL editor"
        )
    try:
        applied = apply(
            settings.esl_database_url.get_secret_value(),
            warn=lambda warning: err.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True),
        )
    except psycopg.Error as error:
        raise CommandError(f"the migrations were not applied: {' '.join(str(error).split())}") from None
    for migration in applied:
        out.print(f"applied {migration}")
    out.print(f"the buffer is at version {code_version()}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check every setting and connection and say what is wrong. Exit 1 if anything is."""
    from esl_pipeline.commands.doctor import examine

    found = examine(settings_here())
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        for check in found:
            out.print(f"{MARKS[check.state]} {escape(printable(f'{check.what}: {check.says}'))}")
    if any(check.state == "wrong" for check in found):
        raise typer.Exit(1)


@stores.command("add")
def stores_add(
    shop: Annotated[str, typer.Argument(help="The shop's domain, e.g. demo.myshopify.com.")],
    store: Annotated[str, typer.Argument(help="The Hipoink store code.")],
    settings: Annotated[str, typer.Option(help="The store's policy as JSON.")] = "{}",
    policy: PolicyChanges = None,
    dry_run: DryRun = None,
    share: Share = False,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Map a shop to a store; its labels follow at once, or after a preview (--dry-run)."""
    from esl_pipeline.receiver.mappings import NewMapping

    fields: dict[str, Any] = {**shared.shop_named(shop, source), "hipoink_store_code": store}
    fields |= {"settings": _changed(_json_object(settings), policy or []), "is_dry_run": bool(dry_run)}
    fields |= {"shared": share}
    given = checked_by(NewMapping, fields)
    with buffer_here() as buffer, said_of_refusals():
        _show_mappings([buffer.mapping_create(given, by=cli_user())], as_json)


@stores.command("list")
def stores_list(as_json: AsJson = False) -> None:
    """All store mappings."""
    with buffer_here() as buffer:
        _show_mappings(buffer.mapping_list(), as_json)


@stores.command("set")
def stores_set(
    mapping_id: Annotated[str, typer.Argument(help="The mapping's id, from `stores list`.")],
    store: Annotated[str | None, typer.Option(help="Another Hipoink store code.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Push labels or not.")] = None,
    dry_run: DryRun = None,
    settings: Annotated[str | None, typer.Option(help="The whole policy as JSON.")] = None,
    policy: PolicyChanges = None,
    share: Share = False,
    as_json: AsJson = False,
) -> None:
    """Change a mapping; its labels are evaluated again."""
    from esl_pipeline.receiver.mappings import MappingChange

    changes: dict[str, Any] = {"hipoink_store_code": store, "is_active": active, "is_dry_run": dry_run}
    changes = {name: value for name, value in changes.items() if value is not None}
    whole = None if settings is None else _json_object(settings)
    if not changes and whole is None and not policy:
        raise CommandError("nothing to change: see `esl-pipeline stores set --help`")
    changes["shared"] = share
    checked_by(MappingChange, changes)
    with buffer_here() as buffer, said_of_refusals():
        mapping = {mapping["id"]: mapping for mapping in buffer.mapping_list()}.get(mapping_id)
        if mapping is None:
            raise CommandError(f"there is no mapping {mapping_id}: see `esl-pipeline stores list`")
        if whole is not None or policy:
            changes["settings"] = _changed(mapping["settings"] if whole is None else whole, policy or [])
        changed = buffer.mapping_update(mapping_id, checked_by(MappingChange, changes), by=cli_user())
        _show_mappings([changed or mapping], as_json)


@stores.command("policy")
def stores_policy(as_json: AsJson = False) -> None:
    """Every setting of a store's policy; --json prints the JSON schema."""
    from esl_pipeline.labels.describe import describe_policy
    from esl_pipeline.labels.policy import Policy

    if as_json:
        print_json(Policy.model_json_schema())
    else:
        out.print(shown.table(("setting", "values", "default", "meaning"), describe_policy()))


@stores.command("approve")
def stores_approve(
    store: Annotated[str, typer.Argument(help="The Hipoink store code.")], as_json: AsJson = False
) -> None:
    """Let removals and large price changes go on that were too many at once; see them with `preview`."""
    with buffer_here() as buffer:
        done = buffer.changes_approve(store=store, by=f"{user()}, esl-pipeline stores approve")
    if as_json:
        print_json(done)
    else:
        out.print(f"{store}: {done['removals']} removals and {done['prices']} price changes may go on")


@stores.command("owner")
def stores_owner(
    shop: Annotated[str, typer.Argument(help="The shop's domain.")],
    thing: Annotated[
        str | None, typer.Argument(help="E.g. product:123; without it all that this shop claims.")
    ] = None,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Say that what several shops claim (see `status`) is this shop's; what waited is read again."""
    named = shared.shop_named(shop, source)
    with buffer_here() as buffer:
        things = buffer.owner_settle(shop=named, thing=thing, by=cli_user())
    if not things:
        raise CommandError(
            f"nothing that {named['source_store_id']} claims is contested: see `esl-pipeline status`"
        )
    if as_json:
        print_json(things)
    else:
        out.print(
            f"{len(things)} contested things are {named['source_store_id']}'s: {', '.join(things[:20])}"
        )


@stores.command("history")
def stores_history(
    store: Annotated[str | None, typer.Argument(help="One Hipoink store only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Changes shown at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who made and changed the mappings, newest first."""
    with buffer_here() as buffer:
        changes = buffer.mapping_history(store=store, limit=limit)
    print_json(changes) if as_json else shown.print_history(out, changes)


@tokens.command("add")
def tokens_add(
    name: Annotated[str, typer.Argument(help="Whose it is; the history of mappings names it.")],
    scope: Annotated[Literal["read", "write"], typer.Option(help="Only read mappings, or also change them.")],
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Expires then; without: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from esl_pipeline.receiver.tokens import NAME, digest, new_token

    if not NAME.fullmatch(name):
        raise CommandError("a name is 1 to 64 small letters, digits, '_', '.' or '-', e.g. ana-laptop")
    token = new_token()
    with buffer_here() as buffer:
        try:
            added = buffer.token_add(name=name, sha256=digest(token), scope=scope, days=days)
        except BufferError as error:
            if error.code != "23505":
                raise
            raise CommandError(
                f"there is or was a token {name}, and a name is used once: see `esl-pipeline tokens list`"
            ) from None
    if as_json:
        print_json(added | {"token": token})
    else:
        err.print("Keep it now, it cannot be shown again:")
        print(token)


@tokens.command("list")
def tokens_list(as_json: AsJson = False) -> None:
    """All tokens by name; ESL_ADMIN_TOKEN is not among them."""
    with buffer_here() as buffer:
        found = buffer.token_list()
    print_json(found) if as_json else shown.print_tokens(out, found)


@tokens.command("revoke")
def tokens_revoke(name: str, as_json: AsJson = False) -> None:
    """Refuse a token from now on."""
    with buffer_here() as buffer:
        revoked = buffer.token_revoke(name)
    if revoked is None:
        raise CommandError(f"there is no token {name}: see `esl-pipeline tokens list`")
    print_json(revoked) if as_json else shown.print_tokens(out, [revoked])


@app.command()
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


@app.command()
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


@app.command()
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
    from esl_pipeline.model.shop import shop_key
    from esl_pipeline.stages.drift import compare_store

    settings, named = settings_here(), shared.shop_named(shop, source)
    with buffer_here() as buffer:
        mappings = [m for m in buffer.mapping_list() if shop_key(m) == shop_key(named) and m["is_active"]]
        if not mappings:
            raise CommandError(f"no active store is mapped to {shop}: see `esl-pipeline stores list`")
        stores = {mapping["hipoink_store_code"]: mapping for mapping in mappings}
        by, run_id = f"{user()}, esl-pipeline reconcile", f"cli-{uuid4()}"
        if approve_removals and not dry_run:
            for store in stores:
                buffer.changes_approve(store=store, by=by)
        with open_label_server(settings, buffer) as client:
            drifts = [
                compare_store(
                    buffer,
                    client,
                    store=store,
                    run_id=run_id,
                    dry_run=dry_run,
                )
                for store, mapping in stores.items()
            ]
    found = [asdict(drift) | {"remarks": drift.remarks()} for drift in drifts]
    if as_json:
        print_json(found)
    else:
        shown.print_drift(out, found, dry_run=dry_run)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Inbox, queue, labels and dead letters per store."""
    with buffer_here() as buffer:
        found = buffer.status()
    not_readable = settings_here().not_readable(store for store in found["stores"] if store["is_active"])
    if as_json:
        print_json(found | ({"not_readable": list(not_readable)} if not_readable else {}))
    else:
        shown.print_status(out, found, not_readable=not_readable)


@app.command()
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


@app.command()
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


@app.command()
def postgres() -> None:
    """Run the embedded Postgres alone until Ctrl-C, e.g. for `dagster dev`; prints the variables it needs."""
    from esl_pipeline.local.stack import run_postgres

    with _terminable(), run_postgres(load_settings()) as variables:
        for name, value in variables.items():
            print(f"export {name}='{value}'", flush=True)
        err.print("Ctrl-C stops it.")
        while True:
            time.sleep(1)


def main() -> NoReturn:
    """The console script: what went wrong is one sentence on standard error and exit code 1."""
    from esl_pipeline.local.parts import StackError
    from esl_pipeline.local.postgres import PostgresUnavailable

    for number, argument in enumerate(sys.argv[1:], 1):
        for _, says in unstorable(argument):
            _complain(f"argument {number} {says}: {argument}")
            raise SystemExit(2)
    try:
        app()
    except (CommandError, SettingsError, BufferError, StackError, PostgresUnavailable) as error:
        _complain(str(error))
    except Exception as error:  # a reader gets a sentence; LOG_LEVEL=DEBUG shows where it came from
        if _debugging():
            raise
        _complain(f"{type(error).__name__}: {error}")
    raise SystemExit(1)


def _complain(sentence: str) -> None:
    # A database or a server may have put a stranger's text into it.
    lines = "\n".join(map(printable, sentence.split("\n")))
    err.print(f"[red]{escape(lines)}[/]", soft_wrap=True)


def _debugging() -> bool:
    try:
        return load_settings().log_level == "DEBUG"
    except SettingsError:
        return False


@contextmanager
def _terminable(*, exit_code: int = 0) -> Iterator[None]:
    """SIGTERM and Ctrl-C both leave through the context managers, quietly."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background commands with it ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(exit_code) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CommandError(f"settings: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CommandError('settings: not a JSON object; write for example \'{"expected_currency": "EUR"}\'')
    return value


def _changed(policy: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """The policy with NAME=VALUE changes: VALUE is JSON where it reads as such; NAME may be two deep (fields.f1)."""
    changed = dict(policy)
    for change in changes:
        name, equals, text = change.partition("=")
        outer, _, inner = name.partition(".")
        if not (outer and equals):
            raise CommandError(f"--policy {change}: write NAME=VALUE, e.g. require_gtin=true")
        try:
            value = json.loads(text) if text else None
        except ValueError:
            value = text
        target = changed
        if inner:
            target = changed[outer] = dict(changed.get(outer) or {})
        target.pop(inner or outer, None)
        if text:
            target[inner or outer] = value
    return changed


def _show_mappings(mappings: list[dict[str, Any]], as_json: bool) -> None:
    print_json(mappings) if as_json else shown.print_mappings(out, mappings)


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    main()
