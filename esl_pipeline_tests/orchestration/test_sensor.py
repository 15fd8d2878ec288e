"""inbox_sensor: one run when something is due, none beside a living drain, new shops as partitions."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dagster as dg
import pytest
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteRepositoryOrigin

from esl_pipeline.model.due import Due
from esl_pipeline.orchestration import near_real_time
from esl_pipeline.stages.drain import lease_of
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import KEY, OTHER_SHOP, arrive, map_shop, product

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_real_time, "HOLD_SECONDS", 0.6)
    monkeypatch.setattr(near_real_time, "_POLL_SECONDS", 0.05)


def tick(pipeline: Pipeline) -> dg.SensorResult:
    sensor = pipeline.definitions.resolve_sensor_def("inbox_sensor")
    with dg.build_sensor_context(instance=pipeline.instance, definitions=pipeline.definitions) as context:
        result = sensor(context, buffer=pipeline.buffer)
    assert isinstance(result, dg.SensorResult)
    return result


def skipped(result: dg.SensorResult) -> str | None:
    assert not result.run_requests
    return result.skip_reason.skip_message if result.skip_reason else None


def test_due_work_starts_one_drain_run(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1), product(2))

    result = tick(pipeline)

    assert result.run_requests is not None
    (request,) = result.run_requests
    holder = request.tags[near_real_time.HOLDER_TAG]
    drain = pipeline.buffer.due().drain
    assert drain == holder and request.run_key == f"default:{holder}"
    assert request.tags["esl/label_server"] == "default"
    assert dg.validate_run_config(pipeline.definitions.resolve_job_def("event_sync"), request.run_config)
    assert skipped(tick(pipeline)) == "the drain run is at work"


def test_the_run_it_starts_holds_the_lease(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    (request,) = tick(pipeline).run_requests or []

    done = pipeline.drain(holder=request.tags[near_real_time.HOLDER_TAG])

    assert done.success and set(pipeline.labels("S1")) == {"C-1"}
    assert skipped(tick(pipeline)) == "nothing is due"


def test_labels_that_wait_are_due_too(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.materialize("shopify_products")
    due = Due(anything=True, inbox=False, variants=True, queue=False, refresh=False, is_fed=True)
    assert replace(pipeline.buffer.due(), drain=None) == due
    assert tick(pipeline).run_requests


def test_a_living_drain_is_left_alone(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.buffer.lease_take(name=lease_of("default"), holder="a drain run", seconds=60)

    assert skipped(tick(pipeline)) == "the drain run is at work"


@pytest.mark.parametrize(
    ("runs", "is_over"),
    [
        ([("STARTED", {})], False),
        ([("FAILURE", {"dagster/will_retry": "true"})], False),
        ([("FAILURE", {"dagster/will_retry": "true"}), ("STARTING", {})], False),
        ([("FAILURE", {"dagster/will_retry": "true"}), ("FAILURE", {"dagster/will_retry": "false"})], True),
        ([("CANCELED", {})], True),
    ],
    ids=["at work", "to be tried again", "tried again", "failed for good", "cancelled"],
)
def test_a_run_that_ended_before_it_began_gives_its_lease_back(
    pipeline: Pipeline, runs: list[tuple[str, dict[str, str]]], is_over: bool
) -> None:
    """As when the code server is restarted while it starts the run: else labels would wait for the lease's end."""
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    (request,) = tick(pipeline).run_requests or []
    for status, tags in runs:
        run = dg.DagsterRun("event_sync", status=dg.DagsterRunStatus(status), tags=dict(request.tags) | tags)
        pipeline.instance.add_run(run)

    again = tick(pipeline)

    if is_over:
        (successor,) = again.run_requests or []
        assert successor.run_key != request.run_key
        assert pipeline.buffer.due().drain == successor.tags[near_real_time.HOLDER_TAG]
    else:
        assert skipped(again) == "the drain run is at work"


def run_of(request: dg.RunRequest, status: str) -> dg.DagsterRun:
    """What Dagster makes of a request."""
    origin = RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("localhost", 1), "repository")
    return dg.DagsterRun(
        "event_sync",
        status=dg.DagsterRunStatus(status),
        tags=dict(request.tags),
        remote_job_origin=origin.get_job_origin("event_sync"),
    )


