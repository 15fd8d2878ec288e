"""What the rows of every frame look like, said once: each column's name, type and words.

From here come pandas' types, the Parquet schema (orchestration/frames.py) and what Dagster shows of an asset.
"""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["str", "bool", "int64", "list[int64]"]


@dataclass(frozen=True)
class Column:
    """One column: what it holds, in words, and as what.

    Of what a source says of a variant also: longest, in characters (Shopify's own limits; where it has none, more than
    any shop has); is_shared: said of the product, for all its variants; is_shown: an attribute of that name, for
    templates.
    """

    name: str
    says: str
    dtype: Dtype = "str"
    longest: int | None = None
    is_shared: bool = False
    is_shown: bool = False


@dataclass(frozen=True)
class Rows:
    """The columns of a frame, in their order."""

    columns: tuple[Column, ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    @property
    def dtypes(self) -> dict[str, str]:
        """As pandas calls them."""
        return {c.name: "object" if c.dtype == "list[int64]" else c.dtype for c in self.columns}


_MAPPING = Column("mapping_id", "store mapping that the label belongs to (uuid)")
_SYSTEM = Column("source_system", "source of the product")
_SHOP = Column("source_store_id", "the shop at that source")
_VARIANT = Column("variant_id", "id of the variant at its source")
_REVISION = Column("revision", "revision of the variant that was evaluated", "int64")
_STORE = Column("store_code", "Hipoink store")
_EVENTS = Column("event_ids", "inbox events behind the variant's content", "list[int64]")

VARIANTS = Rows(
    (
        _SYSTEM,
        _SHOP,
        _VARIANT,
        Column("product_id", "id of its product at its source"),
        Column("inventory_item_id", "id of its stock at its source"),
        Column("title", "the product's title", longest=255, is_shared=True, is_shown=True),
        Column("variant_title", "the variant's own title", longest=800, is_shown=True),
        Column("barcode", "as the source sent it", longest=255, is_shown=True),
        Column("sku", "as the source sent it", longest=255, is_shown=True),
        Column("price", "as the source sent it", longest=32),
        Column("compare_at_price", "as the source sent it", longest=32),
        Column("image_url", "address of the product's image", longest=2_048),
        Column("status", "active, unlisted, draft or archived", longest=64, is_shared=True),
        Column("published_at", "since when it is published (ISO 8601), or null", longest=64, is_shared=True),
        Column("vendor", "as the source sent it", longest=255, is_shared=True, is_shown=True),
        Column("product_type", "as the source sent it", longest=255, is_shared=True, is_shown=True),
        Column("tags", "with commas between", longest=10_000, is_shared=True, is_shown=True),
        Column("handle", "its name in addresses", longest=255, is_shared=True, is_shown=True),
        Column(
            "origin", "country of origin, as the source sent it", longest=255, is_shared=True, is_shown=True
        ),
        Column("option1", "value of the first option", longest=255, is_shown=True),
        Column("option2", "value of the second option", longest=255, is_shown=True),
        Column("option3", "value of the third option", longest=255, is_shown=True),
        Column("source_created_at", "when the source made it (ISO 8601, UTC)", longest=64),
        Column("source_updated_at", "when the source changed it last (ISO 8601, UTC)"),
        Column("unsaid", "columns that nobody has said yet, with spaces between"),
        Column("removed", "whether the source has it no more", "bool"),
        Column("stock", "JSON object: location id to quantity, or null"),
        Column("problem", "what is wrong with what the source says of it"),
        Column("gift_card", "whether it is one", "bool"),
        Column("unit_price", "price per unit, as the source sent it", longest=32),
        Column("unit_price_measurement", "JSON object: what the pack holds, as the source sent it, or null"),
        Column("history", "JSON object: mapping id to {shown, prior, cut_days} of our own labels, or null"),
        _EVENTS,
        Column("revision", "grows with every change of a variant's content", "int64"),
    )
)

SHOWN = frozenset(column.name for column in VARIANTS.columns if column.is_shown)
"""Columns of a variant that are attributes of the same name."""

LABELS = Rows(
    (
        _MAPPING,
        _SYSTEM,
        _SHOP,
        _VARIANT,
        _REVISION,
        _STORE,
        Column("state", "publish, held, kept, blank or withdrawn"),
        Column(
            "code", "product code (pc), the key of the label; null unless published or held with a right one"
        ),
        Column("code_kind", "gtin8 to gtin14, isbn, restricted, internal …; null where code is"),
        Column(
            "precedence", "order among variants with one code, where the policy ranks them (duplicate_rule)"
        ),
        Column("label", "the full record for the label server, canonical JSON"),
        Column("label_hash", "SHA-256 of the label"),
        _EVENTS,
    )
)

FINDINGS = Rows(
    (
        _MAPPING,
        _SHOP,
        _VARIANT,
        _REVISION,
        Column("check_name", "the check that found it"),
        Column("level", "error: the label is held back; warning: it is not"),
        Column("column_name", "where it was found"),
        Column("value", "what was found there"),
        Column("reason", "what is wrong"),
        Column("action", "what to do"),
    )
)

RESULTS = Rows(
    (
        _STORE,
        Column("code", "product code of the label"),
        Column("operation", "upsert or delete"),
        Column("outcome", "accepted, transient, unknown, rejected, authentication or not_sent"),
        Column("message", "the label server's words, or ours when it did not answer"),
        Column("shop", "the partition"),
        _VARIANT,
        Column("event_ids", "inbox events behind the label", "list[int64]"),
        Column("attempt", "how often this label has been tried", "int64"),
        Column("push_id", "the HTTP call, as in esl.sync_log"),
        Column("duration_ms", "duration of the call", "int64"),
    )
)
