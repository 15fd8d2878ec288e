"""Logs stay small while their writers keep them open."""

import sys
from pathlib import Path

import pytest

from esl_pipeline.local.log_files import OLDER, keep_small, rotate


def test_a_writer_goes_on_in_the_same_file(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(10):
            writer.write(f"line {number}\n".encode() * 100)
            keep_small(tmp_path, most_bytes=1_500)
    files = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(files) == {"part.log", *(f"part.log.{age}" for age in range(1, OLDER + 1))}
    newest_first = [files["part.log"], *(files[f"part.log.{age}"] for age in range(1, OLDER + 1))]
    held = [text.splitlines()[-1] for text in newest_first if text]
    assert held == sorted(held, reverse=True) and held[0] == "line 9"
    assert all(len(text) <= 3_000 and "\0" not in text for text in files.values())


def test_nothing_is_lost_and_what_is_small_stays(tmp_path: Path) -> None:
    (tmp_path / "small.log").write_text("x")
    (tmp_path / "large.log").write_text("y" * 100)
    keep_small(tmp_path, most_bytes=10)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "small.log": "x", "large.log": "", "large.log.1": "y" * 100,
    }  # fmt: skip
    assert (tmp_path / "large.log.1").stat().st_mode & 0o077 == 0


def test_no_link_is_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("z" * 100)
    (tmp_path / "part.log").symlink_to(other)
    keep_small(tmp_path, most_bytes=10)
    assert other.read_text() == "z" * 100
    with pytest.raises(OSError, match="symbolic links"):
        rotate(tmp_path / "part.log")
    log = tmp_path / "real.log"
    log.write_text("w" * 100)
    (tmp_path / "real.log.1").symlink_to(other)
    keep_small(tmp_path, most_bytes=10)
    assert (other.read_text(), (tmp_path / "real.log.1").read_text()) == ("z" * 100, "w" * 100)


@pytest.mark.long
def test_a_process_on_a_leash_appends_after_a_rotation(tmp_path: Path) -> None:
    """The leash opens the log to append: nothing else would do."""
    from esl_pipeline.local.leash import Leashed

    script = "import os, time\nfor n in range(200): os.write(2, b'%06d\\n' % n * 100); time.sleep(0.005)"
    log = tmp_path / "part.log"
    part = Leashed.start("part", [sys.executable, "-c", script], log=log)
    try:
        while part.poll() is None:
            keep_small(tmp_path, most_bytes=20_000)
    finally:
        part.stop()
    files = list(tmp_path.iterdir())
    assert len(files) == 1 + OLDER
    assert sum(file.stat().st_size for file in files) < (1 + OLDER) * 60_000
    assert all(b"\0" not in file.read_bytes() for file in files)
    assert (log.read_bytes() + (tmp_path / "part.log.1").read_bytes()).count(b"000199") == 100
