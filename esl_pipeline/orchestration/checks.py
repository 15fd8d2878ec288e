"""Asset checks, per shop: what is held back, collides or waits for somebody's word; whether the labels are right."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.label_server import called
from esl_pipeline.model.shop import Shop, shop_key, shop_of
from esl_pipeline.orchestration import reports
from esl_pipeline.orchestration.failures import reason_of
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import shops
from esl_pipeline.printable import printable
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.source import Source

VARIANTS, RESULTS = "validated_variants", "hipoink_sync_results"
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
    return _result(
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
    return _result(
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
        f"{m['guarded']} drastic changes wait: `esl-pipeline stores approve {m['hipoink_store_code']}`"
        for m in mappings
        if m["guarded"]
    ]
    numbers: dict[str, Any] = {"labels that would change": dry, "drastic changes that wait": guarded}
    if changes:
        frame = pd.DataFrame([change | {"difference": _difference(change)} for change in changes])
        columns = ["store_code", "code", "title", "operation", "state", "difference"]
        numbers["changes"] = reports.preview(frame, columns)
    return _result(
        passed=not says,
        says="; ".join(says) or "nothing waits for approval",
        stores=stores,
        numbers=numbers,
    )


def label_accuracy(mappings: Sequence[Row]) -> dg.AssetCheckResult:
    """Labels whose last accepted content equals the source now, of all that should be on the shelf or gone from it.

    What the last comparison with the label server's list gave up is wrong; what it could not judge is counted.
    """
    wanted = sum(mapping["publishable"] + mapping["unsettled"] for mapping in mappings)
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
    stores = [{key: mapping[key] for key in columns} for mapping in mappings]
    return _result(
        passed=share >= 99.9 and not troubles and not doubts,
        severity=dg.AssetCheckSeverity.WARN if share >= 98 and not troubles else dg.AssetCheckSeverity.ERROR,
        says="; ".join(
            [*troubles, *doubts, f"{right} of {wanted} labels are what the source says ({share:.3f} %)"]
        ),
        stores=stores,
        numbers={
            "label accuracy (%)": round(share, 3),
            "labels wrong or waiting": wanted - right,
            "labels that the last comparison skipped": sum(last["skipped"] for last in compared.values()),
        },
    )


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
    oldest_label = max((seconds(queue["oldest"]) for _, queue in queues), default=0.0)
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
            f"{given_up} labels were refused or given up: `esl-pipeline status`, then `esl-pipeline redrive`"
        )
    return _result(
        passed=not says,
        says="; ".join(says) or "nothing waits for long",
        stores=[
            {"store": store}
            | {key: queue[key] for key in ("waiting", "guarded", "failed", "dead", "last_error")}
            for store, queue in queues
        ],
        numbers={
            "webhooks waiting": sum(row["waiting"] for row in inbox),
            "oldest webhook (s)": oldest_event,
            "labels waiting": sum(queue["waiting"] for _, queue in queues),
            "oldest label (s)": oldest_label,
            "labels given up": given_up,
        },
    )


VARIANT_CHECKS = {check.__name__: check for check in (quarantine_share, codes_are_unique, preview)}


def evaluations(
    buffer: Buffer, keys: Sequence[str], *, say: Callable[[str], None]
) -> list[dg.AssetCheckEvaluation]:
    """The checks of what changes all day as events, for runs that are not of the asset itself.

    Three calls for all shops (their keys). What fails is said, and its checks are left out.
    """
    shops, now = [shop_of(key) for key in keys], datetime.now(UTC)
    found: list[dg.AssetCheckEvaluation] = []

    def judge(
        asset: str,
        names: Iterable[str],
        ask: Callable[[], Any],
        of: Callable[[Any, str, str], dg.AssetCheckResult],
    ) -> None:
        try:
            answer = ask()
            for name in names:
                found.extend(
                    as_event(of(answer, key, name), asset=asset, name=name, shop=key) for key in keys
                )
        except Exception as error:
            say(f"the checks {', '.join(names)} could not be made: {reason_of(error)}")

    judge(
        VARIANTS,
        VARIANT_CHECKS,
        lambda: buffer.preview(shops=shops, limit=reports.PREVIEW_ROWS),
        lambda mappings, key, name: VARIANT_CHECKS[name](_of(key, mappings)),
    )
    judge(
        RESULTS,
        [label_accuracy.__name__],
        lambda: buffer.accuracy(shops=shops),
        lambda mappings, key, _: label_accuracy(_of(key, mappings)),
    )
    judge(
        RESULTS,
        [backlog.__name__],
        lambda: buffer.status(shops=shops),
        lambda status, key, _: backlog(status, key, servers=buffer.label_servers, now=now),
    )
    return found


def _of(key: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if shop_key(row) == key]


def as_event(result: dg.AssetCheckResult, *, asset: str, name: str, shop: str) -> dg.AssetCheckEvaluation:
    """A result as the event that Dagster would make of it in a run of the asset."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
        partition=shop,
    )


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


def _definition(asset: str, check: Callable[..., Any], judge: Judge) -> dg.AssetChecksDefinition:
    """A check as an asset check of its own, per shop."""

    @dg.asset_check(asset=asset, name=check.__name__, description=check.__doc__, partitions_def=shops)
    def evaluate(
        context: dg.AssetCheckExecutionContext, buffer: dg.ResourceParam[Buffer]
    ) -> dg.AssetCheckResult:
        return judge(buffer, context.partition_key)

    return evaluate


def asset_checks(sources: Sequence[type[Source[Any]]]) -> list[dg.AssetChecksDefinition]:
    """All of them, for the products of these sources."""
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster 1.13, which pyproject.toml stays with.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            *(_definition(VARIANTS, check, _variants(check)) for check in VARIANT_CHECKS.values()),
            _definition(RESULTS, label_accuracy, _accuracy),
            _definition(RESULTS, backlog, _backlog),
            *(
                _definition(source.products_asset(), webhooks_arrive, _silence)
                for source in sources
                if source.sends_webhooks()
            ),
            *(_definition(source.products_asset(), shop_is_read, _readable) for source in sources),
        ]


def _difference(change: Row) -> str:
    found = differences(change["before"], change["after"])
    return "; ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in found.items() if name != "pc")


def _share(mapping: Row) -> float:
    held = int(mapping["held"])
    return round(100 * held / max(1, held + int(mapping["published"])), 1)


def _store(mapping: Row) -> dict[str, Any]:
    return {"store": mapping["hipoink_store_code"], "published": mapping["published"]}


def _result(
    *,
    passed: bool,
    says: str,
    stores: list[dict[str, Any]],
    numbers: dict[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
) -> dg.AssetCheckResult:
    frame = pd.DataFrame(stores)
    return dg.AssetCheckResult(
        passed=passed,
        severity=severity,
        description=says,
        metadata=numbers | {"stores": reports.preview(frame, list(frame.columns))},
    )
