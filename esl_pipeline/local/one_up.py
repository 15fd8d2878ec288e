"""One `esl-pipeline up` on an ESL_HOME at a time: a lock that ends with its process, and where its pages are."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from esl_pipeline.environment import SettingsError
from esl_pipeline.local.parts import StackError

_LOCK = "up.lock"


class OneUp:
    """The claim of this process to an ESL_HOME."""

    def __init__(self, home: Path) -> None:
        self._file = home / _LOCK
        self._held: TextIO | None = None

    def take(self) -> None:
        """Raise StackError when another one has it: which process that is, and its pages."""
        try:
            held = self._file.open("a+")
        except OSError as error:
            raise SettingsError([unusable_home(self._file.parent, error)]) from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            raise StackError(_runs_already(self._file)) from None
        self._held = held
        self.tell({})

    def tell(self, urls: Mapping[str, str | None]) -> None:
        """Write down who this is, and where its pages are."""
        if self._held is not None:
            self._held.seek(0)
            self._held.truncate()
            json.dump({"pid": os.getpid(), "urls": {n: url for n, url in urls.items() if url}}, self._held)
            self._held.flush()

    def give_back(self) -> None:
        """Let others have it; the file stays."""
        if self._held is not None:
            self._held.close()
            self._held = None


def is_dead(home: Path) -> bool:
    """Whether an `up` has run on this home and ended: its lock file is there, and nobody holds it."""
    try:
        with (home / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # made by hand, or by an older version
        return False
    except OSError:
        return False
    return True


def unusable_home(home: Path, error: OSError) -> str:
    """What to say when ESL_HOME cannot be read or written."""
    return (
        f"ESL_HOME: {home} cannot be used ({error.strerror}): make it a folder that this user may read and write, or "
        "name another one"
    )


def _runs_already(file: Path) -> str:
    told: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        told = json.loads(file.read_text())
    pages = {"ui": "Dagster UI", "labels": "labels", "shop": "shop", "receiver": "receiver"}
    where = "; ".join(
        f"{says} {told['urls'][name]}" for name, says in pages.items() if told.get("urls", {}).get(name)
    )
    return (
        f"esl-pipeline up runs already on {file.parent} (process {told.get('pid', 'unknown')}): "
        f"{where or 'it is starting'}. For a second one set ESL_HOME to another folder, and choose other ports"
    )
