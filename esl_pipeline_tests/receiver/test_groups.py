"""Deliveries that arrive together are kept by one call, and each sender is told of its own."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest

from esl_pipeline.buffer.errors import BufferUnavailable
from esl_pipeline.receiver import groups
from esl_pipeline.receiver.groups import Groups
from esl_pipeline_tests.receiver.support import PRODUCT, make_app, served, signed
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

pytestmark = pytest.mark.long

UPDATE = "/webhooks/shopify/products/update"
OTHERS = tuple(f"shop-{n}.myshopify.com" for n in range(5))


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def post(url: str, number: int, shop: str = OTHERS[0], **changes: Any) -> httpx.Response:
    raw = json.dumps(PRODUCT | {"id": number + 1}).encode()
    return httpx.post(
        url + UPDATE,
        content=raw,
        headers=signed("products/update", raw, shop_domain=shop, **{"webhook_id": f"w-{number}"} | changes),
        timeout=30,
    )


@contextmanager
def held_up(buffer: WatchedBuffer, url: str, pool: ThreadPoolExecutor) -> Iterator[None]:
    """A call is under way meanwhile, so whatever comes waits and goes together at the end."""
    release = buffer.stall("inbox_add")
    held = pool.submit(post, url, 9_000, "held.myshopify.com")
    eventually(lambda: len(buffer.calls) == 1)
    yield
    release.set()
    assert held.result().status_code == 200


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, made_groups: list[Groups]) -> list[Groups]:
    """No call is slow, so that one stays one for as long as a test needs; the groups of each application."""
    monkeypatch.setattr(groups, "SLOW_SECONDS", 60.0)
    return made_groups


def sizes(buffer: WatchedBuffer) -> list[int]:
    return [len(p["deliveries"]) for name, p in buffer.watched.asked if name == "inbox_add"]


def test_what_waits_during_a_commit_is_kept_by_one_call_and_each_200_is_a_row(
    patient: list[Groups],
    buffer: WatchedBuffer,
) -> None:
    with served(make_app(buffer)) as url, ThreadPoolExecutor(60) as pool:
        with held_up(buffer, url, pool):
            sent = [pool.submit(post, url, n, OTHERS[n % 5]) for n in range(50)]
            eventually(lambda: len(patient[0]) == 50)
        answers = [one.result() for one in sent]
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "accepted")}
    assert {f"w-{n}" for n in range(50)} <= {row["webhook_id"] for row in buffer.rows}
    assert sizes(buffer) == [1, 50]


def test_two_copies_in_one_call_are_one_row_one_accepted_and_one_duplicate(
    patient: list[Groups], buffer: WatchedBuffer
) -> None:
    with served(make_app(buffer)) as url, ThreadPoolExecutor(10) as pool:
        with held_up(buffer, url, pool):
            same = [pool.submit(post, url, 1, triggered_at=None) for _ in range(2)]
            same_body = [pool.submit(post, url, 2, webhook_id=id, triggered_at=None) for id in ("a", "b")]
            eventually(lambda: len(patient[0]) == 4)
        for pair in (same, same_body):
            assert sorted(one.result().json()["status"] for one in pair) == ["accepted", "duplicate"]
    assert sizes(buffer) == [1, 4] and len(buffer.rows) == 3


POISON = """
create function esl.poison() returns trigger language plpgsql as $$
begin
    if new.webhook_id = 'w-poison' then raise exception 'poison' using errcode = '{code}'; end if;
    return new;
