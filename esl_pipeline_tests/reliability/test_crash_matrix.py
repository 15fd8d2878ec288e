"""All cases of the crash-point matrix, as subprocesses. The table is printed at the end of the run."""

from collections.abc import Callable
from typing import Any

import pytest

from esl_pipeline_tests.reliability.crash_matrix import ARROWS, FAULTS, Arrow, Fault, Ground, run_case

pytestmark = [pytest.mark.slow]

CASES = [(arrow, fault) for arrow in ARROWS for fault in FAULTS]


@pytest.mark.parametrize(("arrow", "fault"), CASES, ids=[f"{arrow.name}-{fault}" for arrow, fault in CASES])
def test_crash_matrix(
    ground: Ground, arrow: Arrow, fault: Fault, record_property: Callable[[str, Any], None]
) -> None:
    record_property("crash case", {"case": f"{arrow.name}-{fault}", "held where": arrow.where})
    record_property("crash seen", run_case(ground, arrow, fault))
