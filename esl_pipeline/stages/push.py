"""Stage 3: queued labels go to the label server, one batch a call, with an intent before and a result after."""

import logging
import threading
import time
import traceback
from pathlib import Path

import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.door import Row
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.model.push import Claim, Later, Outcome, PushRules
from esl_pipeline.model.rows import RESULTS
from esl_pipeline.model.shop import Shop
from esl_pipeline.stages.outcomes import accepted, not_accepted

CODES_LOGGED = 10
"""Of a call that was not accepted; all of them are in the audit, by its push_id."""

log = logging.getLogger(__name__)


def push_batch(
    buffer: Buffer,
    client: HipoinkClient,
    rules: PushRules,
    *,
    run_id: str,
    asset: str,
    shop: Shop | None = None,
) -> pd.DataFrame:
    """Claim one batch, make one call, record the outcome: two round trips beside the limiter's.

    Returns one row per code (rows.RESULTS), no row when nothing is due now. Raises BufferError only; whatever else
    fails is an outcome.
    """
    claim = claim_batch(buffer, rules, run_id=run_id, asset=asset, shop=shop)
    if not isinstance(claim, Claim):
        return pd.DataFrame(columns=RESULTS.names)
    return push_claimed(buffer, client, rules, claim)


def claim_batch(
    buffer: Buffer, rules: PushRules, *, run_id: str, asset: str, shop: Shop | None = None
) -> Claim | Later | None:
    """The batch whose turn it is; None when nothing is due."""
    return buffer.push_claim(
        limit=rules.batch_size,
        concurrency=rules.concurrency,
        lease_seconds=rules.lease,
        max_attempts=rules.max_attempts,
        run_id=run_id,
        asset=asset,
        shop=shop,
    )


def push_claimed(
    buffer: Buffer,
    client: HipoinkClient,
    rules: PushRules,
    claim: Claim,
    stop: threading.Event | None = None,
) -> pd.DataFrame:
    """Make the call of a claimed batch and record the outcome; returns and raises as push_batch.

    Nothing is sent once `stop` is set, or when the claim may run out before the call has ended: whoever was stopped for
    so long may find that somebody else has pushed newer labels.
    """

    def hindrance() -> str | None:
        if stop is not None and stop.is_set():
            return "the run was stopped before the call was made"
        if time.monotonic() > claim.at + rules.lease - rules.call:
            return "the claim ran out before the call was made"
        return None

    outcome = _called(client, claim, Call(hindrance, recorded_as=claim.push_id))
    done = buffer.push_finish(claim, outcome, rules)
    _log_push(claim, outcome, done)
    return pd.DataFrame(
        [
            {
                "store_code": claim.store_code,
                "code": row.code,
                "operation": claim.operation,
                "outcome": outcome.outcome,
                "message": outcome.message,
                "shop": row.shop,
                "variant_id": row.variant_id,
                "event_ids": row.event_ids,
                "attempt": row.attempt,
                "push_id": claim.push_id,
                "duration_ms": outcome.duration_ms,
            }
            for row in claim.rows
        ],
        columns=RESULTS.names,
    )


def _log_push(claim: Claim, outcome: Outcome, done: Row) -> None:
    """A line for each call: that it went well, or with the server's words (a stranger's text) which labels it is
    about."""
    shops = ", ".join(sorted({row.shop for row in claim.rows}))
    told = {"store": claim.store_code, "push_id": claim.push_id, "shop": shops}
    if outcome.outcome == "accepted":
        log.info(
            "%s: %d labels accepted in %s ms",
            claim.operation,
            len(claim.rows),
            outcome.duration_ms,
            extra=told,
        )
        return
    codes = ", ".join(ascii(row.code)[1:-1] for row in claim.rows[:CODES_LOGGED])
    log.warning(
        "%s: %d labels %s (%s again, %s refused, %s dead): %a",
        *(claim.operation, len(claim.rows), outcome.outcome, done["retried"], done["failed"], done["dead"]),
        (outcome.message or "")[:500],
        extra=told | {"code": codes},
    )


def _called(client: HipoinkClient, claim: Claim, call: Call) -> Outcome:
    """One call."""
    started = time.monotonic()
    try:
        if claim.operation == "upsert":
            labels = [row.label for row in claim.rows if row.label is not None]
            answer = client.create_multiple(claim.store_code, labels, call)
        else:
            answer = client.del_multiple(claim.store_code, [row.code for row in claim.rows], call)
    except HipoinkError as error:
        return not_accepted(error, started)
    except BufferError:  # of the limiter
        raise
    except Exception as error:
        # What the client cannot send, or a defect of ours that some record brings out: no drain ends of it.
        return Outcome("rejected", _could_not_be_sent(error))
    return accepted(answer)


def _could_not_be_sent(error: Exception) -> str:
    """Where it failed, and why if it is the client's own refusal: the text of other errors may hold anything."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    why = f": {error}" if type(error) is ValueError else ""
    return f"it could not be sent ({type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}){why}"
