"""What is no longer kept goes once a day: bodies, shops that left, frames and run records; the rest stays."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import KEY, arrive, map_shop, product


@pytest.fixture
def tidied(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    monkeypatch.setenv("ESL_FRAMES_URL", str(tmp_path / "frames"))
    return pipeline


def keep_house(pipeline: Pipeline) -> dg.ExecuteInProcessResult:
    return pipeline.definitions.resolve_job_def("housekeeping").execute_in_process(instance=pipeline.instance)


def frames(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))


def test_s12_bodies_and_frames_of_old_go(tidied: Pipeline, tmp_path: Path) -> None:
    map_shop(tidied.buffer)
    arrive(tidied.buffer, product(1))
    first = tidied.materialize().run_id
    second = tidied.materialize().run_id
    kept = frames(tmp_path / "frames")
    assert keep_house(tidied).success
    assert frames(tmp_path / "frames") == kept  # nothing is old yet

    aged = time.time() - 31 * 86_400
    for path in (tmp_path / "frames").rglob(f"{first}.parquet"):
        os.utime(path, (aged, aged))
    tidied.sql("update esl.webhook_inbox set finished_at = finished_at - interval '31 d'")
    assert keep_house(tidied).success
    left = frames(tmp_path / "frames")
    assert left == [name for name in kept if second in name] and any(first in name for name in kept)
    assert tidied.buffer.housekeep(keep_bodies_days=1)["bodies"] == 0


def test_old_run_records_of_successful_drain_runs_go_and_others_stay(tidied: Pipeline) -> None:
    from esl_pipeline.orchestration.housekeeping import delete_runs

    map_shop(tidied.buffer)
    arrive(tidied.buffer, product(1))
    drained = [tidied.drain().run_id for _ in range(2)]
    whole = tidied.materialize(shop=KEY).run_id
    now = datetime.now(UTC)
    assert delete_runs(tidied.instance, now - timedelta(days=1)) == 0
    assert delete_runs(tidied.instance, now + timedelta(seconds=1)) == 2
    assert [tidied.instance.get_run_by_id(run) for run in drained] == [None, None]
    assert tidied.instance.get_run_by_id(whole) is not None
    assert tidied.buffer.status()["stores"][0]["on_labels"] == 1
