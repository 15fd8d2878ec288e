"""Which failures stop Dagster's retries."""

import dagster as dg
import pytest

from esl_pipeline.buffer.errors import BufferError, BufferUnavailable, BufferVersionError, classify
from esl_pipeline.orchestration.failures import is_permanent
from esl_pipeline.settings import SettingsError


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (BufferUnavailable("away", retryable=True), False),
        (classify(function="esl_due", code="40001", message="serialization", credential="X"), False),
        (classify(function="esl_due", code="28P01", message="password", credential="X"), True),
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
