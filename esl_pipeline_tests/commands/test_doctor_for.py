"""`doctor --for`: what one process needs, and no more."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import psycopg
import pytest

from esl_pipeline.buffer.migrate import functions_build
from esl_pipeline.local import variables
from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.needed import PROCESSES, table
from esl_pipeline.settings import secret_names
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.receiver.support import SECRET, TOKEN
from esl_pipeline_tests.reliability.test_roles import login

PARTS = {
    "receiver": ("receiver",),
    "admin": ("receiver",),
    "code-server": ("code server",),
    "run": ("code server",),
    "daemon": ("Dagster daemon",),
    "webserver": ("Dagster webserver",),
}


def asked(run: Run, process: str) -> tuple[int, Mapping[str, tuple[str, str]]]:
    done = run("doctor", "--for", process, "--json")
    return done.code, {check["what"]: (check["state"], check["says"]) for check in done.json}


@pytest.fixture
def dagsters(postgres: EmbeddedPostgres) -> str:
    prepare_database(postgres)
    return dagster_url(postgres)


@pytest.mark.parametrize("process", ["daemon", "webserver"])
def test_the_daemon_and_the_webserver_need_no_buffer_and_no_secret_but_dagsters(
    run: Run, monkeypatch: pytest.MonkeyPatch, dagsters: str, process: str
) -> None:
    assert asked(run, process)[1]["Dagster's storage"] == ("wrong", "ESL_DAGSTER_DATABASE_URL is not set")
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", dagsters)
    code, found = asked(run, process)
    says = f"the {process} needs neither the buffer's login nor any secret but ESL_DAGSTER_DATABASE_URL"
    assert found.pop("secrets") == ("ok", says)
    assert found.pop("Dagster's storage")[0] == "ok"
    if process == "daemon":
        assert found.pop("daemon")[0] == "wrong" and code == 1, "none runs here"
    assert not found, "nothing else is looked at"
    monkeypatch.setenv("ESL_DATABASE_URL", "postgresql://u:a-secret-word@db.example.com/x?sslmode=require")
    state, says = asked(run, process)[1]["secrets"]
    assert state == "warning" and "take ESL_DATABASE_URL out of its environment" in says


def test_a_receiver_is_asked_for_its_login_and_what_it_verifies_with(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer_dsn: str
) -> None:
    assert asked(run, "receiver")[1]["buffer"][0] == "wrong"
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_pipeline"))
    code, found = asked(run, "receiver")
    assert code == 1 and found["webhook secrets"][0] == "wrong"
    state, says = found["buffer"]
    assert state == "wrong" and "no login for this process, which needs one of the group esl_receiver" in says
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_receiver"))
    monkeypatch.setenv("SHOPIFY_WEBHOOK_SECRET", SECRET)
    code, found = asked(run, "receiver")
    assert code == 0 and found["buffer"][0] == "ok" and found["webhook secrets"][0] == "ok"
    assert not {
        what
        for what in found
        if what.startswith(("label server", "stores", "Dagster", "frames", "schedules"))
    }
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute(f"comment on schema esl is '{functions_build() + 1} later'".encode())
    state, says = asked(run, "receiver")[1]["buffer"]
    assert state == "warning" and says.startswith("deliveries are kept, but the buffer is at build")
    assert asked(run, "admin")[1]["buffer"][0] == "wrong"


def test_the_admin_part_is_asked_for_its_login_and_a_token(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer_dsn: str
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_receiver"))
    assert "of the group esl_admin" in asked(run, "admin")[1]["buffer"][1]
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_admin"))
    code, found = asked(run, "admin")
    assert code == 0 and found["buffer"][0] == "ok" and found["tokens"][0] == "warning"
    monkeypatch.setenv("ESL_ADMIN_TOKEN", TOKEN)
    assert "tokens" not in asked(run, "admin")[1]


def test_runs_are_asked_for_their_login_frames_and_dagsters_storage(
    run: Run, monkeypatch: pytest.MonkeyPatch, buffer_dsn: str, dagsters: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_admin"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("ESL_FRAMES_URL", str(tmp_path / "file"))
    code, found = asked(run, "run")
    assert code == 1 and "of the group esl_pipeline" in found["login of the runs"][1]
    assert found["frames"][0] == "wrong" and found["Dagster's storage"][0] == "wrong"
    monkeypatch.setenv("ESL_DATABASE_URL", login(buffer_dsn, "esl_pipeline"))
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", dagsters)
    monkeypatch.setenv("ESL_FRAMES_URL", str(tmp_path / "frames"))
    code, found = asked(run, "run")
    assert found["login of the runs"][0] == found["Dagster's storage"][0] == found["backlog"][0] == "ok"
    assert "frames" not in found and "receiver" not in found and "webhook secrets" not in found
    assert not list((tmp_path / "frames").iterdir()), "what was written to try is gone"


def test_a_code_server_that_the_workspace_names_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch, dagsters: str, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "workspace.yaml").write_text(
        f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {port}}}}}]\n"
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", dagsters)
    assert asked(run, "webserver")[1]["code location"] == (
        "wrong",
        f"127.0.0.1:{port} does not answer: unavailable",
    )


# `up` signs with one variable, whatever the secret is of, and tells the webserver its names as an option.
ELSEWHERE = {
    ("receiver", "SHOPIFY_API_SECRET"),
    ("receiver", "SHOPIFY_APPS"),
    ("webserver", "ESL_HOST_NAMES"),
}


def test_up_gives_each_part_what_it_needs() -> None:
    """The table that users read, against what `up` does."""

    def gives(part: str, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in variables._GIVEN[part])

    told = table()
    for name, needed in told.items():
        for process in needed:
            is_given = any(gives(part, name) for part in PARTS[process])
            assert is_given or (process, name) in ELSEWHERE, f"{process} needs {name}"
    assert {name for name, needed in told.items() if not needed} == {"HIPOINK_USERNAME", "HIPOINK_PASSWORD"}
    secrets = {name for name in secret_names() if {"daemon", "webserver"} & told[name]}
    assert secrets == {"ESL_DAGSTER_DATABASE_URL"} and set(PARTS) == set(PROCESSES)
