"""Shopify's Admin API: reading a shop's catalogue, stock and settings when webhooks are not enough."""

from esl_pipeline.sources.shopify.admin.catalogue import (
    count_variants,
    facts_of_variants,
    read_catalogue,
    read_changed_since,
    read_locations,
    read_product,
    read_shop,
    read_stock,
    takes_token,
)
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import (
    AdminAuthenticationError,
    AdminError,
    AdminQueryError,
    AdminTooLargeError,
    AdminUnavailableError,
    BulkOperationFailedError,
    BulkOperationUnfinishedError,
    IncompleteDownloadError,
)

__all__ = [
    "AdminAuthenticationError",
    "AdminClient",
    "AdminError",
    "AdminQueryError",
    "AdminTooLargeError",
    "AdminUnavailableError",
    "BulkOperationFailedError",
    "BulkOperationUnfinishedError",
    "IncompleteDownloadError",
    "count_variants",
    "facts_of_variants",
    "read_catalogue",
    "read_changed_since",
    "read_locations",
    "read_product",
    "read_shop",
    "read_stock",
    "takes_token",
]
