"""Evaluations of asset checks that no run makes.

Dagster (1.13) keeps one evaluation of a check, partition and run, and counts all that have no run as of one: what a
sensor returns as an asset event for a check with partitions fails from its second time on.
"""

from uuid import uuid4

import dagster as dg


def report(instance: dg.DagsterInstance, evaluation: dg.AssetCheckEvaluation) -> None:
    """Store an evaluation, as often as there is one: as of a run of its own, which does not exist."""
    event = dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
        event_specific_data=evaluation,
        job_name="sensor",
    )
    instance.report_dagster_event(event, run_id=str(uuid4()))
