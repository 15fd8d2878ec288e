"""shelf_labels: which physical labels hang in the stores and what they are bound to, as the label servers list them.

A store is read once, whoever feeds it; each shop's partition tells of the shop's own products. The job `shelf` does it
for all shops every few minutes, in turns, in the background of the label servers' pace.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.model.shop import shop_key, shop_of
from esl_pipeline.orchestration import reports
from esl_pipeline.orchestration.at_work import is_at_work
from esl_pipeline.orchestration.evaluations import newest
from esl_pipeline.orchestration.failures import several_failed, stop_retries
from esl_pipeline.orchestration.forms import Form
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.orchestration.shelf_checks import ASSET, shelf_evaluations
from esl_pipeline.orchestration.shops import check_mapped, mapped_shop, shops
from esl_pipeline.stages.devices import DevicePass, read_devices, read_in_turn

_BACKGROUND = Call(is_background=True)
_FOR_EVER = 365 * 86_400.0


@dg.asset(
    name=ASSET,
    partitions_def=shops,
    owners=["team:esl"],
    group_name="labels",
    hooks={stop_retries},
    kinds={"hipoink", "postgres"},
    deps=[dg.AssetDep("hipoink_sync_results")],
    metadata={"dagster/table_name": "esl.devices"},
    description="""The physical labels of the shop's stores: what each is bound to, whether the label server reaches it,
through which AP, and its battery.

Read from the label server's own list, page by page, into esl.devices; what changes is told in esl.device_changes. The
job shelf does the same for all shops every few minutes, and tells of it here.""",
)
def shelf_labels(
    context: dg.AssetExecutionContext,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServers],
) -> dg.MaterializeResult[None]:
    """Reads the stores of one shop that nobody has read since the run was made."""
    buffer.check_version()
    started, key = time.monotonic(), shop_key(mapped_shop(context, buffer))
    stores = [
        {"store_code": store, "label_server": server}
        for store, server in sorted(
            {(m.store, m.label_server) for m in buffer.active_mappings(shop=shop_of(key))}
        )
    ]
    # Of a backfill all runs are made at once: where its shops feed one store, the first of them reads it.
    record = context.instance.get_run_record_by_id(context.run.run_id)
    since = record.create_timestamp if record else None
    passes = _read(buffer, label_server, stores, run_id=context.run.run_id, since=since)
    _tell(context, passes)
    found = buffer.shelf(shop=shop_of(key), limit=reports.PREVIEW_ROWS)
    report = _report(found) | reports.cost_report(started)
    return dg.MaterializeResult(metadata=reports.of_shop(report, key))


class Which(Form):
    """Which stores are read, and for how long."""

    shops: list[str] = Field(
        [],
        description="Shops by their partition, e.g. shopify:demo.myshopify.com, whose stores are read; none: every "
        "active one.",
    )
    minutes: float = Field(
        15, gt=0, description="No store is begun after so long: it comes first the next time."
    )


@dg.op(
    description="Which physical labels hang in each store, one store after the other at each label server."
)
def read_shelves(
    context: dg.OpExecutionContext,
    config: Which,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServers],
) -> None:
    """Every mapped store once; one that cannot be read delays no other. Fails at the end and names it."""
    buffer.check_version()
    check_mapped(config.shops, buffer)
    stores = [
        store
        for store in buffer.device_stores()
        if not config.shops or any(shop_key(shop) in config.shops for shop in store["shops"])
    ]
    passes = _read(buffer, label_server, stores, run_id=context.run.run_id, seconds=60 * config.minutes)
    read = {done.store_code for done in passes if done.is_read}
    for key in sorted(
        {shop_key(shop) for store in stores if store["store_code"] in read for shop in store["shops"]}
    ):
        stores = buffer.shelf(shop=shop_of(key), limit=reports.PREVIEW_ROWS)
        report = reports.of_shop(_report(stores), key)
        context.log_event(
            dg.AssetMaterialization(
                asset_key=ASSET, partition=key, description=report[reports.OUTCOME], metadata=report
            )
        )
        target = newest(context.instance, ASSET, key)
        for judged in shelf_evaluations(stores, key):
            context.log_event(judged.about(target))  # type: ignore[arg-type]  # it takes checks too, and does not say so
    _tell(context, passes)


@dg.job(
    description="Reads which physical labels hang in the stores. Started by the schedule shelf.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "10800", "dagster/max_retries": "0", "esl/role": "shelf"},
    executor_def=dg.in_process_executor,
)
def shelf() -> None:
    """The job of the physical labels."""
    read_shelves()


def shelf_schedule(minutes: int) -> dg.ScheduleDefinition:
    """The schedule of shelf; nothing is started while no store can be read, or the last one is still at work."""

    @dg.schedule(
        name="shelf",
        job=shelf,
        cron_schedule=f"*/{minutes} * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every few minutes; stores that a night has compared come first.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        label_server: dg.ResourceParam[LabelServers],
    ) -> dg.RunRequest | dg.SkipReason:
        if not label_server.settings.label_servers:
            return dg.SkipReason("no label server is set")
        if not buffer.device_stores():
            return dg.SkipReason("no store is mapped whose label server knows labels and is up")
        if is_at_work(context.instance, shelf.name):
            return dg.SkipReason("the last one is still at work")
        return dg.RunRequest(
            run_key=context.scheduled_execution_time.isoformat(),
            run_config=dg.RunConfig(ops={"read_shelves": Which(shops=[], minutes=minutes)}),
        )

    return schedule


def _read(
    buffer: Buffer,
    servers: LabelServers,
    stores: Sequence[Mapping[str, Any]],
    *,
    run_id: str,
    since: datetime | None = None,
    seconds: float = _FOR_EVER,
) -> list[DevicePass]:
    """Read these stores, at each label server by itself, one after the other there."""
    by_server: dict[str, list[str]] = {}
    for store in stores:
        by_server.setdefault(store["label_server"], []).append(store["store_code"])

    def at(name: str) -> list[DevicePass]:
        try:
            server = servers.of(name)
        except SettingsError as error:
            return [DevicePass(store, "failed", error.problems[0]) for store in by_server[name]]
        here = buffer.at(name)
        with server.client(here) as client:
            devices = Devices(client, _BACKGROUND)
            read = partial(_read_one, here, devices, run_id=run_id, since=since)
            return list(read_in_turn(by_server[name], read, seconds=seconds))

    with ThreadPoolExecutor(max_workers=len(by_server) or 1) as beside:
        return [done for part in beside.map(at, by_server) for done in part]


def _read_one(
    buffer: Buffer, devices: Devices, store: str, *, run_id: str, since: datetime | None
) -> DevicePass:
    return read_devices(buffer, devices, store=store, run_id=run_id, since=since)


def _tell(context: dg.OpExecutionContext | dg.AssetExecutionContext, passes: Sequence[DevicePass]) -> None:
    """Log what somebody should look at. Raises dg.Failure when a store could not be read."""
    for done in passes:
        if done.is_news:
            context.log.warning(
                f"{done.store_code}: its label server does not know the actions for physical labels: what hangs there "
                f"is not known; it is asked again in a minute, an hour, and then once a day ({done.reason})"
            )
        elif done.outcome in ("busy", "down", "elsewhere", "not_known"):
            context.log.info(f"{done.store_code}: not read: {done.reason or done.outcome}")
        if done.complaints:
            context.log.warning(f"{done.store_code}: {'; '.join(done.complaints)}")
    if failed := {done.store_code: dg.Failure(done.reason) for done in passes if done.has_failed}:
        raise several_failed(f"the labels of {len(failed)} of {len(passes)} stores could not be read", failed)


def _report(stores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a shop's partition says: numbers, and what they are made of."""
    total = {
        name: sum(store[name] for store in stores)
        for name in ("labels", "online", "offline", "low", "products", "hanging", "stale")
    }
    report: dict[str, Any] = {
        reports.OUTCOME: f"{total['labels']} labels, {total['offline']} offline, {total['low']} of low battery",
        "labels": total["labels"],
        "labels online": total["online"],
        "labels offline": total["offline"],
        "labels of low battery": total["low"],
        "labels not known to be right": total["stale"],
        "stale on shelf (s)": max((store["stale_seconds"] for store in stores), default=0.0),
        "stale on shelf, price rises (s)": max(
            (store["stale_rise_seconds"] for store in stores), default=0.0
        ),
        "products": total["products"],
        "products without a label": _count(stores, "without_label"),
        "labels in the stores": total["hanging"],
        "labels bound to nothing": _count(stores, "unbound"),
        "labels of no known product": _count(stores, "strangers") + _count(stores, "removed"),
        "stores": reports.table([_store_row(store) for store in stores], _STORE_COLUMNS),
        "how far prices have come": reports.table([_rungs(store) for store in stores], ["store", *_RUNGS]),
    }
    if by_ap := [{"store": s["store_code"], **row} for s in stores for row in s["offline_by_ap"]]:
        report["offline by AP"] = reports.table(by_ap, ["store", "ap_code", "offline", "labels"])
    for kind, (title, columns) in _KINDS.items():
        rows = [
            {"store": store["store_code"], **row}
            for store in stores
            if kind in store["kinds"]
            for row in store["kinds"][kind]["first"]
        ]
        if rows:
            report[title] = reports.table(rows, ["store", *columns])
    return report


