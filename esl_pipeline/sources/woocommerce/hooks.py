"""WooCommerce's webhooks as the receiver meets them: addresses, headers, signature."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from starlette.datastructures import Headers

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.secrets import WebhookSecret, keys_for, proves
from esl_pipeline.sources.signature import verify
from esl_pipeline.sources.source import Webhooks
from esl_pipeline.sources.woocommerce.deliveries import claimed_shop, delivery, is_greeting
from esl_pipeline.sources.woocommerce.topics import PATH, TOPICS


class WooCommerceWebhooks(Webhooks):
    """Verified with these secrets."""

    path = PATH
    topics = TOPICS
    signature_header = "X-WC-Webhook-Signature"

    def __init__(self, secrets: Sequence[WebhookSecret]) -> None:
        self._secrets = tuple(secrets)

    @property
    def are_verifiable(self) -> bool:
        """Whether there is any secret, an expired one included."""
        return bool(self._secrets)

    def parameters(self, topics: Sequence[str]) -> Mapping[str, dict[str, Any]]:
        """Topic and shop."""
        return {
            "X-WC-Webhook-Topic": {"type": "string", "enum": list(topics)},
            "X-WC-Webhook-Source": {"type": "string", "format": "uri"},
        }

    def described(self, headers: Headers) -> tuple[str, str, str]:
        """Of the X-WC-Webhook headers."""
        topic, shop, id = (
            headers.get(f"x-wc-webhook-{name}", "") for name in ("topic", "source", "delivery-id")
        )
        return topic, shop, id

    def claimed_shop(self, headers: Headers) -> str | None:
        """X-WC-Webhook-Source."""
        return claimed_shop(headers)

    def claims_signature(self, headers: Headers) -> bool:
        """Whether X-WC-Webhook-Signature is there."""
        return bool(_signature(headers))

    def is_signed(self, headers: Headers, raw: bytes, now: datetime) -> bool:
        """Under a secret of the claimed shop, or of shops without their own."""
        return verify(raw, _signature(headers), keys_for(self._secrets, claimed_shop(headers), now))

    def proves(self, shop: str | None) -> bool:
        """Whether the shop has secrets that no other has."""
        return proves(self._secrets, shop)

    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:
        """See deliveries.delivery."""
        return delivery(topic, headers, raw, now, names_shop=not self.proves(claimed_shop(headers)))

    def is_greeting(self, headers: Headers, raw: bytes) -> bool:
        """The ping of a new webhook."""
        return is_greeting(headers, raw)


def _signature(headers: Headers) -> str:
    """The signature header; empty, which never verifies, when it is missing or given more than once."""
    values = headers.getlist("x-wc-webhook-signature")
    return values[0] if len(values) == 1 else ""
