"""build_label: the full record that the label server should hold for one variant under one policy."""

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from esl_pipeline.labels.policy import Policy
from esl_pipeline.labels.text import clean

# Shopify's name for the only variant of a product without options.
DEFAULT_VARIANT_TITLE = "Default Title"

Label = dict[str, str]


def code_of(variant: Mapping[str, Any]) -> str:
    """The label server's product code of a variant, always text; "" when it has none."""
    return (variant.get("barcode") or "").strip()


def title_of(variant: Mapping[str, Any]) -> str:
    """`Product - Variant`, or the product's title alone where there is only one variant."""
    title, variant_title = clean(variant.get("title")), clean(variant.get("variant_title"))
    if not title or variant_title in ("", DEFAULT_VARIANT_TITLE):
        return title
    return f"{title} - {variant_title}"


def price_text(price: str, decimals: int) -> str:
    """A valid price as dot-decimal text with the currency's digits: ("8.9", 2) -> "8.90"."""
    return f"{Decimal(price):.{decimals}f}"


def build_label(variant: Mapping[str, Any], policy: Policy) -> Label:
    """The label of a valid variant. Pure; every field is sent every time, "" clears it (hipoink-api.md 12.10)."""
    image = variant.get("image_url") or ""
    label = {
        "pc": code_of(variant),
        "pn": title_of(variant),
        "pp": price_text(variant["price"], policy.decimals),
        "pi": clean(variant.get("sku")),
        "pim": image if policy.send_images and image.startswith("https://") else "",
    }
    if policy.stock_field != "none":
        available = (variant.get("stock") or {}).get(policy.location_id)
        label[policy.stock_field] = "" if available is None else str(available)
    return label


def canonical_json(label: Mapping[str, Any]) -> str:
    """The one way a label is written as text: sorted keys, no spaces, UTF-8."""
    return json.dumps(label, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def label_hash(label: Mapping[str, Any]) -> str:
    """Equal labels have equal hashes: SHA-256 (hex) of the canonical text."""
    return hashlib.sha256(canonical_json(label).encode()).hexdigest()
