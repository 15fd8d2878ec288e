"""The code server, once its login has shown that it may do the runs' work; then as `dagster api grpc`.

    python -m esl_pipeline.orchestration.code_server --host 127.0.0.1 --port 4000

It becomes that process. A buffer that is away keeps it from nothing: it may be there when work is due.
"""

import logging
import os
import sys
from typing import Annotated

import typer

from esl_pipeline import logs
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.buffer.logins import check_login
from esl_pipeline.connections import open_buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.secret_files import export
from esl_pipeline.settings import load_settings

_LOCATION = ("--module-name", "esl_pipeline.definitions", "--location-name", "esl_pipeline")


def main(
    host: Annotated[
        str, typer.Option(help="Where it listens: an address that Dagster's daemon reaches.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 4000,
) -> None:
    """Serve our definitions to Dagster's daemon and webserver, and start the runs."""
    logs.configure_by_variables()
    export("ESL_DAGSTER_DATABASE_URL")
    try:
        _check_login()
    except (SettingsError, BufferError) as error:
        raise SystemExit(str(error)) from None
    # Until our code is loaded, which sees to the log, and then to its level too.
    served = ("--host", host, "--port", str(port), "--log-level", "warning")
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "api", "grpc", *_LOCATION, *served])  # noqa: S606


def _check_login() -> None:
    buffer = open_buffer(load_settings(), attempts=1, pool_size=1)
    try:
        buffer.check_version()
        check_login(buffer, "run")
    except BufferUnavailable as error:
        logging.getLogger(__name__).warning("the runs' login is not checked: %s", error)
    finally:
        buffer.close()


if __name__ == "__main__":
    typer.run(main)
