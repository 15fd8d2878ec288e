"""How long a catalogue takes to become labels, and how much memory: `python -m benchmarks.validate 100000`.

The variants are made up, seeded, in the shares that real shops have (data-quality.md section 1); odd titles are more
frequent than there, since they cost the most. Making them is not timed, but their frame counts as memory. Two policies
are measured: the default one, and one that uses much of what a policy offers.

Exits 1 when either takes more than 10 s per 100,000 variants (the bound grows and shrinks with the number, but is at
least 1 s), or the process more than 1 GiB beyond what it had before the variants were made. Seconds are those of the
processor, all threads together: evaluation does nothing but compute, and what else runs on the machine is not its
fault. The wall clock's stand beside them. Each policy is run three times and the fastest run counts.
"""

import gc
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from esl_pipeline.labels import schema
from esl_pipeline.labels.evaluate import Store, read, to_frames
from esl_pipeline.labels.policy import Policy
from esl_pipeline.model.rows import VARIANTS

SECONDS_PER_ROW = 10 / 100_000
SHORTEST_BOUND = 1.0
MOST_MIB = 1024
RUNS = 3
SEED = 20261122

POLICIES: Mapping[str, Policy] = {
    "default": Policy(),
    "rich": Policy.model_validate(
        {
            "code_source": ["barcode", "sku", "variant_id"],
            "pad_upc": True,
            "label_code_form": "gtin13",
            "duplicate_rule": "first_created",
            "zero_price": "allow",
            "expected_currency": "EUR",
            "show_compare_at": "if_prior_30d_ok",
            "title_template": "[{vendor} ]{title}[ - {variant_title}]",
            "title_max_length": 60,
            "send_images": True,
            "image_hosts": ["cdn.shopify.com"],
            "exclude": {"tags": ["hidden"], "vendors": ["nobody"]},
            "stock_field": "kc",
            "location_id": "7",
            "unit_price_mode": "eu",
            "fields": {
                "ps": "{option1}[ / {option2}]",
                "pm": "{vendor}",
                "f1": "[{unit_price} {currency}/{unit_price_per}]",
                "extend": {"type": "{product_type}"},
            },
        }
    ),
}

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """Time used: of the processor, and by the clock on the wall."""

    cpu: float
    wall: float


def main(rows: int) -> int:
    """Measure both policies, print a table, and return the exit code."""
    bound = max(SHORTEST_BOUND, rows * SECONDS_PER_ROW)
    before = _peak_mib()
    variants = catalogue(rows)
    print(f"{'policy':<10}{'stage':<10}{'seconds':>8}{'wall':>8}{'rows/s':>10}")
    slowest = max(measure(name, policy, variants) for name, policy in POLICIES.items())
    memory = _peak_mib() - before
    within = slowest.cpu <= bound and memory <= MOST_MIB
    print(
        f"validate {rows}: {slowest.cpu:.1f} s ({slowest.wall:.1f} s wall), {memory:.0f} MiB, "
        f"{'within' if within else 'NOT within'} {bound:g} s and {MOST_MIB // 1024} GiB"
    )
    return 0 if within else 1


def measure(name: str, policy: Policy, variants: pd.DataFrame) -> Seconds:
    """Print the stages of the fastest run and what came of it; return the sum of its stages."""
    store = Store("bench", "S1", policy, shop_currency="EUR", shop_taxes_included=True)
    stages, summary = min((run(variants, store) for _ in range(RUNS)), key=lambda one: _sum(one[0]))
    total = _sum(stages)
    for stage, took in (stages | {"all": total}).items():
        print(f"{name:<10}{stage:<10}{took.cpu:>8.2f}{took.wall:>8.2f}{len(variants) / took.cpu:>10,.0f}")
    print(f"{name:<10}{summary}")
    return total


def run(variants: pd.DataFrame, store: Store) -> tuple[dict[str, Seconds], str]:
    """The stages of labels.evaluate.evaluate, which is these three calls, and how many rows ended where."""
    gc.collect()
    (outcomes, facts), reading = _timed(lambda: read(variants, store))
    found, checking = _timed(lambda: schema.findings(facts, store.policy))
    (labels, _), framing = _timed(lambda: to_frames(variants, store, outcomes, found))
    ends = ", ".join(f"{count:,} {state}" for state, count in labels["state"].value_counts().items())
    return {"read": reading, "schema": checking, "frames": framing}, f"{ends}; {len(found):,} findings"


def _sum(stages: Mapping[str, Seconds]) -> Seconds:
    return Seconds(*map(sum, zip(*stages.values(), strict=True)))


