"""What happened in a demo: its figures, and how they are shown."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from esl_pipeline.commands.story_lines import print_story
from esl_pipeline.demo.day import Difference, Label
from esl_pipeline.demo.night import FOREIGN
from esl_pipeline.demo.shelf import ShelfReport
from esl_pipeline.model.story import Story

_WRONG_SHOWN = 20
_NOT_RIGHT = {
    "stale": "can be reached, and show something else or nothing",
    "unreachable": "no refresh can help: offline, asleep, without power or an access point",
    "unbound": "bound to nothing, and still show a price",
}

Row = Mapping[str, Any]


@dataclass
class WaveReport:
    """What became of one wave. Seconds count from its first webhook."""

    name: str
    answers: Counter[str] = field(default_factory=Counter)
    labels: int = 0
    first_label_seconds: float | None = None
    right_seconds: float | None = None
    wrong: list[Difference] = field(default_factory=list)
    not_shown: list[Difference] = field(default_factory=list)
    """Of the physical labels, those that show something else."""


@dataclass
class NightReport:
    """What the reconciliation had to do, found and left."""

    labels: int
    outdated: int
    """Labels that were not as the shop says now, for want of a webhook."""
    drift: dict[str, int]
    """What was done to the labels behind the pipeline's back, by kind: missing, different, foreign."""
    drift_in_dagster: dict[str, int]
    """What the run has told of it."""
    repaired: dict[str, int]
    """What it has put right: all but the foreign ones."""
    seconds: float
    wrong: list[Difference] = field(default_factory=list)
    not_shown: list[Difference] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether the run has told exactly what was done."""
        return self.drift == self.drift_in_dagster == self.repaired | {"foreign": self.foreign}

    @property
    def foreign(self) -> int:
        """Labels that are not ours, and stay."""
        return self.drift["foreign"]


@dataclass
class Report:
    """What happened in the whole demo, as figures."""

    waves: list[WaveReport]
    night: NightReport | None
    """None when the day went wrong."""
    inbox: Row
    held_back: int
    expected_held_back: int
    findings: list[Row]
    """Open findings by check: check_name, level, n, reason."""
    sandbox: Row
    traced_code: str
    trace: Story | None
    start_seconds: float
    total_seconds: float
    shelf: ShelfReport = field(default_factory=ShelfReport)
    """What the physical labels show in the end."""
    files: Mapping[str, int] = field(default_factory=dict)
    """How many files ended how, of a shop that sends files."""

    @property
    def wrong(self) -> list[Difference]:
        """Labels that were not what the shop had said, each time that they were compared."""
        night = self.night.wrong if self.night else []
        return [difference for wave in self.waves for difference in wave.wrong] + night

    @property
    def not_shown(self) -> list[Difference]:
        """Physical labels that did not show what they must, each time that they were compared."""
        night = self.night.not_shown if self.night else []
        return [difference for wave in self.waves for difference in wave.not_shown] + night

    @property
    def right(self) -> bool:
        """Whether every label was right and on the shelf each time, and the drift was told exactly."""
        on_shelf = not self.not_shown and self.shelf.is_right
        return not self.wrong and on_shelf and self.night is not None and self.night.is_exact

    def figures(self) -> dict[str, Any]:
        """Plain data for --json."""
        answers = sum((wave.answers for wave in self.waves), Counter[str]())
        night = self.night
        held, shown = (
            sum(len(codes.keys() - FOREIGN.keys()) for codes in self.sandbox[name].values())
            for name in ("labels", "shown")
        )
        pushed = pushes_of(self.sandbox)
        if night:
            # To write a label again that was changed or taken away is no needless write.
            pushed["written_unchanged"] -= sum(night.repaired.values())
        return {
            "right": self.right,
            "wrong": [asdict(difference) | {"kind": difference.kind} for difference in self.wrong],
            "not_shown": [asdict(difference) | {"kind": difference.kind} for difference in self.not_shown],
            "webhooks": {
                "sent": answers.total(),
                "kept": answers["accepted"],
                "dropped": answers["dropped"],
                "duplicates": answers["duplicate"],
                "refused": answers["refused"],
                "superseded": self.inbox["superseded"],
                "unusable": self.inbox["unusable"],
                "dead": self.inbox["dead"],
            },
            "files": dict(self.files),
            "labels": {
                "on_server": held,
                "on_shelf": shown,
                "expected": night.labels if night else self.waves[-1].labels,
                **pushed,
                "refreshes": self.sandbox["calls"].get("bind_task", 0),
            },
            "shelf": {
                "hanging": self.shelf.hanging,
                "right": self.shelf.right,
                **{state: self.shelf.count(state) for state in _NOT_RIGHT},
                "spare": self.shelf.spare,
                "not_right": [asdict(place) for place in self.shelf.not_right],
                "without_label": self.shelf.without_label,
            },
            "night": night
            and {
                "outdated": night.outdated,
                "drift": night.drift,
                "drift_in_dagster": night.drift_in_dagster,
                "repaired": night.repaired,
            },
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
                "night": night.seconds if night else None,
                "total": self.total_seconds,
            },
        }


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


def by_check(findings: Iterable[Row]) -> list[Row]:
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


def print_failure(console: Console, sentence: str, logs: Path | None, *, as_json: bool) -> None:
    """Why there is no report; `logs` is where the parts' logs are."""
    told = Text.from_ansi(sentence, style="red")  # it may end with lines of a part's log, colours and all
    if as_json:
        _print_json(console, {"right": False, "error": told.plain, "logs": str(logs) if logs else None})
        return
    console.print("\n[red]The demo could not be finished:[/]", told, soft_wrap=True)
    if logs:
        console.print(f"The logs of all parts are in {escape(str(logs))}", soft_wrap=True, highlight=False)


