"""Files in Dagster: news_sensor starts what is to be read, checks tell what was not, the night reads the full list."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.test_assets import metadata
from esl_pipeline_tests.orchestration.world import STORE, map_shop

pytestmark = pytest.mark.long

KEY = "files:corner"
TEA, MILK = "4006381333931;Tea;1,99\n", "4006381333948;Milk;0,99\n"
T, M = "4006381333931", "4006381333948"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "out"
    found.mkdir()
    monkeypatch.setenv("FILES_FOLDERS", f"corner={found}")
    monkeypatch.setenv("FILES_SETTLE_SECONDS", "0")
    return found


@pytest.fixture
def files(folder: Path, pipeline: Pipeline) -> Iterator[Pipeline]:
    map_shop(pipeline.buffer, "corner", STORE, source_system="files")
    yield pipeline


def write(folder: Path, name: str, text: str, *, at: int) -> None:
    (folder / name).write_text(text)
    written = int(time.time()) - 10_000 + at
    os.utime(folder / name, (written, written))


def full(*rows: str) -> str:
    return "EAN;Name;Preis\n" + "".join(rows)


def tick(pipeline: Pipeline, cursor: str | None = None) -> dg.SensorResult:
    sensor = pipeline.definitions.resolve_sensor_def("news_sensor")
    with dg.build_sensor_context(
        instance=pipeline.instance, definitions=pipeline.definitions, cursor=cursor
    ) as context:
        resources = pipeline.definitions.resources or {}
        sources = resources["sources"].create_resource(dg.build_init_resource_context())
        result = sensor(context, buffer=pipeline.buffer, sources=sources)
    assert isinstance(result, dg.SensorResult)
    return result


def requests(pipeline: Pipeline) -> list[dg.RunRequest]:
    """After two looks: a file has stood still then."""
    return list(tick(pipeline, tick(pipeline).cursor).run_requests or [])


def run(pipeline: Pipeline, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    job = pipeline.definitions.resolve_job_def(str(request.job_name))
    return job.execute_in_process(
        instance=pipeline.instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags=request.tags,
        raise_on_error=False,
    )


def prices(pipeline: Pipeline) -> dict[str, str]:
    return {code: label["pp"] for code, label in pipeline.labels(STORE).items()}


def check(result: dg.ExecuteInProcessResult, name: str = "shop_is_read") -> tuple[bool, str | None]:
    (found,) = (one for one in result.get_asset_check_evaluations() if one.check_name == name)
    return found.passed, found.description


def test_a_full_list_starts_the_whole_shop_and_a_change_list_its_changes(
    files: Pipeline, folder: Path
) -> None:
    assert requests(files) == []
    write(folder, "full.csv", full(TEA, MILK), at=1)
    assert tick(files).run_requests == []  # it may still be written
    (whole,) = requests(files)
    assert (whole.job_name, whole.partition_key) == ("full_reconciliation", KEY)
    done = run(files, whole)
    assert done.success and prices(files) == {T: "1.99", M: "0.99"}
    assert metadata(done, "file_products")["catalogue"] == 2
    assert requests(files) == []

    write(folder, "changes.csv", f"EAN;Preis\n{T};1,49\n", at=2)
    (changes,) = requests(files)
    assert changes.job_name == "catch_up"
    done = run(files, changes)
    assert done.success and check(done) == (True, "nothing stands in the way of reading")
    files.drain()
    assert prices(files)[T] == "1.49"
    assert requests(files) == []


class Timeless(MemoryFileSystem):
    """A storage that says no time that there is."""

    protocol = ("timeless",)

    def ls(self, path: str, detail: bool = True, **options: object) -> list[object]:
        return [{"name": f"{path}/full.csv", "size": 1, "type": "file", "mtime": 1e18}]


@pytest.mark.filterwarnings("ignore:UPath")
def test_what_one_shop_has_that_nobody_foresaw_keeps_no_news_of_others_back(
    files: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_implementation("timeless", f"{__name__}.Timeless", clobber=True)
    monkeypatch.setenv("FILES_FOLDERS", f"another=timeless://out,corner={folder}")
    map_shop(files.buffer, "another", "S9", source_system="files")
    write(folder, "full.csv", full(TEA), at=1)
    (whole,) = requests(files)
    assert whole.partition_key == KEY


def test_a_list_that_was_refused_or_waits_fails_the_check_and_says_why(files: Pipeline, folder: Path) -> None:
    write(folder, "full.csv", full(TEA, MILK), at=1)
    run(files, requests(files)[0])
    write(folder, "full-2.csv", full(TEA), at=2)
    write(folder, "changes.csv", "EAN;Preis\n1;2", at=3)
    found = {str(request.job_name): request for request in requests(files)}
    assert found.keys() == {"catch_up", "full_reconciliation"}
    for request in found.values():
        done = run(files, request)
        assert done.success
    passed, says = check(done)
    assert not passed and says is not None
    assert "full-2.csv is waiting: it lists 1 products" in says
    assert "changes.csv is refused: it is cut off: line 2 has no end" in says
    assert prices(files) == {T: "1.99", M: "0.99"}

    # What waits is no news, until somebody approves.
    assert requests(files) == []
    shop = {"source_system": "files", "source_store_id": "corner"}
    assert files.buffer.files_approve(shop=shop, name="full-2.csv", by="ann")
    (approved,) = requests(files)
    run(files, approved)
    assert files.buffer.files_list(shop=shop)[1]["state"] == "applied"


def test_a_night_without_its_list_compares_the_labels_all_the_same(files: Pipeline, folder: Path) -> None:
    write(folder, "full.csv", full(TEA, MILK), at=1)
    run(files, requests(files)[0])
    (folder / "full.csv").unlink()
    files.sandbox.http.put(f"/sandbox/labels/{STORE}/{T}", json={"pp": "0.01"}).raise_for_status()
    job = files.definitions.resolve_job_def("full_reconciliation")
    night = job.execute_in_process(instance=files.instance, partition_key=KEY)
    assert "not in its folder any more" in str(metadata(night, "file_products")["not read"])
    assert prices(files) == {T: "1.99", M: "0.99"}


def test_a_folder_that_cannot_be_read_is_no_other_shops_trouble(
    files: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILES_FOLDERS", f"corner={folder},gone={folder}/not-here")
    map_shop(files.buffer, "gone", "S2", source_system="files")
    write(folder, "full.csv", full(TEA), at=1)
    (request,) = requests(files)
    assert request.partition_key == KEY
    done: Any = files.definitions.resolve_job_def("catch_up").execute_in_process(
        instance=files.instance, raise_on_error=False
    )
    found = {one.partition: one for one in done.get_asset_check_evaluations()}
    assert not done.success and found[KEY].passed
    assert "is not there" in str(found["files:gone"].description)
    assert str(folder) not in str(found["files:gone"].description)
