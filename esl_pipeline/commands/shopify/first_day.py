"""A shop's first day, from its app's id and secret to labels that somebody can look at; how it stands, and its last.

What `esl-pipeline shopify`, `up` and `demo` do. Nothing here is lost when it stops half-way: each step may be repeated.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.labels.mapping import StoreMapping
from esl_pipeline.model.shop import Shop
from esl_pipeline.settings import Settings
from esl_pipeline.sources.shopify.admin import AdminClient, AdminError
from esl_pipeline.sources.shopify.apps import App
from esl_pipeline.sources.shopify.connect import (
    Kind,
    Line,
    NotConnectedError,
    Say,
    fail,
    greet,
    leave_to_the_app,
    locate,
    show_subscriptions,
    subscribe,
    unsubscribe,
)
from esl_pipeline.sources.shopify.reader import ShopifyReader
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline.sources.shopify.subscriptions import address_at, as_toml, read_ours
from esl_pipeline.sources.shopify.watch import arrivals
from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.snapshot import SnapshotLostError, read_snapshot

Row = Mapping[str, Any]

# Webhooks that came so lately say that somebody else has subscribed.
_LATELY = timedelta(days=7)


@dataclass(frozen=True)
class Wish:
    """What is wanted of a shop. kind: None goes on as before, with `api` for a new one. store: its labels' store."""

    shop: str
    kind: Kind | None = None
    store: str | None = None
    location: str | None = None
    shared: bool = False


@dataclass(frozen=True)
class Connected:
    """mapping: of the store, where one was asked for, as it is now; is_new: made just now, in dry run.

    toml: the block for the app's shopify.app.toml, where the app subscribes.
    """

    mapping: Row | None = None
    is_new: bool = False
    toml: str | None = None


def connect(settings: Settings, buffer: Buffer, wish: Wish, *, by: str, say: Say) -> Connected:
    """Connect a shop, and with a store give it labels there, in dry run. Raises NotConnectedError, BufferError."""
    shop = _named(wish.shop)
    address = _address(settings, say)
    with _opened(settings, wish.shop, say) as (client, access):
        found = greet(client, wish.shop, access, say)
        location = locate(client, wish.location, say)
        row = _connection(buffer, shop)
        kind = _kind(client, row, wish.kind, say)
        toml = None
        if kind == "toml":
            leave_to_the_app(client, known=row.get("subscriptions") == "toml", say=say)
            anew, toml = False, as_toml(address, settings.of(ShopifySettings).shopify_api_version)
        else:
            anew = subscribe(client, address, say)
        buffer.connection_set(shop, kind, by, anew=anew)
        if wish.store is None:
            return Connected(toml=toml)
        policy = {"expected_currency": found.currency, "location_id": location}
        kept, is_new = _mapping(buffer, wish, {k: v for k, v in policy.items() if v}, by=by)
        mapping = StoreMapping.of(kept)
        _say_mapping(mapping, is_new, say)
        if mapping.is_active:
            _read_first(buffer, client, shop, say)
            _preview(buffer, shop, wish.store, say)
        return Connected(kept, is_new, toml)


def disconnect(settings: Settings, buffer: Buffer, name: str, *, by: str, say: Say) -> None:
    """Remove a shop's subscriptions and pause its mappings; its labels stay. Raises NotConnectedError, BufferError.

    Where the shop does not let us in, its subscriptions are said to be left; the rest is done all the same.
    """
    shop = _named(name)
    if _connection(buffer, shop).get("subscriptions") == "toml":
        says = "the app's own: remove them from shopify.app.toml, or uninstall the app"
        say(Line("subscriptions", says, "warning"))
    try:
        with _opened(settings, name, lambda _: None) as (client, _):
            unsubscribe(client, say)
    except NotConnectedError as error:
        says = f"may be left, unless the app is uninstalled: {error}"
        say(Line("subscriptions", says, "warning"))
    for mapping in buffer.mappings(shop=shop):
        if mapping.is_active:
            buffer.mapping_update(mapping.id, {"is_active": False}, by=by)
        says = f"{mapping.store}: paused, its labels stay; to go on: esl-pipeline stores set {mapping.id} --active"
        say(Line("store", says))
    buffer.connection_end(shop, by)


