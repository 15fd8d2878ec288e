"""What a call that changes something at the label server came to, as the buffer keeps it."""

import time
from typing import Literal

from esl_pipeline.hipoink.answers import Answer
from esl_pipeline.hipoink.errors import (
    AuthenticationError,
    HipoinkError,
    NotSentError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from esl_pipeline.model.push import Outcome


def accepted(answer: Answer) -> Outcome:
    """The outcome of a confirmed call."""
    return Outcome(
        "accepted",
        answer.error_msg,
        http_status=answer.http_status,
        error_code=answer.error_code,
        answer=answer.body,
        duration_ms=answer.duration_ms,
        server_failed=False,
    )


def not_accepted(error: HipoinkError, started: float) -> Outcome:
    """The outcome of a call, begun at that time.monotonic, that was not confirmed."""
    if isinstance(error, NotSentError):
        return Outcome("not_sent", str(error))
    if isinstance(error, AuthenticationError):
        return _because_of(error, "authentication", started)
    if isinstance(error, RejectedError):
        return _because_of(error, "rejected", started)
    return _because_of(error, "unknown" if isinstance(error, UnknownOutcomeError) else "transient", started)


def milliseconds_since(started: float) -> int:
    """Whole milliseconds since a time.monotonic."""
    return int((time.monotonic() - started) * 1000)


def _because_of(
    error: HipoinkError,
    outcome: Literal["transient", "unknown", "rejected", "authentication"],
    started: float,
) -> Outcome:
    return Outcome(
        outcome,
        str(error),
        http_status=error.http_status,
        error_code=error.error_code,
        answer=error.answer,
        retry_after_seconds=error.retry_after,
        duration_ms=milliseconds_since(started),
        # No answer, overload, a crash; but not what the call itself met.
        server_failed=isinstance(error, TransientError) and error.http_status not in (409, 423),
    )
