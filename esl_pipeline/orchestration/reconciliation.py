"""The nightly promise, and what keeps watch until then: full_reconciliation per shop, catch_up, the silence sensor."""

import random
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
from esl_pipeline.orchestration.checks import (
    NOT_READABLE,
    PRODUCTS,
    as_event,
    asset_checks,
    shop_is_read,
    webhooks_arrive,
)
from esl_pipeline.orchestration.failures import reason_of, several_failed, stop_retries
from esl_pipeline.orchestration.resources import HOW_TO_READ, ShopifyAdmin
from esl_pipeline.stages.reconcile import read_changes
from esl_pipeline.stages.shops import shop_key, shop_of

full_reconciliation = dg.define_asset_job(
    "full_reconciliation",
    # Without checks: of the assets' own the one that asks about the connection has a job of its own.
    selection=dg.AssetSelection.assets(
        shopify_products, validated_variants, hipoink_sync_results
    ).without_checks()
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
        description="Every night, every active shop that has an app or a token.",
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
            without = f"no app and no Admin API token for {', '.join(active)}: {HOW_TO_READ}"
            yield dg.SkipReason(without if active else "no shop is mapped to a store")

    return schedule


@dg.op(description="What has changed at Shopify since the last look, and variants that webhooks only named.")
def read_recent_changes(
    context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], shopify: dg.ResourceParam[ShopifyAdmin]
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Every active shop that has a token, each by itself; their labels follow through event_sync.

    Fails at the end when a shop could not be read, and names each with the reason; so does its check shop_is_read.
    """
    buffer.check_version()
    active = _active_shops(buffer)
    unreadable = shopify.settings.not_readable(shop_of(key)["source_store_id"] for key in active)
    # Another order each time: a shop that takes all of a run's time has not the same ones behind it the next time.
    random.shuffle(active)
    failures: dict[str, Exception] = {}
    for key in active:
        problem = NOT_READABLE if shop_of(key)["source_store_id"] in unreadable else None
        if problem is None and shopify.has(shop_of(key)["source_store_id"]):
            try:
                _read_recent_changes_of(key, context, buffer, shopify)
            except Exception as error:
                failures[key], problem = error, reason_of(error)
                context.log.error(f"{key}: {problem}")
        yield as_event(shop_is_read(problem), asset=PRODUCTS, name=shop_is_read.__name__, shop=key)
    if failures:
        raise several_failed(f"{len(failures)} of {len(active)} shops could not be read", failures)
    yield dg.Output(None)


def _read_recent_changes_of(
    key: str, context: dg.OpExecutionContext, buffer: Buffer, shopify: ShopifyAdmin
) -> None:
    shop = shop_of(key)
    with shopify.client(shop["source_store_id"]) as client:
        found = read_changes(buffer, client, shop=shop, run_id=context.run.run_id)
    context.log_event(dg.AssetObservation(asset_key=PRODUCTS, partition=key, metadata=_counts(found)))
    if found["alarm"]:
        raise dg.Failure(found["alarm"], allow_retries=False)


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
        description="Every few minutes, the shops that have an app or a token.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        shopify: dg.ResourceParam[ShopifyAdmin],
    ) -> dg.RunRequest | dg.SkipReason:
        active = _active_shops(buffer)
        if not any(shopify.has(shop_of(key)["source_store_id"]) for key in active):
            return dg.SkipReason(f"no active shop has an app or an Admin API token: {HOW_TO_READ}")
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
            as_event(judged[key], asset=PRODUCTS, name=webhooks_arrive.__name__, shop=key)
            for key in sorted(silent ^ (before & judged.keys()))
        ]
        if not events:
            return dg.SensorResult(skip_reason=f"{len(silent)} of {len(judged)} shops are silent")
        return dg.SensorResult(asset_events=events, cursor=" ".join(sorted(silent)))

    return sensor


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}