def shops_of(settings: Settings, connections: Sequence[Row]) -> list[str]:
    """Every shop that is connected or mapped, and those that a setting names; sorted."""
    ours = settings.of(ShopifySettings)
    named = {app.shop for app in ours.apps} | set(ours.admin_tokens)
    rows = {row["source_store_id"] for row in connections if row["source_system"] == "shopify"}
    return sorted(rows | {shop for shop in named if shop is not None})


def show(settings: Settings, name: str, connection: Row, mappings: Sequence[StoreMapping], say: Say) -> None:
    """How one shop stands; changes nothing. connection: of `Buffer.connection_list`, empty where there is none."""
    kind = connection.get("subscriptions")
    try:
        with _opened(settings, name, say) as (client, access):
            greet(client, name, access, say)
            locate(client, None, say)
            if kind is None:
                says = f"not made by us: esl-pipeline shopify connect {name}"
                say(Line("subscriptions", says, "warning"))
            else:
                show_subscriptions(client, _address(settings, say), kind, say)
    except NotConnectedError:
        pass  # its line says why
    if connection:
        _say_arrivals(connection, say)
        patience = timedelta(hours=settings.esl_silence_hours)
        for wrong in arrivals(connection, patience=patience, now=datetime.now(UTC)):
            say(Line("arrivals", wrong, "wrong"))
    for mapping in mappings:
        _say_mapping(mapping, False, say)
    if not mappings:
        say(Line("store", f"none: esl-pipeline shopify connect {name} --store CODE", "warning"))


def _named(shop: str) -> Shop:
    return {"source_system": "shopify", "source_store_id": shop}


def _address(settings: Settings, say: Say) -> str:
    if settings.app_base_url is None:
        says = "APP_BASE_URL is not set: set the address under which the internet reaches `esl-pipeline receiver`"
        raise fail(say, "subscriptions", says)
    try:
        return address_at(settings.app_base_url)
    except ValueError as error:
        raise fail(say, "subscriptions", f"APP_BASE_URL: {error}") from None


@contextmanager
def _opened(settings: Settings, shop: str, say: Say) -> Iterator[tuple[AdminClient, str]]:
    """The shop's Admin API, and what opened it in words. What Shopify refuses inside is said, and the end of it."""
    source = ShopifySource(settings.of(ShopifySettings))
    client = source.open_admin(shop, patient=False)
    if client is None:
        says = (
            "neither an app nor a token opens this shop: set SHOPIFY_API_KEY and SHOPIFY_API_SECRET, or "
            f"SHOPIFY_APPS={shop}=id:secret"
        )
        raise fail(say, "access", says)
    by_app = isinstance(source.settings.admin_access(shop), App)
    with client:
        try:
            yield client, "the app's id and secret are good for a token" if by_app else "by a lasting token"
        except AdminError as error:
            raise fail(say, "Shopify", str(error)) from None


def _connection(buffer: Buffer, shop: Shop) -> Row:
    return next(iter(buffer.connection_list(shops=[shop])), {})


def _kind(client: AdminClient, row: Row, wanted: Kind | None, say: Say) -> Kind:
    """Who subscribes. Where webhooks arrive that nobody here asked for, that must be said: they would come twice."""
    kind: Kind | None = wanted or row.get("subscriptions") or row.get("formerly")
    if kind is not None:
        return kind
    last = row.get("last_webhook_at")
    lately = last and datetime.now(UTC) - datetime.fromisoformat(last) < _LATELY
    if lately and not row["connected_at"] and not read_ours(client):
        says = (
            "its webhooks arrive already, and none was subscribed by API: by the app's shopify.app.toml (say --toml, "
            "and it stays so), or by hand (remove those, and say --api)"
        )
        raise fail(say, "subscriptions", says)
    return "api"


