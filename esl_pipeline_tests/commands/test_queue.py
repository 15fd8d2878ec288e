"""What waits and why, on the screen, as JSON and as a file: `queue`, `inbox`, `status`, `findings`."""

import csv
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands import shared
from esl_pipeline.orchestration.checks import backlog, label_accuracy
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.commands.test_cli import drained, sql
from esl_pipeline_tests.hipoink.servers import Sandbox
from esl_pipeline_tests.orchestration.world import KEY, SHOP, STORE, arrive, map_shop, product

# A window that is closed now and opens in the next hours, in a time zone that has no other clock.
_OPENS = (datetime.now(UTC) + timedelta(hours=2)).replace(second=0, microsecond=0)
WINDOW = {"opens": f"{_OPENS:%H:%M}", "closes": f"{_OPENS + timedelta(hours=1):%H:%M}", "time_zone": "UTC"}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, run: Run) -> Callable[[int | None], None]:
    """Sets how wide the terminal is; None: a pipe."""

    def narrow(columns: int | None) -> None:
        monkeypatch.setattr(shared.out, "_width", None)
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(columns))

    return narrow


@pytest.fixture
def morning(sandbox: Sandbox, buffer: Buffer, buffer_dsn: str) -> None:
    """Eight labels hang; then one is refused, one waits for its window, six removals for approval, one is under way."""
    map_shop(buffer, settings={"raise_window": WINDOW})
    arrive(buffer, *(product(n, title=f"Käse {n}") for n in range(1, 9)))
    drained(buffer)
    sandbox.faults({"kind": "bad_codes", "codes": ["C-9"], "error_msg": "no [such] template =cmd()"})
    arrive(buffer, product(9, title="Brot, dunkel"), product(1, title="Käse 1", price="2.00"))
    drained(buffer)
    sql(
        buffer_dsn,
        "update esl.sync_queue set state = 'failed', next_attempt_at = now() + '1 day' where code = 'C-9'",
    )
    for number in range(2, 8):
        arrive(buffer, {"id": number}, topic="products/delete")
    drained(buffer)


@pytest.mark.long
def test_what_waits_is_told_with_its_reason(run: Run, morning: None) -> None:
    found = run("queue", "--json").json
    labels = {row["code"]: row for row in found["labels"]}
    assert {code: row["state"] for code, row in labels.items()} == {
        "C-9": "failed",
        "C-1": "window",
        **{f"C-{n}": "approval" for n in range(2, 8)},
    }
    refused, rise = labels["C-9"], labels["C-1"]
    assert "no [such] template" in refused["answer"]["answer"] and refused["attempts"] >= 1
    assert (rise["price_before"], rise["price_after"], rise["why"]) == ("1.50", "2.00", "window")
    assert datetime.fromisoformat(rise["until"]) == _OPENS
    assert {row["state"]: row["labels"] for row in found["counts"]} == {
        "approval": 6,
        "failed": 1,
        "window": 1,
    }

    said = run("queue").out
    assert f"1 waiting for the raise_window, which opens {_OPENS:%Y-%m-%d %H:%M:%SZ}" in said
    assert "no [such] template" in said and "esl-pipeline stores approve" in said
    assert re.search(r"C-1 +Käse 1 +1\.50 → 2\.00 ", said)
    assert re.search(r"C-9 +Brot, dunkel +new: 1\.50 ", said)
    assert re.search(r"C-3 +Käse 3 +1\.50 → gone ", said)


@pytest.mark.long
@pytest.mark.parametrize("state", ["failed", "window", "approval"])
def test_one_state_alone(run: Run, morning: None, state: str) -> None:
    found = run("queue", "--state", state, "--store", STORE, "--json").json
    assert {row["state"] for row in (*found["labels"], *found["counts"])} == {state}
    assert run("queue", "--state", "dead").out == (
        "no label is given up, but 6 waiting for approval, 1 refused, 1 waiting for the raise_window: esl-pipeline "
        "queue says why\n"
    )


