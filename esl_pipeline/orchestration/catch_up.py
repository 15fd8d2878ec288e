"""catch_up: every few minutes, what webhooks may have missed."""

import random
from collections.abc import Iterator
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.checks import (
    NOT_READABLE,
    PRODUCTS,
    as_event,
    shop_is_read,
)
from esl_pipeline.orchestration.failures import reason_of, several_failed, stop_retries
from esl_pipeline.orchestration.resources import HOW_TO_READ, ShopifyAdmin
from esl_pipeline.orchestration.shops import active_shops
from esl_pipeline.stages.catch_up import read_changes


@dg.op(description="What has changed at Shopify since the last look, and variants that webhooks only named.")
def read_recent_changes(
    context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], shopify: dg.ResourceParam[ShopifyAdmin]
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Every active shop that has a token, each by itself; their labels follow through event_sync.

    Fails at the end when a shop could not be read, and names each with the reason; so does its check shop_is_read.
    """
    buffer.check_version()
    active = active_shops(buffer)
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
        active = active_shops(buffer)
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


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}
