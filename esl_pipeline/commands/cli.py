"""The esl-pipeline command: its subcommands on one page, and how it says what went wrong.

Each subcommand reads its settings, calls one room and prints what came back.
"""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from typer.exceptions import Abort, TyperException

from esl_pipeline import logs
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import (
    alerts,
    devices,
    files,
    findings,
    health,
    installation,
    labels,
    operator,
    queue,
    report,
    running,
    shelf,
    stats,
    status,
    stores,
    tokens,
    trace,
    units,
)
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


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from esl_pipeline.buffer.migrate import code_version, functions_build

        own = f"esl-pipeline {installed_version('esl-pipeline')}"
        print(f"{own}, buffer version {code_version()}, build {functions_build()}")
        raise typer.Exit


for _command in (
    running.demo,
    running.up,
    running.receiver,
    running.console,
    installation.migrate,
    installation.doctor,
    units.install_units,
    health.health,
    labels.preview,
    findings.findings,
    labels.reconcile,
    status.status,
    stats.stats,
    queue.queue,
    queue.inbox,
    report.report,
    trace.trace,
    labels.redrive,
    operator.push,
    operator.replay,
    operator.actions,
    shelf.shelf,
    devices.flash,
    devices.probe,
    running.postgres,
):
    app.command()(_command)
app.add_typer(stores.app, name="stores")
app.add_typer(operator.changes_app, name="changes")
app.add_typer(operator.servers_app, name="servers")
app.add_typer(tokens.app, name="tokens")
app.add_typer(files.app, name="files")
app.add_typer(alerts.app, name="alerts")
app.add_typer(devices.app, name="labels")
app.add_typer(shopify.app, name="shopify")


@app.callback()
def _all(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print which version this is.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Shopify products to Hipoink electronic shelf labels, through Supabase and Dagster."""


def main() -> NoReturn:
    """The console script: what went wrong is one sentence on standard error and exit code 1."""
    from esl_pipeline.local.parts import StackError
    from esl_pipeline.local.postgres import PostgresUnavailable

    for number, argument in enumerate(sys.argv[1:], 1):
        for _, says in unstorable(argument):
            _complain(f"argument {number} {says}: {argument}")
            raise SystemExit(1)
    _log()
    try:
        raise SystemExit(app(standalone_mode=False) or 0)
    except TyperException as error:
        if said := " ".join(error.format_message().split()):  # else its help was printed
            said = said.replace("Value error, ", "").rstrip(".")
            _complain(f"{said}: see `{_asked(error)} --help`")
    except Abort:
        raise SystemExit(130) from None
    except (CommandError, SettingsError, BufferError, StackError, PostgresUnavailable) as error:
        _complain(str(error))
    except Exception as error:  # a reader gets a sentence; LOG_LEVEL=DEBUG shows where it came from
        if _debugging():
            raise
        _complain(f"{type(error).__name__}: {error}")
    raise SystemExit(1)


def _asked(error: TyperException) -> str:
    """The command that was used wrongly, as it was called."""
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context else "esl-pipeline"


def _log() -> None:
    try:
        settings = load_settings()
    except SettingsError:  # the command says so
        logs.configure_by_variables(for_people=True)
    else:
        logs.configure(settings.app_environment, settings.log_level, for_people=True)


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
