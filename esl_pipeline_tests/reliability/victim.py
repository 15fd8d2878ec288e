"""One `esl-pipeline up` whose parts are killed, and what goes wrong at its label servers meanwhile."""

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from esl_pipeline.local.webserver import Webserver
from esl_pipeline_tests.processes import Up, part_of, runs_of, send
from esl_pipeline_tests.reliability.outside import LabelServer, Row, fixed_ports
from esl_pipeline_tests.waiting import eventually

# Each once in a random order, then again: all of them come early and equally often.
KILLS = (
    "event_sync run",
    "receiver",
    "Postgres",
    "Dagster daemon",
    "event_sync run",
    "code server",
    "Postgres restart",
    "up",
)
LABEL_SERVER: dict[str, Row | None] = {
    "errors 500": {"kind": "status", "status": 500, "probability": 0.7},
    "errors 503, taken all the same": {"kind": "status", "status": 503, "probability": 0.7, "apply": True},
    "429": {"kind": "status", "status": 429, "retry_after": "2", "probability": 0.7},
    "HTML": {"kind": "text", "probability": 0.7},
    "slow": {"kind": "latency", "ms": 2_000},
    "black hole": {"kind": "hold", "seconds": 60, "apply": True},
    "reset": {"kind": "reset", "probability": 0.7, "apply": True},
    "refuse": None,
    "busy": {"kind": "error", "error_code": 1, "error_msg": "system busy", "probability": 0.7},
    "this store is refused": {"kind": "error", "store": "", "error_msg": "store not exist"},
    "refreshes are refused": {"kind": "error", "action": "bind_task", "error_msg": "ap offline"},
    "some labels are refused": {"kind": "bad_codes", "codes": []},
    "some labels slip from its lists": {"kind": "hidden", "hides": []},
}


@dataclass
class Victim:
    """A pipeline of its own home and fixed ports; `variables` are its settings."""

    home: Path
    variables: dict[str, str]
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.home.chmod(0o755)
        ports = fixed_ports()
        self._ports = ("--receiver-port", str(ports.receiver), "--ui-port", str(ports.ui))
        self.receiver, self.ui = f"http://127.0.0.1:{ports.receiver}", f"http://127.0.0.1:{ports.ui}"
        self._up: Up | None = None
        self._starts = 0

    def start(self) -> None:
        """Begin to start it; `wait` waits for it."""
        self._starts += 1
        self._up = Up(self.home, *self._ports, **self.variables)

    def wait(self) -> None:
        """Wait until everything answers."""
        assert self._up is not None
        self._up.wait_until_ready()

    def check(self) -> None:
        """Fail when it has ended by itself."""
        if self._up is not None:
            assert self._up.process.poll() is None, self._up.said()

    def stop(self) -> None:
        """End it and all its processes, if it runs."""
        if self._up is not None:
            self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait for the end of all its processes."""
        assert self._up is not None
        self._up.end(number)
        self._up.leaves_nothing(set())
        (self.home / "up.log").rename(self.home / f"up-{self._starts}.log")
        self._up = None

    def kill(self, kind: str) -> bool:
        """Kill one part now; False when there is none, as there is not always a run."""
        assert self._up is not None
        if kind == "up":
            self.end(signal.SIGKILL)
            self.start()
            self.wait()
        else:
            pid = self._pid(kind)
            if not pid or not send(signal.SIGINT if kind == "Postgres restart" else signal.SIGKILL, pid):
                return False
        self.kills[kind] += 1
        return True

    def is_sound(self) -> bool:
        """Whether receiver, UI and code location answer."""
        self.check()
        try:
            alive = httpx.get(f"{self.receiver}/health", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False
        return alive and bool(part_of(self.home, "Dagster daemon")) and Webserver(self.ui).is_loaded()

    def _pid(self, kind: str) -> int:
        if kind == "event_sync run":
            return next(iter(runs_of(self.home)), 0)
        return part_of(self.home, "Postgres" if kind == "Postgres restart" else kind)


class Trouble:
    """The faults of a soak, drawn from `rng`: one of a label server (some concern a few `codes`), kills, pauses.

    One server alone is at fault at a time.
    """

    def __init__(
        self, victim: Victim, labels: Sequence[LabelServer], rng: random.Random, codes: Sequence[str] = ("",)
    ) -> None:
        self._victim, self._labels, self._rng, self._codes = victim, labels, rng, codes
        self._kills, self._faults = self._shuffled(KILLS), self._shuffled(LABEL_SERVER)
        self.faults: Counter[str] = Counter()

    def make(self, until: float, pause: float) -> Iterator[str]:
        """Make trouble until then (monotonic), with pauses around so many seconds; yields what was done."""
        while time.monotonic() < until:
            fault, labels = next(self._faults), self._rng.choice(self._labels)
            self._break(fault, labels)
            yield f"label server {labels.name}: {fault}"
            self._pause(pause, until)
            yield from self._kill(until)
            self._pause(pause, until)
            self.end()
            yield from self._kill(until)
            self._pause(pause * 2, until)
        self.end()

    def end(self) -> None:
        """The label servers work again."""
        for labels in self._labels:
            labels.accept()
            labels.faults()

    def _kill(self, until: float) -> Iterator[str]:
        while time.monotonic() < until:
            kind = next(self._kills)
            if self._victim.kill(kind):
                yield f"killed: {kind}"
                return

    def _break(self, fault: str, labels: LabelServer) -> None:
        self.faults[fault] += 1
        rule = LABEL_SERVER[fault]
        if rule is None:
            labels.refuse()
        else:
            some = self._rng.sample(self._codes, min(5, len(self._codes)))
            filled: Row = {name: some for name, value in rule.items() if value == []}
            if "store" in rule:
                filled["store"] = labels.store
            labels.faults(rule | filled | {"seed": self._rng.randrange(1000)})

    def _pause(self, seconds: float, until: float) -> None:
        wake = min(time.monotonic() + self._rng.uniform(0.5, 1.5) * seconds, until)
        while time.monotonic() < wake:
            self._victim.check()
            time.sleep(0.2)

    def _shuffled(self, names: object) -> Iterator[str]:
        while True:
            order = list(names)  # type: ignore[call-overload]
            self._rng.shuffle(order)
            yield from order


def until_sound(victim: Victim, within: float = 120) -> None:
    """Wait until the pipeline answers everywhere."""
    eventually(victim.is_sound, within, "the pipeline to be whole again")
