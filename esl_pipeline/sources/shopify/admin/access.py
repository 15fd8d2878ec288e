"""Why a shop does not let us in, in one sentence each: the same in `doctor`, in a failed run and in the check. Pure."""

from collections.abc import Iterable

import httpx

from esl_pipeline.sources.shopify.admin.errors import AdminAuthenticationError
from esl_pipeline.sources.shopify.shop_names import shop_domain

NEEDED_SCOPES = ("read_products", "read_inventory", "read_locations")
"""The access scopes without which no label is right."""

_IN_SETTINGS = "SHOPIFY_API_KEY and SHOPIFY_API_SECRET, or the shop's entry in SHOPIFY_APPS"


def lacking(granted: Iterable[str]) -> tuple[str, ...]:
    """The needed scopes that are not granted. Who may write may read."""
    have = set(granted)
    return tuple(
        scope for scope in NEEDED_SCOPES if scope not in have and scope.replace("read_", "write_") not in have
    )


def wrong_secret(shop: str) -> AdminAuthenticationError:
    """Shopify knows no app with this id and any of these secrets."""
    return AdminAuthenticationError(
        f"The app's client id or secret for {shop} is wrong; copy both anew from the Dev Dashboard ({_IN_SETTINGS}).",
        problem="wrong_secret",
    )


def not_installed(shop: str) -> AdminAuthenticationError:
    """The app is not, or no longer, installed in the shop."""
    return AdminAuthenticationError(
        f"The app is not installed in {shop}; install it from the Dev Dashboard (an app made in the shop's own admin "
        "before 2026 has a token instead: SHOPIFY_ADMIN_TOKEN).",
        problem="not_installed",
    )


def other_organisation(shop: str) -> AdminAuthenticationError:
    """App and shop belong to different organisations, where the client-credentials grant is not given."""
    return AdminAuthenticationError(
        f"The app belongs to another organisation than {shop}; make one in the shop's own organisation and set its id "
        f"and secret (SHOPIFY_APPS={shop}=id:secret).",
        problem="other_organisation",
    )


def scope_missing(shop: str, missing: Iterable[str]) -> AdminAuthenticationError:
    """The app may not read something that labels need."""
    named = tuple(missing)
    scopes = f"scope{'s' if len(named) > 1 else ''} {', '.join(named)}"
    return AdminAuthenticationError(
        f"The app lacks the {scopes} in {shop}; add what is missing in the Dev Dashboard, release that version "
        "and approve it in the shop.",
        problem="scope_missing",
    )


def token_refused(shop: str, *, granted: bool) -> AdminAuthenticationError:
    """HTTP 401: the token is none, or ended, whatever was tried."""
    why = (
        ", though it was given a moment ago; try again later, and ask Shopify if it stays."
        if granted
        else "; check that SHOPIFY_ADMIN_TOKEN is this shop's, and that the app is still installed."
    )
    return AdminAuthenticationError(
        f"{shop} refuses the access token (HTTP 401){why}", problem="token_refused", http_status=401
    )


def frozen(shop: str) -> AdminAuthenticationError:
    """HTTP 402: the shop's plan is not paid, or it is paused."""
    return AdminAuthenticationError(
        f"{shop} is frozen (HTTP 402) until its owner has settled its plan with Shopify; its labels stay as they are.",
        problem="frozen",
        http_status=402,
    )


def renamed(shop: str, answer: httpx.Response) -> AdminAuthenticationError:
    """A redirect, which is never followed: the token or secret would go to wherever it says."""
    status = answer.status_code
    try:
        new = shop_domain(httpx.URL(answer.headers.get("Location", "")).host)
    except httpx.InvalidURL:
        new = None
    name = f"is called {new} now" if new and new != shop else "answers at another address now"
    return AdminAuthenticationError(
        f"{shop} {name} (HTTP {status}); map it under its new myshopify.com address, and set its token or app "
        "for that.",
        problem="renamed",
        http_status=status,
    )


def refusal(shop: str, answer: httpx.Response) -> AdminAuthenticationError | None:
    """What a status says of the shop itself, whatever was asked: frozen, renamed, or None."""
    if answer.status_code == 402:
        return frozen(shop)
    return renamed(shop, answer) if answer.is_redirect else None
