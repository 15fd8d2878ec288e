"""What a stack asks of Dagster's webserver, over its GraphQL endpoint: is it loaded, start a job, how did it end."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from esl_pipeline.model.shop import shop_of
from esl_pipeline.sources.registry import SOURCES

_REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "esl_pipeline"}
_POLL_SECONDS = 0.25
_ENDED = ("SUCCESS", "FAILURE", "CANCELED")

_LOADED = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
_SCHEDULES = """query ($of: RepositorySelector!) {
  schedulesOrError(repositorySelector: $of) { __typename ... on Schedules { results { id } } } }"""
_STOP = "mutation ($id: String!) { stopRunningSchedule(id: $id) { __typename } }"
_LAUNCH = """mutation ($run: ExecutionParams!) {
  launchRun(executionParams: $run) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_RUNS = "query ($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results { runId } } } }"
_NUMBERS = """query ($id: ID!) {
  runOrError(runId: $id) { ... on Run { assetMaterializations {
    assetKey { path } partition metadataEntries { label
      ... on TextMetadataEntry { text } ... on IntMetadataEntry { intRepr } } } } } }"""


class WebserverError(Exception):
    """Dagster did not do what it was asked; the message says what."""


class Webserver:
    """Dagster's webserver at this address. Methods raise httpx.HTTPError when it does not answer."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/graphql"

    def is_loaded(self) -> bool:
        """Whether it answers and has loaded our definitions."""
        try:
            return bool(self._ask(_LOADED)["repositoriesOrError"].get("nodes"))
        except (httpx.HTTPError, WebserverError, ValueError):
            return False

    def stop_schedules(self) -> None:
        """Stop every schedule, so that nothing runs unless it is launched."""
        found = self._ask(_SCHEDULES, of=_REPOSITORY)["schedulesOrError"]
        for schedule in found["results"]:
            stopped = self._ask(_STOP, id=schedule["id"])["stopRunningSchedule"]["__typename"]
            if stopped != "ScheduleStateResult":
                raise WebserverError(f"Dagster did not stop a schedule: {stopped}")

    def launch(
        self,
        job: str,
        *,
        partition: str | None = None,
        assets: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start a job -> the run's id. partition: where it has any; assets: some of its own; config, tags: of the
        run."""
        tagged = dict(tags or {}) | ({} if partition is None else {"dagster/partition": partition})
        selected = {"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}
        run = {
            "selector": {**_REPOSITORY, "jobName": job, **selected},
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tagged.items()]},
        }
        answer = self._ask(_LAUNCH, run=run)["launchRun"]
        if "run" not in answer:
            raise WebserverError(
                f"Dagster did not start {job}: {answer['__typename']} {answer.get('message', '')}"
            )
        return str(answer["run"]["runId"])

    def launch_night(self, shop: str) -> str:
        """Start full_reconciliation for a shop (its partition), as the schedule of the night does -> the run's id."""
        products = SOURCES[shop_of(shop)["source_system"]].products_asset()
        assets = [products, "validated_variants", "hipoink_sync_results"]
        return self.launch("full_reconciliation", partition=shop, assets=assets)

    def wait_for_others(self, job: str, seconds: float) -> None:
        """Return when no run of the job is at work; WebserverError when one still is then."""
        deadline = time.monotonic() + seconds
        unfinished = {"pipelineName": job, "statuses": ["QUEUED", "NOT_STARTED", "STARTING", "STARTED"]}
        while self._ask(_RUNS, filter=unfinished)["runsOrError"]["results"]:
            if time.monotonic() > deadline:
                raise WebserverError(f"a run of {job} is still at work after {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def wait(self, run_id: str, seconds: float) -> None:
        """Return when a run has succeeded; WebserverError when it has failed, or has not ended in time."""
        deadline = time.monotonic() + seconds
        while (status := self._ask(_STATUS, id=run_id)["runOrError"]["status"]) not in _ENDED:
            if time.monotonic() > deadline:
                raise WebserverError(f"run {run_id} is still {status} after {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)
        if status != "SUCCESS":
            raise WebserverError(f"run {run_id} has ended with {status}; see the Dagster daemon's log")

    def numbers(self, run_id: str) -> dict[str, dict[str, int]]:
        """Whole numbers of a run's materialisations: asset -> label -> number."""
        found = self._ask(_NUMBERS, id=run_id)["runOrError"]["assetMaterializations"]
        return {
            event["assetKey"]["path"][-1]: {
                # Those that are plotted are named after the shop (orchestration/reports.py), the others are text.
                entry["label"].removesuffix(f", {event['partition']}"): int(number)
                for entry in event["metadataEntries"]
                if (number := entry.get("intRepr") or entry.get("text") or "").isdecimal()
            }
            for event in found
        }

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = {"query": query, "variables": variables}
        answer = httpx.post(self._url, json=body, timeout=30).raise_for_status().json()
        if errors := answer.get("errors"):
            raise WebserverError(f"Dagster's webserver: {errors[0]['message']}")
        data: dict[str, Any] = answer["data"]
        return data
