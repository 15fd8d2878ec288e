"""A shop read through WooCommerce's REST API, in the words of `source.Reader`."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from esl_pipeline.labels.lengths import LENGTHS, MOST_VARIANTS
from esl_pipeline.sources.content import text_of
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.source import OnStart, Reader
from esl_pipeline.sources.woocommerce.client import Client
from esl_pipeline.sources.woocommerce.content import (
    FIELDS,
    SYSTEM,
    Thing,
    digest,
    is_gone,
    is_variable,
    is_variation,
    number,
    told,
    told_whole,
    utc,
    version,
)
from esl_pipeline.sources.woocommerce.deliveries import NEWEST
from esl_pipeline.sources.woocommerce.errors import (
    IncompleteError,
    NotLetInError,
    RefusedRequestError,
    WooCommerceError,
)
from esl_pipeline.sources.woocommerce.pages import Listing

_ASKED = ",".join(FIELDS)
# WordPress's codes for a thing that is not there.
_NONE = frozenset({"woocommerce_rest_product_invalid_id", "woocommerce_rest_product_variation_invalid_id"})
# Changed products and variants that are given together.
_AT_ONCE = 500
# The time that a question takes is no difference of clocks, and an answer that was kept for days tells no time.
_CLOCKS_AGREE, _MOST_BEHIND = timedelta(minutes=1), timedelta(days=1)
# Of damaged products the first few are named.
_NAMED = 5


class WooCommerceReader(Reader):
    """Reads a shop (its id) with a client of its REST API; the client is closed with it.

    Stock comes with the products. A variation is told of at the time of its product's newest part: the product's own
    time says nothing of a price that changed at one of its variations.
    """

    stock_in_catalogue = True

    def __init__(self, client: Client, shop: str) -> None:
        self._client, self._shop = client, shop

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def lets_in(self) -> bool | None:
        """Whether the shop takes our key."""
        try:
            self._client.get("/products", per_page=1, _fields="id")
        except NotLetInError:
            return False
        except WooCommerceError:
            return None
        return True

    def shop(self) -> Facts:
        """Currency, taxes and time zone."""
        answer = self._client.get("/settings/general")
        general = _options(answer.content)
        tax = _options(self._client.get("/settings/tax").content)
        row = {
            "source_system": SYSTEM,
            "source_store_id": self._shop,
            "currency": text_of(general.get("woocommerce_currency"), LENGTHS["currency"]),
            # Without taxes a price is what is paid.
            "taxes_included": general.get("woocommerce_calc_taxes") != "yes"
            or tax.get("woocommerce_prices_include_tax") == "yes",
            "time_zone": text_of(_time_zone(self._client.about()), LENGTHS["time_zone"]),
            "updated_at": answer.at.isoformat(),
        }
        return Facts(shops=[row])

    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        """Page by page, a variable product's variations after it."""
        products, damaged = Listing(self._client, "/products", status="any", _fields=_ASKED), list[str]()
        facts, started = Facts(), None
        for product in products:
            if started is None:
                started = _start(products)
                on_start(started)
            one = self._whole(product, started, damaged)
            if facts.variants and len(facts.variants) + len(one.variants) > chunk:
                yield facts
                facts = Facts()
            facts.extend(one)
        if started is None:
            on_start(_start(products))
        yield facts
        if damaged or products.missing:
            raise IncompleteError(_incomplete(self._shop, products.missing, damaged))

    def changes(self, since: datetime) -> Iterator[Facts]:
        """By `modified_after`, which leaves out its own second. What changes meanwhile comes with the next look.

        since is of our clock. A shop whose own is behind dates its changes by that, so as much more is read again.
        """
        if since.tzinfo is None:
            raise ValueError("since needs a time zone")
        behind = datetime.now(UTC) - self._client.get("/products", per_page=1, _fields="id").at
        after = since.astimezone(UTC) - timedelta(seconds=1)
        if behind > _CLOCKS_AGREE:
            after -= min(behind, _MOST_BEHIND)
        changed = Listing(
            self._client,
            "/products",
            whole=False,
            status="any",
            modified_after=f"{after:%Y-%m-%dT%H:%M:%S}",
            dates_are_gmt="true",
            _fields=_ASKED,
        )
        facts = Facts()
        for product in changed:
            facts.extend(self._whole(product, _start(changed), []))
            if len(facts.products) + len(facts.variants) >= _AT_ONCE:
                yield facts
                facts = Facts()
        if facts.products:
            yield facts

    def product(self, product_id: str) -> Facts | None:
        """By its id; what lies in the trash is no more."""
        if number(product_id) is None:
            raise RefusedRequestError(f"{product_id!a} is no id of a product of {self._shop}.")
        try:
            answer = self._client.get(f"/products/{product_id}", _fields=_ASKED)
        except RefusedRequestError as error:
            if error.code in _NONE:
                return None
            raise
        product = answer.content
        if not isinstance(product, dict) or number(product.get("id")) != product_id:
            raise RefusedRequestError(f"product {product_id} of {self._shop}: the answer is another product.")
        if is_gone(product) or is_variation(product):
            return None
        return self._whole(product, answer.at, [])

    def _whole(self, product: Thing, read_at: datetime, damaged: list[str]) -> Facts:
        """A product with all its variations. Those of which some could not be read are noted as damaged."""
        own = number(product["id"])
        if own is None or is_gone(product) or is_variation(product):
            return Facts()
        variations, complete = self._variations(product, own) if is_variable(product) else ([], True)
        if not complete:
            damaged.append(own)
        # A time that is still to come, of a clock that was wrong, would stand above all that is true meanwhile.
        times = [
            at
            for thing in (product, *variations)
            if (at := utc(thing.get("date_modified_gmt"))) and at <= read_at + NEWEST
        ]
        said = version(
            shop=self._shop,
            product_id=own,
            at=max(times, default=read_at),
            triggered_at=read_at,
            sha256=digest(product, *variations),
        )
        now = datetime.now(UTC)
        if is_variable(product):
            return told_whole(product, variations, said, now, complete=complete)
        return told(product, said, now)

    def _variations(self, product: Thing, product_id: str) -> tuple[list[Row], bool]:
        """The variations of a product, and whether those are all.

        One that the product names and the list does not have was deleted meanwhile, or is hidden: it is asked for.
        """
        path = f"/products/{product_id}/variations"
        listing, found = Listing(self._client, path, status="any", _fields=_ASKED), list[Row]()
        try:
            for variation in listing:
                found.append(variation)
                if len(found) > MOST_VARIANTS:
                    return found[:MOST_VARIANTS], False
            listed = {variation["id"] for variation in found}
            named = product.get("variations")
            absent = [one for one in named if one not in listed] if isinstance(named, list) else []
            return found, not listing.missing and all(self._is_none(f"{path}/{one}") for one in absent)
        except RefusedRequestError as error:
            return found, error.code in _NONE  # the product was deleted between its page and this question
        except IncompleteError:
            return found, False

    def _is_none(self, path: str) -> bool:
        try:
            thing = self._client.get(path, _fields="id,status").content
        except RefusedRequestError as error:
            if error.code in _NONE:
                return True
            raise
        return isinstance(thing, dict) and is_gone(thing)


