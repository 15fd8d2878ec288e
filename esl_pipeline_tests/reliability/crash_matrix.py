"""The crash-point matrix: eleven arrows between twelve points of one change's way and four between, four faults each.

A shop changes a price (version 2, of three labels). Its way is held from outside at an arrow, by a trap in a proxy,
half a request, or a lock in the database; then the process that has it is killed, told to end, or stopped for longer
than its leases, or the database disconnects. The shop changes the price again (version 3), fresh processes go on,
and six invariants must hold.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psycopg

from esl_pipeline_tests.reliability.chaos import ChaosProxy
from esl_pipeline_tests.reliability.forked import RUN_ENDED, Victim
from esl_pipeline_tests.reliability.sender import Delivery, Half
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import STORE, Body, World, product, variant

Fault = Literal["KILL", "TERM", "STOP", "CUT"]
FAULTS: dict[Fault, str] = {
    "KILL": "SIGKILL",
    "TERM": "SIGTERM",
    "STOP": "SIGSTOP past the leases, SIGCONT",
    "CUT": "the database disconnects and refuses for a second",
}
NUMBERS = (1, 2, 3)
NEWEST = 3
_GRACE = 10.0
_OUTAGE = 1.0
_STANDSTILL = 1.0


def change(version: int) -> Body:
    """The product with three labels, its version also its price."""
    return product(1, version, [variant(n, price=f"{version}.00") for n in NUMBERS])


@dataclass
class Ground:
    """Where a case happens: a fresh buffer, the label server's process, a proxy before each."""

    world: World
    folder: Path
    direct: str
    through: str
    database: ChaosProxy
    labels: ChaosProxy
    port: int
    stack: ExitStack
    deliveries: list[Delivery] = field(default_factory=list)

    def receiver(self, *, proxied: bool) -> Victim:
        dsn = self.through if proxied else self.direct
        return self.stack.enter_context(Victim.receiver(dsn, self.port, self._log("receiver")))

    def worker(self, *, proxied: bool, **options: Any) -> Victim:
        dsn = self.through if proxied else self.direct
        url = f"http://127.0.0.1:{self.labels.port}" if proxied else self.world.sandbox.url
        return self.stack.enter_context(Victim.worker(dsn, url, self._log("worker"), **options))

    def delivery(self, version: int) -> Delivery:
        self.deliveries.append(Delivery(self.port, change(version)))
        return self.deliveries[-1]

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{uuid4().hex[:6]}.log"


# --- arrows: where to hold, from outside


@dataclass
class Held:
    """A change that is held at an arrow."""

    release: Callable[[], None]
    # A lock keeps everybody waiting, so it is given up as soon as the process stands still.
    shared: bool = False


@dataclass(frozen=True)
class Arrow:
    """One arrow: whose process is hit, where it is held, and how. options: of a worker that is hit."""

    name: str
    process: Literal["receiver", "worker", "both"]
    where: str
    hold: Callable[[Ground, Callable[[], None]], Held]
    options: Mapping[str, Any] = field(default_factory=dict)


def _trapped(
    which: Literal["database", "labels"], request: str, hold: Literal["request", "answer"]
) -> Callable[[Ground, Callable[[], None]], Held]:
    def set_trap(ground: Ground, start: Callable[[], None]) -> Held:
        proxy = ground.database if which == "database" else ground.labels
        trap = proxy.trap(request.encode(), hold)
        start()
        assert trap.sprung.wait(20), f"{request} was never called"
        if hold == "answer":
            time.sleep(0.05)  # the answer is in the proxy, the process waits for it
        return Held(trap.release)

    return set_trap


def _locked(ground: Ground, start: Callable[[], None]) -> Held:
    """Within the claim: its update of the queue is done, its insert of the intents waits for a lock of ours."""
    lock = ground.stack.enter_context(psycopg.connect(ground.direct))
    lock.execute("lock table esl.sync_log in share mode")
    start()
    waiting = (
        "select 1 as found from pg_stat_activity where wait_event_type = 'Lock' and strpos(query, 'esl_push_claim') > 0"
        " and datname = current_database()"
    )
    eventually(lambda: bool(ground.world.sql(waiting)), 20)
    return Held(lock.close, shared=True)


def _beside_another(ground: Ground, start: Callable[[], None]) -> Held:
    """The answer to one batch is there, while the call of another one of the store is in flight."""
    ground.world.sandbox.faults({"kind": "latency", "ms": 800, "codes": [f"C-{NUMBERS[1]}"], "times": 1})
    return _trapped("database", "esl_push_finish", "request")(ground, start)


