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
# What one try takes at most: the connection comes before.
LABEL_SERVER_CALL_SECONDS = LABEL_SERVER_TIMEOUT_SECONDS + 5

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


def open_operator_buffer(settings: Settings) -> Buffer:
    """The buffer with the operators' own login; nothing is connected yet. Raises SettingsError without one."""
    if settings.esl_operator_database_url is None:
        raise SettingsError(
            ["no operator's login is set: set ESL_OPERATOR_DATABASE_URL to one of the group esl_admin"]
        )
    transport = PsycopgTransport(
        settings.esl_operator_database_url, pool_size=1, credential="ESL_OPERATOR_DATABASE_URL"
    )
    return Buffer(transport, label_servers=list(settings.label_servers) or [DEFAULT_SERVER])


def open_label_server(settings: Settings, buffer: Buffer, name: str = DEFAULT_SERVER) -> HipoinkClient:
    """The label server that the settings call so, paced together with all other runs.

    Raises SettingsError when they name none.
    """
    from esl_pipeline.hipoink.client import HipoinkClient
    from esl_pipeline.stages.slots import SharedLimiter

    server = settings.label_server(name)
    return HipoinkClient(
        server.base_url,
        server.client_id,
        server.sign,
        limiter=SharedLimiter(
            buffer,
            server=name,
            rate_per_second=server.rate_limit_per_second,
            concurrency=server.concurrency,
            call_seconds=LABEL_SERVER_CALL_SECONDS,
        ),
        timeout_seconds=LABEL_SERVER_TIMEOUT_SECONDS,
        retries=LABEL_SERVER_TRIES,
        ca_file=server.ca_file,
    )


def push_rules(settings: Settings, name: str = DEFAULT_SERVER) -> PushRules:
    """How pushes to a label server are batched and repeated. Raises SettingsError when there is none of this name."""
    from esl_pipeline.model.push import PushRules
    from esl_pipeline.stages.pusher import batches_at_once

    # Each try waits for its slot behind those of the other batches at hand and of a refresh, with its claim in hand;
    # and for calls in flight that hang, which end by their time-out.
    server = settings.label_server(name)
    slots = LABEL_SERVER_TRIES * (batches_at_once(server.concurrency) + 1)
    waits = LABEL_SERVER_CALL_SECONDS + slots / server.rate_limit_per_second
    return PushRules(
        concurrency=server.concurrency,
        lease=PushRules.lease + waits,
        call=LABEL_SERVER_CALL_SECONDS,
        batch_size=server.batch_size,
        max_attempts=settings.max_retry_attempts,
        initial_delay=settings.retry_initial_delay_seconds,
        multiplier=settings.retry_backoff_multiplier,
    )


def drain_limits(settings: Settings) -> DrainLimits:
    """When a drain run ends."""
    from esl_pipeline.stages.drain import DrainLimits

    return DrainLimits(idle=settings.esl_drain_idle_seconds, age=settings.esl_drain_max_age_seconds)


def connections_of_run(settings: Settings) -> int:
    """How many connections to the buffer a run may need: a night works at all its label servers side by side."""
    from esl_pipeline.stages.drain import connections

    servers = settings.label_servers.values()
    return sum(connections(server.concurrency) for server in servers) or connections(1)
