"""Migrations: from nothing, twice, by two at once, through an SQL editor, and over what is older or newer."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.build import FILE, next_build
from esl_pipeline.buffer.errors import BufferVersionError
from esl_pipeline.buffer.migrate import (
    as_one_file,
    code_version,
    functions_build,
    functions_digest,
    migrate,
    migrations,
)
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline_tests.releases import BEFORE, FIRST, MissingReleaseError, unpacked


def paste(dsn: str) -> None:
    """What an SQL editor does with the printed file."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(as_one_file().encode())


def describe(dsn: str) -> dict[str, list[tuple[object, ...]]]:
    """All that migrations make: functions with their grants, tables, indexes, triggers, versions."""
    queries = {
        "functions": "select p.oid::regprocedure::text, prosrc, proacl::text[] from pg_proc p"
        " where pronamespace in ('public'::regnamespace, 'esl'::regnamespace) order by 1",
        "columns": "select table_name, column_name, data_type, column_default, is_nullable"
        " from information_schema.columns where table_schema = 'esl' order by 1, ordinal_position",
        "indexes": "select indexdef from pg_indexes where schemaname = 'esl' order by 1",
        "triggers": "select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal order by 1",
        "versions": "select version, name from esl.schema_migrations order by 1",
    }
    with psycopg.connect(dsn) as connection:
        return {name: connection.execute(query.encode()).fetchall() for name, query in queries.items()}


def is_usable(dsn: str) -> bool:
    with PsycopgTransport(SecretStr(dsn)) as transport:
        Buffer(transport).check_version()
    return True


def test_versions_are_numbered_without_gaps() -> None:
    assert [migration.version for migration in migrations()] == [*range(100, code_version() + 1)]


@pytest.mark.parametrize("commit", [FIRST, BEFORE])
def test_a_buffer_of_an_earlier_release_is_migrated(database: str, tmp_path: Path, commit: str) -> None:
    """Functions that have other columns now are made anew. With work under way: reliability/test_versions.py."""
    try:
        unpacked(commit, tmp_path)
    except MissingReleaseError as missing:
        pytest.skip(str(missing))
    subprocess.run(
        [sys.executable, "-m", "esl_pipeline.commands.cli", "migrate"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "ESL_DATABASE_URL": database},
        cwd=tmp_path / "docs", check=True, capture_output=True,
    )  # fmt: skip
    assert migrate(database)[-1] == "functions"
    assert is_usable(database)


def test_an_empty_database_is_migrated_once(database: str) -> None:
    assert migrate(database) == [*map(str, migrations()), "functions"]
    first = describe(database)
    assert migrate(database) == []
    assert describe(database) == first
    assert is_usable(database)


