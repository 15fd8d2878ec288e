"""What Dagster loads: names that users meet, in one literal each."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from esl_pipeline.commands.health import SENSORS
from esl_pipeline.settings import SettingsError


@pytest.fixture
def build() -> Callable[..., dg.Definitions]:
    from esl_pipeline.definitions import build_definitions

    return build_definitions


def test_they_load(build: Callable[..., dg.Definitions]) -> None:
    dg.Definitions.validate_loadable(build())
    from esl_pipeline.definitions import defs

    dg.Definitions.validate_loadable(defs)


def test_the_graph(build: Callable[..., dg.Definitions]) -> None:
    graph = build().resolve_asset_graph()
    assert {
        key.to_user_string(): {
            "after": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
            "kinds": sorted(graph.get(key).kinds),
            "owners": graph.get(key).owners,
            "group": graph.get(key).group_name,
            "partitions": getattr(graph.get(key).partitions_def, "name", None),
        }
        for key in graph.get_all_asset_keys()
    } == {
        "webhook_inbox": {
            "after": [],
            "kinds": ["postgres"],
            "owners": ["team:esl"],
            "group": "labels",
            "partitions": None,
        },
        "shopify_products": {
            "after": ["webhook_inbox"],
            "kinds": ["postgres", "shopify"],
            "owners": ["team:esl"],
            "group": "labels",
            "partitions": "shops",
        },
        "validated_variants": {
            "after": ["shopify_products"],
            "kinds": ["pandas", "pandera"],
            "owners": ["team:esl"],
            "group": "labels",
            "partitions": "shops",
        },
        "hipoink_sync_results": {
            "after": ["validated_variants"],
            "kinds": ["hipoink", "postgres"],
            "owners": ["team:esl"],
            "group": "labels",
            "partitions": "shops",
        },
        "shelf_labels": {
            "after": ["hipoink_sync_results"],
            "kinds": ["hipoink", "postgres"],
            "owners": ["team:esl"],
            "group": "labels",
            "partitions": "shops",
        },
    }


def test_jobs_sensors_and_schedules(
    build: Callable[..., dg.Definitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNC_WORKER_INTERVAL_SECONDS", "7")
    monkeypatch.setenv("ESL_NIGHTLY_CRON", "30 1 * * *")
    monkeypatch.setenv("ESL_NIGHTLY_TIME_ZONE", "Europe/Berlin")
    repository = build().get_repository_def()
    assert sorted(name for name in repository.job_names if not name.startswith("__")) == [
        "catch_up",
        "event_sync",
        "full_reconciliation",
        "housekeeping",
        "probe",
        "shelf",
        "shopify_connections",
    ]
    assert [
        (
            s.name,
            [target.job_name for target in s.targets],
            s.minimum_interval_seconds,
            s.default_status.value,
        )
        for s in repository.sensor_defs
    ] == [
        ("alert_sensor", [], 10, "RUNNING"),
        ("inbox_sensor", ["event_sync"], 7, "RUNNING"),
        ("silence_sensor", [], 300, "RUNNING"),
    ]
    assert [
        (s.name, s.job_name, s.cron_schedule, s.execution_timezone, s.default_status.value)
        for s in repository.schedule_defs
    ] == [
        ("catch_up", "catch_up", "*/15 * * * *", None, "RUNNING"),
        ("housekeeping_daily", "housekeeping", "30 4 * * *", "Europe/Berlin", "RUNNING"),
        ("nightly_reconciliation", "full_reconciliation", "30 1 * * *", "Europe/Berlin", "RUNNING"),
        ("probe", "probe", "23 */6 * * *", None, "RUNNING"),
        ("shelf", "shelf", "*/15 * * * *", None, "RUNNING"),
        ("shopify_connections_daily", "shopify_connections", "30 5 * * *", "Europe/Berlin", "RUNNING"),
    ]
    checks = {
        (key.asset_key.to_user_string(), key.name) for key in build().resolve_asset_graph().asset_check_keys
    }
    assert checks == {
        ("shopify_products", "webhooks_arrive"),
        ("shopify_products", "shop_is_read"),
        ("shopify_products", "shopify_connection"),
        ("validated_variants", "quarantine_share"),
        ("validated_variants", "codes_are_unique"),
        ("validated_variants", "preview"),
        ("hipoink_sync_results", "label_accuracy"),
        ("hipoink_sync_results", "backlog"),
        ("hipoink_sync_results", "alerts"),
        ("shelf_labels", "labels_reachable"),
        ("shelf_labels", "batteries"),
        ("shelf_labels", "bindings"),
        ("shelf_labels", "shelf_is_fresh"),
    }
    tags = dict(repository.get_job("event_sync").tags)
    assert "512Mi" in tags.pop("dagster-k8s/config")  # which deploy/test_pods.py looks at
    assert tags == {
        "dagster/max_runtime": "4080",
        "dagster/max_retries": "2",
        "esl/role": "drain",
    }
    assert repository.get_job("full_reconciliation").tags["dagster/retry_strategy"] == "ALL_STEPS"
    assert sorted(repository.get_top_level_resources()) == ["buffer", "frames", "label_server", "sources"]


def test_resources_can_be_replaced(build: Callable[..., dg.Definitions]) -> None:
    class Memory(dg.InMemoryIOManager):
        pass

    frames = Memory()
    found: dict[str, Any] = dict(build(frames=frames).resources or {})
    assert found["frames"] is frames and set(found) == {"buffer", "frames", "label_server", "sources"}


def test_every_wrong_setting_is_named(
    build: Callable[..., dg.Definitions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIPOINK_RATE_LIMIT_PER_SECOND", "fast")
    monkeypatch.setenv("ESL_DATABASE_URL", "mysql://secret@elsewhere")
    with pytest.raises(SettingsError) as caught:
        build()
    names = [problem.partition(":")[0] for problem in caught.value.problems]
    assert sorted(names) == ["ESL_DATABASE_URL", "HIPOINK_RATE_LIMIT_PER_SECOND"]
    assert "secret" not in str(caught.value)


@pytest.mark.long
def test_loading_needs_no_connection() -> None:
    """A code server starts although the buffer is away: its runs say so."""
    code = (
        "import os; os.environ |= {'ESL_DATABASE_URL': 'postgresql://nobody@127.0.0.1:9/none',"
        " 'HIPOINK_API_BASE_URL': 'http://127.0.0.1:9'}; from esl_pipeline.definitions import defs;"
        " print(len(defs.assets))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "5"


def test_the_sensors_that_health_asks_about_are_there(build: Callable[..., dg.Definitions]) -> None:
    assert set(SENSORS) <= {sensor.name for sensor in build().sensors or ()}
