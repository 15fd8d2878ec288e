"""Ways to the database and the label server that can be disturbed, and the crash matrix's table."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.local.ports import free_port
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of
from esl_pipeline_tests.reliability.chaos import ChaosProxy
from esl_pipeline_tests.reliability.crash_matrix import Ground
from esl_pipeline_tests.reliability.forked import label_server
from esl_pipeline_tests.world import World


def socket_of(dsn: str) -> Path:
    """The Unix socket of the embedded Postgres behind a DSN."""
    return Path(str(conninfo_to_dict(dsn)["host"])) / ".s.PGSQL.5432"


def dsn_through(proxy: ChaosProxy, dsn: str) -> str:
    """The same database, through a proxy."""
    database = conninfo_to_dict(dsn)["dbname"]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable&gssencmode=disable"


@pytest.fixture
def database_proxy(buffer_dsn: str) -> Iterator[ChaosProxy]:
    with ChaosProxy(socket_of(buffer_dsn)) as proxy:
        yield proxy


@pytest.fixture
def proxied_dsn(database_proxy: ChaosProxy, buffer_dsn: str) -> str:
    return dsn_through(database_proxy, buffer_dsn)


@pytest.fixture(scope="session")
def label_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with label_server(tmp_path_factory.mktemp("labels") / "labels.log") as sandbox:
        yield sandbox


@pytest.fixture
def world(buffer: Buffer, buffer_dsn: str, label_process: Sandbox) -> Iterator[World]:
    label_process.clear()
    # One try a call: the repeats under test are the queue's.
    with client_of(label_process.url, retries=1) as client:
        yield World(buffer, buffer_dsn, label_process, client)


@pytest.fixture
def labels_proxy(label_process: Sandbox) -> Iterator[ChaosProxy]:
    url = httpx.URL(label_process.url)
    with ChaosProxy((url.host, url.port or 80)) as proxy:
        yield proxy


@pytest.fixture
def ground(
    world: World,
    proxied_dsn: str,
    database_proxy: ChaosProxy,
    labels_proxy: ChaosProxy,
    tmp_path: Path,
) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield Ground(
            world=world,
            folder=tmp_path,
            direct=world.dsn,
            through=proxied_dsn,
            database=database_proxy,
            labels=labels_proxy,
            port=free_port(),
            stack=stack,
        )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The crash matrix as a table: each case, what was seen, and whether all invariants held."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = [(dict(report.user_properties), report.outcome) for report in reports]
    rows = [(found, outcome) for found, outcome in rows if "crash case" in found]
    if not rows:
        return
    line = "{:<13} {:<58} {:<17} {:<24} {:<8} {:>9} {:>6} {:<6}".format
    terminalreporter.section("crash-point matrix")
    terminalreporter.write_line(
        line("case", "held where", "deliveries", "pushes", "label", "corrected", "s", "I1-I6")
    )
    for found, outcome in rows:
        seen = {
            name: str(value) for name, value in (found["crash case"] | found.get("crash seen", {})).items()
        }
        columns = ("case", "held where", "deliveries", "pushes", "label", "corrected", "seconds")
        terminalreporter.write_line(
            line(*(seen.get(column, "") for column in columns), "hold" if outcome == "passed" else "BROKEN")
        )
    held = sum(outcome == "passed" for _, outcome in rows)
    terminalreporter.write_line(f"{held} of {len(rows)} cases hold")
