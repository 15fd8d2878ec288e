"""Whatever shop A says, is set to, or suffers: shop B, which shares no store with it, ends as if A were not there.

A script of steps of both shops is played twice, once without A's. What is left of B must be the same but for times,
ids and the grouping into batches: labels, findings, ledger, queue, audit, and what the label server has seen. The
shared pace and breaker may delay B; so each drain goes on, time passing, until nothing of B is due.

Longer: ESL_EXAMPLES=500 pytest <this file>.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import ActionRefused, BufferError
from esl_pipeline.sources.shopify.deliveries import DeliveryError, delivery
from esl_pipeline.stages import drift as drift_stage
from esl_pipeline_tests.reliability.breaks import BREAKS
from esl_pipeline_tests.reliability.machine import (
    ABSURD,
    BAD,
    FAULTS,
    SLOW,
    Parts,
    Slipping,
    machine_parts,
)
from esl_pipeline_tests.reliability.remains import is_due, let_time_pass, what_is_left
from esl_pipeline_tests.world import ASSET, drain_round, level, product, variant, when

EXAMPLES = int(os.environ.get("ESL_EXAMPLES", "0"))

# The same codes in both shops, and one that both products of a shop may have. Ids are Shopify's: of one shop each.
CODES = st.sampled_from(["own"] * 3 + ["X"] * 3 + [None])
PRICES = st.sampled_from(["1.00", "1.00", "2.00", "2.00", "3.50", "500.00", "0.00", None])
SLOTS = st.sampled_from([1, 2, 3])
Step = tuple[str, str, tuple[Any, ...]]  # whose, what, with what


def _steps_of(whose: str) -> st.SearchStrategy[Step]:
    """What either shop may do, and have done to it."""
    policy = st.fixed_dictionaries(
        {
            "title_template": st.sampled_from(["{title}", "New: {title}"]),
            "guard_labels": st.sampled_from([0, 1, 5]),
            "guard_share_pct": st.sampled_from([0, 20]),
            "on_delete": st.sampled_from(["remove", "keep", "blank"]),
        }
    )
    own = st.sampled_from([["own-1"], ["own-2"], ["X"]])
    refusals: list[st.SearchStrategy[Any]] = [
        st.just({"kind": "status", "status": 503, "times": 1}),
        st.just({"kind": "reset", "apply": True, "times": 1}),
        st.just({"kind": "error", "error_msg": "no", "times": 1}),
    ]
    if FAULTS.label_refused:
        refusals.append(own.map(lambda codes: {"kind": "bad_codes", "codes": codes}))
    kinds = {
        "product": st.tuples(SLOTS, CODES, PRICES, st.sampled_from(["active"] * 4 + ["draft"])),
        "rivals": st.tuples(PRICES, PRICES),
        "delete": st.tuples(SLOTS),
        "stock": st.tuples(SLOTS, st.integers(0, 9)),
        "policy": st.tuples(policy),
        "approve": st.tuples(),
        "refuses": st.tuples(st.one_of(refusals)),
    }
    if whose == "A":
        # Server and store faults of A's, forever: B may wait for the breaker, but no longer than time passes.
        hostile = [st.just({"kind": "status", "status": 503})]
        if FAULTS.store_refuses:
            hostile.append(st.just({"kind": "error", "error_msg": "store does not exist"}))
        if FAULTS.label_forbidden:
            hostile.append(own.map(lambda codes: {"kind": "status", "status": 403, "codes": codes}))
        if FAULTS.label_crashes:
            hostile.append(own.map(lambda codes: {"kind": "status", "status": 500, "codes": codes}))
        wrong = (BAD if FAULTS.bad_settings else []) + (ABSURD if FAULTS.absurd_settings else [])
        kinds |= {
            "refuses for ever": st.tuples(st.one_of(hostile)),
            "settings": st.tuples(st.sampled_from(wrong or [{}]), st.booleans()),
            "mended": st.tuples(),
            "no variants": st.tuples(SLOTS),
            "odd body": st.tuples(
                st.sampled_from(["[]", "{", '{"id": 3}', '{"id": 3, "variants": [{}, 7]}', "null"])
            ),
            "order": st.tuples(st.sampled_from(["app/uninstalled", "shop/redact", "customers/redact"])),
            "taken": st.tuples(
                SLOTS, CODES, PRICES, st.sampled_from(["active", "active", "draft", "deleted"])
            ),
            "taken stock": st.tuples(SLOTS, st.integers(0, 9)),
            "switch": st.tuples(st.booleans(), st.booleans()),
            "move": st.tuples(st.sampled_from(["A1", "A2"])),
            "list": st.tuples(st.booleans()),
            "labels by hand": st.tuples(st.sampled_from(["own-1", "X", "F"]), st.booleans()),
        }
    # Most of the time it is well, and says something: else there is nothing to interfere with, or nobody to do so.
    often = ["product"] * 6 + ["rivals"] * 4 + ["mended"] * 3 * (whose == "A")
    return st.sampled_from([*sorted(kinds), *often]).flatmap(
        lambda kind: st.tuples(st.just(whose), st.just(kind), kinds[kind])
    )


DRAIN: st.SearchStrategy[Step] = st.just(("both", "drain", ()))
SCRIPTS = st.lists(st.one_of(_steps_of("A"), _steps_of("A"), _steps_of("B"), DRAIN), min_size=12, max_size=30)


@dataclass
class Play:
    """One run of a script, with or without A's steps."""

    parts: Parts
    with_a: bool

    def run(self, script: list[Step]) -> dict[str, Any]:
        parts = self.parts
        parts.empty()
        parts.world.sandbox.faults()
        self.faults: dict[str, list[dict[str, Any]]] = {"A": [], "B": []}
        self.numbers, self.version = itertools.count(1), 0
        self.mappings = {
            letter: parts.world.map(_domain(letter), letter + "1", settings=_settings({})) for letter in "AB"
        }
        for whose in "AB":
            for slot in (1, 2):
                self.step((whose, "product", (slot, "own", "1.00", "active")))
        self.drain()
        for step in script:
            self.version += 1  # the clock of both plays is the same
            self.step(step)
        for letter in self.faults:
            self.faults[letter] = []
        self._set_faults()
        self.drain()
        parts.world.buffer.redrive()
        self.drain()
        return self.left()

    def step(self, step: Step) -> None:
        whose, what, values = step
        if what == "drain":
            self.drain()
        elif whose == "B" or self.with_a:
            # What the buffer refuses is refused; nothing else may come of it.
            with suppress(BufferError, psycopg.Error) if whose == "A" else _nothing():
                self._do(whose, what, values)
        elif what in ("mended", "refuses", "refuses for ever"):
            self._set_faults()  # as beside A, where setting A's faults winds up those of B again

    def drain(self) -> None:
        """Until nothing of B's is due, however long the label server is down because of A."""
        for _ in range(25):
            let_time_pass(self.parts.sql)
            drain_round(self.parts.world.buffer, self.parts.world.client, SLOW, run_id="r", asset=ASSET)
            if not is_due(self.parts.sql, "shop-b.myshopify.com"):
                return

    def _do(self, whose: str, what: str, values: tuple[Any, ...]) -> None:
        world, domain, mapping = self.parts.world, _domain(whose), self.mappings[whose]
        first = 1_000 * (1 + "AB".index(whose))
        match what:
            case "product":
                slot, code, price, status = values
                item = variant(first + slot, f"own-{slot}" if code == "own" else code, price)
                body = product(first + slot, self.version, [item], status=status)
                self._send(domain, "products/update", json.dumps(body))
            case "taken":  # with the ids of B's products
                slot, code, price, status = values
                theirs = 2_000 + slot
                if status == "deleted":
                    self._send(domain, "products/delete", json.dumps({"id": theirs}))
                else:
                    item = variant(theirs, f"own-{slot}" if code == "own" else code, price)
                    body = product(theirs, self.version, [item], status=status)
                    self._send(domain, "products/update", json.dumps(body))
            case "taken stock":
                body = level(2_000 + values[0], values[1], self.version)
                self._send(domain, "inventory_levels/update", json.dumps(body))
            case "rivals":
                for slot, price in enumerate(values, start=1):
                    self._do(whose, "product", (slot, "X", price, "active"))
            case "mended":
                live = {
                    "is_active": True,
                    "is_dry_run": False,
                    "settings": _settings({"guard_labels": 1_000}),
                }
                world.buffer.mapping_update(mapping, live)
                self.faults[whose] = []
                self._set_faults()
            case "delete":
                self._send(domain, "products/delete", json.dumps({"id": first + values[0]}))
            case "no variants":
                body = product(first + values[0], self.version, [])
                self._send(domain, "products/update", json.dumps(body))
            case "odd body":
                self._send(domain, "products/update", values[0])
            case "stock":
                body = level(first + values[0], values[1], self.version)
                self._send(domain, "inventory_levels/update", json.dumps(body))
            case "policy":
                world.buffer.mapping_update(mapping, {"settings": _settings(values[0])})
            case "settings":
                wrong, by_sql = values
                if by_sql:
                    query = "update esl.store_mappings set settings = %s::jsonb where id = %s::uuid"
                    self.parts.sql(query, json.dumps(_settings(wrong)), mapping)
                else:
                    world.buffer.mapping_update(mapping, {"settings": _settings(wrong)})
            case "approve":
                for store in (whose + "1", whose + "2"):
                    with suppress(ActionRefused):  # no mapping has ever named it
                        world.buffer.changes_approve(store=store, by="test")
            case "refuses" | "refuses for ever":
                self.faults[whose] = [
                    values[0] | {"store": whose + "1", "action": action}
                    for action in ("create_multiple", "del_multiple")
                ]
                self._set_faults()
            case "order":
                names = {"shop_domain": domain, "shop_id": 1}
                if values[0] == "app/uninstalled":
                    names = {"myshopify_domain": domain, "id": 1, "updated_at": when(self.version)}
                self._send(domain, values[0], json.dumps(names))
                world.buffer.housekeep(keep_bodies_days=30)
            case "switch":
                active, dry = values
                world.buffer.mapping_update(mapping, {"is_active": active, "is_dry_run": dry})
            case "move":
                world.buffer.mapping_update(mapping, {"hipoink_store_code": values[0]})
            case "list":
                lists = Slipping.of(world.client) if values[0] and FAULTS.page_slips else world.client
                drift_stage.compare_store(world.buffer, lists, store="A1", run_id="list", page_size=2)
            case "labels by hand":
                code, away = values
                if away:
                    self.parts.labels.take_away("A1", code)
                else:
                    self.parts.labels.edit("A1", code, {"pn": "by hand", "pp": "9.99"})

    def _send(self, domain: str, topic: str, raw: str) -> None:
        at = when(self.version)
        number = next(self.numbers)
        headers = {
            "x-shopify-topic": topic,
            "x-shopify-shop-domain": domain,
            "x-shopify-webhook-id": f"{domain}-{number}",
            "x-shopify-triggered-at": at,
        }
        with suppress(DeliveryError):
            kept = delivery(topic, Headers(headers), raw.encode(), datetime.now(UTC))
            kept["proven"] = True  # each shop has a secret of its own
            self.parts.world.buffer.inbox_add([kept])

    def _set_faults(self) -> None:
        self.parts.world.sandbox.faults(*self.faults["A"], *self.faults["B"])

    def left(self) -> dict[str, Any]:
        """Everything of B's that is not a time, an id or a batch."""
        return what_is_left(self.parts.sql, self.mappings["B"], "B1", self.parts.labels.state())


