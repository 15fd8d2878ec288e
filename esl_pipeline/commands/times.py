"""Times as people read and write them."""

from datetime import UTC, datetime

from esl_pipeline.moments import moment_named


def moment(value: str | None) -> str:
    """A time (ISO 8601) to the second, in UTC."""
    if value is None:
        return "-"
    if value == "infinity":
        return "never"
    return datetime.fromisoformat(value).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(value: str | None) -> str:
    """How long ago it was, in its largest unit."""
    if value is None:
        return "-"
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(value)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{max(seconds, 0)} s ago"


def time_given(text: str, option: str) -> datetime:
    """A time that somebody gives: ISO 8601, in UTC unless it says an offset; or 90m, 36h, 7d before now.

    Raises CommandError.
    """
    from esl_pipeline.commands.shared import CommandError

    try:
        return datetime.fromisoformat(moment_named(text, now=datetime.now(UTC), ahead=False))
    except ValueError as error:
        raise CommandError(f"{option} {error}") from None
