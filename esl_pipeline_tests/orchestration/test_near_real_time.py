"""The drain job: all shops, one materialisation per asset and shop, one drain at a time."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg
import pytest
from psycopg.conninfo import conninfo_to_dict

from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.connections import LABEL_SERVER_TIMEOUT_SECONDS
from esl_pipeline.model.push import PushRules
from esl_pipeline.orchestration import journal, near_real_time, reports
from esl_pipeline.stages.drain import RELIEF_SECONDS, drain, lease_of
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


def materialisations(
    pipeline: Pipeline, result: dg.ExecuteInProcessResult
) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Metadata by asset and partition, as the event log has them; fails when one was logged twice."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for entry in pipeline.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        logged = entry.asset_materialization
        assert logged is not None
        key = (logged.asset_key.to_user_string(), logged.partition)
        assert key not in found
        found[key] = plain(logged.metadata)
    return found


def run_of(pipeline: Pipeline, result: dg.ExecuteInProcessResult) -> dg.DagsterRun:
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def test_one_run_for_all_shops(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, product(1), product(2, price="0"))
    arrive(pipeline.buffer, product(3), product(4), product(5), shop=OTHER_SHOP)

    result = pipeline.drain()

    assert set(pipeline.labels(STORE)) == {"C-1"}
    assert set(pipeline.labels(OTHER_STORE)) == {"C-3", "C-4", "C-5"}
    found = materialisations(pipeline, result)
    assert set(found) == {(asset, shop) for asset in ASSETS for shop in (KEY, OTHER_KEY)}
    assert [found["shopify_products", shop]["deliveries"] for shop in (KEY, OTHER_KEY)] == [2, 3]
    assert found["validated_variants", KEY]["labels to publish"] == 1
    assert found["validated_variants", KEY]["held back"] == 1
    assert found["validated_variants", OTHER_KEY]["labels to publish"] == 3
    assert found["validated_variants", OTHER_KEY]["findings"] == "none"
    assert found["hipoink_sync_results", OTHER_KEY]["labels written"] == 3
    assert pipeline.buffer.due().drain is None, "the lease is given back"
    (place,) = pipeline.buffer.trace("C-1")
    assert {row["run_id"] for row in place["log"]} == {result.run_id}
    assert {row["partition"] for row in place["log"]} == {KEY}


def test_the_checks_of_what_was_only_pushed_are_evaluated_too(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    for asset in ("shopify_products", "validated_variants"):
        pipeline.materialize(asset)

    result = pipeline.drain()

    found = {
        (check.check_name, check.partition, check.passed) for check in result.get_asset_check_evaluations()
    }
    assert {("label_accuracy", KEY, True), ("backlog", KEY, True)} <= found


def test_what_comes_while_it_runs_is_done_by_the_same_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    seen: list[int] = []
    add = near_real_time.Journal.add

    def arrive_once_more(journal: near_real_time.Journal, done: Any) -> None:
        add(journal, done)
        seen.append(len(done.events))
        if len(seen) == 1:
            arrive(pipeline.buffer, product(2))

    monkeypatch.setattr(near_real_time.Journal, "add", arrive_once_more)

    result = pipeline.drain()

    assert [events for events in seen if events] == [1, 1] and set(pipeline.labels(STORE)) == {"C-1", "C-2"}
    found = materialisations(pipeline, result)
    assert found["shopify_products", KEY]["deliveries"] == 2, "rounds are reported together"


def test_it_is_reported_although_it_fails_later(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    _after_a_push(monkeypatch, lambda: pipeline.sql("drop function public.esl_variants_due(jsonb)"))

    result = pipeline.drain(raise_on_error=False)

    assert not result.success
    assert materialisations(pipeline, result)["hipoink_sync_results", KEY]["labels written"] == 1


def test_beside_a_living_drain_it_does_nothing(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.buffer.lease_take(name=lease_of("default"), holder="somebody else", seconds=60)

    result = pipeline.drain()

    assert result.success and materialisations(pipeline, result) == {} and pipeline.labels(STORE) == {}
    assert pipeline.buffer.due().drain == "somebody else"


def test_it_takes_over_the_lease_that_its_sensor_took(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.buffer.lease_take(name=lease_of("default"), holder="from the sensor", seconds=60)

    assert pipeline.drain(holder="from the sensor").success

    assert set(pipeline.labels(STORE)) == {"C-1"}
    assert pipeline.buffer.due().drain is None


def test_a_permanent_failure_is_not_tried_again(pipeline: Pipeline) -> None:
    pipeline.sql("insert into esl.schema_migrations (version, name) values (9999, 'of the future')")

    result = pipeline.drain(raise_on_error=False)

    assert not result.success
    assert run_of(pipeline, result).tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_a_buffer_that_goes_away_fails_the_run_which_may_be_tried_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    database = conninfo_to_dict(pipeline.dsn)["dbname"]

    def pull_the_plug() -> None:
        pipeline.sql_elsewhere(f"alter database {database} allow_connections false")
        pipeline.sql_elsewhere(
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
        )

    _after_a_push(monkeypatch, pull_the_plug)

    result = pipeline.drain(raise_on_error=False)

    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "BufferUnavailable" in failure.step_failure_data.error_display_string
    run = run_of(pipeline, result)
    assert "dagster/retry_on_asset_or_op_failure" not in run.tags
    assert (run.tags["dagster/max_retries"], run.tags["dagster/max_runtime"]) == ("2", "4080")


def test_wrong_policies_are_said_and_hold_up_nobody_else(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer, settings={"nonsense": 1})
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, product(1))
    arrive(pipeline.buffer, product(2), shop=OTHER_SHOP)

    result = pipeline.drain()

    assert result.success
    assert set(pipeline.labels(OTHER_STORE)) == {"C-2"} and not pipeline.labels(STORE)


def test_field_35_the_closing_checks_are_asked_once_for_all_shops(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    map_shop(pipeline.buffer, "third.myshopify.com", "S3")
    arrive(pipeline.buffer, product(1))
    arrive(pipeline.buffer, product(2), shop=OTHER_SHOP)
    called: Counter[str] = Counter()
    call = PsycopgTransport.call

    def counted(transport: PsycopgTransport, function: str, p: Any) -> Any:
        called[function] += 1
        return call(transport, function, p)

    monkeypatch.setattr(PsycopgTransport, "call", counted)

    monkeypatch.setattr(journal, "_QUIET_SECONDS", 60.0)  # one report, at the end
    result = pipeline.drain()

    assert [called[name] for name in ("esl_status", "esl_preview", "esl_accuracy")] == [1, 1, 1]
    found = {(check.check_name, check.partition) for check in result.get_asset_check_evaluations()}
    names = {
        *(
            "quarantine_share",
            "codes_are_unique",
            "preview",
            "label_accuracy",
            "backlog",
            "webhooks_arrive",
            "alerts",
        )
    }
    assert found == {(name, shop) for name in names for shop in (KEY, OTHER_KEY)}
    assert all(check.passed for check in result.get_asset_check_evaluations())


@pytest.mark.parametrize("broken", ["status", "preview", "accuracy"])
def test_field_35_a_report_that_fails_fails_nothing_else(pipeline: Pipeline, broken: str) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.sql(
        f"create or replace function public.esl_{broken}(p jsonb) returns jsonb language plpgsql as"
        " $$ begin raise query_canceled; end $$"
    )

    result = pipeline.drain()

    assert result.success and set(pipeline.labels(STORE)) == {"C-1"}
    made = {check.check_name for check in result.get_asset_check_evaluations()}
    lost = {
        "status": {"backlog", "webhooks_arrive"},
        "accuracy": {"label_accuracy"},
        "preview": {"quarantine_share", "codes_are_unique", "preview"},
    }
    assert made == {"alerts"}.union(*lost.values()) - lost[broken]
    said = [entry.user_message for entry in pipeline.instance.all_logs(result.run_id)]
    assert any("could not be made" in text and min(lost[broken]) in text for text in said)


def test_field_35_a_materialisation_that_cannot_be_logged_fails_nothing_else(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, product(1))
    arrive(pipeline.buffer, product(2), shop=OTHER_SHOP)
    report = reports.labels_report

    def labels_report(labels: Any, found: Any) -> Any:
        if KEY.endswith(labels[0]["source_store_id"].iloc[0]):
            raise ValueError("a title that nobody thought of")
        return report(labels, found)

    monkeypatch.setattr(reports, "labels_report", labels_report)

    result = pipeline.drain()

    assert result.success and set(pipeline.labels(STORE)) == {"C-1"}
    every = {(asset, shop) for asset in ASSETS for shop in (KEY, OTHER_KEY)}
    assert set(materialisations(pipeline, result)) == every - {("validated_variants", KEY)}


def test_field_39_a_drain_may_be_as_old_as_its_setting_says(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esl_pipeline.definitions import build_definitions

    for seconds, runtime in (("600", "1080"), ("3600", "4080"), ("86400", "86880"), ("30.5", "511")):
        monkeypatch.setenv("ESL_DRAIN_MAX_AGE_SECONDS", seconds)
        monkeypatch.setenv("ESL_DRAIN_IDLE_SECONDS", "20")
        job = build_definitions().resolve_job_def("event_sync")
        assert job.tags["dagster/max_runtime"] == runtime
        assert (
            int(runtime)
            > float(seconds) + RELIEF_SECONDS + PushRules().lease + 2 * LABEL_SERVER_TIMEOUT_SECONDS
        )


def test_field_39_nothing_waits_beyond_the_age(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle time as long as the age would double it, and run monitoring would end the run as dead."""
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    monkeypatch.setenv("ESL_DRAIN_IDLE_SECONDS", "3600")
    monkeypatch.setenv("ESL_DRAIN_MAX_AGE_SECONDS", "3600")
    monkeypatch.setattr(near_real_time, "drain", partial(_drain_of_age, 1.5))

    started = time.monotonic()
    assert pipeline.drain().success

    assert time.monotonic() - started < 30 and set(pipeline.labels(STORE)) == {"C-1"}


def _drain_of_age(age: float, *args: Any, **options: Any) -> bool:
    *others, limits = args
    return drain(*others, replace(limits, age=age), **options)


def _after_a_push(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Not sooner: a batch that has not gone out when a drain fails is not sent, and comes again in the next."""
    add = near_real_time.Journal.add

    def add_and_act(journal: near_real_time.Journal, done: Any) -> None:
        add(journal, done)
        if done.was_accepted:
            act()

    monkeypatch.setattr(near_real_time.Journal, "add", add_and_act)
