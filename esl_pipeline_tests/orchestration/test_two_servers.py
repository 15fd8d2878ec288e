"""Two label servers in Dagster: the sensor keeps a drain alive for each, and the night does each by itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration import near_real_time
from esl_pipeline.orchestration.checks import backlog
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.stages.drain import lease_of
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.world import (
    KEY,
    OTHER_SHOP,
    SHOP,
    STORE,
    arrive,
    map_shop,
    plain,
    product,
)

pytestmark = pytest.mark.long


@dataclass
class Two:
    """A pipeline whose settings name a second label server, north."""

    pipeline: Pipeline
    buffer: Buffer
    north: Sandbox

    def tick(self) -> dg.SensorResult:
        sensor = self.pipeline.definitions.resolve_sensor_def("inbox_sensor")
        with dg.build_sensor_context(
            instance=self.pipeline.instance, definitions=self.pipeline.definitions
        ) as context:
            result = sensor(context, buffer=self.buffer)
        assert isinstance(result, dg.SensorResult)
        return result

    def requests(self) -> dict[str, dg.RunRequest]:
        """Those of a tick, by label server."""
        return {request.tags["esl/label_server"]: request for request in self.tick().run_requests or []}

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        job = self.pipeline.definitions.resolve_job_def("event_sync")
        return job.execute_in_process(
            instance=self.pipeline.instance, run_config=request.run_config, tags=request.tags
        )

    def reconcile(self, **options: Any) -> dg.ExecuteInProcessResult:
        config = {"ops": {"hipoink_sync_results": {"config": {"compare": True}}}}
        assets = [self.pipeline.definitions.get_assets_def(name) for name in ASSETS]
        return dg.materialize(
            assets,
            instance=self.pipeline.instance,
            partition_key=KEY,
            resources=dict(self.pipeline.definitions.resources or {}),
            run_config=config,
            **options,
        )

    def hangs(self, store: str) -> set[str]:
        return set(self.north.state()["labels"].get(store, {}))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, buffer: Buffer, tmp_path: Path, pipeline: Pipeline) -> Iterator[Two]:
    monkeypatch.setattr(near_real_time, "HOLD_SECONDS", 0.6)
    monkeypatch.setattr(near_real_time, "_POLL_SECONDS", 0.05)
    with running_sandbox() as north:
        file = tmp_path / "servers.toml"
        file.write_text(f"[north]\nbase_url = '{north.url}'\nrate_limit_per_second = 1000\n")
        monkeypatch.setenv("HIPOINK_SERVERS_FILE", str(file))
        monkeypatch.setenv("HIPOINK_API_SECRET__NORTH", SIGN)
        yield Two(pipeline, Buffer(buffer.transport, label_servers=("default", "north")), north)


def both(two: Two) -> None:
    map_shop(two.buffer)
    map_shop(two.buffer, SHOP, "N1", label_server="north")


def test_each_server_with_due_work_gets_a_run_of_its_own(two: Two) -> None:
    both(two)
    arrive(two.buffer, product(1))
    requests = two.requests()
    assert set(requests) == {"default", "north"}, "in one tick"
    for name, request in requests.items():
        config, holder = request.run_config["ops"]["drain_events"]["config"], request.tags["esl/holder"]
        assert config["label_server"] == name and request.run_key == f"{name}:{holder}"
        assert two.buffer.at(name).due().drain == holder
    assert two.requests() == {}

    assert two.run(requests["north"]).success
    assert (two.hangs("N1"), two.pipeline.labels(STORE)) == ({"C-1"}, {})
    assert two.buffer.at("north").due().drain is None
    assert two.run(requests["default"]).success
    assert set(two.pipeline.labels(STORE)) == {"C-1"}


def test_only_the_server_with_due_work_gets_one(two: Two) -> None:
    map_shop(two.buffer)
    map_shop(two.buffer, OTHER_SHOP, "N1", label_server="north")
    arrive(two.buffer, product(1), shop=OTHER_SHOP)
    assert set(two.requests()) == {"north"}
    arrive(two.buffer, product(2))
    assert set(two.requests()) == {"default"}, "beside the other's living drain"
    skipped = two.tick().skip_reason
    assert skipped is not None
    assert skipped.skip_message == "default: the drain run is at work; north: the drain run is at work"


def test_what_is_mapped_at_no_server_of_the_settings_is_said_and_holds_up_nobody(two: Two) -> None:
    both(two)
    map_shop(two.buffer, SHOP, "X1", label_server="gone")
    skipped = two.tick().skip_reason
    assert skipped is not None
    assert skipped.skip_message == (
        "default: nothing is due; north: nothing is due; the settings name no label server gone: labels of X1 wait"
    )
    arrive(two.buffer, product(1))
    for request in two.requests().values():
        assert two.run(request).success
    assert two.hangs("N1") == set(two.pipeline.labels(STORE)) == {"C-1"}
    says = backlog(two.buffer.status(), KEY, servers=two.buffer.label_servers, now=datetime.now(UTC))
    assert not says.passed and says.description == "labels of X1 wait: the settings name no label server gone"


def test_a_run_without_configuration_is_the_defaults(two: Two) -> None:
    both(two)
    arrive(two.buffer, product(1))
    assert two.pipeline.drain().success
    assert set(two.pipeline.labels(STORE)) == {"C-1"} and two.hangs("N1") == set()


def test_a_run_of_an_unknown_server_says_what_to_set(two: Two) -> None:
    failed = two.pipeline.definitions.resolve_job_def("event_sync").execute_in_process(
        instance=two.pipeline.instance,
        run_config={"ops": {"drain_events": {"config": {"label_server": "gone"}}}},
        raise_on_error=False,
    )
    said = str(failed.failure_data_for_node("drain_events"))
    assert "no label server is called gone: there is default, north" in said
    assert two.buffer.lease_take(name=lease_of("gone"), holder="x", seconds=1)


def test_the_night_pushes_and_compares_at_every_server_of_the_shop(two: Two) -> None:
    both(two)
    arrive(two.buffer, product(1), product(2))
    done = two.reconcile()
    assert set(two.pipeline.labels(STORE)) == two.hangs("N1") == {"C-1", "C-2"}
    (event,) = done.asset_materializations_for_node("hipoink_sync_results")
    assert event.metadata["label servers"].value == "default, north"
    assert plain(event.metadata)["labels written"] == 4


def test_g7_in_the_night_one_that_is_down_fails_its_own_part_only(two: Two) -> None:
    both(two)
    map_shop(two.buffer, SHOP, "X1", label_server="gone")
    arrive(two.buffer, product(1))
    two.pipeline.sandbox.faults({"kind": "status", "status": 503})
    failed = two.reconcile(raise_on_error=False)
    assert not failed.success and two.hangs("N1") == {"C-1"}
    said = str(failed.failure_data_for_node("hipoink_sync_results"))
    assert (
        "1 of 3 stores could not be compared: X1 at label server gone: no label server is called gone: "
        in said
    )
    comparisons = two.pipeline.rows("select store_code, complete, reason from esl.comparisons order by 1")
    assert [(store, complete) for store, complete, _ in comparisons] == [("N1", True), (STORE, False)]
    assert "503" in comparisons[1][2], "one that is down is an outcome, not a failed run"
