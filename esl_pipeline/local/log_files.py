"""The parts' log files, kept small while the parts keep them open."""

import os
import shutil
from pathlib import Path

MOST_BYTES = 5_000_000
OLDER = 3
"""How many full files of each part are kept beside the one that is written."""


def keep_small(folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """Rotate the *.log files of a folder that have grown too large: x.log into x.log.1, and so on."""
    for log in folder.glob("*.log"):
        if not log.is_symlink() and log.stat().st_size > most_bytes:
            rotate(log)


def rotate(log: Path) -> None:
    """Move what a log file holds to x.log.1, that one to x.log.2, the last one away.

    The file itself stays, because its writers have it open (to append, so that they go on at its new end): it is copied
    and emptied. A line that comes between the two is lost; all that counts is in the buffer's audit, not here. The
    folder may be another user's, so no link is followed.
    """
    for age in range(OLDER, 1, -1):
        younger = log.with_name(f"{log.name}.{age - 1}")
        if younger.exists():
            younger.replace(log.with_name(f"{log.name}.{age}"))
    newest = log.with_name(f"{log.name}.1")
    newest.unlink(missing_ok=True)
    with (
        os.fdopen(os.open(log, os.O_RDWR | os.O_NOFOLLOW), "r+b") as full,
        os.fdopen(os.open(newest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as copy,
    ):
        shutil.copyfileobj(full, copy)
        full.truncate(0)
