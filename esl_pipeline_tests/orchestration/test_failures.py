"""Which failures stop Dagster's retries."""

import dagster as dg
import pytest

from esl_pipeline.buffer.errors import (
    BufferError,
    BufferUnavailable,
    BufferVersionError,
    Failure,
    Size,
    classify,
)
from esl_pipeline.orchestration.failures import is_permanent
from esl_pipeline.settings import SettingsError


def _failed(code: str, message: str) -> BufferError:
    return classify(Failure(code, message), function="esl_due", size=Size.FIXED, credential="X")


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (BufferUnavailable("away", retryable=True), False),
        (_failed("40001", "serialization"), False),
        (_failed("28P01", "password"), True),
        (BufferVersionError("older"), True),
        (BufferError("a bad call", code="22023"), True),
        (SettingsError(["HIPOINK_API_BASE_URL is not set"]), True),
        (dg.Failure("nonsense", allow_retries=False), True),
        (dg.Failure("perhaps", allow_retries=True), False),
        (RuntimeError("a bug, or the network"), False),
        (None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_is_permanent(error: BaseException | None, permanent: bool) -> None:
    assert is_permanent(error) is permanent
