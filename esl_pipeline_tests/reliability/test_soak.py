"""The soak, short: `make soak` is the long one."""

import sys

import pytest

from esl_pipeline_tests.reliability.outside import scratch_home
from esl_pipeline_tests.reliability.soak import soak

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


def test_soak_of_a_minute_loses_nothing_and_ends_with_every_label_right() -> None:
    with scratch_home("esl-soak-") as home:
        report = soak(1, seed=5, rate=10, pause=5, home=home)

    print(report.figures, report.summary(), sep="\n")
    assert report.problems == []
    assert report.figures["changes"] > 300 and report.figures["kills"] >= 1
