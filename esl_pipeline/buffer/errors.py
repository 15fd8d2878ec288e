"""What can go wrong between us and the buffer, in one error type, and the table that sorts it.

Both transports hand what they got to `classify`, so that a fault reads the same over PostgREST and psycopg.
"""

import re

# 25006 is a database that is read-only for now: a standby after a failover, or its disk is full.
_UNREACHABLE = re.compile(r"08...|53...|57P0[1-5]|25006|PGRST00[0-3]|429|5\d\d")
_PASSING = re.compile(r"40001|40P01|55P03")
_REFUSED_CREDENTIALS = re.compile(r"401|28...|PGRST30[0-3]")
_TOO_BIG = re.compile(r"57014|413")


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
        """One call held too much (statement timeout 57014, HTTP 413): halve the chunk and call again."""
        return self.code is not None and _TOO_BIG.fullmatch(self.code) is not None


class BufferUnavailable(BufferError):  # noqa: N818 - the name says the state, as callers read it
    """The buffer cannot be reached or takes no writes now: a receiver answers 503, the sender repeats."""


class BufferVersionError(BufferError):
    """The buffer is older or newer than this code."""


def newer_buffer(found: int, wanted: int) -> BufferVersionError:
    """The error for a buffer at version `found` that code for version `wanted` neither uses nor changes."""
    return BufferVersionError(
        f"the buffer is at version {found}, newer than this code ({wanted}), which leaves it as it is: install here "
        "the release of esl_pipeline that migrated the buffer, or a later one"
    )


def classify(
    *,
    function: str,
    code: str | None,
    message: str,
    credential: str,
    details: str | None = None,
    hint: str | None = None,
) -> BufferError:
    """The error for a failed call of `function`.

    `code` is a SQLSTATE, a PostgREST code or an HTTP status; a broken or refused connection counts as 08006.
    `credential` names the setting that opened the way: SUPABASE_SERVICE_KEY or ESL_DATABASE_URL.
    Codes: PostgreSQL manual, appendix A; PostgREST reference, "Errors"; 520 to 530 are Cloudflare's.
    """

    def is_one_of(pattern: re.Pattern[str]) -> bool:
        return code is not None and pattern.fullmatch(code) is not None

    kind: type[BufferError] = BufferError
    retryable = is_one_of(_PASSING)
    if is_one_of(_UNREACHABLE):
        kind, retryable = BufferUnavailable, True
        sentence = f"the buffer is not available ({code}): {message}"
    elif code == "PGRST202" or (code == "42883" and f"{function}(" in message):
        sentence = (
            f"the buffer has no function {function}: run `esl-pipeline migrate` (or reload the schema cache)"
        )
    elif is_one_of(_REFUSED_CREDENTIALS):
        sentence = f"the buffer refused {credential} ({code}): {message}"
    elif code == "42501":
        sentence = f"{credential} may not do what {function} needs (42501): {message}"
    elif code == "57014":
        sentence = f"{function} ran into the statement timeout (57014): send fewer rows per call"
    elif code == "413":
        sentence = f"the call of {function} is too large for the gateway (413): send fewer rows per call"
    else:
        sentence = f"{function} failed in the buffer ({code or 'no code'}): {message}"
    return kind(sentence, code=code, message=message, details=details, hint=hint, retryable=retryable)
