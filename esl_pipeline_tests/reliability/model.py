"""What a few shops say, what of it has been told, and what must therefore hang at every place: the machine's oracle.

Pure Python that shares no code with esl.requeue or the evaluation. It does not follow how a label came to hang: given
what has been told, the mappings, and what hung when all was told, it says for each place (store, code) which labels
may hang once nothing is due any more.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

LOCATION = "77"
BLANK_NAME = "-"
LONGEST_TEXT, LONGEST_CODE = 255, 32

Body = dict[str, Any]
Time = float


class Shown(NamedTuple):
    """What a label says, as far as the model tells it apart."""

    sku: str
    name: str
    price: str
    stock: str

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> "Shown | None":
        if record is None:
            return None
        stock = record.get("qty")
        return cls(
            record.get("pi", ""), record["pn"], record["pp"] or "", "" if stock is None else str(stock)
        )

    @property
    def is_blank(self) -> bool:
        return self.name == BLANK_NAME


BLANK = Shown("", BLANK_NAME, "0.00", "")

State = Literal["publish", "held", "kept", "blank", "withdrawn"]
_LEAVING: Mapping[str, State] = {"remove": "withdrawn", "keep": "kept", "blank": "blank"}


class Level(NamedTuple):
    """The stock of one item as a message tells it."""

    at: Time
    triggered: Time
    available: int | None


class Statement(NamedTuple):
    """One thing that was said about a product; body None: it is gone."""

    at: Time
    triggered: Time
    body: Body | None


@dataclass
class Told:
    """What a shop has told the pipeline: the newest of each thing, whatever the order it came in."""

    products: dict[int, Statement] = field(default_factory=dict)
    levels: dict[int, Level] = field(default_factory=dict)
    unsaid: set[int] = field(default_factory=set)  # products of which the newest body left something out
    newest: Time = 0.0  # the newest time in a body that was delivered

    def hear(
        self, product: int, at: Time, triggered: Time, body: Body | None, *, is_whole: bool = True
    ) -> None:
        known = self.products.get(product)
        if known is None or (at, triggered) >= (known.at, known.triggered):
            self.products[product] = Statement(at, triggered, body)
            if is_whole:
                self.unsaid.discard(product)
            else:
                self.unsaid.add(product)

    def hear_level(self, item: int, at: Time, triggered: Time, available: int | None) -> None:
        known = self.levels.get(item)
        if known is None or (at, triggered) >= (known.at, known.triggered):
            self.levels[item] = Level(at, triggered, available)

    def variants(self) -> dict[str, tuple[Body, Body]]:
        """Variant id to (product, variant) of everything that was ever told and is not gone."""
        return {
            str(item["id"]): (said.body, item)
            for said in self.products.values()
            if said.body is not None
            for item in said.body["variants"]
        }


@dataclass
class MappingModel:
    """One mapping, and what its policy says. unsure: its settings are none that the model understands."""

    shop: str
    stores: list[str]  # the last one is where it writes now
    shows_stock: bool = False
    id: str = ""
    is_active: bool = True
    is_dry: bool = False
    unsure: bool = False
    prefix: str = ""
    guard: int = 1_000
    max_change: int = 80
    on_delete: str = "remove"
    on_unpublish: str = "remove"
    window: str | None = None  # "closed"
    grace: str | None = (
        None  # what a label shows that waits to be removed: "blank" or "keep"; None: it does not wait
    )

    @property
    def store(self) -> str:
        return self.stores[-1]

    @property
    def is_frozen(self) -> bool:
        return self.is_dry or not self.is_active


class Claim(NamedTuple):
    """One variant under one mapping."""

    state: State
    code: str | None
    label: Shown | None


def claims(told: Told, mapping: MappingModel) -> dict[str, Claim]:
    """Variant id to what the mapping makes of it. A variant that is not in it is gone: see `leaving`."""
    return {
        variant: _claim(product, item, told, mapping) for variant, (product, item) in told.variants().items()
    }


def kept(text: str) -> str:
    """What is kept of a text."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _claim(product: Body, item: Body, told: Told, mapping: MappingModel) -> Claim:
    if product["status"] != "active":
        return Claim(_LEAVING[mapping.on_unpublish], None, None)
    code = item["barcode"] or None
    if code and len(code) > LONGEST_CODE:
        return Claim("held", None, None)  # no code that a label can have
    if not (code and item["price"] and float(item["price"])):
        return Claim("held", code, None)
    stock = ""
    if mapping.shows_stock:
        level = told.levels.get(item["inventory_item_id"])
        stock = "" if level is None or level.available is None else str(level.available)
    return Claim(
        "publish", code, Shown(item["sku"], mapping.prefix + kept(product["title"]), item["price"], stock)
    )


class Place(NamedTuple):
    """What hangs at a place, and whose the pipeline takes it for."""

    shelf: Shown | None
    ledger: Shown | None
    owners: frozenset[str]  # variant ids
    in_doubt: bool = False  # a push went out whose end is not known
    pending: Shown | None = None  # the label of that push
    approved: bool = False  # somebody has said that it may be changed
    is_over: bool = False  # it was to go, and has waited long enough


class Verdict(NamedTuple):
    """Which labels may hang there now (None: none), and why; wanted: the one that is published, if any."""

    allowed: frozenset[Shown | None]
    why: str
    wanted: Shown | None = None


@dataclass
class Rules:
    """What the code under test cannot do yet is left open here, until it can."""

    held_claims: bool = True
    edits_among_rivals: bool = (
        True  # a label that stays though its variant has left is put right when it is edited
    )
    left_stores: bool = True  # what a mapping has left behind in another store goes


