"""Asset checks, per shop: what is held back, collides or waits for somebody's word; whether the labels are right.

Each has one severity, whatever it finds: Dagster's graph takes the colour of a failed check from the shop that was
evaluated last. label_accuracy is an error, the others warn.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.label_server import called
from esl_pipeline.model.shop import Shop, shop_key, shop_of
from esl_pipeline.orchestration import alert_check, reports
from esl_pipeline.orchestration.evaluations import Judged, of_shop
from esl_pipeline.orchestration.failures import reason_of
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import products_asset_name, shops
from esl_pipeline.printable import printable
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.registry import source_of
from esl_pipeline.sources.source import Source

VARIANTS, RESULTS = "validated_variants", "hipoink_sync_results"
# What passes in a price inspection (NIST), and what we want.
_FLOOR_PCT, _TARGET_PCT = 98.0, 99.9
# Longer than a nightly run takes to drain, shorter than anybody wants to see an old price.
_LONG = timedelta(minutes=15)
# A bad delivery or two is an accident, so many and not one good between are a wrong name, secret or mapping.
_REFUSED_IN_A_ROW = 5

Row = Mapping[str, Any]
# What a check says of a shop (its key), from the buffer.
Judge = Callable[[Buffer, str], dg.AssetCheckResult]


def quarantine_share(mappings: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether a store holds back a larger share of its variants than its policy expects."""
    stores = [
        _store(mapping) | {"held back": mapping["held"], "share": _share(mapping)} for mapping in mappings
    ]
    over = [mapping for mapping in mappings if _share(mapping) > mapping["max_held_share_pct"]]
    return result(
        passed=not over,
        says="; ".join(
            f"{m['hipoink_store_code']} holds back {_share(m)} % of its variants, see `esl-pipeline findings`"
            for m in over
        )
        or "the share of variants held back is as expected",
        stores=stores,
        numbers={
            "held back": sum(mapping["held"] for mapping in mappings),
            "held back (%)": max((_share(mapping) for mapping in mappings), default=0.0),
        },
    )


def codes_are_unique(mappings: Sequence[Row]) -> dg.AssetCheckResult:
    """Whether variants are held back because they share a code, whenever they came."""
    stores = [_store(mapping) | {"duplicates": mapping["duplicates"]} for mapping in mappings]
    count = sum(mapping["duplicates"] for mapping in mappings)
    return result(
        passed=count == 0,
        says=f"{count} variants share their code with another: see the findings duplicate_code"
        if count
        else "no variants share a code",
        stores=stores,
        numbers={"duplicates": count},
    )


def preview(mappings: Sequence[Row]) -> dg.AssetCheckResult:
    """What would change on the labels of stores in dry run, and drastic changes that wait for approval."""
    stores, changes = [], []
    for mapping in mappings:
        counts = {key: mapping[key] for key in ("new", "changed", "removed", "guarded")}
        stores.append(_store(mapping) | {"dry run": mapping["is_dry_run"]} | counts)
        changes += [
            change for change in mapping["changes"] if mapping["is_dry_run"] or change["state"] == "guarded"
        ]
    dry = sum(m["new"] + m["changed"] + m["removed"] for m in mappings if m["is_dry_run"])
    guarded = sum(mapping["guarded"] for mapping in mappings)
    says = [f"{dry} labels would change: `esl-pipeline preview`, then end the dry run"] if dry else []
    says += [
        f"{m['guarded']} drastic changes wait: `esl-pipeline changes list --store {m['hipoink_store_code']}`"
        for m in mappings
        if m["guarded"]
    ]
    numbers: dict[str, Any] = {"labels that would change": dry, "drastic changes that wait": guarded}
    if changes:
        frame = pd.DataFrame([change | {"difference": _difference(change)} for change in changes])
        columns = ["store_code", "code", "title", "operation", "state", "difference"]
        numbers["changes"] = reports.preview(frame, columns)
    return result(
        passed=not says,
        says="; ".join(says) or "nothing waits for approval",
        stores=stores,
        numbers=numbers,
    )