def _start(listing: Listing) -> datetime:
    return listing.answer.at if listing.answer else datetime.now(UTC)


def _options(settings: Any) -> dict[str, Any]:
    """The values of a group of settings."""
    if not isinstance(settings, list):
        raise RefusedRequestError("the settings are no list: something in between speaks.")
    return {str(one.get("id")): one.get("value") for one in settings if isinstance(one, dict)}


def _time_zone(site: Any) -> str | None:
    """The site's zone by name, else its offset in hours, as WordPress keeps either."""
    if name := site.get("timezone_string"):
        return str(name)
    try:
        hours = float(site["gmt_offset"])
    except (KeyError, TypeError, ValueError):
        return None
    sign, minutes = "-" if hours < 0 else "+", round(abs(hours) * 60)
    return f"UTC{sign}{minutes // 60:02d}:{minutes % 60:02d}" if minutes else "UTC"


def _incomplete(shop: str, missing: int, damaged: list[str]) -> str:
    parts = []
    if missing:
        parts.append(
            f"{missing} products are counted and not shown, because the key's user may not see them or they are damaged"
        )
    if damaged:
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        named = ", ".join(damaged[:_NAMED])
        parts.append(f"not all variations could be read of the products {named}{more}")
    return f"{shop}: {'; '.join(parts)}. What was read counts; nothing is taken off for being absent."
