"""Where tests keep the data of their Postgres servers."""

import shutil
from pathlib import Path

_MEMORY = Path("/dev/shm")
_ROOM = 4 * 1024**3


def scratch() -> Path:
    """A folder in memory where the system has one with room, else /tmp.

    A database is some 600 small files: where files are slow to make, copying one from the template takes longer than
    most tests.
    """
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free > _ROOM else Path("/tmp")
    except OSError:
        return Path("/tmp")