def label_accuracy(mappings: Sequence[Row]) -> dg.AssetCheckResult:
    """Labels that the label server has accepted as the source has them now, of all that should be there or gone.

    Accepted is not shown: what hangs on the shelf, the checks of shelf_labels say. What the last comparison with the
    label server's list gave up is wrong; what it could not judge is counted. Removed labels that wait
    (unbind_grace_hours), and rises that wait for their window, are neither right nor wrong, and named.
    """
    rises = sum(mapping["window"]["labels"] for mapping in mappings)
    wanted = sum(mapping["publishable"] + mapping["unsettled"] for mapping in mappings) - rises
    right = sum(mapping["accurate"] for mapping in mappings)
    share = 100 * right / wanted if wanted else 100.0
    troubles = [f"{m['hipoink_store_code']}: {m['problem']}" for m in mappings if m["problem"]]
    compared = {m["hipoink_store_code"]: m["comparison"] for m in mappings if m["comparison"]}
    doubts = [
        f"{store}: the list of {last['at'][:16]}Z was not whole ({last['reason']})"
        if not last["complete"]
        else f"{store}: {last['given_up']} labels at the label server stay wrong however often they are pushed"
        for store, last in compared.items()
        if last["given_up"] or not last["complete"]
    ]
    columns = ("hipoink_store_code", "publishable", "accurate", "unsettled", "problem")
    stores = [
        {key: mapping[key] for key in columns}
        | {"removed, waiting": mapping["grace"]["places"], "rises, waiting": mapping["window"]["labels"]}
        for mapping in mappings
    ]
    low = f", less than the {_FLOOR_PCT:.0f} % that an inspection asks for" if share < _FLOOR_PCT else ""
    return result(
        severity=dg.AssetCheckSeverity.ERROR,
        passed=share >= _TARGET_PCT and not troubles and not doubts,
        says="; ".join(
            [
                *troubles,
                *doubts,
                f"{right} of {wanted} labels are accepted as the source has them now ({share:.3f} %{low})",
                *(_waits(mapping) for mapping in mappings if mapping["grace"]["places"]),
                *(_waits_for_window(mapping) for mapping in mappings if mapping["window"]["labels"]),
            ]
        ),
        stores=stores,
        numbers={
            "label accuracy (%)": round(share, 3),
            "labels wrong or waiting": wanted - right,
            "rises that wait for their window": rises,
            "removed labels that wait": sum(mapping["grace"]["places"] for mapping in mappings),
            "labels that the last comparison skipped": sum(last["skipped"] for last in compared.values()),
        },
    )


def _waits(mapping: Row) -> str:
    grace = mapping["grace"]
    count = grace["places"]
    labels = "1 removed label waits" if count == 1 else f"{count} removed labels wait"
    until = f" until {grace['next_at'][:16]}Z" if grace["next_at"] else ""
    return (
        f"{mapping['hipoink_store_code']}: {labels}{until} (physical labels bound to such: {grace['bound']})"
    )


def _waits_for_window(mapping: Row) -> str:
    window = mapping["window"]
    rises = "1 rise waits" if window["labels"] == 1 else f"{window['labels']} rises wait"
    return f"{mapping['hipoink_store_code']}: {rises} for the raise_window until {window['until'][:16]}Z"


def webhooks_arrive(status: Row, shop: str, *, hours: float, now: datetime) -> dg.AssetCheckResult:
    """Whether a shop that normally sends webhooks has sent one lately, one that could be used and did not end it."""
    stores = [row for row in status["stores"] if shop_key(row) == shop]
    rows = [row for row in status["shops"] if shop_key(row) == shop]
    last = [datetime.fromisoformat(row["last_received_at"]) for row in rows]
    off = sorted({row["switched_off"] for row in stores if row["switched_off"]})
    is_active = any(row["is_active"] for row in stores)
    says = []
    if off:
        says.append(
            f"switched off by {', '.join(off)}: nothing is pushed. `esl-pipeline stores set` with --active, or with "
            "--inactive if that is right"
        )
    if is_active and last and now - last[0] > timedelta(hours=hours):
        says.append(f"no webhook since {last[0]:%Y-%m-%d %H:%M}Z: is the subscription still there?")
    says += [
        f"none of the last {row['refused_in_a_row']} webhooks could be used: {row['last_refusal']}"
        for row in rows
        if is_active and row["refused_in_a_row"] >= _REFUSED_IN_A_ROW
    ]
    return dg.AssetCheckResult(
        passed=not says,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(says) or ("webhooks arrive" if last else "no webhook has come yet"),
    )


def shop_is_read(problem: str | None, *, unread: str | None = None) -> dg.AssetCheckResult:
    """Whether the shop can be read, so that what its webhooks miss comes all the same; evaluated by catch_up too.

    problem: why it cannot. unread: which of its files were not read, and why.
    """
    says = [f"cannot be read, so that what nobody tells stays unknown: {problem}"] if problem else []
    says += [unread] if unread else []
    return dg.AssetCheckResult(
        passed=not says,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(says) or "nothing stands in the way of reading",
    )


