"""The pretend WooCommerce's failure switches: what of the REST API goes wrong, how, and how often."""

from pydantic import Field

from esl_pipeline.sandbox.shopify.faults import Faults, Rule

__all__ = ["CutBody", "Faults", "NoTotals", "Notice", "Redirect", "Status", "StrippedKey"]


class Status(Rule):
    """An HTTP error, with Retry-After as given."""

    status: int = Field(ge=400, le=599)
    retry_after: str | None = None
    body: str = ""


class CutBody(Rule):
    """An answer that looks whole but ends early: this part of it is there."""

    keep: float = Field(default=0.5, ge=0, lt=1)


class Notice(Rule):
    """PHP writes a notice before the answer, as on a site that shows its errors."""


class NoTotals(Rule):
    """Something in between takes the headers away that count a list."""


class StrippedKey(Rule):
    """The web server does not pass the Authorization header on."""


class Redirect(Rule):
    """The site has moved."""

    to: str
