"""What `esl-pipeline doctor` looks at: settings, buffer, shops, label server, receiver, Dagster's storage, frames."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import httpx
import psycopg
import yaml
from fsspec import get_filesystem_class  # type: ignore[import-untyped]
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import code_version
from esl_pipeline.commands import doctor_dagster as dagster
from esl_pipeline.commands import shelf_lines
from esl_pipeline.commands.doctor_process import (
    backlog_check,
    run_login_check,
    secrets_check,
    server_checks,
    why_no_frames,
)
from esl_pipeline.connections import open_buffer, open_label_server
from esl_pipeline.environment import ENV_FILE, SettingsError, is_unprotected
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.local.schedules import refused_crons
from esl_pipeline.model.check import Check
from esl_pipeline.model.label_server import DEFAULT_SERVER
from esl_pipeline.needed import Process
from esl_pipeline.postgres_urls import without_driver
from esl_pipeline.settings import Settings


def examine(settings: Settings, process: Process | None = None) -> list[Check]:
    """Every check, in the order of the data's way, or those of what one process needs.

    Raises nothing for what is wrong; that is a Check.
    """
    storage = settings.esl_dagster_database_url
    if process in ("daemon", "webserver"):
        return [
            secrets_check(settings, process),
            _dagster_check(storage, must_be_set=True),
            *(dagster.daemon_checks(storage, is_its_own=True) if process == "daemon" else []),
            *dagster.location_checks(),
        ]
    warned = [Check("settings", "warning", warning) for warning in settings.warnings()]
    if process in ("receiver", "admin"):
        return [
            # It knows no label server, and need not have its sign.
            *(check for check in warned if not check.says.startswith("HIPOINK_")),
            *_secret_file_checks(settings),
            *server_checks(settings, process),
            *([_receiver_check(settings)] if process == "receiver" else []),
        ]
    return [
        *warned,
        *_cron_checks(settings),
        *_secret_file_checks(settings),
        *([run_login_check(settings)] if process else []),
        *_buffer_checks(settings),
        *([] if process else [_receiver_check(settings)]),
        _dagster_check(storage, must_be_set=process is not None),
        *([] if process else dagster.daemon_checks(storage)),
        *([] if process == "run" else dagster.location_checks()),
        *_frames_checks(settings, of_process=process is not None),
    ]


def _cron_checks(settings: Settings) -> Iterator[Check]:
    """Whether Dagster takes the times of our schedules."""
    try:
        problems = refused_crons(settings)
    except (OSError, subprocess.SubprocessError) as error:
        yield Check(
            "schedules", "warning", f"Dagster could not be asked about their times: {type(error).__name__}"
        )
        return
    for sentence in problems:
        yield Check("schedules", "wrong", sentence)


def _secret_file_checks(settings: Settings) -> Iterator[Check]:
    for file in (Path(ENV_FILE), *sorted(settings.esl_home.glob("*.env"))):
        if file.is_file() and file.stat().st_mode & 0o077:
            yield Check(
                str(file),
                "warning",
                "can be read by other users of this machine; chmod 600 it: it holds secrets",
            )


def _buffer_checks(settings: Settings) -> Iterator[Check]:
    try:
        buffer = open_buffer(settings, attempts=1)
    except SettingsError as error:
        yield Check("buffer", "wrong", error.problems[0])
        return
    try:
        buffer.check_version()
        yield Check("buffer", "ok", f"{buffer.transport.describe()}, version {code_version()}")
        yield _login_check(settings)
        mappings = buffer.mappings()
    except BufferError as error:
        if error.code == "42501":
            yield Check("stores", "ok", "not asked: this login may not see the mappings, and need not")
        else:
            yield Check("buffer", "wrong", str(error))
        return
    else:
        yield backlog_check(buffer)
        if not mappings:
            yield Check(
                "stores", "warning", "no shop is mapped to a store: esl-pipeline stores add SHOP STORE"
            )
        yield from _shop_checks(settings, mappings)
        yield from _label_server_checks(settings, buffer, mappings)
        yield from _shelf_checks(buffer)
    finally:
        buffer.close()


def _shop_checks(settings: Settings, mappings: Sequence[StoreMapping]) -> Iterator[Check]:
    """Of each source, whether its settings are those of the shops that are mapped, and what the shops say."""
    for system, source in settings.sources.items():
        ours = [mapping for mapping in mappings if mapping.shop["source_system"] == system]
        mapped = sorted({mapping.shop["source_store_id"] for mapping in ours})
        active = sorted({mapping.shop["source_store_id"] for mapping in ours if mapping.is_active})
        for shop in source.not_readable(active):
            yield Check(f"shop {shop}", "warning", f"cannot be read: {source.opens_others}")
        yield from source.checks(mapped, active)


_LOGIN = """
select r.rolname, r.rolsuper, pg_catalog.pg_has_role(r.oid, n.nspowner, 'usage'),
       array(select g.rolname::text from pg_catalog.pg_roles g where g.rolname like 'esl\\_%'
             and g.oid <> r.oid and pg_catalog.pg_has_role(r.oid, g.oid, 'usage') order by 1)
