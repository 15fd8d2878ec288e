"""The body of `esl-pipeline demo`: a day and a night of a made-up shop, through the pipeline, every label compared.

Everything is brought along and thrown away: the demo has a folder, settings and servers of its own, and reads none of
the user's settings, so that it can never write to a real label server or buffer.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands.shopify import first_day
from esl_pipeline.connections import open_buffer
from esl_pipeline.demo.day import DemoDay, Difference, Label, Shelf, Wave, compare
from esl_pipeline.demo.night import drift_in_dagster, meddle, reconcile, repaired_in_buffer
from esl_pipeline.demo.report import (
    NightReport,
    Report,
    Row,
    WaveReport,
    by_check,
    print_failure,
    print_report,
)
from esl_pipeline.environment import SettingsError
from esl_pipeline.local.parts import StackError
from esl_pipeline.local.postgres import PostgresUnavailable
from esl_pipeline.local.stack import Ports, Stack
from esl_pipeline.local.webserver import Webserver, WebserverError
from esl_pipeline.sandbox.shopify.delivery import Switches, WebhookSender
from esl_pipeline.sandbox.shopify.oauth import CLIENT_ID, App
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN, real_time
from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline.settings import Settings, every_field, load_settings
from esl_pipeline.sources.shopify.connect import Line, NotConnectedError

STORE = "DEMO"
_BY = "esl-pipeline demo"
SETTLE_SECONDS = 120.0
CONNECTIONS = 8
# What goes wrong between shop and receiver. Retries come as Shopify's do, within a minute instead of four hours.
TROUBLE = Switches(drop=0.1, duplicate=0.04, delay=0.1, delay_seconds=0.5)
_RETRY_HOURS = 1 / 60
_SENDING_SECONDS = 60.0
_SEED = 2026
_POLL_SECONDS = 0.25
# Of the user's settings, those that somebody could fear for.
_NEVER_TOUCHED = (
    "shopify_admin_token",
    "shopify_api_key",
    "shopify_apps",
    "hipoink_api_base_url",
    "supabase_url",
    "esl_database_url",
    "esl_dagster_database_url",
)


class DemoError(Exception):
    """The demo could not be played to its end; the message says what happened."""


def run_demo(settings: Settings, console: Console, *, as_json: bool = False) -> bool:
    """Play the demo and print what happened; True when every label is right.

    `settings` are the user's, read only to say that they are not used. With `as_json` one JSON object is printed and
    nothing else. What goes wrong on the way is printed as a sentence, and the answer is False; the parts' logs are
    kept then. KeyboardInterrupt passes through when everything has been stopped.
    """
    story = Console(quiet=True) if as_json else console
    _say_what_is_safe(settings, story)
    day = DemoDay(_SEED, datetime.now(UTC) - timedelta(hours=1))
    secret = secrets.token_hex(16)
    with (
        _scratch_home() as home,
        _sender(day, secret) as sender,
        running_shopify(day.shop, app=App(secrets=[secret]), sender=sender) as shopify,
        _own_settings(home, shopify.url, secret),
    ):
        try:
            report = _play(day, sender, story)
        except (
            DemoError,
            StackError,
            WebserverError,
            PostgresUnavailable,
            BufferError,
            SettingsError,
            httpx.HTTPError,
        ) as error:
            print_failure(console, str(error) or type(error).__name__, _keep_logs(home), as_json=as_json)
            return False
    print_report(console, report, as_json=as_json)
    return report.right


# --- playing it


def _play(day: DemoDay, sender: WebhookSender, story: Console) -> Report:
    began = time.monotonic()
    with (
        _Starting(story) as starting,
        _stack(starting) as stack,
        _buffer(stack.settings) as buffer,
    ):
        started = time.monotonic()
        starting.done()
        stage = _Stage(day, stack, buffer, sender, story)
        # Until the night, what a dropped webhook would have told must stay unknown.
        Webserver(stack.urls.ui).stop_schedules()
        stage.connect_shop()
        story.print(f"\n  [bold]labels[/]    {stack.urls.labels}    what the shelf shows, live")
        story.print(f"  [bold]Dagster[/]   {stack.urls.ui}    assets and runs")
        story.print("  Both answer while the demo runs; esl-pipeline up keeps them running.", style="dim")
        waves, night = [], None
        for name, wave, title in (
            ("opening", day.opening, "The shop opens: 121 products come in, one of them with 100 variants"),
            ("trading", day.trading, "A working day: prices, names, barcodes, deletions, mistakes and noise"),
        ):
            story.print(f"\n[bold]{title}[/]", highlight=False)
            with _part_is_to_blame(stack):
                waves.append(stage.perform(name, wave()))
            if waves[-1].wrong:
                break
        else:
            title = "The night: labels were changed behind our back, and the whole shop is read and compared"
            story.print(f"\n[bold]{title}[/]", highlight=False)
            with _part_is_to_blame(stack):
                night = stage.night()
        code = stage.example()
        trace, status, sandbox = buffer.trace(code, store=STORE), buffer.status(), stage.sandbox()
        findings = by_check(buffer.findings())
    return Report(
        waves=waves,
        night=night,
        inbox=status["shops"][0],
        held_back=status["stores"][0]["held_back"],
        expected_held_back=stage.shelf.held_back,
        findings=findings,
        sandbox=sandbox,
        traced_code=code,
        trace=trace,
        start_seconds=round(started - began, 1),
        total_seconds=round(time.monotonic() - began, 1),
    )


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


class _Stage:
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
                variants_due=due["variants"],
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


# --- what it runs in


@contextlib.contextmanager
def _scratch_home() -> Iterator[Path]:
    """A new folder for everything, removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="esl-demo-")).resolve()
    # Postgres does not run as root: its user must get through to its data, and need not see anything else.
    home.chmod(0o711)
    try:
        yield home
    finally:
        data = home / "postgres"
        if data.is_symlink():  # see local.postgres: it had to go where its user can reach it
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _own_settings(home: Path, shopify: str, secret: str) -> Iterator[None]:
    """Only the demo's own settings are seen in here, by this process and those that it starts.

    Not the user's environment, and not a `.env` file, which is looked for in the working directory.
    """
    kept = dict(os.environ)
    for name in kept:
        if name.lower() in every_field():
            del os.environ[name]
    os.environ |= {
        "ESL_HOME": str(home),
        "APP_ENVIRONMENT": "development",
        "HIPOINK_API_SECRET": secrets.token_hex(8),
        "SHOPIFY_ADMIN_URL": shopify,
        "SHOPIFY_APPS": f"{DOMAIN}={CLIENT_ID}:{secret}",
    }
    try:
        with contextlib.chdir(home):
            yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def _stack(starting: "_Starting") -> Iterator[Stack]:
    with Stack(load_settings(), Ports(receiver=0, ui=0, labels=0, shop=0), starting) as stack:
        try:
            yield stack
        finally:
            starting.stopping()


