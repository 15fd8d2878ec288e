"""A dump of the buffer in an empty database (docs/operations.md): one reconciliation, and every label is right again.

What must not happen is that a label goes which the shop still wants: the label server knows more than an old dump.
"""

import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.programs import find_programs
from esl_pipeline.sandbox.shopify.catalogue import Product
from esl_pipeline.sandbox.shopify.sandbox import ShopifySandbox
from esl_pipeline_tests.orchestration.conftest import Pipeline
from esl_pipeline_tests.orchestration.test_nightly import (
    changing_calls,
    numbers,
    prices,
    reconcile,
    shopify,  # noqa: F401 (a fixture)
    wanted,
)
from esl_pipeline_tests.orchestration.world import STORE, map_shop
from esl_pipeline_tests.reliability.outside import again

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # three reconciliations

Restore = Callable[[Pipeline, Path], Pipeline]


def programs(name: str) -> str:
    return str(find_programs(Path("/nowhere"), 18).bindir / name)


def dump(pipeline: Pipeline, file: Path) -> Path:
    """As docs/operations.md says it."""
    options = ("--format=custom", "--no-owner", "--exclude-schema=dagster", f"--file={file}")
    subprocess.run([programs("pg_dump"), *options, pipeline.dsn], check=True, timeout=60)
    return file


@pytest.fixture
def restore(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restore]:
    """Put a dump into an empty database -> the same pipeline on it."""
    name, opened = "restored", list[Buffer]()

    def restored(pipeline: Pipeline, file: Path) -> Pipeline:
        from esl_pipeline.definitions import build_definitions

        postgres.create_database(name)
        dsn = postgres.dsn(name)
        command = [programs("pg_restore"), "--no-owner", "--exit-on-error", f"--dbname={dsn}", str(file)]
        subprocess.run(command, check=True, timeout=60)
        assert migrate(dsn) == []
        monkeypatch.setenv("ESL_DATABASE_URL", dsn)
        opened.append(Buffer(PsycopgTransport(SecretStr(dsn))))
        return replace(pipeline, definitions=build_definitions(), buffer=opened[0], dsn=dsn)

    yield restored
    for buffer in opened:
        buffer.close()
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def removed_since(pipeline: Pipeline, before: dict[str, Any]) -> set[str]:
    """The codes that have lost their label since then."""
    history = pipeline.sandbox.state()["history"][STORE]
    return {
        code
        for code, changes in history.items()
        if any(change["record"] is None for change in changes[len(before.get(code, ())) :])
    }


def rights(dsn: str) -> list[Any]:
    """Who may call which function, and use which table."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "select n.nspname, p.proname, (select array_agg(a::text order by a::text) from unnest(p.proacl) a)"
            " from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
            " where n.nspname = 'esl' or p.proname like 'esl\\_%' union all"
            " select n.nspname, c.relname, (select array_agg(a::text order by a::text) from unnest(c.relacl) a)"
            " from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = 'esl' and c.relkind in ('r', 'v') order by 1, 2, 3"
        ).fetchall()


def test_a_dump_of_now_is_the_buffer_again_and_nothing_is_pushed(
    pipeline: Pipeline,
    shopify: ShopifySandbox,  # noqa: F811
    restore: Restore,
    tmp_path: Path,
) -> None:
    map_shop(pipeline.buffer)
    reconcile(pipeline)
    file = dump(pipeline, tmp_path / "now.dump")
    calls = changing_calls(pipeline)

    restored = restore(pipeline, file)
    said = numbers(reconcile(restored))

    assert rights(restored.dsn) == rights(pipeline.dsn)
    assert said["catalogue changed"] == said["catalogue removed"] == 0
    assert (said["drift missing"], said["drift different"], said["drift foreign"]) == (0, 0, 0)
    assert prices(restored) == wanted(shopify) and changing_calls(restored) == calls


def test_after_a_dump_of_an_hour_ago_no_label_goes_that_the_shop_wants(
    pipeline: Pipeline,
    shopify: ShopifySandbox,  # noqa: F811
    restore: Restore,
    tmp_path: Path,
) -> None:
    map_shop(pipeline.buffer)
    shop = shopify.shop
    dearer, renamed, gone, briefly, later, unseen = _on_sale(shopify)[:6]
    shop.delete(briefly)
    shop.delete(later)
    reconcile(pipeline)
    file = dump(pipeline, tmp_path / "old.dump")

    # The lost hour: what the label server has got since then, and the dump knows nothing of.
    shop.set_price(dearer, dearer.variants[0], "91.10")
    shop.rename(renamed, "Another name")
    shop.delete(gone)
    rng = random.Random(5)
    came_back, came = again(later, rng), again(briefly, rng)
    for product in (came_back, came):
        shop.add(product)
    reconcile(pipeline)
    assert prices(pipeline) == wanted(shopify)
    # And what happened while nothing ran.
    shop.set_price(unseen, unseen.variants[0], "93.30")
    shop.delete(came)
    before = pipeline.sandbox.state()["history"][STORE]

    restored = restore(pipeline, file)
    said = numbers(reconcile(restored))

    # Written after the dump and no longer wanted: nobody here remembers that it was ours, so people decide.
    orphans = {variant.barcode: f"{float(variant.price or 0):.2f}" for variant in came.variants}
    assert prices(restored) == wanted(shopify) | orphans
    assert said["drift foreign"] == len(orphans)
    assert not removed_since(restored, before) & wanted(shopify).keys()
    assert removed_since(restored, before) <= {variant.barcode for variant in gone.variants}
    calls = changing_calls(restored)
    reconcile(restored)
    assert changing_calls(restored) == calls


def _on_sale(shop: ShopifySandbox) -> list[Product]:
    return [
        product
        for product in shop.shop.products.values()
        if product.status == "active" and not product.gift_card and all(v.barcode for v in product.variants)
    ]
