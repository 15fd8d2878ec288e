"""The actions for physical labels, against the sandbox; and lists that a server gives in its own way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from esl_pipeline.hipoink import HipoinkError, RejectedError, TransientError
from esl_pipeline.hipoink.devices import Binding, Devices, Reachable, is_not_known
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running, running_sandbox

STORE = "001"


@pytest.fixture(scope="module")
def running_one() -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(time_zone="Europe/Berlin")) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running_one: Sandbox) -> Sandbox:
    running_one.clear()
    with client_of(running_one.url) as client:
        client.create_multiple(STORE, [{"pc": f"C-{n}", "pn": "Tea", "pp": "1.00"} for n in range(3)])
    return running_one


@pytest.fixture
def devices(sandbox: Sandbox) -> Iterator[Devices]:
    with client_of(sandbox.url, retries=1) as client:
        yield Devices(client)


def hang(sandbox: Sandbox, **wish: Any) -> list[str]:
    answer = sandbox.http.put("/sandbox/devices", json={"store": STORE, **wish}).raise_for_status()
    codes: list[str] = answer.json()["esl_codes"]
    return codes


def shelf(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    return {row["esl_code"]: row for row in sandbox.http.get(f"/sandbox/shelf?store={STORE}").json()}


def test_every_label_comes_once_over_many_pages(devices: Devices, sandbox: Sandbox) -> None:
    codes = hang(sandbox, count=45, unbound=2)
    pages = list(devices.query_pages(STORE, 10))
    assert [row["esl_code"] for page in pages for row in page] == codes
    assert [len(page) for page in pages] == [10, 10, 20, 7]
    assert devices.query_count(STORE) == Reachable(47, 0)
    assert {row["esl_code"] for row in devices.query_status(STORE, codes[3:5])} == set(codes[3:5])


def test_labels_are_bound_flash_and_are_unbound(devices: Devices, sandbox: Sandbox) -> None:
    first, second, third = hang(sandbox, products=[], unbound=3)
    (template, *_) = devices.templates(STORE)
    devices.bind(STORE, Binding(first, "C-0", template["id"]))  # type: ignore[arg-type]
    devices.bind_multiple(STORE, [Binding(second, "C-1"), Binding(third, "C-2", template["id"])])  # type: ignore[arg-type]
    assert [row["product_code"] for row in devices.query_page(STORE, 1, 10).rows] == ["C-0", "C-1", "C-2"]
    devices.unbind(STORE, second)
    devices.flash(STORE, [first, first])
    assert shelf(sandbox)[second]["product_code"] is None
    with pytest.raises(RejectedError, match="esl_code not exists"):
        devices.flash(STORE, ["nothing"])
    for nothing in ("", "0", " "):
        with pytest.raises(ValueError, match="names nothing"):
            devices.bind(STORE, Binding(nothing, "C-0"))


def test_the_servers_zone_is_asked_for_once_and_without_the_sign() -> None:
    app, asked = FastAPI(), []

    @app.get("/api/query/env")
    def env(request: Request) -> dict[str, str]:
        asked.append(str(request.url.query))
        return {"timezone": " Asia/Shanghai "}

    with running(app) as url, client_of(url) as client:
        found = Devices(client)
        assert [found.time_zone(), found.time_zone()] == ["Asia/Shanghai"] * 2
    assert asked == [""]


def test_a_server_of_2020_knows_no_labels() -> None:
    with running_sandbox(generation=2020) as old, client_of(old.url, retries=1) as client:
        devices = Devices(client)
        for ask in (devices.query_count, devices.templates, lambda store: list(devices.query_pages(store))):
            with pytest.raises(HipoinkError) as caught:
                ask(STORE)
            assert is_not_known(caught.value)


# --- lists that are given in a server's own way; who is missing from one is concluded to be gone


@contextmanager
def labels(
    total: int, *, cap: int = 1_000, counted: int | None = None
) -> Iterator[tuple[Devices, list[int]]]:
    """A server with so many labels that gives at most `cap` a page; counted: what it says there are, -1: nothing."""
    app, asked = FastAPI(), list[int]()

    @app.get("/api/default/esl/query_count")
    def query_count() -> Response:
        if counted == -1:
            return JSONResponse({"message": "Not Found"}, 404)
        return JSONResponse({"online_count": total if counted is None else counted, "offline_count": 0})

    @app.get("/api/default/esl/query")
    def query(f1: int, f2: int) -> list[dict[str, str]]:
        asked.append(f1)
        start = (f1 - 1) * min(cap, f2)
        return [{"esl_code": f"E{n}"} for n in range(total)[start : start + min(cap, f2)]]

    with running(app) as url, client_of(url, retries=1) as client:
        yield Devices(client), asked


@pytest.mark.parametrize("counted", [None, -1, 0, 5, 40])
@pytest.mark.parametrize("cap", [10, 20, 1_000])
def test_a_count_that_is_missing_or_too_small_ends_no_list(counted: int | None, cap: int) -> None:
    with labels(47, cap=cap, counted=counted) as (devices, asked):
        assert sum(map(len, devices.query_pages(STORE, 20))) == 47
    assert len(asked) <= 47 / min(cap, 20) + 3, "each page once, and one whose size is tried"


def test_a_list_that_ends_before_its_count_is_not_whole() -> None:
    with labels(47, counted=48) as (devices, _), pytest.raises(TransientError, match="47 of 48 labels"):
        list(devices.query_pages(STORE, 20))


def test_a_list_without_end_is_an_error() -> None:
    with labels(20_000, counted=2) as (devices, _), pytest.raises(TransientError, match="did not end after"):
        list(devices.query_pages(STORE, 1_000))
