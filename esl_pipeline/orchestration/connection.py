"""<source>_connection: once a day, whether each shop's token, scopes and webhook subscriptions still do their work.

For each source whose connection can be watched, a job of its own: the shops that cannot be read any more have no
nightly run that could tell.
"""

import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key, shop_of
from esl_pipeline.orchestration.checks import connection_check
from esl_pipeline.orchestration.evaluations import Judged, of_shop
from esl_pipeline.orchestration.failures import reason_of, stop_retries
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import shops
from esl_pipeline.sources.source import Source, Verdict

_DESCRIPTION = (
    "Whether the shop can be read with the scopes that are needed, sends its webhooks here in a version that we read, "
    "and signs them with a secret that we know."
)


@dataclass(frozen=True)
class Watch:
    """What watches the shops of one source."""

    check: dg.AssetChecksDefinition
    job: dg.JobDefinition
    schedule: dg.ScheduleDefinition


def evaluate(sources: Sources, row: Mapping[str, Any]) -> dg.AssetCheckResult:
    """Of one shop, a row of `Buffer.connection_list`. What goes wrong on the way is this shop's own trouble."""
    try:
        verdict = _verdict(sources, row)
    except Exception as error:
        verdict = Verdict((reason_of(error),))
    return dg.AssetCheckResult(
        passed=not verdict.problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(verdict.problems or verdict.remarks).replace(".;", ";"),
        metadata={
            "subscriptions": row["subscriptions"] or "not made by esl-pipeline",
            "first webhook since connecting": row["first_webhook_at"] or "-",
            "newest webhook": row["last_webhook_at"] or "-",
            "Webhooks API version": row["last_api_version"] or "-",
            "signatures refused": row["refused"],
        },
    )


def _verdict(sources: Sources, row: Mapping[str, Any]) -> Verdict:
    settings, shop = sources.settings, {key: row[key] for key in ("source_system", "source_store_id")}
    verdict = sources.of(shop).watch(
        row,
        base_url=settings.app_base_url,
        patience=timedelta(hours=settings.esl_silence_hours),
        now=datetime.now(UTC),
    )
    problem = sources.why_not_read(shop)
    return Verdict((problem, *verdict.problems)) if problem else verdict


def connection_watch(source: type[Source[Any]], time_zone: str) -> Watch:
    """The check, the job and its schedule, for the shops of one source."""
    asset, name = source.products_asset(), connection_check(source.system)

    @dg.op(
        name=f"look_at_{source.system}_connections",
        description="Asks each shop whether its token, scopes and subscriptions still work, and judges what arrives.",
    )
    def look(
        context: dg.OpExecutionContext, buffer: dg.ResourceParam[Buffer], sources: dg.ResourceParam[Sources]
    ) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
        buffer.check_version()
        watched = [
            row
            for row in buffer.connection_list()
            if row["source_system"] == source.system and (row["subscriptions"] or row["is_active"])
        ]
        # Another order each time: a shop that takes all of a run's time has not the same ones behind it the next time.
        random.shuffle(watched)
        for row in watched:
            result = evaluate(sources, row)
            if not result.passed:
                context.log.warning(f"{shop_key(row)}: {result.description}")
            yield Judged.of(asset, name, shop_key(row), result).event(context.instance)
        yield dg.Output(None)

    @dg.job(
        name=f"{source.system}_connections",
        description=f"Whether shops of {source.name} are still connected. Started by the schedule "
        f"{source.system}_connections_daily.",
        hooks={stop_retries},
        tags={"dagster/max_runtime": "3600", "dagster/max_retries": "1", "esl/role": "connections"},
        executor_def=dg.in_process_executor,
    )
    def connections() -> None:
        look()

    schedule = dg.ScheduleDefinition(
        name=f"{source.system}_connections_daily",
        job=connections,
        cron_schedule="30 5 * * *",
        execution_timezone=time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Once a day, every connected shop of {source.name}.",
    )
    return Watch(_check(asset, name), connections, schedule)


def _check(asset: str, name: str) -> dg.AssetChecksDefinition:
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster 1.13, which pyproject.toml stays with.
        warnings.simplefilter("ignore", dg.PreviewWarning)

        @dg.asset_check(asset=asset, name=name, description=_DESCRIPTION, partitions_def=shops)
        def connection(
            context: dg.AssetCheckExecutionContext,
            buffer: dg.ResourceParam[Buffer],
            sources: dg.ResourceParam[Sources],
        ) -> dg.AssetCheckResult:
            rows = buffer.connection_list(shops=[shop_of(context.partition_key)])
            if not rows:
                return dg.AssetCheckResult(passed=True, description="neither connected nor mapped to a store")
            return of_shop(evaluate(sources, rows[0]), context.partition_key)

        return connection
