"""housekeeping: once a day, what is no longer kept goes: webhook bodies, shops that have left, old frames and runs."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration.failures import stop_retries
from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.settings import load_settings

_RUNS_AT_ONCE = 100


@dg.op(description="Deletes webhook bodies, shops that asked to be forgotten, frames and run records of old.")
def tidy_up(
    context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], frames: dg.ResourceParam[ParquetFrames]
) -> None:
    """In batches; what is left when the run is stopped goes with the next one."""
    buffer.check_version()
    settings, now = load_settings(), datetime.now(UTC)
    bodies = deliveries = redacted = 0
    more = True
    while more:
        done = buffer.housekeep(
            keep_bodies_days=settings.esl_keep_bodies_days,
            keep_deliveries_days=settings.esl_keep_deliveries_days,
        )
        bodies, redacted, more = bodies + done["bodies"], redacted + done["redacted"], done["more"]
        deliveries += done["deliveries"]
    pruned = frames.prune(now - timedelta(days=settings.esl_keep_bodies_days))
    runs = delete_runs(context.instance, now - timedelta(days=settings.esl_keep_runs_days))
    context.log.info(
        f"deleted {bodies} webhook bodies, {deliveries} old webhooks, {redacted} rows of shops that left, "
        f"{pruned} frames, {runs} run records"
    )


def delete_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete the records of successful event_sync runs made before then, with their events; how many.

    Those of failed runs stay, and those of whole shops: they are few, and are what the assets' history rests on.
    """
    old = dg.RunsFilter(job_name="event_sync", statuses=[dg.DagsterRunStatus.SUCCESS], created_before=before)
    deleted = 0
    while runs := instance.get_runs(old, limit=_RUNS_AT_ONCE):
        for run in runs:
            instance.delete_run(run.run_id)
        deleted += len(runs)
    return deleted


@dg.job(
    description="Deletes what is no longer kept. Started by the schedule housekeeping_daily.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "3600", "dagster/max_retries": "1", "esl/role": "housekeeping"},
    executor_def=dg.in_process_executor,
)
def housekeeping() -> None:
    """The housekeeping job."""
    tidy_up()


housekeeping_schedule = dg.ScheduleDefinition(
    name="housekeeping_daily",
    job=housekeeping,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a day.",
)
