"""Shopify's settings: apps, tokens and webhook secrets, for which shops they are, and the Admin API's version."""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, ValidationInfo, field_validator

from esl_pipeline.environment import HttpUrl, entries
from esl_pipeline.sources.secrets import WebhookSecret, ending, read_secrets
from esl_pipeline.sources.shopify.apps import App, app_for, read_apps, read_word, signing
from esl_pipeline.sources.shopify.shop_names import shop_before, shop_named
from esl_pipeline.sources.source import SourceSettings


def _webhook_secrets(value: SecretStr) -> SecretStr:
    listed = entries(value)
    if not listed:
        raise ValueError("holds only commas; write the app's client secret, or remove it")
    read_secrets(listed, shop_before)
    return value


def _app_id(value: SecretStr) -> SecretStr:
    read_word(value.get_secret_value())
    return value


def _app_secrets(value: SecretStr) -> SecretStr:
    secrets = entries(value)
    if not secrets:
        raise ValueError("holds only commas; write the app's client secret, or remove it")
    for secret in secrets:
        read_word(secret)
    return value


def _apps(value: SecretStr) -> SecretStr:
    listed = entries(value)
    if not listed:
        raise ValueError("holds only commas; write shop.myshopify.com=id:secret, or remove it")
    read_apps(listed)
    return value


def _shop_tokens(value: SecretStr) -> SecretStr:
    parts = entries(value)
    if not parts:
        raise ValueError("holds only commas; write the Admin API token, or remove it")
    if len(parts) > 1 and not all("=" in part for part in parts):
        raise ValueError("has several tokens; write each as shop=token, e.g. demo.myshopify.com=shpat_…")
    shops = set[str | None]()
    for number, (shop, token) in enumerate(map(_shop_and_token, parts), 1):
        if shop == "":
            raise ValueError(f"entry {number} names its shop wrongly; write shop.myshopify.com=token")
        if not token:
            raise ValueError(f"entry {number} holds no token; write shop.myshopify.com=token, or remove it")
        if not re.fullmatch("[!-~]+", token):
            raise ValueError(f"entry {number} holds a token with characters that no token has; copy it anew")
        if shop in shops:
            raise ValueError(f"entry {number} is a second token for {shop}; remove one of them")
        shops.add(shop)
    return value


def _shop_and_token(part: str) -> tuple[str | None, str]:
    """`[shop=]token`: the shop's domain, None without one, "" for what is no shop's name; and the token."""
    before, separator, token = part.partition("=")
    if not separator:
        return None, part
    return shop_named(before) or "", token.strip()


class ShopifySettings(SourceSettings):
    """What the environment says of Shopify."""

    also_signing: ClassVar[tuple[str, ...]] = ("shopify_api_secret", "shopify_apps")

    shopify_webhook_secret: Annotated[SecretStr, AfterValidator(_webhook_secrets)] | None = Field(
        None,
        description="Client secret that signs the webhooks; default: the secrets of the apps below. Several, separated "
        "by commas, are all accepted. Each may be bound to a shop and end: [shop.myshopify.com=]secret[@2026-12-31].",
    )
    shopify_api_key: Annotated[SecretStr, AfterValidator(_app_id)] | None = Field(
        None,
        description="Client id of the app, from the Dev Dashboard; for all shops without an app of their own.",
    )
    shopify_api_secret: Annotated[SecretStr, AfterValidator(_app_secrets)] | None = Field(
        None,
        validate_default=True,
        description="Client secret of that app; while it is being replaced both, the newest first, by a comma.",
    )
    shopify_apps: Annotated[SecretStr, AfterValidator(_apps)] | None = Field(
        None,
        description="Shops with an app of their own: shop.myshopify.com=id:secret[:older secret], by commas.",
    )
    shopify_admin_token: Annotated[SecretStr, AfterValidator(_shop_tokens)] | None = Field(
        None,
        description="Lasting Admin API access token of an app made before 2026, instead of id and secret; for several "
        "shops shop=token pairs, separated by commas. With neither there is no reconciliation with Shopify.",
    )
    shopify_admin_url: HttpUrl | None = Field(
        None, description="Address of the Admin API, instead of each shop's own; for the sandbox."
    )
    shopify_api_version: Annotated[str, StringConstraints(pattern="^20[0-9]{2}-(01|04|07|10)$")] = Field(
        "2026-10", description="Version of the Admin API."
    )

    @field_validator("shopify_api_secret")
    @classmethod
    def _app_comes_in_pairs(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if "shopify_api_key" in info.data:
            if secret and not info.data["shopify_api_key"]:
                raise ValueError("is set without SHOPIFY_API_KEY; set both, or neither")
            if info.data["shopify_api_key"] and not secret:
                raise ValueError("is missing while SHOPIFY_API_KEY is set; set both, or neither")
        return secret

    @property
    def apps(self) -> tuple[App, ...]:
        """The apps whose id and secret are set: those of SHOPIFY_APPS, then the one of all other shops."""
        own = read_apps(entries(self.shopify_apps)) if self.shopify_apps else ()
        if self.shopify_api_key is None or self.shopify_api_secret is None:
            return own
        return (*own, App(self.shopify_api_key.get_secret_value(), entries(self.shopify_api_secret)))

    @property
    def webhook_secrets(self) -> tuple[WebhookSecret, ...]:
        """Every secret that may have signed a webhook, expired ones included; empty when none is set."""
        if self.shopify_webhook_secret is None:
            return tuple(WebhookSecret(secret.encode(), shop) for secret, shop in signing(self.apps))
        return read_secrets(entries(self.shopify_webhook_secret), shop_before)

    @property
    def signing_entries(self) -> SecretStr | None:
        """SHOPIFY_WEBHOOK_SECRET, or the same of the apps' secrets: for a process that need not know their ids."""
        if self.shopify_webhook_secret is not None or not self.apps:
            return self.shopify_webhook_secret
        return SecretStr(
            ",".join(f"{shop}={secret}" if shop else secret for secret, shop in signing(self.apps))
        )

    @property
    def admin_tokens(self) -> Mapping[str | None, SecretStr]:
        """Admin API tokens by their shop's domain; None is every shop (there is one token then, or none)."""
        if self.shopify_admin_token is None:
            return {}
        pairs = map(_shop_and_token, entries(self.shopify_admin_token))
        return {shop: SecretStr(token) for shop, token in pairs}

    def admin_access(self, shop: str) -> SecretStr | App | None:
        """What opens the Admin API of a shop's domain: a token or an app; None when there is neither.

        What is set for the shop goes before what is set for all, and a token before an app.
        """
        tokens, app = self.admin_tokens, app_for(self.apps, shop)
        own = app if app is not None and app.shop is not None else None
        return tokens.get(shop) or own or tokens.get(None) or app

    def warnings(self) -> Iterator[str]:
        """See SourceSettings.warnings."""
        if not self.webhook_secrets:
            yield (
                "SHOPIFY_WEBHOOK_SECRET is not set, nor SHOPIFY_API_KEY and SHOPIFY_API_SECRET: no webhook can be "
                "verified, so all are refused (401)."
            )
        yield from ending(self.webhook_secrets, "SHOPIFY_WEBHOOK_SECRET", datetime.now(UTC))
