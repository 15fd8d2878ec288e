"""What is in the embedded Postgres: the buffer, Dagster's storage beside it, and the logins of our processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.settings import Settings

DATABASE = "esl"
# The logins of our processes on the embedded Postgres, and the groups that they belong to (functions/access.sql).
RECEIVER, PIPELINE, OPERATOR = "up_receiver", "up_pipeline", "up_operator"
_LOGINS = {RECEIVER: ("esl_receiver", "esl_admin"), PIPELINE: ("esl_pipeline",), OPERATOR: ("esl_admin",)}


@contextmanager
def run_postgres(settings: Settings) -> Iterator[dict[str, str]]:
    """The embedded Postgres alone, migrated; the variables that name it."""
    home = settings.esl_home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    with EmbeddedPostgres.start(home / "postgres") as server:
        prepare_database(server)
        migrate(server.dsn(DATABASE))
        yield {
            "ESL_DATABASE_URL": server.dsn(DATABASE),
            "ESL_DAGSTER_DATABASE_URL": dagster_url(server),
        }


def prepare_database(postgres: EmbeddedPostgres) -> None:
    """The buffer's database, and a role and schema of their own for Dagster's storage; safe to repeat."""
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        if not connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
            postgres.create_database(DATABASE)
        postgres.make_login("dagster")
        connection.execute("alter role dagster set search_path = dagster")
    with psycopg.connect(postgres.dsn(DATABASE), autocommit=True) as connection:
        connection.execute("create schema if not exists dagster authorization dagster")


def make_logins(postgres: EmbeddedPostgres) -> None:
    """Logins for our processes, each with no more than it needs; safe to repeat."""
    with psycopg.connect(postgres.dsn(DATABASE), autocommit=True) as connection:
        for login, groups in _LOGINS.items():
            postgres.make_login(login)
            for group in groups:
                statement = sql.SQL("grant {} to {}").format(sql.Identifier(group), sql.Identifier(login))
                connection.execute(statement)


def dagster_url(postgres: EmbeddedPostgres) -> str:
    """Where Dagster keeps its storage. Names the driver: a bare postgresql:// is another one in SQLAlchemy 2.1."""
    return postgres.dsn(DATABASE, user="dagster").replace("postgresql://", "postgresql+psycopg2://", 1)
