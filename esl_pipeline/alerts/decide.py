"""When an alert opens and closes: pure, so that each second of it can be tried.

A trouble opens an alert when it has lasted as long as its kind asks for, and closes it when it has been gone for as
long as that asks for: what comes and goes faster is one alert.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from esl_pipeline.alerts.catalogue import KINDS
from esl_pipeline.alerts.model import Alert, Change, Do, Told


def decide(
    told: Iterable[Told], alerts: Iterable[Alert], now: datetime, *, unknown: frozenset[str] = frozenset()
) -> list[Change]:
    """What becomes of the alerts that are not closed, given the troubles that are there now, in words.

    unknown: kinds and keys that could not be judged this time; nothing of them ends.
    """
    here, known = {one.key: one for one in told}, {alert.told.key: alert for alert in alerts}
    new = [_begun(one, None, now) for key, one in here.items() if key not in known]
    return [*new, *_followed(here, unknown, known.values(), now)]


def _followed(
    here: dict[str, Told], unknown: frozenset[str], alerts: Iterable[Alert], now: datetime
) -> Iterator[Change]:
    for alert in alerts:
        found = here.get(alert.told.key)
        if found is not None:
            change = _begun(found, alert, now)
            if change.do != "keep" or alert.gone_at is not None or _differs(found, alert.told):
                yield change
        elif not unknown & {alert.told.key, alert.told.kind} and (do := _ended(alert, now)):
            yield Change(do, alert.told)


def _begun(found: Told, alert: Alert | None, now: datetime) -> Change:
    if alert is not None and alert.opened_at is not None:
        return Change("keep", found)
    lasted = now - alert.seen_at if alert is not None else timedelta()
    if lasted >= _seconds(KINDS[found.kind].opens_after):
        return Change("open", found)
    return Change("see" if alert is None else "keep", found)


def _ended(alert: Alert, now: datetime) -> Do | None:
    if alert.opened_at is None:
        return "forget"
    closes_after = _seconds(KINDS[alert.told.kind].closes_after) if alert.told.kind in KINDS else timedelta()
    if now - (alert.gone_at or now) >= closes_after:
        return "close"
    return "gone" if alert.gone_at is None else None


def _differs(found: Told, before: Told) -> bool:
    """Whether a reader of the list would read something else: when it began is what was said first."""
    return vars(found) | {"since": None} != vars(before) | {"since": None}


def _seconds(count: float) -> timedelta:
    return timedelta(seconds=count)