_OF_FILES = {
    "applied": "each once, in the order of their times",
    "refused": "one cut off, one overtaken by a newer full list: nothing of them was used",
    "waiting": "a full list that a person has to approve",
}


def _of_webhooks(webhooks: Row) -> tuple[tuple[str, object, str], ...]:
    return (
        ("sent", webhooks["sent"], "over several connections"),
        ("dropped", webhooks["dropped"], "on purpose, on the way: the receiver never saw them"),
        ("kept", webhooks["kept"], "one row each in the inbox"),
        ("duplicates", webhooks["duplicates"], "same delivery or same body again: answered 200, kept once"),
        ("refused", webhooks["refused"], "wrong signature: answered 401"),
        ("superseded", webhooks["superseded"], "an older state than one already known"),
        ("unusable", webhooks["unusable"], "signed, but not readable: kept with the reason"),
    )


def print_report(console: Console, report: Report, *, as_json: bool) -> None:
    """The whole report: what was sent, written and held back, one trace, and what is wrong."""
    figures = report.figures()
    if as_json:
        _print_json(console, figures)
        return
    webhooks, labels, held, seconds = (
        figures[part] for part in ("webhooks", "labels", "held_back", "seconds")
    )
    one = "file" if report.files else "webhook"
    shown = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(justify="right", no_wrap=True)
    shown.add_column(style="dim", overflow="fold")

    def group(title: str, *rows: tuple[str, object, str]) -> None:
        shown.add_row(f"\n[bold]{title}[/]", "", "")
        for what, figure, note in rows:
            told = "-" if figure is None else str(figure)
            shown.add_row(f"  {escape(what)}", told, escape(note))

    if report.files:
        group("Files", *((state, count, _OF_FILES[state]) for state, count in report.files.items()))
    else:
        group("Webhooks", *_of_webhooks(webhooks))
    group(
        "Labels",
        ("at the label server", labels["on_server"], "compared in both directions"),
        ("wrong", len(report.wrong), ""),
        ("physical labels", labels["on_shelf"], "what they show: compared in both directions"),
        ("not shown", len(report.not_shown), "differences, each time that they were compared"),
        ("written", labels["written"], f"{labels['written_unchanged']} of them needlessly"),
        ("removed", labels["removed"], ""),
        ("label-server calls", labels["calls"], f"{labels['labels_per_call']} labels a call"),
        (
            "refreshes",
            labels["refreshes"],
            "no physical label changes before one: one a burst (esl/bind_task)",
        ),
    )
    shelf = report.shelf
    group(
        "Shelf",
        ("shown right", shelf.right, f"of {shelf.hanging} physical labels: what their pictures say"),
        *((state, shelf.count(state), note) for state, note in _NOT_RIGHT.items()),
        ("without a label", len(shelf.without_label), "products that must hang"),
    )
    if night := report.night:
        group(
            "Night: full_reconciliation",
            (
                "outdated labels",
                night.outdated,
                "what no file had told" if report.files else "their webhook was dropped: set right",
            ),
            *(
                (f"drift: {kind}", night.drift_in_dagster[kind], f"of {night.drift[kind]} that were {what}")
                for kind, what in (
                    ("missing", "taken away at the label server: written again"),
                    ("different", "changed at the label server: written again"),
                    ("foreign", "hung up by somebody else: left alone"),
                )
            ),
            ("drift repaired", sum(night.repaired.values()), ""),
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
        ("parts started", seconds["start"], ""),
        ("first label", seconds["first_label"], f"on the shelf, after the first {one}: a run had to start"),
        *(
            (
                f"{wave.name} done",
                wave.right_seconds,
                f"from its first {one} until the last of {wave.labels} labels was on the shelf",
            )
            for wave in report.waves
        ),
        *([("night", seconds["night"], "the run, until every label was right")] if night else []),
        ("in all", seconds["total"], "with starting and stopping"),
    )
    console.print(shown)
    if report.trace:
        console.print(f"\n[bold]One price change, from the label back to the {one}[/]")
        console.print(f"esl-pipeline trace {report.traced_code}\n", style="dim", highlight=False)
        print_story(console, report.trace)
    if report.wrong:
        _print_wrong(console, report.wrong)
    elif not report.shelf.is_right:
        _print_shelf(console, report.shelf)
    elif report.not_shown:
        _print_wrong(console, report.not_shown, where=" on the shelf")
    elif night and not night.is_exact:
        told = f"It was {night.drift}, in Dagster {night.drift_in_dagster}, repaired {night.repaired}."
        console.print("\n[bold red]The drift was not told exactly.[/]", escape(told), highlight=False)
    else:
        console.print(
            f"\n[bold green]Every label is right, and on the shelf: {labels['on_shelf']} of {labels['expected']}.[/]",
            highlight=False,
        )


