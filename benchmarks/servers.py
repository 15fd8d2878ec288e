"""Several label servers, several shops: a night without changes, one with few, and one with a server down."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fill import change_some
from benchmarks.night import WORKERS, Night, nights
from benchmarks.parts import UNGUARDED, Deployment

_FIRST_SHOP = 500


@dataclass(frozen=True)
class Nights:
    """The nights of all shops. changed: how many labels got another price, each night that changed some; left: how many
    of them wait at servers that were up, when one was down; up: the shops of those."""

    labels: int
    unchanged: Night
    some: Night
    changed: int
    down: Night
    left: int
    up: Sequence[str]


def measure(deployed: Deployment, *, shops: int, variants: int, share: float = 0.01) -> Nights:
    """So many shops, each of so many variants, shared out to the label servers; the last server goes down."""
    servers = list(deployed.labels)
    numbers = range(_FIRST_SHOP, _FIRST_SHOP + shops)
    stores = {f"night-{n}.myshopify.com": f"N{n}" for n in numbers}
    at = {server: list(stores)[place :: len(servers)] for place, server in enumerate(servers)}
    deployed.take(0)
    for server, its in at.items():
        deployed.map_shops({shop: stores[shop] for shop in its}, UNGUARDED, server=server)
    up = [shop for server in servers[:-1] for shop in at[server]]
    with deployed.shopify(variants) as shopify:
        every = list(stores)
        nights(deployed, every, shopify, at_once=len(WORKERS))
        ((labels,),) = deployed.rows(
            "select count(*) from esl.hipoink_products where store_code = any (%(stores)s)",
            stores=list(stores.values()),
        )
        unchanged = nights(deployed, every, shopify, at_once=len(WORKERS))
        changed = change_some(shopify, share, cents=20_000) * shops
        some = nights(deployed, every, shopify, at_once=len(WORKERS))
        change_some(shopify, share, cents=30_000)
        deployed.faults(servers[-1], {"kind": "status", "status": 503})
        down = nights(deployed, every, shopify, at_once=len(WORKERS), settles=False)
        left = _left(deployed, [stores[shop] for shop in up])
        deployed.take(0)
    return Nights(labels, unchanged, some, changed, down, left, up)


def _left(deployed: Deployment, stores: Sequence[str]) -> int:
    """Labels of these stores that still wait, when there was time to push them."""

    def waiting() -> int:
        ((count,),) = deployed.rows(
            "select (select count(*) from esl.products where due)"
            " + (select count(*) from esl.sync_queue where store_code = any (%(stores)s))",
            stores=list(stores),
        )
        return int(count)

    deadline = time.monotonic() + 30
    while waiting() and time.monotonic() < deadline:
        time.sleep(0.5)
    return waiting()
