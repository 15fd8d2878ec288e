"""Dagster's pages say of each shop what is so, whichever shop was looked at last."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.orchestration import journal, near_real_time, shops
from esl_pipeline.orchestration.evaluations import EVALUATED_AT, Judged, newest
from esl_pipeline.orchestration.reports import OUTCOME, OUTCOME_TAG
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.dagster_pages import Pages
from esl_pipeline_tests.orchestration.test_sensor import tick
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

RESULTS, VARIANTS, PRODUCTS = "hipoink_sync_results", "validated_variants", "shopify_products"
NOBODY = "shopify:nobody.myshopify.com"
GOOD, REFUSED, OTHERS = range(1, 9), range(101, 113), range(201, 206)


@pytest.fixture
def pipeline(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """With an instance that a webserver takes, and short ticks."""
    monkeypatch.setattr(near_real_time, "HOLD_SECONDS", 0.2)
    with dg.instance_for_test(temp_dir=str(tmp_path), set_dagster_home=False) as instance:
        instance.add_dynamic_partitions("shops", [KEY, OTHER_KEY])
        yield replace(pipeline, instance=instance)


@pytest.fixture
def pages(pipeline: Pipeline) -> Iterator[Pages]:
    with Pages.over(pipeline.instance) as found:
        yield found


def two_shops(pipeline: Pipeline) -> None:
    """Of the first, twelve labels of twenty are refused for good; of the other none."""
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    arrive(pipeline.buffer, *(product(n) for n in GOOD))
    arrive(pipeline.buffer, *(product(n) for n in OTHERS), shop=OTHER_SHOP)
    pipeline.drain()
    refuse(pipeline)
    pipeline.drain()
    pipeline.sql("update esl.sync_queue set state = 'failed'")  # the end of hours of refusals


def refuse(pipeline: Pipeline) -> None:
    """Twelve labels of the first shop will be refused."""
    codes = [f"C-{n}" for n in REFUSED]
    pipeline.sandbox.faults({"kind": "error", "error_msg": "no such template", "codes": codes})
    arrive(pipeline.buffer, *(product(n) for n in REFUSED))


def bring(pipeline: Pipeline, shop: str) -> None:
    """Something new of a shop, whose checks are judged again for it."""
    number = GOOD[0] if shop == SHOP else OTHERS[0]
    arrive(pipeline.buffer, product(number, price="7.77"), shop=shop)


def by_drain(pipeline: Pipeline, order: Sequence[str]) -> None:
    for shop in order:
        bring(pipeline, shop)
        assert pipeline.drain().success


def by_night(pipeline: Pipeline, order: Sequence[str]) -> None:
    for shop in order:
        bring(pipeline, shop)
        by_hand(pipeline, f"shopify:{shop}", "all")


def by_hand(pipeline: Pipeline, key: str, job: str) -> dg.ExecuteInProcessResult:
    """As the UI's Materialize button does it: the assets with their checks."""
    made = dg.define_asset_job(job, selection=dg.AssetSelection.assets(*ASSETS))
    merged = dg.Definitions.merge(pipeline.definitions, dg.Definitions(jobs=[made]))
    return merged.resolve_job_def(job).execute_in_process(
        instance=pipeline.instance, partition_key=key, raise_on_error=False
    )


