"""Dagster's webserver behind the guard; as `dagster-webserver`, which has neither a login nor a look at who asks.

    python -m esl_pipeline.orchestration.dagster_ui --workspace workspace.yaml --port 3000 --host-names ui.example.com

For `up`, and for production: the proxy before it asks who you are, this one for whom the browser speaks.
"""

from pathlib import Path
from typing import Annotated, Any

import dagster as dg
import typer
import uvicorn
from dagster._core.workspace.context import IWorkspaceProcessContext, WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__
from starlette.types import ASGIApp, Receive, Scope, Send

from esl_pipeline import logs
from esl_pipeline.guard import Guard
from esl_pipeline.secret_files import export
from esl_pipeline.settings import host_names_in

_STATEMENT_TIMEOUT_MS = 15_000
_POOL_RECYCLE_SECONDS = 3_600
_POOL_OVERFLOW = 20
_LIVE_DATA_MS = 2_000


def guarded_app(context: IWorkspaceProcessContext[Any], names: tuple[str, ...] = ()) -> Guard:
    """Dagster's application behind the guard. names: hosts under which people reach it, beside loopback."""
    app = create_app_from_workspace_process_context(context, live_data_poll_rate=_LIVE_DATA_MS)
    return Guard(_knowing_partitions(app, context.instance), names=names)


def _knowing_partitions(app: ASGIApp, instance: dg.DagsterInstance) -> ASGIApp:
    """The application, where a check's partitions are looked for in the instance.

    Dagster 1.13 does not say so where it resolves them: an error for every check whose partitions are dynamic, which
    its pages show as missing, and as whatever the check said last.
    """

    async def knowing(scope: Scope, receive: Receive, send: Send) -> None:
        with dg.partition_loading_context(dynamic_partitions_store=instance):
            await app(scope, receive, send)

    return knowing


def main(
    workspace: Annotated[Path, typer.Option(help="The workspace file.")] = Path("workspace.yaml"),
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 3000,
    host_names: Annotated[
        str, typer.Option(envvar="ESL_HOST_NAMES", help="Names under which people reach it, by commas.")
    ] = "",
) -> None:
    """Serve Dagster's pages until it is stopped. DAGSTER_HOME names the instance."""
    logs.configure_by_variables()
    export("ESL_DAGSTER_DATABASE_URL")
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _POOL_RECYCLE_SECONDS, _POOL_OVERFLOW)
        target = WorkspaceFileTarget([str(workspace)])
        with WorkspaceProcessContext(instance, version=__version__, workspace_load_target=target) as context:
            uvicorn.run(
                guarded_app(context, host_names_in(host_names)),
                host=host,
                port=port,
                log_level="warning",
                log_config=None,  # ours
                timeout_graceful_shutdown=2,  # an open page holds its websocket for as long as it is open
            )


if __name__ == "__main__":
    typer.run(main)
