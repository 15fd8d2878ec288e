"""The same as people see it: Dagster's own pages in the system's Chromium (apt-get install chromium)."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import uvicorn

from esl_pipeline.orchestration import near_real_time
from esl_pipeline.orchestration.dagster_ui import guarded_app
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.dagster_pages import Pages
from esl_pipeline_tests.orchestration.test_truth import RESULTS, by_drain, look, two_shops
from esl_pipeline_tests.orchestration.world import KEY, OTHER_KEY, OTHER_SHOP, SHOP
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Of a loop that ends with its thread.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Where pictures go for somebody who wants to look at them.
PICTURES = os.environ.get("ESL_TEST_PICTURES")


@pytest.fixture
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with driver.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def served(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Pipeline, str]]:
    """Dagster's webserver on the instance of these definitions."""
    with dg.instance_for_test(
        temp_dir=str(tmp_path), set_dagster_home=False, overrides={"nux": {"enabled": False}}
    ) as instance:
        instance.add_dynamic_partitions("shops", [KEY, OTHER_KEY])
        pipeline.instance = instance
        monkeypatch.setattr(near_real_time, "HOLD_SECONDS", 0.2)
        with Pages.over(instance) as pages, socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(
                uvicorn.Config(guarded_app(pages.context), log_level="warning", timeout_graceful_shutdown=1)
            )
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            eventually(lambda: server.started, 30)
            yield pipeline, f"http://127.0.0.1:{listening.getsockname()[1]}"
            server.should_exit = True
            thread.join()


def test_the_pages_show_which_shop_has_refused_labels(served: tuple[Pipeline, str], browser: Any) -> None:
    pipeline, url = served
    two_shops(pipeline)
    page = browser.new_page(viewport={"width": 1900, "height": 700})
    page.set_default_timeout(100_000)
    for order in ((SHOP, OTHER_SHOP), (OTHER_SHOP, SHOP)):
        by_drain(pipeline, order)
        look(pipeline)
        last = order[-1].partition(".")[0]

        page.goto(f"{url}/assets/{RESULTS}?view=checks")
        page.get_by_text("Checks (3)").wait_for()
        page.wait_for_timeout(3000)
        assert not page.get_by_text("Not evaluated").count()
        picture(page, f"checks, {last} last")

        page.goto(f"{url}/locations/__repository__@esl_pipeline/asset-groups/labels")
        page.wait_for_timeout(15000)
        picture(page, f"graph, {last} last")

        page.goto(f"{url}/assets/{RESULTS}?view=checks&checkDetail=backlog")
        page.wait_for_timeout(6000)
        page.get_by_text("Partitions", exact=True).last.click()
        page.wait_for_timeout(6000)
        picture(page, f"backlog, {last} last")


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name.replace(', ', '-').replace(' ', '-')}.png")
