"""shopify_connection: once a day, whether each shop's token, scopes and webhook subscriptions still do their work.

A job of its own, for the shops that cannot be read any more have no nightly run that could tell.
"""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key, shop_of
from esl_pipeline.orchestration.checks import NOT_READABLE, PRODUCTS, as_event
from esl_pipeline.orchestration.failures import reason_of, stop_retries
from esl_pipeline.orchestration.resources import ShopifyAdmin
from esl_pipeline.orchestration.shops import shops
from esl_pipeline.sources.shopify.watch import Verdict, watch

NAME = "shopify_connection"
_DESCRIPTION = (
    "Whether the shop can be read with the scopes that are needed, sends its webhooks here in a version that we read, "
    "and signs them with a secret that we know."
)


def evaluate(shopify: ShopifyAdmin, row: Mapping[str, Any]) -> dg.AssetCheckResult:
    """Of one shop, a row of `Buffer.connection_list`. What goes wrong on the way is this shop's own trouble."""
    try:
        verdict = _verdict(shopify, row)
    except Exception as error:
        verdict = Verdict((reason_of(error),), ())
    return dg.AssetCheckResult(
        passed=not verdict.problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(verdict.problems or verdict.remarks).replace(".;", ";"),
        metadata={
            "subscriptions": row["subscriptions"] or "not made by esl-pipeline shopify connect",
            "first webhook since connecting": row["first_webhook_at"] or "-",
            "newest webhook": row["last_webhook_at"] or "-",
            "Webhooks API version": row["last_api_version"] or "-",
            "signatures refused": row["refused"],
        },
    )


def _verdict(shopify: ShopifyAdmin, row: Mapping[str, Any]) -> Verdict:
    settings, shop = shopify.settings, row["source_store_id"]
    with shopify.client(shop) if shopify.has(shop) else nullcontext() as client:
        verdict = watch(
            row,
            client,
            base_url=settings.app_base_url,
            patience=timedelta(hours=settings.esl_silence_hours),
            now=datetime.now(UTC),
        )
    return Verdict((NOT_READABLE, *verdict.problems), ()) if settings.not_readable([shop]) else verdict


with warnings.catch_warnings():
    # Partitions of checks are a preview in Dagster 1.13, which pyproject.toml stays with.
    warnings.simplefilter("ignore", dg.PreviewWarning)

    @dg.asset_check(asset=PRODUCTS, name=NAME, description=_DESCRIPTION, partitions_def=shops)
    def shopify_connection(
        context: dg.AssetCheckExecutionContext,
        buffer: dg.ResourceParam[Buffer],
        shopify: dg.ResourceParam[ShopifyAdmin],
    ) -> dg.AssetCheckResult:
        """One shop, when somebody asks."""
        rows = buffer.connection_list(shops=[shop_of(context.partition_key)])
        if not rows:
            return dg.AssetCheckResult(passed=True, description="neither connected nor mapped to a store")
        return evaluate(shopify, rows[0])


@dg.op(
    description="Asks each shop whether its token, scopes and subscriptions still work, and judges what arrives."
)
def look_at_connections(
    context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], shopify: dg.ResourceParam[ShopifyAdmin]
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Every shop of Shopify that is connected or has an active mapping, each by itself."""
    buffer.check_version()
    watched = [
        row
        for row in buffer.connection_list()
        if row["source_system"] == "shopify" and (row["subscriptions"] or row["is_active"])
    ]
    # Another order each time: a shop that takes all of a run's time has not the same ones behind it the next time.
    random.shuffle(watched)
    for row in watched:
        result = evaluate(shopify, row)
        if not result.passed:
            context.log.warning(f"{shop_key(row)}: {result.description}")
        yield as_event(result, asset=PRODUCTS, name=NAME, shop=shop_key(row))
    yield dg.Output(None)


@dg.job(
    description="Whether shops are still connected. Started by the schedule shopify_connections_daily.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "3600", "dagster/max_retries": "1", "esl/role": "connections"},
    executor_def=dg.in_process_executor,
)
def shopify_connections() -> None:
    """The job."""
    look_at_connections()


shopify_connections_schedule = dg.ScheduleDefinition(
    name="shopify_connections_daily",
    job=shopify_connections,
    cron_schedule="30 5 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Once a day, every connected shop.",
)
