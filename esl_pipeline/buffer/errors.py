"""What can go wrong between us and the buffer, in one error type, and the table that sorts it.

Both transports raise what they got as a Failure for `classify`, so that a fault reads the same over PostgREST and
psycopg.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

# 25006 is a database that is read-only for now: a standby after a failover, or its disk is full.
_UNREACHABLE = re.compile(r"08...|53...|57P0[1-5]|25006|PGRST00[0-3]|429|5\d\d")
_PASSING = re.compile(r"40001|40P01|55P03")
_REFUSED_CREDENTIALS = re.compile(r"401|28...|PGRST30[0-3]")
_TOO_BIG = re.compile(r"57014|413")
# Data exceptions, constraints, and limits such as the length of a jsonb: the same rows fail again.
_OF_THE_DATA = re.compile(r"22...|23...|54...|413")
# What one row may bring upon the call: the data, a lock or a deadlock, or a fault that the server had not foreseen.
_OF_ONE_ROW = re.compile(r"22...|23...|54...|413|40001|40P01|55P03|P0...|XX...")
# What a call meets whose functions or types a migration replaces while it is planned: by itself SQL that has passed its
# tests names nothing that there is not.
_OF_THE_PROGRAM = re.compile(r"42703|42704|42804|42883|42P01|42P13|0A000")
_REPLACED = (
    "cache lookup failed for",
    "could not open relation with OID",
    "function in FROM has unsupported",
)
_FEW = 10


class BufferError(Exception):
    """A call that the buffer did not carry out.

    `str()` is one sentence for the reader and never holds a secret.
    `code`: SQLSTATE (also `PTxyz`, raised by our functions), PostgREST code or HTTP status, if any.
    `message`, `details`, `hint`: the server's own words; `details` may quote row values, so do not log it.
    `retryable`: the same call may succeed in a moment (every buffer function is idempotent).
    """

    def __init__(
        self,
        sentence: str,
        *,
        code: str | None = None,
        message: str | None = None,
        details: str | None = None,
        hint: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.message = sentence if message is None else message
        self.details = details
        self.hint = hint
        self.retryable = retryable

    @property
    def too_big(self) -> bool:
        """The call took too long (statement timeout 57014) or was too large (HTTP 413): a smaller one, or the same in
        a better hour, may pass."""
        return self.code is not None and _TOO_BIG.fullmatch(self.code) is not None

    @property
    def is_about_data(self) -> bool:
        """The buffer refused what was sent, not the call: without the row that is at fault, the others may pass."""
        return self.code is not None and _OF_THE_DATA.fullmatch(self.code) is not None

    @property
    def may_be_of_one_row(self) -> bool:
        """Whether the other rows of the call may pass without the one that is at fault."""
        return self.code is not None and _OF_ONE_ROW.fullmatch(self.code) is not None


class BufferUnavailable(BufferError):  # noqa: N818 - the name says the state, as callers read it
    """The buffer cannot be reached or takes no writes now: a receiver answers 503, the sender repeats."""


class ActionRefused(BufferError):  # noqa: N818 - as above
    """What an operator asked for names something unknown, or nothing that it could be done to: nothing was done."""


class BufferVersionError(BufferError):
    """The buffer is older or newer than this code."""


class NewerBuffer(BufferVersionError):  # noqa: N818 - as above
    """Newer than this code: whoever only keeps deliveries may go on, all others are to be updated."""


class Version(NamedTuple):
    """What a buffer is, in order: the number of its newest table change, then the number of its functions' build."""

    tables: int
    build: int

    def against(self, other: "Version") -> tuple[str, int]:
        """Its name, as far as it takes to tell it from the other, and the other's number in the same place."""
        if self.tables == other.tables:
            return f"build {self.build} of version {self.tables}", other.build
        return f"version {self.tables}", other.tables


