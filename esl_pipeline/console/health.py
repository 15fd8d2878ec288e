"""Stores at a glance: what of Buffer.status a shop manager must know, a sentence each. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from esl_pipeline.console.words import ago, counted, moment

Row = Mapping[str, Any]
Level = Literal["ok", "notice", "trouble"]
_LEAVING = {"keep": "stay", "blank": "become blank", "remove": "are removed"}
_GRAVITY: dict[Level, int] = {"ok": 0, "notice": 1, "trouble": 2}


@dataclass(frozen=True)
class Said:
    """One thing that somebody should know of a store."""

    level: Level
    says: str
    to_do: str = ""


@dataclass(frozen=True)
class Store:
    """A store with what its shops have there."""

    code: str
    shops: tuple[str, ...]
    labels: int
    waiting: int
    refused: int
    approvals: int
    held_back: int
    last_accepted_at: str | None
    is_paused: bool
    servers_down: tuple[str, ...]
    said: tuple[Said, ...]

    @property
    def level(self) -> Level:
        """The gravest of what is said."""
        return max((said.level for said in self.said), key=_GRAVITY.__getitem__, default="ok")


def stores(status: Row) -> list[Store]:
    """Every store that a shop is mapped to, those in trouble first."""
    by_code: dict[str, list[Row]] = {}
    for mapping in status["stores"]:
        by_code.setdefault(mapping["hipoink_store_code"], []).append(mapping)
    found = [_store(code, mappings, status) for code, mappings in by_code.items()]
    return sorted(found, key=lambda store: (-_GRAVITY[store.level], store.code))


def _store(code: str, mappings: Sequence[Row], status: Row) -> Store:
    queues = [mapping["queue"] for mapping in mappings]
    server = mappings[0]["label_server"]
    outages = [outage for outage in status["outages"] if outage["server"] == server]
    refused = sum(queue["failed"] + queue["dead"] for queue in queues)
    return Store(
        code=code,
        shops=tuple(mapping["source_store_id"] for mapping in mappings),
        labels=sum(mapping["on_labels"] for mapping in mappings),
        waiting=sum(queue["waiting"] for queue in queues),
        refused=refused,
        approvals=sum(queue["guarded"] for queue in queues),
        held_back=sum(mapping["held_back"] for mapping in mappings),
        last_accepted_at=max(
            (m["last_accepted_at"] for m in mappings if m["last_accepted_at"]), default=None
        ),
        is_paused=any(mapping["paused"] for mapping in mappings),
        servers_down=tuple(outage["server"] for outage in outages),
        said=tuple(said for mapping in mappings for said in _of_mapping(mapping))
        + tuple(map(_outage, outages)),
    )


def _of_mapping(mapping: Row) -> Iterator[Said]:
    shop = mapping["source_store_id"]
    if mapping["problem"]:
        yield Said("trouble", f"{shop}: {mapping['problem']}", "Tell whoever runs the pipeline.")
    if mapping["switched_off"]:
        yield Said(
            "trouble", f"{shop}: switched off by {mapping['switched_off']}; its labels no longer follow."
        )
    elif mapping["leaving"]:
        yield Said(
            "notice", f"{shop}: this store is being removed, its labels {_LEAVING[mapping['leaving']]}."
        )
    elif not mapping["is_active"]:
        yield Said("notice", f"{shop}: inactive, its labels do not follow the shop.")
    if mapping["is_dry_run"]:
        yield Said("notice", f"{shop}: dry run, nothing is sent to labels.")
    yield from _pause(mapping["pause"])
    if mapping["paused"]:
        until = moment(mapping["paused"]["until"])
        yield Said(
            "trouble",
            f"The label server refuses this store: {mapping['paused']['reason']}. Next try {until}.",
        )
    yield from _of_queue(mapping)
    if mapping["held_back"]:
        yield Said(
            "notice", f"{counted(mapping['held_back'], 'product')} held back because of what the shop says."
        )


def _pause(pause: Row | None) -> Iterator[Said]:
    if pause:
        until = f"until {moment(pause['until'])}" if pause["until"] else "until somebody resumes it"
        since = moment(pause["since"])
        yield Said(
            "notice", f"Paused by {pause['by']} since {since}, {until}: {pause['reason']}. Nothing is sent."
        )


def _of_queue(mapping: Row) -> Iterator[Said]:
    queue = mapping["queue"]
    if refused := queue["failed"] + queue["dead"]:
        yield Said("trouble", f"{counted(refused, 'label')} could not be changed: see below why.")
    if queue["guarded"]:
        yield Said("notice", f"{counted(queue['guarded'], 'change')} wait for approval.")
    if rejected := queue["rejected"]:
        yield Said(
            "ok", f"{counted(rejected, 'change')} rejected by somebody: their labels stay as they are."
        )
    if queue["waiting"] and mapping["pause"]:
        yield Said("ok", f"{counted(queue['waiting'], 'label')} wait for the end of the pause.")
    elif queue["waiting"] and (mapping["is_active"] or mapping["leaving"]) and not mapping["is_dry_run"]:
        yield Said(
            "ok", f"{counted(queue['waiting'], 'label')} on the way, the oldest since {ago(queue['oldest'])}."
        )
    if window := queue.get("window"):  # of a buffer that counts them apart
        yield Said("ok", f"{counted(window, 'higher price')} wait for the hours in which prices may rise.")


def _outage(outage: Row) -> Said:
    since, reason = moment(outage["since"]), outage["reason"]
    return Said(
        "trouble",
        f"The label server has not answered since {since}: {reason}. Nothing is lost; changes go out when it is back.",
    )


@dataclass(frozen=True)
class Group:
    """Findings of one kind, told once."""

    level: str
    reason: str
    action: str
    rows: tuple[Row, ...]


def grouped(findings: Sequence[Row]) -> list[Group]:
    """Findings of Buffer.findings, those together of which the same is said."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in findings:
        found.setdefault((row["level"], row["reason"], row["action"] or ""), []).append(row)
    return [Group(*told, tuple(rows)) for told, rows in found.items()]


def waiting(previews: Sequence[Row]) -> list[Row]:
    """The changes of Buffer.preview, those first that need somebody."""
    order = {"failed": 0, "dead": 0, "guarded": 1}
    changes = [change for preview in previews for change in preview["changes"]]
    return sorted(changes, key=lambda change: order.get(change["state"], 2))
