"""WooCommerce's settings: the REST API's keys and the webhooks' secrets, and for which shops they are."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from esl_pipeline.addresses import is_loopback
from esl_pipeline.environment import HttpUrl, entries
from esl_pipeline.sources.secrets import WebhookSecret, ending, read_secrets
from esl_pipeline.sources.source import SourceSettings
from esl_pipeline.sources.woocommerce.shop_names import shop_before, shop_named

_KEY = re.compile(r"(ck_[0-9A-Za-z]{8,100}):(cs_[0-9A-Za-z]{8,100})")


@dataclass(frozen=True)
class Key:
    """What opens the REST API of one shop."""

    consumer_key: str = field(repr=False)
    consumer_secret: str = field(repr=False)


def _keys(value: SecretStr) -> SecretStr:
    listed = entries(value)
    if not listed:
        raise ValueError("holds only commas; write shop.example.com=ck_…:cs_…, or remove it")
    _read_keys(listed)
    return value


def _read_keys(listed: tuple[str, ...]) -> dict[str, Key]:
    """Keys by shop. Raises ValueError, which names an entry by its number and not its text."""
    keys: dict[str, Key] = {}
    for number, entry in enumerate(listed, 1):
        before, separator, key = entry.partition("=")
        shop, found = shop_named(before), _KEY.fullmatch(key.strip())
        if not separator or shop is None:
            raise ValueError(f"entry {number} names its shop wrongly; write shop.example.com=ck_…:cs_…")
        if found is None:
            raise ValueError(
                f"entry {number} holds no key; write shop.example.com=ck_…:cs_…, consumer key and secret as "
                "WooCommerce showed them"
            )
        if shop in keys:
            raise ValueError(f"entry {number} is a second key for {shop}; remove one of them")
        keys[shop] = Key(found[1], found[2])
    return keys


def _webhook_secrets(value: SecretStr) -> SecretStr:
    listed = entries(value)
    if not listed:
        raise ValueError("holds only commas; write the secret of the webhooks, or remove it")
    read_secrets(listed, shop_before)
    return value


def _loopback(url: str) -> str:
    if not url.startswith("http://") or not is_loopback(urlsplit(url).hostname or ""):
        raise ValueError(
            "is not http:// to this machine; it is for the sandbox alone, a shop's id is its address"
        )
    return url


class WooCommerceSettings(SourceSettings):
    """What the environment says of WooCommerce."""

    woocommerce_keys: Annotated[SecretStr, AfterValidator(_keys)] | None = Field(
        None,
        description="Keys of the REST API, with permission to read: shop.example.com=ck_…:cs_…, by commas. A key goes "
        "to its own shop alone. Without one a shop is not reconciled.",
    )
    woocommerce_webhook_secret: Annotated[SecretStr, AfterValidator(_webhook_secrets)] | None = Field(
        None,
        description="Secret of the webhooks, without commas. Several, separated by commas, are all accepted. Each may "
        "be bound to a shop and end: [shop.example.com=]secret[@2026-12-31].",
    )
    woocommerce_url: Annotated[HttpUrl, AfterValidator(_loopback)] | None = Field(
        None, description="Address of the REST API's site, instead of each shop's own; for the sandbox."
    )

    @property
    def keys(self) -> Mapping[str, Key]:
        """The REST API's keys by their shop."""
        return _read_keys(entries(self.woocommerce_keys)) if self.woocommerce_keys else {}

    @property
    def webhook_secrets(self) -> tuple[WebhookSecret, ...]:
        """Every secret that may have signed a webhook, expired ones included; empty when none is set."""
        if self.woocommerce_webhook_secret is None:
            return ()
        return read_secrets(entries(self.woocommerce_webhook_secret), shop_before)

    def warnings(self) -> Iterator[str]:
        """See SourceSettings.warnings."""
        if not self.webhook_secrets:
            yield (
                "WOOCOMMERCE_WEBHOOK_SECRET is not set: no webhook of WooCommerce can be verified, so all are refused "
                "(401); changes come by reading, every ESL_CATCH_UP_MINUTES."
            )
        yield from ending(self.webhook_secrets, "WOOCOMMERCE_WEBHOOK_SECRET", datetime.now(UTC))
