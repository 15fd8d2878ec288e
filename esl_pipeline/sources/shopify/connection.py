"""How a shop's connection is: one look that `doctor`, `connect`, `status` and the daily check share."""

from dataclasses import dataclass

from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline.sources.shopify.admin.access import lacking, scope_missing
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import AdminAuthenticationError, AdminError, Problem


@dataclass(frozen=True)
class Connection:
    """What a shop's Admin API says of itself and of us.

    `problem` is the one sentence on what is wrong (None: nothing), `kind` its name where Shopify told it. What could
    not be asked is None or empty.
    """

    shop: str
    problem: str | None = None
    kind: Problem | None = None
    name: str | None = None
    scopes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
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
    def falls_forward(self) -> bool:
        """Whether Shopify answers with another version than the one asked for, which is retired then."""
        return self.version_served is not None and self.version_served != self.version_asked

    def describe(self) -> str:
        """All of it in one line: what is wrong, or what is right."""
        if self.problem is not None:
            return self.problem
        taxes = "with" if self.taxes_included else "without"
        return (
            f"{self.shop} is reachable: prices in {self.currency} {taxes} taxes, time zone {self.time_zone}, "
            f"Admin API {self.version_served or self.version_asked}, scopes {', '.join(self.scopes)}"
        )


def look(client: AdminClient, shop: str) -> Connection:
    """Ask a shop (its domain) with one query. Raises nothing for what is wrong: that is the connection's `problem`."""
    try:
        said = client.execute(queries.CONNECTION)
    except AdminError as error:
        kind = error.problem if isinstance(error, AdminAuthenticationError) else None
        return Connection(shop, str(error), kind, version_asked=client.version)
    scopes = tuple(sorted(scope["handle"] for scope in said["currentAppInstallation"]["accessScopes"]))
    missing = lacking(scopes)
    problem = scope_missing(shop, missing) if missing else None
    return Connection(
        shop,
        str(problem) if problem else None,
        problem.problem if problem else None,
        name=said["shop"]["name"],
        scopes=scopes,
        missing=missing,
        currency=said["shop"]["currencyCode"],
        taxes_included=said["shop"]["taxesIncluded"],
        time_zone=said["shop"]["ianaTimezone"],
        version_asked=client.version,
        version_served=client.version_served,
    )
