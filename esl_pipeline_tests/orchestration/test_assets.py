"""The three assets of one shop, materialised in process: labels, metadata, frames, re-execution."""

import re
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from esl_pipeline.orchestration.checks import VARIANT_CHECKS
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.world import (
    KEY,
    OTHER_KEY,
    OTHER_SHOP,
    OTHER_STORE,
    STORE,
    arrive,
    map_shop,
    plain,
    product,
)

pytestmark = pytest.mark.long


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, object]:
    """The metadata of the one materialisation of an asset."""
    (event,) = result.asset_materializations_for_node(asset)
    return plain(event.metadata)


def test_one_shop_goes_through_the_three_steps(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, *(product(n) for n in range(1, 31)), product(31, price=None))
    arrive(pipeline.buffer, {"id": 2}, topic="products/delete")

    result = pipeline.materialize()

    assert set(pipeline.labels(STORE)) == {f"C-{n}" for n in range(1, 31) if n != 2}
    label = pipeline.labels(STORE)["C-1"]
    assert (label["pn"], label["pp"]) == ("Product 1", "1.50")
    products, labels, results = (metadata(result, asset) for asset in ASSETS)
    assert (products["deliveries"], products["variants changed"], products["unusable deliveries"]) == (
        32,
        30,
        0,
    )
    assert 0 <= float(str(products["oldest delivery (s)"])) < 60
    assert (labels["labels to publish"], labels["held back"]) == (29, 1)
    assert (labels["queued upserts"], labels["queued removals"]) == (29, 0)
    assert labels["findings"] == "1 x price_missing"
    assert (results["pushes"], results["labels written"], results["labels removed"]) == (1, 29, 0)
    assert results["outcomes"] == "29 accepted"
    assert str(results["codes"]).startswith("C-1, ") and str(results["codes"]).endswith(" and 9 more")
    for report in (products, labels, results):
        preview = report["preview"]
        assert isinstance(preview, dg.TableMetadataValue) or hasattr(preview, "records")
    (event,) = result.asset_materializations_for_node("shopify_products")
    assert event.partition == KEY


def test_previews_have_at_most_twenty_rows(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(
        pipeline.buffer,
        *(product(n) for n in range(25)[1:]),
        *(product(n, price="-1") for n in range(50, 75)),
    )

    result = pipeline.materialize()

    tables = [
        value
        for asset in ASSETS
        for event in result.asset_materializations_for_node(asset)
        for value in event.metadata.values()
        if isinstance(value, dg.TableMetadataValue)
    ]
    assert [len(table.records) for table in tables] == [20, 20, 20, 20]


def test_frames_are_kept_with_the_run_in_their_path(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1), product(2))

    result = pipeline.materialize()

    folder = Path(".esl/frames").absolute()
    kept = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.parquet")}
    partition = KEY.replace(":", "_")
    assert set(kept) == {f"{asset}/{partition}/{result.run_id}.parquet" for asset in ASSETS}
    labels = pd.read_parquet(kept[f"validated_variants/{partition}/{result.run_id}.parquet"])
    assert list(labels["code"]) == ["C-1", "C-2"] and labels["revision"].dtype == "int64"
    assert metadata(result, "validated_variants")["frame"] == str(
        kept[f"validated_variants/{partition}/{result.run_id}.parquet"]
    )


def test_an_empty_shop_makes_empty_frames_and_no_call(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)

    result = pipeline.materialize()

    assert result.success
    assert metadata(result, "shopify_products")["deliveries"] == 0
    assert metadata(result, "hipoink_sync_results")["pushes"] == 0
    assert pipeline.sandbox.state()["calls"] == {}


def test_two_shops_do_not_touch_each_other(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, product(1))
    arrive(pipeline.buffer, product(2, codes=["C-other"]), shop=OTHER_SHOP)

    pipeline.materialize()
    assert set(pipeline.labels(STORE)) == {"C-1"} and not pipeline.labels(OTHER_STORE)
    waiting = {shop["source_store_id"]: shop["waiting"] for shop in pipeline.buffer.status()["shops"]}
    assert waiting[OTHER_SHOP] == 1

    pipeline.materialize(shop=OTHER_KEY)
    assert set(pipeline.labels(STORE)) == {"C-1"} and set(pipeline.labels(OTHER_STORE)) == {"C-other"}


