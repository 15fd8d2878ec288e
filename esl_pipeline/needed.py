"""Which process needs which variable: a table of docs/configuration.md, and what `doctor --for` holds a process to."""

from collections.abc import Mapping
from typing import Literal

from esl_pipeline.settings import every_field
from esl_pipeline.sources.registry import SOURCES

Process = Literal["receiver", "admin", "code-server", "run", "daemon", "webserver"]
PROCESSES: tuple[Process, ...] = ("receiver", "admin", "code-server", "run", "daemon", "webserver")

_RECEIVER: frozenset[Process] = frozenset({"receiver"})
_ADMIN: frozenset[Process] = frozenset({"admin"})
_SERVED = _RECEIVER | _ADMIN
_RUNS: frozenset[Process] = frozenset({"code-server", "run"})
_DAGSTER: frozenset[Process] = frozenset({"code-server", "run", "daemon", "webserver"})
_ALL = frozenset(PROCESSES)

# What is not here is for the code server and its runs alone.
_NEEDED: Mapping[str, frozenset[Process]] = {
    "ESL_DATABASE_URL": _SERVED | _RUNS,
    "SUPABASE_URL": _SERVED | _RUNS,
    "SUPABASE_SERVICE_KEY": _SERVED | _RUNS,
    "ESL_DAGSTER_DATABASE_URL": _DAGSTER,
    "APP_BASE_URL": _SERVED | _RUNS,
    "APP_ENVIRONMENT": _ALL,
    "LOG_LEVEL": _ALL,
    "ESL_HOST_NAMES": frozenset({"admin", "webserver"}),
    "ESL_TRUSTED_PROXIES": _SERVED,
    "ESL_ADMIN_TOKEN": _ADMIN,
    "ESL_WEBHOOK_BODY_LIMIT_BYTES": _RECEIVER,
    "HIPOINK_USERNAME": frozenset(),  # accepted, not used
    "HIPOINK_PASSWORD": frozenset(),
}


_ALSO_SIGNING = {name.upper() for source in SOURCES.values() for name in source.settings_class.also_signing}


def needs(name: str) -> frozenset[Process]:
    """The processes that need a setting, by its name."""
    if name.endswith("_WEBHOOK_SECRET"):
        return _RECEIVER
    return _RECEIVER | _RUNS if name in _ALSO_SIGNING else _NEEDED.get(name, _RUNS)


def table() -> dict[str, frozenset[Process]]:
    """Every setting, in the order in which they are told, with the processes that need it."""
    return {name.upper(): needs(name.upper()) for name in every_field()}
