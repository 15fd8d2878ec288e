"""What a drain run tells Dagster: for each asset and shop what was done, together with the asset's checks."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.rows import FINDINGS, LABELS, RESULTS, VARIANTS, Rows
from esl_pipeline.orchestration import checks, reports
from esl_pipeline.orchestration.evaluations import Judged, kept, newest
from esl_pipeline.orchestration.failures import reason_of
from esl_pipeline.orchestration.shops import products_asset_name
from esl_pipeline.stages.drain import Round

# An event costs Dagster 13-15 ms (dagster.md 1.4): rounds are reported together. So long after the last one, or while
# there is no silence so long after the last report.
_QUIET_SECONDS, _REPORT_SECONDS = 1.0, 10.0
# Each report asks the checks, in three calls, which take seconds where shops are large: a twentieth of the time at
# most, until so many rows wait to be reported.
_CHECKS_SHARE, _ROWS_KEPT = 0.05, 50_000
# Of reporting between two rounds: sixty shops' reports at once would keep a price rise waiting for seconds.
_REPORT_SECONDS_PER_ROUND = 0.05

_Key = tuple[str, str]  # asset, shop
_Made = dg.AssetMaterialization | dg.AssetObservation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """Reports that wait for what the checks say."""

    made: dict[_Key, Callable[[], _Made]]
    at: float
    answer: Future[list[Judged]]


class Journal:
    """Collects rounds, and logs for them one event per asset and shop, with that shop's partition, and at once what the
    asset's checks say: a materialisation opens the checks of its partition.

    A push that no label came of is an observation: nothing has become of the asset. Never raises: what is reported is
    done already, and a report that fails fails nothing else. It is said in the log.
    """

    def __init__(self, context: dg.OpExecutionContext, buffer: Buffer) -> None:
        self._context, self._buffer = context, buffer
        self._began = time.monotonic()
        self._rounds: list[Round] = []
        self._rows = 0
        self._added_at = self._began
        self._asked_at, self._apart = self._began - _REPORT_SECONDS, _REPORT_SECONDS
        self._outcomes = reports.Outcomes()
        # Asked beside the drain.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="checks")
        self._asked: _Asked | None = None
        self._reports = deque[Callable[[], None]]()
        self._said: dict[tuple[_Key, str], tuple[Any, ...]] = {}
        self._problems: set[str] = set()

    def add(self, done: Round) -> None:
        """Remember a round; report when it is time to."""
        for problem in sorted(set(done.evaluation.problems) - self._problems):
            self._problems.add(problem)
            self._say(problem)
        for results in done.results:
            self._outcomes.add(results)
        self._rounds.append(done)
        self._rows += len(done.variants) + len(done.evaluation.labels) + sum(map(len, done.results))
        self._added_at = time.monotonic()
        self.rest()

    def rest(self) -> None:
        """Report what has been collected, if it is time to: some of it, the rest another time."""
        if self._asked is None and not self._reports and self._is_time(time.monotonic()):
            self._ask()
        if self._asked is not None and self._asked.answer.done():
            self._take(self._asked)
        until = time.monotonic() + _REPORT_SECONDS_PER_ROUND
        while self._reports and time.monotonic() < until:
            self._reports.popleft()()

    def close(self) -> None:
        """Log all that has been collected."""
        with self._beside:
            while self._rounds or self._asked or self._reports:
                while self._reports:
                    self._reports.popleft()()
                if self._asked is None and self._rounds:
                    self._ask()
                if self._asked is not None:
                    self._take(self._asked)

    def tell(self) -> str:
        """Say at the end of the run what came of it all -> the sentence."""
        sentence = self._outcomes.said(seconds=time.monotonic() - self._began)
        reports.tell(self._context, sentence, is_well=self._outcomes.all_is_well)
        return sentence

    def _is_time(self, now: float) -> bool:
        """Whether there is something to report, and it was quiet for long enough, or has not been for too long."""
        if not self._rounds or self._rows >= _ROWS_KEPT:
            return bool(self._rounds)
        waited, is_quiet = now - self._asked_at, now - self._added_at >= _QUIET_SECONDS
        return waited >= self._apart and (is_quiet or waited >= self._apart + _REPORT_SECONDS)

    def _ask(self) -> None:
        """One report for each asset and shop of the collected rounds, once the checks of these shops are known."""
        rounds, self._rounds, self._rows = self._rounds, [], 0
        made = self._made(rounds)
        shops = sorted({shop for _, shop in made})
        self._asked_at = time.monotonic()
        ask = partial(checks.evaluations, self._buffer, shops, say=self._say)
        self._asked = _Asked(made, self._asked_at, self._beside.submit(ask))

    def _take(self, asked: _Asked) -> None:
        """Their answer, when it is there: what was done and what the checks say of it are reported together."""
        judged: defaultdict[_Key, list[Judged]] = defaultdict(list)
        try:
            for one in asked.answer.result():
                judged[one.asset, one.shop].append(one)
        except Exception as error:
            self._say(f"the checks could not be made: {reason_of(error)}")
        self._asked = None
        self._apart = max(_REPORT_SECONDS, (time.monotonic() - asked.at) / _CHECKS_SHARE)
        for key in [*asked.made, *(key for key in judged if key not in asked.made)]:
            self._reports.append(partial(self._report, key, asked.made.get(key), judged[key]))

    def _report(self, key: _Key, make: Callable[[], _Made] | None, judged: list[Judged]) -> None:
        """What was done at a shop's partition of an asset, if anything was, and what its checks say."""
        asset, shop = key
        try:
            made = make() if make is not None else None
            if made is not None:
                self._context.log_event(made)
        except Exception as error:
            made = None
            self._failed(f"{asset} of {shop}", error)
        try:
            opens = isinstance(made, dg.AssetMaterialization)
            wanted = [one for one in judged if opens or self._said.get((key, one.name)) != _says(one)]
            target = newest(self._context.instance, asset, shop) if wanted or opens else None
            if opens and asset == products_asset_name(shop):
                wanted += kept(self._context.instance, asset, shop, checks.judged_elsewhere(shop))
            for one in wanted:
                self._context.log_event(one.about(target))  # type: ignore[arg-type]  # it takes checks too
                self._said[key, one.name] = _says(one)
        except Exception as error:
            self._failed(f"the checks of {asset} of {shop}", error)

    def _made(self, rounds: list[Round]) -> dict[_Key, Callable[[], _Made]]:
        """How each event is made."""
        events = [event for done in rounds for event in done.events]
        variants = _joined([done.variants for done in rounds], VARIANTS)
        labels = _joined([done.evaluation.labels for done in rounds], LABELS)
        findings = _joined([done.evaluation.findings for done in rounds], FINDINGS)
        results = _joined([frame for done in rounds for frame in done.results], RESULTS)
        event_shop = pd.Series([event["shop"] for event in events], dtype=str)
        variant_shop, label_shop, result_shop = _shops(variants), _shops(labels), results["shop"]
        made: dict[_Key, Callable[[], _Made]] = {}

        def reported(asset: str, shop: str, report: Callable[[], dict[str, Any]]) -> None:
            made[asset, shop] = lambda: _event(dg.AssetMaterialization, asset, shop, report())

        def pushed(shop: str) -> _Made:
            said = reports.Outcomes()
            report = reports.results_report([results[result_shop == shop]], said)
            kind = dg.AssetMaterialization if said.anything_changed else dg.AssetObservation
            return _event(kind, checks.RESULTS, shop, report)

        for shop in sorted({*event_shop, *variant_shop}):
            mine = [event for event in events if event["shop"] == shop]
            changed = variants[variant_shop == shop]
            reported(products_asset_name(shop), shop, partial(reports.products_report, mine, [changed]))
        for shop in sorted(set(label_shop)):
            ours, found = labels[label_shop == shop], reports.FindingsTally()
            found.add(findings[findings["mapping_id"].isin(ours["mapping_id"])])
            reported(checks.VARIANTS, shop, partial(reports.labels_report, [ours], found))
        for shop in sorted(set(result_shop)):
            made[checks.RESULTS, shop] = partial(pushed, shop)
        return made

    def _failed(self, what: str, error: Exception) -> None:
        _log.error("a report failed", exc_info=error)
        self._say(f"what was done could not be reported ({what}): {reason_of(error)}")

    def _say(self, text: str) -> None:
        with suppress(Exception):  # Dagster's storage may be what is away
            self._context.log.error(text)


def _event(
    kind: type[dg.AssetMaterialization] | type[dg.AssetObservation],
    asset: str,
    shop: str,
    report: dict[str, Any],
) -> _Made:
    """With the outcome as its description, too."""
    return kind(
        asset_key=asset,
        partition=shop,
        description=report[reports.OUTCOME],
        metadata=reports.of_shop(report, shop),
    )


def _says(judged: Judged) -> tuple[Any, ...]:
    """What somebody would see change."""
    return judged.result.passed, judged.result.description


def _joined(frames: list[pd.DataFrame], rows: Rows) -> pd.DataFrame:
    filled = [frame for frame in frames if not frame.empty]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=rows.names)


def _shops(frame: pd.DataFrame) -> pd.Series:
    return frame["source_system"].astype(str) + ":" + frame["source_store_id"].astype(str)
