"""deploy/postgres: what an administrator runs before the first start, as a superuser and as Supabase's postgres."""

import shutil
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.buffer.logins import Work, check_login
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
DAGSTER, LOGINS = (ROOT / "deploy" / "postgres" / name for name in ("dagster.sql", "logins.sql"))


@pytest.mark.long
@pytest.mark.parametrize("hosted", [False, True])
def test_they_are_enough_for_dagster_and_for_each_process(
    hosted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hosted: by a role that may make roles and is no superuser."""
    with EmbeddedPostgres.temporary() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role platform login createrole")
            connection.execute("create database production owner platform")
        dsn = server.dsn("production", user="platform") if hosted else server.dsn("production")
        migrate(dsn)
        for _ in range(2):
            for file in (DAGSTER, LOGINS):
                with psycopg.connect(dsn) as connection:
                    connection.execute(file.read_bytes())

        storage = server.dsn("production", user="dagster").replace(
            "postgresql://", "postgresql+psycopg2://", 1
        )
        monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", storage)
        shutil.copy(ROOT / "dagster.yaml", tmp_path)
        with DagsterInstance.from_config(str(tmp_path)) as instance:
            assert instance.get_runs(limit=1) == []
        with psycopg.connect(server.dsn("production")) as connection:
            tables = connection.execute(
                "select distinct schemaname from pg_tables where tableowner = 'dagster'"
            ).fetchall()
        assert tables == [("dagster",)]

        works: dict[Work, str] = {
            "receiver": "shelf_receiver",
            "admin": "shelf_admin",
            "run": "shelf_pipeline",
        }
        for work, login in works.items():
            with PsycopgTransport(SecretStr(server.dsn("production", user=login))) as transport:
                buffer = Buffer(transport)
                buffer.check_version()
                check_login(buffer, work)
                for other in works.keys() - {work}:
                    with pytest.raises(BufferError, match="it is no login for this process"):
                        check_login(buffer, other)
