"""Where labels go: the client of a Hipoink label server, and what its answers mean."""

from esl_pipeline.hipoink.answers import Answer
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.errors import (
    AuthenticationError,
    HipoinkError,
    NotSentError,
    RejectedError,
    TransientError,
    UnknownOutcomeError,
)
from esl_pipeline.hipoink.limiter import Call, Limiter, LocalLimiter

__all__ = [
    "Answer",
    "AuthenticationError",
    "Call",
    "HipoinkClient",
    "HipoinkError",
    "Limiter",
    "LocalLimiter",
    "NotSentError",
    "RejectedError",
    "TransientError",
    "UnknownOutcomeError",
]