def test_a_failing_label_server_is_an_outcome_and_not_a_failed_run(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.sandbox.faults({"kind": "error", "error_msg": "no such store"})

    result = pipeline.materialize()

    report = metadata(result, "hipoink_sync_results")
    assert report["outcomes"] == "1 rejected" and report["labels written"] == 0
    (event,) = result.asset_materializations_for_node("hipoink_sync_results")
    table = event.metadata["not accepted"]
    assert isinstance(table, dg.TableMetadataValue)
    assert "no such store" in str(table.records[0].data["message"])


def all_assets() -> dg.JobDefinition:
    """What the UI's Materialize button runs, in a form that can be executed again from a failure."""
    from esl_pipeline.definitions import build_definitions

    job = dg.define_asset_job("all_assets")
    return dg.Definitions.merge(build_definitions(), dg.Definitions(jobs=[job])).resolve_job_def("all_assets")


def test_from_failure_the_parent_runs_frame_is_read(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.sql("alter function public.esl_labels_stage(jsonb) rename to esl_labels_stage_away")
    job = dg.reconstructable(all_assets)
    failed = dg.execute_job(job, pipeline.instance, tags={"dagster/partition": KEY})
    assert not failed.success
    assert [e.step_key for e in failed.all_events if e.is_step_failure] == ["validated_variants"]
    pipeline.sql("alter function public.esl_labels_stage_away(jsonb) rename to esl_labels_stage")
    # A newer run leaves a newer frame; it is not this run's.
    arrive(pipeline.buffer, product(2))
    pipeline.materialize("shopify_products")

    again = dg.execute_job(
        job,
        pipeline.instance,
        tags={"dagster/partition": KEY},
        reexecution_options=dg.ReexecutionOptions.from_failure(failed.run_id, pipeline.instance),
    )

    assert again.success
    steps = {e.step_key for e in again.all_events if e.is_step_success}
    checks = {f"validated_variants_{check}" for check in VARIANT_CHECKS}
    checks |= {f"hipoink_sync_results_{check}" for check in ("label_accuracy", "backlog", "alerts")}
    checks |= {
        f"shelf_labels_{check}" for check in ("labels_reachable", "batteries", "bindings", "shelf_is_fresh")
    }
    assert steps == {"validated_variants", "hipoink_sync_results", "shelf_labels"} | checks
    frame = Path(".esl/frames/validated_variants") / KEY.replace(":", "_") / f"{again.run_id}.parquet"
    assert list(pd.read_parquet(frame)["code"]) == ["C-1"]
    assert set(pipeline.labels(STORE)) == {"C-1"}


def test_an_asset_alone_reads_the_newest_frame(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.materialize("shopify_products")
    arrive(pipeline.buffer, product(2))
    pipeline.materialize("shopify_products")

    result = pipeline.materialize("validated_variants")

    assert metadata(result, "validated_variants")["labels to publish"] == 2


def test_an_asset_alone_without_a_frame_says_what_to_do(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)

    result = pipeline.materialize("validated_variants", raise_on_error=False)

    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    said = str(failure.event_specific_data)
    assert "there is no frame of shopify_products" in said and KEY in said
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None and run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_a_buffer_of_another_version_stops_the_run_for_good(pipeline: Pipeline) -> None:
    pipeline.sql("insert into esl.schema_migrations (version, name) values (9999, 'of the future')")

    result = pipeline.materialize(raise_on_error=False)

    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "newer than this code" in str(failure.event_specific_data)
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None and run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_every_asset_says_what_its_columns_are(pipeline: Pipeline) -> None:
    for name in ASSETS:
        (spec,) = pipeline.definitions.get_assets_def(name).specs
        schema = spec.metadata["dagster/column_schema"]
        assert schema.columns and spec.description and len(spec.description) > 100
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.materialize()
    for frame in Path(".esl/frames").rglob("*.parquet"):
        asset = next(name for name in ASSETS if re.search(rf"/{name}/", frame.as_posix()))
        (spec,) = pipeline.definitions.get_assets_def(asset).specs
        named = [column.name for column in spec.metadata["dagster/column_schema"].columns]
        assert sorted(pd.read_parquet(frame).columns) == sorted(named)


def test_field_41_a_run_of_one_shop_ends_with_one_refresh_of_its_store(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, *(product(n) for n in range(1, 4)))

    result = pipeline.materialize()

    assert pipeline.sandbox.state()["calls"] == {"create_multiple": 1, "bind_task": 1}
    (row,) = pipeline.rows("select store_code, run_id, outcome from esl.refreshes")
    assert row == (STORE, result.run_id, "accepted")
    assert pipeline.buffer.due().refresh is False


def test_a_run_whose_refresh_fails_succeeds(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.sandbox.faults({"kind": "status", "status": 500, "action": "bind_task"})

    result = pipeline.materialize()

    assert result.success
    assert metadata(result, "hipoink_sync_results")["outcomes"] == "1 accepted"
    assert pipeline.buffer.status()["refreshes"]["waiting"][0]["attempts"] == 1
