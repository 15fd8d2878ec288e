"""What nobody thought of in one variant holds back that variant and no other, of whatever shop."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from esl_pipeline.labels.evaluate import Store, evaluate_together
from esl_pipeline.stages import evaluate
from esl_pipeline_tests.world import World, product


def test_field_03_a_variant_that_cannot_be_judged_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.map()
    world.map("other.myshopify.com", "S2")

    def fragile(parts: Sequence[tuple[pd.DataFrame, Store]]) -> Any:
        if any("Product 3" in set(variants["title"]) for variants, _ in parts):
            raise ZeroDivisionError
        return evaluate_together(parts)

    monkeypatch.setattr(evaluate, "evaluate_together", fragile)
    world.update(*(product(number) for number in range(1, 6)))
    world.update(product(9), shop="other.myshopify.com")

    world.settle()

    assert set(world.labels()) == {"C-1", "C-2", "C-4", "C-5"} and set(world.labels("S2")) == {"C-9"}
    assert world.findings() == {("3", "not_judged")}

    monkeypatch.undo()
    world.settle(product(3, version=2, title="Product 3, again"))
    assert "C-3" in world.labels() and world.findings() == set()
