"""alert_sensor: every few seconds, what is wrong becomes alerts, and alerts get to people; and the heartbeat."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from pydantic import SecretStr

from esl_pipeline.alerts import round as alerts
from esl_pipeline.alerts import sender
from esl_pipeline.alerts.addresses import host_of
from esl_pipeline.alerts.model import Known
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key
from esl_pipeline.orchestration import alert_check, instance_troubles, runless
from esl_pipeline.orchestration.resources import Sources

_SECONDS = 10
# Dagster's instance is asked that often: its queries cost more than ours.
_INSTANCE_SECONDS = 40.0
_HEARTBEAT_SECONDS = 60.0
# Work that is due for so long without a drain run: not all is well.
_NO_DRAIN_SECONDS = 180.0

# What only Dagster's instance and this machine can tell: between two looks nothing of it ends.
OF_INSTANCE = frozenset(
    {
        *("check_failed", "shop_unread", "run_failed", "night_missing", "night_late", "housekeeping_late"),
        *("storage_low", "not_judged"),
    }
)


@dataclass
class Memory:
    """What a tick tells the next one, as the sensor's cursor. Times are seconds since 1970.

    checks: what the check `alerts` said last of each shop, and about which materialisation. undrained_since: of work
    that is due and has no drain run.
    """

    instance_at: float = 0
    heartbeat_at: float = 0
    undrained_since: float | None = None
    checks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None) -> "Memory":
        """From a cursor, whatever somebody has typed there."""
        with suppress(ValueError, TypeError):
            return cls(**json.loads(cursor or "{}"))
        return cls()

    def written(self) -> str:
        """As a cursor."""
        return json.dumps(vars(self))


def alert_sensor(checks: Sequence[dg.AssetChecksDefinition]) -> dg.SensorDefinition:
    """The sensor. checks: those whose failing is told."""
    keys = [key for check in checks for key in check.check_keys]

    @dg.sensor(
        name="alert_sensor",
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells people what is wrong, once when it begins and once when it ends (ESL_ALERT_WEBHOOK_URL), "
        "keeps the check `alerts`, and calls ESL_HEARTBEAT_URL while all is well.",
    )
    def sensor(
        context: dg.SensorEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        sources: dg.ResourceParam[Sources],
    ) -> dg.SensorResult:
        settings, memory, now = sources.settings, Memory.read(context.cursor), datetime.now(UTC)
        seen = alerts.look(buffer, settings)
        known = seen.known + Known(unknown=OF_INSTANCE)
        looks = now.timestamp() - memory.instance_at >= _INSTANCE_SECONDS
        if looks:
            memory.instance_at = now.timestamp()
            mappings = buffer.mapping_list()
            known = seen.known + instance_troubles.troubles(context.instance, sources, mappings, keys, now)
        unsent = alerts.follow(buffer, settings, seen, known)
        for sentence in unsent:
            context.log.warning(f"an alert could not be sent to {sentence}")
        if looks:
            open_alerts = buffer.alert_list(is_open=True)
            _keep_check(context.instance, memory, open_alerts, mappings)
        if settings.esl_heartbeat_url and now.timestamp() - memory.heartbeat_at >= _HEARTBEAT_SECONDS:
            _remember_drains(memory, buffer, now)
            reason = _why_no_heartbeat(settings.esl_heartbeat_url, memory, seen, now)
            if reason:
                context.log.warning(f"no heartbeat: {reason}")
            else:
                memory.heartbeat_at = now.timestamp()
        said = f"{len(known.conditions)} troubles" if known.conditions else "nothing is wrong"
        return dg.SensorResult(cursor=memory.written(), skip_reason=said)

    return sensor


def _keep_check(
    instance: dg.DagsterInstance,
    memory: Memory,
    open_alerts: Sequence[Mapping[str, Any]],
    mappings: Sequence[Mapping[str, Any]],
) -> None:
    """Evaluate the check of the shops of which it says something else now, or about another materialisation."""
    before, memory.checks = memory.checks, {}
    for shop in sorted({shop_key(mapping) for mapping in mappings}):
        found = alert_check.event(instance, open_alerts, shop)
        target = found.target_materialization_data
        said = [found.description, target.storage_id if target else None]
        memory.checks[shop] = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        if memory.checks[shop] != before.get(shop):
            runless.report(instance, found)


def _remember_drains(memory: Memory, buffer: Buffer, now: datetime) -> None:
    due = buffer.due_everywhere().servers
    if any(of_server.anything and of_server.drain is None for of_server in due.values()):
        memory.undrained_since = memory.undrained_since or now.timestamp()
    else:
        memory.undrained_since = None


def _why_no_heartbeat(url: SecretStr, memory: Memory, seen: alerts.Seen, now: datetime) -> str | None:
    """Call the heartbeat's address, unless something stands still that cannot tell of it; None: it was called."""
    if memory.undrained_since is not None and now.timestamp() - memory.undrained_since >= _NO_DRAIN_SECONDS:
        return "work is due, and no drain run is alive"
    if seen.is_stuck:
        return "alerts do not get through"
    error = sender.get(url).error
    return error and f"{host_of(url.get_secret_value())}: {error}"