@contextlib.contextmanager
def _part_is_to_blame(stack: Stack) -> Iterator[None]:
    """If a part has ended, that is the reason to tell."""
    try:
        yield
    except (DemoError, BufferError, WebserverError, httpx.HTTPError):
        stack.check()
        raise


def _sender(day: DemoDay, secret: str) -> WebhookSender:
    """The shop's webhooks, on their way to who subscribes."""
    return WebhookSender(
        None,
        secret,
        subscriptions=day.shop.subscriptions,
        retry_hours=_RETRY_HOURS,
        connections=CONNECTIONS,
        switches=TROUBLE,
        seed=_SEED,
    )


@contextlib.contextmanager
def _buffer(settings: Settings) -> Iterator[Buffer]:
    buffer = open_buffer(settings)
    try:
        yield buffer
    finally:
        buffer.close()


def _keep_logs(home: Path) -> Path | None:
    """A new folder with the parts' logs; None when there are none."""
    found = list(home.glob("*.log"))
    if not found:
        return None
    kept = Path(tempfile.mkdtemp(prefix="esl-demo-logs-"))
    for log in found:
        shutil.copy(log, kept)
    return kept


# --- telling it


class _Starting:
    """Says which part is being started, and how long each took."""

    def __init__(self, story: Console) -> None:
        self._story = story
        self._status = Status("", console=story)
        self._part, self._since = "", 0.0

    def __enter__(self) -> "_Starting":
        self._story.print("\n[bold]Starting[/]")
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, part: str) -> None:
        """A part begins to start."""
        self._tick()
        self._part, self._since = part, time.monotonic()
        self._status.update(f"{part} …")

    def done(self) -> None:
        """All parts answer."""
        self._tick()
        self._status.stop()

    def stopping(self) -> None:
        """The end has begun."""
        self._part = ""
        self._status.update("stopping …")
        self._status.start()

    def _tick(self) -> None:
        if self._part:
            self._story.print(f"  {self._part:<24}{time.monotonic() - self._since:6.1f} s", highlight=False)


def _say_what_is_safe(settings: Settings, story: Console) -> None:
    story.print("Everything runs on this machine, in a folder of its own, and is removed at the end.")
    for name in _NEVER_TOUCHED:
        if getattr(settings, name) is not None:
            story.print(f"{name.upper()} is set; the demo does not use it.")
