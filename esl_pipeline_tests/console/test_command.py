"""`esl-pipeline console` as a process of its own, whose login may do what an administrator may and nothing else."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from esl_pipeline_tests.console.conftest import WRITER, browsing, sent, told
from esl_pipeline_tests.reliability.test_roles import login
from esl_pipeline_tests.world import STORE, World, product

pytestmark = pytest.mark.long


@pytest.fixture
def command(world: World, tokens: None) -> Iterator[str]:
    """The address of the running command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment["ESL_DATABASE_URL"] = login(world.dsn, "esl_admin")
    process = subprocess.Popen(
        [sys.executable, "-m", "esl_pipeline.commands.cli", "console", "--port", str(port)], env=environment
    )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/health").raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None and time.monotonic() < deadline, "it does not answer"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_the_command_serves_the_console_with_an_administrators_login(world: World, command: str) -> None:
    world.map()
    world.settle(product(1), product(2))
    assert httpx.get(command, headers={"Host": "rebound.example"}).status_code == 421
    assert httpx.get(command, follow_redirects=True).url.path == "/console/sign-in"
    with browsing(command, WRITER) as ana:
        label = f"/console/label?store={STORE}&code=C-1"
        for page in (
            "/console",
            "/console/search?q=product",
            label,
            f"/console/stores/{STORE}",
            "/console/approvals",
        ):
            assert ana.get(page).status_code == 200, page
        assert told(sent(ana, "push-again", label, store=STORE, code="C-1")).startswith("It is sent again")
        assert told(sent(ana, "try-again", store=STORE)).endswith("tried again now.")
        assert told(sent(ana, "pause", store=STORE, reason="x", hours="1")).startswith("Store S1 is paused")
        assert told(sent(ana, "resume", store=STORE)).startswith("Store S1 goes on")
        assert told(sent(ana, "try-server", label_server="default"))
    by = {row["by"] for row in world.buffer.operator_actions(limit=20)}
    assert by == {"ana"}
