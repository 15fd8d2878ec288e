"""From variants and a store's policy to labels: published, held back, kept, blanked or withdrawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import orjson
import pandas as pd

from esl_pipeline.labels import checks, schema
from esl_pipeline.labels.attributes import (
    PRICE,
    Attributes,
    attributes_of,
    code_class,
    compare_at_is_higher,
    compare_at_is_proven,
    is_too_fine,
)
from esl_pipeline.labels.build import Label, canonical_json, label_from, label_hash, scene_of
from esl_pipeline.labels.lengths import cut_fields, cut_texts
from esl_pipeline.labels.needs import unsaid_needs
from esl_pipeline.labels.policy import Policy
from esl_pipeline.labels.unit_price import Measurement, measurement_of
from esl_pipeline.model.records import columns_of, frame_of, records
from esl_pipeline.model.rows import FINDINGS, LABELS

State = Literal["publish", "held", "kept", "blank", "withdrawn"]

_NO_FINDINGS = frame_of(columns_of((), FINDINGS.names), FINDINGS.dtypes)

_KEYS = ["source_store_id", "variant_id", "revision"]

_LEAVING: Mapping[str, State] = {"remove": "withdrawn", "keep": "kept", "blank": "blank"}
# Shopify marks gift cards in the Admin API only; webhooks show them by the type that Shopify gives them.
_GIFT_CARD_TYPES = ("gift card", "gift cards", "gift_card", "gift_cards")


@dataclass(frozen=True)
class Store:
    """The store that labels are built for: its mapping, and what the shop that feeds it says of its prices.

    told: what people are told of the shop's source (schema.TOLD).
    """

    mapping_id: str
    code: str
    policy: Policy
    shop_currency: str | None = None
    shop_taxes_included: bool | None = None
    told: Mapping[str, str] = field(default_factory=lambda: schema.TOLD)


class Outcome(NamedTuple):
    """What becomes of one variant. `label` is canonical JSON text, null unless the state is publish.

    One that is held keeps its claim on its code, where that is right: no other variant takes its place meanwhile. In
    any other state than these two the rest is null.
    """

    state: State
    code: str | None = None
    code_kind: str | None = None
    precedence: str | None = None
    label: str | None = None
    label_hash: str | None = None


def evaluate_together(parts: Sequence[tuple[pd.DataFrame, Store]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate the variants of shops of one source for stores of one policy: whatever of them, the checks run once.

    In, of each shop: rows of the buffer's variants (rows.VARIANTS). Out: one label row per variant
    (rows.LABELS, see Outcome) and the findings (rows.FINDINGS). No content of a row raises.
    """
    outcomes: list[Outcome] = []
    facts: dict[int, checks.Facts] = {}
    for part, store in parts:
        _read(part, store, outcomes, facts)
    store = parts[0][1]
    found = schema.findings(_frame_of(facts), store.policy, store.told)
    variants = pd.concat([part for part, _ in parts], ignore_index=True) if len(parts) > 1 else parts[0][0]
    labels, findings = to_frames(variants, parts[0][1], outcomes, found)
    if len(parts) > 1:
        stores = pd.DataFrame(
            [(store.mapping_id, store.code) for part, store in parts for _ in range(len(part))],
            columns=["mapping_id", "store_code"],
        )
        labels = labels.assign(mapping_id=stores["mapping_id"], store_code=stores["store_code"])
        findings = findings.assign(mapping_id=stores["mapping_id"].iloc[found["row"]].to_numpy())
    return labels, findings


def read(variants: pd.DataFrame, store: Store) -> tuple[list[Outcome], pd.DataFrame]:
    """What becomes of each variant if its content has no error, and the checks.FACTS of those that get a label.

    The index of the facts is the position of the variant.
    """
    outcomes: list[Outcome] = []
    facts: dict[int, checks.Facts] = {}
    _read(variants, store, outcomes, facts)
    return outcomes, _frame_of(facts)


