"""Dagster's instance files: the one that the package brings (local/dagster.yaml), and what launchers change in it."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

Instance = Mapping[str, Any]


def instance_text() -> str:
    """The package's dagster.yaml, as it is: runs beside the code server."""
    return resources.files("esl_pipeline.local").joinpath("dagster.yaml").read_text(encoding="utf-8")


def workers_text() -> str:
    """The same for runs in warm workers."""
    return str(yaml.safe_dump(for_workers(yaml.safe_load(instance_text())), sort_keys=False))


def for_workers(instance: Instance) -> dict[str, Any]:
    """Runs in warm workers: deploy/celery/dagster.yaml. Ten at once, for a run that waits for a process is failed."""
    return {
        **instance,
        "run_launcher": {"module": "esl_pipeline.orchestration.celery_runs", "class": "WorkersOnPostgres"},
        "run_coordinator": _at_once(instance, 10),
        "run_monitoring": {**instance["run_monitoring"], "max_resume_run_attempts": 0},
    }


def _at_once(instance: Instance, runs: int) -> dict[str, Any]:
    coordinator = instance["run_coordinator"]
    return {**coordinator, "config": {**coordinator["config"], "max_concurrent_runs": runs}}
