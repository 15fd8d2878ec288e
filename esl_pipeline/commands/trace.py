"""`esl-pipeline trace`: why a label shows what it shows, or what a webhook, a run or a push has done."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.commands import spreadsheets
from esl_pipeline.commands.shared import AsJson, CommandError, buffer_here, out, print_json
from esl_pipeline.commands.story_lines import print_pushes, print_story, print_webhook, say
from esl_pipeline.commands.times import time_given
from esl_pipeline.model.story import Entry, Story

Row = dict[str, Any]
Place = tuple[str, str]

# A file has all that is kept of a place, up to that many pushes.
ALL = 100_000
# As many places as one name may reasonably mean; more are named only.
PLACES_TOLD = 10

CSV_COLUMNS = (
    *(
        "store",
        "code",
        "at",
        "what",
        "price_before",
        "price",
        "cause",
        "says",
        "by",
        "webhook_id",
        "received_at",
    ),
    *("queued_at", "sent_at", "accepted_at", "run_id", "push_id", "attempt", "answer"),
)


def trace(
    name: Annotated[
        str,
        typer.Argument(
            help="A label's product code, a SKU, variant id, webhook id, run id, push id or ESL code."
        ),
    ],
    store: Annotated[str | None, typer.Option(help="One Hipoink store only.")] = None,
    at: Annotated[
        str | None,
        typer.Option(help='What it showed then: "2026-11-27 17:42" is UTC; or with Z or an offset (+01:00).'),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Nothing older: a time as for --at, or 90m, 36h, 7d before now.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Pushes shown at most.")] = 20,
    csv: Annotated[
        Path | None, typer.Option(help="Write everything that happened to the label to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Why a label shows what it shows, back to the webhook; or forward, from a webhook, a run or a push."""
    asked_at = time_given(at, "--at") if at else None
    asked_since = time_given(since, "--since") if since else None
    with buffer_here() as buffer:
        found, stories, standing = gather(
            buffer,
            name,
            store=store,
            at=asked_at,
            since=asked_since,
            limit=limit,
            all_entries=csv is not None,
        )
    if not (found["places"] or found["webhooks"] or found["pushes"] or found["drift"]):
        raise CommandError(
            f"nothing is known of {name}"
            + (f" in store {store}" if store else "")
            + ": no code, SKU, variant, "
            "webhook, run, push or label of this name"
        )
    if csv is not None:
        if not stories:
            raise CommandError(f"{name} is no label: --csv writes what happened to one")
        out.print(f"{write_csv(csv, stories)} rows in {csv}", soft_wrap=True, highlight=False)
    elif as_json:
        print_json(_as_json(found, stories, standing))
    else:
        _print(name, found, stories, standing)


def gather(
    buffer: Buffer,
    name: str,
    *,
    store: str | None = None,
    at: datetime | None = None,
    since: datetime | None = None,
    limit: int = 20,
    all_entries: bool = False,
) -> tuple[Row, list[Story], dict[Place, Row]]:
    """All that is asked of the buffer: what the name means (Buffer.trace_find), the stories of the places that go by
    it, and how those stand now. all_entries: for a file, without that."""
    found = buffer.trace_find(name, store=store, limit=limit)
    places = [(place["store_code"], place["code"]) for place in found["places"][:PLACES_TOLD]]
    if not places:
        return found, [], {}
    stories = buffer.stories(places, at=at, since=since, limit=ALL if all_entries else limit)
    return found, stories, {} if all_entries or at is not None else _standing(buffer, stories)


def _standing(buffer: Buffer, stories: Sequence[Story]) -> dict[Place, Row]:
    """How the places of these stories stand now."""
    return {
        (place["store_code"], code): place
        for code in dict.fromkeys(story.code for story in stories)
        for place in buffer.trace(code, limit=1)
    }


def _print(name: str, found: Row, stories: Sequence[Story], standing: dict[Place, Row]) -> None:
    how = {(place["store_code"], place["code"]): place["how"] for place in found["places"]}
    for story in stories:
        print_story(out, story, standing.get((story.store, story.code)))
        if (known_as := how[story.store, story.code]) != "code":
            say(out, f"found as {known_as} {name}", style="dim")
        out.print()
    if len(how) > len(stories):
        say(out, "and " + ", ".join(f"{code} in {store}" for store, code in list(how)[PLACES_TOLD:]))
    for webhook in found["webhooks"]:
        print_webhook(out, webhook)
    if found["pushes"] or found["drift"]:
        print_pushes(out, name, found)


def _as_json(found: Row, stories: Sequence[Story], standing: dict[Place, Row]) -> Row:
    told = [
        standing.get((story.store, story.code), {})
        | asdict(story)
        | {"price": story.price, "evidence": story.evidence}
        for story in stories
    ]
    return {"stories": json.loads(json.dumps(told, default=datetime.isoformat))} | {
        key: found[key] for key in ("places", "webhooks", "pushes", "pushed", "drift")
    }


def write_csv(path: Path, stories: Iterable[Story]) -> int:
    """What happened to labels, oldest first: UTF-8 with a byte order mark, times in UTC -> how many rows."""
    rows = (row for story in stories for row in _csv_rows(story))
    return spreadsheets.write_csv(path, dict(zip(CSV_COLUMNS, CSV_COLUMNS, strict=True)), rows)


def _csv_rows(story: Story) -> Iterator[Row]:
    for entry in reversed(story.entries):
        values = (story.store, story.code, *_csv_values(entry))
        yield dict(zip(CSV_COLUMNS, map(_dated, values), strict=True))


def _csv_values(entry: Entry) -> tuple[Any, ...]:
    times = {step.name: step.at for step in entry.steps}
    received = entry.webhooks[0].received_at if entry.webhooks else None
    return (
        *(entry.at, entry.kind, entry.price_before, entry.price, entry.cause, entry.says, entry.by),
        *(entry.webhook_id, received, times.get("queued"), times.get("sent"), times.get("accepted")),
        *(entry.run_id, entry.push_id, entry.attempt, entry.answer),
    )


def _dated(value: Any) -> Any:
    return value.strftime("%Y-%m-%d %H:%M:%S.%fZ") if isinstance(value, datetime) else value
