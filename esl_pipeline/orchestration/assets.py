"""The assets, partitioned by shop: what each source says, what may go on a label, what the label server accepted."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.rows import LABELS, RESULTS, VARIANTS
from esl_pipeline.orchestration import reports
from esl_pipeline.orchestration.failures import release_claims_of_parent, stop_retries
from esl_pipeline.orchestration.forms import Form
from esl_pipeline.orchestration.frames import Parts, table_schema
from esl_pipeline.orchestration.pushes import push_shop
from esl_pipeline.orchestration.resources import LabelServers, Sources
from esl_pipeline.orchestration.shops import mapped_shop, products_asset_name, shops
from esl_pipeline.sources.source import NothingToReadError, Source
from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline.stages.snapshot import read_snapshot

_OWNERS = ["team:esl"]


webhook_inbox = dg.AssetSpec(
    "webhook_inbox",
    group_name="labels",
    owners=_OWNERS,
    kinds={"postgres"},
    description="Webhook deliveries as received, written by the receiver: esl.webhook_inbox.",
    metadata={"dagster/table_name": "esl.webhook_inbox"},
)


RECONCILIATION = "full_reconciliation"
_AS_THE_JOB = "Not said: as the job is, true in full_reconciliation and false elsewhere."


class Read(Form):
    """What a products asset reads."""

    whole_catalogue: bool | None = Field(
        None,
        description="Read the shop's whole catalogue from its source, beside the webhooks that are due: what it does "
        f"not have is gone. {_AS_THE_JOB}",
    )


class Push(Form):
    """What hipoink_sync_results does beside pushing what is due."""

    compare: bool | None = Field(
        None,
        description="Try refused labels once more, and compare the label server's own list with what it has accepted: "
        f"what has drifted is pushed again. {_AS_THE_JOB}",
    )


def _is_wanted(said: bool | None, run: dg.DagsterRun) -> bool:
    # By the job's name, for a run that somebody launches without configuration is a reconciliation all the same.
    return run.job_name == RECONCILIATION if said is None else said


def _products_described(source: type[Source[Any]]) -> str:
    by_webhook = (
        "Reads the shop's due deliveries from esl.webhook_inbox, folds them to the newest version per product and "
        "merges them into esl.products; a full_reconciliation then merges the whole catalogue. All day long the job "
        "event_sync does the same for all shops, and tells of it here."
    )
    by_reading = (
        "A full_reconciliation merges the whole catalogue into esl.products, catch_up what changed; news_sensor starts "
        "them when there is something to read. The labels follow by event_sync, which tells of it here."
    )
    return (
        f"What {source.name} says: the shop's variants that changed.\n\n"
        f"{by_webhook if source.sends_webhooks() else by_reading} The frame holds every variant that has not become a "
        "label yet."
    )


def products_asset(source: type[Source[Any]]) -> dg.AssetsDefinition:
    """The asset of a source's products."""

    @dg.asset(
        name=source.products_asset(),
        partitions_def=shops,
        owners=_OWNERS,
        group_name="labels",
        io_manager_key="frames",
        hooks={stop_retries},
        kinds={source.system, "postgres"},
        deps=[webhook_inbox] if source.sends_webhooks() else [],
        metadata={"dagster/column_schema": table_schema(VARIANTS), "dagster/table_name": "esl.products"},
        description=_products_described(source),
    )
    def products(
        context: dg.AssetExecutionContext,
        config: Read,
        buffer: dg.ResourceParam[Buffer],
        sources: dg.ResourceParam[Sources],
    ) -> dg.Output[Parts]:
        buffer.check_version()
        release_claims_of_parent(context.run, buffer)
        started = time.monotonic()
        variants = Parts(VARIANTS)
        shop = mapped_shop(context, buffer)
        if shop["source_system"] != source.system:
            not_ours = f"{context.partition_key} is no shop of {source.name}"
            return dg.Output(variants, metadata={reports.OUTCOME: f"not read: {not_ours}"})
        events: list[dict[str, Any]] = []
        while read := read_inbox(buffer, run_id=context.run.run_id, shop=shop):
            events += read
        whole: dict[str, Any] = {}
        if _is_wanted(config.whole_catalogue, context.run):
            try:
                with sources.reader(shop) as reader:
                    snapshot = read_snapshot(buffer, reader, shop=shop, run_id=context.run.run_id)
                whole = reports.snapshot_report(snapshot)
            except NothingToReadError as nothing:  # its labels are compared all the same
                context.log.warning(str(nothing))
                whole = {"not read": str(nothing)}
        after = 0
        while len(part := due_variants(buffer, shop=shop, after=after)[0]):
            variants.add(part)
            after = int(part["revision"].max())
        report = reports.products_report(events, variants) | whole | reports.cost_report(started)
        return dg.Output(variants, metadata=reports.of_shop(report, context.partition_key))

    return products