def test_of_the_queue_a_file_has_all_and_no_formula(run: Run, morning: None, tmp_path: Path) -> None:
    file = tmp_path / "queue.csv"
    said = run("queue", "--limit", "1").out
    assert "7 more: --limit, or --csv FILE for all" in said
    assert run("queue", "--csv", str(file)).out.startswith("8 labels in ")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = {row["code"]: row for row in csv.DictReader(opened)}
    assert len(rows) == 8 and rows["C-1"]["old_price"] == "1.50" and rows["C-1"]["new_price"] == "2.00"
    assert not [value for row in rows.values() for value in row.values() if value.startswith(("=", "@"))]


def test_what_no_queue_has(run: Run, refused: Callable[..., str], configured: None) -> None:
    assert run("queue").out.startswith("nothing waits")
    assert run("inbox").out.startswith("nothing waits in the inbox")
    assert refused("inbox", "--shop", "nobody.myshopify.com").startswith("nothing is known of shop nobody")
    for command in ("queue", "inbox", "findings"):
        wanted = "no shop is mapped to store S404: see `esl-pipeline stores list`"
        assert refused(command, "--store", "S404") == wanted
    assert "window" in refused("queue", "--state", "windy")


@pytest.mark.long
def test_the_inbox_says_what_was_not_used_and_why(
    run: Run, sandbox: Sandbox, buffer: Buffer, buffer_dsn: str, tmp_path: Path
) -> None:
    map_shop(buffer)
    arrive(buffer, product(1, title="Käse"), product(2))
    drained(buffer)
    sql(
        buffer_dsn,
        "update esl.webhook_inbox set state = 'unusable', reason = 'a suspected replay' where id = 1",
    )
    arrive(buffer, product(3), shop="nobody.myshopify.com")
    waits, unusable = run("inbox", "--json").json
    assert (waits["state"], waits["says"]) == ("waiting", "no store is mapped for the shop")
    assert (unusable["says"], unusable["source_store_id"]) == ("a suspected replay", SHOP)
    said = run("inbox", "--state", "unusable").out
    assert f"{SHOP}, unusable products/update: a suspected replay" in said and unusable["webhook_id"] in said
    assert "nobody.myshopify.com" not in said
    assert [row["id"] for row in run("inbox", "--store", STORE, "--json").json] == [unusable["id"]]
    assert [row["id"] for row in run("inbox", "--shop", "nobody.myshopify.com", "--json").json] == [
        waits["id"]
    ]
    assert "there are more" in run("inbox", "--limit", "1").out
    assert run("inbox", "--csv", str(tmp_path / "inbox.csv")).out.startswith("2 deliveries in ")


def test_a_rise_that_waits_for_its_window_is_not_wrong(run: Run, morning: None, buffer: Buffer) -> None:
    (row,) = buffer.accuracy()
    assert row["window"]["labels"] == 1 and datetime.fromisoformat(row["window"]["until"]) == _OPENS
    said = label_accuracy([row]).description or ""
    # Six removals wait for a person and one label is refused: those are wrong. The rise is neither.
    assert f"{STORE}: 1 rise waits for the raise_window until {_OPENS:%Y-%m-%dT%H:%M}Z" in said
    assert re.search(r"1 of 8 labels are accepted as the source has them", said), said
    status = buffer.status()
    queue = status["stores"][0]["queue"]
    assert (queue["window"], queue["waiting"], queue["oldest"]) == (1, 0, None)
    assert "waits for" not in (
        backlog(status, KEY, servers=["default"], now=datetime.now(UTC)).description or ""
    )
    assert f"1 rise waits for the raise_window, which opens {_OPENS:%Y-%m-%d %H:%M:%SZ}" in run("status").out


