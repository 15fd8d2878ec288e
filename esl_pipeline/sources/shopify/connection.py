"""How a shop's connection is: one look that `doctor`, `connect`, `status` and the daily check share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline.sources.shopify.admin.access import lacking, scope_missing
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import AdminError


@dataclass(frozen=True)
class Connection:
    """What a shop's Admin API says of itself and of us.

    `problem` is the one sentence on what is wrong (None: nothing). What could not be asked is None or empty.
    """

    shop: str
    problem: str | None = None
    name: str | None = None
    scopes: tuple[str, ...] = ()
    currency: str | None = None
    taxes_included: bool | None = None
    time_zone: str | None = None
    version_asked: str | None = None
    version_served: str | None = None

    @property
    def reachable(self) -> bool:
        """Whether the shop answered; it may still lack a scope."""
        return self.currency is not None

    @property
    def retired(self) -> str | None:
        """A sentence where Shopify answers with another version than the one asked for, which is retired then."""
        if self.version_served in (None, self.version_asked):
            return None
        return (
            f"Shopify has retired Admin API {self.version_asked} and answers with {self.version_served}: "
            "install a newer esl-pipeline, or set SHOPIFY_API_VERSION"
        )

    @property
    def prices(self) -> str:
        """What its prices and times are in, in words."""
        taxes = "with" if self.taxes_included else "without"
        return f"prices in {self.currency} {taxes} taxes, time zone {self.time_zone}"

    def describe(self) -> str:
        """All of it in one line: what is wrong, or what is right."""
        if self.problem is not None:
            return self.problem
        return (
            f"{self.shop} is reachable: {self.prices}, Admin API {self.version_served or self.version_asked}, "
            f"scopes {', '.join(self.scopes)}"
        )


def look(client: AdminClient, shop: str) -> Connection:
    """Ask a shop (its domain) with one query. Raises nothing for what is wrong: that is the connection's `problem`."""
    try:
        return _read(client.execute(queries.CONNECTION), client, shop)
    except AdminError as error:
        problem = str(error)
    except (KeyError, TypeError):
        problem = f"{shop} answers with something else than was asked for: something in between speaks"
    return Connection(shop, problem, version_asked=client.version)


def _read(said: Mapping[str, Any], client: AdminClient, shop: str) -> Connection:
    scopes = tuple(sorted(scope["handle"] for scope in said["currentAppInstallation"]["accessScopes"]))
    missing = lacking(scopes)
    return Connection(
        shop,
        str(scope_missing(shop, missing)) if missing else None,
        name=said["shop"]["name"],
        scopes=scopes,
        currency=said["shop"]["currencyCode"],
        taxes_included=said["shop"]["taxesIncluded"],
        time_zone=said["shop"]["ianaTimezone"],
        version_asked=client.version,
        version_served=client.version_served,
    )
