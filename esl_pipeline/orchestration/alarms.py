"""Alarms: a shop that has fallen silent."""

from datetime import UTC, datetime

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key
from esl_pipeline.orchestration import runless
from esl_pipeline.orchestration.checks import webhooks_arrive
from esl_pipeline.orchestration.evaluations import Judged
from esl_pipeline.orchestration.shops import products_asset_name


def silence_sensor(*, hours: float) -> dg.SensorDefinition:
    """The sensor that fails the check webhooks_arrive of a shop that has fallen silent, and passes it again."""

    @dg.sensor(
        name="silence_sensor",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Raises the alarm webhooks_arrive for a shop that normally sends webhooks and has fallen silent, "
        "or that a message has switched off.",
    )
    def sensor(context: dg.SensorEvaluationContext, buffer: dg.ResourceParam[Buffer]) -> dg.SensorResult:
        status, now = buffer.status(), datetime.now(UTC)
        watched = {shop_key(row) for row in status["stores"] if row["is_active"] or row["switched_off"]}
        # An alarm that stands ends with the word that a shop is inactive, too.
        before = set((context.cursor or "").split())
        known = before & {shop_key(row) for row in status["stores"]}
        judged = {key: webhooks_arrive(status, key, hours=hours, now=now) for key in sorted(watched | known)}
        silent = {key for key, result in judged.items() if not result.passed}
        # The cursor holds the alarms that stand, so that only changes are events.
        events = [
            Judged.of(products_asset_name(key), webhooks_arrive.__name__, key, judged[key]).event(
                context.instance
            )
            for key in sorted(silent ^ (before & judged.keys()))
        ]
        if not events:
            return dg.SensorResult(skip_reason=f"{len(silent)} of {len(judged)} shops are silent")
        for event in events:
            runless.report(context.instance, event)
        says = "; ".join(f"{event.partition}: {event.description}" for event in events)
        return dg.SensorResult(skip_reason=says, cursor=" ".join(sorted(silent)))

    return sensor
