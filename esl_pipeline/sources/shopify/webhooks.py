"""Shopify's webhooks as the receiver meets them: addresses, headers, signature."""

from datetime import datetime

from starlette.datastructures import Headers

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.hmac_webhooks import HmacWebhooks
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS, delivery
from esl_pipeline.sources.shopify.shop_names import SHOP, shop_domain
from esl_pipeline.sources.shopify.topics import PATH, TOPICS


class ShopifyWebhooks(HmacWebhooks):
    """Signed with the app's secret; the shop is its domain."""

    system = "shopify"
    path = PATH
    topics = (*TOPICS, *LIFECYCLE_TOPICS)
    signature_header = "X-Shopify-Hmac-Sha256"
    topic_header = "X-Shopify-Topic"
    shop_header = "X-Shopify-Shop-Domain"
    id_header = "X-Shopify-Webhook-Id"
    shop_schema = {"type": "string", "pattern": f"^{SHOP.pattern}$"}  # noqa: RUF012 - nobody changes it

    def shop_in(self, text: str) -> str | None:
        """A domain of myshopify.com."""
        return shop_domain(text)

    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:
        """See deliveries.delivery."""
        return delivery(topic, headers, raw, now)