end $$;
create trigger poison before insert on esl.webhook_inbox for each row execute function esl.poison()
"""


@pytest.mark.parametrize("code", ["22023", "54000", "XX000"])
def test_a_poisonous_delivery_does_not_fail_those_beside_it(
    patient: list[Groups], buffer: WatchedBuffer, code: str
) -> None:
    with psycopg.connect(buffer.dsn, autocommit=True) as connection:
        connection.execute(POISON.replace("{code}", code).encode())
        try:
            with served(make_app(buffer)) as url, ThreadPoolExecutor(30) as pool:
                with held_up(buffer, url, pool):
                    good = [pool.submit(post, url, n, OTHERS[n % 3]) for n in range(20)]
                    bad = pool.submit(post, url, 100, OTHERS[0], webhook_id="w-poison")
                    eventually(lambda: len(patient[0]) == 21)
                assert {one.result().status_code for one in good} == {200}
                assert (bad.result().status_code, bad.result().headers["retry-after"]) == (503, "5")
        finally:
            connection.execute("drop trigger poison on esl.webhook_inbox; drop function esl.poison()")
    assert Counter(row["webhook_id"] for row in buffer.rows) >= Counter(f"w-{n}" for n in range(20))
    # All together; then each shop apart, and of the one with the poison half by half.
    assert len(buffer.calls) <= 1 + 1 + 3 + 2 * 3


def test_a_database_that_goes_in_the_middle_fails_all_of_a_call_and_they_come_again(
    patient: list[Groups],
    buffer: WatchedBuffer,
) -> None:
    with served(make_app(buffer)) as url, ThreadPoolExecutor(30) as pool:
        release = buffer.stall("inbox_add")
        sent = [pool.submit(post, url, n, OTHERS[n % 2]) for n in range(20)]
        eventually(lambda: len(buffer.calls) == 1)
        buffer.watched.failure = BufferUnavailable("the buffer is not available", code="57P01")
        release.set()
        for one in sent:
            assert (one.result().status_code, one.result().headers["retry-after"]) == (503, "5")
        buffer.watched.failure = None
        assert not buffer.rows and len(buffer.calls) < 20  # and none was tried apart
        again = [pool.submit(post, url, n, OTHERS[n % 2]) for n in range(20)]
        assert {one.result().status_code for one in again} == {200}
    assert sorted(row["webhook_id"] for row in buffer.rows) == sorted(f"w-{n}" for n in range(20))


def test_who_is_refused_in_a_call_is_refused_alone(patient: list[Groups], buffer: WatchedBuffer) -> None:
    """Of a shop that nobody has mapped no more waits than may; a shop beside it is kept."""
    real = buffer.watched._real
    call = real.call

    def few(function: str, p: Any) -> Any:
        return call(function, {**p, "unmapped_deliveries": 3} if function == "esl_inbox_add" else p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "call", few)
        with served(make_app(buffer)) as url, ThreadPoolExecutor(30) as pool:
            assert [post(url, n, OTHERS[0]).status_code for n in range(3)] == [200] * 3
            buffer.forget_calls()
            with held_up(buffer, url, pool):
                crowd = [pool.submit(post, url, n, OTHERS[0]) for n in (10, 11)]
                beside = pool.submit(post, url, 12, OTHERS[1])
                eventually(lambda: len(patient[0]) == 3)
            assert {one.result().status_code for one in crowd} == {429}
            assert beside.result().status_code == 200


def test_what_one_shop_waits_for_holds_the_others_up_for_a_moment_only(
    patient: list[Groups], buffer: WatchedBuffer
) -> None:
    """Somebody has locked a row that the first shop's delivery has to wait for."""
    with served(make_app(buffer)) as url, ThreadPoolExecutor(10) as pool:
        with psycopg.connect(buffer.dsn) as blocker:
            with held_up(buffer, url, pool):
                blocker.execute(
                    "insert into esl.webhook_inbox (source_system, source_store_id, topic, webhook_id, body_sha256)"
                    " values ('shopify', %s, 'products/update', 'w-1', 'x')",
                    [OTHERS[0]],
                )
                locked, free = pool.submit(post, url, 1, OTHERS[0]), pool.submit(post, url, 2, OTHERS[1])
                eventually(lambda: len(patient[0]) == 2)
            assert free.result(timeout=10).json() == {"status": "accepted"}
            assert not locked.done()
            blocker.rollback()
        assert locked.result().json() == {"status": "accepted"}


def test_groups_are_bounded_and_a_shop_is_in_one_call_at_a_time() -> None:
    class Slowly:
        """Notes what is under way."""

        def __init__(self) -> None:
            self.under_way, self.seen = Counter[str](), list[list[dict[str, Any]]]()

        def inbox_add_each(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            shops = {row["shop"] for row in rows}
            self.under_way.update(shops)
            assert max(self.under_way.values()) == 1 and self.under_way.total() <= 2 * 3
            self.seen.append(rows)
            time.sleep(0.01)
            self.under_way.subtract(shops)
            return [{"inserted": row["n"]} for row in rows]

    buffer = Slowly()

    async def go() -> list[dict[str, Any]]:
        keeping = Groups(buffer, threads=4)  # type: ignore[arg-type]
        rows = [
            {"shop": f"s{n % 3}", "n": n, "state": "done" if n % 50 == 7 else "ready"} for n in range(300)
        ]
        return await asyncio.gather(
            *(keeping.keep(row, str(row["shop"]), 30_000 if row["n"] < 100 else 10) for row in rows)
        )

    assert [answer["inserted"] for answer in asyncio.run(go())] == list(range(300))
    assert max(len(rows) for rows in buffer.seen) <= groups.ROWS
    assert all(sum(30_000 if row["n"] < 100 else 10 for row in rows) <= groups.BYTES for rows in buffer.seen)
    assert all(len(rows) == 1 for rows in buffer.seen if any(row["state"] == "done" for row in rows))


def test_who_waits_too_long_for_a_call_is_503(buffer: WatchedBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(groups, "SLOW_SECONDS", 0.1)
    with served(make_app(buffer)) as url, ThreadPoolExecutor(3) as pool:
        release = buffer.stall("inbox_add")
        first = pool.submit(post, url, 1)
        eventually(lambda: len(buffer.calls) == 1)
        assert post(url, 2).status_code == 503  # of the same shop
        release.set()
        assert first.result().status_code == 200
    assert [row["webhook_id"] for row in buffer.rows] == ["w-1"]
