"""`esl-pipeline stats` as it is called."""

from collections.abc import Callable

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.stages.drain import read_round
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.orchestration.world import STORE, arrive, map_shop, product
from esl_pipeline_tests.stages.test_numbers import SHOP
from esl_pipeline_tests.world import RUN


def test_a_store_is_told_to_people_and_to_programs(run: Run, configured: None, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    read_round(buffer, run_id=RUN)
    said = run("stats")
    assert said.code == 0 and f"store {STORE}" in said.out and "waiting         1 ready" in said.out
    told = run("stats", "--since", "24h", "--store", STORE, "--json").json
    (store,) = told["stores"]
    assert (store["store"], store["shops"], store["waiting"]) == (STORE, [f"shopify:{SHOP}"], {"ready": 1})
    assert store["accuracy"] is None and store["pushes"] == {}


def test_what_is_not_there_is_refused(refused: Callable[..., str], configured: None) -> None:
    assert "no shop is mapped to store nowhere" in refused("stats", "--store", "nowhere")
    assert "--since soon: write 24h" in refused("stats", "--since", "soon")


def test_no_library_speaks_to_people(
    run: Run, configured: None, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_ENVIRONMENT", "production")
    assert run("stats").err == ""
    assert run("status").err == ""