def test_status_says_since_when_and_by_whom_a_store_rests(
    run: Run, sandbox: Sandbox, buffer: Buffer, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ana")
    off = map_shop(buffer)
    dry = map_shop(buffer, store="S2")
    run("stores", "set", off["id"], "--inactive")
    run("stores", "set", dry["id"], "--dry-run")
    map_shop(buffer, store="S3")
    sql(buffer_dsn, "insert into esl.store_health (store_code, refused_at, until, reason) values "
        "('S3', '2026-01-02 03:04Z', '2999-01-01Z', 'wrong sign')")  # fmt: skip
    said = run("status").out
    at = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
    assert re.search(
        rf"store {STORE}: inactive, nothing is pushed since {at}, set by cli:ana: .* {STORE} --active", said
    )
    assert re.search(rf"store S2: dry run, nothing is pushed since {at}, set by cli:ana: ", said)
    assert "whole store: since 2026-01-02 03:04:00Z, until 2999-01-01 00:00:00Z: wrong sign" in said


def test_status_says_how_much_room_all_takes(run: Run, configured: None) -> None:
    Path(".esl/postgres").mkdir(parents=True)
    Path(".esl/postgres/data").write_bytes(b"x" * 3_000_000)
    sizes = run("status", "--json").json["sizes"]
    assert sizes["database_bytes"] > 1_000_000 and "sync_log" in {table["name"] for table in sizes["tables"]}
    assert {folder["name"]: folder["bytes"] for folder in sizes["folders"]}["postgres"] >= 3_000_000
    said = run("status", "--sizes").out
    assert re.search(r"\.esl/postgres +3\.\d MB", said) and re.search(r"esl\.sync_log ", said)


def test_a_warning_that_a_whole_store_shares_is_one_line(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    codes = ("2000000000015", "2000000000022", "2000000000039", "2000000000046", "2000000000053")
    arrive(buffer, *(product(n, codes=[code]) for n, code in enumerate(codes, 1)), product(9, price=None))
    drained(buffer)
    said = run("findings").out
    assert "the variant has no price" in said
    assert len(re.findall("restricted_code", said)) == 1
    assert f"store {STORE}: 5 of 6 variants have the warning restricted_code: " in said
    assert len(run("findings", "--json").json) == 6
    assert len(run("findings", "--level", "error", "--json").json) == 1
    assert "2000000000039" in run("findings", "--check", "restricted_code").out
    assert {row["check_name"] for row in run("findings", "--check", "restricted_code", "--json").json} == {
        "restricted_code"
    }


def test_a_check_that_there_is_not(refused: Callable[..., str], configured: None) -> None:
    assert refused("findings", "--check", "price_mising") == (
        "no check is called price_mising: did you mean price_missing?"
    )


WIDTHS = [80, 120, None]


@pytest.mark.long
@pytest.mark.parametrize("columns", WIDTHS)
def test_no_id_is_broken_however_narrow_the_terminal(
    run: Run,
    morning: None,
    buffer: Buffer,
    buffer_dsn: str,
    narrow: Callable[[int | None], None],
    columns: int | None,
) -> None:
    mapping: dict[str, Any] = buffer.mapping_list()[0]
    delivery = "a-rather-long-delivery-id-of-more-than-40-characters"
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute(
            "update esl.webhook_inbox set webhook_id = %s, state = 'dead' where id = 1", [delivery]
        )
    narrow(columns)
    said = {
        " ".join(a): run(*a).out for a in (("queue",), ("inbox",), ("stores", "list"), ("stores", "history"))
    }
    assert delivery in said["inbox"]
    for command in ("stores list", "stores history"):
        assert mapping["id"] in said[command] and SHOP in said[command]
    if columns == 120:
        assert max(map(len, said["queue"].splitlines())) <= 120 or "template" in said["queue"]
    for text in said.values():
        print(text)


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        (None, "2026-01-05 12:00Z", None),
        (("07:00", "09:00", "UTC"), "2026-01-05 08:00Z", None),
        (("07:00", "09:00", "UTC"), "2026-01-05 06:59Z", "2026-01-05T07:00:00+00:00"),
        (("07:00", "09:00", "UTC"), "2026-01-05 09:00Z", "2026-01-06T07:00:00+00:00"),
        (("22:00", "04:00", "UTC"), "2026-01-05 04:00Z", "2026-01-05T22:00:00+00:00"),
        (("07:00", "09:00", "Europe/Berlin"), "2026-01-05 09:30Z", "2026-01-06T06:00:00+00:00"),
        (("07:00", "09:00", "Europe/Berlin"), "2026-03-28 09:30Z", "2026-03-29T05:00:00+00:00"),
        (("07:00", "07:00", "UTC"), "2026-01-05 09:30Z", "infinity"),
        (("nonsense", "07:00", "UTC"), "2026-01-05 09:30Z", None),
    ],
)
def test_when_a_window_opens(
    buffer_dsn: str, window: tuple[str, str, str] | None, now: str, opens: str | None
) -> None:
    named = Jsonb(dict(zip(("opens", "closes", "time_zone"), window, strict=True)) if window else None)
    with psycopg.connect(buffer_dsn, options="-c TimeZone=UTC") as connection:
        asked = "select to_jsonb(esl.window_opens(%s, %s::timestamptz))"
        assert connection.execute(asked, [named, now]).fetchone() == (opens,)


