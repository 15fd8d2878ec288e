"""Locks are no wider than a store: what happens in one waits for none other, and what concerns several takes turns."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.model.push import Claim, Outcome
from esl_pipeline.stages.drain import read_round
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET, RULES, RUN, SHOP, World, product, variant

ACCEPTED = Outcome("accepted", duration_ms=5, server_failed=False)
FAILED = Outcome("transient", "HTTP 503", http_status=503, duration_ms=5, server_failed=True)
OTHER_SHOP = "other.myshopify.com"


class Open:
    """A transport whose calls are all made in one transaction: what a slow one holds until it ends."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection, self.calls = connection, 0

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        found = self.connection.execute(f"select public.{function}(%s)".encode(), [Jsonb(p)]).fetchone()
        return found and found[0]

    def close(self) -> None:
        """At the end of the test."""

    def describe(self) -> str:
        return "one transaction"


@contextmanager
def held(world: World) -> Iterator[tuple[Buffer, psycopg.Connection[Any]]]:
    with psycopg.connect(world.dsn) as connection:
        yield Buffer(Open(connection), label_server="labels"), connection


@pytest.fixture
def two(world: World) -> World:
    """Two shops with a store each, a label queued for both."""
    world.map()
    world.map(OTHER_SHOP, "S2")
    world.update(product(1))
    world.update(product(2), shop=OTHER_SHOP)
    read_round(world.buffer, run_id=RUN)
    return world


def claims_of_both(world: World) -> dict[str, Claim]:
    claims = [
        world.buffer.push_claim(limit=10, lease_seconds=60, max_attempts=5, run_id=RUN, asset=ASSET)
        for _ in range(2)
    ]
    return {claim.store_code: claim for claim in claims if isinstance(claim, Claim)}


def stage(buffer: Buffer, world: World, shop: str, store: str) -> None:
    evaluated = world.sql(
        "select source_system, source_store_id, variant_id, revision from esl.products where source_store_id = %s",
        shop,
    )
    buffer.labels_stage(labels=[], findings=[], evaluated=evaluated)


def drift(buffer: Buffer, world: World, shop: str, store: str) -> None:
    found = {"code": "X-1", "kind": "foreign", "label": {"pc": "X-1"}, "label_hash": "h"}
    buffer.drift_repair(store=store, run_id=RUN, since="2020-01-01T00:00:00Z", labels=[found])


def approve(buffer: Buffer, world: World, shop: str, store: str) -> None:
    buffer.changes_approve(store=store, by="me")


def change(buffer: Buffer, world: World, shop: str, store: str) -> None:
    (row,) = world.sql("select id from esl.store_mappings where source_store_id = %s", shop)
    buffer.mapping_update(str(row["id"]), {"settings": {"guard_labels": 7}})


@pytest.mark.parametrize("act", [stage, drift, approve, change])
def test_what_happens_in_one_store_keeps_no_other_waiting(two: World, act: Callable[..., None]) -> None:
    claims = claims_of_both(two)
    with held(two) as (slow, connection), ThreadPoolExecutor(2) as pool:
        act(slow, two, SHOP, "S1")
        own = pool.submit(two.buffer.push_finish, claims["S1"], ACCEPTED, RULES)
        for other in (stage, drift, approve):
            pool.submit(other, two.buffer, two, OTHER_SHOP, "S2").result(10)
        assert pool.submit(two.buffer.push_finish, claims["S2"], ACCEPTED, RULES).result(10)["accepted"] == 1
        assert not own.done(), "but its own"
        connection.commit()
        assert own.result(10)["accepted"] == 1


def test_pushes_of_two_stores_are_finished_beside_each_other(two: World) -> None:
    claims = claims_of_both(two)
    with held(two) as (slow, _), ThreadPoolExecutor(1) as pool:
        slow.push_finish(claims["S1"], ACCEPTED, RULES)
        assert pool.submit(two.buffer.push_finish, claims["S2"], ACCEPTED, RULES).result(10)["accepted"] == 1
        assert pool.submit(
            two.buffer.rate_take,
            server="labels",
            rate_per_second=10,
            concurrency=4,
            call_id=claims["S1"].push_id,
            seconds=9,
        ).result(10) == (pytest.approx(0), True)


def test_a_store_that_a_mapping_has_left_is_held_with_the_one_that_it_feeds(two: World) -> None:
    """A collision in the new store may decide what becomes of a label in the old one."""
    claims = claims_of_both(two)
    (row,) = two.sql("select id from esl.store_mappings where source_store_id = %s", OTHER_SHOP)
    two.buffer.mapping_update(str(row["id"]), {"hipoink_store_code": "S3"})
    with held(two) as (slow, connection), ThreadPoolExecutor(1) as pool:
        stage(slow, two, OTHER_SHOP, "S3")
        left = pool.submit(two.buffer.push_finish, claims["S2"], ACCEPTED, RULES)
        eventually(lambda: two.sql("select from pg_locks where locktype = 'advisory' and not granted"))
        assert not left.done()
        connection.commit()
        assert left.result(10)["accepted"] == 1


@pytest.mark.long
def test_what_crosses_takes_turns_and_never_stands_still(world: World) -> None:
    """Two shops feed both stores each, and move between them, while labels are staged, pushed, fail and drift."""
    for shop in (SHOP, OTHER_SHOP):
        for store in ("S1", "S2"):
            world.map(shop, store)
    mappings = [str(row["id"]) for row in world.sql("select id from esl.store_mappings order by 1")]
    buffers = [
        Buffer(PsycopgTransport(SecretStr(world.dsn), attempts=1), label_server="labels") for _ in range(6)
    ]
    until = time.monotonic() + 6

    def push(buffer: Buffer) -> None:
        claim = buffer.push_claim(
            limit=5, lease_seconds=0.2, max_attempts=99, run_id=RUN, asset=ASSET, concurrency=4
        )
        if isinstance(claim, Claim):
            buffer.push_finish(claim, random.choice([ACCEPTED, ACCEPTED, FAILED]), RULES)

    def news(buffer: Buffer) -> None:
        number, version = random.randint(1, 4), time.monotonic_ns() // 10**6 % 10**4
        codes = [random.choice(["X", f"C-{number}-{n}"]) for n in range(8)]
        body = product(
            number, version, [variant(10 * number + n, codes[n], f"{version}.00") for n in range(8)]
        )
        World(buffer, world.dsn, world.sandbox, world.client).update(
            body, shop=random.choice([SHOP, OTHER_SHOP])
        )
        read_round(buffer, run_id=RUN)

    def other(buffer: Buffer) -> None:
        random.choice(
            [
                buffer.redrive,
                lambda: buffer.mapping_update(random.choice(mappings), {"is_active": random.random() < 0.7}),
                lambda: drift(buffer, world, SHOP, random.choice(["S1", "S2"])),
                lambda: buffer.refresh_claim(run_id=RUN, lease_seconds=1, rise_seconds=0),
            ]
        )()

    def work(job: Callable[[Buffer], None], buffer: Buffer) -> int:
        done = 0
        while time.monotonic() < until:
            job(buffer)  # a deadlock is an error, for it is not tried again here
            done += 1
        return done

    jobs = [push, push, news, news, other, push]
    with ThreadPoolExecutor(6) as pool:
        counts = [pool.submit(work, job, buffer) for job, buffer in zip(jobs, buffers, strict=True)]
        assert all(count.result(60) > 0 for count in counts)
    for buffer in buffers:
        buffer.close()
