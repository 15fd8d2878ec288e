"""catch_up: every few minutes, what webhooks may have missed."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.at_work import is_at_work
from esl_pipeline.orchestration.checks import shop_is_read, unread_files
from esl_pipeline.orchestration.evaluations import Judged
from esl_pipeline.orchestration.failures import reason_of, several_failed, stop_retries
from esl_pipeline.orchestration.forms import Form
from esl_pipeline.orchestration.reports import of_shop
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import active_shops, check_mapped, products_asset_name
from esl_pipeline.stages.catch_up import read_changes

# Of runs that read one shop alone, because there is news of it.
SHOP_TAG = "esl/shop"


class Which(Form):
    """Which shops are read."""

    shops: list[str] = Field(
        [], description="Shops by their partition, e.g. shopify:demo.myshopify.com; none: every active one."
    )


def reads_only(keys: Sequence[str]) -> dg.RunConfig:
    """The configuration of a run that reads the changes of these shops."""
    return dg.RunConfig(ops={"read_recent_changes": Which(shops=list(keys))})


@dg.op(
    description="What has changed at each shop since the last look, and variants that webhooks only named."
)
def read_recent_changes(
    context: dg.OpExecutionContext,
    config: Which,
    buffer: dg.ResourceParam[Buffer],
    sources: dg.ResourceParam[Sources],
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Every active shop that can be read, each by itself; their labels follow through event_sync.

    Fails at the end when a shop could not be read, and names each with the reason; so does its check shop_is_read.
    """
    buffer.check_version()
    check_mapped(config.shops, buffer)
    active = [key for key in active_shops(buffer) if not config.shops or key in config.shops]
    # Another order each time: a shop that takes all of a run's time has not the same ones behind it the next time.
    random.shuffle(active)
    failures: dict[str, Exception] = {}
    for key in active:
        problem = sources.why_not_read(shop_of(key))
        if problem is None and sources.opens(shop_of(key)):
            try:
                _read_recent_changes_of(key, context, buffer, sources)
            except Exception as error:
                failures[key], problem = error, reason_of(error)
                context.log.error(f"{key}: {problem}")
        result = shop_is_read(problem, unread=unread_files(buffer, shop_of(key), sources))
        judged = Judged.of(products_asset_name(key), shop_is_read.__name__, key, result)
        yield judged.event(context.instance)
    if failures:
        raise several_failed(f"{len(failures)} of {len(active)} shops could not be read", failures)
    yield dg.Output(None)


def _read_recent_changes_of(
    key: str, context: dg.OpExecutionContext, buffer: Buffer, sources: Sources
) -> None:
    shop = shop_of(key)
    with sources.reader(shop) as reader:
        found = read_changes(buffer, reader, shop=shop, run_id=context.run.run_id)
    context.log_event(
        dg.AssetObservation(
            asset_key=products_asset_name(key), partition=key, metadata=of_shop(_counts(found), key)
        )
    )
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
    """The schedule of catch_up; nothing is started while no shop can be read, or the last one is still at work."""

    @dg.schedule(
        name="catch_up",
        job=catch_up,
        cron_schedule=f"*/{minutes} * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every few minutes, the shops that can be read.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        sources: dg.ResourceParam[Sources],
    ) -> dg.RunRequest | dg.SkipReason:
        active = active_shops(buffer)
        if not any(sources.opens(shop_of(key)) for key in active):
            return dg.SkipReason(f"nothing opens any active shop: {sources.how_to_read()}")
        if is_at_work(context.instance, "catch_up"):
            return dg.SkipReason("the last one is still at work")
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())

    return schedule


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}