@pytest.mark.parametrize("is_made", [False, True])
def test_a_run_that_nobody_hears_of_keeps_the_lease_for_a_few_seconds(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """As when all stops, or the daemon is killed, between a tick and the queue for the run that it asks for."""
    monkeypatch.setattr(near_real_time, "_ASKED_SECONDS", 0.5)
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    (lost,) = tick(pipeline).run_requests or []
    if is_made:
        pipeline.instance.add_run(run_of(lost, "NOT_STARTED"))
    (request,) = tick(pipeline).run_requests or []
    assert request.run_key != lost.run_key


@pytest.mark.parametrize("status", ["QUEUED", "STARTING"])
def test_the_lease_is_kept_while_its_run_is_on_its_way(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    for name in ("_ASKED_SECONDS", "_KEPT_SECONDS"):
        monkeypatch.setattr(near_real_time, name, 1.0)
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    (request,) = tick(pipeline).run_requests or []
    pipeline.instance.add_run(run_of(request, status))
    for _ in range(3):
        assert skipped(tick(pipeline)) == "the drain run is at work"
    time.sleep(1.1)
    assert skipped(tick(pipeline)) == "the drain run is at work", "not even when a tick came too late"
    assert pipeline.buffer.due().drain == request.tags[near_real_time.HOLDER_TAG]


def test_it_waits_a_while_for_work(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    with ThreadPoolExecutor(1) as other:
        result = other.submit(tick, pipeline)
        assert not result.done()
        arrive(pipeline.buffer, product(1))
        assert result.result(10).run_requests, "seen within the tick that was on its way"


def test_deliveries_of_unmapped_shops_are_not_due(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1), shop="nobody.myshopify.com")

    assert skipped(tick(pipeline)) == "nothing is due"

    map_shop(pipeline.buffer, "nobody.myshopify.com", "S9")
    assert tick(pipeline).run_requests


def test_new_shops_become_partitions_within_the_tick(pipeline: Pipeline) -> None:
    pipeline.instance.delete_dynamic_partition("shops", KEY)
    map_shop(pipeline.buffer)

    assert skipped(tick(pipeline)) == "nothing is due"

    assert KEY in pipeline.instance.get_dynamic_partitions("shops")


def test_a_new_shop_with_work_needs_one_tick(pipeline: Pipeline) -> None:
    pipeline.instance.delete_dynamic_partition("shops", KEY)
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, "S2")
    arrive(pipeline.buffer, product(1))

    assert len(tick(pipeline).run_requests or []) == 1

    assert KEY in pipeline.instance.get_dynamic_partitions("shops")


def test_of_two_sensors_at_once_one_starts_a_run(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    with ThreadPoolExecutor(4) as daemons:
        results = list(daemons.map(lambda _: tick(pipeline), range(4)))

    assert sum(len(result.run_requests or []) for result in results) == 1


def test_f18_while_the_label_server_is_down_a_run_starts_only_to_probe_it(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    for asset in ("shopify_products", "validated_variants"):
        pipeline.materialize(asset)
    pipeline.sql(
        "insert into esl.label_servers (server, failures, down_since, probe_at, last_error)"
        " values ('default', 3, now(), now() + interval '1 hour', 'no answer')"
    )
    said = skipped(tick(pipeline))
    assert (
        said is not None and said.startswith("the label server is down since") and said.endswith("no answer")
    )

    pipeline.sql("update esl.label_servers set probe_at = now()")
    assert len(tick(pipeline).run_requests or []) == 1


def test_a_buffer_without_its_functions_is_said_by_the_tick(
    pipeline: Pipeline,
) -> None:
    pipeline.sql("drop function public.esl_due(jsonb)")
    with pytest.raises(Exception, match="run `esl-pipeline migrate`"):
        tick(pipeline)


@pytest.fixture
def warm(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    from esl_pipeline.definitions import build_definitions

    monkeypatch.setenv("ESL_DRAIN_KEEP_WARM", "true")
    map_shop(pipeline.buffer)
    return replace(pipeline, definitions=build_definitions())


def holder_of(result: dg.SensorResult) -> str:
    (request,) = result.run_requests or []
    assert request.run_config["ops"]["drain_events"]["config"]["keep_warm"] is True
    return request.tags[near_real_time.HOLDER_TAG]


def test_a_drain_is_kept_warm_although_nothing_is_due(warm: Pipeline) -> None:
    assert warm.buffer.due().drain is None
    assert holder_of(tick(warm)) == warm.buffer.due().drain
    assert skipped(tick(warm)) == "the drain run is at work"


def test_a_drain_of_age_is_relieved_once(warm: Pipeline) -> None:
    warm.buffer.lease_take(name=lease_of("default"), holder="of age", seconds=60, relieve_in=0)
    follower = holder_of(tick(warm))
    assert warm.buffer.due().drain == "of age"
    assert skipped(tick(warm)) == "the drain run is at work"
    assert warm.buffer.lease_await(name=lease_of("default"), holder=follower, seconds=20) == "waits"
    assert warm.buffer.lease_take(name=lease_of("default"), holder="of age", seconds=60).successor_is_ready


def test_a_drain_that_is_there_does_not_wait_for_one_that_is_started(warm: Pipeline) -> None:
    """As the retry of a run that died: the run that the sensor has asked for may stand in a queue behind it."""
    launched = holder_of(tick(warm))
    assert warm.buffer.lease_await(name=lease_of("default"), holder="a retry", seconds=20) == "held"
    assert warm.buffer.lease_await(name=lease_of("default"), holder=launched, seconds=20) == "waits"
    assert warm.buffer.due().drain == "a retry"


def test_without_a_mapped_shop_no_drain_is_kept_warm(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esl_pipeline.definitions import build_definitions

    monkeypatch.setenv("ESL_DRAIN_KEEP_WARM", "true")
    assert skipped(tick(replace(pipeline, definitions=build_definitions()))) == "nothing is due"
