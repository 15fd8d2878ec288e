"""The nightly promise: full_reconciliation, one run per shop."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.assets import RECONCILIATION, Push, Read
from esl_pipeline.orchestration.pods import pod
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import active_shops
from esl_pipeline.sources.source import Source

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def full_reconciliation(
    sources: Sequence[type[Source[Any]]], checks: Sequence[dg.AssetChecksDefinition]
) -> "UnresolvedAssetJobDefinition":
    """The job that reads a whole shop of any of these sources and compares its labels."""
    return dg.define_asset_job(
        RECONCILIATION,
        selection=dg.AssetSelection.assets(*_assets(sources)).without_checks()
        | dg.AssetSelection.checks(*checks),
        description="The whole catalogue of a shop against its labels, on both sides: needs no webhook at all.",
        config=reads_all(sources),
        # A bulk read of a large shop takes its time; a run that outlives this is dead (dagster.md 2.4). A retry begins
        # anew: it needs no file of the run before it, and a run that dies after its last step, too, has one.
        tags={
            "dagster/max_runtime": "21600",
            "dagster/max_retries": "3",
            "dagster/retry_strategy": "ALL_STEPS",
            "esl/role": "reconciliation",
            **pod(cpu="500m", memory="1Gi", at_most="2Gi"),
        },
    )


def reads_all(sources: Sequence[type[Source[Any]]]) -> dg.RunConfig:
    """The configuration of a run that reads everything of a shop of these sources."""
    read: dict[str, dg.Config] = {source.products_asset(): Read(whole_catalogue=True) for source in sources}
    return dg.RunConfig(ops={**read, "hipoink_sync_results": Push(compare=True)})


def _assets(sources: Sequence[type[Source[Any]]]) -> list[str]:
    return [
        *(source.products_asset() for source in sources),
        *("validated_variants", "hipoink_sync_results"),
    ]


def reads_whole_shop(key: str, source: type[Source[Any]], *, run_key: str) -> dg.RunRequest:
    """A run of full_reconciliation for one shop (its key) of that source."""
    return dg.RunRequest(
        run_key=run_key,
        job_name=RECONCILIATION,
        partition_key=key,
        asset_selection=[dg.AssetKey(name) for name in _assets([source])],
        run_config=reads_all([source]),
    )


def nightly_reconciliation(
    job: "UnresolvedAssetJobDefinition", cron: str, time_zone: str
) -> dg.ScheduleDefinition:
    """The schedule of full_reconciliation: one run per active shop that can be read."""

    @dg.schedule(
        name="nightly_reconciliation",
        job=job,
        cron_schedule=cron,
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night, every active shop that can be read.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        sources: dg.ResourceParam[Sources],
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        active = active_shops(buffer)
        readable = [key for key in active if sources.opens(shop_of(key))]
        known = set(context.instance.get_dynamic_partitions("shops"))
        if added := [key for key in readable if key not in known]:
            context.instance.add_dynamic_partitions("shops", added)
        night = context.scheduled_execution_time.isoformat()
        for key in readable:
            yield reads_whole_shop(key, type(sources.of(shop_of(key))), run_key=f"{night} {key}")
        if not readable:
            without = f"nothing opens {', '.join(active)}: {sources.how_to_read()}"
            yield dg.SkipReason(without if active else "no shop is mapped to a store")

    return schedule
