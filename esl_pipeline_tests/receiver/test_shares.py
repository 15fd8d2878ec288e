"""What one shop may take of the receiver, and who sent a request."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from esl_pipeline.addresses import networks, one_form, sender, whose
from esl_pipeline.receiver.intake import Limits
from esl_pipeline.receiver.pace import PAUSE_SECONDS, Backlog, Pace
from esl_pipeline.receiver.places import Room
from esl_pipeline.receiver.tokens import digest, new_token
from esl_pipeline.sources.shopify import webhooks
from esl_pipeline_tests.receiver.support import (
    PRODUCT,
    SHOP,
    TOKEN,
    call,
    deliver,
    make_app,
    make_settings,
    served,
    signed,
)
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

OTHER = "other-shop.myshopify.com"
UPDATE = "/webhooks/shopify/products/update"
MAPPINGS = "/api/store-mappings/"


@pytest.fixture
def buffer(watched: WatchedBuffer) -> WatchedBuffer:
    return watched


def post(url: str, raw: bytes, shop: str = SHOP) -> httpx.Response:
    headers = signed("products/update", raw, shop_domain=shop)
    return httpx.post(url + UPDATE, content=raw, headers=headers, timeout=30)


# S34: shares


def test_s34_a_shop_may_have_as_much_in_work_as_is_left_for_the_others() -> None:
    room = Room(size=100, unfinished=10, kept=100)
    with (
        room.share("a", 50) as a,
        room.share("a", 1) as more,
        room.share("b", 25) as b,
        room.share("b", 1) as again,
    ):
        assert (a, more, b, again) == (True, False, True, False)
        with room.share("c", 12) as c:
            assert c
    with room.share("a", 50) as a:
        assert a


def test_s34_places_are_shared_like_bytes() -> None:
    room = Room(size=1_000, unfinished=10, kept=4)
    with (
        room.share("a", 1) as one,
        room.share("a", 1) as two,
        room.share("a", 1) as three,
        room.share("b", 1) as b,
    ):
        assert (one, two, three, b) == (True, True, False, True)


def test_s29_unfinished_bodies_take_no_more_than_the_room_and_the_oldest_gives_way() -> None:
    async def go() -> None:
        room = Room(size=10, unfinished=3, kept=10)
        with room.place() as one, room.place() as two:
            one.add(b"12345")
            two.add(b"12345")
            two.add(b"6")
            assert one.gave_way and not one.body and bytes(two.body) == b"123456"
            one.add(b"x")
            assert not one.body
            assert two.arrived() == b"123456"  # whole: it stays, and still takes room
            with room.place() as three:
                three.add(b"12345")
                assert three.gave_way and not two.gave_way
        with room.place() as one, room.place(), room.place(), room.place():
            assert one.gave_way
        with room.place() as whole:
            whole.add(b"1234567890")
            assert not whole.gave_way

    asyncio.run(go())


def test_s34_bytes_have_a_pace_too(buffer: WatchedBuffer) -> None:
    pace = Pace(per_second=10, burst=100)
    assert [pace.wait("a", 0, 60), pace.wait("a", 0, 40), pace.wait("a", 0, 10), pace.wait("b", 0, 60)] == [
        0,
        0,
        1,
        0,
    ]
    assert [pace.wait("c", 0, 1_000), pace.wait("c", 0, 1)] == [
        0,
        90.1,
    ]  # longer than the burst: once it is full
    app = make_app(buffer, Limits(bytes_per_second=1, burst_bytes=1_000))
    answers = [deliver(app, "products/update", PRODUCT | {"title": n * "x"}) for n in (500, 501)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) > 1
    assert deliver(app, "products/update", PRODUCT, shop_domain=OTHER).status_code == 200


def test_s34_the_pace_is_asked_before_the_body_is_parsed(
    buffer: WatchedBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    real = webhooks.delivery

    def delivery(*given: Any) -> dict[str, Any]:
        parsed.append(given)
        return real(*given)

    monkeypatch.setattr(webhooks, "delivery", delivery)
    app = make_app(buffer, Limits(per_second=0.01, burst=1))
    assert [deliver(app, "products/update", PRODUCT).status_code for _ in range(3)] == [200, 429, 429]
    assert len(parsed) == 1


def large(number: int) -> bytes:
    variant = {"id": 1, "title": "large", "price": "1.00", "sku": "a" * 400}
    return json.dumps(PRODUCT | {"id": number, "variants": [variant] * 10_600}).encode()


@pytest.mark.long
def test_s34_bodies_of_megabytes_do_not_hold_up_another_shop(buffer: WatchedBuffer) -> None:
    raw = large(1)
    assert 4_700_000 < len(raw) < 5_000_000
    with served(make_app(buffer, Limits(burst_bytes=100_000_000))) as url, ThreadPoolExecutor(8) as pool:
        many = [pool.submit(post, url, raw) for _ in range(8)]
        times = []
        while not all(one.done() for one in many):
            began = time.monotonic()
            assert post(url, b'{"id":1}', OTHER).status_code == 200
            times.append(time.monotonic() - began)
        assert {one.result().status_code for one in many} <= {200, 503}
        assert post(url, raw).status_code == 200  # what was refused may come again
    times.sort()
    assert times[len(times) // 2] < 1
    assert times[-2] < 2.5  # half of what Shopify waits, with the senders in this process


def test_s34_a_shop_whose_calls_hang_leaves_places_to_another(buffer: WatchedBuffer) -> None:
    with served(make_app(buffer, Limits(storing=8, threads=8))) as url, ThreadPoolExecutor(8) as pool:
        release = buffer.stall("inbox_add")
        hanging = [pool.submit(post, url, b'{"id":%d}' % n) for n in range(6)]
        eventually(lambda: sum(one.done() for one in hanging) == 2)
        other = pool.submit(post, url, b'{"id":1}', OTHER)
        eventually(lambda: len(buffer.calls) == 2)  # no shop is in two calls at a time
        release.set()
        assert other.result().status_code == 200
        assert sorted(one.result().status_code for one in hanging) == [200] * 4 + [503] * 2


# S35: what waits at the buffer


def test_s35_what_the_buffer_refuses_is_429_with_its_reason(
    buffer: WatchedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"received": 1, "inserted": 0, "refused": "500 MB wait for a store mapping"}
    with buffer.answering("inbox_add", said):
        answer = deliver(make_app(buffer), "products/update", PRODUCT)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) == 600
    assert "outcome 429" in caplog.text and "500 MB wait for a store mapping" in caplog.text


@pytest.mark.parametrize("waiting", [{"deliveries": 11, "bytes": 0}, {"deliveries": 0, "bytes": 1_001}])
def test_s34_a_shop_with_too_much_still_to_be_worked_off_pauses_without_another_call(
    buffer: WatchedBuffer, waiting: dict[str, int]
) -> None:
    app = make_app(buffer, Limits(waiting=10, waiting_bytes=1_000))
    with buffer.answering("inbox_add", {"received": 1, "inserted": 1, "waiting": waiting}):
        answers = [deliver(app, "products/update", PRODUCT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert 1 <= int(answers[1].headers["retry-after"]) <= PAUSE_SECONDS
    assert len(buffer.calls) == 1
    assert deliver(app, "products/update", PRODUCT, shop_domain=OTHER).status_code == 200


def test_s34_a_pause_ends_and_the_next_answer_is_the_newest() -> None:
    backlog = Backlog(10, 1_000)
    backlog.told("a", {"deliveries": 11, "bytes": 0}, 100)
    assert (backlog.wait("a", 101), backlog.wait("b", 101)) == (PAUSE_SECONDS - 1, 0)
    assert backlog.wait("a", 100 + PAUSE_SECONDS) == 0
    backlog.told("a", {"deliveries": 10, "bytes": 1_000}, 101)
    assert backlog.wait("a", 101) == 0
    backlog.told("a", None, 101)
    assert backlog.wait("a", 101) == 0


# S41: whose word about an address counts


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "found"),
    [
        ("127.0.0.1", ["9.9.9.9"], "", "127.0.0.1"),
        ("127.0.0.1", ["9.9.9.9"], "127.0.0.1", "9.9.9.9"),
        ("::ffff:127.0.0.1", ["9.9.9.9"], "127.0.0.1", "9.9.9.9"),
        ("127.0.0.1", ["9.9.9.9"], "::ffff:127.0.0.1", "9.9.9.9"),
        ("10.0.0.7", ["1.1.1.1, 9.9.9.9"], "10.0.0.0/8", "9.9.9.9"),
        ("10.0.0.7", ["1.1.1.1", "9.9.9.9, 10.0.0.8"], "10.0.0.0/8", "9.9.9.9"),
        ("10.0.0.7", ["8.8.8.8, invented"], "10.0.0.0/8", "10.0.0.7"),
        ("10.0.0.7", ["::ffff:9.9.9.9"], "10.0.0.7", "9.9.9.9"),
        ("10.0.0.7", ["9.9.9.9:4711"], "10.0.0.7", "9.9.9.9"),
        ("10.0.0.7", ["[2001:db8::1]:4711"], "10.0.0.7", "2001:db8::1"),
        ("10.0.0.7", ["10.0.0.8"], "10.0.0.0/8", "10.0.0.8"),
        ("10.0.0.7", [], "10.0.0.7", "10.0.0.7"),
    ],
)
def test_s41_forwarded_for_counts_only_from_those_who_are_trusted(
    peer: str, forwarded: list[str], trusted: str, found: str
) -> None:
    assert sender(peer, forwarded, networks(trusted)) == found


def test_s41_addresses_have_one_form() -> None:
    assert one_form("::ffff:10.0.0.1") == one_form("10.0.0.1") == "10.0.0.1"
    assert whose("::ffff:10.0.0.1") == whose("10.0.0.1") == "10.0.0.1"
    assert whose("2001:DB8::1") == whose("2001:db8:0:0:ffff::2") == "2001:db8::/64"
    assert whose("2001:db8::1") != whose("2001:db8:0:1::1")


def test_s41_the_setting_is_checked() -> None:
    assert make_settings().trusted_proxies == ()
    assert len(make_settings(esl_trusted_proxies="10.0.0.7, 192.168.1.0/24").trusted_proxies) == 2
    for wrong in ("*", "proxy.example.com", "10.0.0.7/8"):
        with pytest.raises(ValueError, match="ESL_TRUSTED_PROXIES"):
            make_settings(esl_trusted_proxies=wrong)


def guess(url: str, token: str, address: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} | ({"X-Forwarded-For": address} if address else {})
    return httpx.get(url + MAPPINGS, headers=headers).status_code


@pytest.mark.parametrize(("trusted", "last"), [("", 429), ("127.0.0.1", 401)])
def test_s41_by_default_nobody_escapes_a_lockout_by_naming_addresses(
    buffer: WatchedBuffer, trusted: str, last: int
) -> None:
    with served(make_app(buffer), trusted=trusted) as url:
        guesses = [guess(url, "wrong", f"10.0.0.{number}") for number in range(6)]
    assert guesses == [401] * 5 + [last]


def test_s41_who_shares_an_address_with_a_guesser_gets_in_with_a_right_token(buffer: WatchedBuffer) -> None:
    app = make_app(buffer)
    right, wrong = new_token(), new_token()
    buffer.token_add(name="ana", sha256=digest(right), scope="write")

    def status(token: str) -> int:
        return call(app, "GET", MAPPINGS, headers={"Authorization": f"Bearer {token}"}).status_code

    assert [status(wrong) for _ in range(6)] == [401] * 5 + [429]
    assert [status(right), status(TOKEN), status(right), status(wrong), status("short")] == [
        200,
        200,
        200,
        429,
        429,
    ]
