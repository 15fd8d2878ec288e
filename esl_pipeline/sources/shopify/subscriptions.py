"""A shop's webhook subscriptions: what is wanted, what is there, what is wrong with it, and setting it right.

Of two kinds: `api`, made in one shop by the mutations here, or `toml`, written in the app's `shopify.app.toml` for all
of its shops. The API lists only the first kind, so the second can be judged by nothing but the deliveries that arrive.

Ours is what has one of our topics and an address that ends as ours do, on whatever host: a former address must be found
again. Everything else is left alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from esl_pipeline.http import is_safe
from esl_pipeline.sources.shopify.admin import queries
from esl_pipeline.sources.shopify.admin.client import AdminClient
from esl_pipeline.sources.shopify.admin.errors import AdminQueryError
from esl_pipeline.sources.shopify.topics import COMPLIANCE_TOPICS, PATH, TOPICS, UNINSTALLED

WANTED = (*TOPICS, UNINSTALLED)

_PAGE = 100
_BY_NAME = {topic.upper().replace("/", "_"): topic for topic in WANTED}
_NAMES = {topic: name for name, topic in _BY_NAME.items()}


@dataclass(frozen=True)
class Subscription:
    """One as Shopify lists it. `topic` is written as in a delivery's header where it is wanted, else as in the API."""

    id: str
    topic: str
    uri: str
    format: str = "JSON"
    narrowed: bool = False
    """Whether a filter or a list of fields keeps something from us."""


@dataclass(frozen=True)
class Comparison:
    """What is there, held against what is wanted at `address`.

    right: one for each topic that has one. missing: topics without any of ours. elsewhere: ours that need another
    address or format. narrowed: ours that must be made anew, for they keep something back. doubled: ours beside
    another of the same topic. foreign: all others.
    """

    address: str
    right: tuple[Subscription, ...] = ()
    missing: tuple[str, ...] = ()
    elsewhere: tuple[Subscription, ...] = ()
    narrowed: tuple[Subscription, ...] = ()
    doubled: tuple[Subscription, ...] = ()
    foreign: tuple[Subscription, ...] = ()

    @property
    def ours(self) -> tuple[Subscription, ...]:
        """All of ours, right or not."""
        return (*self.right, *self.elsewhere, *self.narrowed, *self.doubled)

    def problems(self) -> list[str]:
        """A sentence for each kind of trouble; none when all is as wanted."""
        said = []
        if self.missing:
            said.append(f"nothing is subscribed for {', '.join(self.missing)}")
        if away := [one for one in self.elsewhere if one.uri != self.address]:
            uris = ", ".join(sorted({one.uri for one in away}))
            said.append(f"{_topics(away)} go to {uris} instead of {self.address}")
        if not_json := [one for one in self.elsewhere if one.uri == self.address]:
            said.append(f"{_topics(not_json)} come as {not_json[0].format} instead of JSON")
        if self.narrowed:
            said.append(f"a filter or a list of fields keeps back parts of {_topics(self.narrowed)}")
        if self.doubled:
            said.append(f"{_topics(self.doubled)} are subscribed more than once")
        return said


def address_at(base_url: str) -> str:
    """Where the receiver at APP_BASE_URL takes every topic.

    Raises ValueError for an address that Shopify does not send to: http:// anywhere but on this machine.
    """
    if not is_safe(base_url):
        raise ValueError(f"{base_url} is no address that Shopify sends webhooks to: it has to be https://")
    return base_url.rstrip("/") + PATH


def read_subscriptions(client: AdminClient) -> list[Subscription]:
    """Those that this app has made in this shop through the API. Raises AdminError."""
    found: list[Subscription] = []
    after = None
    while True:
        page = client.execute(queries.SUBSCRIPTIONS, {"first": _PAGE, "after": after})["webhookSubscriptions"]
        found += [
            Subscription(
                node["id"],
                _BY_NAME.get(node["topic"], node["topic"]),
                node["uri"],
                node["format"],
                bool(node["filter"] or node["includeFields"]),
            )
            for node in page["nodes"]
        ]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


def read_ours(client: AdminClient) -> list[Subscription]:
    """Those of them that are ours. Raises AdminError."""
    return [one for one in read_subscriptions(client) if is_ours(one)]