@pytest.mark.long
def test_the_night_as_a_shop_manager_reads_it(
    run: Run,
    morning: None,
    sandbox: Sandbox,
    buffer: Buffer,
    buffer_dsn: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where it is about three in the morning, whenever this runs: (Etc/GMT-5 is five hours ahead.)
    behind = (datetime.now(UTC).hour - 3 + 12) % 24 - 12
    monkeypatch.setenv("ESL_NIGHTLY_TIME_ZONE", f"Etc/GMT{behind:+d}")
    arrive(buffer, product(10, title="<b>Tee</b>", price=None), product(8, title="Käse 8", price="1.00"))
    drained(buffer)
    # Somebody changes a label behind our back, and the night finds that.
    sandbox.http.put(
        f"/sandbox/labels/{STORE}/C-8", json={"pc": "C-8", "pn": "x", "pp": "7.77"}
    ).raise_for_status()
    run("reconcile", "--shop", SHOP)
    drained(buffer)
    found = run("report", "--json").json
    (store,) = found["stores"]
    done = {line["code"]: (line["what"], line["was"], line["should_be"]) for line in store["done"]}
    assert done["C-8"] == ("repaired", "7.77", "1.00") and done["C-2"] == ("new", None, "1.50")
    assert {line["what"] for line in store["waiting"]} == {"refused", "for the raise_window", "for approval"}
    assert [(line["title"], line["why"]) for line in store["held"]] == [
        ("<b>Tee</b>", "the variant has no price")
    ]
    said = run("report", "--limit", "1").out
    assert f"store {STORE} ({SHOP}): 8 labels, 8 of them changed (1 repaired, 7 new)" in said
    assert re.search(r"C-8 +Käse 8 +repaired +7\.77 +1\.00 +\d{4}-", said) and "7 more: --limit" in said
    assert (
        "no [such] template" in run("report").out and "compared with the label server's own list at " in said
    )

    page, sheet = tmp_path / "night.html", tmp_path / "night.csv"
    assert run("report", "--html", str(page), "--csv", str(sheet)).code == 0
    html = page.read_text()
    assert (
        "&lt;b&gt;Tee&lt;/b&gt;" in html and "<b>Tee" not in html and "http" not in html.replace("HTTP", "")
    )
    with sheet.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {row["part"] for row in rows} == {"done", "not done yet", "held back"} and len(rows) == 17
    assert run("report", "--night", "2020-01-01", "--store", STORE).code == 0


def test_nights_that_there_are_not(refused: Callable[..., str], configured: None) -> None:
    assert refused("report", "--night", "2999-01-01") == "the night of 2999-01-01 has not begun yet"
    assert refused("report", "--store", "S404").startswith("no shop is mapped to store S404")
    assert "--night" in refused("report", "--night", "yesterday")


def test_a_paused_store_is_late_nowhere(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    drained(buffer)
    buffer.store_pause(store=STORE, reason="stock-taking", by="Ada")
    arrive(buffer, product(1, price="2.00"))
    drained(buffer)
    later = datetime.now(UTC) + timedelta(hours=1)
    check = backlog(buffer.status(), KEY, servers=["default"], now=later)
    assert check.passed and check.description == "1 labels of S1 wait: paused by Ada, stock-taking"
    assert buffer.numbers(seconds=0).rows["paused"] == [STORE]
    buffer.store_resume(store=STORE, by="Ada")
    assert not backlog(buffer.status(), KEY, servers=["default"], now=later).passed
