"""Waiting for what another thread, process or server does: the one way that the tests do it."""

import time
from collections.abc import Callable
from typing import Any

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05


def eventually(condition: Callable[[], Any], seconds: float = 30, what: str = "what was waited for") -> float:
    """Poll until it holds; the seconds it took. The test fails, saying what, when they are over."""
    began, pause = time.monotonic(), _FIRST_PAUSE
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    return time.monotonic() - began