@pytest.mark.parametrize("bring_in", [by_drain, by_night])
@pytest.mark.parametrize("order", [(SHOP, OTHER_SHOP), (OTHER_SHOP, SHOP)])
def test_two_shops_one_with_refused_labels_in_either_order(
    pipeline: Pipeline, pages: Pages, bring_in: Any, order: Sequence[str]
) -> None:
    two_shops(pipeline)

    bring_in(pipeline, order)

    assert len(pipeline.labels(STORE)) == 8 and len(pipeline.labels(OTHER_STORE)) == 5
    checks = pages.checks(RESULTS)
    for name in ("label_accuracy", "backlog"):
        statuses = checks[name]["partitionStatuses"]
        assert (statuses["failedPartitions"], statuses["succeededPartitions"]) == ([KEY], [OTHER_KEY]), name
        latest = checks[name]["executionForLatestMaterialization"]
        last = f"shopify:{order[-1]}"
        assert (latest["partition"], latest["evaluation"]["partition"]) == (last, last)
        assert latest["status"] == ("FAILED" if order[-1] == SHOP else "SUCCEEDED")
    look(pipeline)
    assert pages.colours(RESULTS) == {"label_accuracy": "ERROR", "backlog": "WARN", "alerts": "SUCCEEDED"}
    assert set(pages.colours(VARIANTS).values()) == {"SUCCEEDED"}
    before = len(accuracies(pipeline))
    tick(pipeline)
    assert len(accuracies(pipeline)) == before, "it is said once"
    for asset in ASSETS:
        assert pages.is_red(asset) is (asset == RESULTS)
        assert pages.asset(asset)["partitionStats"]["numMaterialized"] == 2
    of_first = said(pipeline, "label_accuracy", KEY)
    # The one that has changed since may wait: the store's labels do, after so many refusals.
    assert re.match(
        r"[78] of 20 labels are accepted as the source has them now .* less than the 98 %", of_first
    )
    assert "12 labels were refused or given up" in said(pipeline, "backlog", KEY)
    assert "nothing waits" in said(pipeline, "backlog", OTHER_KEY)


def look(pipeline: Pipeline) -> None:
    """A tick of the sensor that is always at work."""
    tick(pipeline)


def accuracies(pipeline: Pipeline) -> list[object]:
    key = dg.AssetCheckKey(dg.AssetKey(RESULTS), "label_accuracy")
    return list(pipeline.instance.event_log_storage.get_asset_check_execution_history(key, limit=50))


def said(pipeline: Pipeline, check: str, shop: str, asset: str = RESULTS) -> str:
    """What a check said last of a shop."""
    return str(evaluation(pipeline, check, shop, asset).description)


def evaluation(pipeline: Pipeline, check: str, shop: str, asset: str = RESULTS) -> dg.AssetCheckEvaluation:
    history = pipeline.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey(asset), check), limit=50
    )
    found = [record.evaluation for record in history if record.partition == shop]
    assert isinstance(found[0], dg.AssetCheckEvaluation)
    return found[0]


def test_every_check_of_what_a_drain_reports_is_about_what_it_reports(
    pipeline: Pipeline, pages: Pages
) -> None:
    map_shop(pipeline.buffer)
    for name in ("shop_is_read", "shopify_connection"):  # catch_up and the connections' job have said so
        result = dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description="no token"
        )
        pipeline.instance.report_runless_asset_event(
            Judged.of(PRODUCTS, name, KEY, result).event(pipeline.instance)
        )
    for price in ("1.00", "2.00"):
        arrive(pipeline.buffer, product(1, price=price))
        pipeline.drain()

        for asset in ASSETS:
            for name, check in pages.checks(asset).items():
                statuses = check["partitionStatuses"]
                failed = name in ("shop_is_read", "shopify_connection")
                assert (statuses["failedPartitions"] == [KEY]) is failed, name
                assert (statuses["succeededPartitions"] == [KEY]) is not failed, name
                target = evaluation(pipeline, name, KEY, asset).target_materialization_data
                assert target == newest(pipeline.instance, asset, KEY) and target is not None
    repeated = evaluation(pipeline, "shop_is_read", KEY, PRODUCTS)
    assert repeated.description == "no token" and EVALUATED_AT in repeated.metadata


