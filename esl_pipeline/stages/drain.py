"""The loop of one drain run, for one label server: all shops that feed it, micro-batches, until idle, old or relieved.

One at a time for each server, by a lease in the buffer.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any, Self

import pandas as pd

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.model.push import PushRules
from esl_pipeline.model.shop import shop_key
from esl_pipeline.stages.evaluate import Evaluation, due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline.stages.push import claim_batch, push_claimed
from esl_pipeline.stages.pusher import Pusher, batches_at_once
from esl_pipeline.stages.refresh import DEFAULT_RULES, Refresher, RefreshRules

log = logging.getLogger(__name__)

LEASE_SECONDS = 20.0
_RENEW_SECONDS = 2.0
# A drain that is kept warm goes on for so long after its age, until the next one is there.
RELIEF_SECONDS = 180.0
_POLL_SECONDS = 0.25
# What is read and evaluated of one shop keeps the news of another (a price rise) waiting: rounds are shorter while
# several shops have work.
_ALONE_SECONDS, _SHARED_SECONDS = 0.6, 0.1
_SHARED_FOR_SECONDS = 10.0
_MOST_SECONDS = 1.2
_SMALLEST_PORTION = 100
# Of a webhook's body, about the least, so that hardly more is read than is evaluated.
_BYTES_PER_VARIANT = 500


def lease_of(label_server: str) -> str:
    """The lease of a label server's drain: there is one drain for each."""
    return f"event_sync:{label_server}"


@dataclass(frozen=True)
class DrainLimits:
    """A drain run ends when nothing was due for idle seconds, or after age seconds.

    One that is kept warm does not end for want of work; once it is of age it hands over to the next, and ends without
    one only if none has come by RELIEF_SECONDS later.
    """

    idle: float = 20
    age: float = 600
    keep_warm: bool = False

    @property
    def longest(self) -> float:
        """Seconds after which it ends in any case."""
        return self.age + RELIEF_SECONDS * self.keep_warm


@dataclass
class Portion:
    """How much one round reads and evaluates: as many variants as take 0.6 seconds, as the last ones took.

    Much of what a round costs is the same for one variant and for hundreds.

    Where a round of a few takes long as well (a buffer that is far away), twice as long as that, up to 1.2 seconds:
    smaller portions would mostly wait for answers. While several shops have work, a tenth of a second.
    """

    variants: int = 500
    _small: float = field(default=0, repr=False)
    _shared_until: float = field(default=0, repr=False)

    @property
    def bytes(self) -> int:
        """The same in bodies."""
        return self.variants * _BYTES_PER_VARIANT

    def learn(self, variants: int, seconds: float, *, shops: int = 1) -> None:
        """Told of a round that evaluated so many, of so many shops."""
        now = time.monotonic()
        if shops > 1:
            self._shared_until = now + _SHARED_FOR_SECONDS
        if variants < _SMALLEST_PORTION:
            self._small = seconds
        elif variants >= self.variants // 2:
            alone = min(max(_ALONE_SECONDS, 2 * self._small), _MOST_SECONDS)
            target = _SHARED_SECONDS if now < self._shared_until else alone
            wanted = variants * target / seconds
            wanted = min(max(wanted, self.variants / 2), self.variants * 2)
            self.variants = round(min(max(wanted, _SMALLEST_PORTION), MAX_ROWS_PER_CALL))


