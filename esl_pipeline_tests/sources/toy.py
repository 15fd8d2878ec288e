"""A source in sixty lines: a shop that says {"id": 1, "price": "1.00", "at": "…"}, by webhook and when it is asked."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from esl_pipeline.sources.content import product_content, variant_row
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.folding import folded
from esl_pipeline.sources.hmac_webhooks import HmacWebhooks
from esl_pipeline.sources.secrets import WebhookSecret
from esl_pipeline.sources.source import OnStart, Reader, Source, SourceSettings

SHELVES: dict[str, list[Row]] = {}  # what each shop says when it is asked
_EMPTY = dict.fromkeys(("title", "vendor", "product_type", "tags", "sku", "compare_at_price"))


def facts_of(row: Row, shop: str, read_at: str, events: Sequence[int] = ()) -> Facts:
    number, done = str(row["id"]), [{"id": event, "state": "done", "reason": None} for event in events]
    key = {"source_system": "toy", "source_store_id": shop, "product_id": number, "event_ids": [*events]}
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
    key |= {"version_at": row["at"], "triggered_at": read_at, "body_sha256": digest}
    shared = product_content(_EMPTY | {"title": f"Toy {number}", "status": "active"})
    own = variant_row(product_id=number, variant_id=number, product=shared, variant=_EMPTY | row)
    product = key | shared | {"deleted": False, "missing_variants": 0, "variant_ids": [number]}
    return Facts([product], [own | key], events=done)


def read_delivery(row: Mapping[str, Any]) -> Facts:
    said, shop = json.loads(base64.b64decode(row["body_base64"])), row["source_store_id"]
    return facts_of(said, shop, row["received_at"], [row["id"]])


class ToyReader(Reader):
    def __init__(self, shop: str) -> None:
        self._shop = shop

    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        on_start(now := datetime.now(UTC))
        yield from (facts_of(row, self._shop, now.isoformat()) for row in SHELVES[self._shop])

    def changes(self, since: datetime) -> Iterator[Facts]:
        return self.catalogue(lambda _: None, chunk=1)


class ToyWebhooks(HmacWebhooks):
    system, path, topics, shop_schema = "toy", "/webhooks/toy", ("changed",), {}
    signature_header, topic_header, shop_header, id_header = "X-Sign", "X-Topic", "X-Shop", "X-Id"
    shop_in = staticmethod(str)


class ToySource(Source[SourceSettings]):
    system, name, settings_class, shop_pattern, example_shop = "toy", "Toy", SourceSettings, "[a-z]+", "a"
    shop_id, read_deliveries = staticmethod(str), classmethod(lambda _, rows: folded(rows, read_delivery))
    is_set_up, reads_any, opens = True, True, SHELVES.__contains__
    reader = staticmethod(lambda shop, patient=True: ToyReader(shop))
    webhooks = staticmethod(lambda: ToyWebhooks([WebhookSecret(b"toy")]))
