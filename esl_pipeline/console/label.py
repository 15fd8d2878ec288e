"""One label's page: what it shows as far as is known, what it should show, and what stands between the two. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esl_pipeline.console.health import Level
from esl_pipeline.console.words import HINDRANCES, RUNGS, Rung, ago, moment
from esl_pipeline.hipoink.words import face, in_words
from esl_pipeline.labels.differences import differences
from esl_pipeline.model.waiting import why_label

Row = Mapping[str, Any]
# What a label waits for that is not its turn.
_HELD = frozenset(("paused", "inactive", "dry_run", "problem", "store_refuses", "server_down", "window"))


@dataclass(frozen=True)
class Field:
    """One field of the label, as it is and as it should be."""

    name: str
    now: str
    then: str

    @property
    def differs(self) -> bool:
        """Whether a push would change it."""
        return self.now != self.then


@dataclass(frozen=True)
class Device:
    """A physical label that is bound to the product."""

    code: str
    rung: Rung | None
    hindrance: str
    since: str | None
    is_rise: bool
    battery_mv: int | None
    online: bool | None
    ap: str


@dataclass(frozen=True)
class Finding:
    """What is wrong with what the shop says, and what to do there."""

    level: str
    reason: str
    action: str
    value: str
    since: str


@dataclass(frozen=True)
class Product:
    """A variant that has, or wants, this label."""

    title: str
    variant: str
    price: str
    sku: str
    barcode: str
    shop: str
    is_removed: bool


@dataclass(frozen=True)
class LabelPage:
    """All that the page shows beside its time line."""

    store: str
    code: str
    name: str
    shown: dict[str, str] | None
    is_blank: bool
    accepted_at: str | None
    wanted: dict[str, str] | None
    fields: tuple[Field, ...]
    rung: int | None
    devices: tuple[Device, ...]
    level: Level
    state: str
    state_says: str
    to_do: str
    refresh: str
    may_try_again: bool
    may_approve: bool
    findings: tuple[Finding, ...]
    products: tuple[Product, ...]

    @property
    def is_settled(self) -> bool:
        """Whether what hangs is what should hang, as far as the label server has said."""
        return not any(field.differs for field in self.fields)


def label_page(code: str, place: Row, rung: Row | None) -> LabelPage:
    """The page of a code at one place of Buffer.trace; rung: its place in Buffer.ladder, None: it has none."""
    ledger, queue = place["ledger"], place["queue"]
    held = ledger["label"] if ledger else None
    wanted = held if queue is None else queue["label"]
    findings = tuple(_findings(place["variants"]))
    level, state, says, to_do = _state(place, findings)
    products = tuple(map(_product, place["variants"]))
    shown = face(held) if ledger else None
    return LabelPage(
        store=place["store_code"],
        code=code,
        name=(products[0].title if products else "") or (shown or {}).get("name", ""),
        shown=shown,
        is_blank=bool(ledger and ledger["label_hash"].startswith("blank ")),
        accepted_at=ledger and ledger["accepted_at"],
        wanted=face(wanted) if wanted else None,
        fields=tuple(fields_of(held, wanted)),
        rung=rung["rung"] if rung else None,
        devices=tuple(map(_device, rung["labels"] if rung else ())),
        level=level,
        state=state,
        state_says=says,
        to_do=to_do,
        refresh=_refresh(place["refresh"]) if place["refresh"] else "",
        may_try_again=bool(queue and (queue["state"] in ("failed", "dead") or queue["last_error"])),
        may_approve=bool(queue and queue["state"] == "guarded"),
        findings=findings,
        products=products,
    )


def _state(place: Row, findings: Sequence[Finding]) -> tuple[Level, str, str, str]:
    """How the label stands: how grave that is, a word, a sentence, and what to do."""
    queue, grace = place["queue"], place["grace"]
    errors = [finding for finding in findings if finding.level == "error"]
    if queue is not None:
        return _of_queue(queue)
    if grace is not None:
        until = moment(grace["until"]) if grace["until"] else "somebody unbinds its labels"
        return (
            "notice",
            "to be removed",
            f"The product has left the shop. Its labels stay bound until {until}.",
            "Take the label off, or bind it to another product.",
        )
    if errors:
        return "notice", "held back", f"Nothing newer is sent: {errors[0].reason}.", errors[0].action
    if any(variant["collides"] for variant in place["variants"]):
        says = "Several products have this code, so none of them is sent."
        return "notice", "held back", says, "Give each its own code in the shop."
    if place["ledger"] is None:
        return "notice", "no label", "The label server holds nothing for this code.", ""
    return "ok", "up to date", "The label server holds what the shop says.", ""


def _of_queue(queue: Row) -> tuple[Level, str, str, str]:
    what = "Its removal" if queue["operation"] == "delete" else f"A change to {face(queue['label'])['price']}"
    error = f": {queue['last_error'].rstrip('.')}" if queue["last_error"] else ""
    if queue["state"] == "guarded":
        return _of_guarded(queue, what)
    if queue["state"] == "failed":
        return (
            "trouble",
            "refused",
            f"{what} was refused by the label server{error}.",
            "Mend what it names in the shop, or try again. It is tried once a night by itself.",
        )
    if queue["state"] == "dead":
        says = f"{what} could not be delivered after {queue['attempts']} tries{error}."
        return "trouble", "given up", says, "Try again when the label server answers."
    if queue["last_error"]:
        says = f"{what} did not go through yet{error}. Next try {ago(queue['next_attempt_at'])}."
        return "notice", "waits", says, "It is tried again by itself; to have it at once, try again."
    return _of_waiting(queue, what)


def _of_waiting(queue: Row, what: str) -> tuple[Level, str, str, str]:
    if queue["why"] in _HELD:
        return "notice", "waits", f"{what} waits: {why_label(queue, moment(queue['until']))}.", ""
    return "ok", "on its way", f"{what} is on its way since {moment(queue['created_at'])}.", ""


def _of_guarded(queue: Row, what: str) -> tuple[Level, str, str, str]:
    if queue["why"] == "rejected":
        says = f"{what} was rejected by somebody: the label stays until something else is wanted of it."
        return "ok", "rejected", says, "Approve it after all, or leave it so."
    says = (
        f"{what} waits for approval since {moment(queue['created_at'])}: many labels would change so at once."
    )
    return "notice", "waits for approval", says, "Compare old and new below; approve it, or reject it."


def fields_of(held: Row | None, wanted: Row | None) -> Iterator[Field]:
    """The fields of a label as it is and as it should be: what differs first, then what is the same."""
    changed = differences(held, wanted)
    yield from (Field(in_words(name), now, then) for name, (now, then) in changed.items())
    same = differences(None, {name: value for name, value in (wanted or {}).items() if value != ""})
    for name, (_, value) in same.items():
        if name not in changed and value:
            yield Field(in_words(name), value, value)


def _device(row: Row) -> Device:
    return Device(
        code=row["esl_code"],
        rung=RUNGS.get(row["rung"]),
        hindrance=HINDRANCES.get(row["hindrance"], row["hindrance"] or ""),
        since=row["since"],
        is_rise=bool(row["is_rise"]),
        battery_mv=row["battery_mv"],
        online=row["online"],
        ap=row["ap_code"] or "",
    )


def _findings(variants: Sequence[Row]) -> Iterator[Finding]:
    for variant in variants:
        for row in variant["findings"]:
            yield Finding(
                row["level"], row["reason"], row["action"] or "", row["value"] or "", row["first_seen_at"]
            )


def _product(row: Row) -> Product:
    return Product(
        title=row["title"] or "",
        variant="" if row["variant_title"] in (None, "Default Title") else row["variant_title"],
        price=row["price"] or "",
        sku=row["sku"] or "",
        barcode=row["barcode"] or "",
        shop=row["source_store_id"],
        is_removed=row["removed"],
    )


def _refresh(refresh: Row) -> str:
    if done := refresh["triggered"]:
        return f"Refresh triggered {moment(done['at'])}."
    if not refresh["wanted"]:
        return "No refresh is triggered by us: the store's policy says never, or it is not live."
    if refresh["waiting"]:
        return f"Waits to be refreshed since {moment(refresh['waiting']['since'])}."
    return "No refresh was triggered since."
