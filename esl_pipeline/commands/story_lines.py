"""The story of a label as people read it: one sentence, how things stand, and what happened, newest first.

Lines are folded between words only: an id is never broken, however narrow the terminal.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any

from rich.console import Console

from esl_pipeline.commands.times import moment
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.story import Entry, Step, Story
from esl_pipeline.model.telling import says_drift
from esl_pipeline.model.waiting import why_label
from esl_pipeline.printable import printable

Row = Mapping[str, Any]


def print_story(console: Console, story: Story, place: Row | None = None) -> None:
    """A story; place: how it stands now (an item of Buffer.trace)."""
    say(console, story.sentence, style="bold")
    if story.label_server != "default":
        say(console, f"at label server {story.label_server}", indent=2)
    for line in _standing(place) if place and story.at is None else ():
        say(console, line, indent=2)
    if story.entries:
        console.print()
    for entry in story.entries:
        _print_entry(console, entry)
    if story.more:
        say(console, "there may be more: --limit shows more, --csv FILE writes them all", style="dim")


def say(console: Console, text: str, *, indent: int = 0, style: str | None = None) -> None:
    """A paragraph, as strangers' text may be part of it; folded where somebody looks at it."""
    width = console.width if console.is_terminal else 1_000_000
    pad = " " * indent
    lines = wrap(
        printable(text),
        width=max(width, 20),
        initial_indent=pad,
        subsequent_indent=pad + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


# How it stands


def _standing(place: Row) -> Iterator[str]:
    for variant in place["variants"]:
        name = f"{_text(variant['title'])} / {_text(variant['variant_title'])}"
        yield (
            f"variant {variant['variant_id']} {name}, price {_text(variant['price'])}, {variant['label_state']}, "
            f"updated {moment(variant['source_updated_at'])}"
        )
        if file := variant.get("file"):
            yield (
                f"from {file['name']} of {moment(file['modified_at'])}, SHA-256 {file['sha256'][:16]}…, "
                f"applied {moment(file['applied_at'])} by run {_text(file['run_id'])}"
            )
        for finding in variant["findings"]:
            yield f"{finding['level']} {finding['check_name']}: {finding['reason']}"
    if place["ledger"] is None:
        yield "none: the label server has accepted nothing for this code that stands"
    if place["refresh"]:
        yield _refresh(place["refresh"])
    if place["queue"]:
        yield _waiting(place["queue"])
    if place["grace"]:
        yield _grace(place["grace"])


def _waiting(queue: Row) -> str:
    wanted = _changes(None, queue["label"]) if queue["label"] else "removal"
    error = f", {queue['last_error']}" if queue["last_error"] else ""
    cause = f", cause: {queue['cause']}" if queue["cause"] else ""
    return (
        f"waiting ({queue['state']}): {wanted}{cause}, {why_label(queue, moment(queue['until']))}, "
        f"attempts {queue['attempts']}{error}"
    )


def _grace(grace: Row) -> str:
    """Of a label whose removal waits; before, it said more."""
    until = (
        moment(grace["until"]) if grace["until"] else "its label is blank" if not grace["since"] else "now"
    )
    return (
        f"to be removed since {moment(grace['decided_at'])}, waits until {until}: "
        f"{grace['bound']} physical labels are known to be bound to it; before: {_changes(None, grace['label'])}"
    )


def _refresh(refresh: Row) -> str:
    """Whether the label server was told to refresh the store's labels since it accepted this one."""
    if done := refresh["triggered"]:
        return (
            f"refresh triggered {moment(done['at'])} (esl/bind_task accepted in {_text(done['duration_ms'])} ms) "
            f"by run {_text(done['run_id'])}"
        )
    if not refresh["wanted"]:
        return "no refresh triggered by us: policy refresh is never, or the store is not live"
    waiting = refresh["waiting"]
    if waiting is None:
        return "no refresh triggered since"
    why = f": {_text(waiting['last_error'])}" if waiting["last_error"] else ""
    return f"waits to be refreshed since {moment(waiting['since'])}{why}"


# What happened


def _print_entry(console: Console, entry: Entry) -> None:
    say(console, f"{_moment(entry.at)} {entry.kind}: {entry.says}")
    if steps := says_steps(entry.steps):
        say(console, steps, indent=4)
    for webhook in entry.webhooks:
        say(console, f"webhook {webhook.webhook_id} {webhook.topic}, {webhook.state}", indent=4)
    if entry.run_id:
        say(console, f"run {entry.run_id}", indent=4)
    if entry.push_id:
        say(console, f"push {entry.push_id}, attempt {_text(entry.attempt)}", indent=4)
        change = _changes(entry.before, entry.label) if entry.label is not None else "removal of the code"
        say(console, f"request {change or 'the same again'}", indent=4)
    if entry.outcome:
        say(
            console,
            f"answer {entry.outcome} HTTP {_text(entry.http_status)} in {_text(entry.duration_ms)} ms: "
            f"{_text(entry.answer)}",
            indent=4,
        )
    if entry.kind == "drift":
        say(console, f"ours → found: {_changes(entry.before, entry.label) or 'nothing but that'}", indent=4)


def says_steps(steps: Sequence[Step]) -> str:
    """received 2026-11-28 14:02:11Z, read +0.2 s, queued +0.1 s, sent +0.5 s, accepted +0.1 s (0.9 s)"""
    if not steps:
        return ""
    said = [f"{steps[0].name} {_moment(steps[0].at)}"]
    said += [f"{step.name} +{seconds(step.after or 0)}" for step in steps[1:]]
    accepted = [step.at for step in steps if step.name == "accepted"]
    whole = f" ({seconds((accepted[0] - steps[0].at).total_seconds())} in all)" if accepted else ""
    return ", ".join(said) + whole


def seconds(n: float) -> str:
    """A length of time as people say it."""
    if n < 10:
        return f"{n:.2f} s"
    if n < 120:
        return f"{n:.0f} s"
    if n < 7_200:
        return f"{n / 60:.0f} min"
    return f"{n / 3_600:.1f} h" if n < 172_800 else f"{n / 86_400:.1f} d"


def _changes(before: Mapping[str, Any] | None, label: Mapping[str, Any] | None) -> str:
    """The fields that differ; of a new label all that are filled."""
    pairs = differences(before, label)
    if before is None:
        return ", ".join(f"{name} {new!r}" for name, (_, new) in pairs.items())
    return ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in pairs.items())


