"""The partitions: one per shop."""

import dagster as dg

shops = dg.DynamicPartitionsDefinition(name="shops")
