"""compose.yaml without containers: its commands, variables, secrets and health checks, each service a process here.

So are deploy/compose/init.sql and deploy/compose/secrets.sh, as they stand. What only Docker can say is not said:
that the image is built, that its user may read the secrets, that the services find each other by name.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from esl_pipeline.deploy.instances import instance_text
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.deploy.checkers import ROOT, checker
from esl_pipeline_tests.deploy.test_images import HOME, OURS, SERVICES
from esl_pipeline_tests.waiting import eventually

STATE = "/var/lib/esl-pipeline"
FROM_OUTSIDE = {
    "shopify_api_key": "id-of-the-app",
    "shopify_api_secret": "secret-of-the-app",
    "shopify_webhook_secret": "secret-of-the-app",
    "hipoink_api_secret": "a-sign",
}
SETTINGS = {"HIPOINK_API_BASE_URL": "http://127.0.0.1:9"}


class Containers:
    """A folder that is the machine, and the services that run on it."""

    def __init__(self, place: Path, postgres: EmbeddedPostgres) -> None:
        self.place, self.secrets = place, place / "secrets"
        self.ports = {str(process.port): str(free_port()) for process in OURS.values() if process.port}
        self.postgres = postgres
        self.running: dict[str, Leashed] = {}

    def prepare(self) -> None:
        """As docs/production.md says, and as the image is made."""
        subprocess.run([str(ROOT / "deploy/compose/secrets.sh")], check=True, cwd=self.place)
        for name, secret in FROM_OUTSIDE.items():
            (self.secrets / name).write_text(secret)
        reached = conninfo_to_dict(self.postgres.dsn("esl"))["host"]
        for file in self.secrets.glob("*_database_url"):
            text = file.read_text()
            assert "@postgres:5432/esl?sslmode=disable" in text
            file.chmod(0o600)
            file.write_text(text.replace("@postgres:5432/esl?sslmode=disable", f"@/esl?host={reached}"))
        home = self.place / "state" / "dagster"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(instance_text())
        workspace = (ROOT / "deploy/compose/workspace.yaml").read_text()
        (home / "workspace.yaml").write_text(self._here(workspace).replace("code-server", "127.0.0.1"))

    def make_logins(self) -> None:
        """What Postgres' own image does with the files of docker-entrypoint-initdb.d."""
        done = subprocess.run(
            [
                *(checker("psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1"),
                *("-f", "deploy/compose/init.sql", "-d", self.postgres.dsn("esl")),
            ],
            cwd=ROOT,
            env={**os.environ, "ESL_PASSWORDS": str(self.secrets)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self, name: str) -> Leashed:
        self.running[name] = Leashed.start(
            name,
            self._command(SERVICES[name]["command"]),
            env=self._environment(name),
            cwd=self.place / "state",
            log=self.place / f"{name}.log",
        )
        return self.running[name]

    def is_healthy(self, name: str) -> bool:
        """Whether its healthcheck says so; it runs in the container, with what is set there."""
        program, *command = SERVICES[name]["healthcheck"]["test"]
        assert program == "CMD"
        if "--at" not in command and command[0] == "esl-pipeline" and OURS[name].port:
            address = f"127.0.0.1:{self.ports[str(OURS[name].port)]}"
            command += ["--at", f"http://{address}" if name == "receiver" else address]
        done = subprocess.run(
            self._command(command),
            env=self._environment(name),
            cwd=self.place / "state",
            capture_output=True,
            text=True,
            check=False,
        )
        self.said = done.stdout + done.stderr
        return done.returncode == 0

    def stop(self) -> None:
        for one in reversed(self.running.values()):
            one.stop()

    def _command(self, words: list[str]) -> list[str]:
        program, *arguments = map(self._here, words)
        modules = {"python": [], "esl-pipeline": ["-m", "esl_pipeline.commands.entry"]}
        return [sys.executable, *modules[program], *arguments]

    def _environment(self, name: str) -> dict[str, str]:
        own: dict[str, Any] = SERVICES[name].get("environment", {})
        image = {"ESL_HOME": STATE, "DAGSTER_HOME": HOME, "APP_ENVIRONMENT": "production"}
        given = {key: self._here(str(value)) for key, value in (image | SETTINGS | own).items()}
        ours = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LANG") if key in os.environ}
        return {**ours, **given}

    def _here(self, text: str) -> str:
        text = text.replace("/run/secrets", str(self.secrets)).replace(STATE, str(self.place / "state"))
        text = text.replace("0.0.0.0", "127.0.0.1")
        for theirs, ours in self.ports.items():
            text = text.replace(theirs, ours)
        return text


@pytest.fixture
def containers(place: Path) -> Iterator[Containers]:
    with EmbeddedPostgres.temporary() as postgres:
        postgres.create_database("esl")
        found = Containers(place, postgres)
        found.prepare()
        try:
            yield found
        finally:
            found.stop()


@pytest.mark.long
def test_each_login_may_do_its_work_and_no_other(containers: Containers) -> None:
    containers.make_logins()
    containers.make_logins()  # again it renews the passwords
    migrated = containers.start("migrate")
    eventually(lambda: migrated.poll() is not None, 60, "the migration")
    assert migrated.poll() == 0, migrated.log_tail(20)

    with psycopg.connect(containers.postgres.dsn("esl")) as connection:
        may = connection.execute(
            "select role, array(select fn from"
            " unnest(array['esl_inbox_add', 'esl_push_claim', 'esl_mapping_list']) as fn"
            " where has_function_privilege(role, 'public.' || fn || '(jsonb)', 'execute'))"
            " from unnest(array['shelf_receiver', 'shelf_pipeline', 'shelf_admin', 'dagster']) as role"
        ).fetchall()
    assert dict(may) == {
        "shelf_receiver": ["esl_inbox_add"],
        "shelf_pipeline": ["esl_push_claim", "esl_mapping_list"],
        "shelf_admin": ["esl_mapping_list"],
        "dagster": [],
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_service_comes_up_and_says_so(containers: Containers) -> None:
    containers.make_logins()
    migrated = containers.start("migrate")
    eventually(lambda: migrated.poll() is not None, 60, "the migration")
    assert migrated.poll() == 0, migrated.log_tail(20)
    for name in ("receiver", "admin", "code-server", "webserver", "daemon"):
        started = containers.start(name)

        def healthy(name: str = name, started: Leashed = started) -> bool:
            assert started.poll() is None, started.log_tail(20)
            return containers.is_healthy(name)

        eventually(healthy, 120, f"{name} to be healthy")

    receiver = f"http://127.0.0.1:{containers.ports['8000']}"
    assert httpx.get(f"{receiver}/health").status_code == 200
    assert httpx.post(f"{receiver}/webhooks/shopify", content=b"{}").status_code == 401
    assert httpx.get(f"{receiver}/api/mappings").status_code == 404

    containers.running["daemon"].stop()
    containers.running["code-server"].stop()
    assert not containers.is_healthy("code-server")
