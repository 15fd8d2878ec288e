"""What Dagster's pages show of the pipeline, asked as they ask it: our webserver, in this process."""

import asyncio
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx
from dagster import DagsterInstance
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget

from esl_pipeline.orchestration.dagster_ui import guarded_app

# As the pages put it together: the graph's badge, the table of an asset's checks, the partitions of a check.
_ASSETS = """query ($assets: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $assets) {
    assetKey { path }
    partitionStats { numMaterialized numMaterializing numPartitions numFailed }
    assetMaterializations(limit: 1) { partition description }
    assetChecksOrError { ... on AssetChecks { checks {
      name
      executionForLatestMaterialization { status partition evaluation { severity description partition } }
      partitionStatuses { ... on AssetCheckDefaultPartitionStatuses {
        succeededPartitions failedPartitions inProgressPartitions skippedPartitions executionFailedPartitions } }
    } } } } }"""
_PLOTTED = """query ($assets: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $assets) {
    assetMaterializations(limit: 100) { metadataEntries { __typename label } }
    assetObservations(limit: 100) { metadataEntries { __typename label } } } }"""
_CHECK_PLOTTED = """query ($asset: AssetKeyInput!, $check: String!) {
  assetCheckExecutions(assetKey: $asset, checkName: $check, limit: 100) {
    evaluation { metadataEntries { __typename label } } } }"""
_RUN = """query ($id: ID!) {
  runOrError(runId: $id) { ... on Run { status tags { key value } } } }"""
_CONFIG = """query ($selector: PipelineSelector!) {
  runConfigSchemaOrError(selector: $selector) { ... on RunConfigSchema { allConfigTypes {
    ... on CompositeConfigType { fields { name description } } } } } }"""

_NUMBERS = ("IntMetadataEntry", "FloatMetadataEntry")


@dataclass(frozen=True)
class Pages:
    """Dagster's pages over an instance, with our definitions."""

    context: WorkspaceProcessContext

    @classmethod
    @contextmanager
    def over(cls, instance: DagsterInstance) -> Iterator[Self]:
        """The instance is one that other processes could use."""
        target = LoadableTargetOrigin(module_name="esl_pipeline.definitions", attribute="defs")
        origin = InProcessCodeLocationOrigin(target, location_name="esl_pipeline")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Dagster calls properties of its own
            opened = WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin))
        with opened as context:
            yield cls(context)

    def asset(self, name: str) -> dict[str, Any]:
        """What the graph and the asset's page show."""
        (node,) = self._ask(_ASSETS, assets=[{"path": [name]}])["assetNodes"]
        return dict(node)

    def checks(self, name: str) -> dict[str, dict[str, Any]]:
        """The checks of an asset by name."""
        return {check["name"]: check for check in self.asset(name)["assetChecksOrError"]["checks"]}

    def colours(self, name: str) -> dict[str, str]:
        """Of each check of an asset, the sign that the graph's badge and the table of checks count it under.

        Dagster's own rule (webapp: assets/asset-checks/util.tsx, getAggregateCheckIconType).
        """
        return {check: _icon(found) for check, found in self.checks(name).items()}

    def is_red(self, name: str) -> bool:
        """Whether the asset's box is (webapp: asset-graph/AssetNodeStatusContent.tsx)."""
        node = self.asset(name)
        latest = [c["executionForLatestMaterialization"] for c in node["assetChecksOrError"]["checks"]]
        return bool(node["partitionStats"]["numFailed"]) or any(
            execution["status"] == "EXECUTION_FAILED"
            or (execution["status"] == "FAILED" and execution["evaluation"]["severity"] == "ERROR")
            for execution in latest
            if execution
        )

    def plotted(self, name: str, check: str | None = None) -> set[str]:
        """The lines of the plots on the page of an asset, or of one of its checks."""
        asset = {"path": [name]}
        if check is None:
            (node,) = self._ask(_PLOTTED, assets=[asset])["assetNodes"]
            events = node["assetMaterializations"] + node["assetObservations"]
        else:
            executions = self._ask(_CHECK_PLOTTED, asset=asset, check=check)["assetCheckExecutions"]
            events = [execution["evaluation"] for execution in executions if execution["evaluation"]]
        entries = [entry for event in events for entry in event["metadataEntries"]]
        return {entry["label"] for entry in entries if entry["__typename"] in _NUMBERS}

    def run(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Status and tags of a run, as in the list of runs."""
        found = self._ask(_RUN, id=run_id)["runOrError"]
        return found["status"], {tag["key"]: tag["value"] for tag in found["tags"]}

    def fields(self, job: str) -> dict[str, str | None]:
        """The fields that people may type into the Launchpad for a job, with what it says of each."""
        selector = {
            "pipelineName": job,
            "repositoryName": "__repository__",
            "repositoryLocationName": "esl_pipeline",
        }
        found = self._ask(_CONFIG, selector=selector)["runConfigSchemaOrError"]["allConfigTypes"]
        return {field["name"]: field["description"] for kind in found for field in kind.get("fields", ())}

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(guarded_app(self.context))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3000") as http:
                return await http.post("/graphql", json={"query": query, "variables": variables})

        answer = asyncio.run(asked()).raise_for_status().json()
        assert not answer.get("errors"), answer["errors"]
        return dict(answer["data"])


def _icon(check: dict[str, Any]) -> str:
    counts = {name: len(keys) for name, keys in (check["partitionStatuses"] or {}).items()}
    latest = check["executionForLatestMaterialization"]
    severity = ((latest or {}).get("evaluation") or {}).get("severity")
    failed = "WARN" if severity == "WARN" else "ERROR"
    if not any(counts.values()):
        status = latest["status"] if latest else "NOT_EVALUATED"
        return {"FAILED": failed, "EXECUTION_FAILED": "ERROR"}.get(status, status)
    if counts["failedPartitions"] or counts["executionFailedPartitions"]:
        return failed
    for name, icon in (("inProgress", "IN_PROGRESS"), ("skipped", "SKIPPED")):
        if counts[f"{name}Partitions"]:
            return icon
    return "SUCCEEDED"
