"""Whatever is typed or set wrongly is one sentence that says what was meant, and exit code 1."""

import fcntl
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands.shared import settings_here
from esl_pipeline.environment import SettingsError
from esl_pipeline.local.one_up import OneUp
from esl_pipeline.local.parts import StackError
from esl_pipeline.local.variables import RUNNING
from esl_pipeline.orchestration.crons import check
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.orchestration.world import SHOP, STORE, map_shop


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nonsense",), "No such command 'nonsense': see"),
        (
            ("findings", "--limit", "0"),
            "Invalid value for '--limit': Input should be greater than or equal to 1: see",
        ),
        (("findings", "--levle", "error"), "No such option: --levle (Possible options: "),
        (("queue", "--state", "windy"), "Invalid value for '--state': 'windy' is not one of 'failed', "),
        (("demo", "--source", "magento"), "Invalid value for --source: write shopify or "),
    ],
)
def test_wrong_words_are_one_sentence(
    refused: Callable[..., str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert refused(*arguments).startswith(sentence)


def test_a_group_without_a_command_shows_its_help(run: Run) -> None:
    done = run("stores")
    assert done.code == 1 and "Usage: " in done.out and done.err == ""
    assert run("--help").code == run("stores", "--help").code == 0


def test_the_version(run: Run) -> None:
    assert re.fullmatch(r"esl-pipeline \d+\.\S+, buffer version \d+, build \d+\n", run("--version").out)


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ("guard_label=3", "settings.guard_label: is no setting of a policy: did you mean guard_labels?"),
        (
            "raise_window.open=07:00",
            "settings.raise_window.open: is no setting of a policy: did you mean opens?",
        ),
        ("colour=red", "settings.colour: is no setting of a policy, see `esl-pipeline stores policy`"),
    ],
)
def test_policy_names_that_were_meant(run: Run, configured: None, change: str, meant: str) -> None:
    assert meant in run("stores", "add", SHOP, STORE, "--policy", change).err


def test_listed_settings_are_what_settings_takes(run: Run, configured: None, buffer: Buffer) -> None:
    policy = {"fields": {"f1": "L'Oréal {vendor}"}, "expected_currency": "EUR"}
    map_shop(buffer, settings=policy)
    wanted = buffer.mapping_list()[0]["settings"]
    (line,) = [line for line in run("stores", "list").out.splitlines() if "--settings" in line]
    store, *arguments = shlex.split(line)
    run("stores", "set", store, "--settings", "{}")
    assert buffer.mapping_list()[0]["settings"] == {}
    assert run("stores", "set", store, *arguments).code == 0
    assert buffer.mapping_list()[0]["settings"] == wanted


def test_a_mapping_is_named_by_its_store_or_shop(
    run: Run, refused: Callable[..., str], configured: None, buffer: Buffer
) -> None:
    map_shop(buffer)
    map_shop(buffer, store="S2")
    assert run("stores", "set", "S2", "--inactive", "--json").json[0]["hipoink_store_code"] == "S2"
    said = refused("stores", "set", SHOP, "--inactive")
    assert said.startswith(f"{SHOP} is meant by several mappings, say which: ") and f"{SHOP} → S2" in said


@pytest.mark.long
def test_a_time_that_dagster_refuses(run: Run, configured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_NIGHTLY_CRON", "99 2 * * *")
    monkeypatch.setenv("ESL_HOUSEKEEPING_CRON", "0 3 * * MON")
    done = run("doctor", "--json")
    wrong = [found["says"] for found in done.json if found["what"] == "schedules"]
    (sentence,) = wrong
    assert done.code == 1 and sentence.startswith(
        "ESL_NIGHTLY_CRON: Dagster cannot run a schedule at 99 2 * * *; write"
    )
    with pytest.raises(SettingsError, match="ESL_NIGHTLY_CRON") as refused:
        check(settings_here().crons, "UTC")
    assert refused.value.problems == wrong


def test_a_second_up_is_told_where_the_first_one_is(tmp_path: Path) -> None:
    first, second = OneUp(tmp_path), OneUp(tmp_path)
    first.take()
    with pytest.raises(StackError, match="it is starting"):
        second.take()
    first.tell({"ui": "http://127.0.0.1:3000", "labels": None})
    with pytest.raises(
        StackError, match=r"runs already on .*: Dagster UI http://127\.0\.0\.1:3000\. For a second"
    ):
        second.take()
    first.give_back()
    second.take()
    second.give_back()


def test_a_dead_up_is_named_as_such(run: Run, refused: Callable[..., str], buffer_dsn: str) -> None:
    home = Path(".esl")
    home.mkdir()
    (home / RUNNING).write_text(f"export ESL_DATABASE_URL={buffer_dsn}\n")
    (home / "up.lock").write_text(json.dumps({"pid": 1, "urls": {}}))
    for command in (("status",), ("doctor",)):
        assert re.match(r"esl-pipeline up, which ran on .*, has ended without a word", refused(*command))
    with (home / "up.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run("stores", "list").code == 0


def test_doctor_beside_a_running_up_finds_its_settings(
    run: Run, configured: None, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment names the same buffer; never those of an `up` with another one."""
    home = Path(".esl")
    home.mkdir()
    told = f"export ESL_DATABASE_URL={buffer_dsn}\nexport APP_BASE_URL=http://127.0.0.1:9\n"
    (home / RUNNING).write_text(told)
    assert settings_here().app_base_url == "http://127.0.0.1:9"
    monkeypatch.setenv("APP_BASE_URL", "https://hooks.example.com")
    assert settings_here().app_base_url == "https://hooks.example.com"
    monkeypatch.delenv("APP_BASE_URL")
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn + "2")
    assert settings_here().app_base_url is None


def test_an_unreadable_home(refused: Callable[..., str]) -> None:
    (Path(".esl") / RUNNING).mkdir(parents=True)
    with pytest.raises(
        SettingsError, match=r"ESL_HOME: \.esl cannot be used \(Is a directory\): make it a folder"
    ):
        settings_here()


def test_a_home_of_somebody_else_is_not_needed_where_all_is_set(run: Run, configured: None) -> None:
    (Path(".esl") / RUNNING).mkdir(parents=True)
    assert run("stores", "list").code == 0
