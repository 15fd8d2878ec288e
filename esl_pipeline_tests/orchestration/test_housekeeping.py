"""What is no longer kept goes once a day: bodies, shops that left, frames and run records; the rest stays."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from starlette.datastructures import Headers

from esl_pipeline.local.shopify.sandbox import TOKEN
from esl_pipeline.local.shopify.server import running_shopify
from esl_pipeline.receiver.deliveries import delivery
from esl_pipeline_tests.local.shopify import small_shop
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import KEY, SHOP, arrive, map_shop, product
from esl_pipeline_tests.receiver.support import signed


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
