"""What reading from a shop's REST API can fail with.

::

    WooCommerceError
    ├── UnavailableError     no answer that counts: try again later
    ├── NotLetInError        the shop does not let us in, or is none: somebody has to look
    ├── RefusedRequestError  the shop refuses this request: sending it again will not help
    └── IncompleteError      not all of a list could be read: what was read is right, and not all there is

After any of them the reader knows nothing about what is absent.
"""

from esl_pipeline.sources.source import SourceError, SourceRefusedError


class WooCommerceError(SourceError):
    """Reading failed. The text is for a reader: what, where, what to do; never with the key.

    `http_status` is the shop's, where it answered; `retry_after` the seconds after which another try makes sense.
    """

    def __init__(
        self, message: str, *, http_status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.retry_after = retry_after


class UnavailableError(WooCommerceError):
    """No connection, a time-out, HTTP 408, 425, 429 or 5xx, or an unreadable answer."""


class NotLetInError(WooCommerceError):
    """A wrong key, one without permission, a site that has moved, or one without WooCommerce."""


class RefusedRequestError(WooCommerceError, SourceRefusedError):
    """An HTTP status that names this request; `code` is WordPress's."""

    def __init__(self, message: str, *, code: str = "", http_status: int | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.code = code


class IncompleteError(WooCommerceError):
    """A list has slipped too often, or shows less than it counts."""
