"""What operators did to stores, as `status` and `stores list` say it."""

from collections.abc import Iterator, Mapping
from typing import Any

from esl_pipeline.commands.times import moment

_LEAVING = {"keep": "stay", "blank": "become blank", "remove": "are removed"}


def leaving(store: str, row: Mapping[str, Any]) -> Iterator[str]:
    """Of a mapping, or of a store's state: that it is being removed."""
    if how := row.get("leaving"):
        yield f"store {store}: is being removed, its labels {_LEAVING[how]}"


def standing(row: Mapping[str, Any]) -> Iterator[str]:
    """Of a store's state (Buffer.status): what people have decided that holds now."""
    store, rejected = row["hipoink_store_code"], row["queue"]["rejected"]
    yield from leaving(store, row)
    if rejected:
        yield f"store {store}: {rejected} changes were rejected: esl-pipeline changes list --store {store}"
    if pause := row["pause"]:
        until = moment(pause["until"]) if pause["until"] else f"esl-pipeline stores resume {store}"
        yield f"store {store}: paused by {pause['by']} since {moment(pause['since'])} until {until}: {pause['reason']}"
