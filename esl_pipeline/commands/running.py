"""`esl-pipeline demo`, `up`, `receiver` and `postgres`: what runs until it is done or stopped."""

import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.markup import escape

from esl_pipeline.commands.shared import (
    AsJson,
    err,
    out,
)
from esl_pipeline.settings import load_settings


def demo(
    source: Annotated[
        str | None, typer.Option(help="The source that the shop is of; a wrong one lists those there are.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start everything, send about 300 webhooks, check every label, stop. Exit 1 if any label is wrong."""
    from esl_pipeline.demo.run import DEMOS, run_demo

    source = source or next(iter(DEMOS))
    if source not in DEMOS:
        raise typer.BadParameter(f"write {' or '.join(DEMOS)}", param_hint="--source")
    with _terminable(exit_code=130):
        if not run_demo(load_settings(), out, source=source, as_json=as_json):
            raise typer.Exit(1)


def up(
    receiver_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    ui_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 3000,
    labels_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8090,
    shop_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8091,
    json_ready: Annotated[
        Path | None, typer.Option(help="Write the URLs here, as JSON, once everything answers.")
    ] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: what the settings leave out is brought along."""
    from esl_pipeline.local.stack import Ports, Stack

    settings = load_settings()
    ports = Ports(receiver_port, ui_port, labels_port, shop_port)
    with _terminable(), Stack(settings, ports, lambda part: err.print(f"starting {part} …")) as stack:
        for warning in stack.settings.warnings():
            err.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
        urls = asdict(stack.urls)
        if json_ready is not None:
            _write_atomically(json_ready, json.dumps(urls))
        out.print(f"\nDagster UI    {urls['ui']}")
        out.print(f"labels        {urls['labels'] or settings.hipoink_api_base_url}")
        if urls["shop"]:
            out.print(f"shop          {urls['shop']}   (a sandbox: change a price there)")
        out.print(f"receiver      {urls['receiver']}   (API: {urls['receiver']}/docs)")
        out.print(f"state, logs   {settings.esl_home.absolute()}", soft_wrap=True)
        if stack.mapped:
            out.print(stack.mapped, soft_wrap=True)
        out.print("Ctrl-C stops all of it.")
        while True:
            stack.keep_up(lambda what: err.print(f"[yellow]{escape(what)}[/]", soft_wrap=True))
            time.sleep(1)


def receiver(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    only: Annotated[
        Literal["webhooks", "admin"] | None,
        typer.Option(help="One of the two alone, e.g. the store-mapping API on a private address."),
    ] = None,
) -> None:
    """Run the webhook function and the store-mapping API."""
    from esl_pipeline.connections import open_buffer
    from esl_pipeline.guard import Guard
    from esl_pipeline.receiver.app import create_app
    from esl_pipeline.receiver.server import serve

    settings = load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Not in the format, and looked up for each line all the same.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = logging.logAsyncioTasks = False
    for warning in settings.warnings():
        if not warning.startswith("HIPOINK_"):  # it knows no label server, and need not have its sign
            logging.getLogger(__name__).warning(warning)
    # One try: a buffer that is away is answered with 503 at once, and the shop sends again.
    buffer = open_buffer(settings, attempts=1, pool_size=8)
    try:
        buffer.check_version()
        app = create_app(settings, buffer, only=only)
        app.add_middleware(
            Guard,
            names=(*settings.host_names, host),
            pages={"/", "/docs", "/health"},
            only_json=False,  # what a body must be, each path says itself
            any_host=("/webhooks/", "/health"),
        )
        serve(app, host, port, settings.trusted_proxies)
    finally:
        buffer.close()


def postgres() -> None:
    """Run the embedded Postgres alone until Ctrl-C, e.g. for `dagster dev`; prints the variables it needs."""
    from esl_pipeline.local.databases import run_postgres

    with _terminable(), run_postgres(load_settings()) as variables:
        for name, value in variables.items():
            print(f"export {name}='{value}'", flush=True)
        err.print("Ctrl-C stops it.")
        while True:
            time.sleep(1)


@contextmanager
def _terminable(*, exit_code: int = 0) -> Iterator[None]:
    """SIGTERM and Ctrl-C both leave through the context managers, quietly."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background commands with it ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(exit_code) from None


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