class Inbox:
    """Reads what has come in (inbox.read_inbox): while a backlog is evaluated and staged, the next of it beside that.

    A context manager; what was read ahead is part of the next round, or the last.
    """

    def __init__(self, read: Callable[[], list[dict[str, Any]]]) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inbox")
        self._ahead: Future[list[dict[str, Any]]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    @property
    def is_ahead(self) -> bool:
        """Whether something is read that no round has taken."""
        return self._ahead is not None

    def take(self) -> list[dict[str, Any]]:
        """The events that were read ahead, else those that are due now. Raises as read_inbox."""
        ahead, self._ahead = self._ahead, None
        return self._read() if ahead is None else ahead.result()

    def read_ahead(self) -> None:
        """Begin to read the next ones."""
        self._ahead = self._pool.submit(self._read)


@dataclass
class Round:
    """What one round of the loop did: events read, variants evaluated; why some events were not read.

    `results` are those of the pushes that ended meanwhile (rows.RESULTS).
    """

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


def connections(concurrency: int) -> int:
    """What a drain may ask of the buffer at a time: who reads, who evaluates, who renews the lease, who refreshes, and
    who push."""
    return 4 + batches_at_once(concurrency)


def read_round(
    buffer: Buffer,
    *,
    run_id: str,
    portion: Portion | None = None,
    inbox: Inbox | None = None,
    stop: threading.Event | None = None,
) -> Round:
    """Read and evaluate once what is due now, a portion of it; ahead too, with an inbox. Once `stop` is set nothing
    further is begun."""
    portion = portion or Portion()
    began = time.monotonic()
    done = _read(inbox or _inbox(buffer, run_id, portion))
    if stop is not None and stop.is_set():
        return done
    done.variants, mappings = due_variants(buffer, limit=portion.variants)
    if not done.variants.empty:
        if inbox is not None and len(done.variants) >= _SMALLEST_PORTION:
            inbox.read_ahead()
        done.evaluation = validate(done.variants, mappings)
        done.staged = stage(buffer, done.variants, done.evaluation)
        shops = {shop_key(mapping.shop) for mapping in mappings}
        portion.learn(len(done.variants), time.monotonic() - began, shops=len(shops))
    return done


def _inbox(buffer: Buffer, run_id: str, portion: Portion) -> Inbox:
    """Reads a portion at a time, as large as that is then."""
    return Inbox(lambda: read_inbox(buffer, run_id=run_id, max_bytes=portion.bytes))


def _read(inbox: Inbox) -> Round:
    done = Round()
    try:
        done.events = inbox.take()
    except BufferError:
        raise
    except Exception as error:
        # Something in the deliveries of a shop. They are claimed alone from now on (esl_inbox_claim); the rest goes on.
        log.exception("deliveries cannot be read")
        done.failure = error
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

    Beside the rounds, in threads of their own, labels are pushed and stores whose labels were pushed are refreshed.
    SIGTERM and SIGINT wait for the batch at hand. Returns False at once when another holder's drain is alive; one that
    is to be kept warm waits until that one hands over, unless another waits already. Raises BufferError when the buffer
    stays away, and at the end what kept deliveries from being read.
    """
    lease = lease_of(buffer.label_server)
    if not _taken(buffer, lease, holder, waits=limits.keep_warm):
        return False
    stop, failure = threading.Event(), None
    relieve_at = time.monotonic() + limits.age if limits.keep_warm else None
    with _signals_held_back(stop):
        try:
            with (
                _renewed(buffer, holder, stop, relieve_at),
                Refresher(
                    buffer, client, replace(refresh_rules, concurrency=rules.concurrency), run_id=run_id
                ) as refresher,
            ):

                def report(done: Round) -> None:
                    if done.was_accepted:
                        refresher.ask()
                    on_round(done)

                pusher = Pusher(
                    partial(claim_batch, buffer, rules, run_id=run_id, asset=asset),
                    partial(push_claimed, buffer, client, rules, stop=stop),
                    stop,
                    concurrency=rules.concurrency,
                )
                try:
                    with buffer.wake_ups(pusher.wake), pusher:
                        for done in _rounds(
                            buffer, pusher, refresher, limits, run_id=run_id, stop=stop, on_idle=on_idle
                        ):
                            failure = done.failure or failure
                            report(done)
                finally:  # whatever ended it, what was pushed is reported
                    if results := pusher.take():
                        report(Round(results=results))
                pusher.check()
        finally:
            buffer.lease_release(name=lease, holder=holder, seconds=LEASE_SECONDS)
    if failure is not None:
        raise failure
    return True


def _rounds(
    buffer: Buffer,
    pusher: Pusher,
    refresher: Refresher,
    limits: DrainLimits,
    *,
    run_id: str,
    stop: threading.Event,
    on_idle: Callable[[], None],
) -> Iterator[Round]:
    """The rounds that did something, until the drain is idle (unless kept warm) or old or shall stop."""
    refresher.ask()  # for what a run that has died left behind
    started = last_work = time.monotonic()
    portion, is_first = Portion(), True
    idle = limits.longest if limits.keep_warm else limits.idle
    with _inbox(buffer, run_id, portion) as inbox:
        while not stop.is_set() and time.monotonic() - started < limits.longest:
            pusher.check()  # before a round, not after: what a round has done is reported
            done = read_round(buffer, run_id=run_id, portion=portion, inbox=inbox, stop=stop)
            if done.did_something or is_first:
                pusher.ask()  # not before the first: what was left behind may be old news by now
            is_first = False
            done.results = pusher.take()
            if done.did_something or pusher.is_busy:
                last_work = time.monotonic()
            if done.did_something:
                yield done
            elif not pusher.is_busy and time.monotonic() - last_work > idle:
                break
            else:
                until = min(last_work + max(idle, _POLL_SECONDS), started + limits.longest)
                for _ in _looks(buffer, pusher, refresher, stop, until):
                    on_idle()
        if inbox.is_ahead:
            yield _read(inbox)


def _looks(
    buffer: Buffer, pusher: Pusher, refresher: Refresher, stop: threading.Event, until: float
) -> Iterator[None]:
    """Before each look for work: until there is something to read or report, the time is over or the drain shall stop.

    What else is due, pusher and refresher are asked for. One round trip a look.
    """
    while time.monotonic() <= until:
        yield
        if pusher.wait(_POLL_SECONDS) or stop.is_set():
            return
        due = buffer.due()
        if due.queue:
            pusher.ask()
        if due.refresh:
            refresher.ask()
        if due.graces and buffer.graces_end():
            pusher.ask()
        if due.inbox or due.variants:
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


def _taken(buffer: Buffer, lease: str, holder: str, *, waits: bool) -> bool:
    """Take the lease, or wait until it is handed over; False when that is not for us."""
    if not waits:
        return buffer.lease_take(name=lease, holder=holder, seconds=LEASE_SECONDS).is_held
    while (state := buffer.lease_await(name=lease, holder=holder, seconds=LEASE_SECONDS)) == "waits":
        time.sleep(_POLL_SECONDS)
    return state == "held"


@contextmanager
def _renewed(buffer: Buffer, holder: str, over: threading.Event, relieve_at: float | None) -> Iterator[None]:
    """Keep the lease while a round may take long; the event is set when it could not be kept, or was handed over.

    relieve_at: when somebody else shall take it over, on the monotonic clock. It is handed over at once when that one
    is there: what is at hand is finished beside it.
    """
    stop, name = threading.Event(), lease_of(buffer.label_server)

    def renew() -> None:
        while not stop.wait(_RENEW_SECONDS):
            relieve_in = None if relieve_at is None else relieve_at - time.monotonic()
            try:
                lease = buffer.lease_take(
                    name=name, holder=holder, seconds=LEASE_SECONDS, relieve_in=relieve_in
                )
                if lease.is_held and lease.successor_is_ready:
                    buffer.lease_release(name=name, holder=holder, seconds=LEASE_SECONDS)
            except BufferError:
                continue  # the rounds meet the same trouble and report it
            if not lease.is_held or lease.successor_is_ready:
                over.set()
                return

    thread = threading.Thread(target=renew, name="drain-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=_RENEW_SECONDS)
