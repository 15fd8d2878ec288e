"""Evaluations of asset checks as events: each of a shop's partition, and about the newest materialisation of that.

An event that does not name its materialisation counts as about none: Dagster calls the check of the partition missing,
and its graph falls back on the shop that was evaluated last.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)
from dagster._core.event_api import PartitionKeyFilter

from esl_pipeline.orchestration import reports

# Of an evaluation that was repeated for a newer materialisation: when it was made.
EVALUATED_AT = "evaluated at"


def of_shop(result: dg.AssetCheckResult, shop: str) -> dg.AssetCheckResult:
    """A result of one shop (its key): of its numbers those are plotted that have a line for each shop."""
    return dg.AssetCheckResult(
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=reports.of_shop(
            {
                name: value.value if isinstance(value, _NUMBER) else value
                for name, value in result.metadata.items()
            },
            shop,
        ),
    )


_NUMBER = (dg.IntMetadataValue, dg.FloatMetadataValue)


@dataclass(frozen=True)
class Judged:
    """What a check of an asset says of a shop (its key), as its partition's event will."""

    asset: str
    name: str
    shop: str
    result: dg.AssetCheckResult

    @classmethod
    def of(cls, asset: str, name: str, shop: str, result: dg.AssetCheckResult) -> Self:
        """As a check says it."""
        return cls(asset, name, shop, of_shop(result, shop))

    def about(self, target: Target | None) -> dg.AssetCheckEvaluation:
        """The event, about this materialisation."""
        return dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(self.asset),
            check_name=self.name,
            passed=self.result.passed,
            severity=self.result.severity,
            description=self.result.description,
            metadata=self.result.metadata,
            partition=self.shop,
            target_materialization_data=target,
        )

    def event(self, instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
        """The event, about the newest materialisation that there is."""
        return self.about(newest(instance, self.asset, self.shop))


def newest(instance: dg.DagsterInstance, asset: str, shop: str) -> Target | None:
    """The newest materialisation of a shop's partition; None where there is none."""
    which = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[shop])
    for record in instance.fetch_materializations(which, limit=1).records:
        return Target(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp)
    return None


def failing_again(
    instance: dg.DagsterInstance, asset: str, name: str, shops: Collection[str]
) -> list[Judged]:
    """What a check said of a shop of these that it fails, where its newest word was of one that it passes.

    Dagster gives an asset in its graph the colour of each check's newest evaluation, whatever its partition.
    """
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    last = instance.get_latest_asset_check_evaluation_record(key)
    said = last.evaluation if last is not None else None
    if not (isinstance(said, dg.AssetCheckEvaluation) and said.passed):
        return []
    failing = [
        info.partition_key
        for info in instance.event_log_storage.get_asset_check_partition_info([key])
        if info.latest_execution_status.value == "FAILED" and info.partition_key in shops
    ]
    return kept(instance, asset, failing[0], [name]) if failing and failing[0] else []


def kept(instance: dg.DagsterInstance, asset: str, shop: str, names: Sequence[str]) -> list[Judged]:
    """What these checks said last of a shop, with when: for a materialisation that changes nothing of what they say."""
    keys = [dg.AssetCheckKey(dg.AssetKey(asset), name) for name in names]
    # The instance's own door answers for all partitions together.
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        keys, partition_filter=PartitionKeyFilter(key=shop)
    )
    found = []
    for key, record in records.items():
        said = record.evaluation
        if isinstance(said, dg.AssetCheckEvaluation):  # else it is being made
            at: Mapping[str, dg.MetadataValue] = {
                EVALUATED_AT: dg.MetadataValue.timestamp(record.create_timestamp)
            }
            result = dg.AssetCheckResult(
                passed=said.passed,
                severity=said.severity,
                description=said.description,
                metadata={**at, **said.metadata},
            )
            found.append(Judged(asset, key.name, shop, result))
    return found
