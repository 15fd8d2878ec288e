"""Which failures Dagster may repeat: a run is not retried for something that a retry cannot mend."""

import dagster as dg

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.settings import SettingsError

RETRY_TAG = "dagster/retry_on_asset_or_op_failure"


def is_permanent(error: BaseException | None) -> bool:
    """Wrong settings, a buffer of another version, a call that the buffer will always refuse."""
    if isinstance(error, dg.Failure):
        return not error.allow_retries
    if isinstance(error, BufferError):
        return not (error.retryable or error.too_big)
    return isinstance(error, SettingsError)


@dg.failure_hook(name="stop_retries_of_permanent_failures")
def stop_retries(context: dg.HookContext) -> None:
    """Failure(allow_retries=False) alone does not stop run retries; this tag does (dagster.md 2.2)."""
    if is_permanent(context.op_exception):
        context.instance.add_run_tags(context.run_id, {RETRY_TAG: "false"})
