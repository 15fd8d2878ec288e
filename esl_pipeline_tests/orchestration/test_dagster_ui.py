"""Dagster's webserver behind the guard, in this process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.types import ASGIApp

from esl_pipeline.orchestration.dagster_ui import guarded_app

OWN = "http://127.0.0.1:3000"
# Changes Dagster's storage, whatever is loaded.
MUTATION = 'mutation { setConcurrencyLimit(concurrencyKey: "attack", limit: 7) }'
LIMITS = "{ instance { concurrencyLimits { concurrencyKey slotCount } } }"
REPORT = "/report_asset_materialization/attack"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[WorkspaceProcessContext]:
    with (
        dg.instance_for_test(temp_dir=str(tmp_path)) as instance,
        WorkspaceProcessContext(instance, workspace_load_target=EmptyWorkspaceTarget()) as found,
    ):
        yield found


def ask(app: ASGIApp, method: str, path: str, **request: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=OWN) as http:
            return await http.request(method, path, **request)

    return asyncio.run(asked())


def attacked(app: ASGIApp) -> list[int]:
    """What a foreign page may try without asking the server first, by a browser that says whose page it is, and one
    that does not.
    """
    body = f'{{"query": "{MUTATION}"}}'.replace('"attack"', '\\"attack\\"')
    statuses = []
    for page in ({}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        told: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", "/graphql", {"params": {"query": MUTATION}, "headers": page}),
            ("POST", "/graphql", {"params": {"query": MUTATION}, "data": {"a": "b"}, "headers": page}),
            *(
                ("POST", "/graphql", {"content": body, "headers": page | {"Content-Type": kind}})
                for kind in ("text/plain; application/json", "multipart/form-data; boundary=application/json")
            ),
        ]
        statuses += [ask(app, method, path, **request).status_code for method, path, request in told]
    return statuses


def limits(app: ASGIApp) -> Any:
    answer = ask(app, "POST", "/graphql", json={"query": LIMITS}, headers={"Origin": OWN})
    return answer.json()["data"]["instance"]["concurrencyLimits"]


@pytest.mark.long
def test_s32_no_foreign_word_reaches_dagster(context: WorkspaceProcessContext) -> None:
    bare = create_app_from_workspace_process_context(context)
    app = guarded_app(context)

    assert set(attacked(app)) == {403}
    assert ask(app, "POST", REPORT, headers={"Origin": "http://127.0.0.1:8090"}).status_code == 403
    assert (
        ask(app, "POST", "/graphql", json={"query": MUTATION}, headers={"Host": "evil.example"}).status_code
        == 421
    )
    assert limits(app) == [] and not context.instance.all_asset_keys()

    # What it is kept from: the same words change Dagster where it stands alone.
    assert attacked(bare)[0] == 200 and limits(app) == [{"concurrencyKey": "attack", "slotCount": 7}]
    assert ask(bare, "POST", REPORT).status_code == 200 and context.instance.all_asset_keys()


def test_s32_dagsters_own_pages_work_and_keep_their_policy(context: WorkspaceProcessContext) -> None:
    app = guarded_app(context, ("ui.example.com",))
    page = ask(app, "GET", "/runs")
    assert page.status_code == 200 and "<!DOCTYPE html>" in page.text
    own, added = page.headers.get_list("content-security-policy")
    assert "script-src 'nonce-" in own and added == "frame-ancestors 'none'"
    assert ask(app, "GET", "/graphql", headers={"Accept": "text/html"}).status_code == 200
    assert ask(app, "GET", "/server_info").json()["dagster_version"] == dg.__version__
    for origin in (OWN, "https://ui.example.com"):
        done = ask(app, "POST", "/graphql", json={"query": MUTATION}, headers={"Origin": origin})
        assert done.json() == {"data": {"setConcurrencyLimit": True}}
