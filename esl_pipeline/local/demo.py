"""The body of `esl-pipeline demo`: a day in a made-up shop, through the whole pipeline, every label compared.

Everything is brought along and thrown away: the demo has a folder, settings and servers of its own, and reads none of
the user's settings, so that it can never write to a real label server or buffer.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.connections import open_buffer
from esl_pipeline.console import print_trace
from esl_pipeline.local.demo_day import DemoDay, Difference, Label, Shelf, Wave, compare
from esl_pipeline.local.postgres import PostgresUnavailable
from esl_pipeline.local.shop import DOMAIN, Delivery
from esl_pipeline.local.stack import Ports, Stack, StackError
from esl_pipeline.settings import Settings, SettingsError, load_settings

STORE = "DEMO"
SETTLE_SECONDS = 120.0
CONNECTIONS = 8
_SEED = 2026
_POLL_SECONDS = 0.25
_WRONG_SHOWN = 20
# Of the user's settings, those that somebody could fear for.
_NEVER_TOUCHED = ("hipoink_api_base_url", "supabase_url", "esl_database_url", "esl_dagster_database_url")

Row = Mapping[str, Any]


class DemoError(Exception):
    """The demo could not be played to its end; the message says what happened."""


@dataclass
class WaveReport:
    """What became of one wave. Seconds count from its first webhook."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    first_label_seconds: float | None = None
    right_seconds: float | None = None
    wrong: list[Difference] = field(default_factory=list)


@dataclass
class Report:
    """What happened in the whole demo, as figures."""

    waves: list[WaveReport]
    inbox: Row
    held_back: int
    expected_held_back: int
    findings: list[Row]
    """Open findings by check: check_name, level, n, reason."""
    sandbox: Row
    traced_code: str
    trace: list[dict[str, Any]]
    start_seconds: float
    total_seconds: float

    @property
    def wrong(self) -> list[Difference]:
        """Labels that are not what the shop last said."""
        return [difference for wave in self.waves for difference in wave.wrong]

    def figures(self) -> dict[str, Any]:
        """Plain data for --json."""
        answers = sum((wave.answers for wave in self.waves), Counter[str]())
        pushed = pushes_of(self.sandbox)
        return {
            "right": not self.wrong,
            "wrong": [asdict(difference) | {"kind": difference.kind} for difference in self.wrong],
            "webhooks": {
                "sent": answers.total(),
                "kept": answers["accepted"],
                "duplicates": answers["duplicate"],
                "refused": answers["refused"],
                "superseded": self.inbox["superseded"],
                "unusable": self.inbox["unusable"],
                "dead": self.inbox["dead"],
            },
            "labels": {"on_shelf": self.waves[-1].labels, **pushed},
            "held_back": {
                "variants": self.held_back,
                "expected": self.expected_held_back,
                "findings": {row["check_name"]: row["n"] for row in self.findings if row["level"] == "error"},
            },
            "warnings": {row["check_name"]: row["n"] for row in self.findings if row["level"] == "warning"},
            "seconds": {
                "start": self.start_seconds,
                "first_label": self.waves[0].first_label_seconds,
                **{f"{wave.name}_right": wave.right_seconds for wave in self.waves},
                "total": self.total_seconds,
            },
        }


def run_demo(settings: Settings, console: Console, *, as_json: bool = False) -> bool:
    """Play the demo and print what happened; True when every label is right.

    `settings` are the user's, read only to say that they are not used. With `as_json` one JSON object is printed and
    nothing else. What goes wrong on the way is printed as a sentence, and the answer is False; the parts' logs are
    kept then. KeyboardInterrupt passes through when everything has been stopped.
    """
    story = Console(quiet=True) if as_json else console
    _say_what_is_safe(settings, story)
    with _scratch_home() as home, _own_settings(home):
        try:
            report = _play(story)
        except (
            DemoError,
            StackError,
            PostgresUnavailable,
            BufferError,
            SettingsError,
            httpx.HTTPError,
        ) as error:
            sentence = str(error) or type(error).__name__
            logs = _keep_logs(home)
            if as_json:
                _print_json(console, {"right": False, "error": sentence, "logs": str(logs)})
            else:
                console.print(f"\n[red]The demo could not be finished: {escape(sentence)}[/]", soft_wrap=True)
                console.print(f"The logs of all parts are in {logs}", soft_wrap=True)
            return False
    if as_json:
        _print_json(console, report.figures())
    else:
        _print_report(console, report)
    return not report.wrong


