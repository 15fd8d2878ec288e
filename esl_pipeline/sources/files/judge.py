"""What becomes of a new file: read, refused, or kept waiting for a person. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from esl_pipeline.printable import printable
from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.files.faults import FileError
from esl_pipeline.sources.files.folder import Found
from esl_pipeline.sources.files.listing import Kind, Listing, counts, read
from esl_pipeline.sources.files.names import kind_of, why_not_read

State = Literal["ready", "waiting", "refused", "applied"]

_CLOCKS_DIFFER = timedelta(minutes=10)
_KEYS: Mapping[str, str] = {"id": "number", "code": "code"}


@dataclass(frozen=True)
class Verdict:
    """What becomes of a file, and why where it is not simply read. listing: None where it was not read."""

    state: State
    kind: Kind | None
    reason: str | None = None
    listing: Listing | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


def judge(
    file: Found,
    raw: bytes,
    known: Row,
    named: Mapping[str, str],
    *,
    smallest_share: int,
    now: datetime | None = None,
) -> Verdict:
    """Judge a file by its bytes and by what is known of others (Buffer.files_known, asked with its hash).

    named: see listing.read. smallest_share: percentage of the last full list's products that a full list must have.
    """
    kind = kind_of(file.name)
    if kind is None or (reason := why_not_read(file.name)):
        return Verdict("refused", kind, why_not_read(file.name))
    if file.modified_at > (now or datetime.now(UTC)) + _CLOCKS_DIFFER:
        return Verdict(
            "refused",
            kind,
            f"it is of {file.modified_at:%Y-%m-%d %H:%M}Z, which is still to come: write it anew",
        )
    try:
        listing = read(raw, kind, named)
    except FileError as fault:
        return Verdict("refused", kind, str(fault))
    found = {"listed": 0, "held": 0, "deleted": 0} | dict(counts(listing))
    state, reason = _placed(file, listing, found, known, smallest_share)
    return Verdict(state, kind, reason, listing, found)


def _placed(
    file: Found, listing: Listing, found: Mapping[str, int], known: Row, smallest_share: int
) -> tuple[State, str | None]:
    """How the file stands to those before it."""
    last, same, full = known["last"], known["same"], known["last_full"]
    if same is not None and same["id"] == last["id"]:
        return "applied", f"it is the same as {_of(same)}"
    if same is not None and same["sha256"] != last["sha256"]:
        return (
            "waiting",
            f"it is the same as {_of(same)}, which others have followed: approve it if that is meant",
        )
    if full is None:
        return "ready", None
    return _beside(full, file, listing, found, smallest_share)


def _beside(
    full: Row, file: Found, listing: Listing, found: Mapping[str, int], smallest_share: int
) -> tuple[State, str | None]:
    """How it stands to the last full list."""
    if listing.kind == "changes":
        if full["key"] != listing.key:
            return "refused", (
                f"it tells products by their {_KEYS[listing.key]}, and the full list {_of(full)} by their "
                f"{_KEYS[full['key']]}: both must have that column"
            )
        return "ready", None
    if file.modified_at < datetime.fromisoformat(full["modified_at"]):
        return "refused", f"it is older than {_of(full)}, which was applied"
    before, now = full["listed"] + full["held"], found["listed"] + found["held"]
    if 100 * now < smallest_share * before:
        return "waiting", (
            f"it lists {now} products, and {_of(full)} had {before}: labels would go; approve it if that is meant"
        )
    return "ready", None


def _of(row: Row) -> str:
    return f"{printable(row['name'])} of {row['modified_at'][:16].replace('T', ' ')}Z"