def test_while_a_drain_is_at_work_a_failing_check_stays_failed(
    pipeline: Pipeline, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen after each round: a materialisation is never without its checks for longer than a moment."""
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, *(product(n) for n in REFUSED))
    pipeline.materialize("shopify_products", "validated_variants")
    pipeline.sql("update esl.sync_queue set state = 'failed'")
    by_drain(pipeline, (SHOP,))
    seen: list[list[str]] = []
    add = journal.Journal.add

    def look(self: journal.Journal, done: Any) -> None:
        add(self, done)
        deadline = time.monotonic() + 20
        while (self._rounds or self._asked or self._reports) and time.monotonic() < deadline:
            self.rest()  # as the drain does while it waits
        seen.append(pages.checks(RESULTS)["backlog"]["partitionStatuses"]["failedPartitions"])
        if len(seen) < 4:
            arrive(pipeline.buffer, product(len(seen), price=f"{len(seen)}.20"))

    monkeypatch.setattr(journal.Journal, "add", look)
    monkeypatch.setattr(journal, "_QUIET_SECONDS", 0.0)
    monkeypatch.setattr(journal, "_REPORT_SECONDS", 0.0)
    monkeypatch.setattr(journal, "_CHECKS_SHARE", 1.0)
    arrive(pipeline.buffer, product(1, price="9.20"))

    result = pipeline.drain()

    made = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
    assert len([event for event in made if event.asset_key == dg.AssetKey(RESULTS)]) > 1, "several reports"
    assert len(seen) >= 4 and all(found == [KEY] for found in seen)


def test_pushes_that_changed_nothing_are_no_materialisation(pipeline: Pipeline, pages: Pages) -> None:
    map_shop(pipeline.buffer)
    pipeline.sandbox.faults({"kind": "status", "status": 503})
    arrive(pipeline.buffer, product(1), product(2))

    result = pipeline.drain()

    assert pages.asset(RESULTS)["partitionStats"]["numMaterialized"] == 0
    (observed,) = [
        event.event_specific_data.asset_observation
        for event in result.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]
    assert observed.partition == KEY
    assert observed.description.startswith("0 labels written, 2 to be tried again; the last said: ")
    assert next(iter(observed.metadata)) == OUTCOME
    status, tags = pages.run(result.run_id)
    assert status == "SUCCESS" and tags[OUTCOME_TAG].startswith("0 labels written, 2 to be tried again, ")


def test_a_run_says_what_it_came_to(pipeline: Pipeline, pages: Pages) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    refuse(pipeline)
    arrive(pipeline.buffer, *(product(n) for n in OTHERS), shop=OTHER_SHOP)

    result = pipeline.drain()

    _, tags = pages.run(result.run_id)
    outcome = tags[OUTCOME_TAG]
    assert outcome.startswith("5 labels written, 12 refused, ") and "no such template" in outcome
    assert float(outcome.split(", ")[2].split(" s;")[0]) < 60
    lines = [
        entry
        for entry in pipeline.instance.all_logs(result.run_id)
        if entry.user_message and not entry.is_dagster_event
    ]
    assert lines[-1].user_message == outcome and lines[-1].level == 30, "a warning, the last line"
    night = by_hand(pipeline, OTHER_KEY, "all")
    assert pages.run(night.run_id)[1][OUTCOME_TAG].startswith("no label was due, ")


def test_a_shop_that_no_mapping_has_is_refused_and_leaves_nothing_red(
    pipeline: Pipeline, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    pipeline.drain()
    pipeline.instance.add_dynamic_partitions("shops", [NOBODY])

    refused = by_hand(pipeline, NOBODY, "all")

    (failure,) = [event for event in refused.all_events if event.is_step_failure]
    assert failure.event_specific_data.error.message.strip().endswith(f"no such shop is mapped: {NOBODY}")
    assert pages.run(refused.run_id)[0] == "CANCELED"
    monkeypatch.setattr(shops, "_UNMAPPED_STAYS_SECONDS", 0.0)
    tick(pipeline)
    assert NOBODY not in pipeline.instance.get_dynamic_partitions("shops")
    for asset in ASSETS:
        stats = pages.asset(asset)["partitionStats"]
        assert (stats["numFailed"], stats["numMaterialized"]) == (0, 1) and not pages.is_red(asset), asset
        assert not {"ERROR", "WARN"} & set(pages.colours(asset).values())


def test_a_partition_is_removed_after_a_minute_without_a_run(pipeline: Pipeline) -> None:
    instance, unmapped = pipeline.instance, {NOBODY}
    instance.add_dynamic_partitions("shops", [NOBODY])

    cursor, removed = shops.without_unmapped(instance, unmapped, cursor=None, now=1000.0)
    assert removed == []
    assert shops.without_unmapped(instance, unmapped, cursor=cursor, now=1059.0) == (cursor, [])
    run = instance.create_run_for_job(
        pipeline.definitions.resolve_job_def("housekeeping"), tags={"dagster/partition": NOBODY}
    )
    assert shops.without_unmapped(instance, unmapped, cursor=cursor, now=1061.0)[1] == []
    instance.report_run_canceled(run)
    assert shops.without_unmapped(instance, unmapped, cursor=cursor, now=1061.0) == ("{}", [NOBODY])
    assert sorted(instance.get_dynamic_partitions("shops")) == [KEY, OTHER_KEY]
    for typed in ("nonsense", "[]", '{"a": {}}'):
        assert shops.without_unmapped(instance, unmapped, cursor=typed, now=2000.0)[1] == []


def test_what_is_plotted_has_a_line_for_each_shop(pipeline: Pipeline, pages: Pages) -> None:
    two_shops(pipeline)
    by_drain(pipeline, (SHOP, OTHER_SHOP))
    by_hand(pipeline, KEY, "all")

    lines = {
        (asset, check): pages.plotted(asset, check)
        for asset in ASSETS
        for check in (None, *pages.checks(asset))
    }

    for of, labels in lines.items():
        assert all(label.endswith((f", {KEY}", f", {OTHER_KEY}")) for label in labels), of
    assert {f"labels written, {KEY}", f"labels written, {OTHER_KEY}"} <= lines[RESULTS, None]
    assert {f"label accuracy (%), {KEY}", f"label accuracy (%), {OTHER_KEY}"} <= lines[
        RESULTS, "label_accuracy"
    ]


@pytest.mark.parametrize(
    ("job", "config", "says"),
    [
        ("event_sync", {"drain_events": {"label_server": "north"}}, "no label server"),
        ("catch_up", {"read_recent_changes": {"shops": [NOBODY]}}, f"no such shop is mapped: {NOBODY}"),
        ("shelf", {"read_shelves": {"shops": ["a:b", "c:d"]}}, "no such shops are mapped: a:b, c:d"),
        ("shelf", {"read_shelves": {"minutes": -1}}, "minutes is -1.0: input should be greater than 0"),
        ("probe", {"probe_labels": {"wait": 0}}, "wait is 0.0: input should be greater than 0"),
    ],
)
def test_a_bad_value_in_the_launchpad_is_one_sentence(
    pipeline: Pipeline, job: str, config: dict[str, Any], says: str
) -> None:
    result = pipeline.definitions.resolve_job_def(job).execute_in_process(
        instance=pipeline.instance,
        run_config={"ops": {name: {"config": value} for name, value in config.items()}},
        raise_on_error=False,
    )

    (failure,) = [event for event in result.all_events if event.is_step_failure]
    message = failure.event_specific_data.error.message.strip()
    assert says in message and "\n" not in message and "pydantic" not in message
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None and run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_every_field_of_the_launchpad_is_explained(pages: Pages, pipeline: Pipeline) -> None:
    forms = {
        "event_sync": {"label_server", "keep_warm"},
        "full_reconciliation": {"whole_catalogue", "compare"},
        "catch_up": {"shops"},
        "shelf": {"shops", "minutes"},
        "probe": {"wait", "quiet"},
    }
    for job, names in forms.items():
        fields = pages.fields(job)
        assert all(len(fields[name] or "") > 20 for name in names), job
        assert "holder" not in fields


def test_a_drain_asks_the_buffer_no_more_often_than_before(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three calls for the checks of all that was done within ten seconds, however many rounds that were."""
    map_shop(pipeline.buffer)
    asked: list[str] = []
    call = PsycopgTransport.call

    def counted(transport: PsycopgTransport, function: str, p: Any) -> Any:
        asked.append(function)
        return call(transport, function, p)

    rounds: list[Any] = []
    add = journal.Journal.add

    def again(self: journal.Journal, done: Any) -> None:
        add(self, done)
        rounds.append(done)
        if len(rounds) < 6:
            arrive(pipeline.buffer, product(1, price=f"{len(rounds)}.10"))

    monkeypatch.setattr(journal.Journal, "add", again)
    arrive(pipeline.buffer, product(1))
    monkeypatch.setattr(PsycopgTransport, "call", counted)

    pipeline.drain()

    assert len(rounds) >= 6
    for name in ("esl_status", "esl_preview", "esl_accuracy"):
        assert asked.count(name) <= 2, "one report, or two where the machine is slow"
