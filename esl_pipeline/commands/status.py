"""`esl-pipeline status`: how everything stands, what stands in the way, and how much room it takes."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import operator_lines, shelf_lines
from esl_pipeline.commands.shared import AsJson, buffer_here, out, print_json, settings_here
from esl_pipeline.commands.shown import guarded, named, table
from esl_pipeline.commands.tables import Sheet, text
from esl_pipeline.commands.times import ago, moment
from esl_pipeline.label_servers import LabelServerSettings
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.refused import refused_sentence

Row = Mapping[str, Any]


def status(
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Every table and folder by its size as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Inbox, queue, labels and dead letters per store, what rests and why, and how much room all of it takes."""
    settings = settings_here()
    with buffer_here() as buffer:
        found, shelf = buffer.status(), buffer.shelf_state()
        room = _sizes(buffer, settings.esl_home)
    not_readable = settings.not_readable(store for store in found["stores"] if store["is_active"])
    if as_json:
        more = {"not_readable": list(not_readable)} if not_readable else {}
        print_json(found | {"shelf": shelf, "sizes": room} | more)
        return
    print_status(out, found, shelf=shelf, not_readable=not_readable, servers=settings.label_servers)
    _print_sizes(room, settings.esl_home, whole=sizes)


def _sizes(buffer: Buffer, home: Path) -> Row:
    """{database_bytes, tables, folders, free_bytes}; of a login that may not ask, no tables."""
    try:
        found = buffer.sizes()
    except BufferError as error:
        if error.code != "42501":
            raise
        found = {"database_bytes": None, "tables": []}
    if not home.is_dir():
        return found | {"folders": [], "free_bytes": None}
    folders: list[dict[str, Any]] = [
        {"name": entry.name, "bytes": _size_of(Path(entry.path))} for entry in _entries(home)
    ]
    folders.sort(key=lambda folder: (-folder["bytes"], folder["name"]))
    return found | {"folders": folders, "free_bytes": shutil.disk_usage(home).free}


