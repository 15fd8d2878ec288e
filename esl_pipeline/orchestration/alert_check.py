"""The asset check `alerts`: the open alerts of a shop, and those that are of all shops."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration.evaluations import Judged, of_shop
from esl_pipeline.orchestration.shops import shops

ASSET, NAME = "hipoink_sync_results", "alerts"

Row = Mapping[str, Any]


def concerning(alerts: Sequence[Row], shop: str) -> list[Row]:
    """Of open alerts those of a shop (its key), or of all shops."""
    return [alert for alert in alerts if not alert["shops"] or shop in alert["shops"]]


def judged(alerts: Sequence[Row], shop: str) -> dg.AssetCheckResult:
    """Whether nothing is wrong that people are told of, by the open alerts (rows of Buffer.alert_list)."""
    mine = concerning(alerts, shop)
    return dg.AssetCheckResult(
        passed=not mine,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(f"[{alert['severity']}] {alert['says']}" for alert in mine)
        or "nothing is wrong",
        metadata={
            f"{alert['kind']} {alert['subject']}": f"since {alert['since'][:19]}Z: {alert['todo']}"
            for alert in mine
        },
    )


def event(instance: dg.DagsterInstance, alerts: Sequence[Row], shop: str) -> dg.AssetCheckEvaluation:
    """The same as the event that a run of the asset would log, about the shop's newest materialisation."""
    return Judged.of(ASSET, NAME, shop, judged(alerts, shop)).event(instance)


def alerts_check() -> dg.AssetChecksDefinition:
    """The check, per shop."""
    with warnings.catch_warnings():
        # Partitions of checks are a preview in Dagster 1.13, which pyproject.toml stays with.
        warnings.simplefilter("ignore", dg.PreviewWarning)

        @dg.asset_check(
            asset=ASSET,
            name=NAME,
            description="What people are told of, and is not over: `esl-pipeline alerts list`.",
            partitions_def=shops,
        )
        def alerts(
            context: dg.AssetCheckExecutionContext, buffer: dg.ResourceParam[Buffer]
        ) -> dg.AssetCheckResult:
            shop = context.partition_key
            return of_shop(judged(buffer.alert_list(is_open=True), shop), shop)

        return alerts
