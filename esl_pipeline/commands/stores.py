"""`esl-pipeline stores`: which shop feeds which store, by which policy."""

import json
from typing import Annotated, Any

import typer

from esl_pipeline import done as came_of
from esl_pipeline.commands import operator, shown
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    Server,
    Share,
    SourceOption,
    buffer_here,
    checked_by,
    cli_user,
    out,
    print_json,
    said_of_refusals,
    shop_named,
    user,
)

app = typer.Typer(help="Which shop feeds which store.", no_args_is_help=True)

for _command in (operator.pause, operator.resume, operator.pauses, operator.remove):
    app.command()(_command)

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
def add(
    shop: Annotated[str, typer.Argument(help="The shop's domain, e.g. demo.myshopify.com.")],
    store: Annotated[str, typer.Argument(help="The Hipoink store code.")],
    settings: Annotated[str, typer.Option(help="The store's policy as JSON.")] = "{}",
    policy: PolicyChanges = None,
    dry_run: DryRun = None,
    server: Server = None,
    share: Share = False,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Map a shop to a store; its labels follow at once, or after a preview (--dry-run)."""
    from esl_pipeline.receiver.mappings import NewMapping

    fields: dict[str, Any] = {**shop_named(shop, source), "hipoink_store_code": store}
    fields |= {"settings": _changed(_json_object(settings), policy or []), "is_dry_run": bool(dry_run)}
    fields |= {"shared": share} | ({} if server is None else {"label_server": server})
    given = checked_by(NewMapping, fields)
    with buffer_here() as buffer, said_of_refusals():
        _show_mappings([buffer.mapping_create(given, by=cli_user())], as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All store mappings."""
    with buffer_here() as buffer:
        _show_mappings(buffer.mapping_list(), as_json)


@app.command("set")
def set_(
    mapping_id: Annotated[
        str, typer.Argument(metavar="MAPPING", help="The mapping: its store's code, its shop, or its id.")
    ],
    store: Annotated[str | None, typer.Option(help="Another Hipoink store code.")] = None,
    active: Annotated[bool | None, typer.Option("--active/--inactive", help="Push labels or not.")] = None,
    dry_run: DryRun = None,
    settings: Annotated[str | None, typer.Option(help="The whole policy as JSON.")] = None,
    policy: PolicyChanges = None,
    server: Server = None,
    share: Share = False,
    as_json: AsJson = False,
) -> None:
    """Change a mapping; its labels are evaluated again."""
    from esl_pipeline.receiver.mappings import MappingChange

    changes: dict[str, Any] = {"hipoink_store_code": store, "is_active": active, "is_dry_run": dry_run}
    changes |= {"label_server": server}
    changes = {name: value for name, value in changes.items() if value is not None}
    whole = None if settings is None else _json_object(settings)
    if not changes and whole is None and not policy:
        raise CommandError("nothing to change: see `esl-pipeline stores set --help`")
    changes["shared"] = share
    checked_by(MappingChange, changes)
    with buffer_here() as buffer, said_of_refusals():
        mapping = _named(mapping_id, buffer.mapping_list())
        if whole is not None or policy:
            changes["settings"] = _changed(mapping["settings"] if whole is None else whole, policy or [])
        changed = buffer.mapping_update(mapping["id"], checked_by(MappingChange, changes), by=cli_user())
        _show_mappings([changed or mapping], as_json)


@app.command()
def policy(as_json: AsJson = False) -> None:
    """Every setting of a store's policy; --json prints the JSON schema."""
    from esl_pipeline.labels.describe import describe_policy
    from esl_pipeline.labels.policy import Policy

    if as_json:
        print_json(Policy.model_json_schema())
    else:
        out.print(shown.table(("setting", "values", "default", "meaning"), describe_policy()))


@app.command()
def approve(
    store: Annotated[str, typer.Argument(help="The Hipoink store code.")], as_json: AsJson = False
) -> None:
    """Let removals and large price changes go on that were too many at once; see them with `preview`."""
    with buffer_here() as buffer:
        done = buffer.changes_approve(store=store, by=f"{user()}, esl-pipeline stores approve")
    if as_json:
        print_json(done)
    else:
        out.print(came_of.approved(store, done))


@app.command()
def owner(
    shop: Annotated[str, typer.Argument(help="The shop's domain.")],
    thing: Annotated[
        str | None, typer.Argument(help="E.g. product:123; without it all that this shop claims.")
    ] = None,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Say that what several shops claim (see `status`) is this shop's; what waited is read again."""
    named = shop_named(shop, source)
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


@app.command()
def history(
    store: Annotated[str | None, typer.Argument(help="One Hipoink store only.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Changes shown at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Who made and changed the mappings, newest first."""
    with buffer_here() as buffer:
        changes = buffer.mapping_history(store=store, limit=limit)
    print_json(changes) if as_json else shown.print_history(out, changes)


def _named(name: str, mappings: list[dict[str, Any]]) -> dict[str, Any]:
    """The one mapping of that id, store or shop. Raises CommandError."""
    keys = ("id", "hipoink_store_code", "source_store_id")
    found = [mapping for mapping in mappings if name in (mapping[key] for key in keys)]
    if not found:
        raise CommandError(f"there is no mapping {name}: see `esl-pipeline stores list`")
    if len(found) > 1:
        which = ", ".join(f"{m['id']} ({m['source_store_id']} → {m['hipoink_store_code']})" for m in found)
        raise CommandError(f"{name} is meant by several mappings, say which: {which}")
    return found[0]


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
