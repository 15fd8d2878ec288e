"""Everything that Dagster loads, wired in one page."""

import dagster as dg

from esl_pipeline.orchestration import assets, console
from esl_pipeline.orchestration.alarms import silence_sensor
from esl_pipeline.orchestration.alert_check import alerts_check
from esl_pipeline.orchestration.alerts import alert_sensor
from esl_pipeline.orchestration.catch_up import catch_up, catch_up_schedule
from esl_pipeline.orchestration.checks import asset_checks
from esl_pipeline.orchestration.connection import connection_watch
from esl_pipeline.orchestration.crons import check as check_crons
from esl_pipeline.orchestration.frames import ParquetFrames
from esl_pipeline.orchestration.housekeeping import housekeeping, housekeeping_schedule
from esl_pipeline.orchestration.near_real_time import event_sync_job, inbox_sensor
from esl_pipeline.orchestration.news import news_sensor
from esl_pipeline.orchestration.nightly import full_reconciliation, nightly_reconciliation
from esl_pipeline.orchestration.operator import OperatorResource, operator_jobs
from esl_pipeline.orchestration.probes import probe, probe_schedule
from esl_pipeline.orchestration.resources import BufferResource, LabelServerResource, SourcesResource
from esl_pipeline.orchestration.shelf import shelf, shelf_labels, shelf_schedule
from esl_pipeline.orchestration.shelf_checks import shelf_checks
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
    console.configure(settings)
    check_crons(settings.crons, settings.esl_nightly_time_zone)
    operators = settings.esl_operator_database_url is not None
    in_use = [type(source) for source in settings.sources_in_use]
    zone = settings.esl_nightly_time_zone
    checks = [*asset_checks(in_use), alerts_check()]
    watches = [connection_watch(source, zone) for source in in_use if source.is_watched]
    others = [*shelf_checks(), *(watch.check for watch in watches)]
    event_sync = event_sync_job(max_age_seconds=settings.esl_drain_max_age_seconds)
    # Every check of its assets: one that was left out would be open after each night.
    reconciliation = full_reconciliation(in_use, [*checks, *(watch.check for watch in watches)])
    return dg.Definitions(
        assets=[
            assets.webhook_inbox,
            *map(assets.products_asset, in_use),
            assets.validated_variants(in_use),
            assets.hipoink_sync_results,
            shelf_labels,
        ],
        asset_checks=[*checks, *others],
        jobs=[
            event_sync,
            reconciliation,
            catch_up,
            shelf,
            probe,
            housekeeping,
            *(watch.job for watch in watches),
            *(operator_jobs() if operators else []),
        ],
        schedules=[
            nightly_reconciliation(reconciliation, settings.esl_nightly_cron, zone),
            catch_up_schedule(settings.esl_catch_up_minutes),
            shelf_schedule(settings.esl_shelf_minutes),
            probe_schedule(),
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
            alert_sensor([*checks, *others]),
            *([news_sensor(reconciliation)] if any(source.is_polled for source in in_use) else []),
        ],
        resources={
            "buffer": buffer or BufferResource(),
            "label_server": label_server or LabelServerResource(),
            "sources": sources or SourcesResource(),
            "frames": frames or ParquetFrames(),
            **({"operator": OperatorResource()} if operators else {}),
        },
        executor=dg.in_process_executor,
    )


defs = build_definitions()
