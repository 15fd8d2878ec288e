"""Earlier releases, as trees of code beside this one."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST, FIRST_VERSION = "5e57979", 100
"""The first release's commit, and the version of its buffer's tables."""


def unpacked(commit: str, folder: Path) -> None:
    """Put the files of a commit there; skips the test where this clone has no such commit."""
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    if archive.returncode:
        pytest.skip(f"commit {commit} is not in this clone: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
