"""Brings a database to the version of this code.

Tables: the numbered files of migrations/, in order, once each. Functions: the files of functions/, replaced as a
whole whenever one of them has changed.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import psycopg
import stamina

from esl_pipeline.buffer.errors import Version, newer_buffer, unreleased_buffer

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
# The build that the schema's comment tells (see esl_version); 0: of a release that did not number them.
_FOUND_BUILD = (
    "coalesce(substring(pg_catalog.obj_description('esl'::regnamespace, 'pg_namespace') "
    "from '^([0-9]{1,9}) ')::int, 0)"
)
_ASK_BUILD = "select " + _FOUND_BUILD


@dataclass(frozen=True)
class Migration:
    """One SQL file: its number, its name and its text."""

    version: int
    name: str
    sql: str

    def __str__(self) -> str:
        return f"{self.version:04d} {self.name}"


@cache
def migrations() -> tuple[Migration, ...]:
    """The tables and their changes, oldest first. (What came before 0100 was never released.)"""
    found = []
    for file in resources.files("esl_pipeline.buffer").joinpath("migrations").iterdir():
        if match := _FILE.match(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda m: m.version))


def oldest_version() -> int:
    """The first buffer version that can be brought to this one."""
    return migrations()[0].version


def code_version() -> int:
    """The buffer version that this code is written for."""
    return migrations()[-1].version


@cache
def functions() -> str:
    """All functions and views as one script; running it again changes nothing."""
    folder = resources.files("esl_pipeline.buffer").joinpath("functions")
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    # They name each other, in no order.
    parts = ["set local check_function_bodies = off;"]
    parts += [f"-- functions: {file.name}\n{file.read_text(encoding='utf-8')}" for file in files]
    return "\n".join([*parts, "select esl.drop_older_overloads();", "select esl.restrict_functions();"])


@cache
def functions_digest() -> str:
    """SHA-256 of the functions' text: which build they are of."""
    return hashlib.sha256(functions().encode()).hexdigest()


@cache
def functions_build() -> int:
    """The number of the functions' build. It grows with every change of them, so that builds have an order, which
    digests have not (see build.py)."""
    numbered = resources.files("esl_pipeline.buffer").joinpath("functions", "BUILD")
    return int(numbered.read_text(encoding="utf-8").split()[0])


def code_build() -> Version:
    """The buffer version and build that this code is written for."""
    return Version(code_version(), functions_build())


def _record(migration: Migration) -> str:
    # Both values come from our own file names (see _FILE), and a printed script can have no parameters.
    return f"insert into esl.schema_migrations values ({migration.version}, '{migration.name}') on conflict do nothing;"  # noqa: S608


def _functions_and_build() -> str:
    return f"{functions()}\ncomment on schema esl is '{functions_build()} {functions_digest()}';"


def as_one_file() -> str:
    """All migrations as one script, for an SQL editor or `supabase db push`; it may be run on any older release, and
    twice."""
    title = f"-- esl_pipeline: the whole buffer, build {functions_build()}. Safe to run again."
    return f"{title}\n{_one_statement(migrations(), _functions_and_build(), code_build())}"


def _one_statement(tables: Sequence[Migration], functions_and_build: str, build: Version) -> str:
    """What `migrate` does, in SQL. As one statement, because whoever runs it sends statements as he likes, and it must
    not be done in part."""
    steps = [
        f"if not {migration.version} = any (v_applied) then\n"
        f"execute {_quoted(f'esl_{migration.version:04d}', migration.sql)};\n{_record(migration)}\nend if;"
        for migration in tables
    ]
    return "\n".join(
        [
            "do $esl_pipeline$",
            "declare v_applied int[] := '{}'; v_build int := 0;",
            "begin",
            "perform pg_advisory_xact_lock(hashtextextended('esl.schema_migrations', 0));",
            "if to_regclass('esl.schema_migrations') is not null then",
            "select coalesce(array_agg(version order by version desc), '{}') into v_applied",
            "from esl.schema_migrations;",
            f"v_build := {_FOUND_BUILD};",
            "end if;",
            f"if (v_applied[1], v_build) > {tuple(build)} then",
            "raise exception 'the buffer (version %) is newer than this file, which is of version "
            f"{build.tables}, build {build.build}: take the file of the newest esl_pipeline', v_applied[1];",
            "end if;",
            f"if v_applied[cardinality(v_applied)] < {oldest_version()} then",
            f"raise exception {_literal(str(unreleased_buffer('%')))}, v_applied[1];",
            "end if;",
            *steps,
            f"execute {_quoted('esl_functions', functions_and_build)};",
            "end $esl_pipeline$;",
            "",
        ]
    )


def _quoted(tag: str, sql: str) -> str:
    if f"${tag}$" in sql:
        raise ValueError(f"our own SQL holds ${tag}$, which would end it")
    return f"${tag}$\n{sql}\n${tag}$"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def migrate(dsn: str, *, warn: Callable[[str], None] | None = None) -> list[str]:
    """Apply what is missing, all in one transaction, and name it: table changes, "functions".

    warn: told what could not be done and was left out (roles that the login may not create). Two callers at once take
    turns, and one that has met the locks of a working pipeline the other way round (a deadlock) begins anew. Raises
    psycopg.Error when the database refuses, and BufferVersionError, with nothing changed, when it is from before the
    first release, or newer than this code: older functions would be put over newer tables, or over newer functions that
    others are working with.
    """
    # No decorator: what it logs of a retry would hold the address.
    for attempt in stamina.retry_context(
        on=psycopg.errors.DeadlockDetected, attempts=10, timeout=None, wait_initial=0.5, wait_max=5
    ):
        with attempt:
            return _migrate(dsn, warn)
    raise AssertionError("the last attempt raises")


def _migrate(dsn: str, warn: Callable[[str], None] | None) -> list[str]:
    def told(notice: psycopg.errors.Diagnostic) -> None:
        if warn and notice.severity_nonlocalized == "WARNING":
            warn(notice.message_primary or "")

    with psycopg.connect(dsn, prepare_threshold=None) as connection:
        connection.add_notice_handler(told)
        connection.execute("select pg_advisory_xact_lock(hashtextextended('esl.schema_migrations', 0))")
        exists = connection.execute("select to_regclass('esl.schema_migrations')").fetchone()
        applied = set()
        if exists and exists[0] is not None:
            applied = {row[0] for row in connection.execute("select version from esl.schema_migrations")}
        if applied:
            (build,) = connection.execute(_ASK_BUILD).fetchone() or (0,)
            if (there := Version(max(applied), build)) > code_build():
                raise newer_buffer(there, code_build())
            if min(applied) < oldest_version():
                raise unreleased_buffer(max(applied))
        done = []
        for migration in migrations():
            if migration.version not in applied:
                connection.execute(migration.sql.encode())
                connection.execute(_record(migration).encode())
                done.append(str(migration))
        found = connection.execute("select obj_description('esl'::regnamespace, 'pg_namespace')").fetchone()
        if done or found != (f"{functions_build()} {functions_digest()}",):
            connection.execute(_functions_and_build().encode())
            done.append("functions")
        else:  # a role may have been created, or the database restored, since then
            connection.execute("select esl.restrict_functions()")
    return done