def _timed(call: Callable[[], Result]) -> tuple[Result, Seconds]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def catalogue(rows: int) -> pd.DataFrame:
    """A frame of rows.VARIANTS, the same for the same number; four variants to a product."""
    chance = random.Random(SEED)  # noqa: S311
    titles = [_title(chance) for _ in range(rows // 4 + 1)]
    return pd.DataFrame(
        [_variant(chance, number, titles[number // 4]) for number in range(rows)],
        columns=VARIANTS.names,
    ).astype(VARIANTS.dtypes)


def _variant(chance: random.Random, number: int, title: str) -> dict[str, Any]:
    cents = _cents(chance)
    measured = number % 2 == 0
    return {
        "source_system": "shopify",
        "source_store_id": "shop.myshopify.com",
        "variant_id": str(40_000_000_000_000 + number),
        "product_id": str(7_000_000_000_000 + number // 4),
        "inventory_item_id": str(42_000_000_000_000 + number),
        "title": title,
        "variant_title": "Default Title" if chance.random() < 0.13 else f"{number % 40} / Blue",
        "barcode": _barcode(chance, number),
        "sku": _sku(chance, number),
        "price": _money(cents),
        "compare_at_price": _compare_at(chance, cents),
        "image_url": f"https://cdn.shopify.com/s/files/1/0001/products/{number}.jpg?v=1"
        if number % 10
        else None,
        "status": chance.choices(("active", "draft", "archived"), (2738, 817, 51))[0],
        "published_at": "2026-01-05T09:00:00+00:00",
        "vendor": f"Maker {number % 50}",
        "product_type": f"Type {number % 30}",
        "tags": "new, sale, summer",
        "handle": f"product-{number // 4}",
        "option1": str(number % 40),
        "option2": "Blue",
        "source_created_at": "2025-11-02T10:00:00+00:00",
        "source_updated_at": "2026-11-22T10:00:00+00:00",
        "removed": chance.random() < 0.01,
        "stock": json.dumps({"7": number % 90, "8": 3}),
        "gift_card": False,
        "unit_price": _money(cents * 4) if measured else None,
        "unit_price_measurement": json.dumps(_QUARTER_OF_A_KILOGRAM) if measured else None,
        "history": json.dumps({"bench": {"shown": _money(cents), "prior": None}}) if number % 3 else None,
        "event_ids": [number],
        "revision": number,
    }


_QUARTER_OF_A_KILOGRAM = {
    "measuredType": "WEIGHT",
    "quantityValue": 250,
    "quantityUnit": "G",
    "referenceValue": 1,
    "referenceUnit": "KG",
}
_WORDS = [
    "Organic",
    "Dark",
    "Roast",
    "Coffee",
    "Green",
    "Tea",
    "Cotton",
    "Shirt",
    "Classic",
    "Olive",
    "Oil",
    "Large",
]
_ODD_TITLES = [
    "Fish &amp; Chips",
    "Rock &#39;n&#39; Roll <b>Tee</b>",
    "緑茶 深蒸し",
    "Чай чёрный",
    "Cafe\u0301 ☕ 🇫🇷",
    "Party 🎉🥳",
]


def _title(chance: random.Random) -> str:
    """11 % longer than 40 characters, up to 210; 3 % with entities, other scripts or emoji."""
    if chance.random() < 0.03:
        return chance.choice(_ODD_TITLES)
    length = chance.randint(41, 210) if chance.random() < 0.11 else chance.randint(5, 40)
    return " ".join(chance.choices(_WORDS, k=50))[:length].strip()


def _barcode(chance: random.Random, number: int) -> str | None:
    """67 % none; of the others 16 % have the length of a GTIN, 1 in 5 of these a wrong check digit."""
    if chance.random() < 0.67:
        return None
    if chance.random() < 0.84:
        return f"H-{number}" if number % 10 else f"{number:05d} "
    digits = f"{chance.randrange(10**12):012d}"
    check = -sum(int(digit) * (1, 3)[place % 2] for place, digit in enumerate(digits))
    return f"{digits}{(check + (chance.random() < 0.2)) % 10}"


def _sku(chance: random.Random, number: int) -> str | None:
    """48 % none; 4 % two in one."""
    if chance.random() < 0.48:
        return None
    return f"SKU-{number}" if chance.random() < 0.92 else f"SKU-{number}, OLD-{number}"


def _cents(chance: random.Random) -> int:
    """3 % zero; most others end as prices do."""
    if chance.random() < 0.03:
        return 0
    return chance.randint(0, 499) * 100 + chance.choice((50, 90, 95, 99, 99, 99, chance.randint(1, 99)))


def _compare_at(chance: random.Random, cents: int) -> str | None:
    """10 % filled; 7 % of these zero, 12 % the price, 7 % below it."""
    if chance.random() < 0.9:
        return None
    return _money(cents * chance.choices((0, 4, 3, 5), (7, 12, 7, 74))[0] // 4)


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
