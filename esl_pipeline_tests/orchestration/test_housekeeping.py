"""What is no longer kept goes once a day: bodies, shops that left, frames and run records; the rest stays."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
from starlette.datastructures import Headers

from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.orchestration import housekeeping
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.world import KEY, OTHER_KEY, OTHER_SHOP, SHOP, arrive, map_shop, product
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.sandbox.shopify.support import small_shop

pytestmark = pytest.mark.long

SHIPPED = Path(__file__).parents[2] / "dagster.yaml"


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


def test_field_13_housekeeping_asks_the_shop_before_it_erases_it(
    tidied: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(tidied.buffer)
    arrive(tidied.buffer, product(1))
    tidied.drain()

    def leave() -> None:
        now = datetime.now(UTC)
        for topic, body in {
            "app/uninstalled": {"myshopify_domain": SHOP, "updated_at": now.isoformat()},
            "shop/redact": {"shop_id": 1, "shop_domain": SHOP},
        }.items():
            raw = json.dumps(body).encode()
            tidied.buffer.inbox_add(
                [delivery(topic, Headers(signed(topic, raw, shop_domain=SHOP)), raw, now)]
            )
        with psycopg.connect(tidied.dsn) as connection:  # two days later
            connection.execute("update esl.redactions set not_before = now()")

    def told(query: str) -> list[Any]:
        with psycopg.connect(tidied.dsn) as connection:
            return [value for (value,) in connection.execute(query.encode())]

    with running_shopify(small_shop(), token=TOKEN) as running:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", running.url)
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", TOKEN)
        leave()
        assert keep_house(tidied).success
        (void,) = told("select void from esl.redactions")
        assert "still takes our Admin token" in void
        assert told("select variant_id from esl.products") == ["1000"]
        leave()
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", "shpat_revoked")
        assert keep_house(tidied).success
        assert told("select variant_id from esl.products") == []


@pytest.fixture
def stored(
    tidied: Pipeline, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Pipeline]:
    """With the shipped dagster.yaml on Postgres, as in production."""
    name = f"dagster_{uuid4().hex}"
    postgres.create_database(name)
    monkeypatch.setenv(
        "ESL_DAGSTER_DATABASE_URL",
        postgres.dsn(name).replace("postgresql://", "postgresql+psycopg2://", 1),
    )
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(SHIPPED, home)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("shops", [KEY, OTHER_KEY])
        yield replace(tidied, instance=instance, dagster_dsn=postgres.dsn(name))


def dagster_sql(pipeline: Pipeline, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(pipeline.dagster_dsn) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def days_pass(pipeline: Pipeline, days: int) -> None:
    """For all that Dagster has recorded."""
    dagster_sql(pipeline, f"update runs set create_timestamp = create_timestamp - interval '{days} d'")
    dagster_sql(
        pipeline,
        f"update asset_check_executions set create_timestamp = create_timestamp - interval '{days} d'",
    )
    for folder in Path(pipeline.instance.storage_directory()).iterdir():
        aged = folder.stat().st_mtime - days * 86_400
        os.utime(folder, (aged, aged))


@pytest.mark.long
def test_field_42_nothing_that_runs_leave_grows_for_ever(stored: Pipeline) -> None:
    map_shop(stored.buffer)
    map_shop(stored.buffer, OTHER_SHOP, "S2")
    arrive(stored.buffer, product(1), shop=OTHER_SHOP)
    quiet = stored.drain().run_id  # nothing comes from that shop any more
    job = stored.definitions.resolve_job_def
    for number in range(1, 4):
        arrive(stored.buffer, product(number))
        newest = stored.drain().run_id
        assert job("catch_up").execute_in_process(instance=stored.instance).success
        assert keep_house(stored).success
    stored.sql("insert into esl.schema_migrations (version, name) values (9999, 'of the future')")
    failed = stored.drain(raise_on_error=False).run_id
    stored.sql("delete from esl.schema_migrations where version = 9999")
    cancelled = stored.instance.create_run_for_job(job("catch_up"))
    stored.instance.report_run_canceled(cancelled)
    folders = Path(stored.instance.storage_directory())
    (folders / str(uuid4()) / "compute_logs").mkdir(parents=True)  # its record went with an earlier release
    everything = set(stored.instance.get_run_ids())
    assert len(everything) == 12 and len(list(folders.iterdir())) > 10

    days_pass(stored, 29)
    keep_house(stored)
    assert everything <= set(stored.instance.get_run_ids())

    days_pass(stored, 2)
    last = keep_house(stored).run_id
    kept = {quiet, newest, failed, cancelled.run_id}
    assert set(stored.instance.get_run_ids()) & everything == kept
    for asset in ASSETS:
        for partition, run_id in ((KEY, newest), (OTHER_KEY, quiet)):
            wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition])
            assert [r.run_id for r in stored.instance.fetch_materializations(wanted, limit=9).records] == [
                run_id
            ]

    days_pass(stored, 60)
    last = keep_house(stored).run_id
    assert set(stored.instance.get_run_ids()) == {quiet, newest, last}

    # What is left of everything: rows of three runs, one evaluation of each check, folders of runs that are there.
    assert {run for (run,) in dagster_sql(stored, "select distinct run_id from event_logs")} == {
        quiet,
        newest,
        last,
    }
    assert {run for (run,) in dagster_sql(stored, "select distinct run_id from run_tags")} <= {
        quiet,
        newest,
        last,
    }
    left = Counter(dagster_sql(stored, "select check_name, partition from asset_check_executions"))
    assert set(left.values()) == {1} and ("label_accuracy", KEY) in left
    assert {folder.name for folder in folders.iterdir()} <= {quiet, newest, last}


@pytest.mark.long
def test_field_42_a_part_that_fails_keeps_no_other_from_its_turn(
    tidied: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(tidied.buffer)
    arrive(tidied.buffer, product(1))
    drained = tidied.drain().run_id
    tidied.materialize()
    tidied.sql("drop function public.esl_housekeep(jsonb)")
    monkeypatch.setenv("ESL_KEEP_RUNS_DAYS", "1")
    monkeypatch.setattr(housekeeping, "datetime", _InTwoDays)

    failed = tidied.definitions.resolve_job_def("housekeeping").execute_in_process(
        instance=tidied.instance, raise_on_error=False
    )

    assert not failed.success
    assert "the buffer: " in str(failed.failure_data_for_node("tidy_up"))
    assert tidied.instance.get_run_by_id(drained) is None


class _InTwoDays(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + timedelta(days=2)
