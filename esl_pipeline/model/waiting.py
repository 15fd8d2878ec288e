"""What waits, in words: why a label is not on the shelf yet, why a delivery was not used."""

from collections.abc import Mapping
from typing import Any, Literal

LabelState = Literal["failed", "dead", "waiting", "approval", "rejected", "window"]
DeliveryState = Literal["unusable", "dead", "waiting"]

_LABELS = {
    "refused": "the label server refuses it; it is tried again every night",
    "given_up": "given up after too many tries",
    "approval": "too many drastic changes at once: somebody must approve them",
    "rejected": "somebody rejected the change; the label stays until something else is wanted of it",
    "under_way": "is being sent",
    "paused": "somebody paused the store (esl-pipeline stores pauses)",
    "inactive": "the mapping is inactive",
    "dry_run": "the mapping is in dry run",
    "problem": "the mapping cannot be used as it is set",
    "store_refuses": "the label server refuses the whole store; next try {until}",
    "server_down": "the label server is down; next try {until}",
    "window": "prices rise in the raise_window only, which opens {until}",
    "retry": "next try {until}",
    "to_judge": "its variant is to be evaluated first",
    "to_read": "the shop is to be read first",
    "to_judge_all": "all changes of the shop are to be evaluated first",
    "after_others": "goes when the new label of its variant is accepted",
    "turn": "its turn comes",
}
_DELIVERIES = {
    "no_store": "no store is mapped for the shop",
    "contested": "several shops claim {thing}",
    "under_way": "is being read",
    "turn": "its turn comes",
}


def why_label(row: Mapping[str, Any], until: str) -> str:
    """A sentence of a row of Buffer.waiting_labels; until: its time, as people read it."""
    return _LABELS.get(row["why"], str(row["why"])).format(until=until)


def why_delivery(row: Mapping[str, Any]) -> str:
    """A sentence of a row of Buffer.waiting_deliveries: what the buffer keeps of it, or why it waits."""
    if row["reason"]:
        return str(row["reason"])
    return _DELIVERIES.get(row["why"], str(row["why"])).format(thing=row["thing"])


def what_it_said(row: Mapping[str, Any]) -> str | None:
    """The label server's whole answer to a label; None where it was yes, or there is none."""
    answer = row["answer"]
    if answer is None:
        return str(row["last_error"]) if row["last_error"] else None
    status = f"HTTP {answer['http_status']}: " if answer["http_status"] is not None else ""
    return f"{status}{answer['answer'] or answer['message'] or answer['outcome']}"
