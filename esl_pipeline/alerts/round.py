"""One round: what is wrong becomes alerts, and what is to be told is sent, once to each address."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import uuid4

from esl_pipeline.alerts import sender
from esl_pipeline.alerts.addresses import Recipient, is_quiet, recipients
from esl_pipeline.alerts.catalogue import in_words
from esl_pipeline.alerts.decide import decide
from esl_pipeline.alerts.message import message
from esl_pipeline.alerts.model import Alert, Condition, Known
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.settings import Settings

_AT_ONCE = 8


@dataclass(frozen=True)
class Seen:
    """What the buffer knows, and whom the settings name. alerts: those that are not closed. is_due: something is to be
    sent to them. is_stuck: it does not get through to one of them."""

    at: datetime
    known: Known
    alerts: tuple[Alert, ...]
    to: tuple[Recipient, ...]
    is_due: bool
    is_stuck: bool


def look(buffer: Buffer, settings: Settings) -> Seen:
    """What is wrong as far as the buffer knows: one call."""
    answer = buffer.alert_conditions(silence_hours=settings.esl_silence_hours)
    to = recipients(settings.esl_alert_webhook_url)
    names = {one.name for one in to}
    return Seen(
        datetime.fromisoformat(answer["at"]),
        Known(tuple(map(Condition.of, answer["conditions"]))),
        tuple(map(Alert.of, answer["alerts"])),
        to,
        is_due=not names.isdisjoint(answer["due"]),
        is_stuck=not names.isdisjoint(answer["stuck"]),
    )


def follow(buffer: Buffer, settings: Settings, seen: Seen, known: Known) -> list[str]:
    """Keep what becomes of alerts, given all that is known now, and send what is to be sent -> what went wrong.

    Nothing is wrong and nothing open: no call. Else two, and one more where anything is sent.
    """
    told = [
        in_words(condition, seen.at, dagster_url=settings.esl_dagster_url, app_url=settings.app_base_url)
        for condition in {condition.key: condition for condition in known.conditions}.values()
    ]
    changes = decide(told, seen.alerts, seen.at, unknown=known.unknown)
    if not (changes or seen.alerts or seen.is_due):
        return []
    buffer.alert_record(
        changes=[change.row() for change in changes],
        recipients=[{"name": one.name, "severity": one.severity} for one in seen.to],
    )
    quiet = is_quiet(settings.esl_alert_quiet_hours, settings.esl_nightly_time_zone, seen.at)
    return send(buffer, seen.to, critical_only=quiet) if seen.to else []


def send(buffer: Buffer, to: Sequence[Recipient], *, critical_only: bool) -> list[str]:
    """Send what is due to these: one message each, with all of it -> what went wrong, a sentence per recipient.

    A worker that dies between sending and recording has it sent once more, under the same ids.
    """
    claim_id = str(uuid4())
    deliveries = buffer.alert_claim(
        claim_id=claim_id, recipients=[one.name for one in to], critical_only=critical_only
    )
    if not deliveries:
        return []
    addresses = {one.name: one.url for one in to}
    parts = {name: list(rows) for name, rows in groupby(deliveries, key=_recipient)}
    with ThreadPoolExecutor(min(len(parts), _AT_ONCE)) as pool:
        sent = {
            name: pool.submit(sender.post, addresses[name], message(rows)) for name, rows in parts.items()
        }
    answers = {name: done.result() for name, done in sent.items()}
    buffer.alert_sent(claim_id=claim_id, told=[_told(name, parts[name], answers[name]) for name in parts])
    return [f"{name}: {answer.error}" for name, answer in answers.items() if answer.error]


def _recipient(delivery: Mapping[str, Any]) -> str:
    return str(delivery["recipient"])


def _told(name: str, rows: Iterable[Mapping[str, Any]], answer: sender.Answer) -> dict[str, Any]:
    attempts = max(row["attempts"] for row in rows)
    if answer.error is None:
        return {"recipient": name}
    return {
        "recipient": name,
        "error": answer.error,
        "again_seconds": sender.pause_after(attempts, answer),
    }
