"""Connecting a shop, one step after the other: who it is, where it keeps stock, and who is told of its changes.

Each step says one line, or several; the first that fails raises NotConnectedError, and the later ones are not tried.
All of them may be repeated at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from esl_pipeline.sources.shopify.admin import AdminClient, read_locations
from esl_pipeline.sources.shopify.connection import Connection, look
from esl_pipeline.sources.shopify.subscriptions import (
    WANTED,
    Comparison,
    compare,
    mend,
    read_ours,
    read_subscriptions,
    remove,
)

Kind = Literal["api", "toml"]
"""Who makes a shop's subscriptions: we, in the shop, or the app, by its shopify.app.toml."""

_LEFT = "left to the app's shopify.app.toml; judged by the deliveries that arrive"


@dataclass(frozen=True)
class Line:
    """What was found or done in one step."""

    what: str
    says: str
    state: Literal["ok", "warning", "wrong"] = "ok"


Say = Callable[[Line], None]


class NotConnectedError(Exception):
    """A step failed; the text is what its line says."""


def fail(say: Say, what: str, says: str) -> NotConnectedError:
    """Say what is wrong; what to raise for it."""
    say(Line(what, says, "wrong"))
    return NotConnectedError(says)


def greet(client: AdminClient, shop: str, access: str, say: Say) -> Connection:
    """The shop, asked by its Admin API; `access` tells how it was opened."""
    found = look(client, shop)
    if not found.reachable:
        raise fail(say, "access", found.problem or "the shop did not answer")
    say(Line("access", access))
    if found.problem is not None:
        raise fail(say, "scopes", found.problem)
    say(Line("scopes", f"{', '.join(found.scopes)}: all that is needed"))
    advice = "" if found.taxes_included else ": shelf prices must show them in most countries"
    say(Line("shop", f"{found.name}: {found.prices}{advice}"))
    if found.retired:
        say(Line("Admin API", found.retired, "warning"))
    return found


def locate(client: AdminClient, wanted: str | None, say: Say) -> str | None:
    """The id of the location whose stock counts: the only one, or the one of this name or id; None: not chosen."""
    places = [place for place in read_locations(client) if place["is_active"]]
    named = ", ".join(f"{place['name']} ({place['location_id']})" for place in places)
    if wanted is not None:
        by_name = wanted.strip().casefold()
        chosen = [
            place for place in places if by_name in (str(place["name"]).casefold(), place["location_id"])
        ]
        if len(chosen) != 1:
            many = "several locations are" if chosen else "no active location is"
            raise fail(say, "locations", f"{many} called {wanted}; there are {named}: write the id")
        places = chosen
    if len(places) == 1:
        say(Line("location", f"{places[0]['name']} ({places[0]['location_id']})"))
        return str(places[0]["location_id"])
    say(Line("locations", f"{named}; for stock on labels choose one with --location" if named else "none"))
    return None


def subscribe(client: AdminClient, address: str, say: Say) -> bool:
    """Make the shop's own subscriptions as they must be; whether anything had to be made or mended."""
    found = compare(read_subscriptions(client), address)
    done = list(mend(client, found))
    made = sum(step.startswith("subscribed") for step in done)
    says = f"{len(WANTED)} topics go to {address}"
    if made == len(done) > 0:
        says += f", {made} of them subscribed now"
    say(Line("subscriptions", says + _foreign(found)))
    for step in done if made < len(done) else ():
        say(Line("mended", step))
    return bool(done)


def leave_to_the_app(client: AdminClient, *, known: bool, say: Say) -> None:
    """The app's own configuration subscribes. Ours go, once it was told before (known) and so may be released."""
    ours = read_ours(client)
    if not ours:
        say(Line("subscriptions", _LEFT))
    elif known:
        remove(client, ours)
        say(Line("subscriptions", f"left to the app's shopify.app.toml; {len(ours)} made by API are removed"))
    else:
        says = (
            f"left to the app's shopify.app.toml; {len(ours)} made by API stay until it is released: then connect once "
            "more, which removes them"
        )
        say(Line("subscriptions", says, "warning"))


def unsubscribe(client: AdminClient, say: Say) -> None:
    """Remove what is ours."""
    found = compare(read_subscriptions(client), "")
    remove(client, found.ours)
    say(Line("subscriptions", f"{len(found.ours)} removed{_foreign(found)}"))


def show_subscriptions(client: AdminClient, address: str, kind: Kind, say: Say) -> None:
    """How the shop's subscriptions are, and nothing changed."""
    found = compare(read_subscriptions(client), address)
    if kind == "toml":
        doubled = f"; {len(found.ours)} made by API double them" if found.ours else ""
        say(Line("subscriptions", _LEFT + doubled, "warning" if doubled else "ok"))
    elif problems := found.problems():
        say(Line("subscriptions", "; ".join(problems), "wrong"))
    else:
        say(Line("subscriptions", f"{len(WANTED)} topics go to {address}{_foreign(found)}"))


def _foreign(found: Comparison) -> str:
    return f"; {len(found.foreign)} foreign ones left alone" if found.foreign else ""
