"""What there is to see of the devices: the picture on each, beside what the server holds for it (places.place)."""

from collections.abc import Iterator
from typing import Any

from esl_pipeline.sandbox.label_server.devices import Fleet
from esl_pipeline.sandbox.label_server.places import place


def places(fleet: Fleet, store: str | None = None) -> Iterator[dict[str, Any]]:
    """Every device of a store, or of all, in the order of their hanging."""
    rows = fleet.look("select * from place where ? is null or store = ? order by store, id", [store, store])
    now = fleet.now()
    return (place(row, now) for row in rows)


def latest(fleet: Fleet, search: str, limit: int) -> list[dict[str, Any]]:
    """The devices that changed last whose product, code or access point contains `search`; no spare ones."""
    rows = fleet.look(
        "select * from place where (product is not null or shown is not null)"
        " and (? = '' or is_found(?, search, esl, ap, shown)) order by change desc limit ?",
        [search, search, limit],
    )
    now = fleet.now()
    return [place(row, now) for row in rows]


def totals(fleet: Fleet, search: str) -> list[dict[str, Any]]:
    """How many hang, match and wait, by store."""
    rows = fleet.look(
        "select store, count(*) as labels, sum(waits) as waiting,"
        " sum(? = '' or is_found(?, search, esl, ap, shown)) as matching"
        " from place where product is not null or shown is not null group by store",
        [search, search],
    )
    return [dict(row) for row in rows]


def shown(fleet: Fleet) -> list[Any]:
    """What is on the shelf: store, code and record. Of a product's labels one that is not as held comes last."""
    return fleet.look(
        "select store, coalesce(shown ->> '$.pc', product) as code, shown as record from place"
        " where shown is not null and not fallen order by shown is not held, id"
    )
