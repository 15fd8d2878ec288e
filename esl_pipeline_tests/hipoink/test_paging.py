"""Pages grow as far as the label server goes, and whatever it does instead: each row is read once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from esl_pipeline.hipoink import HipoinkClient, TransientError
from esl_pipeline.hipoink.paging import LARGEST_PAGE
from esl_pipeline_tests.hipoink.servers import client_of, running

FIRST = 20


@dataclass
class Server:
    """A label server with so many rows; asked: pages and sizes."""

    rows: list[dict[str, object]]
    cap: int | None = None
    turns_by: int | None = None
    """Pages are turned by this size, whatever is asked for; None: by the size asked for."""
    breaks_above: int | None = None
    slow_above: int | None = None
    goes_after: int | None = None
    """After so many calls the first row goes."""
    asked: list[tuple[int, int]] = field(default_factory=list)

    def page(self, number: int, size: int) -> Response:
        self.asked.append((number, size))
        if self.breaks_above is not None and size > self.breaks_above:
            return JSONResponse({"error_code": 1, "error_msg": "memory exhausted"}, 500)
        if self.slow_above is not None and size > self.slow_above:
            time.sleep(0.25)
        if len(self.asked) == self.goes_after:
            del self.rows[0]
        start = (number - 1) * (self.turns_by or size)
        return JSONResponse(self.rows[start : start + min(size, self.cap or size)])

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.asked]


def numbered(count: int) -> list[dict[str, object]]:
    return [{"id": number, "product_code": str(number)} for number in range(count)]


@contextmanager
def client_at(server: Server, **options: int) -> Iterator[HipoinkClient]:
    app = FastAPI()

    @app.get("/api/default/product/query_count")
    def query_count() -> dict[str, int]:
        return {"count": len(server.rows)}

    @app.get("/api/default/product/query")
    def query(f1: int, f2: int) -> Response:
        return server.page(f1, f2)

    with running(app) as url, client_of(url, retries=1, **options) as client:
        yield client


def read(server: Server, **options: int) -> list[object]:
    with client_at(server, **options) as client:
        return [row["id"] for row in client.query_all("001", FIRST)]


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 40, 41, 80, 81, 479, 480, 640, 1000])
def test_pages_grow_and_each_row_comes_once(count: int) -> None:
    server = Server(numbered(count))
    assert read(server) == list(range(count))
    if count == 1000:
        assert server.sizes == [20, 20, 40, 80, 160, 320, 640]


def test_pages_do_not_grow_without_bounds() -> None:
    server = Server(numbered(6_000))
    assert len(read(server)) == 6_000
    assert max(server.sizes) == 1_280 <= LARGEST_PAGE
    small = Server(numbered(1_000))
    assert len(read(small, max_answer_bytes=4_000)) == 1_000
    assert max(small.sizes) == 80, "an answer of twice the size would not be taken"


@pytest.mark.long
@pytest.mark.parametrize(
    "odd",
    [
        {"cap": 20},
        {"cap": 20, "turns_by": 20},
        {"cap": 30},
        {"cap": 30, "turns_by": 30},
        {"cap": 100},
        {"cap": 15, "turns_by": 15},
        {"turns_by": 20},
        {"breaks_above": 20},
        {"breaks_above": 100},
    ],
    ids=lambda odd: ", ".join(f"{name} {value}" for name, value in odd.items()),
)
@pytest.mark.parametrize("count", [20, 39, 40, 60, 100, 333, 1000])
def test_servers_that_do_not_give_larger_pages_are_read_whole(odd: dict[str, int], count: int) -> None:
    server = Server(numbered(count), **odd)  # type: ignore[arg-type]
    if odd == {"cap": 30, "turns_by": 30} and count > FIRST:
        with pytest.raises(
            TransientError, match="the listing ended"
        ):  # pages that skip rows, as they ever were
            read(server)
        return
    assert read(server) == list(range(count))
    bound = odd.get("cap") or odd.get("turns_by") or odd["breaks_above"]
    tried = [size for size in server.sizes if size > max(bound, FIRST)]
    assert len(tried) <= 1, "what failed is not tried again"
    plain = [size for size in server.sizes if size <= max(bound, FIRST)]
    assert len(plain) <= count / min(bound, FIRST) + 2


def test_a_server_that_slows_down_with_larger_pages_keeps_the_smaller_ones() -> None:
    server = Server(numbered(600), slow_above=80)
    assert read(server) == list(range(600))
    assert server.sizes == [20, 20, 40, 80, 160, *[80] * 4]


def test_a_row_may_slip_between_pages_of_two_sizes_as_between_any() -> None:
    server = Server(numbered(200), goes_after=3)
    assert read(server) == [*range(40), *range(41, 200)]
    assert server.sizes[:3] == [20, 20, 40]


def test_the_same_page_for_ever_ends() -> None:
    server = Server(numbered(200))
    server.page = lambda *_: JSONResponse(server.rows[:FIRST])  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="after 20 of 200 products"):
        read(server)
