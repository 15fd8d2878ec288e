"""What a drain round costs on a stock Postgres with JIT, against the same server without: `python -m benchmarks.jit`.

The system's newest Postgres of the versions 15 to 17, started on a cluster with its defaults (JIT on), holds two
buffers: one as it is, one whose database says `jit = off`. Each gets the same updates of 30 labels, read, evaluated and
pushed to a label-server sandbox, in turns. Printed: the median time of a round of each, and of a round that finds
nothing. Exits 1 when the first takes more than 1.3 times the second.
"""

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.model.push import PushRules
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.stock import stock_bindir
from esl_pipeline_tests.world import World, drain_round, product, variant

LABELS, ROUNDS, RATIO = 30, 40, 1.3
SHOP, STORE = "corner-shop.myshopify.com", "S1"


@contextmanager
def _buffer(postgres: EmbeddedPostgres, name: str, jit: str) -> Iterator[tuple[Buffer, str]]:
    postgres.create_database(name)
    migrate(postgres.dsn(name))
    with psycopg.connect(postgres.dsn(name)) as connection:
        connection.execute(f"alter database {name} set jit = {jit}".encode())
    with PsycopgTransport(SecretStr(postgres.dsn(name))) as transport:
        yield Buffer(transport), postgres.dsn(name)


def main() -> None:
    bindir = stock_bindir()
    if bindir is None:
        sys.exit("there is no stock Postgres here: apt-get install postgresql")
    os.environ["ESL_PG_BINDIR"] = str(bindir)
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres.temporary())
        with psycopg.connect(postgres.dsn()) as connection:
            row = connection.execute("select current_setting('jit'), pg_jit_available()").fetchone()
            print(f"Postgres {connection.info.server_version // 10_000}, jit {row and row[0]}")
            if row != ("on", True):
                sys.exit("its JIT is not on or not installed: nothing to compare")
        worlds: dict[str, World] = {}
        for jit in ("on", "off"):
            sandbox = stack.enter_context(running_sandbox())
            client: HipoinkClient = stack.enter_context(client_of(sandbox.url))
            buffer, dsn = stack.enter_context(_buffer(postgres, f"jit_{jit}", jit))
            worlds[jit] = World(buffer, dsn, sandbox, client)
            worlds[jit].map(SHOP, STORE)
        busy: dict[str, list[float]] = {"on": [], "off": []}
        idle: dict[str, list[float]] = {"on": [], "off": []}
        for version in range(ROUNDS + 1):
            price = f"{1 + version / 100:.2f}"
            for jit, world in worlds.items():
                variants = [variant(n, price=price) for n in range(1, LABELS + 1)]
                world.update(product(1, version=version, variants=variants))
                for took in (busy, idle):
                    began = time.perf_counter()
                    drain_round(world.buffer, world.client, PushRules(), run_id="run", asset="a")
                    if version:  # the first ones fill caches
                        took[jit].append(1000 * (time.perf_counter() - began))
                assert world.prices(STORE) == {f"C-{n}": price for n in range(1, LABELS + 1)}
    ratios = []
    for name, took in ((f"a round of {LABELS} labels", busy), ("a round that finds nothing", idle)):
        on, off = (statistics.median(took[jit]) for jit in ("on", "off"))
        ratios.append(on / off)
        print(f"{name}: {on:.1f} ms with JIT on, {off:.1f} ms with JIT off, {on / off:.2f} times")
    if ratios[0] > RATIO:
        sys.exit(f"more than {RATIO} times")


if __name__ == "__main__":
    main()
