"""What `doctor` and the sources say of one thing that was looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One thing looked at: ok, warning or wrong, and what to know or do."""

    what: str
    state: Literal["ok", "warning", "wrong"]
    says: str
