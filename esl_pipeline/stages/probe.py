"""What a label server does with its labels, found out with one that somebody dedicates to it.

The label shows a product of its own, whose code is reserved. That is changed, and the label's row in the server's list
is watched: a row that moves some time after the change, each time, and not otherwise, moves because the label was
refreshed. Whether that took our trigger (esl/bind_task) tells whether the server triggers by itself. Where rows do not
move, no call tells that; somebody who looks at the label can.

What moves a row for another reason is no proof: a row that moves before its label could have been refreshed moves with
the call; one that moves while nothing is changed moves by itself; and one move of three may be chance.
"""

import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from statistics import median
from typing import Any, NamedTuple
from uuid import uuid4

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.devices import Binding, Devices, is_not_known
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.stages.devices import device_of
from esl_pipeline.stages.hands import template_of


@dataclass(frozen=True)
class ProbeRules:
    """How a probe waits; seconds.

    `wait`: for a label to be refreshed, at most; clients in production allow 180 to 240. `quiet`: a row must stand
    still so long before it is worth watching, and after a move four times as long as that took. `soonest`: no label is
    refreshed faster. `first_look`, `last_look`: how often its row is read, at first and in the end. `needed`: moves
    that prove it; `most`: tries; after `limit` none is begun.
    """

    wait: float = 180
    quiet: float = 10
    soonest: float = 0.3
    first_look: float = 0.4
    last_look: float = 5
    needed: int = 3
    most: int = 10
    limit: float = 1_800

    @property
    def longest(self) -> float:
        """How long a probe can take, with the calls that it makes."""
        return self.limit + 8 * self.wait + 120


DEFAULT_RULES = ProbeRules()
_AT_ONCE_MOST = 5
_FOREGROUND = Call()


@dataclass
class Probe:
    """What a probe found out.

    outcome: moves (the label's row moves when it is refreshed), itself (it moves without that), silent (it does not
    move), failed (nothing is known now that was not before; `reason`), or why there was none: busy, elsewhere,
    not_known, down. auto_triggers: whether the server refreshes labels by itself; None: not found out. seconds: from
    the push to the move.
    """

    store_code: str
    esl_code: str
    outcome: str = "failed"
    auto_triggers: bool | None = None
    seconds: float | None = None
    rounds: int = 0
    reason: str | None = None
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_move(self) -> bool | None:
        """Whether the label's row moves when the label is refreshed; None: not found out."""
        return {"moves": True, "itself": False, "silent": False}.get(self.outcome)


class _FailedError(Exception):
    """The probe cannot go on; the message is for the reader."""