def test_the_printed_file_does_the_same_and_may_be_run_twice(database: str, buffer_dsn: str) -> None:
    paste(database)
    once = describe(database)
    assert once == describe(buffer_dsn)
    with psycopg.connect(database) as connection:
        connection.execute("insert into esl.store_health (store_code, reason) values ('S1', 'kept')")
    paste(database)
    assert describe(database) == once
    assert migrate(database) == []
    assert is_usable(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("select reason from esl.store_health").fetchall() == [("kept",)]


def test_functions_of_another_build_are_replaced(buffer_dsn: str) -> None:
    before = describe(buffer_dsn)
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("comment on schema esl is 'another build'; drop function public.esl_due(jsonb)")
    assert migrate(buffer_dsn) == ["functions"]
    assert describe(buffer_dsn) == before


@pytest.mark.parametrize("apply", [migrate, paste])
def test_a_row_type_is_replaced_only_where_it_has_other_columns(
    buffer_dsn: str, apply: Callable[[str], object]
) -> None:
    """What uses the others stays what it is: a call that is at work meanwhile would meet another, and fail."""

    def identities() -> dict[str, int]:
        with psycopg.connect(buffer_dsn) as connection:
            rows = connection.execute(
                "select typname::text, oid::int from pg_type where typnamespace = 'esl'::regnamespace union all"
                " select p.oid::regprocedure::text, p.oid::int from pg_proc p where pronamespace in"
                " ('esl'::regnamespace, 'public'::regnamespace) and proname like any ('{esl%,places,decisions}')"
            )
            return dict(rows.fetchall())

    before, described = identities(), describe(buffer_dsn)
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute(
            "alter type esl.event_row add attribute of_older_builds text;"
            "create type esl.of_older_builds_row as (n int);"
            "create function esl.reads_it(p esl.of_older_builds_row) returns int language sql as 'select p.n';"
            "comment on schema esl is '1 of another build'"
        )

    apply(buffer_dsn)

    after = identities()
    assert {name for name, oid in before.items() if after.get(name) != oid} == {"event_row", "_event_row"}
    assert after.keys() == before.keys() and describe(buffer_dsn) == described


@pytest.mark.parametrize("apply", [migrate, paste])
def test_a_function_of_an_older_build_makes_no_call_ambiguous(
    buffer_dsn: str, apply: Callable[[str], object]
) -> None:
    """As when a parameter with a default is added: both would fit the older call."""
    before = describe(buffer_dsn)
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute(
            "create function esl.next_push(p jsonb, p_alone boolean default false, p_other text default '')"
            " returns jsonb language sql as 'select null::jsonb';"
            "create function esl.of_older_builds_alone() returns int language sql as 'select 1';"
            "comment on schema esl is '1 of another build'"
        )

    apply(buffer_dsn)

    after = describe(buffer_dsn)
    assert after["functions"] != before["functions"]  # older code that still runs may need it
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("drop function esl.of_older_builds_alone()")
    assert describe(buffer_dsn) == before


@pytest.mark.long
def test_a_migration_that_was_chosen_to_end_a_deadlock_begins_anew(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "create sequence of_test;"
            "create function deadlock() returns event_trigger language plpgsql as"
            " 'begin if nextval(''public.of_test'') < 2 then raise exception using errcode = ''40P01''; end if; end';"
            "create event trigger of_test on ddl_command_start execute function deadlock()"
        )
    assert migrate(database)[-1] == "functions"
    assert is_usable(database)


def test_two_migrators_at_once_take_turns(database: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(migrate, [database] * 2))
    assert sorted(map(len, applied)) == [0, len(migrations()) + 1]
    assert is_usable(database)


def test_a_failed_migration_leaves_nothing_behind(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("create schema esl; create table esl.store_mappings (id int)")
    with pytest.raises(psycopg.Error):
        migrate(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("select to_regclass('esl.webhook_inbox')").fetchone() == (None,)


def test_a_buffer_from_before_the_first_release_is_told_how_to_go_on_and_left_alone(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute(
            "delete from esl.schema_migrations; insert into esl.schema_migrations (version, name)"
            " select n, 'unreleased' from generate_series(1, 21) n"
        )
    before = describe(buffer_dsn)
    said = (
        "at version 21, from before the first release, and cannot be brought to this one: begin with an empty"
    )
    with pytest.raises(BufferVersionError, match=said):
        migrate(buffer_dsn)
    with pytest.raises(BufferVersionError, match=said):
        is_usable(buffer_dsn)
    with pytest.raises(psycopg.errors.RaiseException, match=said):
        paste(buffer_dsn)
    assert describe(buffer_dsn) == before

    # One of the ways that the sentence names.
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("drop schema esl cascade")
    migrate(buffer_dsn)
    assert is_usable(buffer_dsn)


def test_f37_older_code_does_not_migrate_a_newer_buffer(buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn, autocommit=True) as connection:
        connection.execute(
            "insert into esl.schema_migrations (version, name) values (9999, 'of a later release')"
        )
        connection.execute("comment on schema esl is 'functions of a later release'")
    before = describe(buffer_dsn)

    with pytest.raises(
        BufferVersionError, match=r"at version 9999, newer than this code .* update esl_pipeline here"
    ):
        migrate(buffer_dsn)
    with pytest.raises(psycopg.errors.RaiseException, match="newer than this file"):
        paste(buffer_dsn)

    assert describe(buffer_dsn) == before
    with psycopg.connect(buffer_dsn) as connection:
        comment = connection.execute("select obj_description('esl'::regnamespace, 'pg_namespace')").fetchone()
    assert comment == ("functions of a later release",)


def _comment(dsn: str, text: str | None = None) -> str:
    """What the schema's comment says; with a text, after it has been set."""
    with psycopg.connect(dsn) as connection:
        if text is not None:
            connection.execute(sql.SQL("comment on schema esl is {}").format(text))
        row = connection.execute("select obj_description('esl'::regnamespace, 'pg_namespace')").fetchone()
    assert row is not None
    return str(row[0])


def test_field_38_the_build_has_grown_with_the_functions() -> None:
    fix = "the functions have changed, give them the next number: python -m esl_pipeline.buffer.build"
    assert FILE.read_text().split() == [str(functions_build()), functions_digest()], fix
    assert len(FILE.read_text().splitlines()) == 1, fix


def test_field_38_the_next_build_is_the_next_after_all_that_branches_have_numbered() -> None:
    ours, theirs, met = "a" * 64, "b" * 64, "c" * 64
    assert next_build("", ours) == f"1 {ours}\n"
    assert next_build(f"1 {ours}\n", ours) == f"1 {ours}\n"
    assert next_build(f"1 {ours}\n", theirs) == f"2 {theirs}\n"
    conflict = f"<<<<<<< HEAD\n7 {ours}\n=======\n8 {theirs}\n>>>>>>> w\n"
    assert next_build(conflict, met) == f"9 {met}\n"
    assert next_build(conflict, ours) == f"9 {ours}\n", "an older number says nothing of what came after it"


def test_field_38_an_older_build_changes_nothing_and_is_told_to_be_updated(buffer_dsn: str) -> None:
    newer = f"{functions_build() + 1} {'f' * 64}"
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("drop function public.esl_due(jsonb)")  # as in the newer build, say
    _comment(buffer_dsn, newer)
    before = describe(buffer_dsn)

    said = rf"build {functions_build() + 1} of version {code_version()}, newer than this code \({functions_build()}\)"
    for _ in range(2):  # an instance that restarts, and again
        with pytest.raises(BufferVersionError, match=said):
            migrate(buffer_dsn)
        with pytest.raises(BufferVersionError, match=said):
            is_usable(buffer_dsn)
        with pytest.raises(psycopg.errors.RaiseException, match="newer than this file"):
            paste(buffer_dsn)
    assert (describe(buffer_dsn), _comment(buffer_dsn)) == (before, newer)


@pytest.mark.parametrize("comment", ["0 of an older build", "d" * 64, "not of ours"])
def test_field_38_a_newer_build_asks_for_migrate_and_takes_over(buffer_dsn: str, comment: str) -> None:
    _comment(buffer_dsn, comment)
    with pytest.raises(BufferVersionError, match=r"build 0 of version .* run `esl-pipeline migrate`"):
        is_usable(buffer_dsn)
    paste(buffer_dsn)
    assert is_usable(buffer_dsn)
    _comment(buffer_dsn, comment)
    assert migrate(buffer_dsn) == ["functions"]
    assert _comment(buffer_dsn) == f"{functions_build()} {functions_digest()}"
    assert is_usable(buffer_dsn)