def _print_wrong(console: Console, wrong: list[Difference], *, where: str = "") -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("label", "is", "must show", "shows"):
        shown.add_column(column, overflow="fold")
    for difference in wrong[:_WRONG_SHOWN]:
        expected, found = _only_different(difference)
        shown.add_row(escape(f"{difference.store} {difference.code}"), difference.kind, expected, found)
    count = len(wrong)
    console.print(
        f"\n[bold red]{'1 label is' if count == 1 else f'{count} labels are'} wrong{where}.[/]\n", shown
    )
    if count > _WRONG_SHOWN:
        console.print(f"and {count - _WRONG_SHOWN} more")


def _print_shelf(console: Console, shelf: ShelfReport) -> None:
    """Which physical labels do not show their price."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("label", "product", "must show", "shows", "is", "why"):
        shown.add_column(column, overflow="fold")
    for place in shelf.not_right[:_WRONG_SHOWN]:
        texts = (place.esl_code, place.code, place.must_show, place.shows, place.state, place.why)
        shown.add_row(*(escape(text or "nothing") for text in texts))
    for code in shelf.without_label[: max(0, _WRONG_SHOWN - len(shelf.not_right))]:
        shown.add_row("none", escape(code))
    count = len(shelf.not_right)
    told = f"{count} of {shelf.hanging} physical labels do not show their price."
    if shelf.without_label:
        told += f" {len(shelf.without_label)} products have no label."
    console.print(f"\n[bold red]{told}[/]\n", shown)
    if (more := count + len(shelf.without_label) - _WRONG_SHOWN) > 0:
        console.print(f"and {more} more; esl-pipeline demo --json names them all")


def _only_different(difference: Difference) -> tuple[str, str]:
    """The fields in which the two labels differ."""
    expected, shown = difference.expected or {}, difference.shown or {}
    names = [name for name in sorted(expected.keys() | shown.keys()) if expected.get(name) != shown.get(name)]

    def text(label: Label) -> str:
        return escape(", ".join(f"{name} {label[name]!r}" for name in names if name in label)) or "nothing"

    return text(expected), text(shown)


def _print_json(console: Console, value: Any) -> None:
    console.print_json(data=value, ensure_ascii=False)
