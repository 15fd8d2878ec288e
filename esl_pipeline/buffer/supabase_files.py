"""Keeps supabase/migrations current: `python -m esl_pipeline.buffer.supabase_files [folder]`, or `make supabase`.

Supabase runs each file once, in the order of their times, and refuses to push when a file that it has run is no longer
there. So each build of the buffer is a file of its own, and holds all that leads to it from any older one: only the
newest is ever needed. Those before it keep their names and lose what was in them, so that the folder holds the buffer
once and not once a build.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from esl_pipeline.buffer.migrate import as_one_file, functions_build

FOLDER = Path("supabase", "migrations")
_TIME = "%Y%m%d%H%M%S"
_FILE = re.compile(r"([0-9]{14})_esl_pipeline_build_([0-9]+)\.sql")
_EMPTIED = "-- esl_pipeline, build {}: a later file holds the whole buffer.\nselect 1;\n"


def update(folder: Path, now: datetime) -> list[str]:
    """Make the folder's last file of ours the buffer of this code, and say what was done; nothing if it is already.

    now: becomes the file's time, unless the folder has a later one: what is pushed comes after all that was.
    """
    wanted = as_one_file()
    if is_current(folder):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    done = list(_empty(folder))
    times = [found[1] for file in folder.iterdir() if (found := re.match("([0-9]{14})_", file.name))]
    after = [datetime.strptime(time, _TIME).replace(tzinfo=UTC) + timedelta(seconds=1) for time in times]
    file = folder / f"{max([now, *after]):{_TIME}}_esl_pipeline_build_{functions_build()}.sql"
    file.write_text(wanted, encoding="utf-8")
    return [*done, f"{file.name}: the whole buffer"]


def is_current(folder: Path) -> bool:
    """Whether the last file of ours is the buffer of this code, and those before it are emptied."""
    texts = [file.read_text(encoding="utf-8") for file in _files(folder)]
    emptied = [_EMPTIED.format(_build(file)) for file in _files(folder)]
    return bool(texts) and texts[-1] == as_one_file() and texts[:-1] == emptied[:-1]


def _empty(folder: Path) -> Iterator[str]:
    for file in _files(folder):
        text = _EMPTIED.format(_build(file))
        if not _may_have_been_pushed(file):
            file.unlink()
            yield f"{file.name}: removed, it was never committed"
        elif file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            yield f"{file.name}: emptied"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.sql") if _FILE.fullmatch(file.name))


def _build(file: Path) -> str:
    return _FILE.sub(r"\2", file.name)


def _may_have_been_pushed(file: Path) -> bool:
    """Unless git says that it was never committed."""
    ask = ["git", "-C", str(file.parent)]
    try:
        if subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
            return True
        found = [*ask, "log", "--all", "-1", "--format=%h", "--", file.name]
        return bool(subprocess.run(found, capture_output=True, check=False).stdout)
    except FileNotFoundError:
        return True


if __name__ == "__main__":
    for line in update(Path(*sys.argv[1:]) if sys.argv[1:] else FOLDER, datetime.now(UTC)) or [
        "nothing to do"
    ]:
        print(line)
