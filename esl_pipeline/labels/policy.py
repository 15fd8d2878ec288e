"""A store's policy: the choices a shopkeeper may make differently. Kept in the mapping's settings."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self, get_args
from zoneinfo import ZoneInfo

from iso4217 import Currency
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from esl_pipeline.labels import templates
from esl_pipeline.labels.lengths import LENGTHS
from esl_pipeline.model.rows import SHOWN

# The label server returns prices with two decimals (hipoink-api.md section 6).
LABEL_SERVER_DECIMALS = 2

# What a template can name. Prices are dot-decimal text, unit_price_per is "kg", "100 g" …, stock is of location_id.
ATTRIBUTES = SHOWN | {
    *("status", "code", "variant_id", "product_id", "shop"),
    *("price", "compare_at_price", "currency", "unit_price", "unit_price_per", "stock"),
}
_UNIT_PRICE = {"unit_price", "unit_price_per"}

CodeSource = Literal["barcode", "sku", "variant_id"]
Leaving = Literal["remove", "keep", "blank"]
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+$", max_length=253)]
TimeOfDay = Annotated[str, StringConstraints(pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=LENGTHS["vendor"])
]
Names = Annotated[tuple[Name, ...], Field(max_length=1_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
Scene = Annotated[int, Field(ge=1, le=4)]
Hours = Annotated[
    str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$")
]
# A client in production calls a label's battery low from there on, a fifth of what it can hold.
LOW_BATTERY_MV = 2_660
# Fits what SQL reads these numbers as (esl.policy_number), and is as good as no limit.
_MOST = 1_000_000_000

ColumnName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
TemplateText = Annotated[str, StringConstraints(max_length=500)]
# The label server takes prices there, so nothing but a price may be bound to them.
PriceText = Literal["", "{price}", "{compare_at_price}", "{unit_price}"]


def said_of(wrong: Mapping[str, Any], loc: Sequence[int | str]) -> str:
    """What pydantic found wrong at this place of a policy, in words; of a name that there is not, the one that was
    meant."""
    if wrong["type"] != "extra_forbidden":
        return str(wrong["msg"]).removeprefix("Value error, ")
    model: Any = Policy
    for part in loc[:-1]:
        kinds = (model.model_fields[part].annotation,) if part in getattr(model, "model_fields", {}) else ()
        kinds = tuple(kind for one in kinds for kind in (one, *get_args(one)))
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    close = difflib.get_close_matches(str(loc[-1]), getattr(model, "model_fields", {}), 1, 0.7)
    hint = f": did you mean {close[0]}?" if close else ", see `esl-pipeline stores policy`"
    return f"is no setting of a policy{hint}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fields(_Strict):
    """Label fields and what each is made of: a text with {attributes}; parts in [brackets] vanish when one is empty.

    A field that is not named is never sent, so that another system may own it; "" sends it empty.
    """

    pi: TemplateText | None = Field(default="{sku}", description="inner code")
    ps: TemplateText | None = Field(default=None, description="specification")
    pu: TemplateText | None = Field(default=None, description="unit")
    vp: PriceText | None = Field(default=None, description="member price")
    pop: PriceText | None = Field(default="{compare_at_price}", description="original price")
    po: TemplateText | None = Field(default=None, description="place of origin")
    pm: TemplateText | None = Field(default=None, description="manufacturer")
    pqr: TemplateText | None = Field(default=None, description="content of the QR code")
    f1: TemplateText | None = None
    f2: TemplateText | None = None
    f3: TemplateText | None = None
    f4: TemplateText | None = None
    f5: TemplateText | None = None
    f6: TemplateText | None = None
    f7: TemplateText | None = None
    f8: TemplateText | None = None
    f9: TemplateText | None = None
    f10: TemplateText | None = None
    f11: TemplateText | None = None
    f12: TemplateText | None = None
    f13: TemplateText | None = None
    f14: TemplateText | None = None
    f15: TemplateText | None = None
    f16: TemplateText | None = None
    extend: dict[Annotated[str, StringConstraints(pattern="^[a-z][0-9a-z_]{0,31}$")], TemplateText] | None = (
        Field(default=None, max_length=32, description="further keys and values")
    )

    @field_validator("*")
    @classmethod
    def _known_attributes(cls, value: Any) -> Any:
        for text in value.values() if isinstance(value, dict) else (value,):
            if text is not None:
                templates.parse(text, ATTRIBUTES)
        return value

    def bound(self) -> Iterator[tuple[str, str | None, str]]:
        """(label field, key within extend or None, template text) of every field that is sent."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, dict):
                yield from ((name, key, text) for key, text in value.items())
            elif value is not None:
                yield name, None, value


