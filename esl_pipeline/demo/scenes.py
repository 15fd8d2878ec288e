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
from esl_pipeline.commands.shopify import first_day
from esl_pipeline.demo.day import DemoDay, Difference, Label, Shelf, Wave, compare
from esl_pipeline.demo.night import drift_in_dagster, meddle, reconcile, repaired_in_buffer
from esl_pipeline.demo.report import NightReport, Row, WaveReport
from esl_pipeline.local.stack import Stack
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.shop import DOMAIN, real_time
from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline.sources.shopify.connect import Line, NotConnectedError

STORE = "DEMO"
SETTLE_SECONDS = 120.0
_BY = "esl-pipeline demo"
_SENDING_SECONDS = 60.0
_POLL_SECONDS = 0.25


class DemoError(Exception):
    """The demo could not be played to its end; the message says what happened."""


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
            self.webhooks_waiting or self.variants_due or self.labels_waiting or self.refreshes_waiting
        )


class Stage:
    """The running parts, and what must hang on the shelf: sends a wave and waits until its labels are there."""

    def __init__(
        self, day: DemoDay, stack: Stack, buffer: Buffer, sender: WebhookSender, story: Console
    ) -> None:
        self.shelf = Shelf()
        self._day, self._stack, self._buffer = day, stack, buffer
        self._sender, self._story = sender, story
        self._arrived: set[str] = set()
        """The events that the receiver was told of, by id."""
        if stack.urls.labels is None:
            raise DemoError("the parts came up without the label server of the demo")
        self._labels = stack.urls.labels

    def connect_shop(self) -> None:
        """Connect the shop, still without products, as any shop is, and let its labels go out."""
        self._story.print(
            "\n[bold]The shop's first day[/], as by esl-pipeline shopify connect", highlight=False
        )
        wish = first_day.Wish(DOMAIN, store=STORE)
        try:
            done = first_day.connect(self._stack.settings, self._buffer, wish, by=_BY, say=self._tell)
        except NotConnectedError as error:
            raise DemoError(f"the shop could not be connected: {error}") from None
        if done.mapping is not None:
            first_day.live(self._buffer, done.mapping, by=_BY)

    def _tell(self, line: Line) -> None:
        self._story.print(f"  {line.what:<14}{escape(line.says)}", highlight=False, soft_wrap=True)

    def sandbox(self) -> dict[str, Any]:
        """Everything the label server remembers."""
        state: dict[str, Any] = (
            httpx.get(f"{self._labels}/sandbox/state", timeout=30).raise_for_status().json()
        )
        return state

    def perform(self, name: str, wave: Wave) -> WaveReport:
        """Send a wave, wait until it has had its effect, compare. Raises DemoError when that takes too long."""
        report = WaveReport(name)
        began = datetime.now(UTC)
        with self._progress() as progress:
            sending = progress.add_task("webhooks sent", total=len(wave), note="")
            for sent in self._send(wave, report):
                progress.update(sending, completed=sent)
            # The labels are right when they show what has arrived, however much that is.
            self.shelf.settle(self._day.as_told(self._arrived))
            report.labels = len(self.shelf.labels)
            kept = report.answers["accepted"]
            reading = progress.add_task("webhooks read", total=kept, note="")
            hanging = progress.add_task("labels right", total=report.labels, note="")
            for moment in self._moments(self.shelf.labels):
                progress.update(reading, completed=kept - moment.webhooks_waiting)
                progress.update(hanging, completed=report.labels - moment.not_right, note=moment.queue)
        report.wrong, report.not_shown = moment.wrong, moment.not_shown
        changes = [at for at in _refreshes(moment.sandbox) if at >= began]
        report.first_label_seconds = round((min(changes) - began).total_seconds(), 1) if changes else None
        report.right_seconds = round((max(changes) - began).total_seconds(), 1) if changes else None
        return report

    def night(self) -> NightReport:
        """Meddle with the labels, reconcile, and compare them with the shop as it is. Raises DemoError, as above."""
        told, shown = dict(self.shelf.labels), self.sandbox()["labels"]
        self.shelf.settle(self._day.shop.products.values())
        self._day.shop.clock = real_time
        # What nothing else sets right: not a dropped webhook's labels.
        known = [code for code, label in sorted(self.shelf.labels.items()) if told.get(code) == label]
        done = meddle(self._labels, STORE, known, self._day.shop.rng)
        expected = {**self.shelf.labels, **done.foreign}
        began = time.monotonic()
        with self._progress() as progress:
            hanging = progress.add_task("labels right", total=len(expected), note="reading the whole shop")
            run_id = reconcile(self._stack.urls.ui)
            for moment in self._moments(expected):
                progress.update(hanging, completed=len(expected) - moment.not_right, note=moment.queue)
        return NightReport(
            labels=len(self.shelf.labels),
            outdated=len(compare(self.shelf.labels, STORE, shown)),
            drift=done.drift,
            drift_in_dagster=drift_in_dagster(self._stack.urls.ui, run_id),
            repaired=repaired_in_buffer(self._stack.settings, run_id),
            seconds=round(time.monotonic() - began, 1),
            wrong=moment.wrong,
            not_shown=moment.not_shown,
        )

    def example(self) -> str:
        """The code of a label whose new price was told by a webhook: of the product with the most variants; or ""."""
        told = [change for change in self._day.repriced if change.event_id in self._arrived]
        best = max(told, key=lambda change: len(change.product.variants), default=None)
        return (best.variant.barcode or "") if best else ""

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description:<16}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._story,
        )

    def _send(self, wave: Wave, report: WaveReport) -> Iterator[int]:
        """Send everything, with trouble on the way; yields how many are out, and reports what became of them."""
        before, kept_before = self._sender.state(0)["sent"], self._kept()
        for delivery in wave.deliveries:
            self._sender.send(delivery)
        for delivery in wave.forged:
            self._forge(delivery)
        deadline = time.monotonic() + _SENDING_SECONDS
        while not self._sender.wait(0.1):
            yield max(0, len(wave) - self._sender.state(0)["pending"])
            if time.monotonic() > deadline:
                raise DemoError(f"the receiver did not take all webhooks within {_SENDING_SECONDS:.0f} s")
        yield len(wave)
        fates = [attempt for attempt in self._sender.attempts() if attempt.number > before]
        delivered = [attempt.number for attempt in fates if attempt.outcome == "delivered"]
        self._arrived |= {wave.deliveries[number - before - 1].event_id for number in delivered}
        accepted = self._kept() - kept_before
        report.answers["accepted"] = accepted
        report.answers["duplicate"] = len(delivered) - accepted
        report.answers["refused"] = len(wave.forged)
        report.answers["dropped"] = sum(attempt.outcome == "dropped" for attempt in fates)

    def _kept(self) -> int:
        """How many webhooks are in the inbox, in whatever state."""
        return sum(shop["deliveries"] for shop in self._buffer.status()["shops"])

    def _forge(self, delivery: Delivery) -> None:
        """Send what somebody else has signed; it has to be refused."""
        answer = httpx.post(
            f"{self._stack.urls.receiver}/webhooks/shopify/{delivery.topic}",
            content=delivery.body,
            headers=delivery.headers("not the secret"),
        )
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            raise DemoError(f"the receiver answered {answer.status_code} to a forged webhook: {answer.text}")

    def _moments(self, expected: Mapping[str, Label]) -> Iterator[_Moment]:
        """Compare with these labels, again and again, until inbox, variants and queue are empty.

        Raises DemoError when time is up.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            self._stack.check()
            # In the direction of the work: what is found empty stays empty.
            inbox = self._buffer.status()["shops"][0]
            due = self._buffer.due()
            status = self._buffer.status()
            queue = status["stores"][0]["queue"]
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
            )
            yield moment
            if moment.settled:
                return
            if time.monotonic() > deadline:
                raise DemoError(_too_late(moment))
            time.sleep(_POLL_SECONDS)


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
