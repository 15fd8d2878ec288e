"""news_sensor: sources that send no webhooks are looked into every few seconds, and read when there is news."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferUnavailable
from esl_pipeline.model.shop import shop_of
from esl_pipeline.orchestration.assets import RECONCILIATION
from esl_pipeline.orchestration.at_work import is_at_work
from esl_pipeline.orchestration.catch_up import SHOP_TAG, catch_up, reads_only
from esl_pipeline.orchestration.failures import reason_of
from esl_pipeline.orchestration.nightly import reads_whole_shop
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.orchestration.shops import active_shops
from esl_pipeline.sources.source import News, SourceError
from esl_pipeline.stages.memory import BufferMemory

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

_SECONDS = 5
# News that is still news, because its run has failed, is tried again then.
_AGAIN_SECONDS = 300


def news_sensor(reconciliation: "UnresolvedAssetJobDefinition") -> dg.SensorDefinition:
    """The sensor that starts catch_up, or this job, for a shop of a polled source that has something to read."""

    @dg.sensor(
        name="news_sensor",
        jobs=[catch_up, reconciliation],
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks for new files: a change list starts catch_up for its shop, a full list full_reconciliation.",
    )
    def sensor(
        context: dg.SensorEvaluationContext,
        buffer: dg.ResourceParam[Buffer],
        sources: dg.ResourceParam[Sources],
    ) -> dg.SensorResult:
        before: dict[str, str] = {}
        with suppress(ValueError, AttributeError):  # a cursor that somebody has typed
            before = dict(json.loads(context.cursor or "{}").items())
        after, requests, troubles = dict[str, str](), list[dg.RunRequest](), list[str]()
        for key in active_shops(buffer):
            shop = shop_of(key)
            if not (sources.opens(shop) and sources.of(shop).is_polled):
                continue
            try:
                with sources.reader(shop) as reader:
                    reader.remember(BufferMemory(buffer, shop, ""))
                    news = reader.news(str(before.get(key, "")))
            except SourceError as error:  # catch_up says so on the shop's check
                troubles.append(f"{key}: {error}")
                continue
            except BufferUnavailable:
                raise
            except Exception as error:  # of this shop alone: the others' news is told
                troubles.append(f"{key}: {reason_of(error)}")
                continue
            after[key] = news.state
            requests += _requests(context.instance, sources, key, news)
        for trouble in troubles:
            context.log.warning(trouble)
        return dg.SensorResult(
            run_requests=requests,
            cursor=json.dumps(after),
            skip_reason=None if requests else "; ".join(troubles) or "nothing is new",
        )

    return sensor


def _requests(
    instance: dg.DagsterInstance, sources: Sources, key: str, news: News
) -> Iterator[dg.RunRequest]:
    if not news.name:
        return
    run_key = f"{key} {news.name} {int(time.time()) // _AGAIN_SECONDS}"
    if news.changes and not is_at_work(instance, catch_up.name, tags={SHOP_TAG: key}):
        yield dg.RunRequest(
            run_key=f"changes {run_key}",
            job_name=catch_up.name,
            run_config=reads_only([key]),
            tags={SHOP_TAG: key},
        )
    if news.whole and not is_at_work(instance, RECONCILIATION, tags={"dagster/partition": key}):
        if not instance.has_dynamic_partition("shops", key):
            instance.add_dynamic_partitions("shops", [key])
        yield reads_whole_shop(key, type(sources.of(shop_of(key))), run_key=f"whole {run_key}")