def validated_variants(sources: Sequence[type[Source[Any]]]) -> dg.AssetsDefinition:
    """The asset of the labels that these sources' products become."""

    @dg.asset(
        name="validated_variants",
        ins={source.products_asset(): dg.AssetIn() for source in sources},
        partitions_def=shops,
        owners=_OWNERS,
        group_name="labels",
        io_manager_key="frames",
        hooks={stop_retries},
        kinds={"pandas", "pandera"},
        metadata={"dagster/column_schema": table_schema(LABELS), "dagster/table_name": "esl.labels"},
        description="""What may go on a label: each variant judged and built into the label of every store that the
shop feeds.

Rows with an error are held back (the label on the shelf stays) and kept in esl.findings with the reason. Labels that
differ from what the label server last accepted are queued in esl.sync_queue. All day long the job event_sync does the
same.""",
    )
    def validated(
        context: dg.AssetExecutionContext, buffer: dg.ResourceParam[Buffer], **products: Parts
    ) -> dg.Output[Parts]:
        started = time.monotonic()
        mapped_shop(context, buffer)
        mappings = buffer.active_mappings()
        labels, found = Parts(LABELS), reports.FindingsTally()
        queued, problems = Counter[str](), set[str]()
        for part in products[products_asset_name(context.partition_key)]:
            evaluation = validate(part, mappings)
            queued += Counter(stage(buffer, part, evaluation))
            problems |= set(evaluation.problems)
            labels.add(evaluation.labels)
            found.add(evaluation.findings)
        for problem in sorted(problems):
            context.log.error(problem)
        report = reports.labels_report(labels, found)
        report |= {
            "queued upserts": queued["upserts_queued"],
            "queued removals": queued["removals_queued"],
        }
        report |= reports.cost_report(started)
        return dg.Output(labels, metadata=reports.of_shop(report, context.partition_key))

    return validated


@dg.asset(
    partitions_def=shops,
    owners=_OWNERS,
    group_name="labels",
    io_manager_key="frames",
    hooks={stop_retries},
    kinds={"hipoink", "postgres"},
    deps=[dg.AssetDep("validated_variants")],
    metadata={
        "dagster/column_schema": table_schema(RESULTS),
        "dagster/table_name": "esl.hipoink_products",
    },
)
def hipoink_sync_results(
    context: dg.AssetExecutionContext,
    config: Push,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServers],
) -> dg.Output[Parts]:
    """What the label server accepted: every queued label of the shop is pushed in batches, once.

    Each push has its intent and its result in esl.sync_log; accepted labels are in esl.hipoink_products. What the
    server did not accept stays queued with growing delays, or is failed with the server's words. A
    full_reconciliation tries those once more, then compares the server's own list with the ledger and pushes what has
    drifted (esl.drift). All day long the job event_sync pushes what is due.
    """
    started = time.monotonic()
    shop = mapped_shop(context, buffer)
    compares = _is_wanted(config.compare, context.run)
    if compares:
        buffer.push_again(shop=shop)
    pushed = push_shop(buffer, label_server, shop, run_id=context.run.run_id, compares=compares)
    outcomes = reports.Outcomes()
    report = reports.results_report(pushed.results, outcomes)
    report |= reports.drift_report(pushed.drifts) if compares else {}
    outcome = outcomes.said(
        repaired=sum(drift.requeued for drift in pushed.drifts), seconds=time.monotonic() - started
    )
    reports.tell(context, outcome, is_well=outcomes.all_is_well)
    pushed.check(compares=compares)
    report |= {reports.OUTCOME: outcome, "push (s)": pushed.push_seconds}
    if len(pushed.servers) > 1:
        report["label servers"] = ", ".join(pushed.servers)
    report |= reports.cost_report(started)
    return dg.Output(pushed.results, metadata=reports.of_shop(report, context.partition_key))
