"""The nightly promise in Dagster: no webhook at all, drift on both sides, silence, and what stops a run."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from starlette.datastructures import Headers

from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration import catch_up as catch_up_module
from esl_pipeline.orchestration import pushes
from esl_pipeline.orchestration.checks import backlog, label_accuracy, webhooks_arrive
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.sandbox.shopify.faults import CutDownload
from esl_pipeline.sandbox.shopify.sandbox import TOKEN, ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline_tests.hipoink.servers import client_of
from esl_pipeline_tests.orchestration.conftest import ASSETS, Pipeline
from esl_pipeline_tests.orchestration.test_assets import metadata
from esl_pipeline_tests.orchestration.world import KEY, OTHER_SHOP, SHOP, STORE, arrive, map_shop, product
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.sandbox.shopify.support import small_shop

NIGHT = datetime(2026, 3, 1, 2, tzinfo=UTC)


@pytest.fixture
def shopify(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShopifySandbox]:
    with running_shopify(small_shop(), token=TOKEN) as running:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", running.url)
        monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", TOKEN)
        yield running.sandbox


def reconcile(pipeline: Pipeline, *, raise_on_error: bool = True) -> dg.ExecuteInProcessResult:
    job = pipeline.definitions.resolve_job_def("full_reconciliation")
    return job.execute_in_process(
        instance=pipeline.instance, partition_key=KEY, raise_on_error=raise_on_error
    )


def numbers(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for asset in ASSETS:
        found |= metadata(result, asset)
    return found


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {found.check_name: found.passed for found in result.get_asset_check_evaluations()}


def wanted(shopify: ShopifySandbox) -> dict[str, str]:
    """Code to price of everything that should be on a shelf."""
    return {
        variant.barcode: f"{float(variant.price or 0):.2f}"
        for found in shopify.shop.products.values()
        for variant in found.variants
        if found.status == "active" and variant.barcode and not found.gift_card
    }


def changing_calls(pipeline: Pipeline) -> int:
    calls = pipeline.sandbox.state()["calls"]
    return sum(count for action, count in calls.items() if not action.startswith("query"))


def prices(pipeline: Pipeline) -> dict[str, str]:
    return {code: label["pp"] for code, label in pipeline.labels(STORE).items()}


@pytest.mark.long
def test_a_shop_without_webhooks_has_every_label_by_morning(
    pipeline: Pipeline, shopify: ShopifySandbox
) -> None:
    map_shop(pipeline.buffer)
    first = reconcile(pipeline)
    assert prices(pipeline) == wanted(shopify)
    catalogue = sum(len(found.variants) for found in shopify.shop.products.values())
    said = numbers(first)
    assert (said["catalogue"], said["catalogue changed"], said["catalogue removed"]) == (
        catalogue,
        catalogue,
        0,
    )
    assert checks(first) == dict.fromkeys(
        (
            *(
                "webhooks_arrive",
                "shop_is_read",
                "shopify_connection",
                "quarantine_share",
                "codes_are_unique",
            ),
            *("preview", "label_accuracy", "backlog", "alerts"),
        ),
        True,
    )
    assert 0 < said["duration (s)"] < 60 and said["peak memory (MiB)"] > 0

    # Nothing has changed: nothing is written, at the label server least of all.
    calls = changing_calls(pipeline)
    again = numbers(reconcile(pipeline))
    assert (again["catalogue unchanged"], again["catalogue changed"]) == (catalogue, 0)
    assert changing_calls(pipeline) == calls
    assert (again["drift missing"], again["drift different"], again["drift foreign"]) == (0, 0, 0)

    # Changes that no webhook told of: a price, a deletion.
    shop = shopify.shop
    dearer, gone = [found for found in shop.products.values() if found.status == "active"][:2]
    shop.set_price(dearer, dearer.variants[0], "1.23")
    shop.delete(gone)
    third = numbers(reconcile(pipeline))
    assert prices(pipeline) == wanted(shopify)
    assert third["catalogue removed"] == len(gone.variants)
    assert third["labels removed"] == len(gone.variants)


@pytest.mark.long
def test_labels_edited_behind_our_back_are_found_and_mended(
    pipeline: Pipeline, shopify: ShopifySandbox
) -> None:
    map_shop(pipeline.buffer)
    reconcile(pipeline)
    codes = sorted(prices(pipeline))
    with client_of(pipeline.sandbox.url) as intruder:
        intruder.create_multiple(STORE, [{"pc": codes[0], "pn": "Other", "pp": "0.01"}])
        intruder.create_multiple(STORE, [{"pc": "FOREIGN", "pn": "Not ours", "pp": "5.00"}])
        intruder.del_multiple(STORE, codes[1:3])

    said = numbers(reconcile(pipeline))

    assert (said["drift missing"], said["drift different"], said["drift foreign"]) == (2, 1, 1)
    assert prices(pipeline) == wanted(shopify) | {"FOREIGN": "5.00"}
    assert numbers(reconcile(pipeline))["drift missing"] == 0


@pytest.mark.long
def test_field_04_a_refused_label_is_tried_once_a_night(pipeline: Pipeline, shopify: ShopifySandbox) -> None:
    map_shop(pipeline.buffer)
    code = sorted(wanted(shopify))[0]
    pipeline.sandbox.faults({"kind": "bad_codes", "codes": [code]})
    reconcile(pipeline)
    pipeline.sql("update esl.sync_queue set state = 'failed', refusals = 5")  # the end of hours of refusals
    before = changing_calls(pipeline)
    reconcile(pipeline)
    assert changing_calls(pipeline) - before == 1
    (store,) = pipeline.buffer.status()["stores"]
    assert store["queue"]["failed"] == 1 and code not in prices(pipeline)
    pipeline.sandbox.faults()
    reconcile(pipeline)
    assert prices(pipeline) == wanted(shopify)


@pytest.mark.long
def test_a_truncated_catalogue_removes_nothing_and_says_why(
    pipeline: Pipeline, shopify: ShopifySandbox
) -> None:
    map_shop(pipeline.buffer)
    reconcile(pipeline)
    before = prices(pipeline)
    shopify.faults.replace([CutDownload(times=100)])

    failed = reconcile(pipeline, raise_on_error=False)

    assert not failed.success
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert failure.step_key == "shopify_products"
    assert "IncompleteDownloadError" in str(failure.event_specific_data)
    assert prices(pipeline) == before
    shopify.faults.replace([])
    assert reconcile(pipeline).success and prices(pipeline) == before


def test_without_a_token_a_run_says_what_is_missing_and_is_not_repeated(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    failed = reconcile(pipeline, raise_on_error=False)
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert f"nothing opens {SHOP}: set SHOPIFY_API_KEY" in str(failure.event_specific_data)
    run = pipeline.instance.get_run_by_id(failed.run_id)
    assert run is not None and run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def tick(pipeline: Pipeline, name: str) -> list[Any]:
    """What a schedule answers at two o'clock."""
    schedule = pipeline.definitions.resolve_schedule_def(name)
    sources = Sources(load_settings())
    # Schedules reach their instance by reference only, which an ephemeral one has not.
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=NIGHT) as context,
    ):
        found = schedule(context, buffer=pipeline.buffer, sources=sources)
        requests = [found] if isinstance(found, dg.RunRequest | dg.SkipReason) else list(found)
    return [r.skip_message if isinstance(r, dg.SkipReason) else r for r in requests]


