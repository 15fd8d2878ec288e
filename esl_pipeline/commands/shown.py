"""What the command shows people: tables. Takes the buffer's rows, prints with rich."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from esl_pipeline.commands import operator_lines
from esl_pipeline.commands.tables import Sheet
from esl_pipeline.commands.times import moment as _time
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.label_server import DEFAULT_SERVER

Row = Mapping[str, Any]


def table(
    columns: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    title: str | None = None,
    lift: str | None = None,
) -> Sheet:
    """A plain table; cells are shown as text, never as markup, and no word of them is broken."""
    return Sheet(columns, rows, title=title, lift=lift)


def print_mappings(console: Console, mappings: Sequence[Row]) -> None:
    """Store mappings, one line each."""
    if not mappings:
        console.print("no store is mapped yet: esl-pipeline stores add SHOP STORE")
        return
    columns = ["store", "shop", "active", "dry run", "id"]
    keys = ["hipoink_store_code", "source_store_id", "is_active", "is_dry_run", "id"]
    if any(mapping["label_server"] != DEFAULT_SERVER for mapping in mappings):
        columns.insert(1, "server")
        keys.insert(1, "label_server")
    console.print(table(columns, ([m[k] for k in keys] for m in mappings), lift="shop"))
    for mapping in mappings:
        if mapping["settings"]:
            says = f"{named(mapping, mappings)} --settings {_pasted(mapping['settings'])}"
            console.print(escape(says), soft_wrap=True, highlight=False)
    for mapping in mappings:
        for says in operator_lines.leaving(mapping["hipoink_store_code"], mapping):
            console.print(escape(says), style="yellow", soft_wrap=True)
        if mapping.get("remark"):
            console.print(escape(mapping["remark"]), style="yellow", soft_wrap=True)


def named(mapping: Row, mappings: Sequence[Row]) -> str:
    """What `stores set` knows a mapping by: its store's code, unless several shops feed that store."""
    code = str(mapping["hipoink_store_code"])
    alone = sum(other["hipoink_store_code"] == code for other in mappings) == 1
    return code if alone else str(mapping.get("mapping_id") or mapping["id"])


def _pasted(settings: Row) -> str:
    """Settings as a shell takes them for `stores set --settings`."""
    text = json.dumps(settings, ensure_ascii=False)
    return shlex.quote(text if text.isprintable() else json.dumps(settings))


def print_history(console: Console, changes: Sequence[Row]) -> None:
    """Who made and changed store mappings, one line each."""
    if not changes:
        console.print("nothing was mapped or changed since this is kept")
        return
    columns = ("at", "by", "login", "shop", "store", "mapping", "change")
    rows = (
        [
            _time(change["at"]),
            change["by"],
            change["db_user"],
            change["new"]["source_store_id"],
            change["new"]["hipoink_store_code"],
            change["mapping_id"],
            _change(change["old"], change["new"]),
        ]
        for change in changes
    )
    console.print(table(columns, rows))


def _change(old: Row | None, new: Row) -> str:
    if old is None:
        return "new"
    changed = differences(*({**mapping, "updated_at": "", "activated_at": ""} for mapping in (old, new)))
    return ", ".join(f"{name} {was or '-'} → {now or '-'}" for name, (was, now) in changed.items())


def print_tokens(console: Console, tokens: Sequence[Row]) -> None:
    """Tokens of the store-mapping API, one line each."""
    if not tokens:
        console.print("no token yet: esl-pipeline tokens add NAME --scope read|write")
        return
    columns = ("name", "scope", "state", "made", "expires", "revoked")
    rows = (
        [
            t["name"],
            t["scope"],
            t["state"],
            *(_time(t[k]) for k in ("created_at", "expires_at", "revoked_at")),
        ]
        for t in tokens
    )
    console.print(table(columns, rows))


def print_preview(console: Console, mappings: Sequence[Row]) -> None:
    """Per mapping of a store: what differs from the label server, old beside new."""
    for mapping in mappings:
        says = ", ".join(f"{mapping[key]} {key}" for key in ("new", "changed", "removed"))
        state = "dry run" if mapping["is_dry_run"] else "live" if mapping["is_active"] else "inactive"
        console.print(
            f"[bold]{escape(mapping['source_store_id'])} → {escape(mapping['hipoink_store_code'])}[/] ({state}): "
            f"{says}; {mapping['published']} labels wanted, {mapping['held']} held back"
        )
        if mapping["to_evaluate"]:
            console.print(f"{mapping['to_evaluate']} variants are not judged yet: look again", style="yellow")
        if mapping["guarded"]:
            console.print(escape(guarded(mapping["guarded"], mapping["hipoink_store_code"])), style="yellow")
        if (grace := mapping["grace"])["places"]:
            until = f", the first until {grace['next_at'][:16]}Z" if grace["next_at"] else ""
            console.print(
                f"{grace['places']} removed labels wait{until}: {grace['bound']} physical labels are bound to them",
                style="yellow",
            )
        rows = [
            [change["code"] if first else "", kind if first else "", name, old, new]
            for change in mapping["changes"]
            for kind in [_kind(change)]
            for first, (name, (old, new)) in _first(differences(change["before"], change["after"]).items())
        ]
        if rows:
            console.print(table(("code", "change", "field", "now", "then"), rows))


def guarded(count: int, store: str) -> str:
    return f"{count} drastic changes at once wait for approval: esl-pipeline stores approve {store}"


def _kind(change: Row) -> str:
    kind = "removed" if change["operation"] == "delete" else "changed" if change["before"] else "new"
    return kind + {"guarded": " (waits)", "rejected": " (rejected)"}.get(change["state"], "")


def _first(items: Iterable[Any]) -> Iterator[tuple[bool, Any]]:
    return ((i == 0, item) for i, item in enumerate(items))


def print_drift(console: Console, drifts: Sequence[Row], *, dry_run: bool) -> None:
    """What the label server holds against what it accepted, a line per store."""
    columns = ("store", "labels there", "accepted", "missing", "different", "foreign", "queued again")
    keys = ("store_code", "listed", "ledger", "missing_count", "different_count", "foreign_count", "requeued")
    console.print(table(columns, ([drift[key] for key in keys] for drift in drifts)))
    for drift in drifts:
        if not drift["complete"]:
            console.print(
                escape(
                    f"{drift['store_code']}: the list is not complete, nothing is concluded: {drift['reason']}"
                ),
                style="yellow",
            )
        for remark in drift["remarks"]:
            console.print(escape(remark), style="yellow", highlight=False)
    if dry_run:
        console.print("nothing was queued (--dry-run)")
