"""What a source says, in the buffer's words."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass
class Facts:
    """Plain rows for Buffer.variants_merge.

    products: newest version of each product (its variant_ids, or null when the source did not say which there are).
    variants: the variants of those versions; what all of a product say alike may stand in its row alone (told_once;
    in a snapshot each is whole). levels: stock per item and location.
    details: what only the Admin API says of a variant (unit price, gift card). shops: currency, taxes, time zone.
    events: one outcome per delivery read: done or unusable, with a reason.
    problems: what is wrong with what was said of a variant, which holds its label back: source_system, source_store_id,
    variant_id, version_at, problem (see Buffer.problems_note). unclear: what is known of products that are listed, in a
    row that does not say which they are, so that none of them passes for absent (see Buffer.snapshot_keep).
    """

    products: list[Row] = field(default_factory=list)
    variants: list[Row] = field(default_factory=list)
    levels: list[Row] = field(default_factory=list)
    details: list[Row] = field(default_factory=list)
    shops: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    problems: list[Row] = field(default_factory=list)
    unclear: list[Row] = field(default_factory=list)

    def extend(self, other: "Facts") -> None:
        """Add another source's facts."""
        self.products += other.products
        self.variants += other.variants
        self.levels += other.levels
        self.details += other.details
        self.shops += other.shops
        self.events += other.events
        self.problems += other.problems
        self.unclear += other.unclear


_KEYS = ("source_system", "source_store_id", "product_id")
_VERSION = ("version_at", "triggered_at", "body_sha256")


def told_once(products: Iterable[Row], variants: Iterable[Row]) -> list[Row]:
    """The variants without what their product's row says as well, the version included: sent with each of 250 variants,
    a text would be 250 texts. Variants of another version than their product's keep all that they say."""
    told = {tuple(map(row.get, _KEYS)): row for row in products}
    return [_less(row, told.get(tuple(map(row.get, _KEYS)), {})) for row in variants]


def _less(row: Row, product: Row) -> Row:
    if any(row[name] != product.get(name) for name in _VERSION):
        return row
    return {
        name: value
        for name, value in row.items()
        if name in _KEYS or name not in product or product[name] != value
    }
