"""Runs as processes of the code server: Dagster's DefaultRunLauncher, which also says of a run whether it still lives.

Dagster's own asks nobody, so that a run which dies with its code server (a restart, a machine that is gone) stays
STARTED until its dagster/max_runtime; and a night that is STARTED is not tried again. The code server knows its runs:
one that has started anew does not know those of the one before it. One that does not answer may be starting again, or
be busy: after a while its runs count as gone with it.
"""

import time
from collections.abc import Callable
from typing import Any

from dagster import DagsterRun, DagsterRunStatus
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value

_ANSWER_SECONDS = 5
# A code server that starts again answers within so long: its imports take a few seconds, under load more.
_SILENT_SECONDS = 30.0
_GONE = "The code server that this run was a process of is gone, and the run with it."


class RunsOfCodeServer(DefaultRunLauncher):
    """Named in dagster.yaml; needs no configuration."""

    def __init__(
        self, inst_data: ConfigurableClassData | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(inst_data)
        self._clock = clock
        # Of runs whose code server does not answer, since when.
        self._silent: dict[str, float] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks of each run that has begun."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives, as its code server says."""
        known = self._is_known(run)
        if known is not None:
            self._silent.pop(run.run_id, None)
            return _result(known)
        since = self._silent.setdefault(run.run_id, self._clock())
        return _result(self._clock() - since < _SILENT_SECONDS)

    def _is_known(self, run: DagsterRun) -> bool | None:
        """Whether its code server has this run; None when that does not answer."""
        client: DagsterGrpcClient | None = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:  # it has ended by now, or was never sent to a code server
            return _has_ended(self._instance.get_run_by_id(run.run_id)) or GRPC_INFO_TAG not in run.tags
        try:
            return _knows(client, run.run_id)
        except Exception:  # whatever keeps it from answering
            return None


def _has_ended(run: DagsterRun | None) -> bool:
    return run is None or run.status in (
        DagsterRunStatus.SUCCESS,
        DagsterRunStatus.FAILURE,
        DagsterRunStatus.CANCELED,
    )


def _knows(client: DagsterGrpcClient, run_id: str) -> bool:
    answer: Any = deserialize_value(
        client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id), timeout=_ANSWER_SECONDS),
        CanCancelExecutionResult,
    )
    return bool(answer.can_cancel)


def _result(lives: bool) -> CheckRunHealthResult:
    return (
        CheckRunHealthResult(WorkerStatus.RUNNING)
        if lives
        else CheckRunHealthResult(WorkerStatus.FAILED, _GONE)
    )
