"""What `supabase db push` does with a folder of migrations, for tests on a machine without an account.

Written from the source of its command: https://github.com/supabase/cli, pkg/migration. Where the command itself is on
the PATH, supabase/test_migrations.py pushes with it as well.
"""

import re
from pathlib import Path

import psycopg

_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations
    (version text not null primary key, statements text[], name text)
"""
_FILE = re.compile(r"([0-9]+)_(.*)\.sql")
# What ends a statement, and what a semicolon in it does not.
_PARTS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|\$(\w*)\$.*?\$\1\$|;", re.DOTALL)


class PushError(Exception):
    """The command's refusal."""


def statements(sql: str) -> list[str]:
    """One by one, as the command sends them."""
    ends = [part.end() for part in _PARTS.finditer(sql) if part[0] == ";"]
    cut = (sql[start:end].strip() for start, end in zip([0, *ends], [*ends, len(sql)], strict=True))
    return [statement for statement in cut if statement]


def push(dsn: str, folder: Path) -> list[str]:
    """Run what the database has not run yet, each file in one transaction; gives their names. Raises PushError."""
    here = {found[1]: file for file in sorted(folder.glob("*.sql")) if (found := _FILE.fullmatch(file.name))}
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        connection.execute(_HISTORY.encode())
        rows = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
        there = {version for (version,) in rows}
        if missing := there - set(here):
            raise PushError(f"Remote migration versions not found in local migrations directory: {missing}")
        new = [version for version in here if version not in there]
        if there and new and new[0] < max(there):
            raise PushError(f"Found local migration files to be inserted before the last migration: {new[0]}")
        for version in new:
            parts = statements(here[version].read_text(encoding="utf-8"))
            # No begin: all that is sent before the answer is asked for is one transaction.
            with connection.pipeline():
                for part in parts:
                    connection.execute(part.encode())
                connection.execute(
                    "insert into supabase_migrations.schema_migrations values (%s, %s, %s)",
                    [version, parts, here[version].name],
                )
    return [here[version].name for version in new]
