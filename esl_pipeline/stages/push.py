"""Stage 3: queued labels go to the label server, one batch a call, with an intent before and a result after."""

import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.errors import HipoinkError, TransientError
from esl_pipeline.model.rows import RESULTS
from esl_pipeline.model.shop import Shop, shop_key
from esl_pipeline.stages.outcomes import accepted, not_accepted


@dataclass(frozen=True)
class PushRules:
    """How pushes are batched and repeated. Delays in seconds; attempt n waits initial x multiplier^(n-1).

    A label that is refused for its own fault waits refused_delay x refused_multiplier^(n-1) and is failed after
    max_refusals. A store that passes nothing pauses, for twice as long each time, up to max_pause.

    After `down_after` calls in a row that the label server failed, it is down: one label probes it after `probe`
    seconds, then after twice as many each time, up to `max_probe`.
    """

    batch_size: int = 100
    max_attempts: int = 25
    initial_delay: float = 2
    multiplier: float = 2
    max_delay: float = 900
    # Longer than the client's longest call with its own retries, so that a live worker never loses its claim.
    lease: float = 60
    max_refusals: int = 5
    refused_delay: float = 30
    refused_multiplier: float = 4
    max_refused_delay: float = 6 * 3600
    pause: float = 60
    max_pause: float = 900
    down_after: int = 3
    probe: float = 5
    max_probe: float = 60


class SharedLimiter:
    """The label server's call rate, shared by all runs through one row in the buffer (hipoink.limiter.Limiter)."""

    def __init__(
        self,
        buffer: Buffer,
        *,
        server: str,
        rate_per_second: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._buffer, self._server, self._rate, self._sleep = buffer, server, rate_per_second, sleep

    def acquire(self) -> None:
        """Wait for the next free call slot."""
        self._sleep(self._buffer.rate_take(server=self._server, rate_per_second=self._rate))


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

    Returns one row per code (rows.RESULTS; outcome accepted, transient, unknown, rejected or authentication), no
    row when nothing is due. Raises BufferError only; whatever else fails is an outcome.
    """
    claim = claim_batch(buffer, rules, run_id=run_id, asset=asset, shop=shop)
    return push_claimed(buffer, client, rules, claim) if claim else pd.DataFrame(columns=RESULTS.names)


@dataclass(frozen=True)
class Claim:
    """A batch that is leased to us: labels of one store for one call. `at` is of the monotonic clock."""

    push_id: str
    store_code: str
    operation: str
    rows: list[dict[str, Any]]
    at: float


def claim_batch(
    buffer: Buffer,
    rules: PushRules,
    *,
    run_id: str,
    asset: str,
    shop: Shop | None = None,
    busy_stores: Collection[str] = (),
) -> Claim | None:
    """The batch whose turn it is, of none of the busy_stores; None when nothing is due."""
    at = time.monotonic()
    claim = buffer.push_claim(
        limit=rules.batch_size,
        lease_seconds=rules.lease,
        max_attempts=rules.max_attempts,
        run_id=run_id,
        asset=asset,
        shop=shop,
        busy_stores=busy_stores,
    )
    if not claim["rows"]:
        return None
    return Claim(claim["push_id"], claim["store_code"], claim["operation"], claim["rows"], at)


def push_claimed(buffer: Buffer, client: HipoinkClient, rules: PushRules, claim: Claim) -> pd.DataFrame:
    """Make the call of a claimed batch and record the outcome; returns and raises as push_batch."""
    if time.monotonic() - claim.at < rules.lease:
        result = _call(client, claim)
    else:
        # The process was stopped for so long that somebody else may have pushed newer labels: send nothing.
        result = {"outcome": "transient", "message": "the claim ran out before the call was made"}
    buffer.push_finish(
        push_id=claim.push_id,
        store_code=claim.store_code,
        operation=claim.operation,
        rows=[{"code": row["code"], "generation": row["generation"]} for row in claim.rows],
        max_attempts=rules.max_attempts,
        initial_delay_seconds=rules.initial_delay,
        multiplier=rules.multiplier,
        max_delay_seconds=rules.max_delay,
        max_refusals=rules.max_refusals,
        refused_delay_seconds=rules.refused_delay,
        refused_multiplier=rules.refused_multiplier,
        max_refused_delay_seconds=rules.max_refused_delay,
        pause_seconds=rules.pause,
        max_pause_seconds=rules.max_pause,
        down_after=rules.down_after,
        probe_seconds=rules.probe,
        max_probe_seconds=rules.max_probe,
        **result,
    )
    return pd.DataFrame(
        [
            {
                "store_code": claim.store_code,
                "code": row["code"],
                "operation": claim.operation,
                "outcome": result["outcome"],
                "message": result["message"],
                "shop": shop_key(row),
                "variant_id": row["variant_id"],
                "event_ids": row["event_ids"],
                "attempt": row["attempt"],
                "push_id": claim.push_id,
                "duration_ms": result.get("duration_ms"),
            }
            for row in claim.rows
        ],
        columns=RESULTS.names,
    )


def _call(client: HipoinkClient, claim: Claim) -> dict[str, Any]:
    """One call; its outcome as the arguments of Buffer.push_finish."""
    started = time.monotonic()
    try:
        if claim.operation == "upsert":
            answer = client.create_multiple(claim.store_code, [row["label"] for row in claim.rows])
        else:
            answer = client.del_multiple(claim.store_code, [row["code"] for row in claim.rows])
    except HipoinkError as error:
        return not_accepted(error, started) | {"server_failed": _server_failed(error)}
    except BufferError:  # of the limiter
        raise
    except Exception as error:
        # What the client cannot send, or a defect of ours that some record brings out: no drain ends of it.
        return {"outcome": "rejected", "message": _could_not_be_sent(error)}
    return accepted(answer) | {"server_failed": False}


def _could_not_be_sent(error: Exception) -> str:
    """Where it failed, and why if it is the client's own refusal: the text of other errors may hold anything."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    why = f": {error}" if type(error) is ValueError else ""
    return f"it could not be sent ({type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}){why}"


def _server_failed(error: HipoinkError) -> bool:
    """Whether the label server itself is in trouble, rather than this one call: no answer, overload, a crash."""
    return isinstance(error, TransientError) and error.http_status not in (409, 423)
