"""The command run in this process, by itself or beside a sandbox label server."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from esl_pipeline.commands import cli, shared
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox


@dataclass
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; nothing that it says may be a traceback or hold a secret."""
    monkeypatch.setattr(shared.out, "width", 200)
    monkeypatch.setattr(shared.err, "width", 200)

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["esl-pipeline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert "a-secret-word" not in said.out + said.err
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs a command that must be refused; its sentence."""

    def refused(*arguments: str) -> str:
        done = run(*arguments)
        assert done.code == 1 and done.out == "", done
        sentence = done.err.strip()
        assert len(sentence.splitlines()) == 1, sentence
        return sentence

    return refused


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, buffer_dsn: str) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", buffer_dsn)


@pytest.fixture
def sandbox(configured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with running_sandbox() as found:
        monkeypatch.setenv("HIPOINK_API_BASE_URL", found.url)
        monkeypatch.setenv("HIPOINK_API_SECRET", SIGN)
        monkeypatch.setenv("HIPOINK_RATE_LIMIT_PER_SECOND", "1000")
        yield found
