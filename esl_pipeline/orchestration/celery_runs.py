"""Runs in warm workers, on this machine or others: Dagster's CeleryRunLauncher on the Postgres that Dagster has anyway.

The broker is PGMQ's tables (schema `pgmq`) in the database of ESL_DAGSTER_DATABASE_URL: nothing else has to run. What
is told to a worker while it runs, and whether it lives, goes by a connection of its own to that database, see Presence:
Celery's remote control and its results are switched off. The instance file is deploy/celery/dagster.yaml, the worker
celery_worker.py.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import psycopg
from celery.exceptions import DuplicateTaskNameWarning
from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher
from kombu.transport import TRANSPORT_ALIASES, pgmq
from pgmq import PGMQueue
from pgmq.install import get_embedded_install_sql
from psycopg import sql
from psycopg_pool import ConnectionPool

from esl_pipeline.environment import SettingsError
from esl_pipeline.postgres_urls import without_driver
from esl_pipeline.settings import load_settings

_QUEUE = "dagster"
# A worker takes a message away when its run has ended. One that it has died with comes again after so long: more than
# any run may take (dagster/max_runtime). Dagster ignores it then, for that run has ended or has been begun elsewhere.
_INVISIBLE_SECONDS = 24 * 3600
# A notification wakes a worker; where none arrives it looks that often.
_POLL_SECONDS = 1.0
_CONNECTIONS = 4
# Of a run whose worker does not seem to be there: it may be just about to connect again.
_PATIENCE_SECONDS = 5.0
_AGAIN_SECONDS = 0.5

_INSTALLING, _PRESENT = 7_150_014, 7_150_015
_ENDS = "esl_end_run"
# The server notices in half a minute that a machine is gone.
_QUICK = "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 4"


def database() -> str:
    """The address of Dagster's storage for libpq. Raises SettingsError when there is none."""
    url = load_settings().esl_dagster_database_url
    if url is None:
        raise SettingsError(["ESL_DAGSTER_DATABASE_URL is not set: workers find their runs there, too"])
    return without_driver(url)


def install(dsn: str) -> None:
    """Make PGMQ's tables and functions, unless they are there. Raises SettingsError when this login may not."""
    with psycopg.connect(dsn) as connection:
        connection.execute("select pg_advisory_xact_lock(%s)", [_INSTALLING])
        row = connection.execute(
            "select to_regclass('pgmq.meta') is not null, to_regnamespace('pgmq') is not null, current_user"
        ).fetchone()
        is_there, has_schema, role = row or (False, False, "?")
        if is_there:
            return
        # Theirs asks for the right to make schemas even where there is none to make.
        script = get_embedded_install_sql().replace("CREATE SCHEMA IF NOT EXISTS pgmq;", "")
        try:
            if not has_schema:
                connection.execute("create schema pgmq")
            connection.execute(script.encode())
        except psycopg.errors.InsufficientPrivilege:
            raise SettingsError(
                [
                    f"ESL_DAGSTER_DATABASE_URL: {role} may not make the workers' queue there; let an administrator "
                    f"of that database run: create schema pgmq authorization {role}"
                ]
            ) from None


class PostgresTransport(pgmq.Transport):
    """Kombu's transport on PGMQ, for the database that the settings name.

    Kombu's own takes an address apart and loses what protects the connection (sslmode and the like).
    """

    def _create_pgmq_client(self) -> PGMQueue:
        install(dsn := database())
        pool = ConnectionPool(dsn, min_size=1, max_size=_CONNECTIONS, open=True)
        client = PGMQueue(pool=pool, vt=_INVISIBLE_SECONDS, init_extension=False)
        client._own_pool = True  # so that it is closed with the client
        return client

    _notify_waiter: Any

    def _get_notify_waiter(self) -> Any:
        self._notify_waiter = self._notify_waiter or pgmq._NotifyWaiter(database())
        return self._notify_waiter


