"""The loop of one drain run: all shops, micro-batches, until idle or old. One at a time, by a lease in the buffer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.stages.push import PushRules, push_batch
from esl_pipeline.stages.read import due_variants, read_inbox
from esl_pipeline.stages.validate import Evaluation, stage, validate

LEASE = "event_sync"
LEASE_SECONDS = 20.0
_RENEW_SECONDS = 5.0
_POLL_SECONDS = 0.25
# So that a long queue does not keep new events (a price rise) from being read.
_PUSHES_PER_ROUND = 10


@dataclass(frozen=True)
class DrainLimits:
    """A drain run ends when nothing was due for idle seconds, or after age seconds."""

    idle: float = 20
    age: float = 600


@dataclass
class Round:
    """What one round of the loop did: events read, variants evaluated, labels pushed."""

    events: list[dict[str, Any]] = field(default_factory=list)
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)
    evaluation: Evaluation = field(default_factory=Evaluation)
    staged: dict[str, int] = field(default_factory=dict)
    results: list[pd.DataFrame] = field(default_factory=list)

    @property
    def did_something(self) -> bool:
        """Whether anything was due."""
        return bool(self.events) or not self.variants.empty or bool(self.results)


def drain_round(buffer: Buffer, client: HipoinkClient, rules: PushRules, *, run_id: str, asset: str) -> Round:
    """Read, validate and push once what is due now."""
    done = Round()
    done.events = read_inbox(buffer, run_id=run_id)
    done.variants, mappings = due_variants(buffer)
    if not done.variants.empty:
        done.evaluation = validate(done.variants, mappings)
        done.staged = stage(buffer, done.variants, done.evaluation)
    for _ in range(_PUSHES_PER_ROUND):
        results = push_batch(buffer, client, rules, run_id=run_id, asset=asset)
        if results.empty:
            break
        done.results.append(results)
    return done


def drain(
    buffer: Buffer,
    client: HipoinkClient,
    rules: PushRules,
    limits: DrainLimits,
    *,
    run_id: str,
    holder: str,
    asset: str,
    on_round: Callable[[Round], None],
    on_idle: Callable[[], None],
) -> bool:
    """Work until idle or old, calling on_round after each round that did something and on_idle while waiting.

    Returns False at once when another holder's drain is alive. Raises BufferError when the buffer stays away.
    """
    if not buffer.lease_take(name=LEASE, holder=holder, seconds=LEASE_SECONDS)["held"]:
        return False
    started = last_work = time.monotonic()
    try:
        with _renewed(buffer, holder) as lost:
            while not lost.is_set() and time.monotonic() - started < limits.age:
                done = drain_round(buffer, client, rules, run_id=run_id, asset=asset)
                if done.did_something:
                    last_work = time.monotonic()
                    on_round(done)
                    continue
                if time.monotonic() - last_work > limits.idle:
                    break
                _wait_for_work(buffer, limits.idle, last_work, lost, on_idle)
    finally:
        buffer.lease_release(name=LEASE, holder=holder)
    return True


def _wait_for_work(
    buffer: Buffer, idle: float, last_work: float, lost: threading.Event, on_idle: Callable[[], None]
) -> None:
    """Return when something is due, the idle time is over or the lease is lost: one round trip a look."""
    while not lost.is_set() and time.monotonic() - last_work <= idle:
        on_idle()
        time.sleep(_POLL_SECONDS)
        if buffer.due()["due"]:
            return


@contextmanager
def _renewed(buffer: Buffer, holder: str) -> Iterator[threading.Event]:
    """Keep the lease while a round may take long; the event is set when it could not be kept."""
    stop, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEW_SECONDS):
            try:
                held = buffer.lease_take(name=LEASE, holder=holder, seconds=LEASE_SECONDS)["held"]
            except BufferError:
                continue  # the rounds meet the same trouble and report it
            if not held:
                lost.set()
                return

    thread = threading.Thread(target=renew, name="drain-lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join(timeout=_RENEW_SECONDS)
