"""Why a label shows what it shows: what is told of one place, now or at a time that is past.

A story is made of the audit's rows (buffer/story.py asks for them, model/telling.py tells it). "Accepted" is the label
server's word; what is called shown has evidence (docs/shelf.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Label = Mapping[str, Any]

RUNGS = ("", "wanted", "accepted", "stored", "triggered", "reachable", "refreshed", "seen")
"""The ladder of evidence by its numbers."""

SHOWN_FROM = 6
"""From this rung on the label itself is known to show it."""

EntryKind = Literal[
    "accepted", "refused", "failed", "unknown", "not sent", "on its way", "drift", "policy", "seen"
]


@dataclass(frozen=True)
class Webhook:
    """A delivery behind a label. read_at: when it was merged, by that run."""

    id: int
    webhook_id: str
    topic: str
    state: str
    received_at: datetime
    triggered_at: datetime | None = None
    read_at: datetime | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class Step:
    """One step on the way of a change: received, read, queued, sent, accepted, triggered. after: seconds since the step
    before."""

    name: str
    at: datetime
    after: float | None = None


@dataclass(frozen=True)
class Entry:
    """Something that happened to a label.

    says: in a sentence. before, label: what hung before and from then on (of a refused push: what was to); None:
    nothing. price_before, price: on them, as text. cause: why it was pushed (see migration 0110), because: the same in
    words, by: who decided it, where somebody did. outcome: the label server's, as in esl.sync_log. steps: how long it
    took. webhook_id: the newest of `webhooks`.
    """

    at: datetime
    kind: EntryKind
    says: str
    before: Label | None = None
    label: Label | None = None
    price_before: str | None = None
    price: str | None = None
    cause: str | None = None
    by: str | None = None
    run_id: str | None = None
    push_id: str | None = None
    webhook_id: str | None = None
    webhooks: Sequence[Webhook] = ()
    steps: Sequence[Step] = ()
    because: str | None = None
    outcome: str | None = None
    answer: str | None = None
    http_status: int | None = None
    duration_ms: int | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class Holding:
    """What a place was known to hold from a time on, until something else was known of it.

    label None: nothing; known False: whatever hung before anything is known. since: when it was accepted or found.
    maybe: what it may have held instead (None among them: nothing), doubt: why, in words.
    """

    since: datetime | None
    label: Label | None = None
    price: str | None = None
    is_blank: bool = False
    known: bool = True
    was_found: bool = False
    maybe: Sequence[Label | None] = ()
    maybe_prices: Sequence[str | None] = ()
    doubt: str | None = None
    push_id: str | None = None


@dataclass(frozen=True)
class Story:
    """What a place shows and why.

    sentence: the whole in one. at: the time that was asked for; None: now. holding: what the label server held then;
    since: since when its price was so; before: the price before that. rung: how far it is known to have come (RUNGS),
    only of now. waits: what is to be pushed and is not yet, in a sentence. entries: newest first, up to `at`; more: so
    many were asked for that there may be older ones.
    """

    store: str
    code: str
    sentence: str
    holding: Holding
    label_server: str = "default"
    title: str | None = None
    at: datetime | None = None
    since: datetime | None = None
    before: str | None = None
    rung: int | None = None
    waits: str | None = None
    entries: Sequence[Entry] = field(default=())
    more: bool = False

    @property
    def price(self) -> str | None:
        """What it held as its price, as text."""
        return self.holding.price

    @property
    def evidence(self) -> str | None:
        """The word of the rung."""
        return None if self.rung is None else RUNGS[self.rung]
