"""Whether a webhook was signed with one of our secrets. Pure; knows nothing of HTTP."""

import base64
import hmac
import secrets
from collections.abc import Sequence

_NOBODYS_KEY = secrets.token_bytes(32)


def verify(raw: bytes, header: str, keys: Sequence[bytes]) -> bool:
    """Whether `header` is the base64 HMAC-SHA256 of the body `raw` under one of `keys`.

    The signature covers the raw body only (Shopify: "Verify webhook deliveries"), so it proves nothing about
    the headers. Only the canonical base64 text of 32 bytes counts: a lenient decoder takes altered ones.
    """
    try:
        claimed = base64.b64decode(header.encode("ascii"), validate=True)
    except ValueError:
        return False
    if len(claimed) != 32 or base64.b64encode(claimed).decode() != header:
        return False
    # A list and not a generator: every key is tried, so the time does not tell which one fits. Where there is none,
    # one that nobody knows is tried, so that it does not tell that either.
    # (Not `hmac.digest`: it lets other threads go first, which for a small body takes longer than the digest.)
    fits = [
        hmac.compare_digest(hmac.new(key, raw, "sha256").digest(), claimed) for key in keys or [_NOBODYS_KEY]
    ]
    return any(fits)
