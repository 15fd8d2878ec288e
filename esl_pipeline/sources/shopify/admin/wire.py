"""What every request to Shopify minds: where a secret may go, what passes by itself, and no text without a bound."""

import httpx

from esl_pipeline.addresses import is_loopback
from esl_pipeline.http import pause_before_retry
from esl_pipeline.printable import printable
from esl_pipeline.sources.shopify.admin.errors import AdminUnavailableError

CONNECT_SECONDS = 5.0
RETRY_SECONDS = 20.0
_LONGEST_PAUSE_HERE = 5.0
# 423: the shop is locked for a moment; 430: Shopify's guard against unusual traffic.
_PASSING = frozenset({408, 423, 425, 429, 430})


def is_safe(url: str) -> bool:
    """Whether what is read from or sent to the URL cannot be overheard: https, or this machine itself."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    if parsed.userinfo or not parsed.host:
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(parsed.host))


def reason(error: Exception) -> str:
    """A failure in words, since some of httpx have none."""
    return str(error) or type(error).__name__


def one_line(text: str, *hidden: str) -> str:
    """The start of what Shopify said, on one line, without what is hidden."""
    for secret in hidden:
        text = text.replace(secret, "[hidden]") if secret else text
    return printable(" ".join(text.split()))[:400]


def passes(status: int) -> bool:
    """Whether a failure with this status may pass by itself."""
    return status in _PASSING or status >= 500


def pause_before_another_try(error: Exception) -> bool | float:
    """stamina's hook: False for no retry, True for its back-off, or the server's own pause in seconds."""
    if not isinstance(error, AdminUnavailableError):
        return False
    return pause_before_retry(error.retry_after, _LONGEST_PAUSE_HERE)
