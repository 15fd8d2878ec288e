"""Dagster's daemon with our log; as `dagster-daemon run`, which writes colours into a format of its own.

    python -m esl_pipeline.orchestration.dagster_daemon --workspace workspace.yaml

For `up`, and for production. DAGSTER_HOME names the instance.
"""

from pathlib import Path
from typing import Annotated

import dagster as dg
import typer
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.cli import _get_heartbeat_tolerance
from dagster._daemon.controller import daemon_controller_from_instance
from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

from esl_pipeline import logs
from esl_pipeline.orchestration import console
from esl_pipeline.secret_files import export


def main(
    workspace: Annotated[Path, typer.Option(help="The workspace file.")] = Path("workspace.yaml"),
) -> None:
    """Run the daemon until it is stopped."""
    logs.configure_by_variables()
    export("ESL_DAGSTER_DATABASE_URL")
    setup_interrupt_handlers()
    try:
        with (
            capture_interrupts(),
            dg.DagsterInstance.get() as instance,
            daemon_controller_from_instance(
                instance,
                workspace_load_target=WorkspaceFileTarget([str(workspace)]),
                heartbeat_tolerance_seconds=_get_heartbeat_tolerance(),  # type: ignore[no-untyped-call]
                log_level="warning",  # of its own handler, until ours takes over
            ) as controller,
        ):
            console.take_over()
            controller.check_daemon_loop()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    typer.run(main)