from pg_catalog.pg_roles r, pg_catalog.pg_namespace n where r.rolname = current_user and n.nspname = 'esl'"""


def _login_check(settings: Settings) -> Check:
    """Whether the buffer's login may do more than its process needs."""
    if settings.esl_database_url is None:
        return Check(
            "buffer login",
            "ok",
            "service_role, which may call every function; ESL_DATABASE_URL with a login per process may do less: "
            "see SECURITY.md",
        )
    try:
        with psycopg.connect(settings.esl_database_url.get_secret_value(), connect_timeout=10) as connection:
            row = connection.execute(_LOGIN.encode()).fetchone()
    except psycopg.Error as error:
        return Check("buffer login", "wrong", f"cannot be looked at: {_reason(error)}")
    login, is_superuser, is_owner, groups = row or ("?", False, False, [])
    if is_superuser or is_owner:
        state = "a superuser" if is_superuser else "the owner of the buffer's tables"
        return Check(
            "buffer login",
            "warning",
            f"{login} is {state}: whoever gets hold of this process can change everything. That is for migrations; "
            "give each process a login of its own: see SECURITY.md",
        )
    return Check("buffer login", "ok", f"{login}, a member of {', '.join(groups) or 'none of our groups'}")


def _label_server_checks(
    settings: Settings, buffer: Buffer, mappings: Sequence[StoreMapping]
) -> Iterator[Check]:
    """Of each label server that is set, or that a store is at, whether it answers for its stores."""
    stores: dict[str, set[str]] = {name: set() for name in settings.label_servers or [DEFAULT_SERVER]}
    for mapping in mappings:
        if mapping.is_active:
            stores.setdefault(mapping.label_server, set()).add(mapping.store)
    for name, codes in stores.items():
        what = f"label server {name}" if len(stores) > 1 else "label server"
        try:
            client = open_label_server(settings, buffer, name)
        except SettingsError as error:
            of = (
                f"; the labels of {', '.join(sorted(codes))} wait" if codes and settings.label_servers else ""
            )
            yield Check(what, "wrong", error.problems[0] + of)
            continue
        yield from _store_checks(what, client, sorted(codes))


def _store_checks(server: str, client: HipoinkClient, stores: Sequence[str]) -> Iterator[Check]:
    with client:
        if not stores:
            yield Check(server, "warning", "not asked: no store is mapped yet")
        for store in stores:
            what = f"{server}, store {store}"
            try:
                yield Check(what, "ok", f"holds {client.query_count(store)} labels")
            except HipoinkError as error:
                yield Check(what, "wrong", str(error))
            except BufferError as error:
                refused = error.code == "42501"
                says = "not asked: this login may not, only esl_pipeline's" if refused else str(error)
                yield Check(what, "warning" if refused else "wrong", says)


def _shelf_checks(buffer: Buffer) -> Iterator[Check]:
    """What each label server can tell of physical labels, and how those of each store were read last."""
    servers = {server["server"]: server for server in buffer.status()["servers"] if server["stores"]}
    for name, server in servers.items():
        what = (
            f"label server {name}, physical labels" if len(servers) > 1 else "label server, physical labels"
        )
        knows = server.get("knows_devices")
        if knows is False:
            yield Check(what, "warning", shelf_lines.does_not_know(server))
        elif knows:
            # Without it the server's own times are worth nothing.
            yield Check(what, "ok" if server["zone"] else "warning", shelf_lines.server_says(server))
    for store in buffer.shelf_state():
        if servers.get(store["label_server"], {}).get("knows_devices") is not False:
            state: Literal["ok", "warning"] = "warning" if shelf_lines.is_old(store) else "ok"
            yield Check(f"store {store['store_code']}", state, shelf_lines.store_says(store))


