"""The pretend Shopify as a whole: a shop, its Admin API, and the webhooks that its changes send."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from esl_pipeline.sandbox.shopify.admin import Admin, load_schema
from esl_pipeline.sandbox.shopify.bulk import Operations
from esl_pipeline.sandbox.shopify.catalogue import LOCATION_ID, WAREHOUSE_ID, Product, Variant
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.faults import Faults
from esl_pipeline.sandbox.shopify.keep import keep
from esl_pipeline.sandbox.shopify.oauth import App, AppEdit
from esl_pipeline.sandbox.shopify.shop import Shop
from esl_pipeline.sandbox.shopify.webhooks import Delivery, Webhooks

TOKEN = "shpat_sandbox"  # noqa: S105 (of a shop that does not exist)

Price = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,2})?$")]


class _Edit(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class ProductEdit(_Edit):
    """What is to change of a product; what is left out stays."""

    title: str | None = Field(default=None, min_length=1, max_length=255)
    status: Literal["active", "draft", "archived", "unlisted"] | None = None


class VariantEdit(_Edit):
    """What is to change of a variant; what is left out stays. Prices get two decimals."""

    price: Price | None = None
    compare_at_price: Price | Literal[""] | None = None
    barcode: str | None = Field(default=None, max_length=255)
    stock: int | None = Field(default=None, ge=-(10**9), le=10**9)
    location_id: Literal["71203456789", "71203456790"] = "71203456789"


class ShopifySandbox:
    """A context manager over its parts: bulk operations stop at the end. The sender is the caller's to close.

    With a `file` every edit is kept there before it is told of.
    """

    def __init__(
        self,
        shop: Shop,
        *,
        app: App | None = None,
        sender: WebhookSender | None = None,
        file: Path | None = None,
    ) -> None:
        self.shop = shop
        self._file = file
        if file is not None:
            shop.subscriptions.changed = lambda: keep(shop, file)
        self.webhooks = Webhooks(shop)
        self.faults = Faults()
        self.sender = sender
        self.app = app or App(lasting_token=TOKEN)
        schema = load_schema()
        self.operations = Operations(shop, schema, self.faults, self.app)
        self.admin = Admin(shop, self.operations, schema, self.faults, self.app)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.operations.close()

    def edit_app(self, edit: AppEdit) -> None:
        """Change the app or its shop. Uninstalled, it is told so once more, and its subscriptions are gone for good."""
        was_installed = self.app.installed
        self.app.edit(edit)
        if edit.renamed_to:
            self.webhooks.domain = edit.renamed_to
        if edit.secrets and self.sender is not None:
            self.sender.secret = self.app.secrets[-1]
        if was_installed and not self.app.installed:
            if self.sender is not None:
                with self.shop.lock:
                    self.sender.send(self.webhooks.uninstalled())
                self.sender.unsubscribe()
            self.shop.subscriptions.clear()

    def edit_product(self, product: Product, edit: ProductEdit) -> None:
        """Change a product and send its webhook."""
        with self.shop.lock:
            if edit.title is not None:
                self.shop.rename(product, edit.title)
            if edit.status is not None:
                self.shop.set_status(product, edit.status)
            self._send(self.webhooks.updated(product))

    def edit_variant(self, product: Product, variant: Variant, edit: VariantEdit) -> None:
        """Change a variant and send its product's webhook, and one of the stock when that changed."""
        location = int(edit.location_id)
        with self.shop.lock:
            if edit.price is not None:
                self.shop.set_price(product, variant, _two_decimals(edit.price))
            if edit.compare_at_price is not None:
                self.shop.set_compare_at_price(product, variant, _two_decimals(edit.compare_at_price))
            if edit.barcode is not None:
                self.shop.set_barcode(product, variant, edit.barcode)
            if edit.stock is not None:
                self.shop.set_stock(product, variant, edit.stock, location)
                self._send(self.webhooks.level(variant, location))
            self._send(self.webhooks.updated(product))

    def add(self, product: Product) -> None:
        """Put a product on sale and send its webhook."""
        with self.shop.lock:
            self.shop.add(product)
            self._send(self.webhooks.created(product))

    def delete(self, product: Product) -> None:
        """Delete a product and send its webhook."""
        with self.shop.lock:
            self.shop.delete(product)
            self._send(self.webhooks.deleted(product))

    def _send(self, delivery: Delivery) -> None:
        if self._file is not None:
            keep(self.shop, self._file)
        if self.sender is not None:
            self.sender.send(delivery)


def product_card(product: Product, variants: int | None = None) -> Mapping[str, Any]:
    """A product as the page shows it, with all or the first so many variants. Ids are text: some are beyond 2^53."""
    return {
        "id": str(product.id),
        "title": product.title,
        "vendor": product.vendor,
        "status": product.status,
        "gift_card": product.gift_card,
        "image": product.photos[0].src if product.photos else None,
        "updated_at": product.updated_at.isoformat(),
        "variants_total": len(product.variants),
        "variants": [_variant_card(variant) for variant in product.variants[:variants]],
    }


def _available(variant: Variant, location_id: int) -> int | None:
    level = variant.levels.get(location_id)
    return level.available if level else None


def found_products(shop: Shop, search: str) -> list[Product]:
    """Products whose title, vendor, id, or a variant's code or SKU, contains `search`; in the shop's order."""
    wanted = search.casefold().strip()
    with shop.lock:
        return [product for product in shop.products.values() if wanted in _search_text(product, wanted)]


def _search_text(product: Product, wanted: str) -> str:
    if not wanted:
        return ""
    codes = (f"{variant.barcode}\n{variant.sku}" for variant in product.variants)
    return "\n".join([product.title, product.vendor, str(product.id), *codes]).casefold()


def _variant_card(variant: Variant) -> Mapping[str, Any]:
    return {
        "id": str(variant.id),
        "title": variant.title,
        "price": variant.price or "",
        "compare_at_price": variant.compare_at_price or "",
        "barcode": variant.barcode or "",
        "sku": variant.sku or "",
        "stock": _available(variant, LOCATION_ID),
        "warehouse": _available(variant, WAREHOUSE_ID),
    }


def _two_decimals(price: str) -> str | None:
    """As Shopify keeps a price: "5" is "5.00"; nothing is null."""
    if not price:
        return None
    whole, _, cents = price.partition(".")
    return f"{int(whole)}.{cents:0<2}"
