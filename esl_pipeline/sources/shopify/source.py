"""Shopify as a source: what the rest of the pipeline knows of it.

The Admin API's client is imported where it is needed: a receiver needs the webhooks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from esl_pipeline.model.check import Check
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.secrets import keys_for
from esl_pipeline.sources.shopify.apps import App
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline.sources.shopify.shop_names import SHOP, shop_domain, shop_named
from esl_pipeline.sources.shopify.webhooks import ShopifyWebhooks
from esl_pipeline.sources.source import Source, SourceError, Verdict

if TYPE_CHECKING:
    from esl_pipeline.sources.shopify.admin import AdminClient
    from esl_pipeline.sources.shopify.reader import ShopifyReader


class ShopifySource(Source[ShopifySettings]):
    """Products of Shopify shops; a shop's id is its myshopify.com domain."""

    system = "shopify"
    name = "Shopify"
    settings_class = ShopifySettings
    ids_are_global = True
    example_shop = "my-shop.myshopify.com"
    shop_pattern = SHOP.pattern
    how_to_read = "set SHOPIFY_API_KEY and SHOPIFY_API_SECRET, or SHOPIFY_ADMIN_TOKEN"
    opens_others = "SHOPIFY_APPS or SHOPIFY_ADMIN_TOKEN opens other shops only"
    is_watched = True

    @classmethod
    def shop_id(cls, text: str) -> str | None:
        """The domain in small letters."""
        return shop_domain(text)

    @classmethod
    def shop_named(cls, text: str) -> str | None:
        """Also for an address or a bare name."""
        return shop_named(text)

    @classmethod
    def image_hosts(cls, shop: str) -> tuple[str, ...]:  # noqa: ARG003
        """Shopify keeps the images of all shops."""
        return ("cdn.shopify.com",)

    @classmethod
    def read_deliveries(cls, deliveries: Sequence[Mapping[str, Any]]) -> Facts:
        """See facts.read_deliveries."""
        return read_deliveries(deliveries)

    def webhooks(self) -> ShopifyWebhooks:
        """Signed with the app's secret."""
        return ShopifyWebhooks(self.settings.webhook_secrets)

    @property
    def reads_any(self) -> bool:
        """Whether there is an app or a token."""
        return bool(self.settings.admin_tokens or self.settings.apps)

    def opens(self, shop: str) -> bool:
        """Whether there is an app or a token for the shop."""
        return self.settings.admin_access(shop) is not None

    def reader(self, shop: str, *, patient: bool = True) -> ShopifyReader:
        """By the Admin API."""
        from esl_pipeline.sources.shopify.reader import ShopifyReader

        client = self.open_admin(shop, patient=patient) if shop_domain(shop) == shop else None
        if client is None:
            raise SourceError(f"there is no app and no Admin API token for {shop}: {self.how_to_read}")
        return ShopifyReader(client, shop)

    def open_admin(self, shop: str, *, patient: bool = True) -> AdminClient | None:
        """The Admin API of a shop's domain; None when there is neither token nor app for it. For `patient` see reader.

        Raises ValueError for what is no shop's domain, wherever it comes from: the token would go there.
        """
        from esl_pipeline.sources.shopify.admin import AdminClient
        from esl_pipeline.sources.shopify.admin.tokens import AppTokens

        if shop_domain(shop) != shop:
            raise ValueError(f"{shop!a} is no shop's domain: no token is sent there")
        access, address = (
            self.settings.admin_access(shop),
            self.settings.shopify_admin_url or f"https://{shop}",
        )
        if access is None:
            return None
        tokens = AppTokens(address, access, shop) if isinstance(access, App) else access
        retries, renewals = (4, 8) if patient else (2, 2)
        version = self.settings.shopify_api_version
        return AdminClient(address, tokens, version, shop=shop, retries=retries, renewals=renewals)

    def checks(self, mapped: Sequence[str], active: Sequence[str]) -> Iterator[Check]:
        """Whether tokens, apps and secrets are those of the mapped shops, and what each shop's Admin API says."""
        yield from self._secret_checks(active)
        yield from self._misspelt(mapped)
        for shop in active:
            yield from self._connection_checks(shop)

    def _secret_checks(self, active: Sequence[str]) -> Iterator[Check]:
        now, secrets = datetime.now(UTC), self.settings.webhook_secrets
        signers = "SHOPIFY_WEBHOOK_SECRET" if self.settings.shopify_webhook_secret else "SHOPIFY_APPS"
        for shop in active if secrets else ():
            if not keys_for(secrets, shop, now):
                says = f"cannot send webhooks: {signers} has no valid secret for it"
                yield Check(f"shop {shop}", "warning", says)

    def _misspelt(self, mapped: Sequence[str]) -> Iterator[Check]:
        settings = self.settings
        secrets = settings.webhook_secrets if settings.shopify_webhook_secret else ()
        for name, shops in {
            "SHOPIFY_ADMIN_TOKEN": settings.admin_tokens.keys(),
            "SHOPIFY_APPS": {app.shop for app in settings.apps},
            "SHOPIFY_WEBHOOK_SECRET": {secret.shop for secret in secrets},
        }.items():
            for shop in sorted(shop for shop in shops if shop is not None and shop not in mapped):
                says = f"has an entry in {name}, but feeds no store: is it misspelt?"
                yield Check(f"shop {shop}", "warning", says)

    def _connection_checks(self, shop: str) -> Iterator[Check]:
        """What the Admin API says, in one sentence; a shop without token and app has been told of already."""
        from esl_pipeline.sources.shopify.connection import look

        try:
            client = self.open_admin(shop, patient=False) if shop_domain(shop) == shop else None
        except ValueError as error:
            yield Check(f"shop {shop}", "wrong", f"is not asked: {error} (SHOPIFY_ADMIN_URL)")
            return
        if client is None:
            return
        with client:
            found = look(client, shop)
        if found.retired:
            yield Check(f"shop {shop}", "warning", found.retired)
        yield Check(f"shop {shop}", "wrong" if found.problem else "ok", found.describe())

    def watch(
        self, row: Mapping[str, Any], *, base_url: str | None, patience: timedelta, now: datetime
    ) -> Verdict:
        """See watch.watch."""
        from esl_pipeline.sources.shopify.watch import watch

        client = self.open_admin(row["source_store_id"])
        with client or nullcontext():
            return watch(row, client, base_url=base_url, patience=patience, now=now)
