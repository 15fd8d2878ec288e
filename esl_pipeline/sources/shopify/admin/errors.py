"""What reading from Shopify's Admin API can fail with.

::

    AdminError
    ├── AdminUnavailableError          no answer that counts, or throttled for too long: try again later
    ├── AdminAuthenticationError       the shop does not let us in (`problem` says why): pause the shop
    ├── AdminQueryError                Shopify refuses this request: sending it again will not help
    │   └── AdminTooLargeError         it asks for too much at once: ask for smaller pages
    ├── BulkOperationUnfinishedError   not started or not ended in time: try again later
    ├── BulkOperationFailedError       ended without a whole result: start a new one
    └── IncompleteDownloadError        the result could not be read to its end: what was read is not all there is

A new leaf means a new decision for the caller. After any of them the reader knows nothing about what is absent.
"""

from typing import Literal

from esl_pipeline.sources.source import SourceError, SourceRefusedError

Problem = Literal[
    "wrong_secret",
    "not_installed",
    "other_organisation",
    "scope_missing",
    "token_refused",
    "frozen",
    "renamed",
]
"""Why a shop does not let us in."""


class AdminError(SourceError):
    """Reading failed. The text is for a reader: what, where, what to do; never with the token or a signed URL.

    `http_status` is Shopify's, where it answered; `retry_after` the seconds after which another try makes sense.
    """

    def __init__(
        self, message: str, *, http_status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.retry_after = retry_after


class AdminUnavailableError(AdminError):
    """No connection, a time-out, HTTP 408, 423, 425, 429, 430 or 5xx, an unreadable answer, or endless throttling."""


class AdminAuthenticationError(AdminError):
    """A wrong id, secret or token, a missing scope, or a shop that is frozen or has another address.

    `problem` says which, where Shopify does; the sentences for each are in `access`.
    """

    def __init__(
        self, message: str, *, problem: Problem | None = None, http_status: int | None = None
    ) -> None:
        super().__init__(message, http_status=http_status)
        self.problem = problem


class AdminQueryError(AdminError, SourceRefusedError):
    """A GraphQL error, a mutation's user error, or an HTTP status that names this request.

    `codes` are Shopify's error codes.
    """

    def __init__(self, message: str, *, codes: tuple[str, ...] = (), http_status: int | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.codes = codes


class AdminTooLargeError(AdminQueryError):
    """The query costs more than one query may, more than the shop's whole bucket, or its answer is too long."""


class BulkOperationUnfinishedError(AdminError):
    """The operation could not be started beside others, or had not ended when the time was over."""


class BulkOperationFailedError(AdminError):
    """The operation ended as `status`, for the reason `error_code`; `partial` when it left an incomplete result.

    An incomplete result is never read: it cannot tell a deleted product from one it did not reach.
    """

    def __init__(self, message: str, *, status: str, error_code: str | None, partial: bool) -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code
        self.partial = partial


class IncompleteDownloadError(AdminError):
    """The result file is cut, damaged, too large or gone."""
