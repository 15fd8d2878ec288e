"""What both HTTP clients need alike: trusted certificates, plain JSON, and when to try again."""

import functools
import random
import ssl

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


@functools.cache
def trusted() -> ssl.SSLContext:
    """The certificates we trust (SSL_CERT_FILE names others), loaded once: that takes 50 ms."""
    return httpx.create_ssl_context()


def pause_before_retry(retry_after: float | None, longest: float) -> bool | float:
    """What stamina's hook answers for a failure that may pass.

    True for its own back-off, the server's pause in seconds (with jitter), or False when that is longer than `longest`.
    """
    if retry_after is None:
        return True
    if retry_after > longest:
        return False
    return retry_after + random.uniform(0.1, 0.5)  # noqa: S311
