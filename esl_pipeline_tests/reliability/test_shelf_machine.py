"""G9: nothing is said of a physical label without evidence, whatever happens to it. Longer: see shelf_machine.py."""

import pytest
from hypothesis.stateful import run_state_machine_as_test

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline_tests.reliability.machine import machine_settings
from esl_pipeline_tests.reliability.shelf_machine import (
    AT_MOST,
    BATCH,
    BREAKS,
    STEPS,
    ShelfMachine,
    prepared,
    run_batch,
    shelf_parts,
)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_nothing_is_claimed_that_is_not_on_the_label(buffer: Buffer, buffer_dsn: str) -> None:
    with shelf_parts(buffer, buffer_dsn) as ShelfMachine.shelf:
        settings = machine_settings(10, STEPS, fixed=True, shrink=False)
        run_state_machine_as_test(ShelfMachine, settings=settings)
        assert ShelfMachine.shelf.claims, "something is claimed at all"


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", BREAKS)
def test_the_machine_finds_the_break(name: str) -> None:
    with prepared(name) as machine:
        for seed in range(1, AT_MOST // BATCH + 1):
            if run_batch(machine, seed):
                return
    pytest.fail(f"not found in {AT_MOST} examples: {BREAKS[name][0]}")