def _read(
    variants: pd.DataFrame, store: Store, outcomes: list[Outcome], facts: dict[int, checks.Facts]
) -> None:
    """As read, behind what was read before."""
    doubled = variants["variant_id"].duplicated(keep=False)
    for position, (row, is_doubled) in enumerate(zip(records(variants), doubled, strict=True), len(outcomes)):
        state = _state(row, store.policy)
        if state != "publish":
            outcomes.append(Outcome(state))
            continue
        _unpack(row, store.mapping_id)
        said = attributes_of(row, store.policy, store.shop_currency)
        title = store.policy.title.render(said)
        scene = scene_of(row, said, store.policy)
        label = label_from(said, title, row["image_url"], store.policy, scene)
        facts[position] = _facts(row | {"is_doubled": is_doubled}, said, title, label, store)
        outcomes.append(_published(row, label, facts[position].code_kind, store.policy))


def _frame_of(facts: Mapping[int, checks.Facts]) -> pd.DataFrame:
    return frame_of(columns_of(facts.values(), checks.FACTS), checks.FACTS, index=list(facts))


def to_frames(
    variants: pd.DataFrame, store: Store, outcomes: Sequence[Outcome], found: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames of evaluate_together. In: what `read` and schema.findings returned; an error holds a variant back."""
    ends = list(outcomes)
    errors = found[found["level"] == "error"] if len(found) else found
    codeless = set(errors.loc[errors["check_name"].isin(checks.CODE_RULES), "row"]) if len(errors) else ()
    for position in set(errors["row"]):
        ends[position] = _held(ends[position], has_code=position not in codeless)
    same = {"mapping_id": store.mapping_id, "store_code": store.code}
    columns = columns_of(ends, Outcome._fields) | {
        name: variants[name] if name in variants else [same[name]] * len(variants)
        for name in LABELS.names
        if name not in Outcome._fields
    }
    labels = frame_of(columns, LABELS.dtypes)
    if found.empty:
        return labels, _NO_FINDINGS.copy(deep=False)
    owners = variants[_KEYS].iloc[found["row"]].reset_index(drop=True)
    findings = pd.concat([owners, found], axis=1).assign(mapping_id=store.mapping_id)
    return labels, findings[FINDINGS.names]


def held_back(variants: pd.DataFrame, store: Store, value: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What evaluate_together returns for variants that it could not judge; value: what stood in the way."""
    found = pd.DataFrame({"row": range(len(variants))}).assign(
        check_name="not_judged",
        level="error",
        column_name="variant_id",
        value=value,
        reason="the variant could not be judged: something in it is not as we know it",
        action="report it to us",
    )
    return to_frames(variants, store, [Outcome("held")] * len(variants), found)


def _unpack(row: dict[str, Any], mapping_id: str) -> None:
    """Make a row what attributes_of takes, with the prices of our own labels: shown_price, prior_price, cut_days."""
    ours = _object(_object(row["history"]).get(mapping_id))
    row["stock"] = _object(row["stock"])
    row["unit_price_measurement"] = _measurement(row["unit_price_measurement"])
    row["shown_price"] = _price_or_none(ours.get("shown"))
    row["prior_price"] = _price_or_none(ours.get("prior"))
    row["cut_days"] = days if type(days := ours.get("cut_days")) is int else None


def _object(value: object) -> Mapping[str, Any]:
    """A JSON object, also as text; anything else as an empty one."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return {}
    return value if isinstance(value, dict) else {}


# A shop has few kinds of packs.
@lru_cache(maxsize=10_000)
def _measurement(text: str | None) -> Measurement | None:
    return measurement_of(_object(text))


def _price_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and PRICE.fullmatch(value) else None


def _state(row: Mapping[str, Any], policy: Policy) -> State:
    """What becomes of a variant's label before its content is looked at; unknown statuses count as active."""
    if row["removed"]:
        return _LEAVING[policy.on_delete]
    status = row["status"]
    on_shelf = status in policy.statuses or status not in checks.STATUSES
    if on_shelf and unsaid_needs(row, policy):
        return "publish"  # held back by the check not_said: nobody knows enough to take it off either
    if not on_shelf or (policy.require_published and row["published_at"] is None):
        return _LEAVING[policy.on_unpublish]
    return "withdrawn" if _is_excluded(row, policy) else "publish"


def _is_excluded(row: Mapping[str, Any], policy: Policy) -> bool:
    exclude = policy.exclude
    kind = (row["product_type"] or "").strip().lower()
    if exclude.gift_cards and (row["gift_card"] or kind in _GIFT_CARD_TYPES):
        return True
    if kind in exclude.product_types or (row["vendor"] or "").strip().lower() in exclude.vendors:
        return True
    return bool(exclude.tags) and any(
        tag.strip().lower() in exclude.tags for tag in (row["tags"] or "").split(",")
    )


def _facts(row: Mapping[str, Any], said: Attributes, title: str, label: Label, store: Store) -> checks.Facts:
    policy = store.policy
    decimals = policy.decimals(store.shop_currency)
    code, price, compare_at = said["code"], row["price"] or "", row["compare_at_price"] or ""
    kind = code_class(code, row)
    higher = compare_at_is_higher(row)
    image = row["image_url"] or ""
    return checks.Facts(
        variant_id=row["variant_id"] or "",
        id_is_doubled=row["is_doubled"],
        unsaid=", ".join(unsaid_needs(row, policy)),
        problem=row.get("problem") or "",
        code=code,
        code_kind=kind.kind if code else "",
        code_candidate=kind.candidate or "",
        code_is_case=kind.case,
        title=label["pn"],
        title_is_cut=label["pn"] != title,
        cut_texts=", ".join(cut_texts(row)),
        cut_fields=", ".join(cut_fields(label)),
        price=price,
        price_is_too_fine=is_too_fine(price, decimals),
        price_jumps=_jumps(row["shown_price"], price),
        shop_currency=store.shop_currency or "",
        currency_differs=_differ(store.shop_currency, policy.expected_currency),
        tax_differs=_differ(store.shop_taxes_included, policy.price_includes_tax),
        compare_at_price=compare_at,
        compare_at_is_too_fine=higher and is_too_fine(compare_at, decimals),
        compare_at_is_low=not higher and None not in (PRICE.fullmatch(price), PRICE.fullmatch(compare_at)),
        compare_at_is_unproven=policy.show_compare_at == "if_prior_30d_ok"
        and higher
        and not compare_at_is_proven(row),
        measure=said["unit_price_verdict"],
        stock_is_missing=_shows_stock(policy) and not said["stock"],
        status=row["status"] or "",
        image_url=image,
        image_is_refused=policy.send_images and image != label["pim"],
    )


def _differ(said: object, wanted: object) -> bool:
    return said is not None and wanted is not None and said != wanted


def _jumps(shown: str | None, price: str) -> bool:
    if shown in (None, price) or not PRICE.fullmatch(price):
        return False
    return abs(Decimal(price) - Decimal(shown)) * 2 > Decimal(shown)


def _shows_stock(policy: Policy) -> bool:
    return policy.stock_field != "none" or "stock" in policy.used_attributes


def _published(row: Mapping[str, Any], label: Label, code_kind: str, policy: Policy) -> Outcome:
    text = canonical_json(label)
    return Outcome("publish", label["pc"], code_kind, _precedence(row, policy), text, label_hash(text))


def _held(outcome: Outcome, *, has_code: bool) -> Outcome:
    return outcome._replace(state="held", label=None, label_hash=None) if has_code else Outcome("held")


def _precedence(row: Mapping[str, Any], policy: Policy) -> str | None:
    """Sorts variants with one code, the first shows its label; null: none does."""
    if policy.duplicate_rule == "quarantine":
        return None
    number = (row["variant_id"] or "").zfill(20)
    # Without a time of creation last: "~" sorts after every digit.
    created = (row["source_created_at"] or "~") if policy.duplicate_rule == "first_created" else ""
    return f"{created} {number}".strip()
