"""Earlier releases, as trees of code beside this one."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST = "5e57979"
"""The first release's commit."""
BEFORE, BEFORE_VERSION = "86749de", 116
"""The release before this one, and the version of its buffer's tables."""


class MissingReleaseError(Exception):
    """This clone does not have it; the message says why."""


def unpacked(commit: str, folder: Path) -> None:
    """Put the files of a commit there. Raises MissingReleaseError."""
    try:
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, capture_output=True, timeout=60, check=False
        )
    except OSError as error:
        raise MissingReleaseError(f"no git, which has the older release {commit}: {error}") from None
    if archive.returncode:
        reason = archive.stderr.decode(errors="replace").strip()
        raise MissingReleaseError(f"git does not have the older release {commit}: {reason}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