def _mapping(buffer: Buffer, wish: Wish, policy: Row, *, by: str) -> tuple[Row, bool]:
    """The row of the mapping of shop and store, and whether it is new: then in dry run, with this policy.

    An existing one stays as it is; but a location that was asked for becomes its.
    """
    shop = _named(wish.shop)
    for row in buffer.mapping_list():
        mapping = StoreMapping.of(row)
        if mapping.shop == shop and mapping.store == wish.store:
            if wish.location is None or mapping.settings.get("location_id") == policy["location_id"]:
                return row, False
            settings = {**mapping.settings, "location_id": policy["location_id"]}
            return buffer.mapping_update(mapping.id, {"settings": settings}, by=by) or row, False
    fields = shop | {"hipoink_store_code": wish.store, "is_dry_run": True, "settings": dict(policy)}
    return buffer.mapping_create(fields | {"shared": wish.shared}, by=by), True


def _say_mapping(mapping: StoreMapping, is_new: bool, say: Say) -> None:
    store = mapping.store
    if not mapping.is_active:
        says = f"{store}: paused, nothing is read or pushed: esl-pipeline stores set {mapping.id} --active"
        say(Line("store", says, "warning"))
    elif mapping.is_dry_run:
        made = "mapped, in dry run" if is_new else "in dry run"
        say(Line("store", f"{store}: {made}: nothing is pushed yet"))
    else:
        say(Line("store", f"{store}: live"))


def _read_first(buffer: Buffer, client: AdminClient, shop: Shop, say: Say) -> None:
    """Read the whole shop and judge every variant."""
    try:
        read = read_snapshot(
            buffer, ShopifyReader(client, shop["source_store_id"]), shop=shop, run_id=f"cli-{uuid4()}"
        )
    except SnapshotLostError as lost:
        raise fail(say, "read", str(lost)) from None
    active, after = buffer.active_mappings(shop=shop), 0
    while len(part := due_variants(buffer, shop=shop, after=after)[0]):
        stage(buffer, part, validate(part, active))
        after = int(part["revision"].max())
    says = f"{read.variants} variants in {read.seconds:.1f} s, {read.changed} of them new or changed"
    say(Line("read", says))


def _preview(buffer: Buffer, shop: Shop, store: str, say: Say) -> None:
    for mapping in buffer.preview(store=store, shop=shop, limit=0):
        counts = ", ".join(f"{mapping[key]} {key}" for key in ("new", "changed", "removed"))
        says = f"{counts}; {mapping['published']} labels wanted, {mapping['held']} held back"
        say(Line("preview", f"{says}: esl-pipeline preview --store {store}"))
        if mapping["held"]:
            say(Line("findings", f"why they are held back: esl-pipeline findings --store {store}"))
        if mapping["is_dry_run"]:
            say(Line("go live", f"with esl-pipeline stores set {mapping['mapping_id']} --live"))


def _say_arrivals(row: Row, say: Say) -> None:
    first, last, since = (_at(row[key]) for key in ("first_webhook_at", "last_webhook_at", "connected_at"))
    if last is None:
        says = f"none yet since {since}; change a price to see one" if since else "none yet"
        say(Line("webhooks", says, "warning"))
        return
    version = f", of version {row['last_api_version']}" if row["last_api_version"] else ""
    awaited = f"; the first since {since} is awaited" if row["subscriptions"] and first is None else ""
    say(Line("webhooks", f"the newest came at {last}{version}{awaited}", "warning" if awaited else "ok"))


def _at(time: str | None) -> str | None:
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if time else None


def live(buffer: Buffer, mapping: Row, *, by: str) -> None:
    """End the dry run of a mapping."""
    buffer.mapping_update(mapping["id"], {"is_dry_run": False}, by=by)
