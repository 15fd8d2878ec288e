"""Dagster only: assets, the drain job, the sensor, resources and frames. All logic is in the other rooms."""
