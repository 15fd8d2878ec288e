"""Wrong signatures: counted for mapped shops alone, told by a timer and by no request, shown by status."""

import asyncio
import io
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from rich.console import Console

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferUnavailable
from esl_pipeline.commands.status import print_status
from esl_pipeline.receiver import refusals as module
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.refusals import QUIET, TELL_SECONDS, Refusals
from esl_pipeline_tests.receiver.support import (
    PRODUCT,
    SHOP,
    make_app,
    make_settings,
    served,
    signed,
)
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

UPDATE = "/webhooks/shopify/products/update"
RAW = json.dumps(PRODUCT).encode()
KEY = {"source_system": "shopify", "source_store_id": SHOP}
NOW = datetime(2026, 3, 1, 0, 59, tzinfo=UTC)


@pytest.fixture
def mapped(watched: WatchedBuffer) -> WatchedBuffer:
    watched.mapping_create(KEY | {"hipoink_store_code": "001"})
    watched.forget_calls()
    return watched


def counted(buffer: Any) -> Refusals:
    """That knows which shops are mapped."""
    refusals = Refusals()
    tell(refusals, buffer)
    return refusals


def tell(refusals: Refusals, buffer: Any) -> None:
    asyncio.run(refusals.tell(buffer))


def test_a_series_is_told_once_and_whole(mapped: WatchedBuffer) -> None:
    refusals = counted(mapped)
    for minutes in (0, 1, 5):
        refusals.refused("shopify", SHOP, NOW + timedelta(minutes=minutes))
    for _ in range(2):
        tell(refusals, mapped)
    series = KEY | {"refused": 3, "since": NOW.isoformat(), "receiver": refusals.receiver}
    assert mapped.told == [series | {"last_at": (NOW + timedelta(minutes=5)).isoformat()}]
    refusals.refused("shopify", SHOP, NOW + timedelta(minutes=6))
    tell(refusals, mapped)
    assert mapped.told[1]["refused"] == 4  # the series, not what came since
    later = NOW + QUIET + timedelta(minutes=7)
    refusals.refused("shopify", SHOP, later)
    tell(refusals, mapped)
    assert (mapped.told[2]["refused"], mapped.told[2]["since"]) == (1, later.isoformat())


def test_what_no_mapped_shop_is_said_to_have_sent_is_not_counted(mapped: WatchedBuffer) -> None:
    refusals = Refusals()
    refusals.refused("shopify", SHOP, NOW)  # which shops are mapped is not known yet
    tell(refusals, mapped)
    for shop in (None, "stranger.myshopify.com"):
        refusals.refused("shopify", shop, NOW)
    tell(refusals, mapped)
    assert mapped.told == []


def test_as_many_shops_are_counted_as_the_table_holds(mapped: WatchedBuffer) -> None:
    shops = [f"shop-{number}.myshopify.com" for number in range(4)]
    for shop in shops:
        mapped.mapping_create(KEY | {"source_store_id": shop, "hipoink_store_code": shop[:6]})
    refusals = Refusals(shops=3)
    tell(refusals, mapped)
    for shop in (shops[0], *shops):
        refusals.refused("shopify", shop, NOW)
    tell(refusals, mapped)
    assert [row["source_store_id"] for row in mapped.told] == shops[1:]


def test_what_could_not_be_told_is_told_the_next_time(mapped: WatchedBuffer) -> None:
    refusals = counted(mapped)
    refusals.refused("shopify", SHOP, NOW)
    with mapped.failing(BufferUnavailable("away")), pytest.raises(BufferUnavailable):
        tell(refusals, mapped)
    tell(refusals, mapped)
    assert [row["refused"] for row in mapped.told] == [1]


def test_the_timer_outlives_every_error(mapped: WatchedBuffer, caplog: pytest.LogCaptureFixture) -> None:
    refusals = counted(mapped)
    refusals.refused("shopify", SHOP, NOW)

    async def go() -> None:
        with mapped.failing(BufferUnavailable("away")):
            telling = asyncio.create_task(refusals.keep_telling(mapped, seconds=0.001))
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        assert not telling.done()
        telling.cancel()

    asyncio.run(go())
    assert [row["refused"] for row in mapped.told] == [1]
    assert sum("cannot be told" in record.getMessage() for record in caplog.records) == 1


def test_no_refused_request_makes_a_call(mapped: WatchedBuffer) -> None:
    with served(make_app(mapped)) as url, httpx.Client(base_url=url) as client:
        for secret in ("wrong", "wrong-too"):
            headers = signed("products/update", RAW, secret=secret)
            assert client.post(UPDATE, content=RAW, headers=headers).status_code == 401
    assert mapped.calls == [] and mapped.told == []


def shown(buffer: Buffer) -> str:
    text = io.StringIO()
    print_status(Console(file=text, width=200), buffer.status())
    return text.getvalue()


@pytest.mark.long
def test_a_wrong_secret_is_shown_by_status(buffer: Buffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over real HTTP and the real buffer; the timer is faster than its seconds, which are few enough."""
    assert TELL_SECONDS <= 30
    monkeypatch.setattr(module.Refusals.keep_telling, "__defaults__", (0.02,))
    buffer.mapping_create(KEY | {"hipoink_store_code": "001"})
    with served(create_app(make_settings(), buffer)) as url, httpx.Client(base_url=url) as client:

        def send(secret: str, **changes: Any) -> int:
            raw = json.dumps(PRODUCT | {"title": secret}).encode()
            headers = signed("products/update", raw, **({"secret": secret} if secret else {}), **changes)
            return client.post(UPDATE, content=raw, headers=headers).status_code

        eventually(lambda: send("wrong") == 401 and buffer.status()["refused"])
        count = -1
        while (
            now := buffer.status()["refused"][0]["refused"]
        ) != count:  # those sent meanwhile are told later
            count = now
            time.sleep(0.3)
        for claim in ("stranger.myshopify.com", "nonsense", None):
            assert send("wrong", shop_domain=claim) == 401
        assert send("wrong", hmac_sha256=None) == 401  # who signs nothing has no wrong secret
        for _ in range(4):
            assert send("wrong") == 401
        eventually(lambda: sum(row["refused"] for row in buffer.status()["refused"]) == count + 4)
        assert f"{SHOP}: {count + 4} refused since " in shown(buffer)
        assert ": wrong secret?" in shown(buffer) and "stranger" not in shown(buffer)
        raw = json.dumps(PRODUCT).encode()
        assert client.post(UPDATE, content=raw, headers=signed("products/update", raw)).status_code == 200
    assert "but the newest webhook was accepted" in shown(buffer)
