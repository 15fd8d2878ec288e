"""Shopify: webhook deliveries to facts."""

from collections.abc import Mapping, Sequence
from typing import Any

from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.webhooks import read_deliveries


class ShopifySource:
    """Products of Shopify shops."""

    system = "shopify"

    def read_deliveries(self, deliveries: Sequence[Mapping[str, Any]]) -> Facts:
        """See webhooks.read_deliveries."""
        return read_deliveries(deliveries)
