"""build_label: the full record that the label server should hold for one variant under one policy."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from esl_pipeline.labels.attributes import Attributes, attributes_of
from esl_pipeline.labels.lengths import FIELD_LENGTH, LENGTHS, fitted, is_cut
from esl_pipeline.labels.policy import Policy
from esl_pipeline.labels.text import cut

# No user, no port: nothing but a plain host can stand between the slashes. No spaces or control characters after.
_HTTPS = re.compile(r"https://([A-Za-z0-9.-]+)(?:[/?#][^\x00-\x20\x7f]*)?")

Label = dict[str, Any]


def build_label(variant: Mapping[str, Any], policy: Policy, shop_currency: str | None = None) -> Label:
    """The label of a valid variant (a row as attributes_of takes it). Pure: the same input gives the same label."""
    said = attributes_of(variant, policy, shop_currency)
    title, scene = policy.title.render(said), scene_of(variant, said, policy)
    return label_from(said, title, variant.get("image_url"), policy, scene)


def label_from(
    said: Attributes, title: str, image_url: str | None, policy: Policy, scene: int | None = None
) -> Label:
    """The label of these attributes; the title is cut, and what no label can show of other fields. Every field of ours
    is sent every time, "" clears it (hipoink-api.md 12.10)."""
    label: Label = {
        "pc": said["code"],
        "pn": fitted(
            title if policy.title_max_length is None else cut(title, policy.title_max_length), FIELD_LENGTH
        ),
        "pp": said["price"],
        "pim": image_url if policy.send_images and image_url and image_is_allowed(image_url, policy) else "",
    }
    for name, key, template in policy.bindings:
        if key is None:
            label[name] = fitted(template.render(said), FIELD_LENGTH)
        else:
            label.setdefault(name, {})[key] = fitted(template.render(said), FIELD_LENGTH)
    if policy.stock_field != "none":
        label[policy.stock_field] = said["stock"]
    if scene is not None:
        label["promotion"] = scene
    return label


def scene_of(variant: Mapping[str, Any], said: Attributes, policy: Policy) -> int | None:
    """The scene of its template that a label shows under the policy; None: the policy says nothing of it.

    variant: with cut_days, how many whole days ago its price was cut, None where the last change was none.
    """
    promotion = policy.promotion
    if promotion is None:
        return None
    days = variant.get("cut_days")
    shows = {
        "always": True,
        "compare_at": said["compare_at_price"] != "",
        "price_cut": days is not None and days < promotion.days,
    }
    return promotion.scene if shows[promotion.when] else promotion.otherwise


def image_is_allowed(url: str, policy: Policy) -> bool:
    """Whether the label server may be sent to this address: whole, https, and one of the policy's hosts by name."""
    if is_cut(url, LENGTHS["image_url"]):
        return False
    host = _HTTPS.fullmatch(url)
    return host is not None and host[1].lower() in policy.image_hosts


def canonical_json(label: Mapping[str, Any]) -> str:
    """The one way a label is written as text: sorted keys, no spaces, UTF-8."""
    return orjson.dumps(label, option=orjson.OPT_SORT_KEYS).decode()


def label_hash(canonical: str) -> str:
    """Equal labels have equal hashes: SHA-256 (hex) of a label's canonical text."""
    return hashlib.sha256(canonical.encode()).hexdigest()
