"""What the command shows people: tables and traces. Takes the buffer's rows, prints with rich."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.tree import Tree

from esl_pipeline.label_servers import LabelServerSettings
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.printable import printable
from esl_pipeline.refused import refused_sentence

Row = Mapping[str, Any]

_STATE_STYLE = {"accepted": "green", "publish": "green", "done": "green", "failed": "red", "dead": "red"}


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]], *, title: str | None = None) -> Table:
    """A plain table; cells are shown as text, never as markup."""
    shown = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold", min_width=min(len(column), 10))
    for row in rows:
        shown.add_row(*(escape(_text(cell)) for cell in row))
    return shown


def print_mappings(console: Console, mappings: Sequence[Row]) -> None:
    """Store mappings, one line each."""
    if not mappings:
        console.print("no store is mapped yet: esl-pipeline stores add SHOP STORE")
        return
    columns = ["id", "shop", "store", "active", "dry run", "settings"]
    keys = ["id", "source_store_id", "hipoink_store_code", "is_active", "is_dry_run", "settings"]
    if any(mapping["label_server"] != DEFAULT_SERVER for mapping in mappings):
        columns.insert(3, "server")
        keys.insert(3, "label_server")
    console.print(table(columns, ([m[k] for k in keys] for m in mappings)))
    for mapping in mappings:
        if mapping.get("remark"):
            console.print(escape(mapping["remark"]), style="yellow", soft_wrap=True)


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


def print_status(
    console: Console,
    status: Row,
    *,
    not_readable: Mapping[str, str] | None = None,
    servers: Mapping[str, LabelServerSettings] | None = None,
) -> None:
    """Inbox per shop, labels and queue per store, label servers, findings by check, and what stands in the way.

    not_readable: shops that nothing opens although others can be read, and why. servers: those that the settings name.
    """
    counts = ("deliveries", "waiting", "done", "superseded", "unusable", "dead")
    inbox = (
        [shop["source_store_id"], *(shop[k] for k in counts), _ago(shop["oldest_waiting"])]
        for shop in status["shops"]
    )
    columns = ("inbox of", "received", "waiting", "done", "superseded", "unusable", "dead", "oldest")
    console.print(table(columns, inbox), "")
    stores = (
        [
            store["hipoink_store_code"],
            store["source_store_id"],
            store["on_labels"],
            store["held_back"],
            *(store["queue"][k] for k in ("waiting", "failed", "dead")),
            _ago(store["last_accepted_at"]),
        ]
        for store in status["stores"]
    )
    columns = ("store", "shop", "labels", "held back", "waiting", "failed", "dead", "accepted")
    console.print(table(columns, stores), "")
    if servers and {*servers, *(store["label_server"] for store in status["stores"])} != {DEFAULT_SERVER}:
        console.print(_servers(status["servers"], servers), "")
    if status["findings"]:
        findings = ([f["check_name"], f["level"], f["n"]] for f in status["findings"])
        console.print(table(("finding", "level", "variants"), findings), "")
    unread = [
        f"{shop}: cannot be read, what its webhooks miss stays missed: {why}"
        for shop, why in (not_readable or {}).items()
    ]
    for line in (*_obstacles(status), *_not_named(status["stores"], servers), *unread):
        console.print(escape(_text(line)), style="yellow", soft_wrap=True)


def _servers(rows: Sequence[Row], servers: Mapping[str, LabelServerSettings]) -> Table:
    """A line for each label server: its stores, how much of it may be used, and whether it is down."""
    known = {row["server"]: row for row in rows}
    columns = ("label server", "stores", "calls/s", "batch", "in flight", "state")
    lines = []
    for name in sorted({*servers, *(row["server"] for row in rows if row["stores"])}):
        row, settings = known.get(name, {}), servers.get(name)
        limits = ("rate_limit_per_second", "batch_size", "concurrency")
        state = f"down since {_time(row['down_since'])}" if row.get("down_since") else "up"
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
            f"label server {outage['server']}: down since {_time(outage['since'])}, next try at "
            f"{_time(outage['probe_at'])}: {outage['reason']}"
        )
    yield from _not_refreshed(status["refreshes"])
    yield from _contests(status)
    yield from map(_refused, status["refused"])
    for order in status["erasures"]:
        yield (
            f"{order['source_store_id']}: asked at {_time(order['requested_at'])} to be erased, not before "
            f"{_time(order['not_before'])}; a mapping that is switched on again ends that"
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
            f"{thing.replace(':', ' ').replace('_', ' ')} is claimed by {shops} since {_time(contest['since'])}: "
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
        if store["problem"]:
            yield f"store {code}: {store['problem']}"
        if store["switched_off"]:
            yield (
                f"store {code}: switched off by {store['switched_off']}; nothing is pushed: "
                f"esl-pipeline stores set {store['mapping_id']} --active, or --inactive if that is right"
            )
        elif not store["is_active"]:
            yield f"store {code}: inactive, nothing is pushed"
        if store["is_dry_run"]:
            yield f"store {code}: dry run, nothing is pushed: esl-pipeline preview --store {code}"
        if queue["guarded"]:
            yield f"store {code}: {_guarded(queue['guarded'], code)}"
        if store["paused"]:
            yield f"store {code}: paused until {_time(store['paused']['until'])}: {store['paused']['reason']}"
        elif queue["last_error"]:
            yield f"store {code}: oldest label waits since {_time(queue['oldest'])}: {queue['last_error']}"


def _not_refreshed(refreshes: Row) -> Iterator[str]:
    for server in refreshes["unknown"]:
        yield (
            f"label server {server['server']}: does not know esl/bind_task, so its labels must change by themselves; "
            f"asked again at {_time(server['again_at'])}"
        )
    for store in refreshes["waiting"]:
        if store["attempts"]:
            yield (
                f"store {store['store_code']}: its labels wait since {_time(store['since'])} to be refreshed, next try "
                f"at {_time(store['next_at'])}: {store['last_error']}"
            )


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
            console.print(escape(_guarded(mapping["guarded"], mapping["hipoink_store_code"])), style="yellow")
        rows = [
            [change["code"] if first else "", kind if first else "", name, old, new]
            for change in mapping["changes"]
            for kind in [_kind(change)]
            for first, (name, (old, new)) in _first(differences(change["before"], change["after"]).items())
        ]
        if rows:
            console.print(table(("code", "change", "field", "now", "then"), rows))


def _guarded(count: int, store: str) -> str:
    return f"{count} drastic changes at once wait for approval: esl-pipeline stores approve {store}"


def _kind(change: Row) -> str:
    kind = "removed" if change["operation"] == "delete" else "changed" if change["before"] else "new"
    return f"{kind} (waits)" if change["state"] == "guarded" else kind


def _first(items: Iterable[Any]) -> Iterator[tuple[bool, Any]]:
    return ((i == 0, item) for i, item in enumerate(items))


def print_findings(console: Console, findings: Sequence[Row], *, more: bool) -> None:
    """Open findings, the grave ones first."""
    if not findings:
        console.print("no findings: nothing is held back")
        return
    columns = ("store", "variant", "title", "level", "finding", "value", "what to do")
    rows = (
        [
            finding["hipoink_store_code"],
            finding["variant_id"],
            finding["title"],
            finding["level"],
            finding["reason"],
            finding["value"],
            finding["action"],
        ]
        for finding in findings
    )
    console.print(table(columns, rows))
    if more:
        console.print("there are more: --limit, or --csv FILE for all", style="yellow")


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


def print_trace(console: Console, places: Sequence[Row]) -> None:
    """From a label back: what the server last accepted, each push with its run, request and answer, the variant,
    the webhooks."""
    for place in places:
        console.print(Panel(_trace(place), title=_place(place), title_align="left"))


def _place(place: Row) -> str:
    server = place["label_server"]
    return f"store {escape(place['store_code'])}" + (f" at {server}" if server != DEFAULT_SERVER else "")


def _trace(place: Row) -> Group:
    ledger, queue = place["ledger"], place["queue"]
    label = Tree("[bold]label[/]")
    if ledger:
        label.add(f"accepted {_time(ledger['accepted_at'])}: {_fields(ledger['label'])}")
    else:
        label.add("none: the label server holds nothing for this code")
    if refresh := place["refresh"]:
        label.add(_refresh(refresh))
    if queue:
        wanted = _fields(queue["label"]) if queue["label"] else "removal"
        label.add(
            f"[yellow]waiting ({escape(queue['state'])})[/]: {wanted}, next try {_time(queue['next_attempt_at'])}"
            + (f", {escape(_text(queue['last_error']))}" if queue["last_error"] else "")
        )
    pushes = Tree("[bold]pushes[/], newest first")
    for push_id, rows in _by_push(place["log"]).items():
        intent = rows.get("intent", rows.get("result", {}))
        node = pushes.add(
            f"{_time(intent['at'])} {intent['operation']} attempt {intent['attempt']}, push {push_id}"
        )
        node.add(f"run {escape(_text(intent['run_id']))}, asset {escape(_text(intent.get('asset')))}")
        node.add(f"request {_fields(intent['label']) if intent.get('label') else 'removal of the code'}")
        if result := rows.get("result"):
            style = _STATE_STYLE.get(result["outcome"], "yellow")
            node.add(
                f"answer [{style}]{result['outcome']}[/] HTTP {_text(result['http_status'])} in "
                f"{_text(result['duration_ms'])} ms: {escape(_text(result['answer'] or result['message']))}"
            )
        else:
            node.add("[yellow]no answer recorded yet[/]")
    variants = Tree("[bold]variant[/]")
    for variant in place["variants"]:
        name = f"{_text(variant['title'])} / {_text(variant['variant_title'])}"
        node = variants.add(
            f"{variant['variant_id']} {escape(name)}, price {escape(_text(variant['price']))}, "
            f"{variant['label_state']}, updated {_time(variant['source_updated_at'])}"
        )
        if file := variant.get("file"):
            node.add(_file(file))
        for finding in variant["findings"]:
            node.add(f"{finding['level']} {finding['check_name']}: {escape(finding['reason'])}")
    deliveries = Tree("[bold]webhooks[/], newest first")
    for delivery in place["deliveries"]:
        deliveries.add(
            f"{escape(delivery['webhook_id'])} {delivery['topic']}, received {_time(delivery['received_at'])}, "
            f"{delivery['state']} by run {escape(_text(delivery['run_id']))}"
        )
    if place["forgotten"]:
        deliveries.add(f"{place['forgotten']} more are no longer kept")
    return Group(label, pushes, variants, deliveries)


def _file(file: Row) -> str:
    """The file that a variant's content is from."""
    return (
        f"from {escape(printable(file['name']))} of {_time(file['modified_at'])}, SHA-256 {file['sha256'][:16]}…, "
        f"applied {_time(file['applied_at'])} by run {escape(_text(file['run_id']))}"
    )


