"""What a run of hipoink_sync_results does with one shop, at each label server by itself."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import dagster as dg
import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.model.label_server import called
from esl_pipeline.model.push import PushRules
from esl_pipeline.model.rows import RESULTS, Rows
from esl_pipeline.model.shop import Shop
from esl_pipeline.orchestration.failures import several_failed
from esl_pipeline.orchestration.frames import Parts
from esl_pipeline.orchestration.resources import LabelServers
from esl_pipeline.stages.drift import Drift, compare_store
from esl_pipeline.stages.push import claim_batch, push_claimed
from esl_pipeline.stages.pusher import Pusher
from esl_pipeline.stages.refresh import Refresher, RefreshRules

_BATCHES_PER_PART = 50
_LISTINGS = 3
# Each takes two of the run's connections.
_STORES_AT_ONCE = 3
# A run's own bursts are two at most, and it does not wait for the gap between them.
_REFRESH_RULES = RefreshRules(gap=0)


def _stores_by_server(mappings: Sequence[StoreMapping]) -> dict[str, list[str]]:
    """The label servers that these mappings' stores are at, with those that are live; in order."""
    live: dict[str, set[str]] = {mapping.label_server: set() for mapping in mappings}
    for mapping in mappings:
        if mapping.is_active and not mapping.is_dry_run:
            live[mapping.label_server].add(mapping.store)
    return {name: sorted(live[name]) for name in sorted(live)}


class _SharedParts(Parts):
    """Parts that several threads add to."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._adding = threading.Lock()

    def add(self, part: pd.DataFrame) -> None:
        """Append the rows of a frame."""
        with self._adding:
            super().add(part)


@dataclass
class _Part:
    """What was done at one label server. failures: the stores that were not reached or compared, and why."""

    push_seconds: float = 0.0
    drifts: list[Drift] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)


@dataclass
class Pushed:
    """What became of a shop. push_seconds: until all that was due was pushed, at the slowest server."""

    servers: Sequence[str]
    results: Parts
    push_seconds: float
    drifts: Sequence[Drift]
    failures: Mapping[str, Exception]

    def check(self, *, compares: bool) -> None:
        """Raises dg.Failure when a store was not reached or compared, whatever became of the others."""
        if self.failures:
            failed, stores = len(self.failures), len(self.failures) + len(self.drifts)
            of = f"{failed} of {stores} stores" if compares else f"{failed} stores"
            done = "compared" if compares else "pushed to"
            raise several_failed(f"{of} could not be {done}", self.failures)


def push_shop(buffer: Buffer, servers: LabelServers, shop: Shop, *, run_id: str, compares: bool) -> Pushed:
    """Push what is due of a shop, at each of its label servers by itself: none waits for another one.

    compares: then compare what the servers list of its live stores, and push what has drifted. Raises BufferError.
    """
    stores = _stores_by_server(buffer.mappings(shop=shop))
    work = _Work(buffer, servers, shop, run_id, _SharedParts(RESULTS))
    with ThreadPoolExecutor(max_workers=len(stores) or 1) as beside:
        parts = list(beside.map(lambda name: work.at(name, stores[name], compares=compares), stores))
    return Pushed(
        servers=list(stores),
        results=work.results,
        push_seconds=max((part.push_seconds for part in parts), default=0.0),
        drifts=[drift for part in parts for drift in part.drifts],
        failures={store: error for part in parts for store, error in part.failures.items()},
    )


@dataclass(frozen=True)
class _Work:
    """Pushes and comparisons of one shop, at each of its label servers by itself."""

    buffer: Buffer
    servers: LabelServers
    shop: Shop
    run_id: str
    results: Parts

    def at(self, name: str, stores: Sequence[str], *, compares: bool) -> _Part:
        """Push what is due at a server, compare these stores of it, and push what has drifted."""
        part, started, buffer = _Part(), time.monotonic(), self.buffer.at(name)
        try:
            server = self.servers.of(name)
        except SettingsError as error:
            failure = dg.Failure(error.problems[0], allow_retries=False)
            part.failures = {self._named(store, name): failure for store in stores}
            return part
        with server.client(buffer) as client:
            self._push(buffer, client, server.rules)
            part.push_seconds = round(time.monotonic() - started, 3)
            if compares:
                self._compare(part, buffer, client, stores)
                self._push(buffer, client, server.rules)
        return part

    def _compare(self, part: _Part, buffer: Buffer, client: HipoinkClient, stores: Sequence[str]) -> None:
        """Every store by itself, some side by side."""
        threads = ThreadPoolExecutor(_STORES_AT_ONCE, "compare")
        try:
            asked = [
                (store, threads.submit(_listed, buffer, client, store, run_id=self.run_id))
                for store in stores
            ]
            for store, answer in asked:
                try:
                    part.drifts.append(answer.result())
                except Exception as error:
                    part.failures[self._named(store, buffer.label_server)] = error
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # a run that is ended waits for none

    def _push(self, buffer: Buffer, client: HipoinkClient, rules: PushRules) -> None:
        _push_all(buffer, client, rules, run_id=self.run_id, shop=self.shop, results=self.results)

    def _named(self, store: str, server: str) -> str:
        """A store, with its server where there are several."""
        servers = {server, *self.buffer.label_servers}
        return f"{store} at {called(server, servers)}" if len(servers) > 1 else store


def _listed(buffer: Buffer, client: HipoinkClient, store: str, *, run_id: str) -> Drift:
    """Again when labels came or went meanwhile: near real time goes on while a store is listed."""
    for _ in range(_LISTINGS):
        drift = compare_store(buffer, client, store=store, run_id=run_id)
        if drift.complete:
            break
    return drift


def _push_all(
    buffer: Buffer, client: HipoinkClient, rules: PushRules, *, run_id: str, shop: Shop, results: Parts
) -> None:
    """Push what is due of a shop, and add the results: some batches at a time, for a part is worth a few rows."""
    while buffer.graces_end(shop=shop):
        pass
    stop = threading.Event()
    pusher = Pusher(
        partial(claim_batch, buffer, rules, run_id=run_id, asset="hipoink_sync_results", shop=shop),
        partial(push_claimed, buffer, client, rules, stop=stop),
        stop,
        concurrency=rules.concurrency,
    )
    waiting: list[pd.DataFrame] = []
    try:
        refresh_rules = replace(_REFRESH_RULES, concurrency=rules.concurrency)
        with Refresher(buffer, client, refresh_rules, run_id=run_id, shop=shop) as refresher, pusher:
            for pushed in pusher.until_idle():
                refresher.ask()
                waiting.append(pushed)
                if len(waiting) == _BATCHES_PER_PART:
                    results.add(pd.concat(waiting, ignore_index=True))
                    waiting = []
    finally:
        waiting += pusher.take()
        if waiting:
            results.add(pd.concat(waiting, ignore_index=True))
