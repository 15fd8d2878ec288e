"""One sandbox for the tests of a module."""

from collections.abc import Iterator

import pytest

from esl_pipeline_tests.sandbox.shopify.support import Running, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as served:
        yield served


@pytest.fixture
def shopify(server: Running) -> Running:
    server.http.delete("/sandbox/faults").raise_for_status()
    return server
