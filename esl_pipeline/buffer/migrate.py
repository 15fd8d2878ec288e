"""Brings a database to the version of this code: the SQL files of migrations/, in order, once each."""

import re
from dataclasses import dataclass
from importlib import resources

import psycopg

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")


@dataclass(frozen=True)
class Migration:
    """One SQL file: its number, its name and its text."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """All migrations of this code, oldest first."""
    found = []
    for file in resources.files("esl_pipeline.buffer").joinpath("migrations").iterdir():
        if match := _FILE.match(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda m: m.version)


def code_version() -> int:
    """The buffer version that this code is written for."""
    return migrations()[-1].version


def _record(migration: Migration) -> str:
    # Both values come from our own file names (see _FILE), and a printed script can have no parameters.
    return f"insert into esl.schema_migrations values ({migration.version}, '{migration.name}') on conflict do nothing;"  # noqa: S608


def as_one_file() -> str:
    """All migrations as one script for an SQL editor; it may be run on any older version, and twice."""
    parts = [
        "-- esl_pipeline: the whole buffer. Paste into the SQL editor and run; safe to run again.",
        "begin;",
    ]
    for migration in migrations():
        parts += [f"\n-- {migration.version:04d} {migration.name}", migration.sql, _record(migration)]
    return "\n".join([*parts, "commit;", ""])


def migrate(dsn: str, *, up_to: int | None = None) -> list[Migration]:
    """Apply what is missing, all in one transaction, and return it.

    Two callers at once take turns. Raises psycopg.Error when the database refuses.
    """
    with psycopg.connect(dsn, prepare_threshold=None) as connection:
        connection.execute("select pg_advisory_xact_lock(hashtextextended('esl.schema_migrations', 0))")
        exists = connection.execute("select to_regclass('esl.schema_migrations')").fetchone()
        applied = set()
        if exists and exists[0] is not None:
            applied = {row[0] for row in connection.execute("select version from esl.schema_migrations")}
        missing = [m for m in migrations() if m.version not in applied and m.version <= (up_to or m.version)]
        for migration in missing:
            connection.execute(migration.sql.encode())
            connection.execute(_record(migration).encode())
    return missing
