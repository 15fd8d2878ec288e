"""The partitions: one per shop."""

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import shop_key

shops = dg.DynamicPartitionsDefinition(name="shops")


def active_shops(buffer: Buffer) -> list[str]:
    """The partition keys of the shops with an active store mapping, sorted."""
    return sorted({shop_key(mapping) for mapping in buffer.mapping_list() if mapping["is_active"]})
