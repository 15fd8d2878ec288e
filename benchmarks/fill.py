"""First fills, by webhook and by night, against what the label server allows; a night without changes and one with few.

The bound: max(labels / (batch x rate), labels x latency of a call / (batch x calls in flight)).
"""

from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.latency import sent
from benchmarks.night import Night, nights
from benchmarks.parts import DEFAULT, STORE_SETTINGS, UNGUARDED, Deployment, eventually
from benchmarks.webhooks import Change, shop_name

# The product's own defaults.
BATCH, RATE, IN_FLIGHT = 100, 10.0, 4
VARIANTS, SENDERS = 100, 4
_PUSHES = """
select count(*) filter (where kind = 'result' and outcome = 'accepted'), count(distinct push_id),
       extract(epoch from min(at))::float8,
       extract(epoch from max(at) filter (where kind = 'result' and outcome = 'accepted'))::float8
from esl.sync_log where store_code = %(store)s"""


@dataclass(frozen=True)
class Fill:
    """So many labels in so many calls and seconds."""

    labels: int
    calls: int
    seconds: float
    milliseconds: float

    @property
    def bound(self) -> float:
        """The fewest seconds."""
        return bound(self.labels, self.milliseconds)

    @property
    def ratio(self) -> float:
        """Which part of what is possible."""
        return self.bound / self.seconds

    @property
    def per_second(self) -> float:
        """Labels."""
        return self.labels / self.seconds


def bound(labels: int, milliseconds: float) -> float:
    """The fewest seconds in which a label server takes so many labels."""
    return max(labels / (BATCH * RATE), labels * milliseconds / 1000 / (BATCH * IN_FLIGHT))


def by_webhook(
    deployed: Deployment, number: int, labels: int, milliseconds: float, *, server: str = DEFAULT
) -> Fill:
    """A new shop tells of all its products, 100 variants a body. From the first acknowledgement on."""
    deployed.take(milliseconds)
    deployed.map_shops({shop_name(number): f"S{number}"}, STORE_SETTINGS, server=server)
    _alone(deployed)
    bodies = [Change(0, number, product, 1_000, variants=VARIANTS) for product in range(labels // VARIANTS)]
    began = min(one.acked for one in sent(deployed, bodies, connections=SENDERS))
    return _filled(deployed, f"S{number}", labels, milliseconds, began)


def by_night(deployed: Deployment, number: int, shopify: str, milliseconds: float) -> tuple[Fill, Night]:
    """The night of a new shop. The fill is from the first push on: before that it reads the shop, which is no label
    server's matter."""
    deployed.take(milliseconds)
    deployed.map_shops({shop_name(number): f"S{number}"}, UNGUARDED)
    _alone(deployed)
    night = nights(deployed, [shop_name(number)], shopify)
    return _filled(deployed, f"S{number}", 0, milliseconds, None), night


def change_some(shopify: str, share: float, *, cents: int) -> int:
    """Give one variant in so many another price, at Shopify; how many."""
    with httpx.Client(base_url=shopify, timeout=60) as http:
        found: dict[str, Any] = http.get("/sandbox/products", params={"size": 10**9}).json()
        variants = [
            (product["id"], variant["id"])
            for product in found["products"]
            for variant in product["variants"][:1]
            if product["status"] == "active"
        ]
        total = sum(product["variants_total"] for product in found["products"])
        chosen = variants[: max(round(share * total), 1)]
        for n, (product, variant) in enumerate(chosen):
            price = f"{cents // 100}.{(cents + n) % 100:02}"
            http.patch(
                f"/sandbox/products/{product}/variants/{variant}", json={"price": price}
            ).raise_for_status()
    return len(chosen)


def _alone(deployed: Deployment) -> None:
    """As after half a minute of silence: one call is kept free for stores that have had a turn lately."""
    eventually("silence", deployed.is_idle, 60)
    deployed.execute("delete from esl.turns where queue = 'push'")


def _filled(deployed: Deployment, store: str, labels: int, milliseconds: float, began: float | None) -> Fill:
    eventually(f"the first fill of {store}", deployed.is_idle, 60 + 5 * bound(labels, milliseconds))
    ((accepted, calls, first, last),) = deployed.rows(_PUSHES, store=store)
    return Fill(accepted, calls, last - (began or first), milliseconds)