# The launcher makes the task that it sends anew for each run.
warnings.filterwarnings("ignore", category=DuplicateTaskNameWarning)
TRANSPORT_ALIASES["esl-postgres"] = f"{__name__}:PostgresTransport"


class Presence:
    """Says that the process of a run lives: a lock that goes with its connection, however the process ends.

    By the same connection the process is told to end the run.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._left = threading.Event()
        self._connection = self._connect()
        threading.Thread(target=self._stay, name="presence", daemon=True).start()

    def leave(self) -> None:
        """The run has ended."""
        self._left.set()

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(database(), autocommit=True, keepalives_idle=10, connect_timeout=10)
        connection.execute(_QUICK)
        connection.execute("select pg_try_advisory_lock(%s, hashtext(%s))", [_PRESENT, self._run_id])
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(_ENDS)))
        return connection

    def _stay(self) -> None:
        while not self._left.is_set():
            try:
                for told in self._connection.notifies(timeout=_AGAIN_SECONDS):
                    if told.payload == self._run_id and not self._left.is_set():
                        os.kill(os.getpid(), signal.SIGTERM)
            except psycopg.Error:
                self._left.wait(_AGAIN_SECONDS)
                with suppress(psycopg.Error):
                    self._connection = self._connect()
        self._connection.close()

    @staticmethod
    def of(run_id: str) -> bool:
        """Whether the process of this run is there."""
        with psycopg.connect(database(), connect_timeout=10) as connection:
            query = "select pg_try_advisory_xact_lock_shared(%s, hashtext(%s))"
            (is_free,) = connection.execute(query, [_PRESENT, run_id]).fetchone() or (True,)
        return not is_free

    @staticmethod
    def end(run_id: str) -> None:
        """Have the process of this run end it."""
        with psycopg.connect(database(), autocommit=True, connect_timeout=10) as connection:
            connection.execute("select pg_notify(%s, %s)", [_ENDS, run_id])


class WorkersOnPostgres(CeleryRunLauncher):
    """Runs are messages in that Postgres; of a run that has begun it is known at any time whether its process lives."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(
            default_queue=_QUEUE,
            broker="esl-postgres://dagsters-storage",
            backend="disabled://",
            config_source={
                "broker_transport_options": {
                    "wait_time_seconds": 0,
                    "polling_interval": _POLL_SECONDS,
                    "use_notify": True,
                    "notify_throttle_interval_ms": 0,
                    "visibility_timeout": _INVISIBLE_SECONDS,
                },
                # However long Postgres is away.
                "broker_connection_retry_on_startup": True,
                "broker_connection_max_retries": None,
                # A worker takes no message that it has no free process for: acknowledged early, each would take one
                # more and keep it waiting, while other workers have nothing to do.
                "task_acks_late": True,
                "worker_prefetch_multiplier": 1,
                "task_ignore_result": True,
                # The names of its queues are too long for PGMQ, and each is a table that stays.
                "worker_enable_remote_control": False,
                # A process imports our code when it starts, not in its first run.
                "worker_proc_alive_timeout": 120.0,
                "worker_redirect_stdouts": False,
            },
            inst_data=inst_data,
        )

    @classmethod
    def config_type(cls) -> Any:
        """Nothing: the settings say all."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """As the instance file names it."""
        return cls(inst_data=inst_data)

    @property
    def supports_resume_run(self) -> bool:
        """A run is begun anew, never resumed."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """What run monitoring asks of a run that has begun."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while not Presence.of(run.run_id):
            if time.monotonic() > until:
                return CheckRunHealthResult(WorkerStatus.FAILED, "The process of this run is gone.")
            time.sleep(_AGAIN_SECONDS)
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Nothing: there are no results to ask."""
        return None

    def terminate(self, run_id: str) -> bool:
        """End a run, as the UI asks; one that waits for a worker does not begin then."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        Presence.end(run_id)
        return True
