"""What is pushed and how it ended: claims, the outcome of a call, and the rules by which pushes are repeated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from esl_pipeline.model.shop import shop_key


@dataclass(frozen=True)
class QueuedLabel:
    """A label on its way. label: as the label server takes it, None for a removal. shop: its key."""

    code: str
    label: Mapping[str, Any] | None
    generation: int
    attempt: int
    shop: str
    variant_id: str | None
    event_ids: Sequence[int]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """As the buffer gives it."""
        return cls(
            code=row["code"],
            label=row["label"],
            generation=row["generation"],
            attempt=row["attempt"],
            shop=shop_key(row),
            variant_id=row["variant_id"],
            event_ids=row["event_ids"],
        )


@dataclass(frozen=True)
class Claim:
    """A batch that is leased to us: labels of one store for one call. `at`: when it was asked for, on the monotonic
    clock; has_more: something else was queued then."""

    push_id: str
    store_code: str
    operation: str
    rows: Sequence[QueuedLabel]
    at: float
    has_more: bool = True


@dataclass(frozen=True)
class Later:
    """Something is due, but what is under way keeps it back: ask again after so many seconds.

    is_paced: before that no call of its label server may begin, whatever comes meanwhile.
    """

    seconds: float
    is_paced: bool = False


@dataclass(frozen=True)
class RefreshClaim:
    """A store whose refresh is leased to us."""

    claim_id: str
    store_code: str


@dataclass(frozen=True)
class Outcome:
    """What a call came to that changes something at the label server.

    not_known: of a refresh, which the server has no such action for. not_sent: there was no call after all.
    server_failed: whether it tells that the server itself is in trouble; None: there was no call.
    """

    outcome: Literal[
        "accepted", "transient", "unknown", "rejected", "authentication", "not_known", "not_sent"
    ]
    message: str | None = None
    http_status: int | None = None
    error_code: float | None = None
    answer: str | None = None
    retry_after_seconds: float | None = None
    duration_ms: int | None = None
    server_failed: bool | None = None


@dataclass(frozen=True)
class PushRules:
    """How pushes are batched and repeated. Delays in seconds; attempt n waits initial x multiplier^(n-1).

    A label that is refused for its own fault waits refused_delay x refused_multiplier^(n-1) and is failed after
    max_refusals. A store that passes nothing pauses, for twice as long each time, up to max_pause.

    After `down_after` calls in a row that the label server failed, it is down: one label probes it after `probe`
    seconds, then after twice as many each time, up to `max_probe`.
    """

    # Calls in flight at the label server, over all runs.
    concurrency: int = 4
    # The most labels in a call.
    batch_size: int = 100
    max_attempts: int = 25
    initial_delay: float = 2
    multiplier: float = 2
    max_delay: float = 900
    # Longer than the client's longest call with its own retries, so that a live worker never loses its claim; and how
    # long one request takes at most, for which there must be time left when it begins.
    lease: float = 60
    call: float = 20
    max_refusals: int = 5
    refused_delay: float = 30
    refused_multiplier: float = 4
    max_refused_delay: float = 6 * 3600
    pause: float = 60
    max_pause: float = 900
    down_after: int = 3
    probe: float = 5
    max_probe: float = 60
