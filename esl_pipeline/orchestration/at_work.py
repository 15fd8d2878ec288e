"""Whether a run is under way: who starts runs again and again starts none beside it."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def is_at_work(
    instance: dg.DagsterInstance, job_name: str | None = None, *, tags: Mapping[str, Any] | None = None
) -> bool:
    """Whether a run (of the job, with these tags) is queued, starting or going on."""
    which = dg.RunsFilter(job_name=job_name, statuses=_UNFINISHED, tags=tags)
    return instance.get_runs_count(which) > 0