def compare(found: Iterable[Subscription], address: str) -> Comparison:
    """Hold what is there against what is wanted. Pure."""
    ours: dict[str, list[Subscription]] = {topic: [] for topic in WANTED}
    foreign = list[Subscription]()
    for one in found:
        (ours[one.topic] if is_ours(one) else foreign).append(one)
    right, elsewhere, narrowed, doubled = list[Subscription](), list[Subscription](), list[Subscription](), []
    for several in ours.values():
        # The one that needs least is kept; which of equals is always the same.
        for place, one in enumerate(sorted(several, key=lambda one: (_needs(one, address), one.id))):
            if place:
                doubled.append(one)
            else:
                (right, elsewhere, narrowed)[_needs(one, address)].append(one)
    missing = tuple(topic for topic, several in ours.items() if not several)
    kinds = (right, elsewhere, narrowed, doubled, foreign)
    return Comparison(address, tuple(right), missing, *map(tuple, kinds[1:]))


def is_ours(one: Subscription) -> bool:
    """Whether it has a topic of ours and an address like ours, on whatever host."""
    path = urlsplit(one.uri).path.rstrip("/")
    return one.topic in WANTED and path.endswith((PATH, f"{PATH}/{one.topic}"))


def _needs(one: Subscription, address: str) -> int:
    """0 nothing, 1 another address, 2 to be made anew."""
    return 2 if one.narrowed else int(one.uri != address or one.format != "JSON")


def mend(client: AdminClient, found: Comparison) -> Iterator[str]:
    """Make what is missing, move what is elsewhere, drop what is double; yields each step done, in words.

    New ones come before old ones go, so that nothing is missed in between; what arrives twice meanwhile does no harm.
    Raises AdminError; AdminQueryError names what Shopify refused, when all else is done and it is still wrong.
    """
    refused: dict[str, None] = {}

    def does(query: str, **variables: str) -> bool:
        said = next(iter(client.execute(query, variables).values()))
        refused.update((error["message"], None) for error in said["userErrors"])
        return not said["userErrors"]

    # One that is narrowed has the very topic and address of the one to be made: Shopify wants no two of these.
    for one in (*found.narrowed, *found.doubled):
        if one.uri == found.address and does(queries.UNSUBSCRIBE, id=one.id):
            yield f"removed one of {one.topic}"
    for topic in (*found.missing, *(one.topic for one in found.narrowed)):
        if does(queries.SUBSCRIBE, topic=_NAMES[topic], uri=found.address):
            yield f"subscribed {topic}"
    for one in found.elsewhere:
        if does(queries.MOVE_SUBSCRIPTION, id=one.id, uri=found.address):
            yield f"moved {one.topic} here from {one.uri}" + (" as JSON" if one.format != "JSON" else "")
    for one in (*found.narrowed, *found.doubled):
        if one.uri != found.address and does(queries.UNSUBSCRIBE, id=one.id):
            yield f"removed one of {one.topic} at {one.uri}"
    # An answer that was lost makes a repeated call be refused although it was done: only what is there counts.
    if refused and (left := compare(read_subscriptions(client), found.address).problems()):
        raise AdminQueryError(
            f"Shopify refused to change subscriptions ({'; '.join(refused)}): {'; '.join(left)}"
        )


def remove(client: AdminClient, ones: Sequence[Subscription]) -> None:
    """Delete subscriptions. One that is gone already is no trouble.

    Raises AdminError; AdminQueryError names what Shopify refused, when all else is done and some are still there.
    """
    refused: dict[str, None] = {}
    for one in ones:
        said = client.execute(queries.UNSUBSCRIBE, {"id": one.id})["webhookSubscriptionDelete"]
        refused.update((error["message"], None) for error in said["userErrors"])
    if refused and (left := {one.id for one in read_subscriptions(client)} & {one.id for one in ones}):
        topics = _topics([one for one in ones if one.id in left])
        raise AdminQueryError(f"Shopify refused to remove subscriptions ({'; '.join(refused)}): {topics}")


def as_toml(address: str, api_version: str) -> str:
    """The block for shopify.app.toml, the compliance topics with it."""
    return (
        f'[webhooks]\napi_version = "{api_version}"\n\n'
        f'  [[webhooks.subscriptions]]\n  topics = [{_listed(WANTED)}]\n  uri = "{address}"\n\n'
        f'  [[webhooks.subscriptions]]\n  compliance_topics = [{_listed(COMPLIANCE_TOPICS)}]\n  uri = "{address}"\n'
    )


def _listed(topics: Sequence[str]) -> str:
    return "".join(f'\n    "{topic}",' for topic in topics) + "\n  "


def _topics(ones: Sequence[Subscription]) -> str:
    return ", ".join(sorted({one.topic for one in ones}))
