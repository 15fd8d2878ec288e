"""WooCommerce as a source: what the rest of the pipeline knows of it.

The REST API's client is imported where it is needed: a receiver needs the webhooks alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from esl_pipeline.model.check import Check
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.secrets import keys_for
from esl_pipeline.sources.source import Source, SourceError
from esl_pipeline.sources.woocommerce.facts import read_deliveries
from esl_pipeline.sources.woocommerce.settings import WooCommerceSettings
from esl_pipeline.sources.woocommerce.shop_names import SHOP, address, shop_id, shop_named
from esl_pipeline.sources.woocommerce.webhooks import WooCommerceWebhooks

if TYPE_CHECKING:
    from esl_pipeline.sources.woocommerce.client import Client
    from esl_pipeline.sources.woocommerce.reader import WooCommerceReader


class WooCommerceSource(Source[WooCommerceSettings]):
    """Products of WooCommerce shops; a shop's id is host and path of its site. Every shop counts its ids from 1."""

    system = "woocommerce"
    name = "WooCommerce"
    settings_class = WooCommerceSettings
    example_shop = "shop.example.com"
    shop_pattern = SHOP.pattern
    how_to_read = "set WOOCOMMERCE_KEYS (shop=ck_…:cs_…)"
    opens_others = "WOOCOMMERCE_KEYS opens other shops only"

    @classmethod
    def shop_id(cls, text: str) -> str | None:
        """Host and path in small letters, also of the site's address."""
        return shop_id(text)

    @classmethod
    def shop_named(cls, text: str) -> str | None:
        """Also for the address of a page of the site's admin."""
        return shop_named(text)

    @classmethod
    def image_hosts(cls, shop: str) -> tuple[str, ...]:
        """A shop keeps its images itself."""
        return (shop.partition("/")[0].partition(":")[0],)

    @classmethod
    def read_deliveries(cls, deliveries: Sequence[Mapping[str, Any]]) -> Facts:
        """See facts.read_deliveries."""
        return read_deliveries(deliveries)

    def webhooks(self) -> WooCommerceWebhooks:
        """Signed with the secret that was given to each webhook."""
        return WooCommerceWebhooks(self.settings.webhook_secrets)

    @property
    def reads_any(self) -> bool:
        """Whether there is a key."""
        return bool(self.settings.keys)

    def opens(self, shop: str) -> bool:
        """Whether there is a key of this shop."""
        return shop in self.settings.keys

    def reader(self, shop: str, *, patient: bool = True) -> WooCommerceReader:
        """By the REST API."""
        from esl_pipeline.sources.woocommerce.reader import WooCommerceReader

        return WooCommerceReader(self._client(shop, patient=patient), shop)

    def _client(self, shop: str, *, patient: bool) -> Client:
        from esl_pipeline.sources.woocommerce.client import Client

        key = self.settings.keys.get(shop)
        if key is None or shop_id(shop) != shop:
            raise SourceError(f"there is no key of the REST API for {shop}: {self.how_to_read}")
        url = self.settings.woocommerce_url or address(shop)
        return Client(url, key, shop=shop, retries=4 if patient else 2)

    def checks(self, mapped: Sequence[str], active: Sequence[str]) -> Iterator[Check]:
        """Whether keys and secrets are those of the shops that are mapped, and what each shop answers."""
        now, secrets = datetime.now(UTC), self.settings.webhook_secrets
        for shop in active if secrets else ():
            if not keys_for(secrets, shop, now):
                says = "cannot send webhooks: WOOCOMMERCE_WEBHOOK_SECRET has no valid secret for it"
                yield Check(f"shop {shop}", "warning", says)
        for name, shops in {
            "WOOCOMMERCE_KEYS": self.settings.keys.keys(),
            "WOOCOMMERCE_WEBHOOK_SECRET": {secret.shop for secret in secrets},
        }.items():
            for shop in sorted(shop for shop in shops if shop is not None and shop not in mapped):
                says = f"has an entry in {name}, but feeds no store: is it misspelt?"
                yield Check(f"shop {shop}", "warning", says)
        for shop in active:
            if self.opens(shop):
                yield from self._connection_checks(shop)

    def _connection_checks(self, shop: str) -> Iterator[Check]:
        from esl_pipeline.sources.woocommerce.connection import look, webhooks_problem

        with self._client(shop, patient=False) as client:
            reachable, says = look(client, shop)
            yield Check(f"shop {shop}", "ok" if reachable else "wrong", says)
            if reachable and (problem := webhooks_problem(client)):
                yield Check(f"shop {shop}", "warning", problem)
