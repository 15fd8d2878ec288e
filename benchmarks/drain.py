"""The drain of one label server, again and again, as its sensor starts it: `python -m benchmarks.drain default`.

The job is production's own, event_sync; the process stays, so that what is measured beside it is never the start of a
run by Dagster. Ends with the process that started it.
"""

import os
import sys
from typing import Any

from benchmarks.instance import opened
from esl_pipeline.definitions import build_definitions
from esl_pipeline.orchestration.near_real_time import DrainConfig


def main(label_server: str) -> None:
    """Until the parent has gone."""
    job, parent = build_definitions().resolve_job_def("event_sync"), os.getppid()
    with opened() as instance:
        while os.getppid() == parent:
            job.execute_in_process(run_config=_config(label_server), instance=instance, raise_on_error=False)


def _config(label_server: str) -> dict[str, Any]:
    """As the sensor gives it."""
    wanted = {"label_server": label_server, "keep_warm": True}
    known = {name: value for name, value in wanted.items() if name in DrainConfig.model_fields}
    return {"ops": {"drain_events": {"config": known}}}


if __name__ == "__main__":
    main(*sys.argv[1:])
