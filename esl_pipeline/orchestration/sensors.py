"""inbox_sensor: sees due work within half a second and starts one drain run for it."""

import time
from collections.abc import Collection
from typing import Any
from uuid import uuid4

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.stages.drain import LEASE
from esl_pipeline.stages.shops import shop_key

# A tick waits for work itself: far below Dagster's limit of 60 s, and just short of a multiple of the daemon's
# 5 s loop, so that the next tick follows at once.
HOLD_SECONDS = 24.0
_POLL_SECONDS = 0.5
# Until the launched run has taken the lease over; a run that never starts frees it by that time. Longer than Dagster
# waits for a run to start (start_timeout_seconds of dagster.yaml): else each run would find the next one's lease.
_LAUNCH_SECONDS = 130.0


def new_shops(due: dict[str, Any], known: Collection[str]) -> list[str]:
    """Partitions to add: mapped shops that Dagster does not know yet."""
    return [key for key in map(shop_key, due["shops"]) if key not in known]


def wants_run(due: dict[str, Any]) -> bool:
    """Whether to start a drain run: there is due work and no drain run is alive."""
    return bool(due["due"]) and due["drain"] is None


def why_none(due: dict[str, Any]) -> str:
    """Why no drain run is started, for the reader of the sensor's ticks."""
    if due["drain"]:
        return "the drain run is at work"
    if outage := due["outage"]:
        return f"the label server is down since {outage['since']}, next try at {outage['probe_at']}: {outage['reason']}"
    return "nothing is due"


def inbox_sensor(drain_job: dg.JobDefinition, *, interval_seconds: int) -> dg.SensorDefinition:
    """The sensor that starts the drain job, looking every interval_seconds (and all the time within a tick)."""

    @dg.sensor(
        name="inbox_sensor",
        job=drain_job,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Long-polls the buffer for due webhooks and labels; keeps one event_sync run alive while there "
        "are any, and adds new shops as partitions.",
    )
    def sensor(context: dg.SensorEvaluationContext, buffer: dg.ResourceParam[Buffer]) -> dg.SensorResult:
        known = set(context.instance.get_dynamic_partitions("shops"))
        give_up = time.monotonic() + HOLD_SECONDS
        while True:
            due = buffer.due()
            if added := new_shops(due, known):
                # At once, not with the tick's result: the tick would have to end, and the shop's first label wait.
                context.instance.add_dynamic_partitions("shops", added)
                known.update(added)
            if wants_run(due):
                holder = str(uuid4())
                if buffer.lease_take(name=LEASE, holder=holder, seconds=_LAUNCH_SECONDS)["held"]:
                    config = {"ops": {"drain_events": {"config": {"holder": holder}}}}
                    run = dg.RunRequest(run_key=holder, run_config=config)
                    return dg.SensorResult(run_requests=[run])
            if time.monotonic() > give_up:
                return dg.SensorResult(skip_reason=why_none(due))
            time.sleep(_POLL_SECONDS)

    return sensor
