"""The job probe: measures with the labels that policies dedicate to it, and starts only where there are any."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from esl_pipeline.labels.checks import RESERVED
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import OTHER_SHOP, OTHER_STORE, STORE, map_shop

pytestmark = pytest.mark.long


def run(pipeline: Pipeline, **config: Any) -> dg.ExecuteInProcessResult:
    job = pipeline.definitions.resolve_job_def("probe")
    return job.execute_in_process(
        instance=pipeline.instance, run_config={"ops": {"probe_labels": {"config": config}}}
    )


def test_every_store_with_a_probe_label_is_measured_and_one_that_cannot_be_is_told_of(
    pipeline: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    map_shop(pipeline.buffer, settings={"probe_label": "P1"})
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE, settings={"probe_label": "P2"})
    pipeline.sandbox.set_floor(STORE, auto_trigger=False, rows_move="never")
    pipeline.sandbox.hang(STORE, products=[], unbound=1, esl_codes=["P1"])
    assert run(pipeline, wait=0.5, quiet=0.5).success
    assert pipeline.rows("select store_code, esl_code, outcome, by from esl.probes order by store_code") == [
        (STORE, "P1", "silent", "policy probe_label"),
        (OTHER_STORE, "P2", "failed", "policy probe_label"),
    ]
    assert pipeline.sandbox.places(STORE)["P1"]["product_code"] == f"{RESERVED}-P1"
    assert "S2, P2: failed: store S2 has no label P2 at its label server" in capfd.readouterr().err


def test_the_schedule_starts_one_run_while_there_is_a_probe_label(pipeline: Pipeline) -> None:
    schedule = pipeline.definitions.resolve_schedule_def("probe")

    def tick() -> Any:
        # Schedules reach their instance by reference only, which an ephemeral one has not.
        with (
            dg.instance_for_test() as instance,
            dg.build_schedule_context(
                instance=instance, scheduled_execution_time=datetime.now(UTC)
            ) as context,
        ):
            return schedule(context, buffer=pipeline.buffer, label_server=LabelServers(load_settings()))

    map_shop(pipeline.buffer)
    nothing = tick()
    assert isinstance(nothing, dg.SkipReason) and "no live store has a probe_label" in str(
        nothing.skip_message
    )
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE, settings={"probe_label": "P2"})
    assert isinstance(tick(), dg.RunRequest)
