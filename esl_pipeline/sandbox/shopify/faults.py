"""The pretend Shopify's failure switches: what of the Admin API goes wrong, how, and how often.

A rule holds until it has fired `times` times, for ever without. Of several rules of a kind the first one holds.
"""

import threading
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Rule(BaseModel):
    """What goes wrong, and how often."""

    model_config = ConfigDict(extra="forbid")

    times: int | None = Field(default=None, ge=1)


class _Answer(Rule):
    on: Literal["graphql", "download", "token"] = "graphql"


class Latency(_Answer):
    """Answers come this much later; other rules still hold."""

    kind: Literal["latency"] = "latency"
    ms: float = Field(ge=0)


class Status(_Answer):
    """An HTTP error, with Retry-After as given."""

    kind: Literal["status"] = "status"
    status: int = Field(ge=400, le=599)
    retry_after: str | None = None
    body: str = ""


class Throttled(Rule):
    """Calls are throttled as if the bucket were empty."""

    kind: Literal["throttled"] = "throttled"


class Unauthorized(Rule):
    """The token is refused, though it is the right one."""

    kind: Literal["unauthorized"] = "unauthorized"


class FallForward(Rule):
    """Answers are of this version, whichever was asked for."""

    kind: Literal["fall_forward"] = "fall_forward"
    version: str


class BulkSlow(Rule):
    """An operation goes on for so many seconds after it has read the shop."""

    kind: Literal["bulk_slow"] = "bulk_slow"
    seconds: float = Field(ge=0)


class BulkEndless(Rule):
    """An operation stays RUNNING until it is cancelled."""

    kind: Literal["bulk_endless"] = "bulk_endless"


class BulkFailed(Rule):
    """An operation fails; `keep` is the part of its lines that partialDataUrl holds, none without."""

    kind: Literal["bulk_failed"] = "bulk_failed"
    error_code: Literal["ACCESS_DENIED", "INTERNAL_SERVER_ERROR", "TIMEOUT"] = "INTERNAL_SERVER_ERROR"
    keep: float | None = Field(default=None, gt=0, lt=1)


class BrokenDownload(Rule):
    """A download stops after this part of what it was to send; its connection is closed so many seconds later."""

    kind: Literal["broken_download"] = "broken_download"
    keep: float = Field(default=0.5, ge=0, lt=1)
    seconds: float = Field(default=0, ge=0)


class CutDownload(Rule):
    """A download looks whole but ends early, at the end of a line: this part of the lines is there."""

    kind: Literal["cut_download"] = "cut_download"
    keep: float = Field(default=0.5, ge=0, lt=1)


class ExpiredUrl(Rule):
    """The address of a result has expired already when it is told."""

    kind: Literal["expired_url"] = "expired_url"


Fault = Annotated[
    Latency
    | Status
    | Throttled
    | Unauthorized
    | FallForward
    | BulkSlow
    | BulkEndless
    | BulkFailed
    | BrokenDownload
    | CutDownload
    | ExpiredUrl,
    Field(discriminator="kind"),
]
_R = TypeVar("_R", bound=Rule)


class Faults:
    """The rules in force, with how often each has fired. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Any] = []
        self._fired: list[int] = []

    def replace(self, rules: Sequence[Rule]) -> None:
        """Put these rules in force, instead of all earlier ones."""
        with self._lock:
            self._rules, self._fired = list(rules), [0] * len(rules)

    def shown(self) -> list[dict[str, Any]]:
        """The rules as set, each with `fired`."""
        with self._lock:
            return [
                {**rule.model_dump(), "fired": fired}
                for rule, fired in zip(self._rules, self._fired, strict=True)
            ]

    def fire(self, kind: type[_R], on: str | None = None) -> _R | None:
        """The rule of this kind that holds now, which has fired once more by this; None when there is none."""
        with self._lock:
            for index, rule in enumerate(self._rules):
                holds = isinstance(rule, kind) and (on is None or getattr(rule, "on", None) == on)
                if holds and (rule.times is None or self._fired[index] < rule.times):
                    self._fired[index] += 1
                    return rule if isinstance(rule, kind) else None
        return None
