"""`esl-pipeline trace`: a sentence, a time line, a file; from each kind of id; and nothing broken at 80 columns."""

import csv
import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.shared import CommandError
from esl_pipeline.commands.story_lines import print_pushes, print_story, print_webhook, seconds
from esl_pipeline.commands.times import time_given
from esl_pipeline.commands.trace import write_csv
from esl_pipeline.moments import moment_named
from esl_pipeline.stages.drift import compare_store
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.commands.test_cli import arrive, drained, map_shop, product
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of
from esl_pipeline_tests.world import STORE


@pytest.fixture
def told(run: Run, sandbox: Sandbox, buffer: Buffer) -> Run:
    """One label with two prices, the second put right after somebody had changed it."""
    map_shop(buffer)
    arrive(buffer, product(1, price="8.90"))
    drained(buffer)
    arrive(buffer, product(1, price="9.50", version=2))
    drained(buffer)
    sandbox.http.put(f"/sandbox/labels/{STORE}/C-1", json={"pp": "7.77"}).raise_for_status()
    with client_of(sandbox.url) as client:
        compare_store(buffer, client, store=STORE, run_id="night-1")
    drained(buffer)
    return run


def test_drift_is_part_of_the_story(told: Run) -> None:
    said = told("trace", "C-1").out
    assert re.match(
        rf"C-1 in store {STORE}: 9\.50 accepted since \S+ \S+Z, because it was put right: at \S+ \S+Z the label server "
        r"had 7\.77; it should say 9\.50; before: 7\.77; known to be accepted\n",
        said,
    )
    assert "drift: at" in said and "run night-1" in said
    assert "ours → found: pp '9.50' → '7.77'" in said


def test_a_time_that_is_past(told: Run) -> None:
    entries = told("trace", "C-1", "--json").json["stories"][0]["entries"]
    at = datetime.fromisoformat([entry for entry in entries if entry["kind"] == "accepted"][-1]["at"])
    said = told("trace", "C-1", "--at", at.isoformat()).out
    assert said.startswith(f"C-1 in store {STORE} at {at:%Y-%m-%d %H:%M:%S}Z: 8.90 accepted since")
    long_ago = told("trace", "C-1", "--at", "2020-01-01 17:42").out
    assert long_ago.startswith(f"C-1 in store {STORE} at 2020-01-01 17:42:00Z: nothing\n")
    assert "accepted" not in long_ago


def test_since_and_limit(told: Run) -> None:
    limited = told("trace", "C-1", "--limit", "1")
    assert limited.out.count("accepted: 9.50 accepted") == 1 and "there may be more" in limited.out
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert told("trace", "C-1", "--since", later, "--json").json["stories"][0]["entries"] == []
    assert len(told("trace", "C-1", "--since", "1h", "--json").json["stories"][0]["entries"]) == 5


def test_a_file_for_disputes(told: Run, tmp_path: Path) -> None:
    path = tmp_path / "label.csv"
    assert told("trace", "C-1", "--csv", str(path)).out == f"5 rows in {path}\n"
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["price_before"], row["price"], row["cause"]) for row in rows] == [
        ("policy", "", "", "policy"),
        ("accepted", "", "8.90", "new version"),
        ("accepted", "8.90", "9.50", "new version"),
        ("drift", "9.50", "7.77", "different"),
        ("accepted", "7.77", "9.50", "drift"),
    ]
    assert rows[2]["webhook_id"] and rows[2]["received_at"] < rows[2]["sent_at"] < rows[2]["accepted_at"]


@pytest.mark.long
def test_forward_from_webhook_run_and_push(told: Run) -> None:
    entries = told("trace", "C-1", "--json").json["stories"][0]["entries"]
    newest = next(entry for entry in entries if entry["cause"] == "new version")
    said = told("trace", newest["webhook_id"]).out
    assert re.match(rf"webhook {newest['webhook_id']} \(products/update\) of \S+: received", said)
    assert f"C-1 in store {STORE}: 9.50 accepted, cause: new version" in said
    assert f"push {newest['push_id']}" in said
    said = told("trace", "a-run").out
    assert said.startswith("run a-run: 3 labels pushed\n") and said.count("C-1 in store") == 3
    assert told("trace", newest["push_id"]).out.startswith(f"push {newest['push_id']}: 1 labels pushed\n")
    said = told("trace", "night-1").out
    assert said.startswith("run night-1: 0 labels pushed, 1 found to differ at the label server\n")


@pytest.mark.long
def test_no_id_is_broken_at_80_columns(told: Run, buffer: Buffer) -> None:
    found = buffer.trace_find("a-run")
    story, (place,) = buffer.story(store=STORE, code="C-1"), buffer.trace("C-1")
    assert story is not None
    webhook_ids = {webhook.webhook_id for entry in story.entries for webhook in entry.webhooks}
    ids = webhook_ids | {entry.push_id for entry in story.entries if entry.push_id}
    assert len(ids) == 5
    said = StringIO()
    console = Console(file=said, width=80, force_terminal=True, color_system=None)
    print_story(console, story, place)
    print_pushes(console, "a-run", found)
    for webhook_id in webhook_ids:
        for webhook in buffer.trace_find(webhook_id)["webhooks"]:
            print_webhook(console, webhook)
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name in ids:
        assert any(name in line for line in lines), name


def test_times_that_people_give() -> None:
    assert time_given("2026-11-27 17:42", "--at") == datetime(2026, 11, 27, 17, 42, tzinfo=UTC)
    assert time_given("2026-11-27T17:42+01:00", "--at") == datetime(2026, 11, 27, 16, 42, tzinfo=UTC)
    assert time_given("2026-11-27 17:42Z", "--at") == datetime(2026, 11, 27, 17, 42, tzinfo=UTC)
    assert abs(datetime.now(UTC) - timedelta(days=7) - time_given("7d", "--since")) < timedelta(seconds=9)
    for text in ("yesterday", "", "9999-12-31 23:59-01:00", "0001-01-01T00:00+01:00", "99999999d"):
        with pytest.raises(
            CommandError, match=f'^--at {re.escape(text)} is no time: write for example "2026-11-28'
        ):
            time_given(text, "--at")
    assert (
        moment_named("90min", now=datetime(2026, 1, 1, tzinfo=UTC), ahead=True) == "2026-01-01T01:30:00+00:00"
    )
    with pytest.raises(ValueError, match="is no time"):  # no year that has one could be shown again
        moment_named("99999d", now=datetime(9999, 1, 1, tzinfo=UTC), ahead=True)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written: Is a directory"):
        write_csv(tmp_path, [])


@pytest.mark.parametrize(
    ("n", "says"), [(0.034, "0.03 s"), (12, "12 s"), (600, "10 min"), (9_000, "2.5 h"), (432_000, "5.0 d")]
)
def test_lengths_of_time(n: float, says: str) -> None:
    assert seconds(n) == says
