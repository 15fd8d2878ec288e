"""What an address is sent: text for people, which Slack and those like it show, and the same for machines."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_MARKS = {"info": "note", "warning": "warning", "critical": "CRITICAL"}
_SHOPS = 50


def message(deliveries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One message for all of them (rows of esl_alert_claim, or alike): {text, source, alerts: [...]}.

    alerts: each with the id of its delivery, which stays the same when the message is sent again.
    """
    return {
        "text": "\n\n".join(_text(delivery["event"], delivery["alert"]) for delivery in deliveries),
        "source": "esl-pipeline",
        "alerts": [_fields(delivery) for delivery in deliveries],
    }


def sample(severity: str, now: datetime) -> dict[str, Any]:
    """A delivery that says that alerts arrive."""
    at = now.isoformat()
    alert = {
        "id": 0,
        "key": "test:test",
        "kind": "test",
        "subject": "test",
        "severity": severity,
        "since": at,
        "opened_at": at,
        "closed_at": None,
        "says": "This is a test: alerts arrive here.",
        "todo": "Nothing.",
        "link": None,
        "labels": 0,
        "shops": [],
    }
    return {"id": f"test-{now.timestamp():.0f}", "event": "test", "alert": alert}


def _fields(delivery: Mapping[str, Any]) -> dict[str, Any]:
    alert = delivery["alert"]
    names = (
        "kind",
        "subject",
        "severity",
        "since",
        "opened_at",
        "closed_at",
        "says",
        "todo",
        "link",
        "labels",
    )
    return {
        "id": delivery["id"],
        "event": delivery["event"],
        "alert": alert["id"],
        **{name: alert[name] for name in names},
        "shops": alert["shops"][:_SHOPS],
        "shop_count": len(alert["shops"]),
    }


def _text(event: str, alert: Mapping[str, Any]) -> str:
    since = f"Since {_moment(alert['since'])}."
    if event == "closed":
        lasted = _length(alert["since"], alert["closed_at"])
        says = [f"[ended] {alert['says']}", f"Over at {_moment(alert['closed_at'])}, after {lasted}."]
    else:
        says = [f"[{_MARKS[alert['severity']]}] {alert['says']}", since, f"What to do: {alert['todo']}"]
        says += [alert["link"]] if alert["link"] else []
    return _escaped("\n".join(says))


def _escaped(text: str) -> str:
    """So that no foreign text calls a whole channel or hides a link, by Slack's rules."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _moment(value: str) -> str:
    return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _length(begins: str, ends: str) -> str:
    seconds = int((datetime.fromisoformat(ends) - datetime.fromisoformat(begins)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{max(seconds, 0)} s"
