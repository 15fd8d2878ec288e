"""A server that alerts are sent to."""

from collections.abc import Iterator

import pytest

from esl_pipeline_tests.alerts.listener import Listener, listening


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found
