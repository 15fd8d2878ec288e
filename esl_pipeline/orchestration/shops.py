"""The partitions, one per shop; and the asset of a shop's products, one per source."""

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key
from esl_pipeline.sources.registry import source_of

shops = dg.DynamicPartitionsDefinition(name="shops")


def active_shops(buffer: Buffer) -> list[str]:
    """The partition keys of the shops with an active store mapping, sorted."""
    return sorted({shop_key(mapping.shop) for mapping in buffer.active_mappings()})


def products_asset_name(key: str) -> str:
    """The asset of the products of a shop, by its key, whatever somebody has called the partition."""
    system = key.partition(":")[0]
    source = source_of(system)
    return source.products_asset() if source else f"{system}_products"
