"""A shop's day for the console: a store with labels in every state, hostile names, and somebody who is signed in."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.guard import Guard
from esl_pipeline.hipoink.devices import Devices
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.tokens import digest
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.stages.devices import read_devices
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.receiver.support import make_settings, served
from esl_pipeline_tests.world import RUN, STORE, World, product, variant

WRITER = "esl_writer-token-of-32-characters-and-more"
READER = "esl_reader-token-of-32-characters-and-more"

SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
LONG = "Endless oat biscuits with " + "very " * 50 + "long name"
RIGHT_TO_LEFT = "عصير برتقال طازج ١ لتر \u202egnp.exe"
EMOJI = "Family pack 👨‍👩‍👧 🍎🍎 {{ 7 * 7 }}"
ODD_CODE = "A/B C?d=1&e#f%20"


@pytest.fixture(scope="package")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox(LabelStore(auto_trigger=False)) as sandbox:
        yield sandbox


@pytest.fixture
def world(buffer: Buffer, buffer_dsn: str, label_server: Sandbox) -> Iterator[World]:
    label_server.clear()
    with client_of(label_server.url, retries=1, timeout_seconds=0.5) as client:
        yield World(buffer, buffer_dsn, label_server, client)


@pytest.fixture
def tokens(buffer: Buffer) -> None:
    """Two tokens: of ana, who may act, and of bo, who may look."""
    buffer.token_add(name="ana", sha256=digest(WRITER), scope="write")
    buffer.token_add(name="bo", sha256=digest(READER), scope="read")


def guarded_app(buffer: Buffer, only: str | None = "admin") -> FastAPI:
    """The application as the command serves it."""
    app = create_app(make_settings(), buffer, only=only)  # type: ignore[arg-type]
    app.add_middleware(
        Guard,
        names=("127.0.0.1",),
        pages={"/", "/docs", "/health", "/console", "/console/*"},
        only_json=False,
    )
    return app


def a_day(world: World) -> None:
    """A store with labels that hang, one that is refused, one held back, and hostile names."""
    world.map()
    world.sandbox.faults({"kind": "bad_codes", "codes": ["C-8"]})
    names = {1: "Espresso beans, dark roast 1 kg", 2: SCRIPT, 3: LONG, 4: RIGHT_TO_LEFT, 5: EMOJI}
    bodies = [product(n, title=title, variants=[variant(n, price=f"{n}2.49")]) for n, title in names.items()]
    bodies.append(product(7, title="Without a price", variants=[variant(7, price="0.00")]))
    bodies.append(product(8, title="Refused crackers"))
    world.settle(*bodies)
    world.sandbox.faults()
    odd_code(world)
    world.sandbox.hang(STORE, products=["C-1"])
    read_devices(world.buffer, Devices(world.client), store=STORE, run_id=RUN)
    world.settle(
        product(1, 2, title=names[1], variants=[variant(1, price="11.90", compare_at_price="12.49")])
    )


def odd_code(world: World) -> None:
    """A label whose code no address can hold as it is."""
    world.sql(
        "insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)"
        " select store_code, %s, mapping_id, variant_id, label, label_hash, push_id from esl.hipoink_products"
        " where code = 'C-2'",
        ODD_CODE,
    )


def approvals(world: World) -> None:
    """So many prices fall by so much that somebody has to look."""
    world.settle(*(product(n, variants=[variant(n, price="20.00")]) for n in range(20, 40)))
    world.settle(*(product(n, 3, variants=[variant(n, price="2.00")]) for n in range(20, 40)))


@contextmanager
def browsing(url: str, token: str) -> Iterator[httpx.Client]:
    """Somebody who has signed in, without a browser; what it sends is as a browser would from a page of the console."""
    with httpx.Client(
        base_url=url, timeout=20, headers={"Origin": url, "Sec-Fetch-Site": "same-origin"}
    ) as client:
        answer = client.post("/console/sign-in", data={"token": token})
        assert answer.status_code == 303, answer.text
        yield client


def sent(client: httpx.Client, path: str, of: str = "/console", **fields: Any) -> httpx.Response:
    """Send a form as the page `of` has it, by its key, and go on to where that leads."""
    (key, *_) = re.findall(r'name="form_key" value="([^"]+)"', client.get(of).text)
    form = {"form_key": key, "back": of, "action_id": str(uuid4()), **fields}
    return client.post(f"/console/{path}", data=form, follow_redirects=True)


def told(answer: httpx.Response) -> str:
    """What the page tells of what was done."""
    found = re.search(r'<p class="told \w+" role="\w+">(.*?)</p>', answer.text)
    assert found, answer.text
    return html.unescape(found[1])


@pytest.fixture
def site(buffer: Buffer, tokens: None) -> Iterator[str]:
    """The address of a running receiver's admin part."""
    with served(guarded_app(buffer)) as url:
        yield url
