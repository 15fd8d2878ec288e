"""Titles, SKUs and answers come from strangers: they forge no log line, steer no terminal, run in no spreadsheet."""

import csv
import json
import logging
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from esl_pipeline.commands import shown
from esl_pipeline.commands.findings import CSV_COLUMNS, print_findings
from esl_pipeline.commands.spreadsheets import write_csv
from esl_pipeline.commands.status import print_status
from esl_pipeline.commands.story_lines import print_story
from esl_pipeline.connections import open_label_server
from esl_pipeline.printable import cell, printable
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.receiver.support import call, make_app, signed
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.watched import WatchedBuffer
from esl_pipeline_tests.world import World

# More of them where the naughty strings are.
pytestmark = pytest.mark.shared_data
NAUGHTY = DATA / "security" / "blns.json"
OWN = [
    "\x1b]0;owned\x07",
    "\x9b31m red \x1b[2J",
    "\u202egnihton",
    "\u2066isolate\u2069",
    "a\r\n2026-01-01 00:00:00 INFO all is well",
    "tea\x00\x08\x7f",
    "[red]markup[/red]",
    "{0} %s %(x)s",
    '=HYPERLINK("http://evil.example","click")',
    "+SUM(A1)",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "＝1+1",
    'a","=1+1',
]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def naughty() -> list[str]:
    return OWN + (json.loads(NAUGHTY.read_text()) if NAUGHTY.is_file() else [])


def is_safe(text: str) -> bool:
    """No control, bidi or other invisible character but the line breaks of our own tables."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text if c != "\n")


def finding(text: str) -> dict[str, Any]:
    return dict.fromkeys(CSV_COLUMNS, text) | {"variant_id": "1", "value": text}


def test_s25_no_cell_of_the_export_is_a_formula(tmp_path: Path) -> None:
    texts, numbers = naughty(), ["-1", "-1.50", "+3", "-1,5", "0012"]
    file = tmp_path / "findings.csv"
    write_csv(file, CSV_COLUMNS, map(finding, texts + numbers))
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == len(texts) + len(numbers)
    for text, row in zip(texts, rows, strict=False):
        for column in ("title", "sku", "value", "reason"):
            kept = row[column]
            assert not kept.startswith(FORMULA) or re.fullmatch(r"[+-]?[0-9.,]+", kept), (text, kept)
            assert kept.removeprefix("'") == text.removeprefix("'")
    assert {"'" + text for text in OWN if text.startswith(FORMULA)} <= {row["title"] for row in rows}
    assert [row["value"] for row in rows[len(texts) :]] == numbers


def test_s25_nothing_that_is_printed_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=200)
    for text in naughty():
        assert is_safe(printable(text)) and "\n" not in printable(text)
        foreign = dict.fromkeys((*CSV_COLUMNS, "variant_id"), text) | {
            "first_seen_at": "2026-11-29T00:00:00Z"
        }
        print_findings([foreign], [], more=False)
        console.print(shown.table(("a", "b"), [(text, text)]))
    assert is_safe(capsys.readouterr().out)
    console.print(shown.table(("a",), [("[red]markup[/red]",)]))
    assert "[red]markup[/red]" in capsys.readouterr().out


def test_s25_a_cell_is_changed_only_where_it_must_be() -> None:
    unchanged = ["", "Tea", "0012", "-1", "-1.50", "1=1", "a-b", "'=1", "３"]
    assert [cell(text) for text in unchanged] == unchanged


def test_s25_hostile_headers_and_bodies_leave_one_log_line_each(
    watched: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a stranger sends as shop, id or topic: the line about it is plain ASCII, and no body is logged."""
    caplog.set_level(logging.DEBUG)
    app, sent = make_app(watched), 0
    for text in naughty()[:120]:
        raw = json.dumps({"id": 1, "title": f"canary {text}"}).encode()
        headers = {
            name.encode(): value.encode("utf-8", "surrogatepass")
            for name, value in signed(
                "products/update", raw, shop_domain=f"x{text}", webhook_id=text or "-"
            ).items()
        }
        call(app, "POST", "/webhooks/shopify/products/update", content=raw, headers=list(headers.items()))
        sent += 1
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("esl_pipeline")]
    assert len(lines) == sent
    assert all(line.isascii() and line.isprintable() and "canary" not in line for line in lines)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, buffer: Any, buffer_dsn: str) -> Any:
    from esl_pipeline.sandbox.label_server.server import SIGN
    from esl_pipeline_tests.hipoink.servers import running_sandbox

    with running_sandbox() as sandbox:
        monkeypatch.setenv("HIPOINK_API_BASE_URL", sandbox.url)
        monkeypatch.setenv("HIPOINK_API_SECRET", SIGN)
        monkeypatch.setenv("HIPOINK_RATE_LIMIT_PER_SECOND", "1000")
        with open_label_server(load_settings(), buffer) as client:
            yield World(buffer, buffer_dsn, sandbox, client)


@pytest.mark.long
def test_s25_from_a_hostile_title_to_the_trace(
    world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Titles, SKUs and the label server's words go the whole way: exact on the label, harmless in logs and console."""
    from esl_pipeline_tests.world import STORE, product, variant

    caplog.set_level(logging.DEBUG)
    world.map(settings={"code_source": ["variant_id"]})
    texts = [text for text in naughty() if text.strip()][:150]
    bodies = [product(n, variants=[variant(n, sku=text[:60])], title=text) for n, text in enumerate(texts, 1)]
    evil = "".join(OWN)
    world.sandbox.faults({"kind": "bad_codes", "codes": ["1"], "error_msg": evil})
    world.settle(*bodies)
    on_labels = world.labels()
    assert len(on_labels) > len(texts) * 0.8
    console = Console(width=200)
    for code in ("1", "2", "3"):
        story, (place,) = world.buffer.story(store=STORE, code=code), world.buffer.trace(code)
        assert story is not None
        print_story(console, story, place)
    print_status(console, world.buffer.status())
    print_findings(world.buffer.findings(), [], more=False)
    assert is_safe(capsys.readouterr().out)
    for record in caplog.records:
        if record.name.startswith(("esl_pipeline", "stamina", "httpx")):
            assert record.getMessage().isprintable(), record.name
