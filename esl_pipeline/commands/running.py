"""`esl-pipeline demo`, `up`, `receiver` and `postgres`: what runs until it is done or stopped."""

import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from esl_pipeline import logs
from esl_pipeline.commands.shared import (
    AsJson,
    err,
    out,
)
from esl_pipeline.settings import load_settings

if TYPE_CHECKING:
    from esl_pipeline.buffer.buffer import Buffer
    from esl_pipeline.local.stack import Urls
    from esl_pipeline.receiver.app import Part


def demo(
    source: Annotated[
        str | None, typer.Option(help="The source that the shop is of; a wrong one lists those there are.")
    ] = None,
    refresh: Annotated[
        Literal["after_push", "never"],
        typer.Option(help="The store's policy; with never the report names every label that shows no price."),
    ] = "after_push",
    as_json: AsJson = False,
) -> None:
    """Start everything, send about 300 webhooks, check every label, stop. Exit 1 if any label is wrong."""
    from esl_pipeline.demo.run import DEMOS, run_demo

    source = source or next(iter(DEMOS))
    if source not in DEMOS:
        raise typer.BadParameter(f"write {' or '.join(DEMOS)}", param_hint="--source")
    with _terminable(exit_code=130):
        if not run_demo(load_settings(), out, source=source, refresh=refresh, as_json=as_json):
            raise typer.Exit(1)


def up(
    receiver_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    ui_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 3000,
    labels_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8090,
    shop_port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8091,
    json_ready: Annotated[
        Path | None, typer.Option(help="Write the URLs here, as JSON, once everything answers.")
    ] = None,
    fill: Annotated[bool, typer.Option(help="Fill the sandbox shop's store at once when it is new.")] = True,
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
        labels = [urls["labels"]] if urls["labels"] else [s.base_url for s in settings.label_servers.values()]
        out.print(f"labels        {', '.join(labels)}")
        if urls["shop"]:
            out.print(f"shop          {urls['shop']}   (a sandbox: change a price there)")
        out.print(f"receiver      {urls['receiver']}   (API: {urls['receiver']}/docs)")
        entry = "a token: esl-pipeline tokens add NAME --scope write"
        out.print(f"console       {urls['receiver']}/console   (for staff; {entry})", soft_wrap=True)
        out.print(f"state, logs   {settings.esl_home.absolute()}", soft_wrap=True)
        if stack.mapped:
            out.print(stack.mapped, soft_wrap=True)
        if stack.to_fill and fill:
            Thread(target=_first_look, args=(stack.urls, stack.to_fill), daemon=True).start()
        out.print("Ctrl-C stops all of it.")
        while True:
            stack.keep_up(lambda what: err.print(f"[yellow]{escape(what)}[/]", soft_wrap=True))
            time.sleep(1)


def _first_look(urls: "Urls", shop: str) -> None:
    """Beside the running stack, which must be kept up meanwhile."""
    from esl_pipeline.local import first_look

    out.print("filling the store …")
    out.print(escape(first_look.fill(urls, shop)), soft_wrap=True, highlight=False)
    called = sys.argv[0]
    program = (
        called if called.endswith("esl-pipeline") and not shutil.which("esl-pipeline") else "esl-pipeline"
    )
    for line in first_look.next_steps(urls, program):
        out.print(escape(line), soft_wrap=True, highlight=False)


def console(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8010,
) -> None:
    """Run the console for staff alone; with the admin part of the receiver it is at /console as well."""
    out.print(f"console       http://{host}:{port}/console   (Ctrl-C stops it)", soft_wrap=True)
    _serve(host, port, "console")


def receiver(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    only: Annotated[
        Literal["webhooks", "admin"] | None,
        typer.Option(help="One of the two alone, e.g. the store-mapping API on a private address."),
    ] = None,
) -> None:
    """Run the webhook function, and the store-mapping API with the console for staff."""
    _serve(host, port, only)


def _serve(host: str, port: int, only: "Part | None") -> None:
    from esl_pipeline.connections import open_buffer
    from esl_pipeline.guard import Guard
    from esl_pipeline.receiver.app import create_app
    from esl_pipeline.receiver.server import serve

    settings = load_settings()
    logs.configure(settings.app_environment, settings.log_level)
    # One try: a buffer that is away is answered with 503 at once, and the shop sends again.
    buffer = open_buffer(settings, attempts=1, pool_size=8)
    try:
        only = startable(buffer, only)
        for warning in settings.warnings():
            if not warning.startswith("HIPOINK_"):  # it knows no label server, and need not have its sign
                logging.getLogger(__name__).warning(warning)
        app = create_app(settings, buffer, only=only)
        app.add_middleware(
            Guard,
            names=(*settings.host_names, host),
            pages={"/", "/docs", "/health", "/console", "/console/*"},
            only_json=False,  # what a body must be, each path says itself
            any_host=("/webhooks/", "/health"),
        )
        serve(app, host, port, settings.trusted_proxies)
    finally:
        buffer.close()


def startable(buffer: "Buffer", only: "Part | None") -> "Part | None":
    """The part that this code can be now. Raises BufferError when it is none.

    On a newer buffer deliveries are kept as long as that takes them: between the migration and the roll-out of the new
    build a receiver that starts again is needed more than ever.
    """
    from esl_pipeline.buffer.errors import BufferError, NewerBuffer
    from esl_pipeline.buffer.logins import check_login
    from esl_pipeline.receiver.app import works_of

    try:
        buffer.check_version()
    except NewerBuffer as newer:
        if only not in (None, "webhooks"):
            raise
        try:
            check_login(buffer, "receiver")
        except BufferError as error:
            raise BufferError(f"{newer}; nor does it take deliveries of this code: {error}") from None
        closed = "" if only else "; the store-mapping API and the console stay closed until then"
        logging.getLogger(__name__).warning("deliveries are kept, but %s%s", newer, closed)
        return "webhooks"
    for work in works_of(only):
        try:
            check_login(buffer, work)
        except BufferError as error:
            if only or error.code != "42501":
                raise
            part = "webhooks" if work == "admin" else "admin"
            raise BufferError(f"{error}; or let it be one part alone: --only {part}") from None
    return only


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

    def again(lost: "sys.UnraisableHookArgs") -> None:
        # What is raised within a finalizer is dropped: it comes again when that has ended.
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(lost)

    # SIGINT too: a shell starts background commands with it ignored.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, stop)
    sys.unraisablehook = again
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(exit_code) from None


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
