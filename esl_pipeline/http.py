"""What both HTTP clients need alike: trusted certificates, plain JSON, and when to try again."""

import functools
import random
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from esl_pipeline import __version__

USER_AGENT = f"esl-pipeline/{__version__}"

# Uncompressed, so that a limit on an answer's size is a limit on memory too.
JSON_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": USER_AGENT,
}


_LONGEST_PAUSE = 3_600.0


@functools.cache
def trusted(ca_file: Path | None = None) -> ssl.SSLContext:
    """The certificates we trust: the public ones (SSL_CERT_FILE names others), or those of `ca_file` alone.

    Loaded once: that takes 50 ms. Raises OSError for a file without certificates.
    """
    return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, at most one hour; None where it says nothing usable.

    Takes seconds (whole or decimal) and HTTP dates; a date in the past is 0. Negative numbers and
    anything else are None.
    """
    text = (value or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return min(float(text), _LONGEST_PAUSE)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    if moment.tzinfo is None:  # "-0000" and the old asctime form: UTC by RFC 9110
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), _LONGEST_PAUSE)


def pause_before_retry(retry_after: float | None, longest: float) -> bool | float:
    """What stamina's hook answers for a failure that may pass.

    True for its own back-off, the server's pause in seconds (with jitter), or False when that is longer than `longest`.
    """
    if retry_after is None:
        return True
    if retry_after > longest:
        return False
    return retry_after + random.uniform(0.1, 0.5)  # noqa: S311