_RUNGS = ["wanted", "accepted", "stored", "triggered", "reachable", "refreshed", "seen"]
# Of each kind the first ones are told, and these columns of them.
_KINDS = {
    "late": (
        "should show something else",
        ["esl_code", "product_code", "price", "hindrance", "stale_seconds", "is_rise"],
    ),
    "low": ("low batteries", ["esl_code", "product_code", "battery_mv"]),
    "dying": ("batteries low within 30 days", ["esl_code", "product_code", "battery_mv", "low_at"]),
    "unbound": ("bound to nothing", ["esl_code", "ap_code"]),
    "strangers": ("bound to a product of no shop", ["esl_code", "product_code"]),
    "removed": ("bound to a removed product", ["esl_code", "product_code"]),
    "blanked": ("bound to a blanked product", ["esl_code", "product_code"]),
    "without_label": ("no label", ["product_code", "price"]),
}
_STORE_COLUMNS = [
    *("store", "read at", "state", "labels", "pages", "changed", "gone", "left out", "counted online"),
    *("counted offline", "reason"),
]


def _count(stores: Sequence[Mapping[str, Any]], kind: str) -> int:
    return sum(store["kinds"].get(kind, {"count": 0})["count"] for store in stores)


def _rungs(store: Mapping[str, Any]) -> dict[str, Any]:
    counts = store["rungs"]
    return {"store": store["store_code"]} | {name: counts[str(n)] for n, name in enumerate(_RUNGS, 1)}


def _store_row(store: Mapping[str, Any]) -> dict[str, Any]:
    newest = store["pass"] or {}
    return {
        "store": store["store_code"],
        "read at": store["read_at"],
        "state": newest.get("state", "not read yet"),
        "labels": newest.get("devices"),
        "left out": newest.get("malformed"),
        "counted online": newest.get("counted_online"),
        "counted offline": newest.get("counted_offline"),
        "reason": newest.get("error"),
        **{name: newest.get(name) for name in ("pages", "changed", "gone")},
    }
