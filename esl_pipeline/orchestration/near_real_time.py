"""Near real time: inbox_sensor keeps event_sync going, a drain run per label server, or starts it when work is due."""

import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from uuid import uuid4

import dagster as dg
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.due import Due, DueEverywhere
from esl_pipeline.model.label_server import DEFAULT_SERVER, called
from esl_pipeline.model.shop import shop_key
from esl_pipeline.orchestration import checks, reports, runless
from esl_pipeline.orchestration.evaluations import failing_again
from esl_pipeline.orchestration.failures import release_claims_of_parent, stop_retries
from esl_pipeline.orchestration.forms import Form, known_server
from esl_pipeline.orchestration.journal import Journal
from esl_pipeline.orchestration.pods import pod
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.orchestration.shops import PARTITIONS, without_unmapped
from esl_pipeline.stages.drain import RELIEF_SECONDS, drain, lease_of

# For what a drain run does once it is old: wait for the next, its last round with a push, its reports and checks.
_SECONDS_AFTER_AGE = math.ceil(RELIEF_SECONDS) + 300

# A tick waits for work itself: far below Dagster's limit of 60 s, and just short of a multiple of the daemon's
# 5 s loop, so that the next tick follows at once.
HOLD_SECONDS = 24.0
_POLL_SECONDS = 0.5
# A tick keeps a free lease for the run that it asks for, until the next tick. One that is killed (all of this stops or
# is restarted) may have asked for a run that nobody hears of: the lease is free by that time.
_ASKED_SECONDS = 20.0
# Each later tick keeps it again while that run is on its way: for longer than a tick and the pause after it.
_KEPT_SECONDS = 45.0
# A successor is awaited for longer than Dagster waits for a run to start (start_timeout_seconds of dagster.yaml): else
# each would find the next one there.
_LAUNCH_SECONDS = 130.0

# Of each drain run; the run coordinator bounds how many of each label server are under way.
SERVER_TAG = "esl/label_server"
# Who holds the lease of the drain: set by the sensor, kept by a retried run. No configuration, for nobody types it.
HOLDER_TAG = "esl/holder"
# Dagster's, of a run that failed: whether it will be tried again.
WILL_RETRY_TAG = "dagster/will_retry"
# Of these Dagster makes something: it starts them, or says that they failed. One that is made and not queued yet stays
# so for ever when the daemon is killed just then.
_ON_THEIR_WAY = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING]


class DrainConfig(Form):
    """Which label server is drained, and until when."""

    label_server: str = Field(
        DEFAULT_SERVER,
        description=f"The label server, by its name in the settings; `{DEFAULT_SERVER}` is that of "
        "HIPOINK_API_BASE_URL.",
    )
    keep_warm: bool = Field(
        False,
        description="Go on while nothing is due, until the next drain run takes over (as ESL_DRAIN_KEEP_WARM has the "
        "sensor's runs do); else end after ESL_DRAIN_IDLE_SECONDS without work.",
    )


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
    server, buffer = known_server(label_server, config.label_server), buffer.at(config.label_server)
    journal, ran = Journal(context, buffer), True
    try:
        with server.client(buffer) as client:
            ran = drain(
                buffer,
                client,
                server.rules,
                replace(server.limits, keep_warm=config.keep_warm),
                run_id=context.run.run_id,
                holder=context.run.tags.get(HOLDER_TAG, context.run.run_id),
                asset="hipoink_sync_results",
                on_round=journal.add,
                on_idle=journal.rest,
            )
    finally:
        journal.close()
        if ran:
            outcome = journal.tell()
        else:
            named = called(server.name, buffer.label_servers)
            outcome = f"another drain run of {named} is alive; nothing to do here"
            reports.tell(context, outcome)
    yield dg.Output(None, metadata={reports.OUTCOME: outcome})


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
            **pod(cpu="250m", memory="512Mi", at_most="1Gi"),
        },
        executor_def=dg.in_process_executor,
    )
    def event_sync() -> None:
        """The drain job."""
        drain_events()

    return event_sync


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
    lease = lease_of(name)
    if relieves:
        state = buffer.lease_await(name=lease, holder=holder, seconds=_LAUNCH_SECONDS, ready=False)
        return state != "refused"
    return buffer.lease_keep(name=lease, holder=holder, seconds=_ASKED_SECONDS)


