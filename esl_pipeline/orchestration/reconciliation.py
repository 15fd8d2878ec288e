"""The nightly promise, and what keeps watch until then: full_reconciliation per shop, catch_up, the silence sensor."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration.assets import (
    RECONCILIATION,
    hipoink_sync_results,
    shopify_products,
    validated_variants,
)
from esl_pipeline.orchestration.checks import as_event, asset_checks, webhooks_arrive
from esl_pipeline.orchestration.failures import stop_retries
from esl_pipeline.orchestration.resources import ShopifyAdmin
from esl_pipeline.stages.reconcile import read_changes
from esl_pipeline.stages.shops import shop_key, shop_of

full_reconciliation = dg.define_asset_job(
    "full_reconciliation",
    selection=dg.AssetSelection.assets(shopify_products, validated_variants, hipoink_sync_results)
    | dg.AssetSelection.checks(*asset_checks),
    description="The whole catalogue of a shop against its labels, on both sides: needs no webhook at all.",
    # A bulk read of a large shop takes Shopify its time; a run that outlives this is dead (dagster.md 2.4).
    # A retry begins anew: it needs no file of the run before it, and a run that dies after its last step, too, has one.
    tags={
        "dagster/max_runtime": "21600",
        "dagster/max_retries": "3",
        "dagster/retry_strategy": "ALL_STEPS",
        **RECONCILIATION,
    },
)


def _active_shops(buffer: Buffer) -> list[str]:
    return sorted({shop_key(mapping) for mapping in buffer.mapping_list() if mapping["is_active"]})


def nightly_reconciliation(cron: str, time_zone: str) -> dg.ScheduleDefinition:
    """The schedule of full_reconciliation: one run per active shop that can be read."""

    @dg.schedule(
        name="nightly_reconciliation",
        job=full_reconciliation,
        cron_schedule=cron,
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night, every active shop that has an Admin API token.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        shopify: dg.ResourceParam[ShopifyAdmin],
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        active = _active_shops(buffer)
        readable = [key for key in active if shopify.has(shop_of(key)["source_store_id"])]
        known = set(context.instance.get_dynamic_partitions("shops"))
        if added := [key for key in readable if key not in known]:
            context.instance.add_dynamic_partitions("shops", added)
        night = context.scheduled_execution_time.isoformat()
        for key in readable:
            yield dg.RunRequest(run_key=f"{night} {key}", partition_key=key)
        if not readable:
            without = f"no Admin API token for {', '.join(active)}: set SHOPIFY_ADMIN_TOKEN"
            yield dg.SkipReason(without if active else "no shop is mapped to a store")

    return schedule


@dg.op(description="What has changed at Shopify since the last look, and variants that webhooks only named.")
def read_recent_changes(
    context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], shopify: dg.ResourceParam[ShopifyAdmin]
) -> None:
    """Every active shop that has a token; their labels follow through event_sync. Fails at the end with the alarms."""
    buffer.check_version()
    alarms: list[str] = []
    for key in _active_shops(buffer):
        shop = shop_of(key)
        if not shopify.has(shop["source_store_id"]):
            continue
        with shopify.client(shop["source_store_id"]) as client:
            found = read_changes(buffer, client, shop=shop, run_id=context.run.run_id)
        context.log_event(
            dg.AssetObservation(asset_key="shopify_products", partition=key, metadata=_counts(found))
        )
        if found["alarm"]:
            alarms.append(found["alarm"])
    if alarms:
        raise dg.Failure(" ".join(alarms), allow_retries=False)


@dg.job(
    description="For silence: reads what webhooks may have missed. Started by the schedule catch_up.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "1800", "dagster/max_retries": "0", "esl/role": "catch-up"},
    executor_def=dg.in_process_executor,
)
def catch_up() -> None:
    """The catch-up job."""
    read_recent_changes()


def catch_up_schedule(minutes: int) -> dg.ScheduleDefinition:
    """The schedule of catch_up; nothing is started while no shop has a token, or the last one is still at work."""

    @dg.schedule(
        name="catch_up",
        job=catch_up,
        cron_schedule=f"*/{minutes} * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every few minutes, the shops that have an Admin API token.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        shopify: dg.ResourceParam[ShopifyAdmin],
    ) -> dg.RunRequest | dg.SkipReason:
        active = _active_shops(buffer)
        if not any(shopify.has(shop_of(key)["source_store_id"]) for key in active):
            return dg.SkipReason("no active shop has an Admin API token: set SHOPIFY_ADMIN_TOKEN")
        unfinished = dg.RunsFilter(
            job_name="catch_up",
            statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED],
        )
        if context.instance.get_runs_count(unfinished):
            return dg.SkipReason("the last one is still at work")
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())

    return schedule


def silence_sensor(*, hours: float) -> dg.SensorDefinition:
    """The sensor that fails the check webhooks_arrive of a shop that has fallen silent, and passes it again."""

    @dg.sensor(
        name="silence_sensor",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Raises the alarm webhooks_arrive for a shop that normally sends webhooks and has fallen silent, "
        "or that a message has switched off.",
    )
    def sensor(context: dg.SensorEvaluationContext, buffer: dg.ResourceParam[Buffer]) -> dg.SensorResult:
        status, now = buffer.status(), datetime.now(UTC)
        watched = {shop_key(row) for row in status["stores"] if row["is_active"] or row["switched_off"]}
        # An alarm that stands ends with the word that a shop is inactive, too.
        before = set((context.cursor or "").split())
        known = before & {shop_key(row) for row in status["stores"]}
        judged = {key: webhooks_arrive(status, key, hours=hours, now=now) for key in sorted(watched | known)}
        silent = {key for key, result in judged.items() if not result.passed}
        # The cursor holds the alarms that stand, so that only changes are events.
        events = [
            as_event(judged[key], asset="shopify_products", name=webhooks_arrive.__name__, shop=key)
            for key in sorted(silent ^ (before & judged.keys()))
        ]
        if not events:
            return dg.SensorResult(skip_reason=f"{len(silent)} of {len(judged)} shops are silent")
        return dg.SensorResult(asset_events=events, cursor=" ".join(sorted(silent)))

    return sensor


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}
