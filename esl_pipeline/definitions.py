"""Everything that Dagster loads, wired in one page."""

from typing import Any

import dagster as dg

from esl_pipeline.orchestration.alarms import silence_sensor
from esl_pipeline.orchestration.assets import hipoink_sync_results, shopify_products, validated_variants
from esl_pipeline.orchestration.catch_up import catch_up, catch_up_schedule
from esl_pipeline.orchestration.checks import asset_checks
from esl_pipeline.orchestration.connection import (
    shopify_connection,
    shopify_connections,
    shopify_connections_schedule,
)
from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.orchestration.housekeeping import housekeeping, housekeeping_schedule
from esl_pipeline.orchestration.near_real_time import event_sync_job, inbox_sensor
from esl_pipeline.orchestration.nightly import full_reconciliation, nightly_reconciliation
from esl_pipeline.orchestration.resources import BufferResource, LabelServerResource, ShopifyAdminResource
from esl_pipeline.settings import load_settings


def build_definitions(**overrides: Any) -> dg.Definitions:
    """The definitions; `overrides` replaces resources by key (buffer, label_server, frames).

    Raises SettingsError, listing every problem, when the environment is wrong.
    """
    settings = load_settings()
    buffer = BufferResource()
    event_sync = event_sync_job(max_age_seconds=settings.esl_drain_max_age_seconds)
    resources = {
        "buffer": buffer,
        "label_server": LabelServerResource(buffer=buffer),
        "shopify": ShopifyAdminResource(),
        "frames": ParquetFrames(),
    }
    return dg.Definitions(
        assets=[shopify_products, validated_variants, hipoink_sync_results],
        asset_checks=[*asset_checks, shopify_connection],
        jobs=[event_sync, full_reconciliation, catch_up, housekeeping, shopify_connections],
        schedules=[
            nightly_reconciliation(settings.esl_nightly_cron, settings.esl_nightly_time_zone),
            catch_up_schedule(settings.esl_catch_up_minutes),
            housekeeping_schedule,
            shopify_connections_schedule,
        ],
        sensors=[
            inbox_sensor(event_sync, interval_seconds=settings.sync_worker_interval_seconds),
            silence_sensor(hours=settings.esl_silence_hours),
        ],
        resources=resources | overrides,
        executor=dg.in_process_executor,
    )


defs = build_definitions()
