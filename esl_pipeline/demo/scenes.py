"""A wave sent to the running parts, the wait until its labels hang, and what then differs from what must hang."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.demo.day import Difference, Label, compare
from esl_pipeline.demo.night import (
    await_reads,
    drift_in_dagster,
    meddle,
    reconcile,
    repaired_in_buffer,
    run_job,
)
from esl_pipeline.demo.report import NightReport, Row, WaveReport
from esl_pipeline.demo.shelf import ShelfReport, shelf_of
from esl_pipeline.demo.shop import BY, STORE, Act, DemoError, ShopUnderDemo
from esl_pipeline.local.stack import Stack

SETTLE_SECONDS = 120.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class _Moment:
    """How far the pipeline is: what waits where, and which labels are not right yet."""

    webhooks_waiting: int
    variants_due: bool
    labels_waiting: int
    last_error: str | None
    sandbox: dict[str, Any]
    wrong: list[Difference]
    not_shown: list[Difference]
    """Of the physical labels, those that show something else."""
    refreshes_waiting: bool
    labels_refreshing: bool
    """Whether physical labels are about to fetch their pictures."""

    @property
    def not_right(self) -> int:
        """How many of the expected labels are not on the shelf, or different."""
        return sum(difference.kind != "extra" for difference in self.not_shown)

    @property
    def queue(self) -> str:
        return f"{self.labels_waiting} in the queue" if self.labels_waiting else ""

    @property
    def settled(self) -> bool:
        return not (
            self.webhooks_waiting
            or self.variants_due
            or self.labels_waiting
            or self.refreshes_waiting
            or self.labels_refreshing
        )


class Stage:
    """The running parts, and what must hang on the shelf: sends a wave and waits until its labels are there."""

    def __init__(self, shop: ShopUnderDemo, stack: Stack, buffer: Buffer, story: Console) -> None:
        self._shop, self._stack, self._buffer, self._story = shop, stack, buffer, story
        self._expected: Mapping[str, Label] = {}
        if stack.urls.labels is None:
            raise DemoError("the parts came up without the label server of the demo")
        self._labels = stack.urls.labels

    def connect_shop(self, policy: Row) -> None:
        """Connect the shop, as any shop is, and let its labels go out; policy: what its store's has beside that."""
        self._story.print(f"\n[bold]The shop's first day[/], {self._shop.first_day}", highlight=False)
        self._shop.connect(self._stack.settings, self._buffer, self._stack.urls.receiver, self._tell)
        if policy:
            for mapping in self._buffer.mapping_list():
                settings = {**mapping["settings"], **policy}
                self._buffer.mapping_update(mapping["id"], {"settings": settings}, by=BY)
            self._tell("policy", ", ".join(f"{name}: {value}" for name, value in policy.items()))

    def _tell(self, what: str, says: str) -> None:
        self._story.print(f"  {what:<14}{escape(says)}", highlight=False, soft_wrap=True)

    def sandbox(self) -> dict[str, Any]:
        """Everything the label server remembers."""
        state: dict[str, Any] = (
            httpx.get(f"{self._labels}/sandbox/state", timeout=30).raise_for_status().json()
        )
        return state

    def shelf(self) -> ShelfReport:
        """What the physical labels show now, beside what must hang."""
        return shelf_of(self._places(), self._expected)

    def _places(self) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self._labels}/sandbox/shelf", params={"store": STORE}, timeout=30)
        return list(answer.raise_for_status().json())

    def perform(self, act: Act) -> WaveReport:
        """Let an act happen, wait until it has had its effect, compare. Raises DemoError when that takes too long."""
        report = WaveReport(act.name)
        began, kept_before = datetime.now(UTC), self._kept()
        with self._progress() as progress:
            sending = progress.add_task(f"{self._shop.sends} sent", total=None, note="")
            for sent, total in self._shop.play(act.name, self._stack.urls.receiver):
                progress.update(sending, completed=sent, total=total)
            fate, kept = self._shop.fate, self._kept() - kept_before
            report.answers.update(
                accepted=kept,
                duplicate=fate.delivered - kept,
                refused=fate.refused,
                dropped=fate.dropped,
            )
            if act.job:
                note = f"{act.job}: what no webhook tells"
                waiting = progress.add_task("reading", total=None, note=note)
                run_job(self._stack.urls.ui, act.job)
                progress.update(waiting, total=1, completed=1)
            labels = self._shop.labels
            report.labels = len(labels)
            reading = progress.add_task("webhooks read", total=kept, note="", visible=not self._shop.files)
            hanging = progress.add_task("labels right", total=report.labels, note="")
            for moment in self._moments(labels):
                progress.update(reading, completed=kept - moment.webhooks_waiting)
                progress.update(hanging, completed=report.labels - moment.not_right, note=moment.queue)
        report.wrong, report.not_shown = moment.wrong, moment.not_shown
        changes = [at for at in _refreshes(moment.sandbox) if at >= began]
        report.first_label_seconds = round((min(changes) - began).total_seconds(), 1) if changes else None
        report.right_seconds = round((max(changes) - began).total_seconds(), 1) if changes else None
        return report

    def night(self) -> NightReport:
        """Meddle with the labels, reconcile, and compare them with the shop as it is. Raises DemoError, as above."""
        told, shown = dict(self._shop.labels), self.sandbox()["labels"]
        await_reads(self._stack.urls.ui)
        self._shop.night_falls()
        labels = self._shop.labels
        # What nothing else sets right: not a dropped webhook's labels.
        known = [code for code, label in sorted(labels.items()) if told.get(code) == label]
        done = meddle(self._labels, STORE, known, self._shop.rng)
        expected = {**labels, **done.foreign}
        began = time.monotonic()
        with self._progress() as progress:
            hanging = progress.add_task("labels right", total=len(expected), note="reading the whole shop")
            run_id = reconcile(self._stack.urls.ui, self._shop.partition)
            for moment in self._moments(expected):
                progress.update(hanging, completed=len(expected) - moment.not_right, note=moment.queue)
        return NightReport(
            labels=len(labels),
            outdated=len(compare(labels, STORE, shown)),
            drift=done.drift,
            drift_in_dagster=drift_in_dagster(self._stack.urls.ui, run_id),
            repaired=repaired_in_buffer(self._stack.settings, run_id),
            seconds=round(time.monotonic() - began, 1),
            wrong=moment.wrong,
            not_shown=moment.not_shown,
        )

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description:<16}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._story,
        )

    def _kept(self) -> int:
        """How many webhooks are in the inbox, in whatever state."""
        return sum(shop["deliveries"] for shop in self._buffer.status()["shops"])

    def _moments(self, expected: Mapping[str, Label]) -> Iterator[_Moment]:
        """Compare with these labels, again and again, until inbox, variants and queue are empty.

        Raises DemoError when time is up.
        """
        self._expected = expected
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            self._stack.check()
            # In the direction of the work: what is found empty stays empty.
            inbox = inbox_of(self._buffer.status())
            due = self._buffer.due()
            status = self._buffer.status()
            queue = status["stores"][0]["queue"]
            refreshing = any(place["refreshing"] and place["reachable"] for place in self._places())
            sandbox = self.sandbox()
            moment = _Moment(
                webhooks_waiting=inbox["waiting"],
                variants_due=due.variants,
                labels_waiting=queue["waiting"],
                last_error=queue["last_error"],
                sandbox=sandbox,
                wrong=compare(expected, STORE, sandbox["labels"]),
                not_shown=compare(expected, STORE, sandbox["shown"]),
                refreshes_waiting=bool(status["refreshes"]["waiting"]),
                labels_refreshing=refreshing,
            )
            yield moment
            if moment.settled:
                return
            if time.monotonic() > deadline:
                raise DemoError(_too_late(moment))
            time.sleep(_POLL_SECONDS)


def inbox_of(status: Row) -> Row:
    """What is told of the shop's deliveries; a shop without webhooks has none."""
    return next(iter(status["shops"]), dict.fromkeys(("waiting", "superseded", "unusable", "dead"), 0))


def _too_late(moment: _Moment) -> str:
    said = (
        f"after {SETTLE_SECONDS:.0f} s {moment.webhooks_waiting} webhooks still wait in the inbox, "
        f"{moment.labels_waiting} labels in the queue, and {len(moment.not_shown)} labels are not right"
    )
    return f"{said}; the last error: {moment.last_error}" if moment.last_error else said


def _refreshes(sandbox: Row) -> Iterator[datetime]:
    """When physical labels changed."""
    for times in sandbox["refreshes"].values():
        yield from map(datetime.fromisoformat, times)
