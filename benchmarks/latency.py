"""How long a price takes from the receiver's 200 to the label server's acceptance, as the audit tells.

The end is the accepted result in `sync_log`, which is written when the label server's answer has come: its way back and
the writing count. A change that was overtaken on its way is accepted with the newer one of its label.
"""

import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from benchmarks.parts import DEFAULT, SECRET, STORE_SETTINGS, Deployment, eventually, process, told
from benchmarks.webhooks import Change, code, price, shop_name

CONNECTIONS, FIRST_CENTS = 16, 1_000
_RESULTS = """
select i.store_code, i.code, i.label ->> 'pp', extract(epoch from min(r.at))::float8
from esl.sync_log r join esl.sync_log i on i.push_id = r.push_id and i.code = r.code and i.kind = 'intent'
where r.id > %(after)s and r.kind = 'result' and r.outcome = 'accepted' group by 1, 2, 3"""


@dataclass(frozen=True)
class Took:
    """Seconds: quantiles, of so many changes; missing: how many were never accepted."""

    changes: int
    missing: int
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float | None]) -> "Took":
        """Of these; None: never."""
        came = [one for one in seconds if one is not None]
        if len(came) < 2:
            only = came[0] if came else 0
            return cls(len(seconds), len(seconds) - len(came), only, only, only)
        cut = statistics.quantiles(came, n=100, method="inclusive")
        return cls(len(seconds), len(seconds) - len(came), cut[49], cut[94], cut[98])


@dataclass(frozen=True)
class Measured:
    """What came of some changes: of all, of the rises if any were among them, and how many waited as time went by
    (second, number)."""

    every: Took
    rises: Took | None
    waiting: Sequence[tuple[float, int]]

    @property
    def grows(self) -> bool:
        """Whether more and more waited: in the last quarter twice as many as in the second, and a second's worth."""
        counts = [number for _, number in self.waiting]
        quarter = len(counts) // 4
        if quarter < 2:
            return False
        early, late = statistics.mean(counts[quarter : 2 * quarter]), statistics.mean(counts[-quarter:])
        return late > 2 * early and late - early > self.every.changes / max(self.waiting[-1][0], 1)


class Shop:
    """A made-up shop with one store and one-variant products, whose prices change."""

    def __init__(self, deployed: Deployment, number: int, products: int, *, server: str = DEFAULT) -> None:
        self.number, self.products, self.store = number, products, f"S{number}"
        self._cents = [FIRST_CENTS] * products
        self._next = count()
        deployed.map_shops({shop_name(number): self.store}, STORE_SETTINGS, server=server)

    def all_new(self) -> list[Change]:
        """Every product at its first price, at once."""
        return [Change(0, self.number, product, FIRST_CENTS) for product in range(self.products)]

    def changes(self, per_second: float, seconds: float, *, seed: int = 11) -> list[Change]:
        """At this rate, evenly, every other one a rise."""
        chance = random.Random(seed)  # noqa: S311 (repeatable on purpose, guards nothing)
        times = [(n + chance.random()) / per_second for n in range(round(per_second * seconds))]
        return [self.change(due) for due in times]

    def change(self, due: float = 0) -> Change:
        """The next one."""
        turn = next(self._next)
        product, rises = turn % self.products, (turn + turn // self.products) % 2 == 0
        # Never the same price twice, so that each change is found again among the results.
        self._cents[product] += 100 if rises else -7
        return Change(due, self.number, product, self._cents[product], rises)


def measure(deployed: Deployment, changes: Sequence[Change], *, within: float = 120) -> Measured:
    """Send them at their times and wait until all are accepted, at most so many seconds longer."""
    after = _last_result(deployed)
    took = _accepted(deployed, sent(deployed, changes), after, within)
    return _measured(took)


def idle(deployed: Deployment, shop: Shop, samples: int, silence: float) -> Measured:
    """One change after a silence, so many times."""
    eventually("silence", deployed.is_idle, 60)
    after = _last_result(deployed)
    changes = [shop.change((n + 1) * silence) for n in range(samples)]
    return _measured(_accepted(deployed, sent(deployed, changes, connections=1), after, 30))


def beside(
    deployed: Deployment, watched: Sequence[Sequence[Change]], others: Sequence[Change]
) -> list[Measured]:
    """What comes of the changes of each watched shop while others are sent that nobody waits for."""
    after = _last_result(deployed)
    together = sorted((*others, *(one for run in watched for one in run)), key=lambda one: one.due)
    every, shops = sent(deployed, together), [run[0].shop for run in watched]
    arrivals = _accepted(deployed, [one for one in every if one.shop in shops], after, 60)
    return [_measured([one for one in arrivals if one.change.shop == shop]) for shop in shops]


def sent(deployed: Deployment, changes: Sequence[Change], *, connections: int = CONNECTIONS) -> list[Change]:
    """The changes with when they were acknowledged: sent at their times by a process of its own."""
    plan = {
        "address": deployed.receiver,
        "secret": SECRET,
        "connections": connections,
        "changes": [[one.due, one.shop, one.product, one.variants, one.cents] for one in changes],
    }
    with process("-m", "benchmarks.webhooks", log=deployed.home / "sender.log") as child:
        acked = told(child, json.dumps(plan))
    return [replace(one, acked=at) for one, at in zip(changes, acked, strict=True)]


@dataclass(frozen=True)
class _Arrival:
    change: Change
    accepted: float | None

    @property
    def seconds(self) -> float | None:
        return None if self.accepted is None else self.accepted - self.change.acked


def _last_result(deployed: Deployment) -> int:
    ((last,),) = deployed.rows("select coalesce(max(id), 0) from esl.sync_log")
    return int(last)


def _accepted(deployed: Deployment, changes: Sequence[Change], after: int, within: float) -> list[_Arrival]:
    """When the label of each change was accepted, or that of a newer one of the same product."""
    deadline = time.monotonic() + within
    while True:
        arrivals = list(_matched(deployed, changes, after))
        if all(one.accepted is not None for one in arrivals) or time.monotonic() > deadline:
            return arrivals
        time.sleep(0.5)


def _matched(deployed: Deployment, changes: Sequence[Change], after: int) -> Iterator[_Arrival]:
    at = {(store, label, pp): when for store, label, pp, when in deployed.rows(_RESULTS, after=after)}
    newest: dict[tuple[str, str], float] = {}
    found = list[_Arrival]()
    for one in reversed(changes):  # so that what is newer is known
        place = f"S{one.shop}", code(one.shop, one.product)
        own = at.get((*place, price(one.cents)))
        newest[place] = min(own or float("inf"), newest.get(place, float("inf")))
        found.append(_Arrival(one, newest[place] if newest[place] != float("inf") else None))
    yield from reversed(found)


def _measured(arrivals: Sequence[_Arrival]) -> Measured:
    rises = [one.seconds for one in arrivals if one.change.rises]
    return Measured(
        Took.of([one.seconds for one in arrivals]),
        Took.of(rises) if rises else None,
        list(_waiting(arrivals)),
    )


def _waiting(arrivals: Sequence[_Arrival]) -> Iterator[tuple[float, int]]:
    """How many were acknowledged and not yet accepted, each second until the last was acknowledged."""
    start, end = min(one.change.acked for one in arrivals), max(one.change.acked for one in arrivals)
    for second in range(int(end - start) + 1):
        now = start + second
        there = sum(one.change.acked <= now for one in arrivals)
        yield second, there - sum(one.accepted is not None and one.accepted <= now for one in arrivals)
