"""What the buttons do: a call of the buffer each, audited with the token's name, and a sentence of what came of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import ActionRefused
from esl_pipeline.buffer.operator import Who
from esl_pipeline.console.doors import Form
from esl_pipeline.console.words import counted, moment

Row = Mapping[str, Any]
_PAUSES = {"": None, "1": timedelta(hours=1), "4": timedelta(hours=4), "24": timedelta(days=1)}


@dataclass(frozen=True)
class Change:
    """A change that waits for somebody's word, or that somebody has rejected. seen: what of it was looked at."""

    store: str
    code: str
    title: str
    shop: str
    before: str
    after: str
    since: str
    rejected: str
    seen: str


def who(form: Form) -> Who:
    """Who acts, as the audit keeps it. A form that is sent twice acts once."""
    found: Who = {"by": form.visit.bearer.name, "verified": True}
    with suppress(ValueError):  # sent by a program: each of its wishes is one of its own
        found["action_id"] = str(UUID(form.one("action_id")))
    return found


def by_store(rows: Sequence[Row]) -> dict[str, list[Change]]:
    """Changes of Buffer.changes_waiting by store."""
    found: dict[str, list[Change]] = {}
    for row in rows:
        found.setdefault(row["store_code"], []).append(_change(row))
    return found


def _change(row: Row) -> Change:
    rejected = row["rejected_at"] and f"rejected by {row['rejected_by']} {moment(row['rejected_at'])}"
    if rejected and row["reason"]:
        rejected += f": {row['reason']}"
    return Change(
        store=row["store_code"],
        code=row["code"],
        title=" ".join(filter(None, (row["title"], _variant(row)))),
        shop=row["source_store_id"] or "",
        before=row["before"] or "–",
        after="removed" if row["kind"] == "removal" else row["after"] or "–",
        since=row["since"],
        rejected=rejected or "",
        seen=_seen(row),
    )


def _variant(row: Row) -> str:
    return "" if row["variant_title"] in (None, "Default Title") else str(row["variant_title"])


def _seen(row: Row) -> str:
    """What a change comes to, and its code: so that what is approved is what was looked at."""
    return f"{row['kind']} {row['after'] or ''} {row['code']}"


def _push_again(buffer: Buffer, form: Form, by: Who) -> str:
    done = buffer.labels_push(store=form.one("store"), codes=[form.one("code")], **by)
    if done["paused"] and done["pushed_again"] + done["already_due"]:
        return "The store is paused: it is sent again when that ends."
    for key, says in (
        ("pushed_again", "It is sent again now, though nothing of it has changed."),
        ("already_due", "It was waiting to be sent, and is sent now."),
        ("under_way", "It is being sent this moment."),
        ("waits_for_window", "It waits for the hours in which prices may rise, so it was not sent."),
        ("waits_for_approval", "It waits for approval, so it was not sent."),
        ("rejected", "The change was rejected, so it was not sent."),
        ("held_back", "A finding holds it back, so it was not sent: mend that in the shop."),
    ):
        if done.get(key):
            return says
    return "Nothing was there to send."


def _try_again(buffer: Buffer, form: Form, by: Who) -> str:
    done = buffer.redrive(store=form.one("store"), code=form.one("code") or None, **by)
    return f"{counted(done['labels'], 'label')} tried again now."


def _pause(buffer: Buffer, form: Form, by: Who) -> str:
    lasts, now = _PAUSES.get(form.one("hours")), datetime.now(UTC)
    until = (now + lasts).isoformat() if lasts else None
    done = buffer.store_pause(store=form.one("store"), reason=form.one("reason").strip(), until=until, **by)
    end = f"until {moment(done['until'])}" if done["until"] else "until somebody resumes it"
    return f"Store {done['store_code']} is paused {end}. Nothing is lost: what changes waits."


def _resume(buffer: Buffer, form: Form, by: Who) -> str:
    done = buffer.store_resume(store=form.one("store"), **by)
    return f"Store {done['store_code']} goes on; {counted(done['waiting'], 'label')} waited."


def _try_server(buffer: Buffer, form: Form, by: Who) -> str:
    done = buffer.label_server_try(label_server=form.one("label_server"), **by)
    return f"Label server {done['label_server']} is tried at once."


def _approve(buffer: Buffer, form: Form, by: Who) -> str:
    seen = _looked_at(form)
    done = buffer.changes_approve(store=form.one("store"), codes=list(seen), seen=seen, **by)
    return f"Approved: {_told(done)}. They go out now."


def _reject(buffer: Buffer, form: Form, by: Who) -> str:
    seen, reason = _looked_at(form), form.one("reason").strip() or None
    done = buffer.changes_reject(store=form.one("store"), codes=list(seen), seen=seen, reason=reason, **by)
    return f"Rejected: {_told(done)}. These labels stay as they are until the shop says something else."


def _told(done: Row) -> str:
    return f"{counted(done['prices'], 'price')} and {counted(done['removals'], 'removal')}"


def _looked_at(form: Form) -> dict[str, tuple[str, str | None]]:
    """The changes that were chosen, by their codes, as they were on the page."""
    chosen = [seen.split(" ", 2) for seen in form.all("change")]
    if not chosen:
        raise ActionRefused("No change was chosen, so nothing was done.")
    if any(len(seen) < 3 for seen in chosen):
        raise ActionRefused("Nothing was done: this form is none of this page.")
    return {code: (kind, after or None) for kind, after, code in chosen}


ACTIONS: dict[str, Callable[[Buffer, Form, Who], str]] = {
    "push-again": _push_again,
    "try-again": _try_again,
    "pause": _pause,
    "resume": _resume,
    "approve": _approve,
    "reject": _reject,
    "try-server": _try_server,
}