def pushes_of(sandbox: Row) -> dict[str, Any]:
    """From the label server's memory: labels written and removed, the calls that took, and needless pushes."""
    histories = [history for codes in sandbox["history"].values() for history in codes.values()]
    calls = sum(
        n for action, n in sandbox["calls"].items() if action in ("create", "create_multiple", "del_multiple")
    )
    named = sum(n for codes in sandbox["pushes"].values() for n in codes.values())
    return {
        "written": sum(entry["record"] is not None for history in histories for entry in history),
        "removed": sum(entry["record"] is None for history in histories for entry in history),
        "written_unchanged": sum(
            earlier["record"] == later["record"]
            for history in histories
            for earlier, later in pairwise(history)
        ),
        "calls": calls,
        "labels_per_call": round(named / calls, 1) if calls else None,
    }


# --- playing it


def _play(story: Console) -> Report:
    began = time.monotonic()
    day, shelf = DemoDay(_SEED, datetime.now(UTC) - timedelta(hours=1)), Shelf()
    with _Starting(story) as starting, _stack(starting) as stack, _buffer(stack.settings) as buffer:
        started = time.monotonic()
        starting.done()
        stage = _Stage(stack, buffer, shelf, story)
        stage.map_shop()
        story.print(f"\n  [bold]labels[/]    {stack.urls.labels}    what the shelf shows, live")
        story.print(f"  [bold]Dagster[/]   {stack.urls.ui}    assets and runs")
        story.print("  Both answer while the demo runs; esl-pipeline up keeps them running.", style="dim")
        waves = []
        for name, wave, title in (
            ("opening", day.opening, "The shop opens: 121 products come in, one of them with 100 variants"),
            ("trading", day.trading, "A working day: prices, names, barcodes, deletions, mistakes and noise"),
        ):
            story.print(f"\n[bold]{title}[/]")
            deliveries = wave()
            shelf.settle(day.shop.products.values())
            try:
                waves.append(stage.perform(name, deliveries))
            except (BufferError, httpx.HTTPError):
                stack.check()  # if a part has ended, that is the reason to tell
                raise
            if waves[-1].wrong:
                break
        code = (day.repriced[-1].barcode or "") if day.repriced else ""
        trace, status, sandbox = buffer.trace(code, store=STORE), buffer.status(), stage.sandbox()
        findings = _by_check(buffer.findings())
    return Report(
        waves=waves,
        inbox=status["shops"][0],
        held_back=status["stores"][0]["held_back"],
        expected_held_back=shelf.held_back,
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

    @property
    def settled(self) -> bool:
        return not (self.webhooks_waiting or self.variants_due or self.labels_waiting)


class _Stage:
    """The running parts, and what must hang on the shelf: sends a wave and waits until its labels are there."""

    def __init__(self, stack: Stack, buffer: Buffer, shelf: Shelf, story: Console) -> None:
        self._stack, self._buffer, self._shelf, self._story = stack, buffer, shelf, story
        secret, token = stack.settings.shopify_webhook_secret, stack.settings.esl_admin_token
        if secret is None or token is None or stack.urls.labels is None:
            raise DemoError("the parts came up without the secrets or the label server of the demo")
        self._secret, self._token, self._labels = (
            secret.get_secret_value(),
            token.get_secret_value(),
            stack.urls.labels,
        )

    def map_shop(self) -> None:
        """Tell the pipeline which store the shop feeds."""
        answer = httpx.post(
            f"{self._stack.urls.receiver}/api/store-mappings/",
            headers={"Authorization": f"Bearer {self._token}"},
            json={
                "source_system": "shopify",
                "source_store_id": DOMAIN,
                "hipoink_store_code": STORE,
                "is_active": True,
                "settings": {"currency": "EUR"},
            },
        )
        if answer.status_code != httpx.codes.CREATED:
            raise DemoError(f"the shop could not be mapped: {answer.status_code} {answer.text}")

    def sandbox(self) -> dict[str, Any]:
        """Everything the label server remembers."""
        state: dict[str, Any] = (
            httpx.get(f"{self._labels}/sandbox/state", timeout=30).raise_for_status().json()
        )
        return state

    def perform(self, name: str, wave: Wave) -> WaveReport:
        """Send a wave, wait until it has had its effect, compare. Raises DemoError when that takes too long."""
        report = WaveReport(name, labels=len(self._shelf.labels))
        columns = (
            TextColumn("  {task.description:<16}"),
            BarColumn(40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        began = datetime.now(UTC)
        with Progress(*columns, console=self._story) as progress:
            sending = progress.add_task("webhooks sent", total=len(wave), note="")
            reading = progress.add_task("webhooks read", total=None, note="")
            hanging = progress.add_task("labels right", total=report.labels, note="")
            for answer in self._send(wave):
                report.answers[answer] += 1
                progress.advance(sending)
            kept = report.answers["accepted"]
            for moment in self._moments():
                progress.update(reading, total=kept, completed=kept - moment.webhooks_waiting)
                right = report.labels - sum(difference.kind != "extra" for difference in moment.wrong)
                queue = f"{moment.labels_waiting} in the queue" if moment.labels_waiting else ""
                progress.update(hanging, completed=right, note=queue)
        report.wrong = moment.wrong
        changes = [at for at in _changes(moment.sandbox) if at >= began]
        report.first_label_seconds = round((min(changes) - began).total_seconds(), 1) if changes else None
        report.right_seconds = round((max(changes) - began).total_seconds(), 1) if changes else None
        return report

    def _send(self, wave: Wave) -> Iterator[str]:
        """Post everything over a few connections; yields accepted, duplicate or refused as the answers come."""
        jobs = [(delivery, self._secret, httpx.codes.OK) for delivery in wave.deliveries]
        jobs += [(delivery, "not the secret", httpx.codes.UNAUTHORIZED) for delivery in wave.forged]
        with httpx.Client(timeout=30) as client, ThreadPoolExecutor(CONNECTIONS) as pool:

            def post(job: tuple[Delivery, str, int]) -> str:
                delivery, secret, expected = job
                answer = client.post(
                    f"{self._stack.urls.receiver}/webhooks/shopify/{delivery.topic}",
                    content=delivery.body,
                    headers=delivery.headers(secret),
                )
                if answer.status_code != expected:
                    raise DemoError(
                        f"the receiver answered {answer.status_code} to {delivery.topic} {delivery.webhook_id}, "
                        f"expected {int(expected)}: {answer.text[:200]}"
                    )
                return str(answer.json().get("status", "refused"))

            yield from pool.map(post, jobs)

    def _moments(self) -> Iterator[_Moment]:
        """Look again and again, until inbox, variants and queue are empty. Raises DemoError when time is up."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            self._stack.check()
            # In the direction of the work: what is found empty stays empty.
            inbox = self._buffer.status()["shops"][0]
            due = self._buffer.due()
            queue = self._buffer.status()["stores"][0]["queue"]
            sandbox = self.sandbox()
            moment = _Moment(
                webhooks_waiting=inbox["waiting"],
                variants_due=due["variants"],
                labels_waiting=queue["waiting"],
                last_error=queue["last_error"],
                sandbox=sandbox,
                wrong=compare(self._shelf.labels, STORE, sandbox["labels"]),
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
        f"{moment.labels_waiting} labels in the queue, and {len(moment.wrong)} labels are not right"
    )
    return f"{said}; the last error: {moment.last_error}" if moment.last_error else said


def _changes(sandbox: Row) -> Iterator[datetime]:
    """When the label server wrote or removed a label."""
    for codes in sandbox["history"].values():
        for history in codes.values():
            for entry in history:
                yield datetime.fromisoformat(entry["at"])


def _by_check(findings: Iterable[Row]) -> list[Row]:
    """Findings counted by check, errors first; the reason where it is one for all, else an example."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for finding in findings:
        groups.setdefault((finding["level"], finding["check_name"]), []).append(finding)
    rows = []
    for (level, check), found in groups.items():
        reasons = sorted({row["reason"] for row in found})
        reason = reasons[0] if len(reasons) == 1 else f"e.g. {reasons[0]}"
        rows.append({"check_name": check, "level": level, "n": len(found), "reason": reason})
    return sorted(rows, key=lambda row: (row["level"], -row["n"], row["check_name"]))


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
def _own_settings(home: Path) -> Iterator[None]:
    """Only the demo's own settings are seen in here, by this process and those that it starts.

    Not the user's environment, and not a `.env` file, which is looked for in the working directory.
    """
    kept = dict(os.environ)
    for name in kept:
        if name.lower() in Settings.model_fields:
            del os.environ[name]
    os.environ |= {
        "ESL_HOME": str(home),
        "APP_ENVIRONMENT": "development",
        "HIPOINK_API_SECRET": secrets.token_hex(8),
    }
    try:
        with contextlib.chdir(home):
            yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextlib.contextmanager
def _stack(starting: "_Starting") -> Iterator[Stack]:
    with Stack(load_settings(), Ports(receiver=0, ui=0, labels=0), starting) as stack:
        try:
            yield stack
        finally:
            starting.stopping()


@contextlib.contextmanager
def _buffer(settings: Settings) -> Iterator[Buffer]:
    buffer = open_buffer(settings)
    try:
        yield buffer
    finally:
        buffer.close()


def _keep_logs(home: Path) -> Path:
    logs = Path(tempfile.mkdtemp(prefix="esl-demo-logs-"))
    for log in home.glob("*.log"):
        shutil.copy(log, logs)
    return logs


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
            self._story.print(f"  {self._part:<24}{time.monotonic() - self._since:6.1f} s")


def _say_what_is_safe(settings: Settings, story: Console) -> None:
    story.print("Everything runs on this machine, in a folder of its own, and is removed at the end.")
    for name in _NEVER_TOUCHED:
        if getattr(settings, name) is not None:
            story.print(f"{name.upper()} is set; the demo does not use it.")


def _print_report(console: Console, report: Report) -> None:
    figures = report.figures()
    webhooks, labels, held, seconds = (
        figures[part] for part in ("webhooks", "labels", "held_back", "seconds")
    )
    shown = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(justify="right", no_wrap=True)
    shown.add_column(style="dim", overflow="fold")

    def group(title: str, *rows: tuple[str, object, str]) -> None:
        shown.add_row(f"[bold]{title}[/]", "", "")
        for what, figure, note in rows:
            shown.add_row(f"  {escape(what)}", str(figure), escape(note))

    group(
        "Webhooks",
        ("sent", webhooks["sent"], f"over {CONNECTIONS} connections"),
        ("kept", webhooks["kept"], "one row each in the inbox"),
        ("duplicates", webhooks["duplicates"], "same delivery or same body again: answered 200, kept once"),
        ("refused", webhooks["refused"], "wrong signature: answered 401"),
        ("superseded", webhooks["superseded"], "an older state than one already known"),
        ("unusable", webhooks["unusable"], "signed, but not readable: kept with the reason"),
    )
    group(
        "Labels",
        ("on the shelf", labels["on_shelf"], "compared in both directions"),
        ("wrong", len(report.wrong), ""),
        ("written", labels["written"], f"{labels['written_unchanged']} of them needlessly"),
        ("removed", labels["removed"], ""),
        ("label-server calls", labels["calls"], f"{labels['labels_per_call']} labels a call"),
    )
    group(
        "Held back",
        ("variants", held["variants"], "their labels, if any, stay as they were"),
        *((row["check_name"], row["n"], row["reason"]) for row in report.findings if row["level"] == "error"),
    )
    warnings = [
        (row["check_name"], row["n"], row["reason"]) for row in report.findings if row["level"] == "warning"
    ]
    if warnings:
        group("Warnings", *warnings)
    group(
        "Seconds",
        ("to start the parts", seconds["start"], ""),
        ("to the first label", seconds["first_label"], "from the first webhook, with a run to start"),
        *(
            (f"{wave.name}, all right", wave.right_seconds, f"from its first webhook, {wave.labels} labels")
            for wave in report.waves
        ),
        ("in all", seconds["total"], "with starting and stopping"),
    )
    console.print("\n[bold]What happened[/]\n", shown)
    if report.trace:
        console.print("\n[bold]One price change, from the label back to the webhook[/]")
        console.print(f"as with: esl-pipeline trace {report.traced_code}\n", style="dim")
        print_trace(console, report.trace)
    if report.wrong:
        _print_wrong(console, report.wrong)
    else:
        console.print(f"\n[bold green]Every label is right: {labels['on_shelf']} of {labels['on_shelf']}.[/]")


def _print_wrong(console: Console, wrong: list[Difference]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("label", "is", "must show", "shows"):
        shown.add_column(column, overflow="fold")
    for difference in wrong[:_WRONG_SHOWN]:
        expected, found = _only_different(difference)
        shown.add_row(escape(f"{difference.store} {difference.code}"), difference.kind, expected, found)
    count = len(wrong)
    console.print(f"\n[bold red]{'1 label is' if count == 1 else f'{count} labels are'} wrong.[/]\n", shown)
    if count > _WRONG_SHOWN:
        console.print(f"and {count - _WRONG_SHOWN} more")


def _only_different(difference: Difference) -> tuple[str, str]:
    """The fields in which the two labels differ."""
    expected, shown = difference.expected or {}, difference.shown or {}
    names = [name for name in sorted(expected.keys() | shown.keys()) if expected.get(name) != shown.get(name)]

    def text(label: Label) -> str:
        return escape(", ".join(f"{name} {label[name]!r}" for name in names if name in label)) or "nothing"

    return text(expected), text(shown)


def _print_json(console: Console, value: Any) -> None:
    console.print_json(data=value, ensure_ascii=False)
