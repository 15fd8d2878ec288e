"""shelf_labels: a store is read once, each shop hears of its own labels, and one store's trouble is no other's."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import (
    KEY,
    OTHER_KEY,
    OTHER_SHOP,
    OTHER_STORE,
    SHOP,
    STORE,
    arrive,
    map_shop,
    product,
)

pytestmark = pytest.mark.long

NOTHING = "no store is mapped whose label server knows labels and is up"


@pytest.fixture
def shared(pipeline: Pipeline) -> Pipeline:
    """Two shops that feed one store, a product each; and a store of the second one alone."""
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, product(1), product(2))
    arrive(pipeline.buffer, product(3), shop=OTHER_SHOP)
    assert pipeline.drain().success
    for store in (STORE, OTHER_STORE):
        hang(pipeline.sandbox, store, unbound=1, aps=["AP-1", "AP-2"])
    return pipeline


def hang(sandbox: Sandbox, store: str, **wish: Any) -> None:
    sandbox.http.put("/sandbox/devices", json={"store": store, **wish}).raise_for_status()


def read(pipeline: Pipeline, *, raise_on_error: bool = True, **config: Any) -> dg.ExecuteInProcessResult:
    job = pipeline.definitions.resolve_job_def("shelf")
    return job.execute_in_process(
        instance=pipeline.instance,
        run_config={"ops": {"read_shelves": {"config": config}}},
        raise_on_error=raise_on_error,
    )


def told(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """The newest word on each shop; what is plotted without the shop's name, and numbers as such."""
    found = pipeline.instance.fetch_materializations(dg.AssetKey("shelf_labels"), limit=100).records
    return {
        str(record.partition_key): {
            name.removesuffix(f", {record.partition_key}"): _number(value.value)
            for name, value in record.asset_materialization.metadata.items()
        }
        for record in reversed(found)
        if record.asset_materialization
    }


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def calls(pipeline: Pipeline) -> int:
    return int(pipeline.sandbox.state()["calls"].get("esl/query", 0))


def tick(pipeline: Pipeline, *, beside: bool = False) -> dg.RunRequest | str | None:
    """What the schedule answers; beside: while the run before is still at work."""
    schedule = pipeline.definitions.resolve_schedule_def("shelf")
    # Schedules reach their instance by reference only, which an ephemeral one has not.
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC)) as context,
    ):
        if beside:
            job = pipeline.definitions.resolve_job_def("shelf")
            instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        found: Any = schedule(context, buffer=pipeline.buffer, label_server=LabelServers(load_settings()))
    return found.skip_message if isinstance(found, dg.SkipReason) else found


def test_a_store_is_read_once_and_each_shop_hears_of_its_own_labels(shared: Pipeline) -> None:
    assert read(shared).success
    assert calls(shared) == 2, "one page of two stores, though three mappings name them"
    ours, theirs = told(shared)[KEY], told(shared)[OTHER_KEY]
    assert (ours["labels"], ours["products"], ours["products without a label"]) == (2, 2, 0)
    assert (ours["labels in the stores"], ours["labels bound to nothing"]) == (4, 1)
    assert (theirs["labels"], theirs["products"], theirs["labels in the stores"]) == (2, 2, 6)
    assert ours["labels of no known product"] == 0
    assert [row["state"] for row in (r.data for r in theirs["stores"].records)] == ["complete", "complete"]


def test_offline_labels_are_told_of_by_ap(shared: Pipeline) -> None:
    shared.sandbox.http.put(f"/sandbox/aps/{STORE}/AP-1", json={"dead": True}).raise_for_status()
    assert read(shared).success
    ours = told(shared)[KEY]
    assert (ours["labels online"], ours["labels offline"]) == (1, 1)
    assert [record.data for record in ours["offline by AP"].records] == [
        {"store": STORE, "ap_code": "AP-1", "offline": "1", "labels": "1"}
    ]


def test_every_shop_is_judged_where_its_labels_were_read(shared: Pipeline) -> None:
    shared.sql(
        """update esl.store_mappings set settings = '{"max_unbound_pct": 100}'"""
        f" where source_store_id = '{SHOP}'"
    )
    done = read(shared)
    judged = {(one.check_name, one.partition): one for one in done.get_asset_check_evaluations()}
    names = {"labels_reachable", "batteries", "bindings", "shelf_is_fresh"}
    assert judged.keys() == {(name, key) for name in names for key in (KEY, OTHER_KEY)}
    assert not judged["bindings", OTHER_KEY].passed, "one of four labels is bound to nothing"
    assert {name for name in names if not judged[name, KEY].passed} == set()
    assert [record.data["reachable"] for record in told(shared)[KEY]["how far prices have come"].records] == [
        "2"
    ]


def test_the_button_reads_the_stores_of_its_shop(shared: Pipeline) -> None:
    asset = shared.definitions.get_assets_def("shelf_labels")
    done = dg.materialize(
        [asset, shared.definitions.get_assets_def("hipoink_sync_results").to_source_assets()[0]],
        selection=["shelf_labels"],
        instance=shared.instance,
        partition_key=KEY,
        resources=dict(shared.definitions.resources or {}),
    )
    assert done.success and calls(shared) == 1
    assert told(shared).keys() == {KEY} and told(shared)[KEY]["labels"] == 2


def test_a_store_that_cannot_be_read_is_named_and_delays_no_other(shared: Pipeline) -> None:
    shared.sandbox.faults({"kind": "status", "status": 500, "action": "esl/query", "store": OTHER_STORE})
    done = read(shared, raise_on_error=False)
    assert not done.success
    (event,) = [e for e in done.all_node_events if e.is_step_failure]
    assert OTHER_STORE in str(event.step_failure_data.user_failure_data.description)
    assert told(shared)[KEY]["labels"] == 2
    states = [record.data["state"] for record in told(shared)[OTHER_KEY]["stores"].records]
    assert states == ["complete", "failed"]


def test_only_the_stores_of_chosen_shops_are_read(shared: Pipeline) -> None:
    assert read(shared, shops=[KEY]).success
    assert calls(shared) == 1 and shared.rows("select store_code from esl.device_passes") == [(STORE,)]


def test_the_schedule_starts_one_run_while_there_is_something_to_read(pipeline: Pipeline) -> None:
    assert tick(pipeline) == NOTHING
    map_shop(pipeline.buffer, SHOP)
    request = tick(pipeline)
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"]["read_shelves"]["config"] == {"shops": [], "minutes": 15}
    assert tick(pipeline, beside=True) == "the last one is still at work"


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> Iterator[Pipeline]:
    with running_sandbox(generation=2020) as server:
        monkeypatch.setenv("HIPOINK_API_BASE_URL", server.url)
        monkeypatch.setenv("HIPOINK_API_SECRET", SIGN)
        yield pipeline


def test_a_server_of_2020_is_warned_of_once_and_fails_no_run(
    old: Pipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    map_shop(old.buffer)
    for _ in range(3):
        assert read(old).success
        old.sql("update esl.label_servers set devices_again_at = now()")
    assert capfd.readouterr().err.count("does not know the actions for physical labels") == 1
    old.sql("update esl.label_servers set devices_again_at = now() + interval '1 min'")
    assert tick(old) == NOTHING
