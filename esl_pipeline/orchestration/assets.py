"""The three assets, partitioned by shop: what Shopify says, what may go on a label, what the server accepted."""

from typing import Any

import dagster as dg
import pandas as pd

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.orchestration import reports
from esl_pipeline.orchestration.failures import stop_retries
from esl_pipeline.orchestration.resources import LabelServer
from esl_pipeline.orchestration.shops import shops
from esl_pipeline.stages.push import RESULT_COLUMNS, push_batch
from esl_pipeline.stages.read import VARIANT_COLUMNS, due_variants, read_inbox
from esl_pipeline.stages.shops import shop_of
from esl_pipeline.stages.validate import stage, validate

_LABEL_COLUMNS = {
    "mapping_id": "store mapping that the label belongs to (uuid)",
    "source_system": "source of the product",
    "source_store_id": "the shop at that source",
    "variant_id": "Shopify variant id",
    "revision": "revision of the variant that was evaluated",
    "store_code": "Hipoink store",
    "state": "publish, held, kept, blank or withdrawn",
    "code": "product code (pc), the key of the label; null unless published",
    "code_kind": "gtin8 to gtin14, isbn, restricted, internal …; null unless published",
    "precedence": "order among variants with one code, where the policy ranks them (duplicate_rule)",
    "label": "the full record for the label server, canonical JSON",
    "label_hash": "SHA-256 of the label",
    "event_ids": "inbox events behind the variant's content",
}
_RESULT_COLUMNS = {
    "store_code": "Hipoink store",
    "code": "product code of the label",
    "operation": "upsert or delete",
    "outcome": "accepted, transient, unknown, rejected or authentication",
    "message": "the label server's words, or ours when it did not answer",
    "shop": "the partition",
    "variant_id": "Shopify variant id",
    "event_ids": "inbox events behind the label",
    "attempt": "how often this label has been tried",
    "push_id": "the HTTP call, as in esl.sync_log",
    "duration_ms": "duration of the call",
}


_TYPES = {"revision": "int64", "attempt": "int64", "duration_ms": "int64", "event_ids": "list[int64]"}


def _schema(columns: dict[str, str]) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(name, type=_TYPES.get(name, "str"), description=text)
            for name, text in columns.items()
        ]
    )


def _variant_schema() -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(name, type=dtype) for name, dtype in VARIANT_COLUMNS.items()])


_OWNERS = ["team:esl"]


@dg.asset(
    partitions_def=shops,
    owners=_OWNERS,
    group_name="labels",
    io_manager_key="frames",
    hooks={stop_retries},
    kinds={"shopify", "postgres"},
    metadata={"dagster/column_schema": _variant_schema()},
)
def shopify_products(
    context: dg.AssetExecutionContext, buffer: dg.ResourceParam[Buffer]
) -> dg.Output[pd.DataFrame]:
    """What Shopify says: the shop's variants that changed, as the newest webhook of each product has them.

    Reads the shop's due deliveries from esl.webhook_inbox, folds them to the newest version per product and merges
    them into esl.products. The frame holds every variant that has not become a label yet.
    """
    buffer.check_version()
    shop = shop_of(context.partition_key)
    events: list[dict[str, Any]] = []
    while read := read_inbox(buffer, run_id=context.run.run_id, shop=shop):
        events += read
    frames = [due_variants(buffer, shop=shop)[0]]
    while len(frames[-1]):
        frames.append(due_variants(buffer, shop=shop, after=int(frames[-1]["revision"].max()))[0])
    variants = pd.concat(frames, ignore_index=True)
    return dg.Output(variants, metadata=reports.products_report(events, variants))


@dg.asset(
    partitions_def=shops,
    owners=_OWNERS,
    group_name="labels",
    io_manager_key="frames",
    hooks={stop_retries},
    kinds={"pandas", "pandera"},
    metadata={"dagster/column_schema": _schema(_LABEL_COLUMNS)},
)
def validated_variants(
    context: dg.AssetExecutionContext, shopify_products: pd.DataFrame, buffer: dg.ResourceParam[Buffer]
) -> dg.Output[pd.DataFrame]:
    """What may go on a label: each variant judged and built into the label of every store that the shop feeds.

    Rows with an error are held back (the label on the shelf stays) and kept in esl.findings with the reason. Labels
    that differ from what the label server last accepted are queued in esl.sync_queue.
    """
    mappings = [mapping for mapping in buffer.mapping_list() if mapping["is_active"]]
    evaluation = validate(shopify_products, mappings)
    for problem in evaluation.problems:
        context.log.error(problem)
    queued = stage(buffer, shopify_products, evaluation)
    report = reports.labels_report(evaluation.labels, evaluation.findings)
    return dg.Output(
        evaluation.labels,
        metadata=report
        | {"queued upserts": queued["upserts_queued"], "queued removals": queued["removals_queued"]},
    )


@dg.asset(
    partitions_def=shops,
    owners=_OWNERS,
    group_name="labels",
    io_manager_key="frames",
    hooks={stop_retries},
    kinds={"hipoink", "postgres"},
    deps=[dg.AssetDep("validated_variants")],
    metadata={"dagster/column_schema": _schema(_RESULT_COLUMNS)},
)
def hipoink_sync_results(
    context: dg.AssetExecutionContext,
    buffer: dg.ResourceParam[Buffer],
    label_server: dg.ResourceParam[LabelServer],
) -> dg.Output[pd.DataFrame]:
    """What the label server accepted: every queued label of the shop is pushed in batches, once.

    Each push has its intent and its result in esl.sync_log; accepted labels are in esl.hipoink_products. What the
    server did not accept stays queued with growing delays, or is failed with the server's words.
    """
    shop = shop_of(context.partition_key)
    pushed = [pd.DataFrame(columns=RESULT_COLUMNS)]
    while True:
        results = push_batch(
            buffer,
            label_server.client,
            label_server.rules,
            run_id=context.run.run_id,
            asset="hipoink_sync_results",
            shop=shop,
        )
        if results.empty:
            break
        pushed.append(results)
    results = pd.concat(pushed[1:] or pushed, ignore_index=True)
    return dg.Output(results, metadata=reports.results_report(results))
