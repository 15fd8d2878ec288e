"""What a call that changes something at the label server came to, as the buffer keeps it."""

import time
from typing import Any

from esl_pipeline.hipoink.answers import Answer
from esl_pipeline.hipoink.errors import AuthenticationError, HipoinkError, RejectedError, UnknownOutcomeError


def accepted(answer: Answer) -> dict[str, Any]:
    """The result of a confirmed call: outcome, http_status, error_code, message, answer, duration_ms."""
    return {
        "outcome": "accepted",
        "http_status": answer.http_status,
        "error_code": answer.error_code,
        "message": answer.error_msg,
        "answer": answer.body,
        "duration_ms": answer.duration_ms,
    }


def not_accepted(error: HipoinkError, started: float) -> dict[str, Any]:
    """The result of a call, begun at that time.monotonic, that was not confirmed: also retry_after_seconds."""
    return {
        "outcome": _outcome(error),
        "http_status": error.http_status,
        "error_code": error.error_code,
        "message": str(error),
        "answer": error.answer,
        "retry_after_seconds": error.retry_after,
        "duration_ms": milliseconds_since(started),
    }


def milliseconds_since(started: float) -> int:
    """Whole milliseconds since a time.monotonic."""
    return int((time.monotonic() - started) * 1000)


def _outcome(error: HipoinkError) -> str:
    if isinstance(error, AuthenticationError):
        return "authentication"
    if isinstance(error, RejectedError):
        return "rejected"
    return "unknown" if isinstance(error, UnknownOutcomeError) else "transient"
