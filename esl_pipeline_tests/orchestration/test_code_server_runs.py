"""What the launcher of dagster.yaml says of a run, before code servers that have it, have not, and do not answer."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient

from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.orchestration.code_server_runs import RunsOfCodeServer
from esl_pipeline_tests.waiting import eventually

SHIPPED = Path(__file__).parents[2] / "dagster.yaml"


@dg.op
def waits() -> None: ...


@dg.job
def waiting() -> None:
    waits()


@pytest.fixture
def instance(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    prepare_database(postgres)
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", dagster_url(postgres))
    shutil.copy(SHIPPED, tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as found:
        yield found


def begun(instance: DagsterInstance, port: int) -> DagsterRun:
    tags = {GRPC_INFO_TAG: f'{{"host": "127.0.0.1", "port": {port}}}'}
    return instance.create_run_for_job(waiting, status=DagsterRunStatus.STARTED, tags=tags)


@pytest.mark.long
def test_it_is_the_one_that_is_shipped_and_monitoring_asks_it(instance: DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, RunsOfCodeServer)
    assert instance.run_launcher.supports_check_run_worker_health and instance.run_monitoring_enabled
    # A run is noticed after its server's silence and a round of monitoring: within the minute.
    assert instance.run_monitoring_poll_interval_seconds <= 10


def test_a_run_whose_code_server_does_not_answer_is_given_half_a_minute(instance: DagsterInstance) -> None:
    now = 0.0
    launcher = RunsOfCodeServer(clock=lambda: now)
    launcher.register_instance(instance)
    run = begun(instance, free_port())
    for now, status in ((0.0, "RUNNING"), (29.0, "RUNNING"), (31.0, "FAILED")):
        assert launcher.check_run_worker_health(run).status == WorkerStatus[status], now
    instance.report_run_failed(run)  # others use this storage, too


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_code_server_that_started_anew_does_not_have_the_runs_of_the_one_before(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    (tmp_path / "location.py").write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    port = free_port()
    serve = ("-m", "dagster", "api", "grpc", "--python-file", str(tmp_path / "location.py"))
    with subprocess.Popen([sys.executable, *serve, "--host", "127.0.0.1", "--port", str(port)]) as server:
        try:
            client = DagsterGrpcClient(host="127.0.0.1", port=port)
            eventually(lambda: client.health_check_query() == "SERVING", 90, "the code server")
            launcher = instance.run_launcher
            run = begun(instance, port)
            found = launcher.check_run_worker_health(run)
            assert found.status == WorkerStatus.FAILED and "code server" in str(found.msg)
            instance.report_run_failed(run)
            ended = instance.get_run_by_id(run.run_id)
            assert ended and launcher.check_run_worker_health(ended).status == WorkerStatus.RUNNING, (
                "has ended"
            )
        finally:
            server.terminate()