@pytest.mark.long
def test_every_active_shop_with_a_token_has_its_run_each_night(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tick(pipeline, "nightly_reconciliation") == ["no shop is mapped to a store"]
    map_shop(pipeline.buffer)
    other = map_shop(pipeline.buffer, OTHER_SHOP, "S2")
    (said,) = tick(pipeline, "nightly_reconciliation")
    assert SHOP in said and OTHER_SHOP in said and "SHOPIFY_ADMIN_TOKEN" in said
    assert "SHOPIFY_ADMIN_TOKEN" in tick(pipeline, "catch_up")[0]

    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{SHOP}=shpat_1,{OTHER_SHOP}=shpat_2")
    requests = tick(pipeline, "nightly_reconciliation")
    assert [request.partition_key for request in requests] == [KEY, f"shopify:{OTHER_SHOP}"]
    assert len({request.run_key for request in requests}) == 2
    assert len(tick(pipeline, "catch_up")) == 1

    pipeline.buffer.mapping_update(other["id"], {"is_active": False})
    assert [request.partition_key for request in tick(pipeline, "nightly_reconciliation")] == [KEY]


@pytest.mark.long
def test_catch_up_reads_what_webhooks_missed(pipeline: Pipeline, shopify: ShopifySandbox) -> None:
    map_shop(pipeline.buffer)
    reconcile(pipeline)
    job = pipeline.definitions.resolve_job_def("catch_up")
    assert job.execute_in_process(instance=pipeline.instance).success
    shop = shopify.shop
    changed = next(found for found in shop.products.values() if found.status == "active")
    changed.updated_at = datetime.now(UTC)
    shop.set_price(changed, changed.variants[0], "4.56")
    changed.updated_at = datetime.now(UTC)
    assert job.execute_in_process(instance=pipeline.instance).success
    pipeline.drain()
    assert prices(pipeline)[str(changed.variants[0].barcode)] == "4.56"
    pipeline.buffer.watermark_move(shop=shop_of(KEY), source="updated_at", at="2100-01-01T00:00:00Z")
    failed = job.execute_in_process(instance=pipeline.instance, raise_on_error=False)
    assert "2100-01-01" in str(failed.failure_data_for_node("read_recent_changes"))
    assert job.execute_in_process(instance=pipeline.instance).success


@pytest.mark.long
def test_field_03_a_shop_that_cannot_be_read_keeps_no_other_from_its_turn(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked, broken, healthy = "a-revoked.myshopify.com", "b-broken.myshopify.com", SHOP
    for number, name in enumerate((revoked, broken, healthy)):
        map_shop(pipeline.buffer, name, f"S{number}")
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"{revoked}=shpat_revoked,{broken}={TOKEN},{healthy}={TOKEN}")
    reconciled = datetime.now(UTC)
    for found in shopify.shop.products.values():
        found.updated_at = reconciled
    read = catch_up_module.read_changes

    def read_changes(*args: Any, shop: dict[str, str], **rest: Any) -> dict[str, Any]:
        if shop["source_store_id"] == broken:
            raise KeyError("not thought of")
        return read(*args, shop=shop, **rest)

    monkeypatch.setattr(catch_up_module, "read_changes", read_changes)
    job = pipeline.definitions.resolve_job_def("catch_up")
    for _ in range(3):  # whoever comes first
        failed = job.execute_in_process(instance=pipeline.instance, raise_on_error=False)

    assert not failed.success
    said = failed.failure_data_for_node("read_recent_changes")
    assert said is not None and said.user_failure_data is not None
    words = str(said.user_failure_data.description)
    assert words.startswith("2 of 3 shops could not be read: ") and healthy not in words
    assert f"shopify:{revoked}: " in words and "HTTP 401" in words and "shpat_revoked" not in words
    assert f"shopify:{broken}: KeyError: 'not thought of'" in words
    assert set(said.user_failure_data.metadata) == {f"shopify:{revoked}", f"shopify:{broken}"}
    judged = {found.partition: found.passed for found in failed.get_asset_check_evaluations()}
    assert judged == {f"shopify:{revoked}": False, f"shopify:{broken}": False, KEY: True}
    pipeline.drain()
    assert {code: label["pp"] for code, label in pipeline.labels("S2").items()} == wanted(shopify)

    # The token is renewed: the check passes again by itself.
    monkeypatch.setattr(catch_up_module, "read_changes", read)
    monkeypatch.setenv(
        "SHOPIFY_ADMIN_TOKEN", ",".join(f"{name}={TOKEN}" for name in (revoked, broken, healthy))
    )
    mended = job.execute_in_process(instance=pipeline.instance)
    assert {found.passed for found in mended.get_asset_check_evaluations()} == {True}


@pytest.mark.long
def test_field_03_a_store_that_cannot_be_compared_keeps_no_other_from_it(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in ("A1", STORE):
        map_shop(pipeline.buffer, SHOP, store)
    reconcile(pipeline)
    gone = sorted(prices(pipeline))[0]
    with client_of(pipeline.sandbox.url) as intruder:
        intruder.del_multiple(STORE, [gone])
    compare, both_there = pushes.compare_store, threading.Barrier(2)

    def compare_store(*args: Any, store: str, **rest: Any) -> Any:
        both_there.wait(30)  # side by side
        if store == "A1":
            raise ValueError("what nobody thought of")
        return compare(*args, store=store, **rest)

    monkeypatch.setattr(pushes, "compare_store", compare_store)
    failed = reconcile(pipeline, raise_on_error=False)

    assert not failed.success
    said = str(failed.failure_data_for_node("hipoink_sync_results"))
    assert "1 of 2 stores could not be compared: A1: ValueError: what nobody thought of" in said
    assert prices(pipeline) == wanted(shopify), "the other store was compared and mended"


@pytest.mark.long
def test_field_29_an_active_shop_that_cannot_be_read_while_others_can_is_said(
    pipeline: Pipeline, shopify: ShopifySandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(pipeline.buffer)
    map_shop(pipeline.buffer, OTHER_SHOP, "S2")
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"https://Corner-Shop.myshopify.com/={TOKEN}")
    job = pipeline.definitions.resolve_job_def("catch_up")

    def judged() -> dict[str | None, tuple[bool, str]]:
        done = job.execute_in_process(instance=pipeline.instance)
        return {
            found.partition: (found.passed, str(found.description))
            for found in done.get_asset_check_evaluations()
            if found.check_name == "shop_is_read"
        }

    first = judged()
    assert first[KEY][0] and not first[f"shopify:{OTHER_SHOP}"][0]
    assert "SHOPIFY_APPS or SHOPIFY_ADMIN_TOKEN opens other shops only" in first[f"shopify:{OTHER_SHOP}"][1]
    assert [r.partition_key for r in tick(pipeline, "nightly_reconciliation")] == [KEY]
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", f"corner-shop={TOKEN}, other-shop={TOKEN}")
    assert all(passed for passed, _ in judged().values())


def test_field_29_a_partition_that_names_no_shop_is_refused(
    pipeline: Pipeline, shopify: ShopifySandbox
) -> None:
    map_shop(pipeline.buffer)
    pipeline.instance.add_dynamic_partitions("shops", ["shopify:Corner-Shop.myshopify.com"])
    failed = pipeline.materialize(shop="shopify:Corner-Shop.myshopify.com", raise_on_error=False)
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    assert f"did you mean {KEY}?" in str(failure.event_specific_data)


def test_f33_a_shop_that_falls_silent_raises_an_alarm_once(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1))
    sensor = pipeline.definitions.resolve_sensor_def("silence_sensor")

    def look(cursor: str | None) -> dg.SensorResult:
        with dg.build_sensor_context(instance=pipeline.instance, cursor=cursor) as context:
            found = sensor(context, buffer=pipeline.buffer)
        assert isinstance(found, dg.SensorResult)
        return found

    assert look(None).skip_reason is not None
    pipeline.sql("update esl.webhook_inbox set received_at = received_at - interval '25 hours'")
    alarm = look(None)
    (event,) = alarms(pipeline)
    assert (event.check_name, event.passed, event.partition) == ("webhooks_arrive", False, KEY)
    assert "no webhook since" in str(event.description)
    look(alarm.cursor)
    assert len(alarms(pipeline)) == 1
    arrive(pipeline.buffer, product(2))
    recovered = look(alarm.cursor)
    assert recovered.cursor == ""
    pipeline.sql("update esl.webhook_inbox set received_at = received_at - interval '25 hours'")
    look(recovered.cursor)
    assert [found.passed for found in alarms(pipeline)] == [False, True, False], "newest first"


def test_field_13_a_shop_that_a_message_switched_off_raises_an_alarm_until_somebody_decides(
    pipeline: Pipeline,
) -> None:
    mapping = map_shop(pipeline.buffer)
    raw = json.dumps({"myshopify_domain": SHOP, "updated_at": datetime.now(UTC).isoformat()}).encode()
    headers = Headers(signed("app/uninstalled", raw, shop_domain=SHOP))
    pipeline.buffer.inbox_add([delivery("app/uninstalled", headers, raw, datetime.now(UTC))])
    sensor = pipeline.definitions.resolve_sensor_def("silence_sensor")

    def look(cursor: str | None) -> dg.SensorResult:
        with dg.build_sensor_context(instance=pipeline.instance, cursor=cursor) as context:
            found = sensor(context, buffer=pipeline.buffer)
        assert isinstance(found, dg.SensorResult)
        return found

    alarm = look(None)
    (event,) = alarms(pipeline)
    assert (event.check_name, event.passed, event.partition) == ("webhooks_arrive", False, KEY)
    assert "switched off by app/uninstalled" in str(event.description)
    look(alarm.cursor)
    assert len(alarms(pipeline)) == 1
    pipeline.buffer.mapping_update(mapping["id"], {"is_active": False})  # that is right
    ended = look(alarm.cursor)
    assert [found.passed for found in alarms(pipeline)] == [True, False]
    assert ended.cursor == ""


def alarms(pipeline: Pipeline) -> list[dg.AssetCheckEvaluation]:
    """What webhooks_arrive has said of the shop, newest first."""
    key = dg.AssetCheckKey(dg.AssetKey("shopify_products"), "webhooks_arrive")
    history = pipeline.instance.event_log_storage.get_asset_check_execution_history(key, limit=50)
    found = [record.evaluation for record in history if record.partition == KEY]
    return [one for one in found if isinstance(one, dg.AssetCheckEvaluation)]


@pytest.mark.parametrize(
    ("accurate", "passed", "low"),
    [(1000, True, False), (999, True, False), (998, False, False), (979, False, True)],
)
def test_accuracy_fails_below_999_and_says_so_below_980(accurate: int, passed: bool, low: bool) -> None:
    window = {"labels": 0, "until": None}
    mapping = {"hipoink_store_code": "S", "publishable": 1000, "accurate": accurate, "window": window}
    grace = {"places": 0, "bound": 0, "next_at": None}
    result = label_accuracy([mapping | {"grace": grace, "unsettled": 0, "problem": None, "comparison": None}])
    assert (result.passed, result.severity.value) == (passed, "ERROR"), "one colour, whichever shop came last"
    assert ("less than the 98 %" in str(result.description)) is low


@pytest.mark.long
def test_the_backlog_tells_how_much_waits_for_how_long_and_why(pipeline: Pipeline) -> None:
    map_shop(pipeline.buffer)
    arrive(pipeline.buffer, product(1), product(2))
    later = datetime.now(UTC) + timedelta(minutes=20)

    waiting = backlog(pipeline.buffer.status(), KEY, servers=["default"], now=later)

    assert not waiting.passed and "the oldest change waits for 120" in str(waiting.description)
    assert waiting.metadata["webhooks waiting"].value == 2
    assert backlog(pipeline.buffer.status(), KEY, servers=["default"], now=datetime.now(UTC)).passed
    pipeline.sandbox.faults({"kind": "error", "error_msg": "price out of range"})
    pipeline.drain()
    pipeline.sql("update esl.sync_queue set state = 'failed'")  # the end of hours of refusals
    refused = backlog(pipeline.buffer.status(), KEY, servers=["default"], now=later)
    assert not refused.passed and "esl-pipeline redrive" in str(refused.description)
    assert (refused.metadata["labels given up"].value, refused.metadata["webhooks waiting"].value) == (2, 0)


def test_a_shop_that_never_sent_a_webhook_is_not_silent() -> None:
    assert webhooks_arrive({"shops": [], "stores": []}, KEY, hours=1, now=NIGHT + timedelta(days=9)).passed
