"""What a call to the label server can fail with.

::

    HipoinkError
    ├── TransientError            not applied, as far as can be known: try again later
    │   └── UnknownOutcomeError   may have been applied: send the same record again
    ├── RejectedError             the server said no; whether the record, the store or the server is to blame, only
    │                             what else passes can tell
    ├── AuthenticationError       the same, in words about our key
    └── NotSentError              it was kept from being sent: nothing is known, and nothing has changed

A new leaf means a new decision for the caller; everything else is told by the fields.
"""


class HipoinkError(Exception):
    """A call that the label server did not confirm.

    `message` is one sentence for a reader; `http_status` and `error_code` are what the server
    answered, where it did; `answer` is the start of its body, without the sign; `retry_after` is
    the pause in seconds that it asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        error_code: int | None = None,
        answer: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.error_code = error_code
        self.answer = answer
        self.retry_after = retry_after


class TransientError(HipoinkError):
    """Nothing was applied, as far as can be known, and a later attempt may succeed.

    No connection, HTTP 408, 409, 423, 425, 429 or 503, or any failed read of a listing.
    """


class UnknownOutcomeError(TransientError):
    """The request may have been applied: the server never said.

    Time-out or disconnect after sending, a gateway's or a crashed server's 5xx, an answer that
    cannot be read. Upserts and deletes are whole-record, so the way out is to send them again.
    """


class RejectedError(HipoinkError):
    """The server answered no: `error_code` other than 0, or a 4xx that names this request.

    Part of a rejected batch may have been applied; the contract does not settle it.
    """


class AuthenticationError(HipoinkError):
    """HTTP 401 or 403, or a message about the app key, the client or the sign."""


class NotSentError(HipoinkError):
    """No request was made: while the call waited for its slot something came between (see limiter.Call)."""