def _on_its_way(instance: dg.DagsterInstance, name: str) -> str | None:
    """The holder of the drain run of a label server that was asked for and has not started, if there is one."""
    runs = instance.get_runs(dg.RunsFilter(tags={SERVER_TAG: name}, statuses=_ON_THEIR_WAY), limit=1)
    return runs[0].tags.get(HOLDER_TAG) if runs else None


def _is_over(instance: dg.DagsterInstance, holder: str) -> bool:
    """Whether the drain run of this holder has ended, and nobody tries it again. Unknown runs are somebody else's."""
    runs = instance.get_runs(dg.RunsFilter(tags={HOLDER_TAG: holder}))  # the newest first
    return bool(runs) and all(run.is_finished for run in runs) and runs[0].tags.get(WILL_RETRY_TAG) != "true"


def drain_request(label_server: str, holder: str, *, keep_warm: bool) -> dg.RunRequest:
    """The run that drains a label server, under the lease of this holder."""
    config = {"label_server": label_server, "keep_warm": keep_warm}
    return dg.RunRequest(
        run_key=f"{label_server}:{holder}",
        run_config={"ops": {"drain_events": {"config": config}}},
        tags={SERVER_TAG: label_server, HOLDER_TAG: holder},
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
        + ", adds new shops as partitions, and removes those of shops that no mapping has.",
    )
    def sensor(context: dg.SensorEvaluationContext, buffer: dg.ResourceParam[Buffer]) -> dg.SensorResult:
        known = set(context.instance.get_dynamic_partitions(PARTITIONS))
        give_up = time.monotonic() + HOLD_SECONDS
        due = buffer.due_everywhere()
        cursor, removed = without_unmapped(
            context.instance,
            known - set(map(shop_key, due.shops)),
            cursor=context.cursor,
            now=time.time(),
        )
        for key in removed:
            context.log.info(f"the partition {key} is removed: no such shop is mapped")
        known.difference_update(removed)
        # Of a shop that was judged after one whose labels are wrong the asset would look right in the graph.
        again = failing_again(context.instance, checks.RESULTS, checks.label_accuracy.__name__, known)
        for judged in again:
            runless.report(context.instance, judged.event(context.instance))
        for name, of_server in due.servers.items():
            # A run that was killed before it began (its code server is restarted) gives no lease back.
            if of_server.drain and _is_over(context.instance, of_server.drain):
                buffer.lease_release(name=lease_of(name), holder=of_server.drain, seconds=_LAUNCH_SECONDS)
            if coming := _on_its_way(context.instance, name):
                buffer.lease_keep(name=lease_of(name), holder=coming, seconds=_KEPT_SECONDS)
        while True:
            if added := new_shops(due, known):
                # At once, not with the tick's result: the tick would have to end, and the shop's first label wait.
                context.instance.add_dynamic_partitions(PARTITIONS, added)
                known.update(added)
            runs = []
            for name, of_server in due.servers.items():
                holder = str(uuid4())
                if wants_run(of_server, keep_warm=keep_warm) and _announced(
                    buffer, name, holder, relieves=of_server.drain is not None
                ):
                    runs.append(drain_request(name, holder, keep_warm=keep_warm))
            if runs:
                return dg.SensorResult(run_requests=runs, cursor=cursor)
            if time.monotonic() > give_up:
                return dg.SensorResult(skip_reason=why_none(due), cursor=cursor)
            time.sleep(_POLL_SECONDS)
            due = buffer.due_everywhere()

    return sensor