def _receiver_check(settings: Settings) -> Check:
    if settings.app_base_url is None:
        return Check("receiver", "warning", "not asked: APP_BASE_URL is not set")
    try:
        answer = httpx.get(f"{settings.app_base_url}/health", timeout=10)
    except httpx.HTTPError as error:
        return Check("receiver", "wrong", f"{settings.app_base_url} does not answer: {type(error).__name__}")
    if answer.status_code == httpx.codes.OK and is_unprotected(settings.app_base_url):
        return Check(
            "receiver", "warning", f"{settings.app_base_url} is http://: put TLS before it, see SECURITY.md"
        )
    if answer.status_code == httpx.codes.OK:
        return Check("receiver", "ok", f"{settings.app_base_url} keeps webhooks")
    return Check("receiver", "wrong", f"{settings.app_base_url}/health answers {answer.status_code}")


def _reason(error: psycopg.Error) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _dagster_check(url: SecretStr | None, *, must_be_set: bool = False) -> Check:
    if url is None and must_be_set:
        return Check("Dagster's storage", "wrong", "ESL_DAGSTER_DATABASE_URL is not set")
    if url is None:
        return Check("Dagster's storage", "ok", "the embedded Postgres of `esl-pipeline up`")
    try:
        dsn = without_driver(url)
        with psycopg.connect(dsn, connect_timeout=10) as connection:
            row = connection.execute("select current_schema()").fetchone()
    except psycopg.Error as error:
        return Check("Dagster's storage", "wrong", f"cannot be reached: {_reason(error)}")
    schema = row[0] if row else None
    if schema == "public":
        return Check(
            "Dagster's storage",
            "wrong",
            "its tables would be in schema public, which Supabase exposes: give Dagster a role with a "
            "search_path of its own",
        )
    if schema is None:
        return Check(
            "Dagster's storage", "wrong", "no schema of its role's search_path exists: create one for it"
        )
    return Check("Dagster's storage", "ok", f"schema {schema}")


_HERE = ("", "file", "local", "memory")


def _frames_checks(settings: Settings, *, of_process: bool) -> Iterator[Check]:
    """Whether frames are where every run finds them, and what reads and writes there is installed."""
    protocol = settings.frames_url.partition("://")[0] if "://" in settings.frames_url else ""
    if protocol not in _HERE:
        try:
            get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            yield Check("frames", "wrong", f"ESL_FRAMES_URL cannot be used: {error}")
            return
    # A folder of this machine is made by the first run.
    if (protocol not in _HERE or of_process) and (reason := why_no_frames(settings.frames_url)):
        yield Check("frames", "wrong", reason)
        return
    try:
        launcher = _run_launcher()
    except (OSError, yaml.YAMLError, ValueError) as error:
        what = getattr(error, "problem", None) or getattr(error, "strerror", None) or str(error)
        yield Check("frames", "warning", f"DAGSTER_HOME's dagster.yaml cannot be read: {what}")
        return
    if launcher in _LOCAL_LAUNCHERS:
        return
    if protocol in _HERE:
        yield Check(
            "frames",
            "warning",
            f"{settings.frames_url} is on this machine, and {launcher} starts runs on others: set ESL_FRAMES_URL on "
            "every machine to a storage that all of them reach, e.g. s3://bucket/frames (a folder that all of them "
            "mount is as good)",
        )
    else:
        yield Check("frames", "ok", f"{protocol}://, for runs of {launcher} on any machine")


_LOCAL_LAUNCHER = "DefaultRunLauncher"
_LOCAL_LAUNCHERS = (_LOCAL_LAUNCHER, "RunsOfCodeServer")


def _run_launcher() -> str:
    """The class that starts Dagster's runs, by the instance in DAGSTER_HOME; where there is none, Dagster's own.

    Raises OSError, yaml.YAMLError or ValueError when the instance cannot be read.
    """
    home = os.environ.get("DAGSTER_HOME")
    file = Path(home) / "dagster.yaml" if home else None
    if file is None or not file.exists():
        return _LOCAL_LAUNCHER
    instance = yaml.safe_load(file.read_text(encoding="utf-8"))
    launcher = instance.get("run_launcher") if isinstance(instance, dict) else None
    named = launcher.get("class") if isinstance(launcher, dict) else None
    return str(named or _LOCAL_LAUNCHER)