def _refresh(refresh: Row) -> str:
    """Whether the label server was told to refresh the store's labels since it accepted this one."""
    if done := refresh["triggered"]:
        return (
            f"refreshed {_time(done['at'])} (esl/bind_task accepted in {_text(done['duration_ms'])} ms) by run "
            f"{escape(_text(done['run_id']))}"
        )
    if not refresh["wanted"]:
        return "not refreshed by us: policy refresh is never, or the store is not live"
    waiting = refresh["waiting"]
    if waiting is None:
        return "not refreshed since"
    why = f": {escape(_text(waiting['last_error']))}" if waiting["last_error"] else ""
    return f"[yellow]waits to be refreshed[/] since {_time(waiting['since'])}{why}"


def _by_push(log: Sequence[Row]) -> dict[str, dict[str, Row]]:
    pushes: dict[str, dict[str, Row]] = {}
    for row in log:
        pushes.setdefault(row["push_id"], {})[row["kind"]] = row
    return pushes


def _fields(label: Row) -> str:
    return escape(", ".join(f"{k} {v!r}" for k, v in sorted(label.items()) if v != ""))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def _time(value: str | None) -> str:
    if value is None:
        return "-"
    return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _ago(value: str | None) -> str:
    if value is None:
        return "-"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(value)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{max(seconds, 0)} s ago"
