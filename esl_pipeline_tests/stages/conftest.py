"""A world per test: a fresh buffer, and the module's sandbox with its memory wiped."""

from collections.abc import Iterator
from dataclasses import replace

# pandera imports it with the first check that fails: seconds under pytest, in the midst of what a test measures.
import hypothesis  # noqa: F401
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import SupabaseTransport
from esl_pipeline_tests.gateway import Gateway
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


@pytest.fixture(params=["psycopg", "supabase"])
def world_over(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    """The same world over each transport."""
    if request.param == "psycopg":
        yield world
        return
    with (
        Gateway.start(world.dsn) as gateway,
        SupabaseTransport(gateway.url, SecretStr(Gateway.service_key)) as transport,
    ):
        yield replace(world, buffer=Buffer(transport))
