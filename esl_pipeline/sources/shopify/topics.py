"""The webhook topics that we take: of products and stock, and of the shop's life. Pure."""

TOPICS = (
    *("products/create", "products/update", "products/delete"),
    *("inventory_levels/update", "inventory_levels/connect", "inventory_levels/disconnect"),
)
UNINSTALLED = "app/uninstalled"
# An app has these in its configuration; no API subscribes to them.
COMPLIANCE_TOPICS = ("customers/data_request", "customers/redact", "shop/redact")

PATH = "/webhooks/shopify"
"""Where the receiver takes all of them; and each of them at its own `PATH/<topic>`."""
