"""One store whose every call hangs: what that costs another store of the same label server, and one of another."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.latency import Shop, beside
from benchmarks.parts import DEFAULT, Deployment, eventually

RUNS = 3


@dataclass(frozen=True)
class Cost:
    """p95 in seconds of a store without and beside the store that hangs, medians of the interleaved runs."""

    where: str
    without: float
    hanging: float

    @property
    def ratio(self) -> float:
        """How many times as long."""
        return self.hanging / self.without


def measure(
    deployed: Deployment,
    shops: Sequence[Shop],
    hung: Shop,
    *,
    per_second: float,
    seconds: float,
    hold: float,
    milliseconds: float,
) -> list[Cost]:
    """The cost for each of the shops, the first of which is at the label server of the hung one (`default`). All change
    at the same rate; a call of the hung store is answered after `hold` seconds."""
    p95: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(RUNS):
        for hangs in (False, True):
            deployed.take(milliseconds)
            eventually("the end of what hung", deployed.is_idle, 120)
            if hangs:
                deployed.faults(
                    DEFAULT,
                    {"kind": "latency", "ms": milliseconds},
                    {"kind": "hold", "store": hung.store, "seconds": hold},
                )
            runs = [shop.changes(per_second, seconds) for shop in shops]
            measured = beside(deployed, runs, hung.changes(per_second, seconds, seed=12))
            p95[hangs].append([one.every.p95 for one in measured])
    deployed.take(milliseconds)
    names = ("the same label server", "another label server")
    medians = {
        hangs: [statistics.median(run[place] for run in runs) for place in range(len(shops))]
        for hangs, runs in p95.items()
    }
    return [
        Cost(where, without, hanging)
        for where, without, hanging in zip(names, medians[False], medians[True], strict=False)
    ]
