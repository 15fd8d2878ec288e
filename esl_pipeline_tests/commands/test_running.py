"""What stops a command that runs until it is stopped."""

import signal
import subprocess
import sys

import pytest

IN_A_FINALIZER = """
import os, sys, time
import typer
from esl_pipeline.commands.running import _terminable

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.1)

try:
    with _terminable(exit_code=7):
        finalized = Finalized()
        del finalized
        time.sleep(30)
except typer.Exit as left:
    sys.exit(left.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_within_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    found = subprocess.run(
        [sys.executable, "-c", IN_A_FINALIZER, str(int(number))],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert found.returncode == 7
    assert "ignored" not in found.stderr
