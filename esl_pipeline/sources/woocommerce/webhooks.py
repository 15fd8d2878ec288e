"""WooCommerce's webhooks as the receiver meets them: addresses, headers, signature."""

from datetime import datetime

from starlette.datastructures import Headers

from esl_pipeline.sources.facts import Row
from esl_pipeline.sources.hmac_webhooks import HmacWebhooks
from esl_pipeline.sources.woocommerce.deliveries import claimed_shop, delivery, is_greeting
from esl_pipeline.sources.woocommerce.shop_names import shop_id
from esl_pipeline.sources.woocommerce.topics import PATH, TOPICS


class WooCommerceWebhooks(HmacWebhooks):
    """Signed with the webhook's secret; the shop is its site."""

    system = "woocommerce"
    path = PATH
    topics = TOPICS
    signature_header = "X-WC-Webhook-Signature"
    topic_header = "X-WC-Webhook-Topic"
    shop_header = "X-WC-Webhook-Source"
    id_header = "X-WC-Webhook-Delivery-ID"
    shop_schema = {"type": "string", "format": "uri"}  # noqa: RUF012 - nobody changes it

    def shop_in(self, text: str) -> str | None:
        """The address of a site."""
        return shop_id(text)

    def delivery(self, topic: str | None, headers: Headers, raw: bytes, now: datetime) -> Row:
        """See deliveries.delivery."""
        return delivery(topic, headers, raw, now, names_shop=not self.proves(claimed_shop(headers)))

    def is_greeting(self, headers: Headers, raw: bytes) -> bool:
        """The ping of a new webhook."""
        return is_greeting(headers, raw)
