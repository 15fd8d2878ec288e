"""The baseline: a straightforward worker, `python -m benchmarks.prior DSN LABEL_SERVER 100`.

Queue rows are polled every 5 s, ten at a time; each is one call to the label server and eight to the database. That is
how this job is usually written first, and how an earlier public middleware for it works. In the child: fill the queue,
work it off, print how long that took.
"""

import json
import sys
import time
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from benchmarks.parts import SIGN, Deployment, process, told

POLL_SECONDS, LIMIT = 5.0, 10
_TABLES = """
create schema if not exists prior;
create table prior.store_mappings (id int primary key, store_code text not null, is_active bool default true);
create table prior.products (id int primary key, title text, barcode text, price float8, status text);
create table prior.sync_queue (
    id int primary key, product_id int references prior.products, store_mapping_id int references prior.store_mappings,
    operation text, status text, retry_count int default 0, scheduled_at timestamptz default now(),
    processed_at timestamptz);
create table prior.sync_log (
    id bigint generated always as identity primary key, sync_queue_id int, product_id int, operation text, status text,
    hipoink_product_code text, duration_ms int, created_at timestamptz default now());
create table prior.hipoink_products (
    id bigint generated always as identity primary key, product_id int, store_mapping_id int,
    hipoink_product_code text);
"""
_FILL = """
insert into prior.store_mappings values (1, 'PRIOR');
insert into prior.products
select n, 'Product ' || n, 'P' || n, n / 100.0 + 1, 'validated' from generate_series(1, {0}) n;
insert into prior.sync_queue (id, product_id, store_mapping_id, operation, status)
select n, n, 1, 'create', 'pending' from generate_series(1, {0}) n
"""


def labels_per_second(deployed: Deployment, labels: int) -> float:
    """What the baseline keeps at the first label server of a deployment."""
    address = next(iter(deployed.labels.values()))
    with process(
        *("-m", "benchmarks.prior", deployed.dsn, address, str(labels)), log=deployed.home / "prior.log"
    ) as child:
        return labels / float(told(child)["seconds"])


class Worker:
    """Polls the queue."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]], labels: httpx.Client) -> None:
        self._db, self._labels = connection, labels

    def poll(self) -> int:
        """One look at the queue; how many items it found."""
        pending = self._db.execute(
            "select * from prior.sync_queue where status = 'pending' order by scheduled_at limit %s", [LIMIT]
        ).fetchall()
        for item in pending:
            self._work(item)
        return len(pending)

    def _work(self, item: dict[str, Any]) -> None:
        execute, began = self._db.execute, time.monotonic()
        execute("update prior.sync_queue set status = 'syncing' where id = %s", [item["id"]])
        product = execute("select * from prior.products where id = %s", [item["product_id"]]).fetchone()
        mapping = execute(
            "select * from prior.store_mappings where id = %s", [item["store_mapping_id"]]
        ).fetchone()
        assert product and mapping
        self._labels.post("/api/default/product/create", json=_fields(product, mapping)).raise_for_status()
        known = execute(
            "select id from prior.hipoink_products where product_id = %s and store_mapping_id = %s",
            [product["id"], mapping["id"]],
        ).fetchone()
        if known is None:
            execute(
                "insert into prior.hipoink_products (product_id, store_mapping_id, hipoink_product_code)"
                " values (%s, %s, %s)",
                [product["id"], mapping["id"], product["barcode"]],
            )
        execute("update prior.products set status = 'validated' where id = %s", [product["id"]])
        execute(
            "update prior.sync_queue set status = 'succeeded', processed_at = now() where id = %s",
            [item["id"]],
        )
        execute(
            "insert into prior.sync_log (sync_queue_id, product_id, operation, status, hipoink_product_code,"
            " duration_ms) values (%s, %s, %s, 'succeeded', %s, %s)",
            [
                item["id"],
                product["id"],
                item["operation"],
                product["barcode"],
                round(1000 * (time.monotonic() - began)),
            ],
        )


def _fields(product: dict[str, Any], mapping: dict[str, Any]) -> dict[str, str]:
    return {
        "store_code": mapping["store_code"],
        "sign": SIGN,
        "is_base64": "0",
        "pc": product["barcode"],
        "pn": product["title"],
        "pp": str(round(product["price"], 2)),
    }


def main(dsn: str, address: str, labels: int) -> None:
    """In the child."""
    with (
        psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        connection.execute(_TABLES)
        connection.execute(_FILL.format(int(labels)).encode())
        worker, began, done = Worker(connection, http), time.monotonic(), 0
        while (done := done + worker.poll()) < labels:
            time.sleep(POLL_SECONDS)
        print(json.dumps({"seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
