"""housekeeping: once a day, what is no longer kept goes: webhook bodies, shops that have left, old frames and runs."""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import psycopg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import Shop
from esl_pipeline.orchestration.failures import several_failed, stop_retries
from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.postgres_urls import without_driver
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.stages.redactions import judge_redactions

_RUNS_AT_ONCE = 500
# Why a run failed is looked for longer than what a good one did.
_FAILED_ARE_KEPT = 3
_ENDED_WELL = (dg.DagsterRunStatus.SUCCESS,)
_ENDED_BADLY = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# Dagster's own table, whose rows outlive their runs (1.13): five a shop and drain run. The newest of each check is what
# the UI shows.
_DELETE_EVALUATIONS = """
delete from asset_check_executions where create_timestamp < %s and id not in (
    select max(id) from asset_check_executions group by asset_key, check_name, partition)"""


@dg.op(description="Deletes webhook bodies, shops that asked to be forgotten, frames and run records of old.")
def tidy_up(
    context: dg.OpExecutionContext,
    buffer: dg.ResourceParam[Buffer],
    frames: dg.ResourceParam[ParquetFrames],
    sources: dg.ResourceParam[Sources],
) -> None:
    """In batches; what is left when the run is stopped goes with the next one. No part keeps another from its turn."""
    buffer.check_version()
    settings, now = load_settings(), datetime.now(UTC)
    runs, bodies = (timedelta(days=d) for d in (settings.esl_keep_runs_days, settings.esl_keep_bodies_days))
    parts: dict[str, Callable[[], str]] = {
        "the buffer": partial(_tidy_buffer, buffer, sources, settings),
        "frames": lambda: f"{frames.prune(now - bodies)} frames",
        "check evaluations": lambda: f"{delete_evaluations(settings, now - runs)} check evaluations",
        "run folders": lambda: (
            f"{delete_folders_without_runs(context.instance, now - runs)} folders without runs"
        ),
        "run records": lambda: (
            f"{delete_runs(context.instance, now - runs, failed_before=now - _FAILED_ARE_KEPT * runs)} run records"
        ),
    }
    done, failures = list[str](), dict[str, Exception]()
    for name, tidy in parts.items():
        try:
            done.append(tidy())
        except Exception as error:
            failures[name] = error
    context.log.info(f"deleted {', '.join(done)}")
    if failures:
        raise several_failed("not everything could be deleted that is no longer kept", failures)


def _tidy_buffer(buffer: Buffer, sources: Sources, settings: Settings) -> str:
    judged = judge_redactions(buffer, lambda shop: _token_works(sources, shop))
    bodies = deliveries = unmapped = redacted = passes = reach = 0
    more = True
    while more:
        done = buffer.housekeep(
            keep_bodies_days=settings.esl_keep_bodies_days,
            keep_deliveries_days=settings.esl_keep_deliveries_days,
        )
        bodies, redacted, more = bodies + done["bodies"], redacted + done["redacted"], done["more"]
        deliveries, unmapped = deliveries + done["deliveries"], unmapped + done["unmapped"]
        passes, reach = passes + done["passes"], reach + done["reach"]
    return (
        f"{bodies} webhook bodies, {deliveries} old webhooks, {unmapped} that waited for a store to be mapped, "
        f"{passes} reads of physical labels, {reach} changes of how these were reached, "
        f"{redacted} rows of shops that left (of the shops that "
        f"asked to be forgotten {judged['confirmed']} have left, {judged['void']} have not, "
        f"{judged['undecided']} could not be asked now)"
    )


def _token_works(sources: Sources, shop: Shop) -> bool | None:
    """Whether the shop still takes what opens it (False: nothing does); None when that cannot be told now."""
    if not sources.opens(shop):
        return False
    with sources.reader(shop) as reader:
        return reader.lets_in()


def delete_runs(
    instance: dg.DagsterInstance, before: datetime, *, failed_before: datetime | None = None
) -> int:
    """Delete the records of runs of every job that were made before then and have ended; how many.

    With their events, captured logs and folders. failed_before: of those that failed or were cancelled. The run of the
    newest materialisation of each asset and partition stays, however old: a partition would seem never to have been
    materialised, and the asset would lose what it said last.
    """
    kept = newest_runs(instance)
    deleted, failures = 0, dict[str, Exception]()
    for statuses, end in ((_ENDED_WELL, before), (_ENDED_BADLY, failed_before or before)):
        old = dg.RunsFilter(statuses=list(statuses), created_before=end)
        for run_id in reversed(_run_ids(instance, old)):
            if run_id in kept:
                continue
            try:
                instance.delete_run(run_id)
                _delete_folder(instance, run_id)
                deleted += 1
            except Exception as error:
                failures[run_id] = error
    if failures:
        raise several_failed(f"{deleted} runs were deleted, {len(failures)} could not be", failures)
    return deleted


def newest_runs(instance: dg.DagsterInstance) -> set[str]:
    """The runs of the newest materialisation of each asset and partition."""
    partitions = [None, *instance.get_dynamic_partitions("shops")]
    newest = (
        instance.fetch_materializations(
            dg.AssetRecordsFilter(asset, asset_partitions=[partition] if partition else None), limit=1
        ).records
        for asset in instance.get_asset_keys()
        for partition in partitions
    )
    return {record.run_id for records in newest for record in records}


def delete_evaluations(settings: Settings, before: datetime) -> int:
    """Delete evaluations of asset checks made before then but the newest of each check and partition; how many."""
    if settings.esl_dagster_database_url is None:
        return 0  # not the storage of our dagster.yaml
    with psycopg.connect(without_driver(settings.esl_dagster_database_url)) as connection:
        return connection.execute(_DELETE_EVALUATIONS, [before.replace(tzinfo=None)]).rowcount


def delete_folders_without_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete the local folders of runs whose records are gone, last written before then; how many."""
    base = Path(instance.storage_directory())
    old = [
        folder.name
        for folder in (base.iterdir() if base.is_dir() else ())
        if _RUN_ID.fullmatch(folder.name) and folder.stat().st_mtime < before.timestamp()
    ]
    gone = [
        run_id
        for batch in _batches(old)
        for run_id in set(batch) - set(instance.get_run_ids(dg.RunsFilter(run_ids=batch)))
    ]
    for run_id in gone:
        _delete_folder(instance, run_id)
    return len(gone)


def _delete_folder(instance: dg.DagsterInstance, run_id: str) -> None:
    """What a run has left in files: the captured logs of its steps, wherever they are kept, and its outputs."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)


def _run_ids(instance: dg.DagsterInstance, which: dg.RunsFilter) -> list[str]:
    """All of them, newest first."""
    found: list[str] = []
    while page := instance.get_run_ids(which, cursor=found[-1] if found else None, limit=_RUNS_AT_ONCE):
        found += page
    return found


def _batches(run_ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(run_ids), _RUNS_AT_ONCE):
        yield list(run_ids[start : start + _RUNS_AT_ONCE])


@dg.job(
    description="Deletes what is no longer kept. Started by the schedule housekeeping_daily.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "3600", "dagster/max_retries": "1", "esl/role": "housekeeping"},
    executor_def=dg.in_process_executor,
)
def housekeeping() -> None:
    """The housekeeping job."""
    tidy_up()


def housekeeping_schedule(cron: str, time_zone: str) -> dg.ScheduleDefinition:
    """The schedule of housekeeping."""
    return dg.ScheduleDefinition(
        name="housekeeping_daily",
        job=housekeeping,
        cron_schedule=cron,
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Once a day.",
    )