def _entries(home: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(home) as entries:
            return list(entries)
    except OSError:
        return []


def _size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder, or below what a link leads to."""
    if not path.is_dir():
        return _file_size(path)
    return sum(
        _file_size(Path(folder) / name) for folder, _, names in os.walk(path.resolve()) for name in names
    )


def _file_size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # it is gone already
        return 0


def _print_sizes(room: Row, home: Path, *, whole: bool) -> None:
    tables = [[f"esl.{t['name']}", _bytes(t["bytes"]), t["rows"]] for t in room["tables"]]
    folders = [[f"{home}/{folder['name']}", _bytes(folder["bytes"])] for folder in room["folders"]]
    if whole:
        out.print("", table(("table", "size", "rows, about"), tables), "")
        out.print(table(("folder or file", "size"), folders), "")
        return
    says = [f"database {_bytes(room['database_bytes'])}"] if room["database_bytes"] is not None else []
    if room["folders"]:
        used = sum(folder["bytes"] for folder in room["folders"])
        says.append(f"{home} {_bytes(used)}, {_bytes(room['free_bytes'])} free there")
    if says:
        out.print(escape(f"room: {'; '.join(says)} (all: --sizes)"), soft_wrap=True, highlight=False)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def print_status(
    console: Console,
    status: Row,
    *,
    shelf: Sequence[Row] = (),
    not_readable: Mapping[str, str] | None = None,
    servers: Mapping[str, LabelServerSettings] | None = None,
) -> None:
    """Inbox per shop, labels and queue per store, label servers, findings by check, and what stands in the way.

    shelf: how the physical labels of each store were read (Buffer.shelf_state). not_readable: shops that nothing opens
    although others can be read, and why. servers: those that the settings name.
    """
    counts = ("deliveries", "waiting", "done", "superseded", "unusable", "dead")
    inbox = (
        [shop["source_store_id"], *(shop[k] for k in counts), ago(shop["oldest_waiting"])]
        for shop in status["shops"]
    )
    columns = ("inbox of", "received", "waiting", "done", "superseded", "unusable", "dead", "oldest")
    if status["shops"]:
        console.print(table(columns, inbox, lift="inbox of"), "")
    stores = (
        [
            store["hipoink_store_code"],
            store["source_store_id"],
            store["on_labels"],
            store["held_back"],
            *(store["queue"][k] for k in ("waiting", "failed", "dead")),
            ago(store["last_accepted_at"]),
        ]
        for store in status["stores"]
    )
    columns = ("store", "shop", "labels", "held back", "waiting", "refused", "dead", "accepted")
    if status["stores"]:
        console.print(table(columns, stores, lift="shop"), "")
    else:
        console.print("no store is mapped yet: esl-pipeline stores add SHOP STORE")
    if servers and {*servers, *(store["label_server"] for store in status["stores"])} != {DEFAULT_SERVER}:
        console.print(_servers(status["servers"], servers), "")
    if any(store["read_at"] for store in shelf):
        read = (
            [store["store_code"], store["labels"], store["bound"], store["online"], ago(store["read_at"])]
            for store in shelf
        )
        console.print(table(("shelf of", "physical labels", "bound", "online", "read"), read), "")
    for server in status["servers"]:
        if server.get("knows_devices"):
            says = f"label server {server['server']}: {shelf_lines.server_says(server)}"
            console.print(escape(text(says)), soft_wrap=True, highlight=False)
    if status["findings"]:
        findings = ([f["check_name"], f["level"], f["n"]] for f in status["findings"])
        console.print(table(("finding", "level", "variants"), findings), "")
    unread = [
        f"{shop}: cannot be read, what its webhooks miss stays missed: {why}"
        for shop, why in (not_readable or {}).items()
    ]
    of_shelf = shelf_lines.obstacles(status["servers"], shelf)
    for line in _windows(status["stores"]):
        console.print(escape(text(line)), soft_wrap=True, highlight=False)
    for line in (
        *_obstacles(status),
        *of_shelf,
        *_not_named(status["stores"], servers),
        *unread,
    ):
        console.print(escape(text(line)), style="yellow", soft_wrap=True)


def _servers(rows: Sequence[Row], servers: Mapping[str, LabelServerSettings]) -> Sheet:
    """A line for each label server: its stores, how much of it may be used, and whether it is down."""
    known = {row["server"]: row for row in rows}
    columns = ("label server", "stores", "calls/s", "batch", "in flight", "state")
    lines = []
    for name in sorted({*servers, *(row["server"] for row in rows if row["stores"])}):
        row, settings = known.get(name, {}), servers.get(name)
        limits = ("rate_limit_per_second", "batch_size", "concurrency")
        state = f"down since {moment(row['down_since'])}" if row.get("down_since") else "up"
        lines.append(
            [
                name,
                ", ".join(row.get("stores", [])),
                *(getattr(settings, limit) if settings else None for limit in limits),
                state if settings else "not set",
            ]
        )
    return table(columns, lines)


def _not_named(stores: Sequence[Row], servers: Mapping[str, LabelServerSettings] | None) -> Iterator[str]:
    """What is mapped at a label server that the settings do not name; None: they were not asked."""
    for store in stores:
        if servers and store["is_active"] and store["label_server"] not in servers:
            yield (
                f"store {store['hipoink_store_code']}: its labels wait, for the settings name no label server "
                f"{store['label_server']} (HIPOINK_SERVERS_FILE)"
            )


def _obstacles(status: Row) -> Iterator[str]:
    """What stands in the way: of label servers, of shops, of stores."""
    for outage in status["outages"]:
        yield (
            f"label server {outage['server']}: down since {moment(outage['since'])}, next try at "
            f"{moment(outage['probe_at'])}: {outage['reason']}"
        )
    yield from _not_refreshed(status["refreshes"])
    yield from _contests(status)
    yield from map(_refused, status["refused"])
    for order in status["erasures"]:
        yield (
            f"{order['source_store_id']}: asked at {moment(order['requested_at'])} to be erased, not before "
            f"{moment(order['not_before'])}; a mapping that is switched on again ends that"
        )
    yield from _obstacles_of_shops(status["shops"])
    yield from _obstacles_of_stores(status["stores"])


def _refused(shop: Row) -> str:
    keys = ("refused", "since", "last_at", "accepted_at")
    return f"{shop['source_store_id']}: {refused_sentence(*(shop[k] for k in keys), now=datetime.now(UTC))}"


def _contests(status: Row) -> Iterator[str]:
    """What several shops claim, a sentence each, and how that ends."""
    for contest in status["contests"]:
        thing, shops = contest["thing"], " and ".join(contest["shops"])
        yield (
            f"{thing.replace(':', ' ').replace('_', ' ')} is claimed by {shops} since {moment(contest['since'])}: "
            f"the Admin API settles it where it can be asked, or esl-pipeline stores owner SHOP {thing}"
        )
    if (more := status["contested"] - len(status["contests"])) > 0:
        yield f"{more} more are claimed by several shops"


def _obstacles_of_shops(shops: Sequence[Row]) -> Iterator[str]:
    for shop in shops:
        if not shop["mapped"]:
            yield f"{shop['source_store_id']}: no store is mapped, its deliveries wait{_not_kept(shop)}"
        if shop["replays"]:
            yield f"{shop['source_store_id']}: {shop['replays']} deliveries are suspected replays and were not used"
        if shop["refused_in_a_row"] >= 5:
            yield (
                f"{shop['source_store_id']}: none of its last {shop['refused_in_a_row']} deliveries could be used: "
                f"{shop['last_refusal']}"
            )
        if shop["variants_to_fetch"]:
            yield (
                f"{shop['source_store_id']}: {shop['variants_to_fetch']} variants were named by webhooks, not told: "
                "those beyond the first 100 of their product, or all of a body without any"
            )


def _not_kept(shop: Row) -> str:
    """How many no longer do; a store that is mapped later begins with a complete read."""
    gone = [
        words
        for count, words in (
            (shop["not_kept"], f"{shop['not_kept']} were not kept, because too much waited"),
            (shop["expired"], f"{shop['expired']} waited too long and were deleted"),
        )
        if count
    ]
    return f" ({'; '.join(gone)})" if gone else ""


def _obstacles_of_stores(stores: Sequence[Row]) -> Iterator[str]:
    for store in stores:
        code, queue = store["hipoink_store_code"], store["queue"]
        name = named(store, stores)
        if store["problem"]:
            yield f"store {code}: {store['problem']}"
        if store["switched_off"]:
            yield (
                f"store {code}: switched off by {store['switched_off']}{_set(store['inactive_since'])}; nothing is "
                f"pushed: esl-pipeline stores set {name} --active, or --inactive if that is right"
            )
        elif not store["is_active"] and not store["leaving"]:
            yield (
                f"store {code}: inactive, nothing is pushed{_set(store['inactive_since'])}: "
                f"esl-pipeline stores set {name} --active"
            )
        if store["is_dry_run"]:
            yield (
                f"store {code}: dry run, nothing is pushed{_set(store['dry_run_since'])}: "
                f"esl-pipeline preview --store {code}, then stores set {name} --live"
            )
        if queue["guarded"]:
            yield f"store {code}: {guarded(queue['guarded'], code)}"
        if queue["failed"] or queue["dead"]:
            yield (
                f"store {code}: {queue['failed']} labels are refused and {queue['dead']} given up: "
                f"esl-pipeline queue --store {code} says why"
            )
        yield from operator_lines.standing(store)
        if rest := store["paused"]:
            yield (
                f"store {code}: paused by the pipeline, for the label server refuses the whole store: since "
                f"{moment(rest['since'])}, until {moment(rest['until'])}: {rest['reason']}"
            )
        elif queue["last_error"] and queue["oldest"]:
            yield f"store {code}: oldest label waits since {moment(queue['oldest'])}: {queue['last_error']}"


def _set(change: Row | None) -> str:
    """Since when, and by whom; nothing where that is not kept."""
    return f" since {moment(change['at'])}, set by {change['by']}" if change else ""


def _windows(stores: Sequence[Row]) -> Iterator[str]:
    for store in stores:
        if count := store["queue"]["window"]:
            rises = "1 rise waits" if count == 1 else f"{count} rises wait"
            opens = moment(store["window_opens"])
            yield f"store {store['hipoink_store_code']}: {rises} for the raise_window, which opens {opens}"


def _not_refreshed(refreshes: Row) -> Iterator[str]:
    for server in refreshes["unknown"]:
        yield (
            f"label server {server['server']}: does not know esl/bind_task, so its labels must change by themselves; "
            f"asked again at {moment(server['again_at'])}"
        )
    for store in refreshes["waiting"]:
        if store["attempts"]:
            yield (
                f"store {store['store_code']}: its labels wait since {moment(store['since'])} to be refreshed, next "
                f"try at {moment(store['next_at'])}: {store['last_error']}"
            )
