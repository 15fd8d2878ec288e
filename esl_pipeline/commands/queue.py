"""`esl-pipeline queue` and `inbox`: what waits or was refused, and why."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.shared import (
    AsJson,
    CommandError,
    SourceOption,
    buffer_here,
    out,
    print_json,
    shop_named,
)
from esl_pipeline.commands.spreadsheets import write_csv
from esl_pipeline.commands.tables import Sheet
from esl_pipeline.commands.times import moment
from esl_pipeline.model.waiting import DeliveryState, LabelState, what_it_said, why_delivery, why_label
from esl_pipeline.printable import printable

Row = Mapping[str, Any]
StoreOption = Annotated[str | None, typer.Option(help="One Hipoink store only.")]
Limit = Annotated[int, typer.Option(min=1, help="Shown at most; a file has all.")]
CsvFile = Annotated[Path | None, typer.Option(help="Write all of them to this file.")]

_STATES = {
    "failed": "refused",
    "dead": "given up",
    "approval": "waiting for approval",
    "rejected": "rejected, so left as they are",
    "window": "waiting for the raise_window",
    "waiting": "waiting",
}
_LABEL_COLUMNS = {
    "store_code": "store",
    "source_store_id": "shop",
    "code": "code",
    "title": "title",
    "variant_title": "variant_title",
    "price_before": "old_price",
    "price_after": "new_price",
    "operation": "operation",
    "state": "state",
    "says": "why",
    "until": "until",
    "since": "since",
    "attempts": "attempts",
    "answer": "answer",
}
_DELIVERY_COLUMNS = {
    "source_store_id": "shop",
    "topic": "topic",
    "webhook_id": "webhook_id",
    "title": "title",
    "thing": "thing",
    "state": "state",
    "says": "why",
    "triggered_at": "triggered",
    "received_at": "received",
    "attempts": "attempts",
}


def queue(
    state: Annotated[
        LabelState | None,
        typer.Option(
            help="failed: refused; dead: given up; approval, window: waits for that; rejected: by somebody; waiting: "
            "the rest."
        ),
    ] = None,
    store: StoreOption = None,
    csv: CsvFile = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Labels that are not on the shelf yet: old and new price, since when, how often tried, what the server said."""
    with buffer_here() as buffer:
        known_store(buffer, store)
        if csv is not None:
            every = map(_label_cells, buffer.every_waiting_label(store=store, state=state))
            out.print(f"{write_csv(csv, _LABEL_COLUMNS, every)} labels in {csv}")
            return
        found = buffer.waiting_labels(store=store, state=state, limit=limit)
        others = [] if found["counts"] else buffer.waiting_labels(store=store, state=None, limit=1)["counts"]
    if as_json:
        print_json(found | {"labels": [row | {"says": why(row)} for row in found["labels"]]})
    elif state is not None and others:
        out.print(_none_is(state, others), soft_wrap=True, highlight=False)
    else:
        print_queue(found)


def inbox(
    state: Annotated[
        DeliveryState | None, typer.Option(help="unusable; dead: given up; waiting: not read yet.")
    ] = None,
    shop: Annotated[str | None, typer.Option(help="One shop's only.")] = None,
    store: Annotated[str | None, typer.Option(help="Only of shops that feed this Hipoink store.")] = None,
    csv: CsvFile = None,
    limit: Limit = 50,
    source: SourceOption = None,
    as_json: AsJson = False,
) -> None:
    """Webhooks that wait or could not be used, newest first, and why."""
    with buffer_here() as buffer:
        shops = _shops(buffer, shop, source, store)
        if csv is not None:
            every = map(_delivery_cells, buffer.every_waiting_delivery(shops=shops, state=state))
            out.print(f"{write_csv(csv, _DELIVERY_COLUMNS, every)} deliveries in {csv}")
            return
        found = buffer.waiting_deliveries(shops=shops, state=state, limit=limit + 1)
    if as_json:
        print_json([row | {"says": why_delivery(row)} for row in found[:limit]])
    else:
        print_inbox(found[:limit], more=len(found) > limit)


def known_store(buffer: Buffer, store: str | None) -> None:
    """Raises CommandError when no shop is mapped to the store."""
    if store is not None and store not in {mapping.store for mapping in buffer.mappings()}:
        raise CommandError(f"no shop is mapped to store {store}: see `esl-pipeline stores list`")


def _shops(
    buffer: Buffer, shop: str | None, source: str | None, store: str | None
) -> list[dict[str, str]] | None:
    if store is not None:
        known_store(buffer, store)
        return [
            {"source_system": m.shop["source_system"], "source_store_id": m.shop["source_store_id"]}
            for m in buffer.mappings()
            if m.store == store
        ]
    if shop is None:
        return None
    named = shop_named(shop, source)
    if named not in [dict(m.shop) for m in buffer.mappings()] and not buffer.waiting_deliveries(
        shops=[named], state=None, limit=1
    ):
        raise CommandError(
            f"nothing is known of shop {named['source_store_id']}, and no store is mapped for it: "
            "see `esl-pipeline stores list`"
        )
    return [named]