def newer_buffer(found: Version, wanted: Version) -> NewerBuffer:
    """The error for a buffer that older code neither uses nor changes."""
    there, here = found.against(wanted)
    return NewerBuffer(
        f"the buffer is at {there}, newer than this code ({here}), which leaves it as it is: update esl_pipeline here "
        "to the release that migrated the buffer, or a later one"
    )


def unreleased_buffer(version: int | str) -> BufferVersionError:
    """The error for a buffer from before the first release, whose tables this code cannot bring to its own."""
    return BufferVersionError(
        f"the buffer is at version {version}, from before the first release, and cannot be brought to this one: begin "
        "with an empty one (of `esl-pipeline up`: delete the directory postgres in ESL_HOME; else make a new database, "
        "or drop schema esl cascade in this one, and run `esl-pipeline migrate`) and map the stores again; the nightly "
        "run then reads their shops"
    )


def older_buffer(found: Version, wanted: Version) -> BufferVersionError:
    """The error for a buffer that newer code does not use before it is migrated."""
    there, here = found.against(wanted)
    return BufferVersionError(f"the buffer is at {there}, this code needs {here}: run `esl-pipeline migrate`")


class Failure(Exception):  # noqa: N818 - what a transport was told, before it is sorted
    """What came instead of a result: a SQLSTATE, PostgREST code or HTTP status, and the words with it.

    A broken or refused connection counts as 08006.
    """

    def __init__(
        self, code: str | None, message: str, details: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(code, message)
        self.code, self.message, self.details, self.hint = code, message, details, hint


class Size(Enum):
    """What makes a call large, and so what may be done about it."""

    SENT = "send fewer rows per call"
    ASKED = "ask for fewer rows per call"
    FIXED = (
        "the database is overloaded, or somebody holds a lock that it needs; look at what the database is doing, then "
        "do it again"
    )

    @classmethod
    def of(cls, p: Mapping[str, Any]) -> "Size":
        """That of a call with these arguments: a handful of rows makes none large."""
        if any(isinstance(value, list | tuple) and len(value) > _FEW for value in p.values()):
            return cls.SENT
        limit = p.get("limit")
        return cls.ASKED if isinstance(limit, int) and limit > _FEW else cls.FIXED


def classify(failure: Failure, *, function: str, size: Size, credential: str) -> BufferError:
    """The error for a failed call of `function`.

    `credential` names the setting that opened the way: SUPABASE_SERVICE_KEY or ESL_DATABASE_URL.
    Codes: PostgreSQL manual, appendix A; PostgREST reference, "Errors"; 520 to 530 are Cloudflare's.
    """
    code, message = failure.code, failure.message

    def is_one_of(pattern: re.Pattern[str]) -> bool:
        return code is not None and pattern.fullmatch(code) is not None

    kind: type[BufferError] = BufferError
    is_missing = code == "PGRST202" or (code == "42883" and f"{function}(" in message)
    was_replaced = is_one_of(_OF_THE_PROGRAM) or (code == "XX000" and message.startswith(_REPLACED))
    retryable = is_one_of(_PASSING) or (was_replaced and not is_missing)
    if is_one_of(_UNREACHABLE):
        kind, retryable = BufferUnavailable, True
        sentence = f"the buffer is not available ({code}): {message}"
    elif is_missing:
        sentence = (
            f"the buffer has no function {function}: run `esl-pipeline migrate` (or reload the schema cache)"
        )
    elif is_one_of(_REFUSED_CREDENTIALS):
        sentence = f"the buffer refused {credential} ({code}): {message}"
    elif code == "42501":
        sentence = f"{credential} may not do what {function} needs (42501): {message}"
    elif code == "57014":
        sentence = f"{function} ran into the statement timeout (57014): {size.value}"
    elif code == "413":
        sentence = f"the call of {function} is too large for the gateway (413): {Size.SENT.value}"
    else:
        sentence = f"{function} failed in the buffer ({code or 'no code'}): {message}"
    return kind(
        sentence,
        code=code,
        message=message,
        details=failure.details,
        hint=failure.hint,
        retryable=retryable,
    )
