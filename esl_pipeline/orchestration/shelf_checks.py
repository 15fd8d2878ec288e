"""Asset checks of the physical labels, per shop: whether they are reached, powered, bound, and show what they should.

What they say of a price is what the ladder of evidence says (functions/ladder.sql): nobody calls a price shown.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.checks import definition, result
from esl_pipeline.orchestration.evaluations import Judged
from esl_pipeline.printable import printable

ASSET = "shelf_labels"
# A label that is alone behind its access point says nothing of that.
_LABELS_OF_AN_AP = 3
_NAMED = 5

Row = Mapping[str, Any]


def labels_reachable(stores: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether the label servers reach the shop's labels, and the labels were read lately.

    An access point none of whose labels is reached is named, whatever the share.
    """
    says = []
    for store in stores:
        name, limits = store["store_code"], store["limits"]
        if store["knows_devices"] is False:
            continue
        if not store["is_read"]:
            read = f"since {store['read_at'][:16]}Z" if store["read_at"] else "yet"
            reason = (store["pass"] or {}).get("error")
            because = f" ({printable(reason)})" if reason else ""
            says.append(f"{name}: its labels were not read {read}{because}")
            continue
        dead = [
            ap
            for ap in store["offline_by_ap"]
            if ap["offline"] == ap["labels"] >= _LABELS_OF_AN_AP and ap["ap_code"] is not None
        ]
        says += [
            f"{name}: all {ap['labels']} labels of {printable(ap['ap_code'])} are offline" for ap in dead
        ]
        if _share(store["offline"], store["labels"]) > limits["max_unreachable_pct"]:
            says.append(
                f"{name}: {store['offline']} of {store['labels']} labels are offline ({_named(store, 'offline')})"
            )
    unknown = [store["store_code"] for store in stores if store["knows_devices"] is False]
    right = (
        f"not known: the label server of {', '.join(unknown)} does not tell"
        if unknown
        else "labels are reached"
    )
    return result(
        passed=not says,
        says="; ".join(says) or right,
        stores=[_row(store, "labels", "online", "offline", "read_at") for store in stores],
        numbers={"labels offline": _sum(stores, "offline")},
    )


