"""The shipped dagster.yaml on a real Postgres: it boots, keeps to its schema, and does what it promises."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType

from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.orchestration.abandoned_runs import fail_abandoned_runs

SHIPPED = Path(__file__).parents[2] / "dagster.yaml"


@pytest.fixture(scope="module")
def storage(postgres: EmbeddedPostgres) -> tuple[str, str]:
    """Dagster's address and the administrator's, of the database as `up` prepares it."""
    prepare_database(postgres)
    prepare_database(postgres)  # a second `up` on the same data
    return dagster_url(postgres), postgres.dsn("esl")


@pytest.fixture
def instance(
    storage: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", storage[0])
    shutil.copy(SHIPPED, tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as found:
        yield found


def test_it_boots_with_psycopg2(instance: DagsterInstance) -> None:
    instance.run_storage.get_runs(limit=1)
    assert type(instance.run_storage).__name__ == "PostgresRunStorage"
    assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
    assert type(instance.schedule_storage).__name__ == "PostgresScheduleStorage"


def test_its_tables_are_in_a_schema_of_their_own(instance: DagsterInstance, storage: tuple[str, str]) -> None:
    instance.add_dynamic_partitions("shops", ["shopify:a"])
    with psycopg.connect(storage[1]) as connection:
        found = connection.execute(
            "select table_schema, count(*)::int from information_schema.tables"
            " where table_schema not in ('information_schema', 'pg_catalog') group by 1"
        ).fetchall()
        (may_create,) = connection.execute(
            "select has_schema_privilege('dagster', 'public', 'create')"
        ).fetchone() or [None]
        superuser = connection.execute("select rolsuper from pg_roles where rolname = 'dagster'").fetchone()
    assert dict(found).keys() == {"dagster"} and dict(found)["dagster"] > 15
    assert may_create is False and superuser == (False,)


def test_retries_and_monitoring(instance: DagsterInstance) -> None:
    assert instance.run_retries_enabled
    assert instance.get_settings("run_retries")["max_retries"] == 2
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_poll_interval_seconds == 10
    assert instance.run_monitoring_start_timeout_seconds == 120
    assert instance.get_settings("run_monitoring")["max_runtime_seconds"] == 7200
    # dagster.md 2.4: resuming is not supported by this launcher, and broken with another.
    assert instance.run_monitoring_max_resume_run_attempts == 0


def test_runs_are_queued_and_a_backfill_leaves_room_for_the_drain(instance: DagsterInstance) -> None:
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    limits = {limit["key"]: limit["limit"] for limit in queue.tag_concurrency_limits}
    assert limits["dagster/partition"] < queue.max_concurrent_runs


def test_it_tells_nobody_and_forgets_old_ticks(instance: DagsterInstance) -> None:
    assert instance.telemetry_enabled is False and instance.nux_enabled is False
    sensor = instance.get_tick_retention_settings(InstigatorType.SENSOR)
    days = {status.value: kept for status, kept in sensor.items()}
    assert days == {"SKIPPED": 1, "SUCCESS": 14, "FAILURE": 30, "STARTED": 1}
    assert set(instance.get_tick_retention_settings(InstigatorType.SCHEDULE).values()) == {90}


def test_runs_that_nobody_can_be_at_work_on_are_failed_and_retried(instance: DagsterInstance) -> None:
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]
    lost = [instance.create_run_for_job(speaking, status=status).run_id for status in statuses]
    waiting = instance.create_run_for_job(speaking, status=dg.DagsterRunStatus.NOT_STARTED).run_id
    assert sorted(fail_abandoned_runs(instance)) == sorted(lost)
    assert fail_abandoned_runs(instance) == []
    runs = {run.run_id: run for run in instance.get_runs()}
    assert {runs[run_id].status for run_id in lost} == {dg.DagsterRunStatus.FAILURE}
    assert {runs[run_id].tags["dagster/will_retry"] for run_id in lost} == {"true"}
    assert runs[waiting].status == dg.DagsterRunStatus.NOT_STARTED


@dg.op
def says_something(context: dg.OpExecutionContext) -> None:
    context.log_event(dg.AssetMaterialization("shopify_products", metadata={"n": 1}))


@dg.job
def speaking() -> None:
    says_something()


def test_runs_and_events_are_kept(instance: DagsterInstance) -> None:
    result = speaking.execute_in_process(instance=instance)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None and run.status == dg.DagsterRunStatus.SUCCESS
    event = instance.get_latest_materialization_event(dg.AssetKey("shopify_products"))
    assert event is not None and event.run_id == result.run_id


@pytest.mark.long
def test_both_drivers_live_in_one_run_process(
    storage: tuple[str, str], tmp_path: Path, buffer_dsn: str
) -> None:
    """A run writes events through psycopg2 and works on the buffer through psycopg 3."""
    shutil.copy(SHIPPED, tmp_path)
    code = (
        "import sys; from dagster import DagsterInstance;"
        " from esl_pipeline.definitions import defs;"
        f" instance = DagsterInstance.from_config({str(tmp_path)!r});"
        " job = defs.resolve_job_def('event_sync');"
        " assert job.execute_in_process(instance=instance).success;"
        " print(sorted({'psycopg', 'psycopg2'} & set(sys.modules)))"
    )
    variables = {
        "ESL_DAGSTER_DATABASE_URL": storage[0],
        "ESL_DATABASE_URL": buffer_dsn,
        "HIPOINK_API_BASE_URL": "http://127.0.0.1:9",
        "ESL_DRAIN_IDLE_SECONDS": "0",
        "ESL_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['psycopg', 'psycopg2']"
