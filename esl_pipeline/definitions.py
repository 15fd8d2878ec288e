"""Everything that Dagster loads, wired in one page."""

import dagster as dg

from esl_pipeline.orchestration import assets
from esl_pipeline.orchestration.alarms import silence_sensor
from esl_pipeline.orchestration.catch_up import catch_up, catch_up_schedule
from esl_pipeline.orchestration.checks import asset_checks
from esl_pipeline.orchestration.connection import connection_watch
from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.orchestration.housekeeping import housekeeping, housekeeping_schedule
from esl_pipeline.orchestration.near_real_time import event_sync_job, inbox_sensor
from esl_pipeline.orchestration.news import news_sensor
from esl_pipeline.orchestration.nightly import full_reconciliation, nightly_reconciliation
from esl_pipeline.orchestration.resources import BufferResource, LabelServerResource, SourcesResource
from esl_pipeline.settings import load_settings


def build_definitions(
    *,
    buffer: object = None,
    label_server: object = None,
    sources: object = None,
    frames: object = None,
) -> dg.Definitions:
    """The definitions, for the sources in use; a resource that is given here takes the place of ours.

    Raises SettingsError, listing every problem, when the environment is wrong.
    """
    settings = load_settings()
    in_use = [type(source) for source in settings.sources_in_use]
    zone = settings.esl_nightly_time_zone
    checks = asset_checks(in_use)
    watches = [connection_watch(source, zone) for source in in_use if source.is_watched]
    event_sync = event_sync_job(max_age_seconds=settings.esl_drain_max_age_seconds)
    reconciliation = full_reconciliation(in_use, checks)
    return dg.Definitions(
        assets=[
            assets.webhook_inbox,
            *map(assets.products_asset, in_use),
            assets.validated_variants(in_use),
            assets.hipoink_sync_results,
        ],
        asset_checks=[*checks, *(watch.check for watch in watches)],
        jobs=[event_sync, reconciliation, catch_up, housekeeping, *(watch.job for watch in watches)],
        schedules=[
            nightly_reconciliation(reconciliation, settings.esl_nightly_cron, zone),
            catch_up_schedule(settings.esl_catch_up_minutes),
            housekeeping_schedule(settings.esl_housekeeping_cron, zone),
            *(watch.schedule for watch in watches),
        ],
        sensors=[
            inbox_sensor(
                event_sync,
                interval_seconds=settings.sync_worker_interval_seconds,
                keep_warm=settings.esl_drain_keep_warm,
            ),
            silence_sensor(hours=settings.esl_silence_hours),
            *([news_sensor(reconciliation)] if any(source.is_polled for source in in_use) else []),
        ],
        resources={
            "buffer": buffer or BufferResource(),
            "label_server": label_server or LabelServerResource(),
            "sources": sources or SourcesResource(),
            "frames": frames or ParquetFrames(),
        },
        executor=dg.in_process_executor,
    )


defs = build_definitions()
