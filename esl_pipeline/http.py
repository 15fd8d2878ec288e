"""What all HTTP clients need alike: where a secret may go, trusted certificates, plain JSON, when to try again."""

import functools
import ipaddress
import random
import re
import ssl
from pathlib import Path

import httpx

from esl_pipeline import __version__
from esl_pipeline.printable import printable

USER_AGENT = f"esl-pipeline/{__version__}"

# Uncompressed, so that a limit on an answer's size is a limit on memory too.
JSON_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": USER_AGENT,
}

# 423: a shop is locked for a moment; 430: Shopify's guard against unusual traffic.
_PASSING = frozenset({408, 423, 425, 429, 430})


@functools.cache
def trusted(ca_file: Path | None = None) -> ssl.SSLContext:
    """The certificates we trust: the public ones (SSL_CERT_FILE names others), or those of `ca_file` alone.

    Loaded once: that takes 50 ms. Raises OSError for a file without certificates.
    """
    return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()


def pause_before_retry(retry_after: float | None, longest: float) -> bool | float:
    """What stamina's hook answers for a failure that may pass.

    True for its own back-off, the server's pause in seconds (with jitter), or False when that is longer than `longest`.
    """
    if retry_after is None:
        return True
    if retry_after > longest:
        return False
    return retry_after + random.uniform(0.1, 0.5)  # noqa: S311


def is_safe(url: str) -> bool:
    """Whether what is read from or sent to the URL cannot be overheard: https, or this machine itself."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    if parsed.userinfo or not parsed.host:
        return False
    return parsed.scheme == "https" or (parsed.scheme == "http" and is_loopback(url))


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reason(error: Exception) -> str:
    """A failure in words, since some of httpx have none."""
    return str(error) or type(error).__name__


def one_line(text: str, *hidden: str) -> str:
    """The start of what was said, on one line, without what is hidden."""
    for secret in hidden:
        text = text.replace(secret, "[hidden]") if secret else text
    return printable(" ".join(text.split()))[:400]


def passes(status: int) -> bool:
    """Whether a failure with this status may pass by itself."""
    return status in _PASSING or status >= 500


def retry_after(answer: httpx.Response) -> float | None:
    """The seconds that the server asks to wait, when it says so in seconds."""
    said = answer.headers.get("Retry-After")
    if said is None or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", said.strip()):
        return None
    return float(said)
