"""Whatever happens in whatever order, the labels end at what Shopify said last: a model against the real parts."""

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from esl_pipeline_tests.world import ASSET, World, product, variant, when

PRODUCTS = (1, 2)
CODE_LISTS = st.lists(st.sampled_from(("A", "B", "C", None)), min_size=1, max_size=2)
FAULTS: list[dict[str, Any]] = [
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 500, "apply": True},
    {"kind": "reset", "apply": True},
    {"kind": "reset", "apply": False},
    {"kind": "error", "error_msg": "no"},
    {"kind": "error", "error_msg": "no", "apply": True},
]

_numbers = itertools.count(1)


class ShopAndShelf(RuleBasedStateMachine):
    """A shop with two products of two variants each; every version's number is the price of its variants."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.shop, self.store = f"shop-{number}.myshopify.com", f"S{number}"
        self.mapping = self.world.map(self.shop, self.store)
        self.version = 0
        self.messages: list[tuple[str, dict[str, Any], str]] = []
        self.delivered: set[int] = set()
        self.newest: dict[int, dict[str, Any] | None] = {}
        self.deleted: set[int] = set()
        self.was_late = False

    # What happens at Shopify

    @rule(
        number=st.sampled_from(PRODUCTS),
        codes=CODE_LISTS,
        status=st.sampled_from(["active"] * 4 + ["draft"]),
        priced=st.sampled_from([True] * 4 + [False]),
        deliver=st.sampled_from([True] * 3 + [False]),
    )
    def edit(self, number: int, codes: list[str | None], status: str, priced: bool, deliver: bool) -> None:
        self._edit(number, codes, status=status, priced=priced, deliver=deliver)

    def _edit(
        self,
        number: int,
        codes: list[str | None],
        *,
        status: str = "active",
        priced: bool = True,
        deliver: bool = True,
    ) -> None:
        self.version += 1
        price = f"{self.version}.00" if priced else None
        variants = [variant(number * 10 + i, code, price) for i, code in enumerate(codes)]
        body = product(number, self.version, variants, status=status)
        self.newest[number] = body
        self._say("products/update", body, deliver)

    @precondition(lambda self: set(self.newest) - self.deleted)
    @rule(data=st.data(), deliver=st.booleans())
    def delete(self, data: st.DataObject, deliver: bool) -> None:
        number = data.draw(st.sampled_from(sorted(set(self.newest) - self.deleted)))
        self.version += 1
        self.deleted.add(
            number
        )  # once each: Shopify never uses an id again, and all its deletions look alike
        self.newest[number] = None
        self._say("products/delete", {"id": number}, deliver)

    def _say(self, topic: str, body: dict[str, Any], deliver: bool) -> None:
        self.messages.append((topic, body, when(self.version)))
        if deliver:
            self._deliver(len(self.messages) - 1)

    # What happens on the way

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        self._deliver(data.draw(st.integers(0, len(self.messages) - 1)))

    def _deliver(self, index: int) -> None:
        topic, body, at = self.messages[index]
        self.world.send(topic, body, shop=self.shop, at=at)
        self.delivered.add(index)

    @rule(fault=st.sampled_from(FAULTS))
    def drain_while_the_label_server_fails(self, fault: dict[str, Any]) -> None:
        self.world.sandbox.faults(fault | {"times": 1, "store": self.store})
        self.world.round(initial_delay=60, max_delay=60)
        self.world.sandbox.faults()

    @rule()
    def back_off_ends(self) -> None:
        self.world.sql("update esl.sync_queue set next_attempt_at = now() where store_code = %s", self.store)

    @rule(is_active=st.booleans())
    def switch_mapping(self, is_active: bool) -> None:
        self.world.buffer.mapping_update(self.mapping, {"is_active": is_active})

    @rule()
    def drain(self) -> None:
        self.world.round()

    @rule()
    def worker_dies_after_reading(self) -> None:
        self.world.buffer.inbox_claim(run_id="dead", lease_seconds=0)

    @rule()
    def worker_dies_after_its_claim(self) -> None:
        self._claim("dead")

    @rule(number=st.sampled_from(PRODUCTS), first=CODE_LISTS, second=CODE_LISTS, drained=st.booleans())
    def worker_is_overtaken(
        self, number: int, first: list[str | None], second: list[str | None], drained: bool
    ) -> None:
        """It stands still after its claim, past its lease; a newer version comes; then its own call goes out."""
        self._edit(number, first)
        claim = self._claim("late")
        if not claim["rows"]:
            return
        self.was_late = True
        self._edit(number, second)
        if drained:
            self.world.round()
        if claim["operation"] == "upsert":
            self.world.client.create_multiple(self.store, [row["label"] for row in claim["rows"]])
        else:
            self.world.client.del_multiple(self.store, [row["code"] for row in claim["rows"]])
        self.world.buffer.push_finish(
            push_id=claim["push_id"],
            store_code=self.store,
            operation=claim["operation"],
            outcome="accepted",
            rows=[{"code": row["code"], "generation": row["generation"]} for row in claim["rows"]],
        )

    def _claim(self, run_id: str) -> dict[str, Any]:
        self.world.round(batch_size=0)
        shop = {"source_system": "shopify", "source_store_id": self.shop}
        return self.world.buffer.push_claim(
            limit=10, lease_seconds=0, max_attempts=100, run_id=run_id, asset=ASSET, shop=shop
        )

    # What must hold

    @invariant()
    def every_push_has_its_intent(self) -> None:
        pushes = self.world.sandbox.state()["pushes"].get(self.store, {})
        logged = self.world.sql(
            "select code, count(*) as n from esl.sync_log where kind = 'intent' and store_code = %s group by code",
            self.store,
        )
        intents = {row["code"]: row["n"] for row in logged}
        assert all(intents.get(code, 0) >= n for code, n in pushes.items())

    def teardown(self) -> None:
        self.back_off_ends()
        for index in set(range(len(self.messages))) - self.delivered:
            self._deliver(index)
        self.world.buffer.mapping_update(self.mapping, {"is_active": True})
        self.world.settle()
        self.world.buffer.redrive(store=self.store)
        self.world.settle()
        self._check_labels()
        self._check_order()

    def _check_labels(self) -> None:
        on_shelf = [
            (item["barcode"], item["price"], str(item["id"]))
            for body in self.newest.values()
            if body is not None and body["status"] == "active"
            for item in body["variants"]
        ]
        codes = [code for code, price, _ in on_shelf if code and price]
        wanted = {code: price for code, price, _ in on_shelf if code and price and codes.count(code) == 1}
        held = {number for code, price, number in on_shelf if not (code and price) or codes.count(code) > 1}
        shown = self.world.prices(self.store)
        assert {code: shown.get(code) for code in wanted} == wanted
        ledger = self.world.sql(
            "select code, variant_id, label ->> 'pp' as price from esl.hipoink_products where store_code = %s",
            self.store,
        )
        assert {row["code"]: row["price"] for row in ledger} == shown
        assert {row["variant_id"] for row in ledger if row["code"] not in wanted} <= held

    def _check_order(self) -> None:
        """No older version after a newer one; a late worker's may come, if something follows."""
        for changes in self.world.sandbox.state()["history"].get(self.store, {}).values():
            highest: dict[str, float] = {}
            for position, change in enumerate(changes):
                record = change["record"]
                if record is None:
                    continue
                version = float(record["pp"])
                if version < highest.get(record["pi"], 0):
                    assert self.was_late
                    assert position < len(changes) - 1
                highest[record["pi"]] = max(version, highest.get(record["pi"], 0))


def test_every_history_converges(world: World) -> None:
    ShopAndShelf.world = world
    run_state_machine_as_test(
        ShopAndShelf,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # to shrink a failure takes longer than a test may
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
