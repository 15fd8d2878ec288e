"""Every kind of trouble that people are told of: how bad it is, in what words, what to do, and how patient we are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from esl_pipeline.alerts.model import Condition, Severity, Told
from esl_pipeline.model.label_server import DEFAULT_SERVER, called
from esl_pipeline.printable import printable

# Of names and of foreign text, as much as fits on a phone.
_NAMES, _DETAIL = 5, 300


@dataclass(frozen=True)
class Kind:
    """A kind of trouble. says: a sentence without its end, of a condition. labels, one_label: how many wait.

    opens_after: seconds that it must last before people are told, so that its numbers have settled and what passes by
    itself is not told; closes_after: seconds that it must be gone.
    """

    severity: Severity
    says: Callable[[Condition], str]
    todo: str
    labels: str = "{} labels wait"
    one_label: str = "1 label waits"
    opens_after: float = 0
    closes_after: float = 60


def in_words(condition: Condition, now: datetime, *, dagster_url: str | None, app_url: str | None) -> Told:
    """What people are told of a condition. dagster_url, app_url: where its pages and the receiver are, for a link."""
    kind = KINDS[condition.kind]
    reach = [
        (kind.one_label if condition.labels == 1 else kind.labels.format(condition.labels))
        if condition.labels
        else "",
        _named("store", condition.stores),
        _named("shop", [shop.partition(":")[2] for shop in condition.shops]),
    ]
    return Told(
        condition.key,
        condition.kind,
        condition.subject,
        condition.severity or kind.severity,
        condition.since or now,
        says=f"{printable(kind.says(condition))}. {'; '.join(filter(None, reach)) or 'All shops'}.",
        todo=kind.todo,
        link=f"{dagster_url}{condition.path or '/'}" if dagster_url else app_url,
        labels=condition.labels,
        shops=condition.shops,
    )


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _named(what: str, names: Sequence[str]) -> str:
    """`stores S1, S2`, and how many more."""
    if not names:
        return ""
    shown = ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
    return f"{what if len(names) == 1 else f'{what}s'} {shown}"


def _with(text: str, detail: str) -> str:
    said = " ".join(detail.split()).rstrip(".")
    return f"{text}: {said[:_DETAIL]}" if said else text


def _server(condition: Condition) -> str:
    name = called(condition.subject, [DEFAULT_SERVER])
    return name[0].upper() + name[1:]


def _pause(c: Condition) -> str:
    until = f" until {datetime.fromtimestamp(c.number, UTC):%Y-%m-%d %H:%MZ}" if c.number else ""
    return _with(f"Store {c.subject} is paused{until}", c.detail)


def _many(c: Condition, one: str) -> str:
    return _count(c.number or 0, one)


def _shop(c: Condition) -> str:
    return c.subject.partition(":")[2] or c.subject


# What becomes of the price on a shelf comes first: only what keeps all of a store, or price rises, is critical.
KINDS: dict[str, Kind] = {
    "server_down": Kind(
        "critical",
        lambda c: _with(f"{_server(c)} is down", c.detail),
        "Look whether it runs and can be reached. Nothing is lost: what waits goes out by itself when it answers.",
    ),
    "server_unknown": Kind(
        "critical",
        lambda c: f"The settings name no label server {c.subject}",
        "Name it in HIPOINK_SERVERS_FILE again, or place its stores elsewhere with `esl-pipeline stores set`.",
        opens_after=15,
    ),
    "store_refused": Kind(
        "critical",
        lambda c: _with(f"The label server refuses everything of store {c.subject}", c.detail),
        "Look at its words, the store's code, and the sign and client id of the label server. It is tried again by "
        "itself, and at once with `esl-pipeline redrive --store`.",
    ),
    "store_paused": Kind(
        "info",
        _pause,
        "`esl-pipeline queue` shows what waits; `esl-pipeline stores resume` when the reason is gone.",
    ),
    "labels_refused": Kind(
        "warning",
        lambda c: _with("The label server refused labels", c.detail),
        "See them with `esl-pipeline queue --state failed`, correct the product, then `esl-pipeline redrive`.",
        labels="{} labels refused or given up",
        one_label="1 label refused or given up",
        opens_after=10,
    ),
    "rises_overdue": Kind(
        "critical",
        lambda c: f"Price rises wait at store {c.subject}: the till charges more than the shelf shows",
        "See `esl-pipeline queue` and the runs of event_sync.",
        labels="{} labels too low",
        one_label="1 label too low",
    ),
    "backlog": Kind(
        "warning",
        lambda c: f"Labels of store {c.subject} have waited for more than 15 minutes",
        "See `esl-pipeline queue`, and whether event_sync runs.",
    ),
    "approval_waiting": Kind(
        "warning",
        lambda c: f"Drastic changes wait for somebody's word at store {c.subject}",
        "Look at them with `esl-pipeline changes list`, then `esl-pipeline changes approve` or `reject`.",
        opens_after=10,
    ),
    "settings_unusable": Kind(
        "warning",
        lambda c: _with("A store's settings cannot be used", c.detail),
        "Correct them with `esl-pipeline stores set`.",
    ),
    "switched_off": Kind(
        "critical",
        lambda c: _with(
            f"Shop {_shop(c)} was switched off by a message, and nothing is pushed any more", c.detail
        ),
        "`esl-pipeline stores set` with --active if that is wrong, else with --inactive.",
        labels="{} labels stay as they are",
        one_label="1 label stays as it is",
        closes_after=0,
    ),
    "connection_ended": Kind(
        "warning",
        lambda c: _with(f"The connection of shop {_shop(c)} was ended, so its webhooks stay away", c.detail),
        "Connect the shop again: `esl-pipeline shopify connect`.",
    ),
    "signatures_refused": Kind(
        "warning",
        lambda c: (
            f"{_many(c, 'webhook')} that name shop {_shop(c)} came with a wrong signature, and no good one since"
        ),
        "Compare the secret that signs the shop's webhooks with SHOPIFY_WEBHOOK_SECRET (or its source's); "
        "`esl-pipeline doctor` says more.",
    ),
    "silent": Kind(
        "warning",
        lambda c: f"Shop {_shop(c)} has sent no webhook for longer than ESL_SILENCE_HOURS",
        "Look at its subscriptions: `esl-pipeline doctor`. Prices still follow by catch_up where the shop can be read.",
        closes_after=0,
    ),
    "deliveries_late": Kind(
        "warning",
        lambda c: f"{_many(c, 'webhook')} of shop {_shop(c)} wait, the oldest for more than 15 minutes",
        "See `esl-pipeline status`, and whether inbox_sensor and event_sync run.",
    ),
    "deliveries_unusable": Kind(
        "warning",
        lambda c: _with(
            f"{_many(c, 'webhook')} of shop {_shop(c)} could not be used in the last hour", c.detail
        ),
        "A replay, or a source that sends something else: `esl-pipeline inbox --state unusable` tells of it.",
        opens_after=10,
    ),
    "deliveries_dead": Kind(
        "warning",
        lambda c: _with(f"{_many(c, 'webhook')} of shop {_shop(c)} were given up", c.detail),
        "Mend what the reason says, then `esl-pipeline redrive`.",
        opens_after=10,
    ),
    "shop_unread": Kind(
        "warning",
        lambda c: _with(f"Shop {_shop(c)} cannot be read, or not all of it works", c.detail),
        "Look at its token, scopes and connection: `esl-pipeline doctor`.",
        closes_after=600,
    ),
    "check_failed": Kind(
        "warning",
        lambda c: _with(f"The check {c.subject.partition(' ')[0]} fails", c.detail),
        "The check's page says more; it is made again with the next run.",
        labels="{} labels are concerned",
        one_label="1 label is concerned",
        closes_after=600,
    ),
    "run_failed": Kind(
        "warning",
        lambda c: _with(f"A run of {c.subject} failed and is not tried again", c.detail),
        "Its page tells what went wrong; start it again there when that is mended.",
        closes_after=600,
    ),
    "night_missing": Kind(
        "warning",
        lambda c: _with(f"The nightly reconciliation of shop {_shop(c)} has not run", c.detail),
        "See whether the schedule nightly_reconciliation is on, and start full_reconciliation for the shop.",
        opens_after=300,
        closes_after=0,
    ),
    "night_late": Kind(
        "warning",
        lambda c: _with(f"The nightly reconciliation of shop {_shop(c)} is not done", c.detail),
        "See its run of full_reconciliation.",
        closes_after=0,
    ),
    "housekeeping_late": Kind(
        "warning",
        lambda c: _with("Housekeeping is overdue, so that what should be deleted stays", c.detail),
        "See the schedule housekeeping_daily and its runs.",
        opens_after=300,
        closes_after=0,
    ),
    "storage_low": Kind(
        "critical",
        lambda c: _with("There is hardly any room left for files", c.detail),
        "Make room: when it is full, runs fail and an embedded Postgres stops.",
        closes_after=300,
    ),
    "not_judged": Kind(
        "warning",
        lambda c: _with(f"Whether all is well with {c.subject} cannot be told", c.detail),
        "See the ticks of alert_sensor.",
        opens_after=120,
        closes_after=120,
    ),
}
