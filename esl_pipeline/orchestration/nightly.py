"""The nightly promise: full_reconciliation, one run per shop."""

from collections.abc import Iterator

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.assets import (
    RECONCILIATION,
    hipoink_sync_results,
    shopify_products,
    validated_variants,
)
from esl_pipeline.orchestration.checks import (
    asset_checks,
)
from esl_pipeline.orchestration.resources import HOW_TO_READ, ShopifyAdmin
from esl_pipeline.orchestration.shops import active_shops

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
        active = active_shops(buffer)
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
