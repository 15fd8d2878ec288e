"""alert_sensor: each trouble is told once when it begins and once when it ends, whatever happens on the way."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.event_api import PartitionKeyFilter

from esl_pipeline.alerts import round as rounds
from esl_pipeline.alerts.catalogue import KINDS
from esl_pipeline.orchestration import instance_troubles
from esl_pipeline.orchestration.alert_check import ASSET, NAME
from esl_pipeline.orchestration.alerts import OF_INSTANCE
from esl_pipeline_tests.alerts.listener import PATH, Listener, listening
from esl_pipeline_tests.orchestration.alert_world import TROUBLES, Trouble, Watch, cron_before
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.world import (
    KEY,
    OTHER_KEY,
    OTHER_SHOP,
    OTHER_STORE,
    SHOP,
    map_shop,
)

pytestmark = pytest.mark.long

DOWN = next(trouble for trouble in TROUBLES if trouble.kind == "server_down")
REFUSED = next(trouble for trouble in TROUBLES if trouble.kind == "labels_refused")
UNREAD = {"SHOPIFY_ADMIN_TOKEN": ""}


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


@pytest.fixture
def watch(pipeline: Pipeline, listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watch:
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"info={listener.url}")
    monkeypatch.setenv("ESL_HOME", str(tmp_path))
    map_shop(pipeline.buffer)
    return Watch(pipeline, listener)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.kind)
def test_each_is_told_once_when_it_begins_and_once_when_it_ends(watch: Watch, trouble: Trouble) -> None:
    watch.asks_instance = trouble.kind in OF_INSTANCE
    watch.tick()
    trouble.begin(watch)
    assert watch.settle() == [("opened", trouble.kind)]
    (told,) = watch.listener.alerts()
    assert (told["subject"], told["severity"], told["labels"]) == (
        trouble.subject,
        trouble.severity,
        trouble.labels,
    )
    assert trouble.says in told["says"] and told["shops"] == ([] if trouble.kind == "run_failed" else [KEY])
    trouble.end(watch)
    assert watch.settle() == [("opened", trouble.kind), ("closed", trouble.kind)]
    (closed,) = watch.pipeline.buffer.alert_list()
    assert closed["closed_at"] and watch.pipeline.buffer.alert_list(is_open=True) == []


def test_all_kinds_are_provoked_somewhere_here() -> None:
    elsewhere = {"night_missing", "night_late", "housekeeping_late", "storage_low", "not_judged"}
    assert {trouble.kind for trouble in TROUBLES} | elsewhere == set(KINDS)


# The way to people


def test_a_message_says_it_to_people_and_to_machines(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_DAGSTER_URL", "https://dagster.example.com/")
    DOWN.begin(watch)
    watch.settle()
    (message,) = watch.listener.messages
    first, since, todo, link = message["text"].splitlines()
    assert first.startswith("[CRITICAL] The label server is down: ")
    assert first.endswith(f"3 labels wait; store S1; shop {SHOP}.")
    assert since.startswith("Since 20") and since.endswith("Z.")
    assert todo == f"What to do: {KINDS['server_down'].todo}" and link == "https://dagster.example.com/"
    (fields,) = message["alerts"]
    assert message["source"] == "esl-pipeline" and len(fields["id"]) == 36
    assert fields["shop_count"] == 1 and fields["closed_at"] is None and fields["since"] in str(fields)


def test_a_dead_alert_server_loses_none(watch: Watch) -> None:
    watch.listener.status = 500
    DOWN.begin(watch)
    watch.settle()
    DOWN.end(watch)
    watch.settle()
    REFUSED.begin(watch)
    watch.settle()
    assert watch.listener.messages == [] and len(watch.listener.calls) > 3
    tried = watch.pipeline.buffer.alert_list()[0]["told"][0]
    assert tried["last_error"] == "HTTP 500" and tried["sent_at"] is None
    watch.listener.status = 200
    assert watch.settle() == [
        ("opened", "server_down"),
        ("closed", "server_down"),
        ("opened", "labels_refused"),
    ]
    assert len({alert["id"] for alert in watch.listener.alerts()}) == 3


def test_it_is_tried_again_later_each_time_and_what_is_new_waits_as_well(watch: Watch) -> None:
    watch.listener.status = 500
    DOWN.begin(watch)
    for _ in range(5):
        watch.tick()
    assert len(watch.listener.calls) == 1
    pauses = []
    for _ in range(8):
        (pause,) = watch.pipeline.rows(
            "select extract(epoch from next_at - now()) from esl.alert_deliveries"
        )[0]
        pauses.append(round(float(pause), -1))
        watch.wait(float(pause) + 1)
        watch.tick()
    assert pauses[:4] == [20, 30, 60, 120] or pauses[:4] == [10, 30, 60, 120]
    assert pauses[-1] == 600 and len(watch.listener.calls) == 9
    REFUSED_NOW = "insert into esl.alerts (key, kind, subject, severity, since, says, todo, opened_at) values"
    watch.pipeline.sql(f"{REFUSED_NOW} ('backlog:S1', 'backlog', 'S1', 'warning', now(), 'x.', 'y.', now())")
    for _ in range(3):
        watch.tick()
    assert len(watch.listener.calls) == 9


def test_a_server_that_asks_for_a_pause_gets_it(watch: Watch) -> None:
    watch.listener.status, watch.listener.headers = 429, {"Retry-After": "1800"}
    DOWN.begin(watch)
    watch.tick()
    (pause,) = watch.pipeline.rows("select extract(epoch from next_at - now()) from esl.alert_deliveries")[0]
    assert 1790 < pause <= 1800


def test_after_a_crash_between_sending_and_recording_it_comes_again_with_the_same_id(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(**_: Any) -> None:
        raise Killed

    DOWN.begin(watch)
    with monkeypatch.context() as crash:
        crash.setattr(watch.pipeline.buffer, "alert_sent", dies)
        with pytest.raises(Killed):
            watch.tick()
    assert watch.listener.events() == [("opened", "server_down")]
    watch.tick()
    assert len(watch.listener.messages) == 1, "its lease runs"
    watch.wait(61)
    assert watch.settle() == [("opened", "server_down")] * 2
    first, second = watch.listener.alerts()
    assert first["id"] == second["id"]
    DOWN.end(watch)
    assert watch.settle()[2:] == [("closed", "server_down")]


def test_a_crash_between_opening_and_sending_loses_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    DOWN.begin(watch)
    with monkeypatch.context() as crash:
        crash.setattr(rounds, "send", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            watch.tick()
    assert watch.settle() == [("opened", "server_down")]


def test_each_address_is_told_of_what_is_severe_enough_for_it(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() as other:
        monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"{watch.listener.url} critical={other.url}")
        REFUSED.begin(watch)
        watch.settle()
        assert other.messages == [] and watch.listener.events() == [("opened", "labels_refused")]
        watch.pipeline.sandbox.faults({"kind": "status", "status": 503})
        watch.pipeline.buffer.redrive()
        watch.drain_until("select from esl.label_servers where down_since is not null")
        watch.settle()
        assert other.events() == [("opened", "server_down")]


def test_a_dead_address_keeps_no_other_waiting(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"http://127.0.0.1:9/{PATH} {watch.listener.url}")
    DOWN.begin(watch)
    watch.settle()
    assert watch.listener.events() == [("opened", "server_down")]
    told = watch.pipeline.buffer.alert_list()[0]["told"]
    assert {one["recipient"]: one["last_error"] for one in told} == {
        "http://127.0.0.1:9": "no answer (ConnectError)",
        watch.listener.host: None,
    }


def test_an_address_that_is_new_is_told_of_what_is_open(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESL_ALERT_WEBHOOK_URL")
    DOWN.begin(watch)
    watch.settle()
    assert watch.listener.messages == [] and watch.pipeline.buffer.alert_list(is_open=True)
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", watch.listener.url)
    assert watch.settle() == [("opened", "server_down")]


def test_in_quiet_hours_only_what_is_critical_goes_out_and_the_rest_afterwards(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "is_quiet", lambda *_: True)
    REFUSED.begin(watch)
    watch.settle()
    assert watch.listener.messages == []
    watch.pipeline.sandbox.faults({"kind": "status", "status": 503})
    watch.pipeline.buffer.redrive()
    watch.drain_until("select from esl.label_servers where down_since is not null")
    assert watch.settle() == [("opened", "server_down")]
    monkeypatch.setattr(rounds, "is_quiet", lambda *_: False)
    assert ("opened", "labels_refused") in watch.settle()


def test_a_storm_is_one_message(watch: Watch) -> None:
    watch.listener.status = 500
    for number in range(30):
        map_shop(watch.pipeline.buffer, f"shop-{number}.myshopify.com", f"N{number}")
    watch.pipeline.sql("update esl.store_mappings set problem = 'nobody reads this'")
    watch.settle()
    watch.listener.status = 200
    watch.tick()
    assert [len(message["alerts"]) for message in watch.listener.messages] == [20]
    watch.tick()
    assert len({alert["id"] for alert in watch.listener.alerts()}) == 31


# Secrets


def test_no_address_is_left_anywhere(
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("ESL_HEARTBEAT_URL", watch.listener.url)
    DOWN.begin(watch)
    caplog.clear()
    for status, headers in (
        (302, {"Location": f"https://elsewhere.example{PATH}"}),
        (500, {"X-Told": PATH}),
        (200, {}),
    ):
        watch.listener.status, watch.listener.headers = status, headers
        watch.settle()
    assert watch.listener.events() == [("opened", "server_down")]
    assert all(path == PATH for path in watch.listener.calls), "no redirect is followed"
    secret = PATH.rpartition("/")[2]
    texts = [record.getMessage() + str(record.exc_info) for record in caplog.records]
    out, err = capfd.readouterr()
    kept = [str(watch.pipeline.rows(f"select * from esl.{name}")) for name in ("alerts", "alert_deliveries")]
    assert kept[1].count(watch.listener.host) == 1
    ticks = [str(tick) for tick in watch.ticks]
    assert not [text for text in (*texts, out, err, *kept, *ticks) if secret in text]


# What Dagster's instance and this machine tell


def test_a_night_that_was_missed_is_told(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{SHOP}=shpat_of_the_shop")
    monkeypatch.setenv("ESL_NIGHTLY_CRON", cron_before(40))
    assert watch.settle() == [], "the shop was mapped after it"
    watch.pipeline.sql("update esl.store_mappings set activated_at = now() - interval '30 hours'")
    monkeypatch.setenv("ESL_HOUSEKEEPING_CRON", cron_before(60))  # not overdue yet
    assert watch.settle() == [("opened", "night_missing")]
    (told,) = watch.listener.alerts()
    assert "has not run: it was due at 20" in told["says"] and told["shops"] == [KEY]
    job = watch.pipeline.definitions.resolve_job_def("full_reconciliation")
    watch.pipeline.instance.create_run_for_job(
        job, tags={"dagster/partition": KEY}, status=dg.DagsterRunStatus.STARTED
    )
    assert watch.settle()[1:] == [("closed", "night_missing")]
    monkeypatch.setenv("ESL_NIGHTLY_CRON", cron_before(200))
    assert watch.settle()[2:] == [("opened", "night_late")]


def test_housekeeping_that_was_missed_is_told(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", "shpat_of_every_shop")
    monkeypatch.setenv("ESL_HOUSEKEEPING_CRON", cron_before(150))
    monkeypatch.setenv("ESL_NIGHTLY_CRON", cron_before(10))
    watch.pipeline.sql("update esl.store_mappings set activated_at = now() - interval '9 days'")
    assert watch.settle() == [("opened", "housekeeping_late")]
    job = watch.pipeline.definitions.resolve_job_def("housekeeping")
    assert job.execute_in_process(instance=watch.pipeline.instance).success
    assert watch.settle()[1:] == [("closed", "housekeeping_late")]


def test_hardly_any_room_is_told(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"ESL_HOME": (10_000_000, 40_000_000_000)}
    monkeypatch.setattr(instance_troubles, "_room", lambda _: free)
    assert watch.settle() == [("opened", "storage_low")]
    assert "10 MB are left where ESL_HOME is" in watch.listener.alerts()[0]["says"]
    free["ESL_HOME"] = (30_000_000_000, 40_000_000_000)
    assert watch.settle()[1:] == [("closed", "storage_low")]


def test_what_cannot_be_found_out_is_told_and_ends_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = next(trouble for trouble in TROUBLES if trouble.kind == "run_failed")
    trouble.begin(watch)
    watch.settle()
    with monkeypatch.context() as away:
        away.setattr(
            instance_troubles, "_failed", lambda *_: (_ for _ in ()).throw(OSError("storage is away"))
        )
        assert watch.settle() == [("opened", "run_failed"), ("opened", "not_judged")]
    assert watch.settle()[2:] == [("closed", "not_judged")]


def test_between_two_looks_at_the_instance_nothing_of_it_ends(watch: Watch) -> None:
    trouble = next(trouble for trouble in TROUBLES if trouble.kind == "check_failed")
    trouble.begin(watch)
    watch.settle()
    watch.asks_instance = False
    watch.settle()
    assert watch.listener.events() == [("opened", "check_failed")]


# The same list as an asset check


def evaluations(watch: Watch, shop: str) -> list[dg.AssetCheckEvaluation]:
    """What the check has said of a shop, newest first."""
    key = dg.AssetCheckKey(dg.AssetKey(ASSET), NAME)
    records = watch.pipeline.instance.event_log_storage.get_asset_check_execution_history(
        key, limit=100, partition_filter=PartitionKeyFilter(key=shop)
    )
    return [record.evaluation for record in records if isinstance(record.evaluation, dg.AssetCheckEvaluation)]


def checked(watch: Watch, shop: str) -> tuple[bool, str]:
    """What it says now."""
    said = evaluations(watch, shop)[0]
    return said.passed, said.description or ""


def test_the_check_says_per_shop_what_is_open(watch: Watch) -> None:
    map_shop(watch.pipeline.buffer, OTHER_SHOP, OTHER_STORE)
    watch.settle()
    assert checked(watch, KEY) == checked(watch, OTHER_KEY) == (True, "nothing is wrong")
    REFUSED.begin(watch)
    watch.settle()
    passed, says = checked(watch, KEY)
    assert not passed and says.startswith("[warning] The label server refused labels") and "12 labels" in says
    assert checked(watch, OTHER_KEY)[0]
    before = len(evaluations(watch, KEY))
    watch.settle()
    assert len(evaluations(watch, KEY)) == before, "only what is new is an event"
    REFUSED.end(watch)
    watch.settle()
    assert checked(watch, KEY) == (True, "nothing is wrong")


def test_after_a_materialisation_the_check_is_about_that(watch: Watch) -> None:
    watch.settle()
    watch.labels(1)
    done = watch.pipeline.drain()
    watch.tick()
    event = evaluations(watch, KEY)[0]
    assert event.target_materialization_data is not None
    assert event.target_materialization_data.run_id == done.run_id


# Heartbeat


def beats(watch: Watch) -> int:
    before = len(watch.listener.calls)
    watch.cursor = json.dumps(json.loads(watch.cursor or "{}") | {"heartbeat_at": 0})
    watch.tick()
    return len(watch.listener.calls) - before


def test_the_heartbeat_goes_on_while_all_is_well(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_HEARTBEAT_URL", watch.listener.url)
    assert beats(watch) == 1
    watch.tick()
    assert len(watch.listener.calls) == 1, "once a minute"
    watch.labels(1)  # due, and no drain run comes
    assert beats(watch) == 1
    watch.cursor = json.dumps(json.loads(watch.cursor or "{}") | {"undrained_since": 1})
    assert beats(watch) == 0
    assert watch.pipeline.drain().success
    assert beats(watch) == 1


def test_no_heartbeat_while_alerts_do_not_get_through(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as heart:
        monkeypatch.setenv("ESL_HEARTBEAT_URL", heart.url)
        watch.listener.status = 500
        DOWN.begin(watch)
        for _ in range(7):
            watch.tick()
            watch.wait()
        before = len(heart.calls)
        beats(watch)
        assert len(heart.calls) == before
        watch.listener.status = 200
        watch.settle()
        beats(watch)
        assert len(heart.calls) > before


def test_a_tick_without_trouble_is_one_call(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.tick()
    calls = []
    call = watch.pipeline.buffer.transport.call
    monkeypatch.setattr(
        watch.pipeline.buffer.transport, "call", lambda name, p: calls.append(name) or call(name, p)
    )
    watch.asks_instance = False
    watch.tick()
    assert calls == ["esl_alert_conditions"]
