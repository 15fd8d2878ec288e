"""Reports runs as failed whose processes are gone with the code server that would have said so.

    python -m esl_pipeline.orchestration.abandoned_runs

For the owner of a Dagster instance that has just started, when no run can be alive. Without it such runs stay STARTED
until their dagster/max_runtime. The daemon then retries them as any failed run.
"""

import dagster as dg


def fail_abandoned_runs(instance: dg.DagsterInstance) -> list[str]:
    """Report every run that seems to be at work as failed; their ids."""
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    runs = instance.get_runs(dg.RunsFilter(statuses=statuses))
    for run in runs:
        instance.report_run_failed(run, "The process of this run was gone when Dagster started again.")
    return [run.run_id for run in runs]


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        fail_abandoned_runs(instance)
