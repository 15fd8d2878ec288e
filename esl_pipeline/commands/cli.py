"""The esl-pipeline command: its subcommands on one page, and how it says what went wrong.

Each subcommand reads its settings, calls one room and prints what came back.
"""

import sys
from typing import NoReturn

import typer
from rich.markup import escape

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import files, installation, labels, running, stores, tokens
from esl_pipeline.commands.shared import CommandError, err
from esl_pipeline.commands.shopify import app as shopify
from esl_pipeline.environment import SettingsError
from esl_pipeline.printable import printable
from esl_pipeline.settings import load_settings
from esl_pipeline.storable import unstorable

app = typer.Typer(
    help="Shopify products to Hipoink electronic shelf labels, through Supabase and Dagster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    running.demo,
    running.up,
    running.receiver,
    installation.migrate,
    installation.doctor,
    labels.preview,
    labels.findings,
    labels.reconcile,
    labels.status,
    labels.trace,
    labels.redrive,
    running.postgres,
):
    app.command()(_command)
app.add_typer(stores.app, name="stores")
app.add_typer(tokens.app, name="tokens")
app.add_typer(files.app, name="files")
app.add_typer(shopify.app, name="shopify")


def main() -> NoReturn:
    """The console script: what went wrong is one sentence on standard error and exit code 1."""
    from esl_pipeline.local.parts import StackError
    from esl_pipeline.local.postgres import PostgresUnavailable

    for number, argument in enumerate(sys.argv[1:], 1):
        for _, says in unstorable(argument):
            _complain(f"argument {number} {says}: {argument}")
            raise SystemExit(2)
    try:
        app()
    except (CommandError, SettingsError, BufferError, StackError, PostgresUnavailable) as error:
        _complain(str(error))
    except Exception as error:  # a reader gets a sentence; LOG_LEVEL=DEBUG shows where it came from
        if _debugging():
            raise
        _complain(f"{type(error).__name__}: {error}")
    raise SystemExit(1)


def _complain(sentence: str) -> None:
    # A database or a server may have put a stranger's text into it.
    lines = "\n".join(map(printable, sentence.split("\n")))
    err.print(f"[red]{escape(lines)}[/]", soft_wrap=True)


def _debugging() -> bool:
    try:
        return load_settings().log_level == "DEBUG"
    except SettingsError:
        return False


if __name__ == "__main__":
    main()
