"""The loop of one drain run: all shops, micro-batches, until idle or old. One at a time, by a lease in the buffer."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pandas as pd

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.stages.push import PushRules, push_batch
from esl_pipeline.stages.read import due_variants, read_inbox
from esl_pipeline.stages.refresh import DEFAULT_RULES, Refresher, RefreshRules
from esl_pipeline.stages.validate import Evaluation, stage, validate

log = logging.getLogger(__name__)

LEASE = "event_sync"
LEASE_SECONDS = 20.0
_RENEW_SECONDS = 5.0
_POLL_SECONDS = 0.25
# So that neither a long queue nor a slow label server keeps new events (a price rise) from being read, nor what is read
# of one shop the labels of another from being pushed.
_PUSH_SECONDS_PER_ROUND = 0.25
_READ_SECONDS_PER_ROUND = 0.25
_MOST_SECONDS = 1.0
_SMALLEST_PORTION = 100
# Of a webhook's body, about the least, so that hardly more is read than is evaluated.
_BYTES_PER_VARIANT = 500


@dataclass(frozen=True)
class DrainLimits:
    """A drain run ends when nothing was due for idle seconds, or after age seconds."""

    idle: float = 20
    age: float = 600


@dataclass
class Portion:
    """How much one round reads and evaluates: as many variants as take a quarter of a second, as the last ones took.

    Where a round of a few takes long as well (a buffer that is far away), twice as long as that, up to a second:
    smaller portions would mostly wait for answers.
    """

    variants: int = 500
    _small: float = field(default=0, repr=False)

    @property
    def bytes(self) -> int:
        """The same in bodies."""
        return self.variants * _BYTES_PER_VARIANT

    def learn(self, variants: int, seconds: float) -> None:
        """Told of a round that evaluated so many."""
        if variants < _SMALLEST_PORTION:
            self._small = seconds
        elif variants >= self.variants // 2:
            target = min(max(_READ_SECONDS_PER_ROUND, 2 * self._small), _MOST_SECONDS)
            wanted = variants * target / seconds
            wanted = min(max(wanted, self.variants / 2), self.variants * 2)
            self.variants = round(min(max(wanted, _SMALLEST_PORTION), MAX_ROWS_PER_CALL))


@dataclass
class Round:
    """What one round of the loop did: events read, variants evaluated, labels pushed; why some events were not read."""

    events: list[dict[str, Any]] = field(default_factory=list)
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)
    evaluation: Evaluation = field(default_factory=Evaluation)
    staged: dict[str, int] = field(default_factory=dict)
    results: list[pd.DataFrame] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def did_something(self) -> bool:
        """Whether anything was due."""
        return bool(self.events) or not self.variants.empty or bool(self.results) or self.failure is not None

    @property
    def was_accepted(self) -> bool:
        """Whether the label server took any of the labels."""
        return any((results["outcome"] == "accepted").any() for results in self.results)


def drain_round(
    buffer: Buffer,
    client: HipoinkClient,
    rules: PushRules,
    *,
    run_id: str,
    asset: str,
    stop: threading.Event | None = None,
    portion: Portion | None = None,
) -> Round:
    """Read, validate and push once what is due now, a portion of it. Once `stop` is set nothing further is begun."""
    stop, portion = stop or threading.Event(), portion or Portion()
    done = Round()
    began = time.monotonic()
    try:
        done.events = read_inbox(buffer, run_id=run_id, max_bytes=portion.bytes)
    except BufferError:
        raise
    except Exception as error:
        # Something in the deliveries of a shop. They are claimed alone from now on (esl_inbox_claim); the rest goes on.
        log.exception("deliveries cannot be read")
        done.failure = error
    if stop.is_set():
        return done
    done.variants, mappings = due_variants(buffer, limit=portion.variants)
    if not done.variants.empty:
        done.evaluation = validate(done.variants, mappings)
        done.staged = stage(buffer, done.variants, done.evaluation)
        portion.learn(len(done.variants), time.monotonic() - began)
    # As long as reading took: where all is slow, a call or two a round would leave most stores without their turn.
    now = time.monotonic()
    read_again_at = now + min(max(_PUSH_SECONDS_PER_ROUND, now - began), _MOST_SECONDS)
    while not stop.is_set():
        results = push_batch(buffer, client, rules, run_id=run_id, asset=asset)
        if results.empty:
            break
        done.results.append(results)
        if time.monotonic() > read_again_at:
            break
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
    refresh_rules: RefreshRules = DEFAULT_RULES,
) -> bool:
    """Work until idle or old, calling on_round after each round that did something and on_idle while waiting.

    Beside the rounds, stores whose labels were pushed are refreshed.
    SIGTERM and SIGINT wait for the batch at hand. Returns False at once when another holder's drain is alive. Raises
    BufferError when the buffer stays away, and at the end what kept deliveries from being read.
    """
    if not buffer.lease_take(name=LEASE, holder=holder, seconds=LEASE_SECONDS)["held"]:
        return False
    started = last_work = time.monotonic()
    stop, portion = threading.Event(), Portion()
    failure: Exception | None = None
    with _signals_held_back(stop):
        try:
            with (
                _renewed(buffer, holder, stop),
                Refresher(buffer, client, refresh_rules, run_id=run_id) as refresher,
            ):
                refresher.ask()  # for what a run that has died left behind
                while not stop.is_set() and time.monotonic() - started < limits.age:
                    done = drain_round(
                        buffer, client, rules, run_id=run_id, asset=asset, stop=stop, portion=portion
                    )
                    failure = done.failure or failure
                    if done.was_accepted:
                        refresher.ask()
                    if done.did_something:
                        last_work = time.monotonic()
                        on_round(done)
                        continue
                    if time.monotonic() - last_work > limits.idle:
                        break
                    until = min(last_work + limits.idle, started + limits.age)
                    _wait_for_work(buffer, until, stop, on_idle, refresher)
        finally:
            buffer.lease_release(name=LEASE, holder=holder)
    if failure is not None:
        raise failure
    return True


def _wait_for_work(
    buffer: Buffer, until: float, stop: threading.Event, on_idle: Callable[[], None], refresher: Refresher
) -> None:
    """Return when something is due, the time is over or the drain shall stop: one round trip a look."""
    while time.monotonic() <= until:
        on_idle()
        if stop.wait(_POLL_SECONDS):
            return
        due = buffer.due()
        if due["refresh"]:
            refresher.ask()
        if due["inbox"] or due["variants"] or due["queue"]:
            return


@contextmanager
def _signals_held_back(stop: threading.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets `stop` and takes its course at the end; a second one takes it at once.

    Taken at once, a signal would break the batch at hand: its claim would wait for its lease, its push be in doubt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's matter
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    held: list[int] = []

    def let_through() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def hold_back(number: int, _: FrameType | None) -> None:
        held.append(number)
        stop.set()
        let_through()

    for number, handler in handlers.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, hold_back)
    try:
        yield
    finally:
        let_through()
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _renewed(buffer: Buffer, holder: str, lost: threading.Event) -> Iterator[None]:
    """Keep the lease while a round may take long; the event is set when it could not be kept."""
    stop = threading.Event()

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
        yield
    finally:
        stop.set()
        thread.join(timeout=_RENEW_SECONDS)
