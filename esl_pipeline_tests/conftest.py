"""What all tests share: a real Postgres per session, a database per test cloned from a migrated template."""

import itertools
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.gateway import create_supabase_roles
from esl_pipeline_tests.logging_state import logging_as_before
from esl_pipeline_tests.scratch import scratch
from esl_pipeline_tests.shared_data import SHARED
from esl_pipeline_tests.stock import Pooling, pgbouncer, stock_postgres
from esl_pipeline_tests.watched import WatchedBuffer

# In a fresh clone hypothesis builds its tables of characters first: seconds, which it takes for a slow strategy.
hypothesis.settings.register_profile("any machine", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

_numbers = itertools.count(1)

# A shell starts background jobs with SIGINT ignored, and children inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose shared data is not here."""
    for mark in item.iter_markers("shared_data"):
        for name in mark.args:
            if not (SHARED / name).exists():
                pytest.skip(f"the shared test data is not here: {name}")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests see no variable and no .env of the person who runs them."""
    from esl_pipeline.settings import every_field

    for name in every_field():
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_as_before():
        yield


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter (as root, pytest's own are not), by a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="esl-test-", dir="/tmp") as name:
        found = Path(name)
        found.chmod(0o755)
        yield found


@pytest.fixture(scope="session")
def start_postgres() -> Iterator[Callable[[int], EmbeddedPostgres]]:
    """Servers by major version, started when first asked for, with Supabase's roles and a migrated template."""
    servers: dict[int, EmbeddedPostgres] = {}
    running = ExitStack()

    def start(version: int) -> EmbeddedPostgres:
        if version not in servers:
            server = running.enter_context(EmbeddedPostgres.temporary(version=version, under=scratch()))
            servers[version] = server
            _make_template(server)
        return servers[version]

    with running:
        yield start


def _make_template(server: EmbeddedPostgres) -> None:
    create_supabase_roles(server.dsn())
    server.create_database("migrated")
    create_supabase_roles(server.dsn("migrated"))
    migrate(server.dsn("migrated"))


@pytest.fixture(scope="session")
def stock() -> Iterator[EmbeddedPostgres]:
    """The system's own Postgres, JIT and all, with the same template; without one the test is skipped."""
    with stock_postgres() as server:
        _make_template(server)
        yield server


@pytest.fixture(scope="session")
def pooler(stock: EmbeddedPostgres) -> Iterator[Callable[[Pooling], int]]:
    """pgbouncer before that server: its port by the mode, started when first asked for."""
    ports: dict[Pooling, int] = {}
    with tempfile.TemporaryDirectory(prefix="esl-pgbouncer-", dir="/tmp") as name, ExitStack() as running:
        Path(name).chmod(0o777)

        def start(pooling: Pooling) -> int:
            if pooling not in ports:
                ports[pooling] = running.enter_context(pgbouncer(stock, pooling, Path(name)))
            return ports[pooling]

        yield start


@pytest.fixture(scope="session")
def postgres(start_postgres: Callable[[int], EmbeddedPostgres]) -> EmbeddedPostgres:
    """A server of the newest version at hand."""
    return start_postgres(18)


@contextmanager
def _database(server: EmbeddedPostgres, template: str | None = None) -> Iterator[str]:
    """A database for one test. Gone with it: of a thousand that stay, each of 10 MB, the disk would be what is slow."""
    name = f"test{next(_numbers)}"
    server.create_database(name, template=template)
    yield server.dsn(name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh database without our tables, as administrator."""
    with _database(postgres) as dsn:
        create_supabase_roles(dsn)
        yield dsn


@pytest.fixture
def buffer_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The address of a fresh, migrated buffer."""
    with _database(postgres, template="migrated") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def module_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The same for a module's own parts. (A worker may begin one twice.)"""
    with _database(postgres, template="migrated") as dsn:
        yield dsn


@pytest.fixture
def buffer(buffer_dsn: str) -> Iterator[Buffer]:
    """A fresh buffer over psycopg."""
    found = Buffer(PsycopgTransport(SecretStr(buffer_dsn)))
    yield found
    found.close()


@pytest.fixture(scope="session")
def watched_buffer(postgres: EmbeddedPostgres) -> Iterator[WatchedBuffer]:
    """A migrated buffer that is watched, for what needs one longer than for a test."""
    with _database(postgres, template="migrated") as dsn:
        found = WatchedBuffer(dsn)
        yield found
        found.close()


@pytest.fixture
def watched(watched_buffer: WatchedBuffer) -> WatchedBuffer:
    """The same, as if it were fresh."""
    watched_buffer.clean()
    return watched_buffer
