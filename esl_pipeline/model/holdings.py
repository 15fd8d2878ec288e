"""What a place held when, from the rows of its audit and of what was found to differ. Pure.

Each accepted push and each difference found behind our back says what hangs from then on; a push whose end is not
known, and a difference until it was found, say what may hang instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

from esl_pipeline.model.story import Holding, Label

Row = Mapping[str, Any]


def holdings(log: Sequence[Row], drift: Sequence[Row], *, is_whole: bool) -> list[Holding]:
    """What the place held, from the beginning of the rows on; each until the next one's `since`.

    is_whole: nothing is known from before these rows, so nothing of ours was there.
    """
    found = [Holding(since=None, known=is_whole)]
    sent: dict[str, Row] = {}
    open_: dict[str, str] = {}  # push id -> why it is in doubt
    for item in sorted([*log, *drift], key=lambda r: (time_of(r["at"]), "theirs" in r, r["id"])):
        at = time_of(item["at"])
        if "theirs" in item:
            there = _found(item, found[-1])
            _doubt_back(found, there)
            open_ = {push: why for push, why in open_.items() if "way" in why}
            found.append(there)
        elif item["kind"] == "intent":
            sent[item["push_id"]] = item
            open_[item["push_id"]] = f"a push of {says_push(item)} was on its way from {moment(at)} on"
            found.append(_doubted(replace(found[-1], since=at), sent, open_))
        elif (intent := sent.get(item["push_id"])) is not None:
            found.append(_answered(replace(found[-1], since=at), intent, item, sent, open_))
    return found


def held_at(held: Sequence[Holding], at: datetime | None) -> Holding:
    """The one of that time; None: the last."""
    upto = [holding for holding in held if at is None or holding.since is None or holding.since <= at]
    return upto[-1]


def _answered(
    now: Holding, intent: Row, result: Row, sent: Mapping[str, Row], open_: dict[str, str]
) -> Holding:
    push, outcome = intent["push_id"], result["outcome"]
    was_lost = "lost" in open_.get(push, "")
    open_.pop(push, None)
    if outcome == "accepted" and not was_lost:
        for other in [other for other, why in open_.items() if "way" not in why]:
            open_.pop(other)  # whatever became of it, this came after it
        now = Holding(
            since=now.since,
            label=intent["label"] if intent["operation"] == "upsert" else None,
            price=intent["price"],
            is_blank=intent["is_blank"],
            push_id=push,
        )
    elif why := _why_open(result, was_lost=was_lost):
        open_[push] = (
            f"whether the push of {says_push(intent)} at {moment(time_of(intent['at']))} was taken is not known: {why}"
        )
    return _doubted(now, sent, open_)


def _why_open(result: Row, *, was_lost: bool) -> str | None:
    """Why a push that was not accepted may have been taken; None: it was not."""
    if result["outcome"] == "lost" or was_lost:
        return "its run was lost"
    if result["outcome"] == "unknown":
        return "no answer came"
    if result["outcome"] == "transient" and (result["http_status"] or 0) >= 500:
        return f"the server failed (HTTP {result['http_status']})"
    return None


def _doubted(now: Holding, sent: Mapping[str, Row], open_: Mapping[str, str]) -> Holding:
    rows = [sent[push] for push in open_]
    return replace(
        now,
        maybe=tuple(row["label"] for row in rows),
        maybe_prices=tuple(row["price"] for row in rows),
        doubt="; ".join(open_.values()) or None,
    )


def _found(drift: Row, before: Holding) -> Holding:
    """What was there. Of a difference the row has the fields that differ: the others were as they had been accepted."""
    label, price = drift["theirs"], drift["price"]
    if drift["kind"] == "different":
        label = _with_fields(before.label, label)
        if drift["price_ours"] is None and price is None:
            price = before.price
    return Holding(since=time_of(drift["at"]), label=label, price=price, was_found=True)


def _with_fields(label: Label | None, fields: Label) -> Label:
    """The label with these fields, whose names are extend.key where they are inner ones."""
    changed: dict[str, Any] = dict(label or {})
    for name, value in fields.items():
        outer, _, key = name.partition(".")
        changed[outer] = {**(changed.get(outer) or {}), key: value} if key else value
    return changed


def _doubt_back(found: list[Holding], there: Holding) -> None:
    """What was believed until a difference was found may have been so all the time, or not: back to the last word."""
    why = f"{says_holding(there)} was found there at {moment(there.since)}, since when is not known"
    push, was_found = found[-1].push_id, found[-1].was_found
    for n in range(len(found) - 1, -1, -1):
        if (found[n].push_id, found[n].was_found) != (push, was_found):
            break
        found[n] = replace(
            found[n],
            maybe=(*found[n].maybe, there.label),
            maybe_prices=(*found[n].maybe_prices, there.price),
            doubt="; ".join(filter(None, (found[n].doubt, why))),
        )


def says_holding(holding: Holding) -> str:
    """What a place held, in a word or two."""
    if holding.label is None:
        return "nothing"
    return "a blank label" if holding.is_blank else holding.price or "a label without a price"


def says_push(row: Row) -> str:
    """What a push brings."""
    if row["operation"] == "delete":
        return "removal"
    return "a blank label" if row["is_blank"] else cast(str, row["price"] or "a label without a price")


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def moment(at: datetime | None) -> str:
    """A time to the second, in UTC."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