def collisions(by_variant: Mapping[str, Claim], rules: Rules) -> dict[str, set[str]]:
    """Code to the publishing variants that stand against each other there."""
    found = {}
    for code in {claim.code for claim in by_variant.values() if claim.code}:
        rivals = _rivals(by_variant, code, rules)
        if len(rivals) > 1:
            found[code] = {variant for variant in rivals if by_variant[variant].state == "publish"}
    return found


def _rivals(by_variant: Mapping[str, Claim], code: str, rules: Rules) -> set[str]:
    states = {"publish", "held"} if rules.held_claims else {"publish"}
    return {variant for variant, claim in by_variant.items() if claim.code == code and claim.state in states}


def judge(
    told: Told, mapping: MappingModel, store: str, code: str, place: Place, *, edited: bool, rules: Rules
) -> Verdict:
    """What may hang at a place of a store that this mapping feeds or has left.

    edited: somebody else has changed labels of the store, and the nightly comparison has been made since.
    """
    if mapping.is_frozen:
        return Verdict(frozenset({place.shelf}), "the mapping writes nothing")
    by_variant = claims(told, mapping)
    as_it_is = {place.ledger} if edited and place.ledger else {place.shelf, place.ledger}
    if place.in_doubt and place.pending:
        as_it_is.add(place.pending)  # it goes out again
    if not place.owners:
        as_it_is = {None}
    if store == mapping.store:
        rivals = _rivals(by_variant, code, rules)
        publishing = [v for v in rivals if by_variant[v].state == "publish"]
        unsaid = _products_unsaid(told)
        if unsaid & (rivals | place.owners):
            return Verdict(
                frozenset(as_it_is | {by_variant[v].label for v in publishing} | {None}), "not all was said"
            )
        if len(rivals) == 1 and publishing:
            return _wanted(by_variant[publishing[0]], publishing[0], mapping, place)
        if rivals and not publishing and not rivals & place.owners:
            return Verdict(
                frozenset(as_it_is | _leave(told, mapping, place, by_variant, rules)), "held claims"
            )
        if rivals:
            if not rivals & place.owners:
                as_it_is = as_it_is | ({None} if edited else set())
                as_it_is |= set() if rules.edits_among_rivals else {place.shelf}
            return Verdict(frozenset(as_it_is), "collision or held")
    allowed = _leave(told, mapping, place, by_variant, rules)
    if store != mapping.store:
        allowed = _goes(mapping, place) if rules.left_stores else allowed | as_it_is | {None}
        allowed = allowed | ({None} if edited else set())
    return Verdict(frozenset(allowed), "nobody claims it")


def _wanted(claim: Claim, variant: str, mapping: MappingModel, place: Place) -> Verdict:
    wanted = claim.label
    assert wanted is not None
    shelf = place.shelf
    if (
        mapping.window == "closed"
        and shelf
        and place.owners == {variant}
        and not shelf.is_blank
        and place.ledger == shelf
        and float(wanted.price) > float(shelf.price)
    ):
        allowed = {shelf, wanted} if place.in_doubt else {shelf}
        return Verdict(frozenset(allowed), "a rise waits for its window", wanted)
    return Verdict(frozenset({wanted}), "it is published", wanted)


def _leave(
    told: Told, mapping: MappingModel, place: Place, by_variant: Mapping[str, Claim], rules: Rules
) -> set[Shown | None]:
    """What becomes of a label that no variant claims any more: its owner decides."""
    if place.shelf is None and place.ledger is None and not (place.in_doubt and place.pending):
        return {None}
    colliding = {variant for rivals in collisions(by_variant, rules).values() for variant in rivals}
    unsaid = _products_unsaid(told)
    allowed: set[Shown | None] = set()
    for owner in place.owners or {""}:
        claim = by_variant.get(owner)
        state = claim.state if claim else _LEAVING[mapping.on_delete]
        if owner in unsaid:
            allowed |= {place.shelf, place.ledger, None}
        elif state in ("held", "kept") or owner in colliding:
            allowed |= {place.shelf, place.ledger}
            if place.in_doubt and place.pending:
                allowed.add(place.pending)
        elif state == "blank" and owner:
            allowed |= {BLANK}
            if place.in_doubt and not place.ledger and not place.pending:
                allowed.add(None)  # it had gone before a late push, under another policy: that is done again
        else:
            allowed |= _goes(mapping, place) if owner else {None}
    return allowed


def _goes(mapping: MappingModel, place: Place) -> set[Shown | None]:
    """What may hang where a label is to go: nothing, or what it shows until it has waited.

    Where a change is too much for the guard, somebody's word may have it wait once more.
    """
    waits = mapping.grace is not None and place.ledger is not None
    if not waits or (place.is_over and mapping.guard >= 1_000):
        return {None, BLANK} if mapping.grace and place.in_doubt else {None}
    shows: set[Shown | None] = {place.shelf, place.ledger} if mapping.grace == "keep" else {BLANK}
    if place.in_doubt:
        shows |= {BLANK, place.pending, None}
    return shows | {None} if place.is_over else shows


def _products_unsaid(told: Told) -> set[str]:
    """The variants of products whose newest body left something out."""
    return {
        str(item["id"])
        for product in told.unsaid
        if (body := told.products[product].body) is not None
        for item in body["variants"]
    }


def codes_of(told: Told, mapping: MappingModel) -> set[str]:
    """Every code that a variant claims under the mapping."""
    return {claim.code for claim in claims(told, mapping).values() if claim.code}


def owners_waiting(
    told: Told, mapping: MappingModel, blocked: Collection[str], owners: Iterable[str]
) -> bool:
    """Whether a label's owner has a new label that cannot go out, so that the old one may not leave yet."""
    by_variant = claims(told, mapping)
    return any(owner in by_variant and by_variant[owner].code in blocked for owner in owners)
