"""Tells the story of a label from the rows that esl_story gives. Pure.

Out of what the place held when (model/holdings.py) and of what happened come the entries, each with its reason, and
the sentence that says it all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from esl_pipeline.model.holdings import held_at, holdings, moment, says_holding, says_push, time_of
from esl_pipeline.model.story import (
    SHOWN_FROM,
    Entry,
    EntryKind,
    Holding,
    Step,
    Story,
    Webhook,
)

Row = Mapping[str, Any]

_KINDS: Mapping[str | None, EntryKind] = {
    None: "on its way",
    "accepted": "accepted",
    "rejected": "refused",
    "authentication": "refused",
    "transient": "failed",
    "unknown": "unknown",
    "lost": "unknown",
    "not_sent": "not sent",
}
# Causes that are not about the webhooks behind a label.
_OF_THEIR_OWN = ("read", "policy", "plan", "drift")


def told(row: Row, *, at: datetime | None = None, limit: int = 20) -> Story | None:
    """The story of a place (an item of esl_story's answer); None: nothing is known of it."""
    log, drift = row["log"], row["drift"]
    if not (log or drift or row["queue"] or row["is_known"]):
        return None
    held = holdings(log, drift, is_whole=row["is_whole"])
    holding = held_at(held, at)
    entries = _entries(row, held, at)
    since, before, origin = _price_run(held, holding, entries)
    recent = [entry for entry in entries if not row["from"] or entry.at >= time_of(row["from"])]
    shown = _newest(recent, limit)
    pushes = sum(entry.push_id is not None for entry in shown)
    story = Story(
        store=row["store_code"],
        code=row["code"],
        label_server=row["label_server"],
        title=row["title"],
        sentence="",
        holding=holding,
        at=at,
        since=since,
        before=before,
        rung=row["rung"] if at is None else None,
        waits=_waits(row["queue"], row["grace"]) if at is None else None,
        entries=tuple(shown),
        more=len(shown) < len(recent) or (pushes >= limit and not row["is_whole"]),
    )
    return replace(story, sentence=_sentence(story, origin, is_given_up=row["is_given_up"]))


def _price_run(
    held: Sequence[Holding], holding: Holding, entries: Sequence[Entry]
) -> tuple[datetime | None, str | None, Entry | None]:
    """Since when the place has held this price, the price before, and the entry that brought it."""
    upto = list(held[: _index(held, holding) + 1])
    start, before = upto.pop(), None
    while upto:
        last = upto.pop()
        if _same(last, holding):
            start = last
            continue
        before = says_holding(last) if last.known else None
        break
    by_push = {entry.push_id: entry for entry in entries if entry.push_id}
    origin = by_push.get(start.push_id or "")
    if start.was_found:
        origin = next((e for e in entries if e.kind == "drift" and e.at == start.since), None)
    return start.since, before, origin


def _index(held: Sequence[Holding], holding: Holding) -> int:
    return next(n for n, other in enumerate(held) if other is holding)


def _same(one: Holding, other: Holding) -> bool:
    """Whether both hold the same price: what is said of doubts or other fields apart."""
    return (one.known, one.label is None, one.price, one.is_blank, one.was_found) == (
        other.known,
        other.label is None,
        other.price,
        other.is_blank,
        other.was_found,
    )


# Entries


def _entries(row: Row, held: Sequence[Holding], at: datetime | None) -> list[Entry]:
    """What happened until then, newest first."""
    webhooks = {item["id"]: _webhook(item) for item in row["deliveries"]}
    found = [_push_entry(row, intent, results, webhooks, held) for intent, results in _pushes(row["log"])]
    found += [_drift_entry(item, held) for item in row["drift"]]
    first = None if row["is_whole"] or not row["log"] else time_of(row["log"][0]["at"])
    found += [_policy_entry(c) for c in row["changes"] if first is None or time_of(c["at"]) >= first]
    found += [_seen_entry(item) for item in row["seen"]]
    return sorted((e for e in found if at is None or e.at <= at), key=lambda e: e.at, reverse=True)


def _newest(entries: Sequence[Entry], limit: int) -> list[Entry]:
    """The newest, with so many pushes."""
    kept, pushes = list[Entry](), 0
    for entry in entries:
        pushes += entry.push_id is not None
        if pushes > limit:
            break
        kept.append(entry)
    return kept


def _pushes(log: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Each intent with its results, oldest first."""
    results: dict[str, list[Row]] = {}
    for item in log:
        if item["kind"] == "result":
            results.setdefault(item["push_id"], []).append(item)
    for item in log:
        if item["kind"] == "intent":
            yield item, results.get(item["push_id"], [])


def _push_entry(
    row: Row, intent: Row, results: Sequence[Row], webhooks: Mapping[int, Webhook], held: Sequence[Holding]
) -> Entry:
    result = results[0] if results else None
    at = time_of((result or intent)["at"])
    before = held_at(held, time_of(intent["at"]))
    behind = tuple(webhooks[n] for n in sorted(intent["event_ids"] or (), reverse=True) if n in webhooks)
    because, by = _because(row, intent, behind)
    outcome = result["outcome"] if result else None
    says = f"{says_push(intent)} {_says_outcome(outcome)}" + (
        f" ({len(results)} answers)" * (len(results) > 1)
    )
    if outcome != "accepted" and result and result["message"]:
        says += f": {result['message'].rstrip('.')}"
    return Entry(
        at=at,
        kind=_KINDS[outcome],
        says=f"{says}; {because}",
        because=because,
        outcome=outcome,
        before=before.label,
        label=intent["label"],
        price_before=before.price,
        price=intent["price"],
        cause=intent["cause"],
        by=by,
        run_id=intent["run_id"],
        push_id=intent["push_id"],
        webhook_id=behind[0].webhook_id if behind else None,
        webhooks=behind,
        steps=_steps(intent, result, behind),
        answer=(result["answer"] or result["message"]) if result else None,
        http_status=result["http_status"] if result else None,
        duration_ms=result["duration_ms"] if result else None,
        attempt=intent["attempt"],
    )


def _says_outcome(outcome: str | None) -> str:
    return {
        None: "on its way",
        "accepted": "accepted",
        "rejected": "refused",
        "authentication": "refused (the server did not take our sign)",
        "transient": "not taken",
        "unknown": "sent without an answer",
        "lost": "sent, and its run was lost",
        "not_sent": "not sent after all",
    }[outcome]


def _steps(intent: Row, result: Row | None, behind: Sequence[Webhook]) -> tuple[Step, ...]:
    """How long it took, from the newest webhook behind it on. A drift or policy has none of its own: from the queue."""
    times: list[tuple[str, datetime | None]] = []
    queued = intent["queued_at"] and time_of(intent["queued_at"])
    if behind and intent["cause"] in (None, "new version", "first fill", "other variant", "approval"):
        first = behind[0]
        times += [("received", first.received_at), ("read", first.read_at)]
    times += [("queued", queued), ("sent", time_of(intent["at"]))]
    if result is not None:
        times.append((_KINDS[result["outcome"]], time_of(result["at"])))
        times.append(("refresh triggered", result["triggered_at"] and time_of(result["triggered_at"])))
    steps, last = list[Step](), None
    for name, at in times:
        if at is not None:
            steps.append(Step(name, at, None if last is None else (at - last).total_seconds()))
            last = at
    return tuple(steps)


def _because(row: Row, intent: Row, behind: Sequence[Webhook]) -> tuple[str, str | None]:
    """Why it was pushed, from "because" on, and who decided that, where somebody did."""
    cause, at = intent["cause"], time_of(intent["queued_at"] or intent["at"])
    said, by = _origin(behind), cast(str | None, None)
    if cause in (None, "new version"):
        return (f"because {said} set it" if intent["event_ids"] else "for a reason that was not kept"), None
    words = {
        "read": "a read of the shop found it",
        "first fill": "it is the first label of this code",
        "plan": "a period of its policy was over",
        "other variant": "the code is another variant's now",
        "correction": "an earlier push of it may have been taken late",
        "moved": "its store is at another label server now",
        "redrive": "somebody had it sent again (redrive)",
        "push again": "it was pushed again as it is",
        "replay": "deliveries were read again",
        "approval": "somebody approved it",
        "removal": "its store was removed",
    }
    if cause == "drift":
        last = _last([d for d in row["drift"] if d["kind"]], time_of(intent["at"]))
        why = f"it was put right: {says_drift(last)}" if last else "it differed at the label server"
    elif cause == "policy":
        change = _last([c for c in row["changes"] if c["mapping_id"] == intent["mapping_id"]], at)
        why, by = "the policy or mapping was changed", change["by"] if change else None
        if change:
            why += f" by {by} at {moment(time_of(change['at']))}{_says_change(change)}"
    elif cause == "approval" and (approval := _last(row["approvals"], time_of(intent["at"]))):
        by = approval["by"]
        why = f"{by} approved it at {moment(time_of(approval['at']))}"
    else:
        why = words.get(cause, str(cause))
    words_of = f" (its words are from {said})" if behind and cause not in _OF_THEIR_OWN else ""
    return f"because {why}{words_of}", by


def _origin(behind: Sequence[Webhook]) -> str:
    if behind:
        more = f" and {len(behind) - 1} more" if len(behind) > 1 else ""
        return f"webhook {behind[0].webhook_id} ({behind[0].topic}){more}"
    return "a webhook that is no longer kept"


def _drift_entry(item: Row, held: Sequence[Holding]) -> Entry:
    at = time_of(item["at"])
    there = held_at(held, at)
    before = held[_index(held, there) - 1]
    return Entry(
        at=at,
        kind="drift",
        says=says_drift(item) + "; put into the queue to be put right",
        before=before.label,
        label=there.label,
        price_before=before.price,
        price=there.price,
        run_id=item["run_id"],
        cause=item["kind"],
    )


def says_drift(item: Row) -> str:
    """What was found to differ (a row of esl.drift with the prices on it)."""
    at, theirs = moment(time_of(item["at"])), item["price"] or "another label"
    if item["kind"] == "missing":
        return f"at {at} the label server did not have it; it should say {item['price_ours'] or 'what was accepted'}"
    if item["kind"] == "foreign":
        return f"at {at} the label server had {theirs}, which nobody of ours had put there; it should have nothing"
    if item["kind"] == "ours":
        return f"at {at} the label server had {theirs}, which we had written there and removed"
    if item["price"] is not None or item["price_ours"] is not None:
        had, ours = item["price"] or "no price", item["price_ours"] or "none"
        return f"at {at} the label server had {had}; it should say {ours}"
    had, ours = (
        ", ".join(f"{name} {value!r}" for name, value in item[key].items()) for key in ("theirs", "ours")
    )
    return f"at {at} the label server had {had}; it should say {ours}"


def _policy_entry(change: Row) -> Entry:
    new = "made" if change["old"] is None else "changed"
    return Entry(
        at=time_of(change["at"]),
        kind="policy",
        says=f"mapping {new} by {change['by']}{_says_change(change)}",
        cause="policy",
        by=change["by"],
    )


def _says_change(change: Row) -> str:
    """What a change of a mapping changed."""
    if change["old"] is None:
        return ""
    old, new = ({**m, **m.get("settings", {})} for m in (change["old"], change["new"]))
    dull = ("settings", "updated_at", "activated_at", "problem")
    names = [name for name in {**old, **new} if name not in dull and old.get(name) != new.get(name)]
    said = ", ".join(f"{name} {_shown(old.get(name))} → {_shown(new.get(name))}" for name in sorted(names))
    return f" ({said})" if said else ""


def _seen_entry(item: Row) -> Entry:
    what = "seen on the label" if item["is_right"] else "somebody looked, and the label showed something else"
    return Entry(at=time_of(item["at"]), kind="seen", says=f"{what} by {item['by']}", by=item["by"])


def _webhook(item: Row) -> Webhook:
    return Webhook(
        id=item["id"],
        webhook_id=item["webhook_id"],
        topic=item["topic"],
        state=item["state"],
        received_at=time_of(item["received_at"]),
        triggered_at=item["triggered_at"] and time_of(item["triggered_at"]),
        read_at=item["finished_at"] and time_of(item["finished_at"]),
        run_id=item["run_id"],
    )


# The sentence


def _sentence(story: Story, origin: Entry | None, *, is_given_up: bool) -> str:
    """What it shows, since when, why, and before. Without evidence it is accepted, not shown."""
    holding, now = story.holding, story.at is None
    head = f"{story.code} in store {story.store}" + ("" if now else f" at {moment(story.at)}")
    what = says_holding(holding)
    since = f" since {moment(story.since)}" if story.since else ""
    if not holding.known:
        said = f"{head}: what hung there is from before what is kept"
    elif holding.label is None and not holding.was_found:
        said = f"{head}: nothing" + (
            f" since {moment(story.since)}, when its removal was accepted" * bool(since)
        )
    elif holding.was_found:
        said = f"{head}: {what}, as was found at {moment(story.since)}; that is not what was accepted"
    elif now and (story.rung or 0) >= SHOWN_FROM:
        said = f"{head} shows {what}{since}"
    else:
        said = f"{head}: {what} accepted{since}"
    if origin is not None and origin.kind == "accepted":
        said += f", {origin.because}"
    if story.before is not None:
        said += f"; before: {story.before}"
    if holding.doubt:
        said += f"; but {holding.doubt}"
    if is_given_up:
        said += "; but after three repairs the label server had something else again, and that is left alone"
    if now and (story.rung or 0) > 1 and not holding.doubt and holding.label is not None:
        said += f"; known to be {story.evidence}"
    return said + (f"; {story.waits}" if story.waits else "")


def _waits(queue: Row | None, grace: Row | None) -> str | None:
    if queue is not None:
        what = "its removal" if queue["operation"] == "delete" else says_push(queue)
        error = f", last answer: {queue['last_error']}" if queue["last_error"] else ""
        state = {"ready": "waiting", "leased": "on its way", "guarded": "waiting for approval"}
        since = queue["queued_at"] or queue["created_at"]
        return f"to come: {what}, {state.get(queue['state'], queue['state'])} since {moment(time_of(since))}{error}"
    if grace is not None:
        return f"to be removed since {moment(time_of(grace['decided_at']))}, waits for its physical labels"
    return None


def _shown(value: Any) -> str:
    return "-" if value in (None, "", {}) else str(value)


def _last(rows: Sequence[Row], until: datetime) -> Row | None:
    """The newest until then."""
    found = [row for row in rows if time_of(row["at"]) <= until]
    return max(found, key=lambda row: time_of(row["at"]), default=None)
