"""A worker: processes that stay, and do Dagster's runs one after another.

    celery -A esl_pipeline.orchestration.celery_worker worker --queues dagster --concurrency 4 --loglevel info

It takes everything from the instance in DAGSTER_HOME, as the daemon does that launches the runs.
"""

from typing import Any

import dagster as dg
from celery.signals import setup_logging, task_postrun, task_prerun, worker_process_init
from dagster._grpc import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.tasks import create_execute_job_task

from esl_pipeline import logs
from esl_pipeline.orchestration.celery_runs import Presence, WorkersOnPostgres
from esl_pipeline.secret_files import export

# A process does one run at a time.
_present: list[Presence] = []


def _app() -> Any:
    export("ESL_DAGSTER_DATABASE_URL")
    launcher = dg.DagsterInstance.get().run_launcher
    if not isinstance(launcher, WorkersOnPostgres):
        raise SystemExit(
            f"DAGSTER_HOME's dagster.yaml names {type(launcher).__name__}, which starts no run in a worker: "
            "copy deploy/celery/dagster.yaml there"
        )
    create_execute_job_task(launcher.celery)
    return launcher.celery


app = _app()


@setup_logging.connect(weak=False)
def _log(**_: object) -> None:
    """Instead of Celery's own."""
    logs.configure_by_variables()


@worker_process_init.connect(weak=False)
def _warm_up(**_: object) -> None:
    """Import our code before the first run asks for it."""
    import esl_pipeline.definitions  # noqa: F401


@task_prerun.connect(weak=False)
def _begins(kwargs: dict[str, Any], **_: object) -> None:
    _present.append(Presence(unpack_value(kwargs["execute_job_args_packed"], as_type=ExecuteRunArgs).run_id))


@task_postrun.connect(weak=False)
def _ends(**_: object) -> None:
    while _present:
        _present.pop().leave()
