"""A sandbox shop for the tests of a module."""

from collections.abc import Iterator

import pytest

from esl_pipeline_tests.sandbox.shopify.support import Running, running


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running() as sandbox:
        yield sandbox
