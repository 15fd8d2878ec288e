"""Runs that failed: which of them Dagster may repeat, and what a repeated run finds of the one before it."""

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
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


def release_claims_of_parent(run: dg.DagsterRun, buffer: Buffer) -> None:
    """Let a retry take up what the run that it repeats had claimed: a dead run's leases go on for a minute."""
    if run.parent_run_id is not None:
        buffer.claims_release(run_id=run.parent_run_id)