class Exclude(_Strict):
    """What of the shop has no label in this store; upper and lower case are the same."""

    product_types: Names = ()
    vendors: Names = ()
    tags: Names = ()
    gift_cards: bool = True


class RaiseWindow(_Strict):
    """When prices may rise, in the store's time; past midnight when it closes before it opens."""

    opens: TimeOfDay
    closes: TimeOfDay
    time_zone: Annotated[str, StringConstraints(max_length=LENGTHS["time_zone"])]

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is not a time zone such as Europe/Berlin") from None
        return value


class Promotion(_Strict):
    """Which scene of its template a label shows (1 to 4), and when; else `otherwise`.

    always; compare_at: while it shows a compare-at price; price_cut: for so many days after its price was cut.
    """

    scene: Scene
    when: Literal["always", "compare_at", "price_cut"] = "always"
    days: Annotated[int, Field(ge=1, le=90)] = 14
    otherwise: Scene = 1


class Columns(_Strict):
    """Which column of a shop's files says what, by its name; what is not named is found by the usual names."""

    id: ColumnName | None = Field(default=None, description="the article's number")
    code: ColumnName | None = Field(default=None, description="barcode")
    title: ColumnName | None = None
    variant_title: ColumnName | None = None
    price: ColumnName | None = None
    compare_at_price: ColumnName | None = None
    sku: ColumnName | None = None
    vendor: ColumnName | None = None
    product_type: ColumnName | None = None
    tags: ColumnName | None = None
    image_url: ColumnName | None = None
    stock: ColumnName | None = None
    deleted: ColumnName | None = None

    def named(self) -> dict[str, str]:
        """Field -> column, of those that are named."""
        return self.model_dump(exclude_none=True)


