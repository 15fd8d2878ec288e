"""The sources that there are. A new one is a folder beside this file, and a line here."""

from typing import Any

from esl_pipeline.sources.files.source import FilesSource
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline.sources.source import Source
from esl_pipeline.sources.woocommerce.source import WooCommerceSource

SOURCES: dict[str, type[Source[Any]]] = {
    source.system: source for source in (ShopifySource, WooCommerceSource, FilesSource)
}


def source_of(system: str) -> type[Source[Any]] | None:
    """The source of that name."""
    return SOURCES.get(system)