def probe(
    buffer: Buffer,
    client: HipoinkClient,
    *,
    store: str,
    esl_code: str,
    by: str,
    run_id: str,
    rules: ProbeRules = DEFAULT_RULES,
    call: Call = _FOREGROUND,
    is_full: bool = True,
    look: Callable[[str, str], str | None] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Probe:
    """Find out with this label of a store what its label server does, and keep it (esl.label_servers).

    call: how its calls take their slots. is_full: find out all, though it is known; else only how long it takes. look:
    asks somebody which of two prices the label shows (the triggered one, the one that was only pushed; None: neither),
    where its row tells nothing. tell: is told what is going on. The label must show no product, or be a probe's
    already; at the end it goes on showing its product. A failing label server ends the probe; raises BufferError only.
    """
    found, probe_id = Probe(store, esl_code), str(uuid4())
    begun = buffer.probe_begin(
        probe_id=probe_id, store=store, esl_code=esl_code, by=by, run_id=run_id, seconds=rules.longest
    )
    if begun["outcome"] != "open":
        return replace(found, outcome=begun["outcome"], reason=begun["error"])
    known = begun["rows_move"], begun["auto_triggers"]
    is_full = is_full or not known[0] or known[1] is None
    at_work = _AtWork(buffer, client, found, begun["code"], rules, call, tell, clock, sleep)
    try:
        at_work.prepare()
        at_work.measure(auto=None if is_full else known[1])
        if look and found.auto_triggers is None:
            at_work.ask(look)
    except _FailedError as failed:
        found.outcome, found.reason = "failed", str(failed)
    except HipoinkError as error:
        unknown = " (the label server does not know this action)" if is_not_known(error) else ""
        found.outcome, found.reason = "failed", f"{error}{unknown}"
    except BaseException as error:
        with suppress(BufferError):
            _finish(buffer, probe_id, replace(found, outcome="failed", reason=type(error).__name__), is_full)
        raise
    found.known = _finish(buffer, probe_id, found, is_full)
    return found


def _finish(buffer: Buffer, probe_id: str, found: Probe, is_full: bool) -> dict[str, Any]:
    return buffer.probe_finish(
        probe_id=probe_id,
        outcome=found.outcome,
        is_full=is_full,
        rounds=found.rounds,
        auto_triggers=found.auto_triggers,
        seconds=found.seconds,
        reason=found.reason,
    )


class _Row(NamedTuple):
    """What is watched of a label's row: what moves, and what says that something else has happened to it."""

    action: str | None
    updated: str | None
    elsewhere: tuple[str | None, ...]


class _Move(Enum):
    """When a row moved after a call: at once, later, not at all; or together with something else."""

    AT_ONCE, LATER, NONE, ELSE = range(4)


@dataclass
class _AtWork:
    """One probe on its way."""

    buffer: Buffer
    client: HipoinkClient
    found: Probe
    code: str
    rules: ProbeRules
    call: Call
    tell: Callable[[str], None]
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    lags: list[float] = field(default_factory=list)
    moved_at: float = 0.0

    def __post_init__(self) -> None:
        self.devices = Devices(self.client, self.call)
        self.prices = random.sample(range(1_000, 10_000), self.rules.most + 3)
        self.store, self.esl = self.found.store_code, self.found.esl_code

    def prepare(self) -> None:
        """Let the label show the probe's product."""
        device = self._device()
        shown, online = device["product_code"], device["online"]
        if shown not in (None, self.code):
            raise _FailedError(
                f"{self.esl} shows {shown}: dedicate a label that shows no product (unbind it at the label server)"
            )
        if online is False:
            raise _FailedError(
                f"the label server does not reach {self.esl}: a probe needs a label that is online"
            )
        if shown is None:
            self._push()
            template = template_of(self.devices, self.store, device["model"])
            self.devices.bind(self.store, Binding(self.esl, self.code, template))
            self.client.bind_task(self.store, self.call)
            self._watch(self._row(), self.rules.wait)  # its first picture is no measurement

    def measure(self, auto: bool | None) -> None:
        """Change the product until it is clear what follows. auto: as it is known; None: find out."""
        found, rules = self.found, self.rules
        needed = rules.needed if auto is None else 1
        seen: list[_Move] = []
        begun = self.clock()
        for number in range(1, rules.most + 1):
            found.rounds = number
            if self.clock() - begun > rules.limit:
                raise _FailedError(f"nothing was clear after {rules.limit / 60:.0f} minutes")
            if not self._stands_still():
                found.outcome, found.reason = "itself", "its row moves while nothing is changed"
                return
            move, auto = self._round(auto)
            seen.append(move)
            late, at_once = seen.count(_Move.LATER), seen.count(_Move.AT_ONCE)
            if late >= needed:
                break
            if move is _Move.NONE:
                if late:
                    raise _FailedError(f"its row moved after {late} of {number} pushes: that proves nothing")
                found.outcome = "silent"
                found.reason = f"its row does not move within {rules.wait:g} s"
                return
            if at_once >= _AT_ONCE_MOST and not late:
                found.outcome = "itself"
                found.reason = "its row moves with the call itself, before a label could be refreshed"
                return
        else:
            raise _FailedError(f"its row moved when something else had happened, {rules.most} times")
        if not self._stands_still():
            found.outcome, found.reason = "itself", "its row moves while nothing is changed"
            return
        found.outcome, found.auto_triggers = "moves", auto
        found.seconds = round(median(self.lags), 1)

    def ask(self, look: Callable[[str, str], str | None]) -> None:
        """Let somebody tell whether the label changes without a trigger."""
        triggered = self._push()
        self.client.bind_task(self.store, self.call)
        self.tell(f"waiting {self.rules.wait:g} s for {self.esl} to show {triggered}")
        self.sleep(self.rules.wait)
        since = self.buffer.probe_clock(store=self.store)["at"]
        pushed = self._push()
        self.tell(f"waiting {self.rules.wait:g} s for {self.esl} to show {pushed}, if it does")
        self.sleep(self.rules.wait)
        if not self.buffer.probe_clock(store=self.store, since=since)["triggered"]:
            self.found.auto_triggers = {triggered: False, pushed: True}.get(look(triggered, pushed) or "")

    def _round(self, auto: bool | None) -> tuple[_Move, bool | None]:
        """Change the product once: when its row moved, and whether the server triggers by itself, as far as known.

        Without a trigger first, unless it is known to take one.
        """
        since, before = self.buffer.probe_clock(store=self.store)["at"], self._row()
        self._push()
        pushed = self.clock()
        if auto is not False:
            self.tell(f"{self.esl}: waiting up to {self.rules.wait:g} s after a push")
            move = self._watch(before, self.rules.wait)
            if move is not _Move.NONE:
                if move is _Move.LATER:
                    self.lags.append(self.moved_at - pushed)
                    ours = self.buffer.probe_clock(store=self.store, since=since)["triggered"]
                    auto = auto if ours else True
                return move, auto
            if auto:
                return move, auto
        self.client.bind_task(self.store, self.call)
        triggered = self.clock()
        self.tell(f"{self.esl}: waiting up to {self.rules.wait:g} s after the trigger")
        move = self._watch(before, self.rules.wait)
        if move is _Move.LATER:
            # Of the first time only what followed the trigger counts.
            self.lags.append(self.moved_at - (triggered if auto is None else pushed))
            auto = False
        return move, auto

    def _stands_still(self) -> bool:
        """Whether the row does not move while nothing is changed."""
        longest = max(self.lags[-1:], default=0.0)
        seconds = min(max(self.rules.quiet, 4 * longest), max(self.rules.quiet, self.rules.wait))
        self.tell(f"{self.esl}: its row must stand still for {seconds:.0f} s")
        return any(self._watch(self._row(), seconds) is _Move.NONE for _ in range(2))

    def _watch(self, before: _Row, seconds: float) -> _Move:
        """Read the row until it has moved, or so long. LATER: it was seen where it was when a label could have been
        refreshed; then `_at` is when it was seen to have moved."""
        begun, pause, has_stood = self.clock(), self.rules.first_look, False
        while True:
            looked, row = self.clock(), self._row()
            if row != before:
                self.moved_at = self.clock()
                if row.elsewhere != before.elsewhere:
                    return _Move.ELSE
                return _Move.LATER if has_stood else _Move.AT_ONCE
            has_stood = has_stood or looked - begun >= self.rules.soonest
            left = begun + seconds - looked
            if left <= 0:
                return _Move.NONE
            self.sleep(min(pause, max(left, 0.01)))
            pause = min(pause * 1.3, self.rules.last_look)

    def _push(self) -> str:
        """Change the product -> its new price."""
        price = f"{self.prices.pop() / 100:.2f}"
        name = f"probe {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        self.client.create_multiple(self.store, [{"pc": self.code, "pn": name, "pp": price}], self.call)
        return price

    def _row(self) -> _Row:
        device = self._device()
        elsewhere = tuple(device[name] for name in ("product_code", "model", "ap_code", "server_created"))
        return _Row(device["action"], device["server_updated"], (*elsewhere, str(device["online"])))

    def _device(self) -> Mapping[str, Any]:
        for row in self.devices.query_status(self.store, [self.esl]):
            device, _ = device_of(row, None)
            if device is not None and device["esl_code"] == self.esl:
                return {**device, "server_created": row.get("created_at")}
        raise _FailedError(f"store {self.store} has no label {self.esl} at its label server")
