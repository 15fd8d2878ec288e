"""`esl-pipeline health`: exit 0 or 1 for probes, of real parts; and what a receiver says of itself."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster import DagsterInstance
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import functions_build
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.commands.health import SENSORS
from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.receiver.app import create_app
from esl_pipeline.stages.drain import lease_of
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.orchestration.world import arrive, map_shop, product
from esl_pipeline_tests.receiver.support import call, make_settings, served
from esl_pipeline_tests.reliability.test_roles import login

LOCATION = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=4000, location_name="esl_pipeline")
REPOSITORY = RemoteRepositoryOrigin(LOCATION, "__repository__")


def checked(run: Run, *arguments: str) -> tuple[str, str]:
    """State and sentence of one part; the exit code goes with them."""
    done = run("health", *arguments, "--json")
    assert done.out, done.err
    (check,) = done.json
    assert done.code == (check["state"] == "wrong")
    return check["state"], check["says"]


def test_a_probe_loads_nothing_that_it_does_not_ask_with() -> None:
    code = (
        "import sys; sys.argv = ['esl-pipeline', 'health', 'receiver', '--at', 'http://127.0.0.1:1', '--json'];"
        " from esl_pipeline.commands.entry import main\n"
        "try: main()\n"
        "except SystemExit as ended:"
        " print(ended.code, sorted(set(sys.modules) & {'dagster', 'pandas', 'psycopg', 'esl_pipeline.settings'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    told, ended = done.stdout.splitlines()
    assert json.loads(told)[0]["state"] == "wrong" and ended == "1 []"


# --- the daemon


@pytest.fixture
def instance(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[DagsterInstance]:
    prepare_database(postgres)
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", dagster_url(postgres))
    with psycopg.connect(postgres.dsn("esl"), autocommit=True) as connection:
        connection.execute("drop schema dagster cascade")
        connection.execute("create schema dagster authorization dagster")
    (tmp_path / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: {env: ESL_DAGSTER_DATABASE_URL}}}\ntelemetry: {enabled: false}\n"
    )
    with DagsterInstance.from_config(str(tmp_path)) as found:
        yield found


def beat(
    instance: DagsterInstance, *, ago: float = 0, by: str = "of-now", threads: tuple[str, ...] = ()
) -> None:
    for thread in threads or ("SENSOR", "SCHEDULER", "MONITORING"):
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - ago, thread, by))


def tick(
    instance: DagsterInstance,
    name: str,
    *,
    ago: float = 0,
    every: int = 5,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
) -> None:
    origin = RemoteInstigatorOrigin(REPOSITORY, name)
    state = InstigatorState(origin, InstigatorType.SENSOR, status, SensorInstigatorData(min_interval=every))
    known = instance.get_instigator_state(origin.get_id(), state.selector_id)
    (instance.update_instigator_state if known else instance.add_instigator_state)(state)
    instance.create_tick(
        TickData(
            origin.get_id(), name, InstigatorType.SENSOR, TickStatus.SKIPPED, time.time() - ago,
            selector_id=state.selector_id,
        )
    )  # fmt: skip


def test_a_daemon_whose_heartbeat_stands_still_is_not_healthy(instance: DagsterInstance, run: Run) -> None:
    instance.run_storage.get_runs(limit=1)
    assert checked(run, "daemon") == ("wrong", "no daemon has ever told of itself")
    beat(instance, ago=5_000, by="of-yesterday", threads=("ASSET",))  # a thread that an older daemon had
    for name in SENSORS:
        tick(instance, name)
    beat(instance)
    state, says = checked(run, "daemon")
    assert state == "ok" and says.startswith("3 threads told of themselves"), says
    beat(instance, ago=400, threads=("SCHEDULER",))
    state, says = checked(run, "daemon")
    assert state == "wrong" and says.startswith(
        "the heartbeat of its thread SCHEDULER stands still for 40"
    ), says
    beat(instance, ago=400)
    assert checked(run, "daemon")[0] == "wrong"


@pytest.mark.long
def test_a_sensor_that_has_not_ticked_is_not_healthy(instance: DagsterInstance, run: Run) -> None:
    beat(instance)
    state, says = checked(run, "daemon")
    assert (state, says) == ("wrong", "inbox_sensor has never ticked: is the code location loaded?")
    tick(instance, "alert_sensor")
    tick(instance, "inbox_sensor", ago=300)
    state, says = checked(run, "daemon")
    assert state == "wrong" and says.startswith("inbox_sensor has not ticked for 30"), says
    tick(instance, "inbox_sensor", ago=300, every=600)  # SYNC_WORKER_INTERVAL_SECONDS
    assert checked(run, "daemon")[0] == "ok"
    tick(instance, "inbox_sensor", ago=300, status=InstigatorStatus.STOPPED)
    state, says = checked(run, "daemon")
    assert state == "ok" and says.endswith("switched off: inbox_sensor"), (
        "somebody's wish, and no restart helps"
    )


def test_a_storage_that_is_away_or_empty_is_said_without_its_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", f"postgresql://u:a-secret-word@127.0.0.1:{free_port()}/x")
    assert checked(run, "daemon")[1].startswith("Dagster's storage cannot be read: ")
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", database)
    assert checked(run, "daemon") == ("wrong", "Dagster's storage is empty: no daemon has ever run on it")


# --- the buffer and its drain


def test_a_buffer_of_this_build_is_healthy_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer_dsn: str
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)
    assert checked(run, "buffer")[0] == "ok"
    _newer(buffer_dsn)
    state, says = checked(run, "buffer")
    assert state == "wrong" and "newer than this code" in says


def test_work_that_is_due_with_no_drain_alive_is_not_healthy(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer: Buffer, buffer_dsn: str
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)
    at_once = ("drain", "--patience", "0")
    assert checked(run, *at_once) == ("ok", "nothing is due")
    map_shop(buffer)
    arrive(buffer, product(1))
    assert checked(run, *at_once)[0] == "wrong"
    buffer.lease_take(name=lease_of("default"), holder="a drain", seconds=60)
    assert checked(run, *at_once) == ("ok", "at work: default")
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("update esl.leases set until = now() - interval '1 s'")
    assert checked(run, *at_once) == (
        "wrong",
        "work is due for default, and no drain is alive: its lease ran out",
    )


# --- the receiver


def _newer(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(f"comment on schema esl is '{functions_build() + 1} of-later'".encode())


def opened(dsn: str, group: str) -> Buffer:
    return Buffer(PsycopgTransport(SecretStr(login(dsn, group)), attempts=1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("group", "only", "is_healthy"),
    [
        ("esl_receiver", "webhooks", True),
        ("esl_pipeline", "webhooks", False),
        ("esl_admin", "webhooks", False),
        ("esl_admin", "admin", True),
        ("esl_receiver", "admin", False),
        ("esl_receiver", None, False),
    ],
)
def test_a_receiver_with_a_login_that_is_not_its_own_is_not_healthy(
    run: Run, buffer_dsn: str, group: str, only: Any, is_healthy: bool
) -> None:
    buffer = opened(buffer_dsn, group)
    with served(create_app(make_settings(), buffer, only=only)) as url:
        state, says = checked(run, "receiver", "--at", url)
    buffer.close()
    assert state == ("ok" if is_healthy else "wrong"), says


def test_a_receiver_on_a_database_that_takes_no_writes_is_not_healthy(buffer_dsn: str) -> None:
    buffer = opened(buffer_dsn, "esl_receiver")
    app = create_app(make_settings(), buffer, only="webhooks")
    assert call(app, "GET", "/health").status_code == 200
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        connection.execute("alter role login_esl_receiver set default_transaction_read_only = on")
    buffer.close()
    buffer = opened(buffer_dsn, "esl_receiver")
    assert call(create_app(make_settings(), buffer, only="webhooks"), "GET", "/health").status_code == 503
    buffer.close()
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        connection.execute("alter role login_esl_receiver reset default_transaction_read_only")
