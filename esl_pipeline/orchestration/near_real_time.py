"""Near real time: inbox_sensor sees due work in half a second and starts event_sync, a drain run per label server."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import dagster as dg
import pandas as pd
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.due import Due, DueEverywhere
from esl_pipeline.model.label_server import DEFAULT_SERVER, called
from esl_pipeline.model.rows import FINDINGS, LABELS, RESULTS, VARIANTS, Rows
from esl_pipeline.model.shop import shop_key
from esl_pipeline.orchestration import checks, reports
from esl_pipeline.orchestration.failures import reason_of, release_claims_of_parent, stop_retries
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.orchestration.shops import products_asset_name
from esl_pipeline.stages.drain import Round, drain, lease_of

# An event costs Dagster 13-15 ms (dagster.md 1.4): rounds are reported together, a few seconds' worth at a time.
_REPORT_SECONDS = 2.0
# Of them between two rounds: sixty shops' reports at once would keep a price rise waiting for seconds.
_REPORT_SECONDS_PER_ROUND = 0.05
# For what a drain run does once it is old: its last round with a push (PushRules.lease), its reports and checks.
_SECONDS_AFTER_AGE = 300

# A tick waits for work itself: far below Dagster's limit of 60 s, and just short of a multiple of the daemon's
# 5 s loop, so that the next tick follows at once.
HOLD_SECONDS = 24.0
_POLL_SECONDS = 0.5
# Until the launched run has taken the lease over; a run that never starts frees it by that time. Longer than Dagster
# waits for a run to start (start_timeout_seconds of dagster.yaml): else each run would find the next one's lease.
_LAUNCH_SECONDS = 130.0

# Of each drain run; the run coordinator bounds how many of each label server are under way.
SERVER_TAG = "esl/label_server"

_log = logging.getLogger(__name__)


class DrainConfig(dg.Config):
    """Whose drain this is and who holds its lease; the sensor sets both, and a retried run keeps them."""

    label_server: str = Field(DEFAULT_SERVER, description="The label server, by its name in the settings.")
    holder: str = ""


class Journal:
    """Collects rounds and logs one materialisation per asset and shop for them, with that shop's partition.

    Never raises: what is reported is done already, and a report that fails fails nothing else. It is said in the log.
    """

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._rounds: list[Round] = []
        self._flushed_at = time.monotonic()
        self._reports = deque[Callable[[], None]]()
        self._touched_shops: set[str] = set()
        self._problems: set[str] = set()

    def add(self, done: Round) -> None:
        """Remember a round; report when the last report is old enough."""
        for problem in sorted(set(done.evaluation.problems) - self._problems):
            self._problems.add(problem)
            self._say(problem)
        self._rounds.append(done)
        self.flush_if_old()

    def flush_if_old(self) -> None:
        """Report what has been collected, unless the last report was just now: some of it, the rest another time."""
        if not self._reports and time.monotonic() - self._flushed_at >= _REPORT_SECONDS:
            self._prepare()
        until = time.monotonic() + _REPORT_SECONDS_PER_ROUND
        while self._reports and time.monotonic() < until:
            self._reports.popleft()()

    def flush(self) -> None:
        """Log all that has been collected."""
        while self._reports or self._rounds:
            while self._reports:
                self._reports.popleft()()
            self._prepare()

    def _prepare(self) -> None:
        """One report for each asset and shop of the collected rounds."""
        rounds, self._rounds, self._flushed_at = self._rounds, [], time.monotonic()
        if not rounds:
            return
        events = [event for done in rounds for event in done.events]
        variants = _joined([done.variants for done in rounds], VARIANTS)
        labels = _joined([done.evaluation.labels for done in rounds], LABELS)
        findings = _joined([done.evaluation.findings for done in rounds], FINDINGS)
        results = _joined([frame for done in rounds for frame in done.results], RESULTS)
        event_shop = pd.Series([event["shop"] for event in events], dtype=str)
        variant_shop, label_shop, result_shop = _shops(variants), _shops(labels), results["shop"]
        self._touched_shops |= {*label_shop, *result_shop}
        for shop in sorted({*event_shop, *variant_shop}):
            mine = [event for event in events if event["shop"] == shop]
            changed = variants[variant_shop == shop]
            self._later(products_asset_name(shop), shop, partial(reports.products_report, mine, [changed]))
        for shop in sorted(set(label_shop)):
            ours, found = labels[label_shop == shop], reports.FindingsTally()
            found.add(findings[findings["mapping_id"].isin(ours["mapping_id"])])
            self._later("validated_variants", shop, partial(reports.labels_report, [ours], found))
        for shop in sorted(set(result_shop)):
            pushed = results[result_shop == shop]
            self._later("hipoink_sync_results", shop, partial(reports.results_report, [pushed]))

    def checks(self, buffer: Buffer) -> Iterator[dg.AssetCheckEvaluation]:
        """The checks of every shop that had labels judged or pushed: after a materialisation a check is open again.

        Asked once a run, for each shop costs five events.
        """
        if self._touched_shops:
            yield from checks.evaluations(buffer, sorted(self._touched_shops), say=self._say)

    def _later(self, asset: str, shop: str, report: Callable[[], dict[str, Any]]) -> None:
        self._reports.append(partial(self._log, asset, shop, report))

    def _log(self, asset: str, shop: str, report: Callable[[], dict[str, Any]]) -> None:
        try:
            event = dg.AssetMaterialization(asset_key=asset, partition=shop, metadata=report())
            self._context.log_event(event)
        except Exception as error:
            _log.exception("a report failed")
            self._say(f"what was done for {shop} could not be reported ({asset}): {reason_of(error)}")

    def _say(self, text: str) -> None:
        with suppress(Exception):  # Dagster's storage may be what is away
            self._context.log.error(text)


@dg.op(
    description="Claims due events and labels of all shops that feed a label server in micro-batches, until idle for "
    "some seconds or old."
)
def drain_events(
    context: dg.OpExecutionContext,
    config: DrainConfig,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServers],
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """One drain run; ends at once when another one of its label server is alive."""
    buffer.check_version()
    release_claims_of_parent(context.run, buffer)
    server, buffer = label_server.of(config.label_server), buffer.at(config.label_server)
    journal = Journal(context)
    try:
        with server.client(buffer) as client:
            ran = drain(
                buffer,
                client,
                server.rules,
                server.limits,
                run_id=context.run.run_id,
                holder=config.holder or context.run.run_id,
                asset="hipoink_sync_results",
                on_round=journal.add,
                on_idle=journal.flush_if_old,
            )
    finally:
        journal.flush()
    if not ran:
        context.log.info(
            f"another drain run of {called(server.name, buffer.label_servers)} is alive; nothing to do here"
        )
    yield from journal.checks(buffer)
    yield dg.Output(None)


def max_runtime(max_age_seconds: float) -> int:
    """Seconds after which a drain run that should end at this age (ESL_DRAIN_MAX_AGE_SECONDS) must be dead."""
    return math.ceil(max_age_seconds) + _SECONDS_AFTER_AGE


def event_sync_job(*, max_age_seconds: float) -> dg.JobDefinition:
    """The drain job, for runs that end at this age."""

    @dg.job(
        description="Near real time: webhooks of all shops to their labels. Started by inbox_sensor.",
        hooks={stop_retries},
        # Run monitoring ends what is older than its tag: such a run is dead (dagster.md 2.4).
        tags={
            "dagster/max_runtime": str(max_runtime(max_age_seconds)),
            "dagster/max_retries": "2",
            "esl/role": "drain",
        },
        executor_def=dg.in_process_executor,
    )
    def event_sync() -> None:
        """The drain job."""
        drain_events()

    return event_sync


def _joined(frames: list[pd.DataFrame], rows: Rows) -> pd.DataFrame:
    filled = [frame for frame in frames if not frame.empty]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=rows.names)


def _shops(frame: pd.DataFrame) -> pd.Series:
    return frame["source_system"].astype(str) + ":" + frame["source_store_id"].astype(str)


def new_shops(due: DueEverywhere, known: Collection[str]) -> list[str]:
    """Partitions to add: mapped shops that Dagster does not know yet."""
    return [key for key in map(shop_key, due.shops) if key not in known]


def wants_run(due: Due) -> bool:
    """Whether to start a drain run of a label server: there is due work and no drain run of it is alive."""
    return due.anything and due.drain is None


def why_none(everywhere: DueEverywhere) -> str:
    """Why no drain run is started, for the reader of the sensor's ticks."""
    servers = everywhere.servers
    says = [
        f"{name}: {_why_none(due, name, servers)}" if len(servers) > 1 else _why_none(due, name, servers)
        for name, due in servers.items()
    ]
    says += [
        f"the settings name no label server {name}: labels of {', '.join(stores)} wait"
        for name, stores in sorted(everywhere.elsewhere.items())
    ]
    return "; ".join(says)


