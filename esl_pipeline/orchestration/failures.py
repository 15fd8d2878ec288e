"""Runs that failed: which of them Dagster may repeat, and what a repeated run finds of the one before it."""

from collections.abc import Mapping

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.environment import SettingsError
from esl_pipeline.printable import printable
from esl_pipeline.sources.source import SourceError

RETRY_TAG = "dagster/retry_on_asset_or_op_failure"


def is_permanent(error: BaseException | None) -> bool:
    """Wrong settings, a buffer of another version, a call that the buffer will always refuse."""
    if isinstance(error, dg.Failure):
        return not error.allow_retries
    if isinstance(error, BufferError):
        return not (error.retryable or error.too_big)
    return isinstance(error, SettingsError)


def reason_of(error: BaseException) -> str:
    """A failure in one line; a database or a server may have put a stranger's text into it."""
    kind = "" if isinstance(error, BufferError | SourceError | dg.Failure) else f"{type(error).__name__}: "
    return printable(" ".join(f"{kind}{_said(error)}".split()))


def _said(error: BaseException) -> str:
    return (error.description if isinstance(error, dg.Failure) else None) or str(error)


def several_failed(what: str, failures: Mapping[str, BaseException]) -> dg.Failure:
    """The failure of a run that went on with the others, by name. May be repeated where that may help any of them."""
    reasons = {name: reason_of(error) for name, error in sorted(failures.items())}
    return dg.Failure(
        f"{what}: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
        metadata=reasons,
        allow_retries=not all(map(is_permanent, failures.values())),
    )


@dg.failure_hook(name="stop_retries_of_permanent_failures")
def stop_retries(context: dg.HookContext) -> None:
    """Failure(allow_retries=False) alone does not stop run retries; this tag does (dagster.md 2.2)."""
    if is_permanent(context.op_exception):
        context.instance.add_run_tags(context.run_id, {RETRY_TAG: "false"})


def release_claims_of_parent(run: dg.DagsterRun, buffer: Buffer) -> None:
    """Let a retry take up what the run that it repeats had claimed: a dead run's leases go on for a minute."""
    if run.parent_run_id is not None:
        buffer.claims_release(run_id=run.parent_run_id)