def _as_the_next_waits(ground: Ground, start: Callable[[], None]) -> Held:
    """The next drain is there to take the lease over; the old one is about to look whether it is, with a call out."""
    call = ground.labels.trap(b"/create_multiple", "answer")
    start()
    assert call.sprung.wait(20)
    look = ground.database.trap(b"esl_lease_take", "request")
    assert look.sprung.wait(20)
    (old,) = ground.world.sql("select holder from esl.leases")
    ground.worker(proxied=False, keep_warm=True)
    # On a slow machine it comes only when the lease is over: then it has it.
    comes = "select 1 as found from esl.leases where successor_is_ready or holder <> %s"
    eventually(lambda: bool(ground.world.sql(comes, old["holder"])), 20)

    def release() -> None:
        look.release()
        call.release()

    return Held(release)


def _half_received(ground: Ground, start: Callable[[], None]) -> Held:
    half = ground.deliveries[-1].half = Half()
    start()
    assert half.sent.wait(20)
    return Held(half.go_on.set)


ARROWS = (
    Arrow("P0-P1", "receiver", "half of the body has been read", _half_received),
    Arrow(
        "P1-P2", "receiver", "esl_inbox_add is on its way", _trapped("database", "esl_inbox_add", "request")
    ),
    Arrow("P2-P3", "receiver", "its answer is on its way", _trapped("database", "esl_inbox_add", "answer")),
    Arrow(
        "P3-P4",
        "both",
        "2xx is out, esl_variants_merge on its way",
        _trapped("database", "esl_variants_merge", "request"),
    ),
    Arrow(
        "P4-P5",
        "worker",
        "merged, esl_labels_stage on its way",
        _trapped("database", "esl_labels_stage", "request"),
    ),
    Arrow(
        "P5-P6",
        "worker",
        "queued, esl_push_claim on its way",
        _trapped("database", "esl_push_claim", "request"),
    ),
    Arrow("P6-P7", "worker", "within esl_push_claim: leased, intents wait", _locked),
    Arrow(
        "P7-P8",
        "worker",
        "intents committed, the call's slot (esl_rate_take) on its way",
        _trapped("database", "esl_rate_take", "request"),
    ),
    Arrow("P8-P9", "worker", "labels taken, the answer on its way", _trapped("labels", "/create_multiple", "answer")),
    Arrow("P9-P10", "worker", "esl_push_finish is on its way", _trapped("database", "esl_push_finish", "request")),
    Arrow("P10-P11", "worker", "its answer is on its way", _trapped("database", "esl_push_finish", "answer")),
    Arrow("P8-call", "worker", "the slot's answer is on its way", _trapped("database", "esl_rate_take", "answer")),
    Arrow("P8-sent", "worker", "the call is on its way", _trapped("labels", "/create_multiple", "request")),
    Arrow(
        "P9-others",
        "worker",
        "esl_push_finish is on its way, another batch in flight",
        _beside_another,
        {"hipoink_batch_size": 1},
    ),
    Arrow("P8-next", "worker", "a call is out, the next drain waits for the lease", _as_the_next_waits),
)  # fmt: skip


# --- one case


def run_case(ground: Ground, arrow: Arrow, fault: Fault) -> dict[str, Any]:
    """Play one case and check the invariants; what was seen, for the table."""
    world = ground.world
    world.map()
    world.settle(change(1))
    began = time.monotonic()
    if arrow.process == "receiver":
        _hit_receiver(ground, arrow, fault)
    else:
        _hit_worker(ground, arrow, fault)
    eventually(lambda: _is_settled(world), 40)
    seen = _check_invariants(ground)
    return seen | {"seconds": round(time.monotonic() - began, 1)}


def _hit_receiver(ground: Ground, arrow: Arrow, fault: Fault) -> None:
    receiver = ground.receiver(proxied=True)
    delivery = ground.delivery(2)
    with ThreadPoolExecutor(1) as sender:
        sent: list[Future[None]] = []
        held = arrow.hold(ground, lambda: sent.append(sender.submit(delivery.send)))
        _strike(ground, [receiver], fault)
        held.release()
        if fault == "STOP":
            time.sleep(_STANDSTILL)
        _follow(ground, [receiver], fault)
        sent[0].result(20)
    if receiver.exit_code is not None:
        ground.receiver(proxied=False)
    delivery.send_until_acknowledged()
    ground.delivery(NEWEST).send_until_acknowledged()
    ground.worker(proxied=False)


