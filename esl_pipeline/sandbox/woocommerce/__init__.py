"""A pretend WooCommerce: products and variations, the REST API with its pages that slip, and webhooks, over real HTTP."""
