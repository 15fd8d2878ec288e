"""WooCommerce as a source: its webhooks, its REST API version 3, and what both say of products."""
