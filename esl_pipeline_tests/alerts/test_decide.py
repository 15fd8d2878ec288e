"""When an alert opens and closes, second by second."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from esl_pipeline.alerts.catalogue import KINDS, in_words
from esl_pipeline.alerts.decide import decide
from esl_pipeline.alerts.model import Alert, Change, Condition, Told

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
AT_ONCE, LATER = "server_down", "labels_refused"


def told(kind: str, subject: str = "S1", labels: int = 1, severity: str | None = None) -> Told:
    condition = Condition(kind, subject, NOW, labels=labels, severity=severity)  # type: ignore[arg-type]
    return in_words(condition, NOW, dagster_url=None, app_url=None)


def after(alerts: list[Alert], changes: list[Change], now: datetime) -> list[Alert]:
    """What the buffer makes of the changes (esl.alerts_change)."""
    by_key = {alert.told.key: alert for alert in alerts}
    for change in changes:
        key = change.told.key
        alert = by_key.get(key)
        if change.do in ("see", "open", "keep"):
            alert = alert or Alert(change.told, now)
            opened = alert.opened_at or (now if change.do == "open" else None)
            by_key[key] = replace(alert, told=change.told, opened_at=opened, gone_at=None)
        elif change.do == "gone":
            assert alert is not None
            by_key[key] = replace(alert, gone_at=alert.gone_at or now)
        else:
            assert alert is not None and (alert.opened_at is None) == (change.do == "forget")
            del by_key[key]
    return list(by_key.values())


def watch(
    *seconds_and_troubles: tuple[float, list[Told]], unknown: frozenset[str] = frozenset()
) -> list[str]:
    """What people are told, given what is there in each round."""
    alerts, said = list[Alert](), []
    for seconds, here in seconds_and_troubles:
        now = NOW + timedelta(seconds=seconds)
        changes = decide(here, alerts, now, unknown=unknown)
        said += [
            f"{change.do} {change.told.kind} {seconds:.0f}"
            for change in changes
            if change.do in ("open", "close")
        ]
        alerts = after(alerts, changes, now)
    return said


def test_it_opens_once_and_closes_once() -> None:
    down = [told(AT_ONCE)]
    rounds = [(s, down) for s in range(0, 100, 10)] + [(s, []) for s in range(100, 300, 10)]
    assert watch(*rounds) == ["open server_down 0", "close server_down 160"]


def test_what_passes_by_itself_is_not_told() -> None:
    refused = [told(LATER)]
    assert watch((0, refused), (5, []), (10, [])) == []
    assert watch((0, refused), (5, []), (7, refused), (12, refused), (17, refused)) == [
        "open labels_refused 17"
    ]


def test_what_comes_and_goes_is_one_alert() -> None:
    flapping = [(float(s), [told(AT_ONCE)] if s % 50 < 20 else []) for s in range(0, 600, 10)]
    assert watch(*flapping) == ["open server_down 0"]
    assert watch(*flapping, *((600.0 + s, []) for s in range(0, 100, 10)))[1:] == ["close server_down 630"]


def test_an_unopened_one_that_is_gone_begins_anew() -> None:
    assert watch((0, [told(LATER)]), (8, []), (9, [told(LATER)]), (12, [told(LATER)])) == []


def test_what_cannot_be_judged_stays() -> None:
    down = [told(AT_ONCE)]
    for unknown in (AT_ONCE, down[0].key):
        rounds = [(0.0, down), *((s, []) for s in range(10, 500, 10))]
        assert watch(*rounds, unknown=frozenset({unknown})) == ["open server_down 0"]


def test_an_open_alert_is_kept_in_newer_words_and_only_then() -> None:
    alert = Alert(told(AT_ONCE, labels=1), NOW, NOW)
    assert decide([told(AT_ONCE, labels=1)], [alert], NOW) == []
    later = told(AT_ONCE, labels=2)
    assert decide([later], [alert], NOW) == [Change("keep", later)]
    moved = replace(alert.told, since=NOW - timedelta(hours=1))
    assert decide([moved], [alert], NOW) == [], "when it began is what was said first"


def test_a_kind_that_is_no_more_ends() -> None:
    gone = Alert(replace(told(AT_ONCE), key="former:S1", kind="former"), NOW, NOW)
    assert [change.do for change in decide([], [gone], NOW)] == ["close"]


@pytest.mark.long
def test_whatever_comes_each_opens_and_closes_in_turns() -> None:
    chance = random.Random(4)
    for _ in range(100):
        rounds = [(10.0 * n, [told(kind) for kind in KINDS if chance.random() < 0.5]) for n in range(30)]
        said = watch(*rounds, *((300 + 10.0 * n, []) for n in range(100)))
        for kind in KINDS:
            mine = [words.split()[0] for words in said if f" {kind} " in words]
            assert mine == ["open", "close"] * (len(mine) // 2), kind


def test_every_kind_says_what_to_do() -> None:
    for kind in KINDS:
        words = told(kind)
        assert words.says.endswith(".") and ".." not in words.says and words.todo.endswith("."), kind
        assert "\n" not in words.says and len(words.says) < 400
        assert KINDS[kind].opens_after <= 300


def test_foreign_text_is_cut_and_cannot_steer() -> None:
    evil = Condition("server_down", "default", NOW, detail="\x1b[31m\u202e" + "x" * 10_000)
    words = in_words(evil, NOW, dagster_url=None, app_url=None)
    assert words.says.isprintable() and len(words.says) < 500


def test_it_names_stores_shops_labels_and_a_link() -> None:
    condition = Condition(
        "server_down",
        "default",
        NOW,
        labels=339,
        shops=tuple(f"shopify:shop-{n}.myshopify.com" for n in range(7)),
        stores=("S1",),
        detail="no answer",
        path="/runs/1",
    )
    words = in_words(condition, NOW, dagster_url="https://dagster.example", app_url="https://app.example")
    assert words.says == (
        "The label server is down: no answer. 339 labels wait; store S1; shops shop-0.myshopify.com, "
        "shop-1.myshopify.com, shop-2.myshopify.com, shop-3.myshopify.com, shop-4.myshopify.com and 2 more."
    )
    one = in_words(replace(condition, labels=1), NOW, dagster_url=None, app_url=None)
    assert "no answer. 1 label waits; store S1" in one.says
    assert words.link == "https://dagster.example/runs/1"
    assert (
        in_words(condition, NOW, dagster_url=None, app_url="https://app.example").link
        == "https://app.example"
    )
