"""From settings to live connections: the buffer and the label server. The only place that opens them.

What brings pandas along is imported where it is needed: a receiver needs the buffer alone, and 110 MB less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import stamina.instrumentation

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport, SupabaseTransport, Transport
from esl_pipeline.environment import SettingsError
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.settings import Settings

if TYPE_CHECKING:
    from esl_pipeline.hipoink.client import HipoinkClient
    from esl_pipeline.model.push import PushRules
    from esl_pipeline.stages.drain import DrainLimits

# With two tries and pauses between, one push stays well below the lease of its claim (PushRules.lease).
LABEL_SERVER_TIMEOUT_SECONDS = 15.0
LABEL_SERVER_TRIES = 2

# Retries are logged like everything else; stamina would print through structlog, which Dagster brings along.
stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])


def open_buffer(settings: Settings, *, attempts: int = 3, pool_size: int = 4) -> Buffer:
    """The buffer that the settings name; nothing is connected yet.

    Raises SettingsError when neither ESL_DATABASE_URL nor SUPABASE_URL and SUPABASE_SERVICE_KEY are set.
    """
    transport: Transport
    if settings.esl_database_url is not None:
        transport = PsycopgTransport(settings.esl_database_url, attempts=attempts, pool_size=pool_size)
    elif settings.supabase_url is not None and settings.supabase_service_key is not None:
        transport = SupabaseTransport(settings.supabase_url, settings.supabase_service_key, attempts=attempts)
    else:
        raise SettingsError(
            [
                "no buffer is set: set ESL_DATABASE_URL, or SUPABASE_URL and SUPABASE_SERVICE_KEY; "
                "`esl-pipeline up` brings a Postgres of its own"
            ]
        )
    return Buffer(transport, label_servers=list(settings.label_servers) or [DEFAULT_SERVER])


def open_label_server(settings: Settings, buffer: Buffer, name: str = DEFAULT_SERVER) -> HipoinkClient:
    """The label server that the settings call so, paced together with all other runs.

    Raises SettingsError when they name none.
    """
    from esl_pipeline.hipoink.client import HipoinkClient
    from esl_pipeline.stages.push import SharedLimiter

    server = settings.label_server(name)
    return HipoinkClient(
        server.base_url,
        server.client_id,
        server.sign,
        limiter=SharedLimiter(buffer, server=name, rate_per_second=server.rate_limit_per_second),
        timeout_seconds=LABEL_SERVER_TIMEOUT_SECONDS,
        retries=LABEL_SERVER_TRIES,
        ca_file=server.ca_file,
    )


def push_rules(settings: Settings, name: str = DEFAULT_SERVER) -> PushRules:
    """How pushes to a label server are batched and repeated. Raises SettingsError when there is none of this name."""
    from esl_pipeline.model.push import PushRules
    from esl_pipeline.stages.pusher import CALLS_IN_FLIGHT

    # Each try waits for its slot behind those of the other calls in flight and of a refresh, with its claim in hand.
    slots = LABEL_SERVER_TRIES * (CALLS_IN_FLIGHT + 1)
    server = settings.label_server(name)
    return PushRules(
        lease=PushRules.lease + slots / server.rate_limit_per_second,
        batch_size=server.batch_size,
        max_attempts=settings.max_retry_attempts,
        initial_delay=settings.retry_initial_delay_seconds,
        multiplier=settings.retry_backoff_multiplier,
    )


def drain_limits(settings: Settings) -> DrainLimits:
    """When a drain run ends."""
    from esl_pipeline.stages.drain import DrainLimits

    return DrainLimits(idle=settings.esl_drain_idle_seconds, age=settings.esl_drain_max_age_seconds)
