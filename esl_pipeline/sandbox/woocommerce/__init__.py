"""A pretend WooCommerce: products, the REST API with its pages that slip, and webhooks, over real HTTP."""