class _nothing(suppress):
    """Suppresses nothing."""


def _domain(letter: str) -> str:
    return f"shop-{letter.lower()}.myshopify.com"


def _settings(changes: dict[str, Any]) -> dict[str, Any]:
    return {"title_template": "{title}", "stock_field": "qty", "location_id": "77"} | changes


@pytest.fixture
def parts(buffer: Buffer, buffer_dsn: str) -> Iterator[Parts]:
    with machine_parts(buffer, buffer_dsn) as found:
        yield found


def _property(examples: int) -> Callable[[Parts], None]:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not EXAMPLES,
        phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
        suppress_health_check=list(HealthCheck),
    )
    @given(script=SCRIPTS)
    def without_and_with_a(parts: Parts, script: list[Step]) -> None:
        alone = Play(parts, with_a=False).run(script)
        beside_a = Play(parts, with_a=True).run(script)
        for name, left in alone.items():
            assert beside_a[name] == left, (name, script)

    return without_and_with_a


@pytest.mark.long
@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_shop_b_is_left_as_if_there_were_no_shop_a(parts: Parts) -> None:
    _property(EXAMPLES or 8)(parts)


@pytest.mark.long
def test_the_comparison_notices_when_a_closes_the_findings_of_b(parts: Parts) -> None:
    parts.sql(BREAKS["pairs"].sql)
    said = [("B", 1, "1.00"), ("B", 2, "1.00"), ("A", 1, "2.00")]
    script: list[Step] = [(whose, "product", (slot, "X", price, "active")) for whose, slot, price in said]
    script.insert(2, ("both", "drain", ()))

    alone, beside_a = (Play(parts, with_a=with_a).run(script) for with_a in (False, True))

    assert {name for name in alone if alone[name] != beside_a[name]} == {"findings"}
