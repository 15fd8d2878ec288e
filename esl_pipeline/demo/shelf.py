"""What a shopper found on the demo's shelf in the end, label by label: from the pictures, not the server's word."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esl_pipeline.demo.day import Label


@dataclass(frozen=True)
class Place:
    """A physical label that does not show the price that it must; must_show: None when it is bound to nothing."""

    esl_code: str
    code: str | None
    state: str
    """stale, unreachable or unbound."""
    why: str
    must_show: str | None
    shows: str | None
    """The price on it; None: none at all."""


@dataclass(frozen=True)
class ShelfReport:
    """The physical labels of the demo's store, each once; spare ones are bound to nothing, blank, and in a drawer."""

    hanging: int = 0
    right: int = 0
    spare: int = 0
    not_right: list[Place] = field(default_factory=list)
    without_label: list[str] = field(default_factory=list)
    """Products that must hang and have no label."""

    def count(self, state: str) -> int:
        """How many are stale, unreachable or unbound."""
        return Counter(place.state for place in self.not_right)[state]

    @property
    def is_right(self) -> bool:
        """Whether every product hangs, and every label shows its price."""
        return not (self.not_right or self.without_label)


def shelf_of(places: Iterable[Mapping[str, Any]], expected: Mapping[str, Label]) -> ShelfReport:
    """Judge what the sandbox's labels show (`/sandbox/shelf`) by what must hang."""
    hanging = right = spare = 0
    not_right, bound = [], set()
    for place in places:
        code, shown = place["product_code"], place["shown"]
        if code is None and shown is None:
            spare += 1
            continue
        hanging += 1
        bound.add(code)
        wanted = expected.get(code)
        state = place["state"]
        if state == "right" and (wanted is None or _differs(shown, wanted)):
            state = "stale"  # it shows what the server holds, and that is wrong
        if state == "right":
            right += 1
        else:
            must = wanted.get("pp") if wanted else None
            price = (shown or {}).get("price") or None
            not_right.append(Place(place["esl_code"], code, state, place["why"], must, price))
    return ShelfReport(hanging, right, spare, not_right, sorted(expected.keys() - bound))


def _differs(shown: Mapping[str, str], wanted: Label) -> bool:
    return (shown["name"], shown["price"]) != (wanted.get("pn", ""), wanted.get("pp", ""))
