"""The log: one line an event, the same for all, with what it is about and without what is secret."""

import ast
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import httpx
import pytest
import structlog

import esl_pipeline
from esl_pipeline import logs

LOG = logging.getLogger("esl_pipeline.somewhere")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    said = capsys.readouterr()
    assert said.out == ""
    return [json.loads(line) for line in said.err.splitlines()]


def test_in_production_a_line_is_json_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO")
    LOG.info("pushed %d", 3, extra={"store": "S1", "code": "C-1", "webhook_id": "w", "other": "not told"})
    structlog.get_logger("esl_pipeline.other").warning("in structlog's way", shop="s")
    ours, other = lines(capsys)
    assert str(ours.pop("timestamp")).endswith("Z")
    assert ours == {
        "event": "pushed 3", "level": "info", "logger": "esl_pipeline.somewhere", "store": "S1", "code": "C-1",
        "webhook_id": "w",
    }  # fmt: skip
    assert (other["event"], other["level"], other["shop"]) == ("in structlog's way", "warning", "s")


def test_elsewhere_a_line_is_to_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("development", "INFO")
    LOG.warning("a title\nover two lines \x1b[31m", extra={"code": "C-1\n"})
    (line,) = capsys.readouterr().err.splitlines()
    assert "[warning" in line and "a title over two lines" in line and "\x1b" not in line
    assert "C-1" in line and "esl_pipeline.somewhere" in line


def test_threads_of_a_run_name_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO")
    with logs.process_about(run_id="r-1"), logs.about(shop="s"):
        LOG.info("here")
        thread = threading.Thread(target=LOG.info, args=["there"])
        thread.start()
        thread.join()
    LOG.info("after")
    here, there, after = lines(capsys)
    assert (here["run_id"], here["shop"]) == ("r-1", "s")
    assert (there["run_id"], there.get("shop")) == ("r-1", None)
    assert "run_id" not in after


@pytest.mark.parametrize("environment", ["production", "development"])
def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str], environment: str) -> None:
    logs.configure(environment, "INFO")
    secret = "a-secret-word"  # noqa: F841 (a frame holds it)
    try:
        raise ValueError("wrong")
    except ValueError:
        LOG.exception("it failed")
    said = capsys.readouterr().err
    assert "ValueError: wrong" in said and "test_logs.py" in said
    assert "a-secret-word" not in "\n".join(line for line in said.splitlines() if "secret =" not in line)


def test_libraries_that_talk_much_are_heard_when_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO")
    logging.getLogger("httpx").info("HTTP Request: GET http://x/?sign=1")
    logging.getLogger("alembic.runtime.migration").info("Context impl")
    logging.getLogger("some.library").info("Started")
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as client:
        client.get("http://x/")
    logging.getLogger("httpx").warning("worse")
    assert [line["event"] for line in lines(capsys)] == ["Started", "worse"]
    logs.configure("production", "DEBUG")
    logging.getLogger("httpcore.http11").debug("send_request_headers authorization")
    logging.getLogger("hpack.hpack").debug("Encoding authorization")
    LOG.debug("ours")
    assert [line["event"] for line in lines(capsys)] == ["ours"]


def test_warnings_and_ends_are_events_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    threading.excepthook(threading.ExceptHookArgs((ValueError, ValueError("x"), None, None)))
    sys.excepthook(KeyError, KeyError("y"), None)
    warned, thread, end = lines(capsys)
    assert "old" in str(warned["event"]) and warned["logger"] == "py.warnings"
    assert (thread["level"], end["level"]) == ("error", "critical")
    assert "KeyError: 'y'" in str(end["exception"])


@pytest.mark.parametrize(
    ("variables", "level", "is_json"),
    [
        ({}, "INFO", False),
        ({"LOG_LEVEL": "error", "APP_ENVIRONMENT": "Production"}, "ERROR", True),
        ({"LOG_LEVEL": "loud", "APP_ENVIRONMENT": "somewhere"}, "INFO", False),
    ],
)
def test_a_process_without_settings_goes_by_two_variables(
    capsys: pytest.CaptureFixture[str], variables: dict[str, str], level: str, is_json: bool
) -> None:
    logs.configure_by_variables(variables)
    assert logging.getLogger().level == getattr(logging, level)
    LOG.critical("x")
    assert capsys.readouterr().err.startswith("{") is is_json


def test_a_command_says_what_matters_and_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO", for_people=True)
    hook = sys.excepthook
    LOG.info("not asked for")
    LOG.warning("but this")
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sys.excepthook is hook
    logs.configure("development", "DEBUG", for_people=True)
    LOG.debug("asked for")
    assert "asked for" in capsys.readouterr().err


def test_configured_twice_nothing_is_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("production", "INFO")
    logs.configure("production", "INFO")
    LOG.info("once")
    assert len(lines(capsys)) == 1


PACKAGE = Path(esl_pipeline.__file__).parent


@pytest.mark.long
def test_nobody_else_configures_logging() -> None:
    """basicConfig, handlers and log_config are this module's matter."""
    elsewhere = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") in {"basicConfig", "StreamHandler", "FileHandler", "dictConfig"}
    }
    assert elsewhere <= {"logs.py"}


@pytest.mark.long
@pytest.mark.parametrize("environment", ["production", "development"])
def test_a_dagster_run_logs_our_way(tmp_path: Path, environment: str) -> None:
    """As in a process of Dagster's: its logger, a run's own, and one of ours inside the run."""
    code = """
import logging, sys
sys.argv[0] = "/venv/bin/dagster"
import dagster as dg
from dagster._utils.log import configure_loggers
configure_loggers()
from esl_pipeline.orchestration import console
from esl_pipeline.settings import load_settings
console.configure(load_settings())
logging.getLogger("dagster.code_server").info("Started")
@dg.op
def work(context):
    context.log.info("from the op")
    logging.getLogger("esl_pipeline.x").warning("from ours")
@dg.op(ins={"after": dg.In(dg.Nothing)})
def fail():
    raise ValueError("the reason")
@dg.job
def some_job():
    fail(work())
some_job.execute_in_process(raise_on_error=False)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "APP_ENVIRONMENT": environment, "DAGSTER_HOME": "", "PYTHONWARNINGS": "ignore"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert done.stdout == "" and "\x1b" not in done.stderr
    if environment == "production":
        told = [json.loads(line) for line in said]
        assert [line["event"] for line in told[:3]] == ["Started", "from the op", "from ours"]
        assert told[1]["job"] == "some_job" and told[1]["step"] == "work" and len(told[1]["run_id"]) == 36
        assert any("the reason" in str(line.get("reason")) for line in told[3:])
    else:
        assert all(
            word in line for word, line in zip(("Started", "from the op", "from ours"), said[:3], strict=True)
        )
        assert any("the reason" in line for line in said[3:])
