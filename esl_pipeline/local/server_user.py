"""Whom the embedded PostgreSQL runs as where we are root, and places which that user can reach."""

import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT_DIR = Path("/")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class PostgresUnavailable(Exception):  # noqa: N818 (reads as what is wrong)
    """The server cannot be had; the message says why and what to do."""


def server_user(data_dir: Path) -> pwd.struct_passwd | None:
    """The user to run as if we are root, else None for our own."""
    if os.geteuid() != 0:
        return None
    if (data_dir / "PG_VERSION").exists() and (owner := data_dir.stat().st_uid) != 0:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            raise PostgresUnavailable(
                f"{data_dir} belongs to user id {owner}, which this machine does not know: "
                "create that user, or give the directory to the user postgres (chown -R)."
            ) from None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresUnavailable(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody."
    )


def own(path: Path, user: pwd.struct_passwd | None) -> None:
    if user:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def run(
    argv: list[str],
    user: pwd.struct_passwd | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a short command, as the given user and with `given` to read. Raises OSError if the user may not run it."""
    return subprocess.run(
        argv,
        user=user and user.pw_uid,
        group=user and user.pw_gid,
        extra_groups=user and os.getgrouplist(user.pw_name, user.pw_gid),
        env=environment,
        cwd=ROOT_DIR,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def reachable(data_dir: Path, user: pwd.struct_passwd | None) -> Path:
    """Where the data really are or shall be (see the module's docstring)."""
    data = data_dir.resolve()
    if user is None or run(["test", "-x", str(data.parent)], user).returncode == 0:
        return data
    if data.exists() and any(data.iterdir()):
        raise PostgresUnavailable(
            f"{data} is below a directory that the server's user {user.pw_name} may not enter: "
            "move it to one that every user may enter."
        )
    home = Path(tempfile.mkdtemp(prefix=f"{data_dir.name}-", dir=service_home()))
    home.chmod(0o755)
    if data_dir.is_symlink():
        data_dir.unlink()
    elif data_dir.exists():
        data_dir.rmdir()
    data_dir.symlink_to(home / "data")
    return home / "data"


def service_home() -> Path:
    """A directory of root's that everybody can enter and nobody else can write."""
    for parent in (Path("/var/lib"), Path("/var/tmp")):  # noqa: S108 (its owner and mode are checked)
        home = parent / "esl-pipeline"
        try:
            home.mkdir(exist_ok=True)
        except OSError:
            continue
        found = home.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and os.access(home, os.W_OK):
            home.chmod(0o755)
            return home
    raise PostgresUnavailable(
        "The server's user may not enter the given directory, and neither /var/lib/esl-pipeline nor "
        "/var/tmp/esl-pipeline can be used instead: give one that every user may enter."
    )