def unread_files(buffer: Buffer, shop: Shop, sources: Sources) -> str | None:
    """Which files of a shop were refused or wait, and why; None where none are, or it has no files."""
    if not (sources.opens(shop) and sources.of(shop).is_polled):
        return None
    files = [file for file in buffer.files_list(shop=shop) if file["is_open"]]
    says = "; ".join(f"{printable(file['name'])} is {file['state']}: {file['reason']}" for file in files[:5])
    return f"{says}; see `esl-pipeline files list`" if says else None


def backlog(status: Row, shop: str, *, servers: Collection[str], now: datetime) -> dg.AssetCheckResult:
    """How many webhooks and labels of a shop wait, how long the oldest has, and what stands in the way.

    servers: the label servers that the settings name.
    """

    def seconds(since: str | None) -> float:
        return round((now - datetime.fromisoformat(since)).total_seconds(), 1) if since else 0.0

    inbox = [row for row in status["shops"] if shop_key(row) == shop]
    stores = [row for row in status["stores"] if shop_key(row) == shop]
    queues = [(row["hipoink_store_code"], row["queue"]) for row in stores]
    at = {row["label_server"] for row in stores}
    oldest_event = max((seconds(row["oldest_waiting"]) for row in inbox), default=0.0)
    # What somebody has told not to go out is not late.
    going = [row["queue"] for row in stores if not _rests(row)]
    oldest_label = max((seconds(queue["oldest"]) for queue in going), default=0.0)
    given_up = sum(queue["failed"] + queue["dead"] for _, queue in queues)
    says = [
        f"{called(outage['server'], servers)} is down since {outage['since']}: {outage['reason']}"
        for outage in status["outages"]
        if outage["server"] in at
    ]
    says += [
        f"labels of {row['hipoink_store_code']} wait: the settings name no label server {row['label_server']}"
        for row in stores
        if row["is_active"] and row["label_server"] not in servers
    ]
    if max(oldest_event, oldest_label) > _LONG.total_seconds():
        says.append(f"the oldest change waits for {max(oldest_event, oldest_label):.0f} s")
    says += [
        f"{row['contested']} products or stock items are claimed by {', '.join(row['contested_by'])} as well: "
        "`esl-pipeline status`"
        for row in inbox
        if row["contested"]
    ]
    if given_up:
        says.append(
            f"{given_up} labels were refused or given up: `esl-pipeline queue --state failed`, then `esl-pipeline "
            "redrive`"
        )
    resting = [
        f"{row['queue']['waiting']} labels of {row['hipoink_store_code']} wait: paused by {row['pause']['by']}, "
        f"{row['pause']['reason']}"
        for row in stores
        if row["pause"] and row["queue"]["waiting"]
    ]
    return result(
        passed=not says,
        says="; ".join(says + resting) or "nothing waits for long",
        stores=[
            {"store": store}
            | {
                key: queue[key]
                for key in ("waiting", "window", "guarded", "rejected", "failed", "dead", "last_error")
            }
            for store, queue in queues
        ],
        numbers={
            "webhooks waiting": sum(row["waiting"] for row in inbox),
            "oldest webhook (s)": oldest_event,
            "labels waiting": sum(queue["waiting"] for _, queue in queues),
            "oldest label (s)": oldest_label,
            "rises that wait for their window": sum(queue["window"] for _, queue in queues),
            "labels given up": given_up,
        },
    )


def _rests(store: Row) -> bool:
    """Whether nothing is to go out to a store (of Buffer.status), as somebody has decided."""
    return bool(store["pause"] or store["is_dry_run"] or not (store["is_active"] or store["leaving"]))


VARIANT_CHECKS = {check.__name__: check for check in (quarantine_share, codes_are_unique, preview)}


def connection_check(system: str) -> str:
    """The name of the check that asks a source's shops whether they are still connected (connection.py)."""
    return f"{system}_connection"


def judged_elsewhere(key: str) -> list[str]:
    """The checks of a shop's products that ask the shop itself: a drain repeats what they said last."""
    return [shop_is_read.__name__, connection_check(shop_of(key)["source_system"])]


