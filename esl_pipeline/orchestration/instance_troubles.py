"""What Dagster's instance knows of troubles: failed checks and runs, missing nights; and the room on this machine."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from esl_pipeline.alerts import instance as judge
from esl_pipeline.alerts.model import Condition, Known
from esl_pipeline.model.shop import shop_key, shop_of
from esl_pipeline.orchestration.assets import RECONCILIATION
from esl_pipeline.orchestration.catch_up import SHOP_TAG
from esl_pipeline.orchestration.failures import reason_of
from esl_pipeline.orchestration.near_real_time import SERVER_TAG, WILL_RETRY_TAG
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.printable import printable
from esl_pipeline.settings import Settings

_PARTITION_TAG = "dagster/partition"
_HOUSEKEEPING, _DRAIN = "housekeeping", "event_sync"
# A failed run is a trouble for so long, if nothing of the kind goes well after it.
_FAILED_FOR = timedelta(days=2)
_RUNS = 200

Mappings = Sequence[Mapping[str, Any]]


def troubles(
    instance: dg.DagsterInstance,
    sources: Sources,
    mappings: Mappings,
    checks: Sequence[dg.AssetCheckKey],
    now: datetime,
) -> Known:
    """All of them; one that cannot be found out is a trouble itself, and keeps no other from being told."""
    settings = sources.settings
    active: dict[str, datetime] = {}
    for mapping in mappings:
        if mapping["is_active"]:
            since = datetime.fromisoformat(mapping["activated_at"])
            key = shop_key(mapping)
            active[key] = min(since, active.get(key, since))
    readable = {key: since for key, since in active.items() if sources.opens(shop_of(key))}
    asked: dict[str, tuple[Callable[[], Known], tuple[str, ...]]] = {
        "checks": (lambda: _checks(instance, checks, active), ("check_failed", "shop_unread")),
        "shops": (lambda: _unread(sources, active), ("shop_unread",)),
        "runs": (lambda: _failed(instance, now), ("run_failed",)),
        "nights": (
            lambda: _nights(instance, settings, readable, now),
            ("night_missing", "night_late", "housekeeping_late"),
        ),
        "room for files": (lambda: judge.storage(_room(settings)), ("storage_low",)),
    }
    known = Known()
    for what, (ask, kinds) in asked.items():
        try:
            known += ask()
        except Exception as error:
            known += judge.not_judged(what, reason_of(error), kinds)
    return known


def _checks(instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey], shops: Iterable[str]) -> Known:
    found = []
    for shop in sorted(shops):
        # The instance's own door answers for all partitions together.
        records = instance.event_log_storage.get_latest_asset_check_execution_by_key(
            list(keys), partition_filter=PartitionKeyFilter(key=shop)
        )
        for key, record in records.items():
            said = record.evaluation if isinstance(record.evaluation, dg.AssetCheckEvaluation) else None
            is_made = record.status in (
                AssetCheckExecutionRecordStatus.SUCCEEDED,
                AssetCheckExecutionRecordStatus.FAILED,
            )
            found.append(
                judge.Check(
                    key.asset_key.to_user_string(),
                    key.name,
                    shop,
                    said.passed if said and is_made else None,
                    is_error=said is not None and said.severity is dg.AssetCheckSeverity.ERROR,
                    says=(said.description or "") if said else "",
                    at=datetime.fromtimestamp(record.create_timestamp, UTC),
                )
            )
    return judge.failed_checks(found)


def _unread(sources: Sources, shops: Iterable[str]) -> Known:
    reasons = {shop: sources.why_not_read(shop_of(shop)) for shop in sorted(shops)}
    return Known(
        tuple(
            Condition("shop_unread", shop, shops=(shop,), detail=reason)
            for shop, reason in reasons.items()
            if reason
        )
    )


def _failed(instance: dg.DagsterInstance, now: datetime) -> Known:
    failures = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - _FAILED_FOR)
    failed = [_run(record) for record in instance.get_run_records(failures, limit=_RUNS)]
    newest = {run.of: run for run in sorted(failed, key=lambda run: run.created_at)}
    went_well = {}
    for of, run in newest.items():
        if (later := _went_well(instance, run)) is not None:
            went_well[of] = later
    still = [run for run in newest.values() if run.of not in went_well]
    return judge.failed_runs([_with_reason(instance, run) for run in still], went_well)


def _went_well(instance: dg.DagsterInstance, run: judge.Run) -> datetime | None:
    """When a newer run of the same was made that went well, or drains well enough to have started."""
    statuses = [dg.DagsterRunStatus.SUCCESS]
    if run.job == _DRAIN:
        statuses.append(dg.DagsterRunStatus.STARTED)
    newer = dg.RunsFilter(job_name=run.job, statuses=statuses, created_after=run.created_at)
    records = map(_run, instance.get_run_records(newer, limit=_RUNS))
    return max((one.created_at for one in records if one.of == run.of), default=None)


def _nights(
    instance: dg.DagsterInstance, settings: Settings, shops: Mapping[str, datetime], now: datetime
) -> Known:
    zone = settings.esl_nightly_time_zone
    due_at, tidied_at = (
        _last_time(cron, zone, now) for cron in (settings.esl_nightly_cron, settings.esl_housekeeping_cron)
    )
    in_use_since = min(shops.values(), default=None)
    return judge.nights(shops, _since(instance, RECONCILIATION, due_at), due_at, now) + judge.housekeeping(
        in_use_since, _since(instance, _HOUSEKEEPING, tidied_at), tidied_at, now
    )


def _last_time(cron: str, zone: str, now: datetime) -> datetime:
    """When a schedule was due last."""
    ticks = dg.TimeWindowPartitionsDefinition(
        start=datetime(2020, 1, 1), cron_schedule=cron, timezone=zone, fmt="%Y-%m-%dT%H:%M"
    )
    window = ticks.get_prev_partition_window(now)
    assert window is not None
    return window.end.astimezone(UTC)


def _since(instance: dg.DagsterInstance, job: str, at: datetime) -> list[judge.Run]:
    # A schedule makes its run at its time, by the clock of another machine.
    records = instance.get_run_records(
        dg.RunsFilter(job_name=job, created_after=at - timedelta(minutes=1)), limit=1_000
    )
    return list(map(_run, records))


def _run(record: dg.RunRecord) -> judge.Run:
    run = record.dagster_run
    about = next((run.tags[tag] for tag in (_PARTITION_TAG, SHOP_TAG, SERVER_TAG) if tag in run.tags), "")
    return judge.Run(
        run.run_id,
        run.job_name,
        about,
        run.status.value,
        record.create_timestamp,
        datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None,
        is_over=run.tags.get(WILL_RETRY_TAG) != "true",
    )


def _with_reason(instance: dg.DagsterInstance, run: judge.Run) -> judge.Run:
    """With what its first failed step, else the run itself, says."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run.run_id, of_type=kind, limit=1).records:
            event = record.event_log_entry.get_dagster_event()
            says = _of_step(event) if kind is dg.DagsterEventType.STEP_FAILURE else event.message
            return replace(run, says=printable(" ".join((says or "").split())))
    return run


def _of_step(event: dg.DagsterEvent) -> str | None:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message if error is not None else event.message


def _room(settings: Settings) -> dict[str, tuple[int, int]]:
    """Free and all bytes where our folders are."""
    folders = {"ESL_HOME": settings.esl_home.absolute()}
    if "://" not in settings.frames_url:
        folders["ESL_FRAMES_URL"] = Path(settings.frames_url)
    found: dict[str, tuple[int, int]] = {}
    disks = set()
    for name, folder in folders.items():
        there = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if there is None or (disk := there.stat().st_dev) in disks:
            continue
        disks.add(disk)
        usage = shutil.disk_usage(there)
        found[name] = (usage.free, usage.total)
    return found
