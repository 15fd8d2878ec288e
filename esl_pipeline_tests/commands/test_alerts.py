"""`esl-pipeline alerts`: what is open, whether the addresses work, and a place to look."""

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands import alerts
from esl_pipeline_tests.alerts.listener import Listener, listening
from esl_pipeline_tests.commands.conftest import Run

NOBODY = "http://127.0.0.1:9/a-secret-word"


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, buffer_dsn: str) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)


def test_every_address_is_tried_and_said_without_what_is_secret(
    run: Run, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"critical={listener.host}/a-secret-word, {NOBODY}")
    done = run("alerts", "test")
    assert done.code == 1 and done.err == "1 of 2 addresses were not reached\n"
    assert done.out == (
        f"{listener.host} (from critical on): sent\n"
        "http://127.0.0.1:9 (from warning on): wrong  no answer (ConnectError)\n"
    )
    (message,) = listener.messages
    assert message["text"].startswith("[CRITICAL] This is a test") and message["alerts"][0]["event"] == "test"
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"critical={listener.url} warning={listener.url}2")
    assert run("alerts", "test", "--severity", "warning").code == 0
    assert listener.calls[-1].endswith("2") and len(listener.messages) == 2


def test_without_an_address_nobody_is_told(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "names no address that is told of critical alerts" in refused("alerts", "test")
    monkeypatch.setenv("ESL_ALERT_WEBHOOK_URL", f"critical={NOBODY}")
    assert "told of warning alerts" in refused("alerts", "test", "--severity", "warning")
    assert "there are info, warning, critical" in refused("alerts", "test", "--severity", "urgent")


def test_the_list_says_what_is_open_who_knows_and_what_is_over(
    run: Run, configured: None, buffer: Buffer
) -> None:
    assert run("alerts", "list").out == "no alert is open\n"
    at = datetime(2026, 11, 28, 12, tzinfo=UTC).isoformat()
    change: dict[str, Any] = {
        "do": "open",
        "key": "backlog:S1",
        "kind": "backlog",
        "subject": "S1",
        "severity": "warning",
        "since": at,
        "says": "Labels of store S1 [wait].",
        "todo": "Look.",
        "link": "https://dagster.example",
    }
    for _ in range(2):  # a call whose answer was lost is made again
        buffer.alert_record(changes=[change], recipients=[{"name": "https://a.example", "severity": "info"}])
    done = run("alerts", "list")
    assert done.out == (
        "warning Labels of store S1 [wait].\n"
        "  since 2026-11-28 12:00:00Z\n"
        "  Look.\n"
        "  https://dagster.example\n"
        "  not yet told: https://a.example, tried 0 times\n"
    )
    (row,) = run("alerts", "list", "--json").json
    assert (row["kind"], row["closed_at"], len(row["told"])) == ("backlog", None, 1)
    for _ in range(2):
        buffer.alert_record(changes=[change | {"do": "close"}], recipients=[])
    assert run("alerts", "list").out == "no alert is open\n"
    assert "since 2026-11-28 12:00:00Z, over at 20" in run("alerts", "list", "--all").out


def test_a_place_to_look(run: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def serve_one(server: ThreadingHTTPServer) -> None:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        body = json.dumps({"text": "a &lt;b&gt;\x1b[31m\nc"}).encode()
        ask = threading.Thread(target=urllib.request.urlopen, args=(urllib.request.Request(url, body),))
        ask.start()
        server.handle_request()
        ask.join()

    with ThreadingHTTPServer(("127.0.0.1", 0), alerts.typer.Typer) as taken:  # type: ignore[arg-type]
        port = taken.server_address[1]
        assert f"port {port} cannot be listened at" in refused("alerts", "listen", "--port", str(port))
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", serve_one)
    monkeypatch.setattr(ThreadingHTTPServer, "daemon_threads", False)
    done = run("alerts", "listen", "--port", str(port))
    assert done.code == 0 and "ESL_ALERT_WEBHOOK_URL=info=http://127.0.0.1:" in done.out
    assert "a <b>\ufffd[31m" in done.out
