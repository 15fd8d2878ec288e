"""What came of an operator's wish, in a sentence: for the command, for Dagster's runs and for the console. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Answer = Mapping[str, Any]

# Of what is to be pushed again, what does not go out now, and why.
_NOT_NOW = {
    "under_way": "on their way, and again after that",
    "waits_for_window": "wait for the raise_window",
    "waits_for_approval": "wait for approval",
    "rejected": "stay as somebody decided (rejected changes)",
    "held_back": "are not wanted on a label now (`esl-pipeline findings`)",
}
_BECOMES = {
    "keep": "stay as they are: nobody here changes or removes them any more",
    "blank": "become blank",
    "remove": "are removed there",
}


def pushed(store: str, answer: Answer) -> str:
    """Of Buffer.labels_push."""
    due = answer["pushed_again"] + answer["already_due"]
    says = [f"{store}: {_count(due, 'label is', 'labels are')} due now"]
    says += [f"{answer[key]} {words}" for key, words in _NOT_NOW.items() if answer[key]]
    if answer["paused"]:
        says.append("the store is paused, so they wait until it is resumed")
    return "; ".join(says)


def paused(answer: Answer) -> str:
    """Of Buffer.store_pause."""
    until = f"until {_time(answer['until'])}" if answer["until"] else "until somebody resumes it"
    return f"{answer['store_code']}: paused {until}: {answer['reason']}; what is under way ends, what comes waits"


def resumed(answer: Answer) -> str:
    """Of Buffer.store_resume."""
    waiting = _count(answer["waiting"], "label goes", "labels go")
    return f"{answer['store_code']}: no longer paused (since {_time(answer['since'])}); {waiting} out now"


def replayed(answer: Answer, *, dry_run: bool = False) -> str:
    """Of Buffer.deliveries_replay."""
    verb = "would be read again" if dry_run else "read again"
    says = [f"{_count(answer['deliveries'], 'delivery is', 'deliveries are')} {verb}"]
    if dry_run:
        says = [f"{_count(answer['deliveries'], 'delivery', 'deliveries')} {verb}"]
    if answer["without_body"]:
        says.append(f"{answer['without_body']} stay as they are, for their bodies are no longer kept")
    if answer["waiting"]:
        says.append(f"{answer['waiting']} wait to be read anyway")
    if answer["more"]:
        says.append("there are more: do it again for those of a later time (since)")
    return "; ".join(says)


def redriven(answer: Answer) -> str:
    """Of Buffer.redrive."""
    return f"{answer['labels']} labels and {answer['deliveries']} deliveries are due again"


def tried(answer: Answer) -> str:
    """Of Buffer.label_server_try."""
    name, waiting = answer["label_server"], _count(answer["waiting"], "label waits", "labels wait")
    if not answer["was_down"]:
        return f"label server {name} is not known to be down: {waiting}"
    return (
        f"label server {name}, down since {_time(answer['since'])}, is tried with the next label now; "
        f"{waiting} for it"
    )


def approved(store: str, answer: Answer) -> str:
    """Of Buffer.changes_approve."""
    return f"{store}: {answer['removals']} removals and {answer['prices']} price changes may go on"


def rejected(store: str, answer: Answer) -> str:
    """Of Buffer.changes_reject."""
    return (
        f"{store}: {answer['removals']} removals and {answer['prices']} price changes are not made: their labels stay "
        "as they are until the source says something else"
    )


def removed(answer: Answer, labels: str) -> str:
    """Of Buffer.store_remove."""
    store, shops = answer["store_code"], answer["mappings"]
    says = [f"{store}: {'one shop does' if shops == 1 else f'{shops} shops do'} not feed it any more"]
    at = f"at label server {answer['label_server']}"
    says.append(f"{_count(answer['labels'], 'label', 'labels')} {at} {_BECOMES[labels]}")
    if answer["dropped"]:
        says.append(f"{_count(answer['dropped'], 'change', 'changes')} that waited will not be made")
    if not answer["is_done"]:
        says.append("it leaves `esl-pipeline stores list` when that is done")
    return "; ".join(says)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _time(value: str) -> str:
    return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