def _hit_worker(ground: Ground, arrow: Arrow, fault: Fault) -> None:
    receiver = ground.receiver(proxied=False)
    ground.delivery(2).send_until_acknowledged()
    victims: list[Victim] = [receiver] if arrow.process == "both" else []
    held = arrow.hold(ground, lambda: victims.append(ground.worker(proxied=True, **arrow.options)))
    _strike(ground, victims, fault)
    if held.shared or fault != "STOP":
        held.release()
    if fault == "STOP":
        if receiver in victims:
            time.sleep(_STANDSTILL)
            receiver.resume()
        ground.delivery(NEWEST).send_until_acknowledged()
        ground.worker(proxied=False)
        eventually(lambda: set(ground.world.prices().values()) == {f"{NEWEST}.00"}, 30)
        held.release()
    _follow(ground, victims, fault)
    if (
        fault == "STOP"
    ):  # another one drains by now: what the late one has in hand is done when it has noticed
        eventually(lambda: victims[-1].said(RUN_ENDED), 30)
    if fault == "TERM":
        assert ground.world.sql("select 1 as found from esl.sync_queue where state = 'leased'") == []
        assert ground.world.sql("select 1 as found from esl.webhook_inbox where state = 'leased'") == []
    if fault != "STOP":
        if receiver.exit_code is not None:
            ground.receiver(proxied=False)
        ground.delivery(NEWEST).send_until_acknowledged()
    if all(victim.exit_code is not None for victim in victims if victim is not receiver):
        ground.worker(proxied=False)


def _strike(ground: Ground, victims: list[Victim], fault: Fault) -> None:
    if fault == "CUT":
        ground.database.down()
    for victim in victims:
        if fault == "KILL":
            victim.kill()
        elif fault == "TERM":
            victim.terminate()
        elif fault == "STOP":
            victim.pause()
    if fault == "KILL":
        ground.database.cut()  # what the dead had not got out is lost
        ground.labels.cut()


def _follow(ground: Ground, victims: list[Victim], fault: Fault) -> None:
    """What comes once the held change may go on."""
    if fault == "CUT":
        time.sleep(_OUTAGE)
        ground.database.up()
    for victim in victims:
        if fault == "TERM":
            victim.ends_within(_GRACE)
        elif fault == "STOP":
            victim.resume()


# --- what must hold


def _is_settled(world: World) -> bool:
    open_deliveries = "select 1 as found from esl.webhook_inbox where state in ('ready', 'leased')"
    return (
        not world.sql("select 1 as found from esl.sync_queue")
        and not world.sql(open_deliveries)
        and set(world.prices().values()) == {f"{NEWEST}.00"}
    )


def _check_invariants(ground: Ground) -> dict[str, Any]:
    world, state = ground.world, ground.world.sandbox.state()
    codes = [f"C-{n}" for n in NUMBERS]
    # I1: every 2xx has an inbox row.
    kept = {row["webhook_id"] for row in world.sql("select webhook_id from esl.webhook_inbox")}
    for delivery in ground.deliveries:
        assert delivery.statuses[-1] == 200 and delivery.webhook_id in kept, delivery.statuses
    # I2: nothing waits for a lease that has run out (settled: nothing waits at all), nor for the drain's.
    assert world.waiting() == 0
    due = world.buffer.due()  # the refresh of the labels comes some seconds after the pushes
    assert not (due.inbox or due.variants or due.queue), due
    # I3: the label server's last value is the newest version.
    assert world.prices() == dict.fromkeys(codes, f"{NEWEST}.00")
    # I4: a step back is followed by a correction.
    shown = {code: [float(price or 0) for price in world.shown(code)] for code in codes}
    corrected = 0
    for prices in shown.values():
        assert prices[-1] == max(prices)
        corrected += sum(after < before for before, after in pairwise(prices))
    # I5: each call that the label server saw has its intent, and each intent came to a result.
    logged = Counter(
        (row["kind"], row["code"])
        for row in world.sql("select distinct kind, push_id, code from esl.sync_log")
    )
    for code in codes:
        assert state["pushes"][STORE][code] <= logged["intent", code] == logged["result", code]
    # I6: there are no dead letters here; a fault of ours is no attempt of the label's that counts for ever.
    assert world.sql("select 1 as found from esl.webhook_inbox where state in ('dead', 'unusable')") == []
    return {
        "deliveries": " ".join(str(status or "-") for d in ground.deliveries for status in d.statuses),
        "pushes": ", ".join(world.outcomes("C-1")[1:]),
        "label": " ".join(f"{price:.0f}" for price in shown["C-1"]),
        "corrected": corrected,
    }
