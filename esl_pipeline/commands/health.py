"""`esl-pipeline health`: whether one part does its work, for probes. Each part imports what it asks with, no more."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esl_pipeline.model.check import Check
from esl_pipeline.secret_files import SecretFileError, read

if TYPE_CHECKING:
    from esl_pipeline.buffer.buffer import Buffer
    from esl_pipeline.settings import Settings

Part = Literal["receiver", "daemon", "code-server", "drain", "buffer"]

RECEIVER, CODE_SERVER = "http://127.0.0.1:8000", "127.0.0.1:4000"
# Dagster's daemons tell of themselves every 30 s, each thread for itself; our sensors tick every few seconds.
_STILL_SECONDS = 180
# Those that every installation has (definitions.py), and must have ticked.
SENSORS = ("inbox_sensor", "alert_sensor")
_TIMEOUT_SECONDS = 5.0
_STORAGE = "ESL_DAGSTER_DATABASE_URL"


def health(
    part: Annotated[
        Part | None, typer.Argument(help="Which part. Default: drain, buffer and daemon, where set.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            help=f"Of a receiver its address ({RECEIVER}), of a code server host:port ({CODE_SERVER})."
        ),
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds for which work may be due before a drain has to be at it.")
    ] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether a part is healthy, for probes: exit 1 if it is not. Needs the settings that the part itself has."""
    found = [_asked(one, at, patience) for one in ([part] if part else _set_here())]
    if as_json:
        print(json.dumps([asdict(check) for check in found]))
    else:
        for check in found:
            print(f"{check.what}: {'' if check.state == 'ok' else 'not healthy: '}{check.says}")
    if any(check.state == "wrong" for check in found):
        raise typer.Exit(1)


def _set_here() -> list[Part]:
    """What can be asked with the settings of this process."""
    dagster: list[Part] = ["daemon"] if _is_set(_STORAGE) else []
    buffer: list[Part] = ["buffer", "drain"] if _is_set("ESL_DATABASE_URL") or _is_set("SUPABASE_URL") else []
    return [*buffer, *dagster] or ["buffer"]


def _is_set(name: str) -> bool:
    try:
        return bool(read(name))
    except SecretFileError:
        return True  # and its part says what is wrong with it


def _asked(part: Part, at: str | None, patience: float) -> Check:
    ask: dict[Part, Callable[[], str]] = {
        "receiver": lambda: _receiver(at or RECEIVER),
        "code-server": lambda: code_server(at or CODE_SERVER),
        "daemon": lambda: daemon(_dagster_storage()),
        "buffer": _buffer,
        "drain": lambda: _drain(patience),
    }
    try:
        return Check(part, "ok", ask[part]())
    except Unhealthy as error:
        return Check(part, "wrong", str(error))


class Unhealthy(Exception):  # noqa: N818 - the name says the state
    """A part does not do its work; the message says why."""


def _receiver(url: str) -> str:
    """It answers for itself: whether it can keep a delivery now."""
    from urllib.error import HTTPError
    from urllib.request import ProxyHandler, build_opener

    if not url.startswith(("http://", "https://")):
        raise Unhealthy(f"{url} is no web address; write for example {RECEIVER}")
    try:
        with build_opener(ProxyHandler({})).open(f"{url.rstrip('/')}/health", timeout=_TIMEOUT_SECONDS):
            return f"{url} keeps deliveries"
    except HTTPError as error:
        raise Unhealthy(f"{url}/health answers {error.code}: deliveries cannot be kept") from None
    except (OSError, ValueError) as error:
        raise Unhealthy(f"{url} does not answer: {_reason(error)}") from None


