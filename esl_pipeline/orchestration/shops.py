"""The partitions, one per shop that has a store mapping; and the asset of a shop's products, one per source."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches

import dagster as dg

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.model.shop import Shop, shop_key, shop_of
from esl_pipeline.orchestration.at_work import is_at_work
from esl_pipeline.sources.registry import source_of

PARTITIONS = "shops"
shops = dg.DynamicPartitionsDefinition(name=PARTITIONS)

# A partition of no mapped shop stays for so long: whoever has just added it may be about to launch its run, which says
# what is wrong.
_UNMAPPED_STAYS_SECONDS = 60.0


def active_shops(buffer: Buffer) -> list[str]:
    """The partition keys of the shops with an active store mapping, sorted."""
    return sorted({shop_key(mapping.shop) for mapping in buffer.active_mappings()})


def products_asset_name(key: str) -> str:
    """The asset of the products of a shop, by its key, whatever somebody has called the partition."""
    system = key.partition(":")[0]
    source = source_of(system)
    return source.products_asset() if source else f"{system}_products"


def check_mapped(named: Sequence[str], buffer: Buffer) -> None:
    """Raises dg.Failure, not to be retried, when no mapping has some of these shops (their keys)."""
    if named and (says := _not_mapped(named, buffer)):
        raise dg.Failure(says, allow_retries=False)


def _not_mapped(named: Sequence[str], buffer: Buffer) -> str | None:
    """The sentence for somebody who names shops that no mapping has; None when all are mapped."""
    mapped = sorted({shop_key(mapping.shop) for mapping in buffer.mappings()})
    unknown = sorted(set(named) - set(mapped))
    if not unknown:
        return None
    meant = [key for name in unknown for key in get_close_matches(name, mapped, n=1, cutoff=0.9)]
    says = f"no such {'shop is' if len(unknown) == 1 else 'shops are'} mapped: {', '.join(unknown)}"
    return f"{says}; did you mean {', '.join(meant)}?" if meant else says


def mapped_shop(context: dg.AssetExecutionContext, buffer: Buffer) -> Shop:
    """The shop of the partition. A run for one that no mapping has is refused: it ends as cancelled, in one sentence.

    Partitions come from mappings, and one that somebody has added goes again (without_unmapped). Of a run that failed
    Dagster would keep a failed partition, and its checks as failed to execute, in the graph for good.
    """
    if says := _not_mapped([context.partition_key], buffer):
        context.instance.report_run_canceling(context.run, message=says)
        raise dg.Failure(says, allow_retries=False)
    return shop_of(context.partition_key)


def without_unmapped(
    instance: dg.DagsterInstance, unmapped: Collection[str], *, cursor: str | None, now: float
) -> tuple[str | None, list[str]]:
    """Remove those partitions, of shops that no mapping has, that have been so for a minute and have no run at work.

    cursor: what this returned the last time, of a sensor. -> (the next cursor, the removed ones).
    """
    before: Mapping[str, float] = {}
    with suppress(ValueError, AttributeError, TypeError):  # a cursor that somebody has typed
        before = {key: float(at) for key, at in json.loads(cursor or "{}").items()}
    seen = {key: before.get(key, now) for key in sorted(unmapped)}
    removed = [
        key
        for key, since in seen.items()
        if now - since >= _UNMAPPED_STAYS_SECONDS
        and not is_at_work(instance, tags={"dagster/partition": key})
    ]
    for key in removed:
        instance.delete_dynamic_partition(PARTITIONS, key)
        del seen[key]
    return json.dumps(seen) if seen or before else cursor, removed
