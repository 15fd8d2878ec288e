"""How a shop's connection is: one look for `doctor`."""

from collections.abc import Mapping
from typing import Any

from esl_pipeline.printable import printable
from esl_pipeline.sources.woocommerce.client import Client
from esl_pipeline.sources.woocommerce.errors import WooCommerceError
from esl_pipeline.sources.woocommerce.reader import WooCommerceReader
from esl_pipeline.sources.woocommerce.topics import PATH, TOPICS


def look(client: Client, shop: str) -> tuple[bool, str]:
    """Whether the shop can be read, and one line on what is right or wrong; the sentence of a failed run."""
    try:
        products = client.get("/products", per_page=1, _fields="id").total
        (row,) = WooCommerceReader(client, shop).shop().shops
    except WooCommerceError as error:
        return False, str(error)
    taxes = "with" if row["taxes_included"] else "without"
    return True, (
        f"{shop} is reachable: {products if products is not None else 'uncounted'} products, prices in "
        f"{row['currency']} {taxes} taxes, time zone {row['time_zone'] or 'not said'}"
    )


def webhooks_problem(client: Client) -> str | None:
    """What is wrong with the webhooks that the shop sends to an address like ours; None: nothing, or not told."""
    try:
        listed = client.get("/webhooks", per_page=100).content
    except WooCommerceError:
        return None
    ours = (
        [one for one in listed if isinstance(one, dict) and _is_ours(one)] if isinstance(listed, list) else []
    )
    off = sorted(str(one.get("topic")) for one in ours if one.get("status") != "active")
    if off:
        return (
            f"webhooks are switched off ({printable(', '.join(off))}), by WooCommerce after repeated failures; set "
            "their status to Active again (WooCommerce, Settings, Advanced, Webhooks). Until then changes come by "
            "reading, every ESL_CATCH_UP_MINUTES"
        )
    missing = sorted({*TOPICS} - {str(one.get("topic")) for one in ours})
    if ours and missing:
        return f"there is no webhook for {', '.join(missing)}; what they would tell comes by reading, later"
    return None


def _is_ours(webhook: Mapping[str, Any]) -> bool:
    return PATH in str(webhook.get("delivery_url"))
