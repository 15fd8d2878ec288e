"""The webhook topics that we take, and where. Pure."""

TOPICS = ("product.created", "product.updated", "product.deleted", "product.restored")
DELETED = "product.deleted"

PATH = "/webhooks/woocommerce"
"""Where the receiver takes all of them; and each of them at its own `PATH/<topic>`."""
