"""Near real time: inbox_sensor keeps event_sync going, a drain run per label server, or starts it when work is due."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
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
from esl_pipeline.stages.drain import RELIEF_SECONDS, Round, drain, lease_of

# An event costs Dagster 13-15 ms (dagster.md 1.4): rounds are reported together, a few seconds' worth at a time.
_REPORT_SECONDS = 2.0
# Of them between two rounds: sixty shops' reports at once would keep a price rise waiting for seconds.
_REPORT_SECONDS_PER_ROUND = 0.05
# Checks are made after so much silence, and in the middle of work that often.
_QUIET_SECONDS, _CHECKS_SECONDS = 3.0, 600.0
# For what a drain run does once it is old: wait for the next, its last round with a push, its reports and checks.
_SECONDS_AFTER_AGE = math.ceil(RELIEF_SECONDS) + 300

# A tick waits for work itself: far below Dagster's limit of 60 s, and just short of a multiple of the daemon's
# 5 s loop, so that the next tick follows at once.
HOLD_SECONDS = 24.0
_POLL_SECONDS = 0.5
# Until the launched run has taken the lease over; a run that never starts frees it by that time. Longer than Dagster
# waits for a run to start (start_timeout_seconds of dagster.yaml): else each run would find the next one's lease.
_LAUNCH_SECONDS = 130.0

_Event = dg.AssetMaterialization | dg.AssetCheckEvaluation
# Of each drain run; the run coordinator bounds how many of each label server are under way.
SERVER_TAG = "esl/label_server"

_log = logging.getLogger(__name__)


class DrainConfig(dg.Config):
    """Set by the sensor, kept by a retried run: whose drain this is, who holds its lease, and whether the run goes on
    while nothing is due, until the next one takes over."""

    label_server: str = Field(DEFAULT_SERVER, description="The label server, by its name in the settings.")
    holder: str = ""
    keep_warm: bool = False


class Journal:
    """Collects rounds and logs one materialisation per asset and shop for them, with that shop's partition; after them,
    or every ten minutes, the checks of these shops, for after a materialisation a check is open again.

    Never raises: what is reported is done already, and a report that fails fails nothing else. It is said in the log.
    """

    def __init__(self, context: dg.OpExecutionContext, buffer: Buffer) -> None:
        self._context, self._buffer = context, buffer
        self._rounds: list[Round] = []
        self._flushed_at = self._added_at = self._checked_at = time.monotonic()
        self._reports = deque[Callable[[], None]]()
        self._touched_shops: set[str] = set()
        self._problems: set[str] = set()
        # Asked beside the drain: of large shops the answer takes seconds.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checks")
        self._checks: Future[list[dg.AssetCheckEvaluation]] | None = None

    def add(self, done: Round) -> None:
        """Remember a round; report when the last report is old enough."""
        for problem in sorted(set(done.evaluation.problems) - self._problems):
            self._problems.add(problem)
            self._say(problem)
        self._rounds.append(done)
        self._added_at = time.monotonic()
        self.rest()

    def rest(self) -> None:
        """Report what has been collected, unless the last report was just now: some of it, the rest another time."""
        now = time.monotonic()
        if not self._reports and now - self._flushed_at >= _REPORT_SECONDS:
            self._prepare()
        until = now + _REPORT_SECONDS_PER_ROUND
        while self._reports and time.monotonic() < until:
            self._reports.popleft()()
        if self._checks is not None and self._checks.done():
            self._take_checks()
        is_quiet = not self._reports and now - self._added_at >= _QUIET_SECONDS
        if is_quiet or now - self._checked_at >= _CHECKS_SECONDS:
            self._ask_checks()

    def close(self) -> None:
        """Log all that has been collected."""
        with self._beside:
            while self._reports or self._rounds:
                self._log_all()
                self._prepare()
            while self._touched_shops or self._checks is not None:
                self._take_checks()
                self._ask_checks()
            self._log_all()

    def _log_all(self) -> None:
        while self._reports:
            self._reports.popleft()()

    def _ask_checks(self) -> None:
        """Of every shop that had labels judged or pushed since: it costs three calls, and for each shop five events."""
        if self._checks is None and self._touched_shops:
            shops, self._touched_shops = sorted(self._touched_shops), set()
            self._checked_at = time.monotonic()
            self._checks = self._beside.submit(checks.evaluations, self._buffer, shops, say=self._say)

    def _take_checks(self) -> None:
        """Their answer is reported like everything else."""
        if self._checks is not None:
            found, self._checks = self._checks, None
            for check in found.result():
                self._later(f"{check.check_name} of {check.partition}", partial(_itself, check))

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
            self._made(products_asset_name(shop), shop, partial(reports.products_report, mine, [changed]))
        for shop in sorted(set(label_shop)):
            ours, found = labels[label_shop == shop], reports.FindingsTally()
            found.add(findings[findings["mapping_id"].isin(ours["mapping_id"])])
            self._made("validated_variants", shop, partial(reports.labels_report, [ours], found))
        for shop in sorted(set(result_shop)):
            pushed = results[result_shop == shop]
            self._made("hipoink_sync_results", shop, partial(reports.results_report, [pushed]))

    def _made(self, asset: str, shop: str, report: Callable[[], dict[str, Any]]) -> None:
        def event() -> _Event:
            return dg.AssetMaterialization(asset_key=asset, partition=shop, metadata=report())

        self._later(f"{asset} of {shop}", event)

    def _later(self, what: str, event: Callable[[], _Event]) -> None:
        self._reports.append(partial(self._log, what, event))

    def _log(self, what: str, event: Callable[[], _Event]) -> None:
        try:
            self._context.log_event(event())  # type: ignore[arg-type]  # it takes checks too, and does not say so
        except Exception as error:
            _log.exception("a report failed")
            self._say(f"what was done could not be reported ({what}): {reason_of(error)}")

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
) -> Iterator[dg.Output[None]]:
    """One drain run; ends at once when another one of its label server is alive that it does not relieve."""
    buffer.check_version()
    release_claims_of_parent(context.run, buffer)
    server, buffer = label_server.of(config.label_server), buffer.at(config.label_server)
    journal = Journal(context, buffer)
    try:
        with server.client(buffer) as client:
            ran = drain(
                buffer,
                client,
                server.rules,
                replace(server.limits, keep_warm=config.keep_warm),
                run_id=context.run.run_id,
                holder=config.holder or context.run.run_id,
                asset="hipoink_sync_results",
                on_round=journal.add,
                on_idle=journal.rest,
            )
    finally:
        journal.close()
    if not ran:
        context.log.info(
            f"another drain run of {called(server.name, buffer.label_servers)} is alive; nothing to do here"
        )
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


def _itself(event: _Event) -> _Event:
    return event


def _joined(frames: list[pd.DataFrame], rows: Rows) -> pd.DataFrame:
    filled = [frame for frame in frames if not frame.empty]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=rows.names)


def _shops(frame: pd.DataFrame) -> pd.Series:
    return frame["source_system"].astype(str) + ":" + frame["source_store_id"].astype(str)


def new_shops(due: DueEverywhere, known: Collection[str]) -> list[str]:
    """Partitions to add: mapped shops that Dagster does not know yet."""
    return [key for key in map(shop_key, due.shops) if key not in known]


def wants_run(due: Due, *, keep_warm: bool) -> bool:
    """Whether to start a drain run of a label server: work is due, or one is to be kept warm, and none is alive; or
    the one that is alive shall be relieved."""
    if due.drain is not None:
        return keep_warm and due.wants_relief
    return due.anything or (keep_warm and due.is_fed)


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


def _announced(buffer: Buffer, name: str, holder: str, *, relieves: bool) -> bool:
    """Whether the lease is kept for this drain run until it has started, or it is the one to take it over."""
    lease, seconds = lease_of(name), _LAUNCH_SECONDS
    if relieves:
        return buffer.lease_await(name=lease, holder=holder, seconds=seconds, ready=False) != "refused"
    return buffer.lease_keep(name=lease, holder=holder, seconds=seconds)


def drain_request(label_server: str, holder: str, *, keep_warm: bool) -> dg.RunRequest:
    """The run that drains a label server, under the lease of this holder."""
    config = {"label_server": label_server, "holder": holder, "keep_warm": keep_warm}
    return dg.RunRequest(
        run_key=f"{label_server}:{holder}",
        run_config={"ops": {"drain_events": {"config": config}}},
        tags={SERVER_TAG: label_server},
    )


def inbox_sensor(
    drain_job: dg.JobDefinition, *, interval_seconds: int, keep_warm: bool
) -> dg.SensorDefinition:
    """The sensor that starts the drain job, looking every interval_seconds (and all the time within a tick)."""

    @dg.sensor(
        name="inbox_sensor",
        job=drain_job,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Long-polls the buffer for due webhooks and labels; keeps one event_sync run for each label server "
        + ("alive, handing over from one to the next" if keep_warm else "alive while there are any")
        + ", and adds new shops as partitions.",
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
                if wants_run(of_server, keep_warm=keep_warm) and _announced(
                    buffer, name, holder, relieves=of_server.drain is not None
                ):
                    runs.append(drain_request(name, holder, keep_warm=keep_warm))
            if runs:
                return dg.SensorResult(run_requests=runs)
            if time.monotonic() > give_up:
                return dg.SensorResult(skip_reason=why_none(due))
            time.sleep(_POLL_SECONDS)

    return sensor
