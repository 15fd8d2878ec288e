"""Frames between steps: what goes in comes out, on any storage that UPath knows."""

import os
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from upath import UPath

from esl_pipeline.model.rows import FINDINGS, LABELS, RESULTS, VARIANTS, Column, Dtype, Rows
from esl_pipeline.orchestration.frames import ParquetFrames, Parts, file_name, table_schema
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.s3 import BUCKET, WRITTEN, running_bucket
from esl_pipeline_tests.orchestration.world import KEY, STORE, arrive, map_shop, product

PRODUCTS = dg.AssetKey("shopify_products")


def _partitions(shop: str) -> dg.PartitionsDefinition[str]:
    return dg.StaticPartitionsDefinition([shop])


def parts(frame: pd.DataFrame, columns: dict[str, Dtype] | None = None) -> Parts:
    """The frame, a row in each part."""
    dtypes = columns or {}
    found = Parts(Rows(tuple(Column(name, "", dtypes.get(name, "str")) for name in frame.columns)))
    for row in range(len(frame)):
        found.add(frame.iloc[row : row + 1])
    return found


def written(
    frame: pd.DataFrame, run_id: str, shop: str = KEY, columns: dict[str, Dtype] | None = None
) -> None:
    context = dg.build_output_context(
        run_id=run_id, asset_key=PRODUCTS, partition_key=shop, asset_partitions_def=_partitions(shop)
    )
    ParquetFrames().handle_output(context, parts(frame, columns))


def read(run_id: str, shop: str = KEY) -> pd.DataFrame:
    context = dg.build_input_context(
        upstream_output=dg.build_output_context(run_id=run_id, asset_key=PRODUCTS),
        asset_key=PRODUCTS,
        partition_key=shop,
        asset_partitions_def=_partitions(shop),
    )
    return pd.concat(ParquetFrames().load_input(context), ignore_index=True)


@pytest.mark.long
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


@pytest.mark.long
def test_frames_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """As workers that share no disk use them: by the storage's own variables, in a bucket that is there already."""
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    objects: dict[str, bytes] = {}
    with running_bucket(objects) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "worker")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-bucket")
        monkeypatch.setenv("ESL_FRAMES_URL", f"s3://{BUCKET}/of/ours")
        for run in ("run-1", "run-2"):
            written(pd.DataFrame({"run": [run]}), run)
        assert [read(run)["run"].item() for run in ("run-1", "run-2")] == ["run-1", "run-2"]
        assert read("another run")["run"].item() in ("run-1", "run-2")
        folder = f"of/ours/shopify_products/{KEY.replace(':', '_')}"
        assert sorted(objects) == [f"{folder}/run-1.parquet", f"{folder}/run-2.parquet"]
        with pytest.raises(dg.Failure, match="there is no frame"):
            read("run-1", "shopify:b")
        assert ParquetFrames().prune(WRITTEN) == 0
        assert ParquetFrames().prune(WRITTEN + timedelta(seconds=1)) == 2
        assert objects == {}


def test_a_frame_comes_back_as_it_was() -> None:
    frame = pd.DataFrame(
        {
            "title": pd.Series(["Crème ☕", None, ""], dtype="str"),
            "revision": pd.Series([1, 2**62, 3], dtype="int64"),
            "removed": [True, False, True],
            "event_ids": [[1, 2], [], [2**53 + 1]],
        }
    )
    columns: dict[str, Dtype] = {
        "title": "str",
        "revision": "int64",
        "removed": "bool",
        "event_ids": "list[int64]",
    }
    written(frame, "run-1", columns=columns)
    back = read("run-1")
    back["event_ids"] = back["event_ids"].map(list)
    assert_frame_equal(back, frame)


def test_parts_come_back_one_by_one() -> None:
    found = parts(pd.DataFrame({"a": ["1", None, "3"]}))
    for _ in range(2):
        assert [list(part["a"].fillna("")) for part in found] == [["1"], [""], ["3"]]


def test_an_empty_frame_keeps_its_columns() -> None:
    written(pd.DataFrame(columns=RESULTS.names), "run-1")
    assert list(read("run-1").columns) == RESULTS.names and read("run-1").empty


@pytest.mark.parametrize("rows", [VARIANTS, LABELS, RESULTS, FINDINGS], ids=lambda rows: rows.names[-1])
def test_every_column_is_named_once_and_has_words_in_dagster(rows: Rows) -> None:
    shown = table_schema(rows).columns
    assert len({column.name for column in shown}) == len(shown) > 5
    assert all(column.description for column in shown)
    empty = pd.DataFrame(columns=rows.names).astype(rows.dtypes)
    assert {name: str(dtype) for name, dtype in empty.dtypes.items()} == rows.dtypes


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
    written(pd.DataFrame({"a": ["1"]}), "run-1")
    with pytest.raises(dg.Failure, match="there is no frame of shopify_products for shopify:b"):
        read("run-1", "shopify:b")


@pytest.mark.parametrize(
    "key",
    [
        "shopify:../../../../outside/x.myshopify.com",
        "shopify:../x",
        "..",
        ".",
        "/outside",
        "shopify:" + "../" * 100 + "outside",
        "shopify:" + "ä" * 300,
    ],
)
def test_s37_a_partition_is_one_folder_however_it_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    base = tmp_path / "a" / "b" / "c" / "frames"
    monkeypatch.setenv("ESL_FRAMES_URL", str(base))
    frame = pd.DataFrame({"code": ["C-1"]})
    written(frame, "r1", key)
    assert_frame_equal(read("r1", key), frame, check_dtype=False)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent.parent == base / "shopify_products" and file.name == "r1.parquet"
    assert file.resolve() == file


def test_s37_two_partitions_never_share_a_folder() -> None:
    keys = [
        KEY,
        KEY.replace(":", "_"),
        "a:b",
        "a_b",
        "a%5Fb",
        "a/b",
        "a%2Fb",
        ".",
        "%2E",
        "x" * 300,
        "x" * 301,
    ]
    assert len({file_name(key) for key in keys}) == len(keys)
    assert file_name(KEY) == KEY.replace(":", "_")  # where the frames of older releases are