def _why_none(due: Due, name: str, servers: Mapping[str, Due]) -> str:
    if due.drain:
        return "the drain run is at work"
    if outage := due.outage:
        down = f"{called(name, servers)} is down since {outage.since}"
        return f"{down}, next try at {outage.probe_at}: {outage.reason}"
    return "nothing is due"


def drain_request(label_server: str, holder: str) -> dg.RunRequest:
    """The run that drains a label server, under the lease of this holder."""
    config = {"label_server": label_server, "holder": holder}
    return dg.RunRequest(
        run_key=f"{label_server}:{holder}",
        run_config={"ops": {"drain_events": {"config": config}}},
        tags={SERVER_TAG: label_server},
    )


def inbox_sensor(drain_job: dg.JobDefinition, *, interval_seconds: int) -> dg.SensorDefinition:
    """The sensor that starts the drain job, looking every interval_seconds (and all the time within a tick)."""

    @dg.sensor(
        name="inbox_sensor",
        job=drain_job,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Long-polls the buffer for due webhooks and labels; keeps one event_sync run alive for each label "
        "server that there are any for, and adds new shops as partitions.",
    )
    def sensor(context: dg.SensorEvaluationContext, buffer: dg.ResourceParam[Buffer]) -> dg.SensorResult:
        known = set(context.instance.get_dynamic_partitions("shops"))
        give_up = time.monotonic() + HOLD_SECONDS
        while True:
            due = buffer.due_everywhere()
            if added := new_shops(due, known):
                # At once, not with the tick's result: the tick would have to end, and the shop's first label wait.
                context.instance.add_dynamic_partitions("shops", added)
                known.update(added)
            runs = []
            for name, of_server in due.servers.items():
                holder = str(uuid4())
                if wants_run(of_server) and buffer.lease_take(
                    name=lease_of(name), holder=holder, seconds=_LAUNCH_SECONDS
                ):
                    runs.append(drain_request(name, holder))
            if runs:
                return dg.SensorResult(run_requests=runs)
            if time.monotonic() > give_up:
                return dg.SensorResult(skip_reason=why_none(due))
            time.sleep(_POLL_SECONDS)

    return sensor
