"""`esl-pipeline shelf`: what is known of the labels on the shelf, and what somebody should look at."""

import csv as files
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.devices import mapped_stores
from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json
from esl_pipeline.commands.shelf_lines import does_not_know, server_says
from esl_pipeline.commands.times import ago
from esl_pipeline.printable import cell, printable

Row = Mapping[str, Any]

RUNGS = ("wanted", "accepted", "stored", "triggered", "reachable", "refreshed", "seen")
WIDTH = 80

# What people ask, in the order in which it matters, and whether what is told of it are products.
_KINDS = {
    "late": ("labels that should show something else for too long", False),
    "offline": ("labels that are not reached", False),
    "low": ("labels with a low battery", False),
    "dying": ("batteries that will be low within 30 days", False),
    "unbound": ("labels that show no product", False),
    "removed": ("labels that show a product that was removed", False),
    "strangers": ("labels that show a product of no shop", False),
    "blanked": ("labels that show a blanked product", False),
    "without_label": ("products without a label", True),
    "unproven": (
        "labels that were refreshed, and of which nobody has said that they show the price "
        "(labels seen, or the policy templates_show_price)",
        False,
    ),
}

_CSV = {
    "store_code": "store",
    "source_store_id": "shop",
    "esl_code": "label",
    "product_code": "code",
    "variant_id": "variant_id",
    "price": "price",
    "rung": "rung",
    "name": "rung_name",
    "hindrance": "in_the_way",
    "since": "wrong_since",
    "stale_seconds": "wrong_seconds",
    "is_late": "is_late",
    "is_rise": "is_price_rise",
    "is_blanked": "is_blanked",
    "accepted_at": "accepted_at",
    "has_moved": "row_has_moved",
    "model": "model",
    "ap_code": "ap",
    "battery_mv": "battery_mv",
    "is_low": "battery_is_low",
    "online": "online",
}


def shelf(
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every label and product to this file.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Shown of each kind at most.")] = 5,
    as_json: AsJson = False,
) -> None:
    """How far prices are known to have come on their way to the shelf, and which labels need somebody."""
    with buffer_here() as buffer:
        known = mapped_stores(buffer, store)
        if csv is not None:
            count = _write_csv(csv, _every_label(buffer, [store] if store else known))
            out.print(f"{count} labels and products without one in {escape(str(csv))}", soft_wrap=True)
            return
        stores = buffer.shelf(store=store, limit=limit)
        states = {} if as_json else {row["server"]: row for row in buffer.status()["servers"]}
    if as_json:
        print_json(stores)
        return
    if not stores:
        raise CommandError("no active store: esl-pipeline stores list")
    for found in stores:
        for line in shelf_report(found, states.get(found["label_server"], {})):
            out.print(escape(line), soft_wrap=True, highlight=False)


def shelf_report(store: Row, server: Row) -> Iterator[str]:
    """The lines about one store (of Buffer.shelf), 80 columns wide; server: its label server (of Buffer.status)."""
    code = store["store_code"]
    yield from _wrapped(
        f"{code}: {store['products']} products, {store['with_label']} with a label; {store['labels']} labels, "
        f"{store['online']} online, {store['low']} with a low battery"
    )
    if store["knows_devices"] is False:
        yield from _wrapped(f"label server {store['label_server']} {does_not_know(server)}", "  ")
    else:
        read = f"read {ago(store['read_at'])}" if store["read_at"] else "never read"
        lately = "" if store["is_read"] else ", which is too long ago to call any label reachable"
        yield from _wrapped(f"labels {read}{lately}", "  ")
        if server.get("knows_devices"):
            yield from _wrapped(f"label server {store['label_server']}: {server_says(server)}", "  ")
    yield ""
    yield f"  {'rung':<14}{'products':>10}{'labels':>10}"
    for number, name in enumerate(RUNGS, 1):
        counts = (store[of][str(number)] for of in ("rungs", "label_rungs"))
        yield f"  {number} {name:<12}" + "".join(f"{count:>10}" for count in counts)
    for kind, (words, is_product) in _KINDS.items():
        if found := store["kinds"].get(kind):
            yield from _of_kind(store, kind, found, words, is_product=is_product)
    yield ""


def _of_kind(store: Row, kind: str, found: Row, words: str, *, is_product: bool) -> Iterator[str]:
    if not found["count"]:
        return
    yield ""
    rises = (
        f", {store['late_rises']} of them a higher price" if kind == "late" and store["late_rises"] else ""
    )
    yield from _wrapped(f"{words}: {found['count']}{rises}", "  ")
    if kind == "late":
        for row in found["first"]:
            yield from _wrapped(_late(row), "    ")
    else:
        key = "product_code" if is_product else "esl_code"
        more = found["count"] - len(found["first"])
        names = [_named(kind, row, key) for row in found["first"]] + ([f"{more} more"] if more > 0 else [])
        yield from _wrapped(", ".join(names), "    ")
    if kind == "offline" and store["offline_by_ap"]:
        by_ap = ", ".join(
            f"{ap['ap_code'] or 'none'} {ap['offline']} of {ap['labels']}" for ap in store["offline_by_ap"]
        )
        yield from _wrapped(f"by AP: {by_ap}", "    ")


def _late(row: Row) -> str:
    must = f" must show {row['price']}" if row["price"] is not None else ""
    rise = ", more than it says" if row["is_rise"] else ""
    minutes = f" for {float(row['stale_seconds']) / 60:.0f} min" if row["stale_seconds"] is not None else ""
    return f"{row['esl_code']} ({row['product_code']}){must}{rise}{minutes}: {row['hindrance'] or 'nothing is known'}"


def _named(kind: str, row: Row, key: str) -> str:
    name = str(row[key])
    if kind == "low":
        return f"{name} {row['battery_mv']} mV"
    if kind == "dying":
        return f"{name} by {row['low_at'][:10]}"
    if kind in ("removed", "strangers", "blanked", "offline") and row["product_code"]:
        return f"{name} ({row['product_code']})"
    return name


def _wrapped(text: str, indent: str = "") -> list[str]:
    further = indent or "  "
    return textwrap.wrap(printable(text), WIDTH, initial_indent=indent, subsequent_indent=further)


def _every_label(buffer: Buffer, stores: Sequence[str]) -> Iterator[Row]:
    for store in stores:
        page, after = buffer.shelf_list(store=store)
        while page:
            for row in page:
                yield row | {"store_code": store, "name": RUNGS[row["rung"] - 1] if row["rung"] else None}
            if after is None:
                break
            page, after = buffer.shelf_list(store=store, after=after)


def _write_csv(path: Path, labels: Iterator[Row]) -> int:
    """UTF-8 with a byte order mark, so that spreadsheets read accents; returns the number of rows."""
    count = 0
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = files.writer(file)
        writer.writerow(_CSV.values())
        for label in labels:
            writer.writerow(_cell(label[key]) for key in _CSV)
            count += 1
    return count


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        value = round(value)
    return "" if value is None else cell(str(value))
