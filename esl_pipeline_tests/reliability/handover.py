"""Kills drains in the middle of a handover: when the next one waits, before the old one has let go of the lease."""

import random
import re
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from esl_pipeline.local.variables import running_environment
from esl_pipeline_tests.processes import runs_of, send
from esl_pipeline_tests.waiting import eventually

# The old run looks whether the next one waits every two seconds: so long does a handover last.
_LOOK_SECONDS = 0.1
_OF_HANDOVERS = 3
_LEASES = """
    select name, holder, case when successor_is_ready and successor_until > clock_timestamp() then successor end
    from esl.leases where name like 'event_sync:%'
"""
# Which process a run is stands in what Dagster has logged of it.
_SAID_BY_RUN = """
    select e.event from runs r join event_logs e on e.run_id = r.run_id
    where strpos(r.run_body, %s) > 0 and strpos(e.event, '(pid: ') > 0 order by e.id desc
"""


class _Lease(NamedTuple):
    """Who holds a lease, and who is there to take it over."""

    holder: str
    next: str | None


class Handovers:
    """Watches the drains' leases and kills the old or the next run, now and then, but the first time for certain.

    A context manager: it does so in a thread of its own.
    """

    def __init__(self, home: Path, rng: random.Random) -> None:
        self._home, self._rng = home, rng
        self.made = 0
        self.kills: Counter[str] = Counter()
        self._known: dict[str, _Lease] = {}
        self._spared: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="handovers", daemon=True)

    def __enter__(self) -> "Handovers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def wait_for_kill(self, within: float) -> None:
        """Wait until one was killed in a handover, at most so long."""
        try:
            eventually(lambda: self.kills.total() > 0, within)
        except AssertionError:
            return

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                with psycopg.connect(self._address("ESL_DATABASE_URL"), autocommit=True) as connection:
                    while not self._stop.wait(_LOOK_SECONDS):
                        self._look(connection)
            except (psycopg.Error, KeyError):  # it is being killed itself
                self._known.clear()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        for name, *who in connection.execute(_LEASES).fetchall():
            before, lease = self._known.get(name), _Lease(*who)
            self._known[name] = lease
            if before is not None and before.next == lease.holder:
                self.made += 1
            if lease.next is not None and lease.next not in self._spared:
                self._spared.add(lease.next)
                if not self.kills or self._rng.randrange(_OF_HANDOVERS) == 0:
                    self._kill(lease, self._rng.choice(("old", "next")))

    def _kill(self, lease: _Lease, which: str) -> None:
        pid = self._process_of(lease.holder if which == "old" or lease.next is None else lease.next)
        if pid in runs_of(self._home) and send(signal.SIGKILL, pid):
            self.kills[which] += 1

    def _process_of(self, holder: str) -> int:
        """The process id of the run that was started for this holder, as far as it is known."""
        address = self._address("ESL_DAGSTER_DATABASE_URL").replace("+psycopg2", "", 1)
        with psycopg.connect(address) as connection:
            for (event,) in connection.execute(_SAID_BY_RUN, [holder]):
                if found := re.search(r"\(pid: (\d+)\)", event):
                    return int(found[1])
        return 0

    def _address(self, name: str) -> str:
        return running_environment(self._home)[name]
