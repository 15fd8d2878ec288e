"""A world per test: a fresh buffer, and the module's sandbox with its memory wiped."""

from collections.abc import Iterator

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.world import World


@pytest.fixture(scope="package")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def world(buffer: Buffer, buffer_dsn: str, label_server: Sandbox) -> Iterator[World]:
    label_server.clear()
    # One try a call: the repeats under test are the queue's.
    with client_of(label_server.url, retries=1, timeout_seconds=0.5) as client:
        yield World(buffer, buffer_dsn, label_server, client)
