"""What is left of one shop, whatever the others did: all but times, ids and batches, so that two runs compare."""

from collections.abc import Callable, Mapping
from typing import Any

Sql = Callable[..., list[dict[str, Any]]]

_OF_A_MAPPING = {
    "mapping": "select is_active, is_dry_run, settings from esl.store_mappings where id = %s::uuid",
    "labels": "select variant_id, store_code, code, label, state, collides from esl.labels"
    " where mapping_id = %s::uuid order by variant_id",
    "findings": "select variant_id, check_name, level, column_name, value, reason, action,"
    " resolved_at is null as is_open from esl.findings where mapping_id = %s::uuid order by variant_id, check_name",
    "ledger": "select code, store_code, variant_id, label from esl.hipoink_products"
    " where mapping_id = %s::uuid order by code",
    "queue": "select code, store_code, variant_id, operation, label, state, priority, in_doubt from esl.sync_queue"
    " where mapping_id = %s::uuid order by code",
}


def what_is_left(sql: Sql, mapping: str, store: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping, in the buffer and at the label server (whose `LabelStore.state` this is)."""
    rows: dict[str, Any] = {name: sql(query, mapping) for name, query in _OF_A_MAPPING.items()}
    log = sql(
        "select r.code, r.operation, i.label, r.outcome from esl.sync_log r"
        " join esl.sync_log i on i.push_id = r.push_id and i.code = r.code and i.kind = 'intent'"
        " where r.kind = 'result' and r.store_code like %s order by r.id",
        store[0] + "%",
    )
    by_code: dict[str, list[Any]] = {}
    for row in log:
        pushed = (row["operation"], row["label"], row["outcome"])
        told = by_code.setdefault(row["code"], [])
        if not (told and told[-1] == pushed and pushed[2] != "accepted"):  # how often is a matter of time
            told.append(pushed)
    history = {
        code: [(change["action"], change["record"]) for change in changes]
        for code, changes in state["history"].get(store, {}).items()
    }
    return rows | {"log": by_code, "hangs": state["labels"].get(store, {}), "was shown": history}


def is_due(sql: Sql, *shops: str) -> bool:
    """Whether anything of these shops is on its way."""
    return bool(
        sql(
            "select 1 as n from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id"
            " where m.source_store_id = any (%s) and q.state in ('ready', 'leased')"
            " union all select 1 from esl.products where due and source_store_id = any (%s)"
            " union all select 1 from esl.webhook_inbox where state in ('ready', 'leased')"
            " and source_store_id = any (%s) limit 1",
            *([list(shops)] * 3),
        )
    )


def let_time_pass(sql: Sql) -> None:
    """What waits for its back-off, or a server or store for its pause, waits no longer."""
    sql("update esl.sync_queue set next_attempt_at = now() where next_attempt_at > now()")
    sql("update esl.label_servers set probe_at = now() where probe_at > now()")
    sql("update esl.store_health set until = now() where until > now()")