def code_server(address: str) -> str:
    """It has loaded our definitions and answers, at host:port. Raises Unhealthy."""
    import grpc  # type: ignore[import-untyped]
    from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]
        HealthCheckRequest,
        HealthCheckResponse,
    )
    from grpc_health.v1.health_pb2_grpc import HealthStub  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(
                HealthCheckRequest(service="DagsterApi"), timeout=_TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            raise Unhealthy(f"{address} does not answer: {error.code().name.lower()}") from None
    if answer.status != HealthCheckResponse.SERVING:
        raise Unhealthy(f"{address} does not serve")
    return f"{address} serves"


_HEARTBEATS = """
select daemon_type, extract(epoch from (now() at time zone 'utc') - timestamp)::float8
from daemon_heartbeats where daemon_id = (select daemon_id from daemon_heartbeats order by timestamp desc limit 1)
order by 2 desc"""
_TICKS = """
select i.status, i.instigator_body,
       extract(epoch from (now() at time zone 'utc') - (select max(t.timestamp) from job_ticks t
                                                        where t.selector_id = i.selector_id))::float8
from instigators i where i.instigator_type = 'SENSOR'"""


def daemon(dsn: str) -> str:
    """Whether each of its threads told of itself lately, and our sensors ticked; by Dagster's own storage.

    Raises Unhealthy.
    """
    import psycopg

    try:
        with psycopg.connect(
            dsn, connect_timeout=int(_TIMEOUT_SECONDS), prepare_threshold=None
        ) as connection:
            heartbeats = connection.execute(_HEARTBEATS).fetchall()
            ticks = connection.execute(_TICKS).fetchall()
    except psycopg.errors.UndefinedTable:
        raise Unhealthy("Dagster's storage is empty: no daemon has ever run on it") from None
    except psycopg.Error as error:
        raise Unhealthy(f"Dagster's storage cannot be read: {_reason(error)}") from None
    return daemon_state(heartbeats, ticks)


def _dagster_storage() -> str:
    """Its address for libpq: that of this process, or of a running `esl-pipeline up`."""
    from pydantic import SecretStr

    from esl_pipeline.postgres_urls import without_driver

    try:
        url = read(_STORAGE)
    except SecretFileError as error:
        raise Unhealthy(str(error)) from None
    if url:
        return without_driver(SecretStr(url))
    if running := _settings().esl_dagster_database_url:
        return without_driver(running)
    raise Unhealthy(f"{_STORAGE} is not set, where the daemon tells of itself")


def daemon_state(heartbeats: list[tuple[Any, ...]], ticks: list[tuple[Any, ...]]) -> str:
    """What the daemon's threads (name, age of the heartbeat, the oldest first) and its sensors (status, body, age of
    the last tick) say. Raises Unhealthy."""
    if not heartbeats:
        raise Unhealthy("no daemon has ever told of itself")
    thread, age = heartbeats[0]
    if age > _STILL_SECONDS:
        raise Unhealthy(f"the heartbeat of its thread {thread} stands still for {age:.0f} s")
    sensors = dict(_sensor(*row) for row in ticks)
    for name in SENSORS:
        if name not in sensors:
            raise Unhealthy(f"{name} has never ticked: is the code location loaded?")
    stopped = [name for name, (is_on, _, _) in sorted(sensors.items()) if not is_on and name in SENSORS]
    for name in SENSORS:
        is_on, ticked, interval = sensors[name]
        if is_on and (ticked is None or ticked > _STILL_SECONDS + 2 * interval):
            raise Unhealthy(
                f"{name} has not ticked for {ticked:.0f} s" if ticked else f"{name} has never ticked"
            )
    switched_off = f"; switched off: {', '.join(stopped)}" if stopped else ""
    return f"{len(heartbeats)} threads told of themselves, the oldest {max(age, 0):.0f} s ago{switched_off}"


def _sensor(status: str, body: str, ticked: float | None) -> tuple[str, tuple[bool, float | None, float]]:
    """A sensor by its name: whether it is on, how long ago it ticked, and how many seconds are between."""
    state = json.loads(body)
    interval = (state.get("job_specific_data") or {}).get("min_interval")
    return state["origin"]["job_name"], (status != "STOPPED", ticked, float(interval or 0))


def _settings() -> "Settings":
    """Those of this process; what they leave out is that of a running `esl-pipeline up`, as for every command."""
    from esl_pipeline.environment import SettingsError
    from esl_pipeline.settings import load_settings

    try:
        settings = load_settings()
        if settings.esl_database_url or settings.supabase_url:
            return settings
        from esl_pipeline.commands.shared import CommandError, settings_here

        try:
            return settings_here()
        except CommandError as error:
            raise Unhealthy(str(error)) from None
    except SettingsError as error:
        raise Unhealthy(str(error)) from None


@contextmanager
def _opened() -> "Iterator[Buffer]":
    """The buffer with this process' login. What it refuses is what is unhealthy."""
    from esl_pipeline.buffer.errors import BufferError
    from esl_pipeline.connections import open_buffer
    from esl_pipeline.environment import SettingsError

    try:
        with closing(open_buffer(_settings(), attempts=1, pool_size=1)) as buffer:
            yield buffer
    except (BufferError, SettingsError) as error:
        raise Unhealthy(str(error)) from None


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "reason", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _buffer() -> str:
    with _opened() as buffer:
        buffer.check_version()
        return f"{buffer.transport.describe()}, of this build"


def _drain(patience: float) -> str:
    """Whether somebody works where work is due. Between two drains, and before the sensor has looked, nobody does."""
    with _opened() as buffer:
        until = time.monotonic() + patience
        while True:
            servers = buffer.due_everywhere().servers
            alone = [name for name, due in servers.items() if due.anything and due.drain is None]
            if not alone:
                busy = [name for name, due in servers.items() if due.anything]
                return f"at work: {', '.join(busy)}" if busy else "nothing is due"
            if time.monotonic() > until:
                raise Unhealthy(
                    f"work is due for {', '.join(alone)}, and no drain is alive: its lease ran out"
                )
            time.sleep(1)
