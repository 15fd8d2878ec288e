"""Shopify's webhooks as the receiver meets them: addresses, headers, signature."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.secrets import WebhookSecret, keys_for, proves
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS, claimed_shop, delivery
from esl_pipeline.sources.shopify.shop_names import SHOP
from esl_pipeline.sources.shopify.topics import PATH, TOPICS
from esl_pipeline.sources.signature import verify
from esl_pipeline.sources.source import Webhooks


class ShopifyWebhooks(Webhooks):
    """Verified with these secrets."""

    path = PATH
    topics = (*TOPICS, *LIFECYCLE_TOPICS)
    signature_header = "X-Shopify-Hmac-Sha256"

    def __init__(self, secrets: Sequence[WebhookSecret]) -> None:
        self._secrets = tuple(secrets)

    @property
    def are_verifiable(self) -> bool:
        """Whether there is any secret, an expired one included."""
        return bool(self._secrets)

    def parameters(self, topics: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        """Topic and shop."""
        return {
            "X-Shopify-Topic": {"type": "string", "enum": list(topics)},
            "X-Shopify-Shop-Domain": {"type": "string", "pattern": f"^{SHOP.pattern}$"},
        }

    def described(self, headers: Headers) -> tuple[str, str, str]:
        """Of the three X-Shopify headers."""
        topic, shop, id = (
            headers.get(f"x-shopify-{name}", "") for name in ("topic", "shop-domain", "webhook-id")
        )
        return topic, shop, id

    def claimed_shop(self, headers: Headers) -> str | None:
        """X-Shopify-Shop-Domain."""
        return claimed_shop(headers)

    def claims_signature(self, headers: Headers) -> bool:
        """Whether X-Shopify-Hmac-Sha256 is there."""
        return bool(_signature(headers))

    def is_signed(self, headers: Headers, raw: bytes, now: datetime) -> bool:
        """Under a secret of the claimed shop, or of shops without their own."""
        return verify(raw, _signature(headers), keys_for(self._secrets, claimed_shop(headers), now))

    def proves(self, shop: str | None) -> bool:
        """Whether the shop has secrets that no other has."""
        return proves(self._secrets, shop)

    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:
        """See deliveries.delivery."""
        return delivery(topic, headers, raw, now)


def _signature(headers: Headers) -> str:
    """The signature header; empty, which never verifies, when it is missing or given more than once."""
    values = headers.getlist("x-shopify-hmac-sha256")
    return values[0] if len(values) == 1 else ""
