"""What `doctor` looks at of Dagster: its daemon, its schedules and sensors, the code location."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import yaml
from pydantic import SecretStr

from esl_pipeline.commands.health import Unhealthy, code_server, daemon
from esl_pipeline.model.check import Check
from esl_pipeline.postgres_urls import without_driver

_SWITCHED_OFF = """
select instigator_body::jsonb #>> '{origin,job_name}' from instigators
where status = 'STOPPED' and instigator_type in ('SENSOR', 'SCHEDULE') order by 1"""


def daemon_checks(url: SecretStr | None, *, is_its_own: bool = False) -> Iterator[Check]:
    """Whether the daemon is at work, and nothing that starts runs is switched off.

    is_its_own: for the daemon itself, which is then wrong when it stands still; else it may not have been started yet.
    """
    if url is None:
        return
    dsn = without_driver(url)
    try:
        yield Check("daemon", "ok", daemon(dsn))
    except Unhealthy as error:
        yield Check("daemon", "wrong" if is_its_own else "warning", str(error))
        return
    try:
        with psycopg.connect(dsn, connect_timeout=10) as connection:
            stopped = [name for (name,) in connection.execute(_SWITCHED_OFF.encode())]
    except psycopg.Error as error:
        yield Check("schedules and sensors", "warning", f"cannot be looked at: {type(error).__name__}")
        return
    if stopped:
        yield Check("schedules and sensors", "warning", f"switched off in Dagster: {', '.join(stopped)}")
    else:
        yield Check("schedules and sensors", "ok", "none is switched off")


def location_checks() -> Iterator[Check]:
    """Whether the code servers that DAGSTER_HOME's workspace.yaml names serve our definitions."""
    home = os.environ.get("DAGSTER_HOME")
    file = Path(home) / "workspace.yaml" if home else None
    if file is None or not file.exists():
        return
    try:
        addresses = list(_addresses(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError, ValueError) as error:
        yield Check("code location", "warning", f"{file} cannot be read: {type(error).__name__}")
        return
    for address in addresses:
        try:
            yield Check("code location", "ok", code_server(address))
        except Unhealthy as error:
            yield Check("code location", "wrong", str(error))


def _addresses(workspace: Any) -> Iterator[str]:
    for entry in (workspace or {}).get("load_from") or []:
        server = entry.get("grpc_server") if isinstance(entry, dict) else None
        if server and server.get("port"):
            yield f"{server.get('host', 'localhost')}:{server['port']}"
