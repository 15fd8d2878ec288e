"""Whatever happens in whatever order, G1 to G8 hold, and at every quiet point the labels are what was told.

Longer: `make machine`, or ESL_EXAMPLES=2000 pytest <this file>.
"""

import os

import pytest
from hypothesis.stateful import run_state_machine_as_test

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline_tests.reliability.machine import Machine, machine_parts, machine_settings

EXAMPLES = int(os.environ.get("ESL_EXAMPLES", "0"))


@pytest.mark.long
@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_whatever_happens_the_guarantees_hold(buffer: Buffer, buffer_dsn: str) -> None:
    with machine_parts(buffer, buffer_dsn) as Machine.parts:
        # Fast: always the same, and not shrunk, which takes longer than a test may.
        run_state_machine_as_test(
            Machine,
            settings=machine_settings(
                EXAMPLES or 12, 50 if EXAMPLES else 30, fixed=not EXAMPLES, shrink=bool(EXAMPLES)
            ),
        )
