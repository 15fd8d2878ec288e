"""The job probe: with the label that a store's policy dedicates to it (probe_label), measures again and again how long
it takes until a change is shown, in the background of the label servers' pace."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.orchestration.at_work import is_at_work
from esl_pipeline.orchestration.failures import stop_retries
from esl_pipeline.orchestration.forms import Form
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.stages.probe import DEFAULT_RULES, Probe
from esl_pipeline.stages.probe import probe as measure

_BACKGROUND = Call(is_background=True)
# Each measurement costs the label a refresh or two of its battery.
_CRON = "23 */6 * * *"


class How(Form):
    """How long is waited."""

    wait: float = Field(DEFAULT_RULES.wait, gt=0, description="Seconds that a refresh may take.")
    quiet: float = Field(
        DEFAULT_RULES.quiet,
        ge=0,
        description="Seconds for which a label's row must stand still before it is worth watching.",
    )


@dg.op(description="What each store's probe label tells, one store after the other at each label server.")
def probe_labels(
    context: dg.OpExecutionContext,
    config: How,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServers],
) -> None:
    """Every store that has a probe label; what could not be measured is logged, and shown by status."""
    buffer.check_version()
    by_server: dict[str, list[Mapping[str, Any]]] = {}
    for store in buffer.probe_stores():
        by_server.setdefault(store["label_server"], []).append(store)

    def at(name: str) -> Sequence[Probe]:
        here = buffer.at(name)
        with label_server.of(name).client(here) as client:
            return [
                measure(
                    here,
                    client,
                    store=store["store_code"],
                    esl_code=store["esl_code"],
                    by="policy probe_label",
                    run_id=context.run.run_id,
                    rules=replace(DEFAULT_RULES, wait=config.wait, quiet=config.quiet),
                    call=_BACKGROUND,
                    is_full=False,
                )
                for store in by_server[name]
            ]

    with ThreadPoolExecutor(max_workers=len(by_server) or 1) as beside:
        done = [found for part in beside.map(at, by_server) for found in part]
    for found in done:
        says = f"{found.store_code}, {found.esl_code}: {found.outcome}"
        if found.outcome == "moves":
            context.log.info(f"{says} {found.seconds} s after the push")
        else:
            context.log.warning(f"{says}: {found.reason}")


@dg.job(
    description="Measures with the stores' probe labels how long it takes until a change is shown. Started by the "
    "schedule probe.",
    hooks={stop_retries},
    tags={"dagster/max_runtime": "14400", "dagster/max_retries": "0", "esl/role": "probe"},
    executor_def=dg.in_process_executor,
)
def probe() -> None:
    """The job of the probe labels."""
    probe_labels()


def probe_schedule() -> dg.ScheduleDefinition:
    """The schedule of probe; nothing is started while no policy names a probe label, or the last one is at work."""

    @dg.schedule(
        name="probe",
        job=probe,
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Four times a day, where a policy names a probe_label.",
    )
    def schedule(
        context: dg.ScheduleEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        label_server: dg.ResourceParam[LabelServers],
    ) -> dg.RunRequest | dg.SkipReason:
        if not label_server.settings.label_servers:
            return dg.SkipReason("no label server is set")
        if not buffer.probe_stores():
            return dg.SkipReason("no live store has a probe_label whose label server knows labels and is up")
        if is_at_work(context.instance, probe.name):
            return dg.SkipReason("the last one is still at work")
        return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat())

    return schedule