def batteries(stores: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether more of the shop's labels have a low battery than its policy allows; which will have soon is told."""
    says = [
        f"{store['store_code']}: {store['low']} of {store['labels']} batteries are below "
        f"{store['limits']['low_battery_mv']} mV ({_named(store, 'low')})"
        for store in stores
        if _share(store["low"], store["labels"]) > store["limits"]["max_low_battery_pct"]
    ]
    dying = [
        f"{store['store_code']}: {_count(store, 'dying')} more will be within 30 days ({_named(store, 'dying')})"
        for store in stores
        if _count(store, "dying")
    ]
    return result(
        passed=not says,
        says="; ".join(says + dying) or "no battery is low",
        stores=[
            _row(store, "labels", "low") | {"low within 30 days": _count(store, "dying")} for store in stores
        ],
        numbers={
            "labels of low battery": _sum(stores, "low"),
            "batteries low within 30 days": sum(_count(store, "dying") for store in stores),
        },
    )


_LOOSE = {
    "unbound": "bound to nothing",
    "removed": "bound to a product that was removed",
    "strangers": "bound to a product of no shop",
}


def bindings(stores: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether more labels of the stores hang without a product, or more products have no label, than policies allow."""
    says = []
    for store in stores:
        name, limits = store["store_code"], store["limits"]
        loose = sum(_count(store, kind) for kind in _LOOSE)
        if _share(loose, store["hanging"]) > limits["max_unbound_pct"]:
            says += [
                f"{name}: {_count(store, kind)} of {store['hanging']} labels are {what} ({_named(store, kind)})"
                for kind, what in _LOOSE.items()
                if _count(store, kind)
            ]
        if _share(_count(store, "without_label"), store["products"]) > limits["max_without_label_pct"]:
            says.append(
                f"{name}: {_count(store, 'without_label')} of {store['products']} products have no label "
                f"({_named(store, 'without_label', 'product_code')})"
            )
    kinds = [*_LOOSE, "blanked", "without_label"]
    return result(
        passed=not says,
        says="; ".join(says) or "labels and products are bound as expected",
        stores=[
            _row(store, "hanging", "products") | {kind: _count(store, kind) for kind in kinds}
            for store in stores
        ],
        numbers={
            "labels bound to nothing": sum(_count(store, "unbound") for store in stores),
            "labels bound to a blanked product": sum(_count(store, "blanked") for store in stores),
            "products without a label": sum(_count(store, "without_label") for store in stores),
        },
    )


def shelf_is_fresh(stores: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether labels should show something else for longer than refresh_minutes, as far as is known.

    A label is counted until there is evidence that it was refreshed; where the label server cannot give any, until it
    is reached and was told to refresh. One price that is higher than its label says fails the check.
    """
    says = []
    for store in stores:
        if store["late_rises"]:
            says.append(
                f"{store['store_code']}: {store['late_rises']} labels say less than the price is ({_late(store)})"
            )
        elif _share(store["late"], store["labels"]) > store["limits"]["max_late_pct"]:
            says.append(
                f"{store['store_code']}: {store['late']} of {store['labels']} labels should show something else "
                f"({_late(store)})"
            )
    return result(
        passed=not says,
        says="; ".join(says) or "no label is known to be late",
        stores=[
            _row(store, "labels", "stale", "late", "late_rises")
            | {
                "refreshed": store["label_rungs"]["6"],
                "seen": store["label_rungs"]["7"],
                "row moved, no price proven": _count(store, "unproven"),
            }
            for store in stores
        ],
        numbers={
            "labels late": _sum(stores, "late"),
            "labels late, price rises": _sum(stores, "late_rises"),
            "stale on shelf (s)": max((store["stale_seconds"] for store in stores), default=0.0),
            "stale on shelf, price rises (s)": max(
                (store["stale_rise_seconds"] for store in stores), default=0.0
            ),
        },
    )


CHECKS = {check.__name__: check for check in (labels_reachable, batteries, bindings, shelf_is_fresh)}


def shelf_evaluations(stores: Sequence[Row], key: str) -> list[Judged]:
    """All of them, for runs that are not of the asset itself."""
    return [Judged.of(ASSET, name, key, check(stores)) for name, check in CHECKS.items()]


def shelf_checks() -> list[dg.AssetChecksDefinition]:
    """All of them, for runs of the asset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # as checks.asset_checks
        return [definition(ASSET, check, _judge(check)) for check in CHECKS.values()]


def _judge(
    check: Callable[[Sequence[Row]], dg.AssetCheckResult],
) -> Callable[[Buffer, str], dg.AssetCheckResult]:
    return lambda buffer, key: check(buffer.shelf(shop=shop_of(key)))


def _late(store: Row) -> str:
    kinds = store["kinds"].get("late", {"first": []})["first"][:_NAMED]
    return ", ".join(f"{printable(row['esl_code'])} {_must(row)}: {row['hindrance']}" for row in kinds)


def _must(row: Row) -> str:
    return "" if row["price"] is None else f"must show {row['price']}"


def _named(store: Row, kind: str, column: str = "esl_code") -> str:
    """The first of a kind, and how many more there are."""
    rows = store["kinds"].get(kind, {"first": []})["first"][:_NAMED]
    more = _count(store, kind) - len(rows)
    return ", ".join(printable(str(row[column])) for row in rows) + (f" and {more} more" if more else "")


def _count(store: Row, kind: str) -> int:
    return int(store["kinds"].get(kind, {"count": 0})["count"])


def _share(part: int, whole: int) -> float:
    return 100 * part / max(1, whole)


def _sum(stores: Sequence[Row], name: str) -> int:
    return sum(int(store[name]) for store in stores)


def _row(store: Row, *names: str) -> dict[str, Any]:
    return {"store": store["store_code"]} | {name.replace("_", " "): store[name] for name in names}
