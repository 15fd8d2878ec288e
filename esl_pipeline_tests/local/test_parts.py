"""A part that ends is started again, and given up when it does not stay up."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from esl_pipeline.local import parts
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.parts import Part, Running, StackError

Start = Callable[[], Running]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a process that says its number and, while a file `fail` is there, ends with code 3."""
    script = 'echo here $$; if [ -e fail ]; then exit 3; fi; while [ ! -e "end" ]; do sleep 0.02; done; rm end; exit 4'

    def start() -> Running:
        return Leashed.start("part", ["/bin/sh", "-c", script], cwd=tmp_path, log=tmp_path / "log")

    return start


def kept_up(part: Part, said: list[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline, said
        part.keep_up(said.append)
        time.sleep(0.01)


def test_a_part_that_ends_is_started_again(start: Start, tmp_path: Path) -> None:
    part, said = Part("the part", start(), start, pause=0.05), list[str]()

    def starts() -> int:
        log = tmp_path / "log"
        return log.read_text().count("here") if log.exists() else 0

    kept_up(part, said, lambda: starts() == 1)
    part.check()
    assert said == []
    for number in (2, 3):
        (tmp_path / "end").touch()
        kept_up(part, said, lambda number=number: starts() == number)  # type: ignore[misc]
    part.stop()

    assert said == ["the part has ended (exit code 4): it is started again in 0 s"] * 2


def test_a_part_that_does_not_stay_up_is_given_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_ENDS", 3)
    (tmp_path / "fail").touch()
    part, said = Part("the part", start(), start, pause=0.05), list[str]()

    with pytest.raises(
        StackError, match=r"(?s)^the part has ended \(exit code 3\), for the 3th.*here [0-9]+$"
    ):
        kept_up(part, said, lambda: False)

    part.stop()
    assert len(said) == 2


def test_ends_are_in_a_row_only_when_it_did_not_stay_up_between(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_ENDS", 2)
    monkeypatch.setattr(parts, "STEADY_SECONDS", 0.0)
    (tmp_path / "fail").touch()
    part, said = Part("the part", start(), start, pause=0.02), list[str]()

    kept_up(part, said, lambda: len(said) == 4)

    part.stop()


def test_a_start_that_fails_is_an_end_too(start: Start, tmp_path: Path) -> None:
    tries = iter([OSError("no such program"), None])

    def sometimes() -> Running:
        if error := next(tries):
            raise error
        return start()

    (tmp_path / "end").touch()
    part, said = Part("the part", start(), sometimes, pause=0.05), list[str]()
    kept_up(part, said, lambda: len(said) == 2 and next(tries, "none") == "none")
    part.stop()

    assert said[1] == "the part could not be started: it is started again in 0 s"
