"""A stock Postgres as Debian packages it (JIT compiled in and on, a cluster's defaults), and pgbouncer before it.

Both run as users of their own, on a Unix socket and loopback, in folders that go at the end; where a program is not
installed, the test that asks for it is skipped with the reason.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.scratch import scratch
from esl_pipeline_tests.waiting import eventually

Pooling = Literal["session", "transaction"]

# As the package's pgbouncer.ini has it but for where it listens and for how one logs in; above all it accepts no start
# parameters that it does not keep track of.
_INI = """
[databases]
* = host={socket} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pooling}
"""


def stock_bindir() -> Path | None:
    """Where the newest system Postgres of the versions 15 to 17 keeps its programs."""
    found = [
        folder for version in (17, 16, 15) if (folder := Path(f"/usr/lib/postgresql/{version}/bin")).is_dir()
    ]
    return found[0] if found else None


@contextmanager
def stock_postgres() -> Iterator[EmbeddedPostgres]:
    """The system's Postgres with the settings that its package gives a cluster, JIT among them; skips without."""
    bindir = stock_bindir()
    if bindir is None:
        pytest.skip("no stock Postgres here: apt-get install postgresql")
    before = os.environ.get("ESL_PG_BINDIR")
    os.environ["ESL_PG_BINDIR"] = str(bindir)
    try:
        starting = EmbeddedPostgres.temporary(under=scratch())
        server = starting.__enter__()
    finally:
        if before is None:
            del os.environ["ESL_PG_BINDIR"]
        else:
            os.environ["ESL_PG_BINDIR"] = before
    try:
        with psycopg.connect(server.dsn()) as connection:
            (jit,) = connection.execute(
                "select current_setting('jit')::bool and pg_jit_available()"
            ).fetchone()  # type: ignore[misc]
        if not jit:
            pytest.skip(f"the Postgres in {bindir} has no JIT: install its package of LLVM")
        yield server
    finally:
        starting.__exit__(None, None, None)


@contextmanager
def pgbouncer(server: EmbeddedPostgres, pooling: Pooling, folder: Path) -> Iterator[int]:
    """A pgbouncer with its defaults before a server; the port of loopback where it listens."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        pytest.skip("no pgbouncer here: apt-get install pgbouncer")
    socket, port = Path(str(conninfo_to_dict(server.dsn())["host"])), free_port()
    ini = folder / f"{pooling}.ini"
    ini.write_text(_INI.format(socket=socket, port=port, pooling=pooling))
    ini.chmod(0o644)
    user = socket.stat().st_uid if os.geteuid() == 0 else None  # it does not run as root either
    running = Leashed.start(
        "pgbouncer", [program, str(ini)], cwd=Path("/"), log=folder / f"{pooling}.log", user=user
    )

    def answers() -> bool:
        assert running.poll() is None, running.log_tail(20)
        try:
            psycopg.connect(through(port, server.dsn())).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        eventually(answers, 20, "pgbouncer")
        yield port
    finally:
        running.stop()


def through(port: int, dsn: str) -> str:
    """The same database, by way of a pooler."""
    return f"postgresql://postgres@127.0.0.1:{port}/{conninfo_to_dict(dsn)['dbname']}"
