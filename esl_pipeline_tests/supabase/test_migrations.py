"""supabase/migrations: current, and the same buffer in whatever order it is pushed and migrated."""

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import esl_pipeline.buffer.migrate as code
from esl_pipeline.buffer import supabase_files
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.migrate import functions_build, functions_digest, migrate, migrations
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.buffer.test_migrate import describe, is_usable
from esl_pipeline_tests.gateway import create_supabase_roles
from esl_pipeline_tests.supabase_push import PushError, push, statements

FOLDER = Path(__file__).parents[2] / "supabase" / "migrations"
NOW = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
HANDSHAKE = f"{functions_build()} {functions_digest()}"


def comment(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select obj_description('esl'::regnamespace, 'pg_namespace')").fetchone()
    assert row
    return str(row[0])


Older = Callable[[], None]


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Older:
    """Makes the code that of an older release: without the last changes of tables, with other functions."""

    def make() -> None:
        monkeypatch.setattr(code, "migrations", lambda: migrations()[:1])
        monkeypatch.setattr(
            code,
            "functions",
            lambda: (
                "create or replace function public.esl_due(p jsonb) returns jsonb language sql"
                " as $$ select '{}'::jsonb $$; create or replace function esl.of_old() returns int language sql"
                " as $$ select 1 $$;"
            ),
        )
        monkeypatch.setattr(code, "functions_digest", lambda: "0" * 64)
        for module in (code, supabase_files):
            monkeypatch.setattr(module, "functions_build", lambda: 7)

    return make


@pytest.fixture
def folder(tmp_path: Path, older: Older, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As somebody has pulled it twice: a build of long ago, and today's after it."""
    found = tmp_path / "migrations"
    with monkeypatch.context():
        older()
        supabase_files.update(found, NOW)
        shutil.copytree(found, tmp_path / "of old")
        monkeypatch.undo()
    supabase_files.update(found, NOW + timedelta(days=1))
    return found


def test_the_files_are_current() -> None:
    fix = "the buffer has changed: run `make supabase` and commit what it writes"
    assert supabase_files.is_current(FOLDER), fix
    full = [file for file in FOLDER.glob("*.sql") if file.stat().st_size > 1_000]
    assert len(full) == 1, "only the newest holds the buffer"


def test_a_build_is_one_statement_so_that_nobody_runs_it_in_part() -> None:
    newest = max(FOLDER.glob("*.sql"))
    assert len(statements(newest.read_text())) == 1


# In any order


def test_a_fresh_project_is_as_if_migrated(database: str, buffer_dsn: str) -> None:
    assert push(database, FOLDER)
    assert describe(database) == describe(buffer_dsn)
    assert comment(database) == HANDSHAKE
    assert is_usable(database)
    assert push(database, FOLDER) == []


def test_pushed_and_then_migrated(database: str, buffer_dsn: str) -> None:
    push(database, FOLDER)
    assert migrate(database) == []
    assert describe(database) == describe(buffer_dsn)


def test_migrated_and_then_pushed(buffer_dsn: str) -> None:
    before = describe(buffer_dsn)
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("insert into esl.store_health (store_code, reason) values ('S1', 'kept')")
    assert push(buffer_dsn, FOLDER)
    assert (describe(buffer_dsn), comment(buffer_dsn)) == (before, HANDSHAKE)
    with psycopg.connect(buffer_dsn) as connection:
        assert connection.execute("select reason from esl.store_health").fetchall() == [("kept",)]


def without_old(found: dict[str, list[tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    """A function that code no longer has stays where it was, for migrate as for push."""
    return found | {"functions": [row for row in found["functions"] if "of_old" not in str(row[0])]}


def test_an_older_build_pushed_and_then_a_newer_one(database: str, buffer_dsn: str, folder: Path) -> None:
    assert len(push(database, folder.parent / "of old")) == 1
    assert comment(database) == f"7 {'0' * 64}"
    with pytest.raises(BufferError, match="run `esl-pipeline migrate`"):
        is_usable(database)
    assert len(push(database, folder)) == 1
    assert without_old(describe(database)) == describe(buffer_dsn)
    assert comment(database) == HANDSHAKE and is_usable(database)
    assert migrate(database) == []


def test_an_older_build_pushed_and_then_migrated_and_pushed(
    database: str, buffer_dsn: str, folder: Path
) -> None:
    push(database, folder.parent / "of old")
    assert migrate(database)[-1] == "functions"
    assert len(push(database, folder)) == 1
    assert without_old(describe(database)) == describe(buffer_dsn)
    assert is_usable(database)


def test_a_fresh_project_runs_the_emptied_builds_too(database: str, buffer_dsn: str, folder: Path) -> None:
    assert len(push(database, folder)) == 2
    assert describe(database) == describe(buffer_dsn)


def test_an_older_build_is_not_put_over_a_newer_one(buffer_dsn: str, folder: Path) -> None:
    before = describe(buffer_dsn)
    with pytest.raises(
        psycopg.errors.RaiseException, match="newer than this file, which is of version 100, build 7"
    ):
        push(buffer_dsn, folder.parent / "of old")
    assert (describe(buffer_dsn), comment(buffer_dsn)) == (before, HANDSHAKE)
    assert len(push(buffer_dsn, folder)) == 2, "what was refused is not in the history"


def test_a_push_that_fails_leaves_nothing_behind(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("create schema esl; create table esl.store_mappings (id int)")
    with pytest.raises(psycopg.Error):
        push(database, FOLDER)
    with psycopg.connect(database) as connection:
        assert connection.execute("select to_regclass('esl.webhook_inbox')").fetchone() == (None,)
        emptied = len(list(FOLDER.glob("*.sql"))) - 1  # the newest alone holds the buffer
        assert connection.execute(
            "select count(*) from supabase_migrations.schema_migrations"
        ).fetchone() == (emptied,)


# The folder


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def test_the_folder_keeps_every_name_that_may_have_been_pushed(folder: Path) -> None:
    old, new = sorted(folder.iterdir())
    assert old.name == "20270301120000_esl_pipeline_build_7.sql"
    assert new.name == f"20270302120000_esl_pipeline_build_{functions_build()}.sql"
    assert old.stat().st_size < 200 < new.stat().st_size
    assert supabase_files.update(folder, NOW) == [], "nothing to do"


def test_a_name_that_was_pushed_and_is_gone_would_stop_every_later_push(database: str, folder: Path) -> None:
    push(database, folder.parent / "of old")
    min(folder.iterdir()).unlink()
    with pytest.raises(PushError, match="not found in local"):
        push(database, folder)


def test_a_new_file_comes_after_all_that_is_there(folder: Path) -> None:
    (folder / "20280101000000_of_somebody_else.sql").write_text("select 1;")
    (newest := max(folder.glob("*esl_pipeline*"))).write_text("<<<<<<< two branches met here")
    done = supabase_files.update(folder, NOW)
    assert done == [
        f"{newest.name}: emptied",
        f"20280101000001_esl_pipeline_build_{functions_build()}.sql: the whole buffer",
    ]
    assert supabase_files.is_current(folder)


def test_a_file_that_was_never_committed_goes(folder: Path) -> None:
    old, new = sorted(folder.iterdir())
    git(folder, "init", "-q")
    git(folder, "add", old.name)
    git(folder, "commit", "-qm", "one")
    new.write_text("-- of a build that nobody has seen")
    done = supabase_files.update(folder, NOW + timedelta(days=2))
    assert done[0] == f"{new.name}: removed, it was never committed"
    assert [file.stat().st_size > 200 for file in sorted(folder.glob("*.sql"))] == [False, True]


# The command itself, where it is


@pytest.mark.long
@pytest.mark.skipif(
    not shutil.which("supabase"), reason="the command supabase is not here (npm i -g supabase)"
)
def test_the_command_pushes_an_older_and_then_a_newer_build(
    folder: Path, place: Path, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = place / "project"
    (project / "supabase").mkdir(parents=True)
    shutil.copy(FOLDER.parent / "config.toml", project / "supabase")
    shutil.copytree(FOLDER.parent / "functions", project / "supabase" / "functions")
    monkeypatch.setenv("HOME", str(place))
    port = free_port()
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    with EmbeddedPostgres.temporary(settings={"listen_addresses": "127.0.0.1", "port": str(port)}):
        create_supabase_roles(dsn)
        for found in (folder.parent / "of old", folder):
            shutil.copytree(found, project / "supabase" / "migrations", dirs_exist_ok=True)
            subprocess.run(
                ["supabase", "db", "push", "--yes", "--workdir", project, f"--remote={dsn}"],
                check=True,
                env=os.environ | {"SUPABASE_TELEMETRY_DISABLED": "1"},
                timeout=100,
            )
        assert without_old(describe(dsn)) == describe(buffer_dsn)
        assert is_usable(dsn)