def print_queue(found: Row) -> None:
    """How many wait in each store, then the labels, those together that wait for the same."""
    if not found["counts"]:
        out.print(
            "nothing waits: every label is what it should be, as far as the label server has said",
            soft_wrap=True,
        )
        return
    for store, rows in groupby(found["counts"], key=lambda row: row["store_code"]):
        out.print(f"[bold]store {escape(store)}[/]", highlight=False)
        for row in rows:
            out.print(f"  {_count(row)}", soft_wrap=True, highlight=False)
    for (store, state, says), labels in together(found["labels"], _reason).items():
        out.print()
        out.print(
            f"[bold]store {escape(store)}[/], {_STATES[state]}: {escape(says)}",
            soft_wrap=True,
            highlight=False,
        )
        columns = ("code", "title", "price", "since", "tries")
        out.print(Sheet(columns, map(_label_line, labels)))
    shown, every = len(found["labels"]), sum(row["labels"] for row in found["counts"])
    if every > shown:
        out.print(f"\n{every - shown} more: --limit, or --csv FILE for all", style="yellow")
    for hint in _hints(found["counts"]):
        out.print(hint, style="yellow", soft_wrap=True, highlight=False)


def print_inbox(deliveries: Sequence[Row], *, more: bool) -> None:
    """Deliveries, those together that have the same reason."""
    if not deliveries:
        out.print("nothing waits in the inbox, and nothing in it was refused")
        return
    groups = together(deliveries, lambda r: (r["source_store_id"], r["state"], r["topic"], why_delivery(r)))
    for number, ((shop, state, topic, because), rows) in enumerate(groups.items()):
        if number:
            out.print()
        says = f"[bold]{escape(shop)}[/], {state} {escape(printable(topic))}: {escape(printable(because))}"
        out.print(says, soft_wrap=True, highlight=False)
        lines = ([moment(r["received_at"]), r["webhook_id"], r["title"] or r["thing"]] for r in rows)
        out.print(Sheet(("received", "webhook", "about"), lines))
    if more:
        out.print("\nthere are more: --limit, or --csv FILE for all", style="yellow")


def together(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """The rows by this key, in the order in which it came first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _reason(row: Row) -> tuple[str, str, str]:
    return row["store_code"], row["state"], reason(row)


def reason(row: Row) -> str:
    """What labels wait for together, with the label server's answer; the time of a next try is each label's own."""
    said = what_it_said(row)
    return ("tried again soon" if row["why"] == "retry" else why(row)) + (
        f"\n{printable(said)}" if said else ""
    )


def why(row: Row) -> str:
    """Why a label waits, and until when."""
    return why_label(row, f"at {moment(row['until'])}" if row["until"] != "infinity" else "never")


def _label_line(row: Row) -> list[Any]:
    return [row["code"], title(row), price(row), moment(row["since"]), row["attempts"]]


def title(row: Row) -> str | None:
    """A variant's name: its product's title and, where it has one, its own."""
    names = (row["title"], row["variant_title"])
    return " / ".join(name for name in names if name and name != "Default Title") or None


def price(row: Row) -> str:
    """Old → new, as far as there are both."""
    before, after = row["price_before"], row["price_after"]
    if row["operation"] == "delete":
        return f"{before or '-'} → gone"
    if before is None:
        return f"new: {after}"
    return f"{before} → {after}" if before != after else f"{after}, other text"


def _none_is(state: LabelState, others: Sequence[Row]) -> str:
    """That none stands so, and how those stand that there are."""
    labels = dict.fromkeys((row["state"] for row in others), 0)
    for row in others:
        labels[row["state"]] += row["labels"]
    rest = ", ".join(f"{number} {_STATES[name]}" for name, number in labels.items())
    says = f"no label is {_STATES[state]}, but {rest}: esl-pipeline queue says why"
    if state == "failed" and "waiting" in labels:
        says += " (a refused label is tried a few times more before it counts as refused)"
    return says


def _count(row: Row) -> str:
    says = f"{row['labels']} {_STATES[row['state']]}"
    if row["until"]:
        says += f", which opens {moment(row['until'])}"
    return f"{says}, the oldest since {moment(row['oldest'])}"


def _hints(counts: Sequence[Row]) -> Iterator[str]:
    states = {row["state"] for row in counts}
    if states & {"failed", "dead"}:
        yield "once the reason is gone: esl-pipeline redrive [--store STORE] [--code CODE]"
    if "approval" in states:
        yield "to let them go on: esl-pipeline stores approve STORE"


def _label_cells(row: Row) -> dict[str, Any]:
    return {**row, "says": why(row), "answer": what_it_said(row)}


def _delivery_cells(row: Row) -> dict[str, Any]:
    return {**row, "says": why_delivery(row)}
