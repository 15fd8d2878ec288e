"""What a source says, in the buffer's words; and the protocol of a source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass
class Facts:
    """Plain rows for Buffer.variants_merge.

    products: newest version of each product (its variant_ids, or null when the source did not say which there are).
    variants: the variants of those versions. levels: stock per item and location.
    details: what only the Admin API says of a variant (unit price, gift card). shops: currency, taxes, time zone.
    events: one outcome per delivery read: done or unusable, with a reason.
    """

    products: list[Row] = field(default_factory=list)
    variants: list[Row] = field(default_factory=list)
    levels: list[Row] = field(default_factory=list)
    details: list[Row] = field(default_factory=list)
    shops: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    def extend(self, other: "Facts") -> None:
        """Add another source's facts."""
        self.products += other.products
        self.variants += other.variants
        self.levels += other.levels
        self.details += other.details
        self.shops += other.shops
        self.events += other.events


class Source(Protocol):
    """A place that products come from."""

    system: str

    def read_deliveries(self, deliveries: Sequence[Mapping[str, Any]]) -> Facts:
        """Facts of webhook deliveries, folded to the newest state per product. Never raises for a body."""
        ...