# From a webhook, a run or a push forward


def print_webhook(console: Console, webhook: Row) -> None:
    """What a delivery came to."""
    read = f", read {moment(webhook['finished_at'])}" if webhook["finished_at"] else ""
    run = f" by run {webhook['run_id']}" if webhook["run_id"] else ""
    why = f": {webhook['reason']}" if webhook["reason"] else ""
    say(
        console,
        f"webhook {webhook['webhook_id']} ({webhook['topic']}) of {webhook['source_store_id']}: received "
        f"{moment(webhook['received_at'])}{read}{run}, {webhook['state']}{why}; {webhook['variants']} variants, "
        f"{len(webhook['pushes'])} pushes carried its words, {len(webhook['waiting'])} labels wait",
        style="bold",
    )
    if not (webhook["pushes"] or webhook["waiting"]):
        say(
            console,
            "no label had to change for it, or what had to is held back (esl-pipeline findings)",
            indent=2,
        )
    _print_pushes(console, webhook["pushes"], begun=webhook["received_at"])
    for row in webhook["waiting"]:
        error = f": {row['last_error']}" if row["last_error"] else ""
        what = "removal" if row["operation"] == "delete" else _text(row["price"])
        say(
            console,
            f"{row['code']} in store {row['store_code']}: {what} waits ({row['state']}){error}",
            indent=2,
        )


def print_pushes(console: Console, name: str, found: Row) -> None:
    """What a run, or a push, has done to labels: its pushes and what it found to differ."""
    pushes, drift = found["pushes"], found["drift"]
    is_run = bool(drift) or any(row["run_id"] == name for row in pushes)
    many = max(found["pushed"], len(pushes))
    say(
        console,
        f"{'run' if is_run else 'push'} {name}: {many} labels pushed"
        + (f", {len(drift)} found to differ at the label server" if drift else ""),
        style="bold",
    )
    _print_pushes(console, pushes)
    if many > len(pushes):
        say(console, f"and {many - len(pushes)} more: --limit shows more", indent=2, style="dim")
    for row in drift:
        say(console, f"{row['code']} in store {row['store_code']}: {says_drift(row)}", indent=2)


def _print_pushes(console: Console, pushes: Sequence[Row], *, begun: str | None = None) -> None:
    for row in pushes:
        what = (
            "removal" if row["operation"] == "delete" else "blank" if row["is_blank"] else _text(row["price"])
        )
        cause = f", cause: {row['cause']}" if row["cause"] else ""
        error = f": {row['message']}" if row["message"] and row["outcome"] != "accepted" else ""
        say(
            console,
            f"{row['code']} in store {row['store_code']}: {what} {row['outcome'] or 'on its way'}{cause}{error}",
            indent=2,
        )
        names = ("received", "queued", "sent", row["outcome"] or "", "refresh triggered")
        times = (begun, row["queued_at"], row["sent_at"], row["ended_at"], row["triggered_at"])
        say(console, says_steps(_steps(names, times)), indent=6)
        say(console, f"push {row['push_id']}", indent=6)


def _steps(names: Sequence[str], times: Sequence[str | None]) -> list[Step]:
    steps, last = list[Step](), None
    for name, text in zip(names, times, strict=True):
        if text is not None:
            at = datetime.fromisoformat(text)
            steps.append(Step(name, at, None if last is None else (at - last).total_seconds()))
            last = at
    return steps


def _moment(at: datetime) -> str:
    return moment(at.isoformat())


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
