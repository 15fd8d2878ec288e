"""The app as the pretend Shopify knows it: its id and secrets, where it is installed, and the tokens that it is given.

The client-credentials grant with every answer that Shopify has for it. What can be changed is what happens to an app in
life: secrets come and go, scopes change, it is uninstalled, the shop is frozen or renamed.
"""

import hmac
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from esl_pipeline.sandbox.shopify.answers import Answer

TOKEN_PATH = "/admin/oauth/access_token"  # noqa: S105
CLIENT_ID = "sandbox-app"
CLIENT_SECRET = "sandbox-app-secret"  # noqa: S105 (of an app that does not exist)
SCOPES = ("read_inventory", "read_locations", "read_products")
LIFE_SECONDS = 86_399.0

_SCOPE_OF = {
    "products": "read_products",
    "product": "read_products",
    "productVariants": "read_products",
    "productVariantsCount": "read_products",
    "inventoryItems": "read_inventory",
    "locations": "read_locations",
}

Word = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]


class AppEdit(BaseModel):
    """What is to change of the app or its shop; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    secrets: list[Word] | None = None
    """Newest first. Shopify signs webhooks with the oldest that is not revoked, and so does the sandbox."""
    scopes: list[Word] | None = None
    expires_in: float | None = Field(default=None, gt=0)
    newest_only: bool | None = None
    """Whether a new token ends the older ones; of Shopify that is not known."""
    same_organisation: bool | None = None
    installed: bool | None = None
    frozen: bool | None = None
    renamed_to: str | None = None
    """The shop's new domain, which this address names and no longer is; "" takes that back."""
    end_tokens: bool | None = None


@dataclass
class App:
    """One app in one shop. Safe to share between threads; only `edit` changes it."""

    client_id: str = CLIENT_ID
    secrets: list[str] = field(default_factory=lambda: [CLIENT_SECRET], repr=False)
    lasting_token: str | None = field(default=None, repr=False)
    """A token of the old kind, which is taken as well, as long as the app is installed."""
    prefix: str = "shpat_"
    """What its tokens begin with."""
    scopes: tuple[str, ...] = SCOPES
    expires_in: float = LIFE_SECONDS
    newest_only: bool = False
    same_organisation: bool = True
    installed: bool = True
    frozen: bool = False
    renamed_to: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, float] = {}
        self._asked: Counter[tuple[str, str]] = Counter()

    def edit(self, edit: AppEdit) -> None:
        """Change what is given. What an uninstalling sends is the sandbox's matter."""
        with self._lock:
            for name, value in edit.model_dump(exclude_none=True, exclude={"end_tokens"}).items():
                setattr(self, name, tuple(value) if name == "scopes" else value)
            if edit.end_tokens or not self.installed:
                self._tokens.clear()

    def shown(self) -> dict[str, Any]:
        """How it stands, with the token requests by client id and outcome; no secret, no token."""
        with self._lock:
            now = time.monotonic()
            return {
                "client_id": self.client_id,
                "secrets": len(self.secrets),
                "scopes": list(self.scopes),
                "expires_in": self.expires_in,
                "newest_only": self.newest_only,
                "same_organisation": self.same_organisation,
                "installed": self.installed,
                "frozen": self.frozen,
                "renamed_to": self.renamed_to,
                "live_tokens": sum(ends > now for ends in self._tokens.values()),
                "token_requests": [
                    {"client_id": client_id, "outcome": outcome, "count": count}
                    for (client_id, outcome), count in sorted(self._asked.items())
                ],
            }

    def requests(self, outcome: str | None = None) -> int:
        """How many token requests there were, with this outcome: `granted`, or the error's code."""
        with self._lock:
            return sum(count for (_, was), count in self._asked.items() if outcome in (None, was))

    def closed(self, path: str) -> Answer | None:
        """The answer to any request while the shop is frozen or has another address."""
        if self.frozen:
            return Answer({"errors": "Unavailable Shop"}, 402)
        if self.renamed_to:
            return Answer("", 301, {"Location": f"https://{self.renamed_to}{path}"})
        return None

    def takes(self, token: str | None) -> bool:
        """Whether this token is good now."""
        with self._lock:
            if token is None or not self.installed:
                return False
            if self.lasting_token is not None and hmac.compare_digest(
                token.encode(), self.lasting_token.encode()
            ):
                return True
            return time.monotonic() < self._tokens.get(token, 0)

    def grant(self, form: dict[str, str]) -> Answer:
        """The answer to a token request."""
        if closed := self.closed(TOKEN_PATH):
            self._note(form, str(closed.status))
            return closed
        with self._lock:
            code = self._wrong(form)
            if code is None:
                if self.newest_only:
                    self._tokens.clear()
                token = f"{self.prefix}{secrets.token_hex(16)}"
                self._tokens[token] = time.monotonic() + self.expires_in
        self._note(form, code or "granted")
        if code is not None:
            return Answer({"error": code, "error_description": _SAID[code]}, 400)
        return Answer(
            {"access_token": token, "scope": ",".join(self.scopes), "expires_in": _whole(self.expires_in)}
        )

    def denied(self, fields: set[str]) -> list[dict[str, Any]]:
        """The errors for those of a query's fields whose scope is not granted."""
        found = []
        for name in sorted(fields):
            scope = _SCOPE_OF.get(name)
            if scope is not None and scope not in self.scopes:
                access = f"`{scope}` access scope."
                said = {
                    "code": "ACCESS_DENIED",
                    "documentation": "https://shopify.dev/api/usage/access-scopes",
                    "requiredAccess": access,
                }
                message = f"Access denied for {name} field. Required access: {access}"
                found.append({"message": message, "path": [name], "extensions": said})
        return found

    def _wrong(self, form: dict[str, str]) -> str | None:
        if form.get("grant_type") != "client_credentials":
            return "unsupported_grant_type"
        if form.get("client_id") != self.client_id or form.get("client_secret") not in self.secrets:
            return "invalid_client"
        if not self.same_organisation:
            return "shop_not_permitted"
        return None if self.installed else "app_not_installed"

    def _note(self, form: dict[str, str], outcome: str) -> None:
        with self._lock:
            known = form.get("client_id") == self.client_id
            self._asked[self.client_id if known else "another", outcome] += 1


_SAID = {
    "unsupported_grant_type": "The grant type is not supported.",
    "invalid_client": "The client id or the client secret is wrong.",
    "shop_not_permitted": "Client credentials cannot be performed on this shop.",
    "app_not_installed": "The application is not installed on this shop.",
}


def _whole(seconds: float) -> float:
    return int(seconds) if seconds == int(seconds) else seconds