class Policy(_Strict):
    """Typed settings of one store mapping; every default is the safe choice."""

    code_source: tuple[CodeSource, ...] = Field(
        default=("barcode",),
        min_length=1,
        description="Where a label's code comes from: the first of these that is filled. One name or a list.",
    )
    require_gtin: bool = Field(default=False, description="Hold back codes that are not valid GTINs.")
    pad_upc: bool = Field(
        default=False,
        description="Put back the leading zero of an 11-digit (7-digit) code that is valid with it.",
    )
    label_code_form: Literal["as_is", "gtin13", "gtin14"] = Field(
        default="as_is", description="Length of GTINs on labels: must match what staff scan."
    )
    allow_case_codes: bool = Field(default=True, description="Allow GTIN-14s of cases (first digit 1 to 8).")
    duplicate_rule: Literal["quarantine", "first_created", "lowest_id"] = Field(
        default="quarantine",
        description="Variants of the shop with one code: hold all back, or show the oldest or the lowest id.",
    )
    zero_price: Literal["block", "allow"] = Field(default="block", description="Labels with a price of 0.")
    expected_currency: Annotated[str, StringConstraints(pattern="^[A-Z]{3}$")] | None = Field(
        default=None,
        description="ISO 4217 code of the shop's prices; with another one all are held back. Default: the shop's.",
    )
    price_includes_tax: bool | None = Field(
        default=None, description="Note: shelf prices include tax. Warns where the shop says otherwise."
    )
    show_compare_at: Literal["never", "if_higher", "if_prior_30d_ok"] = Field(
        default="never",
        description="Compare-at price: never, when above the price, or when also not above the lowest price on the "
        "label in the 30 days before the reduction.",
    )
    title_template: TemplateText = Field(default="{title}[ - {variant_title}]", description="Text of `pn`.")
    title_max_length: Annotated[int, Field(ge=1, le=500)] | None = Field(
        default=None, description="Longer titles are cut, never within a character."
    )
    emoji: Literal["strip", "keep"] = Field(
        default="strip", description="Emoji in texts: few labels can show them."
    )
    send_images: bool = Field(
        default=False, description="Put the image's address into `pim`: costs transfer and battery."
    )
    image_hosts: tuple[HostName, ...] = Field(
        default=(),
        max_length=100,
        description="Hosts that images may come from, over https. Default: those of the shop's source.",
    )
    statuses: tuple[Literal["active", "unlisted", "archived"], ...] = Field(
        default=("active", "unlisted"),
        description="Statuses that are on the shelf; drafts never are.",
    )
    require_published: bool = Field(default=False, description="Only products published in the online store.")
    on_delete: Leaving = Field(
        default="remove",
        description="A deleted product's label: remove (unbinds the tag, after unbind_grace_hours), keep, or blank "
        "(name '-', price 0.00, for the label server demands both).",
    )
    on_unpublish: Leaving = Field(
        default="remove", description="The same for one that is no longer on the shelf (statuses)."
    )
    unbind_grace_hours: Annotated[int, Field(ge=0, le=8_760)] = Field(
        default=24,
        description="How long a removal waits that would unbind physical labels (or may, where that is not known), so "
        "that a product that comes back finds them bound; 0: not at all.",
    )
    during_grace: Literal["blank", "keep"] = Field(
        default="blank",
        description="What such a label shows meanwhile: blank (name '-', price 0.00), or keep (what it showed last).",
    )
    exclude: Exclude = Field(default=Exclude(), description="What has no label here; its labels are removed.")
    stock_field: Literal["none", "kc", "qty"] = Field(
        default="none", description="The label field that takes the stock of `location_id`."
    )
    location_id: Annotated[str, StringConstraints(pattern="^[0-9]{1,20}$")] | None = Field(
        default=None,
        description="The location whose stock counts; stock is never summed over locations.",
    )
    unit_price_mode: Literal["off", "eu", "uk", "us"] = Field(
        default="off",
        description="Price per unit from the measurement of the content, for {unit_price} and {unit_price_per}.",
    )
    fields: Fields = Field(
        default=Fields(),
        description="Other label fields and their templates: pi, ps, pu, vp, pop, po, pm, pqr, f1 to f16, extend.",
    )
    promotion: Promotion | None = Field(
        default=None,
        description="The scene of its template that a label shows, 1 to 4: a number, or scene, when (always, "
        "compare_at: while it shows a compare-at price, price_cut: for `days` after one), days and otherwise. "
        "Default: not sent.",
    )
    raise_window: RaiseWindow | None = Field(
        default=None,
        description="Prices rise only in this window (opens, closes, time_zone); cuts go out at once.",
    )
    max_change_pct: Annotated[int, Field(ge=1, le=_MOST)] = Field(
        default=80, description="A price change by more per cent is drastic, as a removal is."
    )
    guard_labels: Annotated[int, Field(ge=0, le=_MOST)] = Field(
        default=5,
        description="More drastic changes of a kind within guard_hours than this and guard_share_pct wait for "
        "approval.",
    )
    guard_share_pct: Percent = Field(default=20, description="The same, as a share of the store's labels.")
    # A day: as long as somebody who looks every morning needs to see a mistake that comes label by label.
    guard_hours: Annotated[int, Field(ge=1, le=720)] = Field(
        default=24, description="How long drastic changes count; after an approval they are counted anew."
    )
    max_held_share_pct: Percent = Field(
        default=20, description="A larger share of variants held back fails the asset check."
    )
    refresh: Literal["after_push", "never"] = Field(
        default="after_push",
        description="Tell the label server to refresh the store's labels after pushes (`esl/bind_task`), or never.",
    )
    refresh_seconds: Annotated[int, Field(ge=1, le=3_600)] = Field(
        default=20,
        description="How long after the first label of a burst the refresh follows at the latest; sooner once all are "
        "pushed, and for prices that rise.",
    )
    refresh_minutes: Annotated[int, Field(ge=1, le=10_080)] = Field(
        default=15,
        description="Within how many minutes of its push a physical label is expected to show it, outside sleep_hours.",
    )
    sleep_hours: Hours | None = Field(
        default=None,
        description="When physical labels sleep and show nothing new, in the shop's time, e.g. 22:00-06:00.",
    )
    templates_show_price: bool = Field(
        default=False,
        description="Somebody has seen that every template in use shows the price. Else only labels that somebody has "
        "seen (`esl-pipeline labels seen`) are called refreshed: no call tells what a template shows.",
    )
    low_battery_mv: Annotated[int, Field(ge=1_000, le=10_000)] = Field(
        default=LOW_BATTERY_MV,
        description="A battery below so many mV is low, and its label not counted as reachable.",
    )
    max_low_battery_pct: Percent = Field(
        default=5, description="A larger share of labels with low batteries fails the asset check batteries."
    )
    max_unreachable_pct: Percent = Field(
        default=5,
        description="A larger share of labels that the label server does not reach fails labels_reachable.",
    )
    max_pass_age_minutes: Annotated[int, Field(ge=1, le=10_080)] = Field(
        default=60,
        description="Where the store's labels were read longer ago, none counts as reachable, and labels_reachable "
        "fails.",
    )
    max_unbound_pct: Percent = Field(
        default=10,
        description="A larger share of the store's labels that hang without a product of a shop fails bindings.",
    )
    max_without_label_pct: Percent = Field(
        default=100, description="A larger share of products without a label fails bindings."
    )
    max_late_pct: Percent = Field(
        default=5,
        description="A larger share of labels that should show something else for longer than refresh_minutes fails "
        "shelf_is_fresh, as one such price rise does.",
    )
    probe_label: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,100}$")] | None = Field(
        default=None,
        description="Code of a physical label that is dedicated to measuring, four times a day, how long it takes "
        "until a change is shown (`esl-pipeline probe`).",
    )
    columns: Columns = Field(
        default=Columns(),
        description="For files: names of their columns, e.g. columns.price=VK-Preis; all stores of a shop the same.",
    )
    owns_store: bool = Field(
        default=False,
        description="Nobody else keeps labels in this store: those that are not ours are removed at night.",
    )

    @field_validator("code_source", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("promotion", mode="before")
    @classmethod
    def _scene(cls, value: object) -> object:
        return {"scene": value} if type(value) is int else value

    @field_validator("sleep_hours")
    @classmethod
    def _sleeps(cls, value: str | None) -> str | None:
        if value is not None and value[:5] == value[6:]:
            raise ValueError("sleep_hours: its begin and its end are the same")
        return value

    @field_validator("title_template")
    @classmethod
    def _title(cls, value: str) -> str:
        templates.parse(value, ATTRIBUTES)
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.expected_currency is not None and self.expected_currency not in Currency.__members__:
            raise ValueError(f"expected_currency: {self.expected_currency} is not an ISO 4217 code")
        if len(set(self.code_source)) < len(self.code_source):
            raise ValueError("code_source: each source once")
        shows_stock = self.stock_field != "none" or "stock" in self.used_attributes
        if shows_stock and self.location_id is None:
            raise ValueError("location_id: needed to show stock; that of several locations is never summed")
        if self.promotion and self.promotion.when == "compare_at" and self.show_compare_at == "never":
            raise ValueError("show_compare_at: needed for a promotion while a label shows a compare-at price")
        shows_unit_price = bool(_UNIT_PRICE & self.used_attributes)
        if shows_unit_price and self.unit_price_mode == "off":
            raise ValueError("unit_price_mode: needed where a field shows {unit_price} or {unit_price_per}")
        if self.unit_price_mode != "off" and not shows_unit_price:
            raise ValueError("fields: bind {unit_price} to a field of the label, or turn unit_price_mode off")
        return self

    @cached_property
    def title(self) -> templates.Template:
        """title_template, parsed."""
        return templates.parse(self.title_template, ATTRIBUTES)

    @cached_property
    def bindings(self) -> tuple[tuple[str, str | None, templates.Template], ...]:
        """(label field, key within extend or None, parsed template) of every field that is sent."""
        return tuple(
            (name, key, templates.parse(text, ATTRIBUTES)) for name, key, text in self.fields.bound()
        )

    @cached_property
    def used_attributes(self) -> frozenset[str]:
        """Every attribute that the title or a field shows."""
        return self.title.attributes.union(*(template.attributes for _, _, template in self.bindings))

    def decimals(self, shop_currency: str | None) -> int:
        """Minor units of the currency (JPY 0, EUR 2, KWD 3); two when no currency is known."""
        return _minor_units(self.expected_currency or shop_currency)


@cache
def _minor_units(currency: str | None) -> int:
    if currency is None or currency not in Currency.__members__:
        return LABEL_SERVER_DECIMALS
    return Currency[currency].exponent or 0
