"""A pretend Shopify: a made-up grocery, the webhooks about it, and the Admin API that reads it, over real HTTP."""
