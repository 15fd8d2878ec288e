"""`esl-pipeline alerts`: what people are told of, and whether the word gets to them."""

import html
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json, settings_here
from esl_pipeline.commands.times import moment
from esl_pipeline.printable import printable

app = typer.Typer(help="What people are told of, and whether the word gets to them.", no_args_is_help=True)

_COLOURS = {"info": "blue", "warning": "yellow", "critical": "red"}

_LONGEST_MESSAGE = 1_000_000

Rows = Sequence[Mapping[str, Any]]


@app.command("list")
def list_(
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are over, newest first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Open alerts: since when, what to do, and who has been told."""
    with buffer_here() as buffer:
        found = buffer.alert_list(is_open=not everything, limit=limit)
    if as_json:
        print_json(found)
        return
    for alert in found:
        _print(alert)
    if not found:
        out.print("no alert is open" if not everything else "there has been no alert")


@app.command()
def test(
    severity: Annotated[
        str, typer.Option(help="Only to addresses that are told of this: info, warning or critical.")
    ] = "critical",
) -> None:
    """Send a message to every address of ESL_ALERT_WEBHOOK_URL, and say how it went."""
    from esl_pipeline.alerts import sender
    from esl_pipeline.alerts.addresses import recipients
    from esl_pipeline.alerts.message import message, sample
    from esl_pipeline.alerts.model import SEVERITIES

    if severity not in SEVERITIES:
        raise CommandError(f"no severity is called {severity}: there are {', '.join(SEVERITIES)}")
    rank = [*SEVERITIES].index
    to = [
        one
        for one in recipients(settings_here().esl_alert_webhook_url)
        if rank(one.severity) <= rank(severity)
    ]
    if not to:
        raise CommandError(
            f"ESL_ALERT_WEBHOOK_URL names no address that is told of {severity} alerts: nobody is told"
        )
    failed = 0
    for one in to:
        answer = sender.post(one.url, message([sample(severity, datetime.now(UTC))]))
        failed += answer.error is not None
        says = f"[red]wrong[/]  {answer.error}" if answer.error else "[green]sent[/]"
        out.print(f"{escape(one.name)} (from {one.severity} on): {says}", soft_wrap=True)
    if failed:
        raise CommandError(f"{failed} of {len(to)} addresses were not reached")


@app.command()
def listen(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Where it listens, on this machine.")] = 9099,
) -> None:
    """Print the alerts that are sent to http://127.0.0.1:PORT/: a place to look while there is no other."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Printer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _LONGEST_MESSAGE))
            out.print(escape(_text_of(body)), "\n", soft_wrap=True, highlight=False)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Printer)
    except OSError as error:
        raise CommandError(
            f"port {port} cannot be listened at ({error.strerror}): name another one"
        ) from None
    with server:
        out.print(f"listening; set ESL_ALERT_WEBHOOK_URL=info=http://127.0.0.1:{port}/", highlight=False)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _text_of(body: bytes) -> str:
    """What a message says to people."""
    try:
        text = json.loads(body)["text"]
    except (ValueError, TypeError, KeyError):
        text = body.decode(errors="replace")
    return "\n".join(map(printable, html.unescape(str(text)).split("\n")))


def _print(alert: Mapping[str, Any]) -> None:
    severity = alert["severity"]
    until = f", over at {moment(alert['closed_at'])}" if alert["closed_at"] else ""
    out.print(
        f"[{_COLOURS[severity]}]{severity}[/] {escape(printable(alert['says']))}",
        soft_wrap=True,
        highlight=False,
    )
    out.print(f"  since {moment(alert['since'])}{until}", soft_wrap=True, highlight=False)
    if not alert["closed_at"]:
        out.print(f"  {escape(alert['todo'])}", soft_wrap=True, highlight=False)
    if alert["link"]:
        out.print(f"  {escape(alert['link'])}", soft_wrap=True, highlight=False)
    for line in _told(alert["told"]):
        out.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def _told(deliveries: Rows) -> list[str]:
    """Who has been told, and who has not, in a line each."""
    said = {"opened": "told", "closed": "told of its end"}
    return [
        f"{said[one['event']]}: {one['recipient']} at {moment(one['sent_at'])}"
        if one["sent_at"]
        else f"not yet {said[one['event']]}: {one['recipient']}, tried {one['attempts']} times"
        + (f", {one['last_error']}" if one["last_error"] else "")
        for one in deliveries
    ]
