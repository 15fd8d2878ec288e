"""The state machine finds what is broken on purpose: else its green says nothing."""

import pytest

from esl_pipeline_tests.reliability.breaks import AT_MOST, BREAKS, found_after

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("name", BREAKS)
def test_the_state_machine_finds_the_break(name: str) -> None:
    found = found_after(name, at_most=AT_MOST, seed=1)

    assert found is not None, BREAKS[name].what
    print(f"{name}: found after {found[0]} examples")
