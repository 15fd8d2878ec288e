"""A delivery that no run survives: it dies alone, with its reason, and comes back when it is sent again."""

from collections.abc import Sequence
from typing import Any

import pytest

from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.shopify.source import ShopifySource
from esl_pipeline_tests.world import World, product

GOOD = 60


class _PoisonError(Exception):
    """A defect of a reader, found by one body."""


class _Poisoned(ShopifySource):
    @classmethod
    def read_deliveries(cls, deliveries: Sequence[Any]) -> Facts:
        facts = super().read_deliveries(deliveries)
        if any(row["title"] == "poison" for row in facts.products):
            raise _PoisonError
        return facts


@pytest.mark.long
def test_f11_a_poison_delivery_dies_alone_and_can_be_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.map()
    bodies = [product(number) for number in range(1, GOOD + 1)]
    bodies.insert(37, product(999, title="poison"))
    monkeypatch.setitem(SOURCES, "shopify", _Poisoned)
    world.update(*bodies)
    failed = 0
    for _ in range(80):
        if not set(world.inbox()) & {"ready", "leased"}:
            break
        done = world.round(batch_size=1000)
        if done.failure is not None:
            assert isinstance(done.failure, _PoisonError)
            failed += 1
            world.expire_leases()
    assert failed == 8
    (dead,) = world.sql("select attempts, reason from esl.webhook_inbox where state = 'dead'")
    assert dead == {"attempts": 8, "reason": "given up after 8 attempts: the run that read it never finished"}
    world.settle(batch_size=1000)
    assert set(world.labels()) == {f"C-{number}" for number in range(1, GOOD + 1)}

    monkeypatch.undo()  # the defect is mended
    assert world.buffer.redrive()["deliveries"] == 1
    world.settle()
    assert "C-999" in world.labels()
    assert set(world.inbox()) == {"done"}
