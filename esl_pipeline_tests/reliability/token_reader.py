"""A process that reads a whole shop and its changes, as runs do, and says what it read and when its tokens end.

    python -m esl_pipeline_tests.reliability.token_reader SECONDS

It reads again and again until so many seconds are over, and ends with one line of JSON.
"""

import hashlib
import json
import logging
import sys
import time
from datetime import UTC, datetime

from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.shopify.admin import (
    read_catalogue,
    read_changed_since,
    read_shop,
    read_stock,
    tokens,
)


class Asked(logging.Handler):
    """When each token ends: its life after it was asked for, however long the answer took."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "a new access token" in record.getMessage():
            (grant,) = tokens._grants.values()
            assert grant._token is not None
            self.times.append(grant._token.ends_at)


def digest(prices: dict[str, str | None]) -> str:
    """What was read, in short."""
    return hashlib.sha256(json.dumps(sorted(prices.items())).encode()).hexdigest()


def main(seconds: float) -> None:
    asked, began, rounds, reads = Asked(), time.monotonic(), 0, set[str]()
    levels = set[int]()
    logging.getLogger(tokens.__name__).addHandler(asked)
    logging.getLogger(tokens.__name__).setLevel(logging.INFO)
    settings = load_settings()
    while not rounds or time.monotonic() - began < seconds:
        client = settings.sources["shopify"].open_admin(DOMAIN)
        assert client is not None
        with client:
            read_shop(client, DOMAIN)
            facts = list(read_catalogue(client, shop=DOMAIN))
            reads.add(digest({row["variant_id"]: row["price"] for part in facts for row in part.variants}))
            levels.add(sum(len(part.levels) for part in read_stock(client, shop=DOMAIN)))
            list(read_changed_since(client, shop=DOMAIN, since=datetime.now(UTC)))
        rounds += 1
    said = {"rounds": rounds, "reads": sorted(reads), "levels": sorted(levels), "asked": asked.times}
    print(json.dumps(said | {"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