def evaluations(buffer: Buffer, keys: Sequence[str], *, say: Callable[[str], None]) -> list[Judged]:
    """The checks of what changes all day, for runs that are not of the asset itself.

    Four calls for all shops (their keys). What fails is said, and its checks are left out.
    """
    shops, now, hours = [shop_of(key) for key in keys], datetime.now(UTC), load_settings().esl_silence_hours
    found: list[Judged] = []

    def judge(ask: Callable[[], Any], made: Mapping[str, Callable[[Any, str], dg.AssetCheckResult]]) -> None:
        try:
            answer = ask()
            for name, of in made.items():
                found.extend(
                    Judged.of(_asset_of(name, key), name, key, of(answer, key))
                    for key in keys
                    if name != webhooks_arrive.__name__ or _sends_webhooks(key)
                )
        except Exception as error:
            say(f"the checks {', '.join(made)} could not be made: {reason_of(error)}")

    judge(
        lambda: buffer.preview(shops=shops, limit=reports.PREVIEW_ROWS),
        {name: partial(_of_mappings, check) for name, check in VARIANT_CHECKS.items()},
    )
    judge(
        lambda: buffer.accuracy(shops=shops),
        {label_accuracy.__name__: partial(_of_mappings, label_accuracy)},
    )
    judge(
        lambda: buffer.status(shops=shops),
        {
            backlog.__name__: partial(backlog, servers=buffer.label_servers, now=now),
            webhooks_arrive.__name__: partial(webhooks_arrive, hours=hours, now=now),
        },
    )
    judge(lambda: buffer.alert_list(is_open=True), {alert_check.NAME: alert_check.judged})
    return found


def _asset_of(name: str, key: str) -> str:
    if name in VARIANT_CHECKS:
        return VARIANTS
    return products_asset_name(key) if name == webhooks_arrive.__name__ else RESULTS


def _sends_webhooks(key: str) -> bool:
    source = source_of(shop_of(key)["source_system"])
    return source is not None and source.sends_webhooks()


def _of_mappings(
    check: Callable[[Sequence[Row]], dg.AssetCheckResult], mappings: Sequence[Row], key: str
) -> dg.AssetCheckResult:
    return check([mapping for mapping in mappings if shop_key(mapping) == key])


def _readable(buffer: Buffer, shop: str) -> dg.AssetCheckResult:
    sources = Sources(load_settings())
    unread = unread_files(buffer, shop_of(shop), sources)
    return shop_is_read(sources.why_not_read(shop_of(shop)), unread=unread)


def _variants(check: Callable[[Sequence[Row]], dg.AssetCheckResult]) -> Judge:
    return lambda buffer, shop: check(buffer.preview(shop=shop_of(shop), limit=reports.PREVIEW_ROWS))


def _accuracy(buffer: Buffer, shop: str) -> dg.AssetCheckResult:
    return label_accuracy(buffer.accuracy(shop=shop_of(shop)))


def _backlog(buffer: Buffer, shop: str) -> dg.AssetCheckResult:
    status = buffer.status(shops=[shop_of(shop)])
    return backlog(status, shop, servers=buffer.label_servers, now=datetime.now(UTC))


def _silence(buffer: Buffer, shop: str) -> dg.AssetCheckResult:
    hours = load_settings().esl_silence_hours
    return webhooks_arrive(buffer.status(shops=[shop_of(shop)]), shop, hours=hours, now=datetime.now(UTC))


def definition(asset: str, check: Callable[..., Any], judge: Judge) -> dg.AssetChecksDefinition:
    """A check as an asset check of its own, per shop."""

    @dg.asset_check(asset=asset, name=check.__name__, description=check.__doc__, partitions_def=shops)
    def evaluate(
        context: dg.AssetCheckExecutionContext, buffer: dg.ResourceParam[Buffer]
    ) -> dg.AssetCheckResult:
        return of_shop(judge(buffer, context.partition_key), context.partition_key)

    return evaluate


def asset_checks(sources: Sequence[type[Source[Any]]]) -> list[dg.AssetChecksDefinition]:
    """All of them, for the products of these sources."""
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster 1.13, which pyproject.toml stays with.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            *(definition(VARIANTS, check, _variants(check)) for check in VARIANT_CHECKS.values()),
            definition(RESULTS, label_accuracy, _accuracy),
            definition(RESULTS, backlog, _backlog),
            *(
                definition(source.products_asset(), webhooks_arrive, _silence)
                for source in sources
                if source.sends_webhooks()
            ),
            *(definition(source.products_asset(), shop_is_read, _readable) for source in sources),
        ]


def _difference(change: Row) -> str:
    found = differences(change["before"], change["after"])
    return "; ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in found.items() if name != "pc")


def _share(mapping: Row) -> float:
    held = int(mapping["held"])
    return round(100 * held / max(1, held + int(mapping["published"])), 1)


def _store(mapping: Row) -> dict[str, Any]:
    return {"store": mapping["hipoink_store_code"], "published": mapping["published"]}


def result(
    *,
    passed: bool,
    says: str,
    stores: list[dict[str, Any]],
    numbers: dict[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> dg.AssetCheckResult:
    """What a check says, with a row for each store and numbers."""
    frame = pd.DataFrame(stores)
    return dg.AssetCheckResult(
        passed=passed,
        severity=severity,
        description=says,
        metadata=numbers | {"stores": reports.preview(frame, list(frame.columns))},
    )
