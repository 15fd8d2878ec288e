"""`esl-pipeline migrate` and `doctor`: whether this installation is as it should be."""

import sys
from dataclasses import asdict
from typing import Annotated, Literal

import typer
from rich.markup import escape

from esl_pipeline.commands.shared import (
    MARKS,
    AsJson,
    CommandError,
    err,
    out,
    print_json,
    settings_here,
)
from esl_pipeline.printable import printable
from esl_pipeline.settings import load_settings


def migrate(
    to_stdout: Annotated[bool, typer.Option("--print", help="Print one SQL file for an SQL editor.")] = False,
) -> None:
    """Bring the buffer's tables and functions to the version of this code."""
    import psycopg

    from esl_pipeline.buffer.migrate import as_one_file, code_version
    from esl_pipeline.buffer.migrate import migrate as apply

    if to_stdout:
        sys.stdout.write(as_one_file())
        return
    settings = settings_here()
    if settings.esl_database_url is None:
        raise CommandError(
            "migrations need a Postgres address: set ESL_DATABASE_URL, or paste the output of "
            "`esl-pipeline migrate --print` into Supabase's SQL editor"
        )
    try:
        applied = apply(
            settings.esl_database_url.get_secret_value(),
            warn=lambda warning: err.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True),
        )
    except psycopg.Error as error:
        raise CommandError(f"the migrations were not applied: {' '.join(str(error).split())}") from None
    for migration in applied:
        out.print(f"applied {migration}")
    out.print(f"the buffer is at version {code_version()}")


def doctor(
    process: Annotated[
        Literal["receiver", "admin", "code-server", "run", "daemon", "webserver"] | None,
        typer.Option(
            "--for", help="Only what this process needs, with its own settings. Default: everything."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every setting and connection and say what is wrong. Exit 1 if anything is."""
    from esl_pipeline.commands.doctor import examine

    found = examine(load_settings() if process else settings_here(), process)
    if as_json:
        print_json([asdict(check) for check in found])
    else:
        for check in found:
            out.print(f"{MARKS[check.state]} {escape(printable(f'{check.what}: {check.says}'))}")
    if any(check.state == "wrong" for check in found):
        raise typer.Exit(1)
