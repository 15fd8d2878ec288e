"""Shopify: webhooks, the Admin API, and how a shop is connected. `source` is what the rest knows of it."""
