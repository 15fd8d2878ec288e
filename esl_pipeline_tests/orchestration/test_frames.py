"""Frames between steps: what goes in comes out, on any storage that UPath knows."""

import os
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from upath import UPath

from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.stages.push import RESULT_COLUMNS
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.world import KEY, STORE, arrive, map_shop, product

PRODUCTS = dg.AssetKey("shopify_products")
SHOPS = dg.StaticPartitionsDefinition([KEY, "shopify:b"])


def written(frame: pd.DataFrame, run_id: str, shop: str = KEY) -> None:
    context = dg.build_output_context(
        run_id=run_id, asset_key=PRODUCTS, partition_key=shop, asset_partitions_def=SHOPS
    )
    ParquetFrames().handle_output(context, frame)


def read(run_id: str, shop: str = KEY) -> pd.DataFrame:
    context = dg.build_input_context(
        upstream_output=dg.build_output_context(run_id=run_id, asset_key=PRODUCTS),
        asset_key=PRODUCTS,
        partition_key=shop,
        asset_partitions_def=SHOPS,
    )
    return ParquetFrames().load_input(context)


@pytest.mark.parametrize("base", ["memory://esl-frames-test", "file://{tmp}/frames", "{tmp}/plain"])
def test_frames_on_any_storage(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str
) -> None:
    url = base.format(tmp=tmp_path)
    monkeypatch.setenv("ESL_FRAMES_URL", url)
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))

    result = pipeline.materialize()

    assert set(pipeline.labels(STORE)) == {"C-1"}
    for asset in ASSETS:
        assert (UPath(url) / asset / KEY.replace(":", "_") / f"{result.run_id}.parquet").exists()
    assert not Path(".esl").exists()


def test_a_frame_comes_back_as_it_was() -> None:
    frame = pd.DataFrame(
        {
            "title": pd.Series(["Crème ☕", None, ""], dtype="str"),
            "revision": pd.Series([1, 2**62, 3], dtype="int64"),
            "removed": [True, False, True],
            "event_ids": [[1, 2], [], [2**53 + 1]],
        }
    )
    written(frame, "run-1")
    back = read("run-1")
    back["event_ids"] = back["event_ids"].map(list)
    assert_frame_equal(back, frame)


def test_an_empty_frame_keeps_its_columns() -> None:
    written(pd.DataFrame(columns=RESULT_COLUMNS), "run-1")
    assert list(read("run-1").columns) == RESULT_COLUMNS and read("run-1").empty


def test_runs_do_not_read_each_others_frames() -> None:
    for run in ("run-1", "run-2"):
        written(pd.DataFrame({"run": [run]}), run)
    assert [read(run)["run"].item() for run in ("run-1", "run-2")] == ["run-1", "run-2"]


def test_the_newest_frame_stands_in_for_a_run_without_one() -> None:
    for age, run in enumerate(("newest", "older", "oldest")):
        written(pd.DataFrame({"run": [run]}), run)
        path = Path(".esl/frames/shopify_products") / KEY.replace(":", "_") / f"{run}.parquet"
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert read("another run")["run"].item() == "newest"


def test_shops_have_folders_of_their_own() -> None:
    written(pd.DataFrame({"a": [1]}), "run-1")
    with pytest.raises(dg.Failure, match="there is no frame of shopify_products for shopify:b"):
        read("run-1", "shopify:b")
