"""F37: a deployment. Code of the previous release, as git has it, works on the buffer while this code migrates it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import psycopg.rows
import pytest

from esl_pipeline.buffer.migrate import code_version
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline_tests.releases import BEFORE, BEFORE_VERSION, ROOT, MissingReleaseError, unpacked
from esl_pipeline_tests.reliability.outside import (
    WEBHOOK_SECRET,
    LabelServer,
    Senders,
    Traffic,
    map_shop,
    open_shop,
    pipeline_settings,
    scratch_home,
)
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the processes stop and go on by signals"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """A tree of code, and the settings that its processes see."""

    tree: Path
    settings: dict[str, str]

    @property
    def home(self) -> Path:
        """Where its processes run: not in the tree, whose dagster.yaml wants a storage."""
        home = self.tree / "home"
        home.mkdir(exist_ok=True)
        return home

    def on(self, dsn: str) -> "Release":
        return Release(self.tree, self.settings | {"ESL_DATABASE_URL": dsn})

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of it to its end."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env=self._environment(),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def start(self, name: str, *arguments: str) -> Leashed:
        """A command of it that goes on."""
        return Leashed.start(
            name,
            [sys.executable, "-m", *arguments],
            env=self._environment(),
            cwd=self.home,
            log=self.home / f"{name}.log",
        )

    def work(self) -> Leashed:
        """A drain run, as the sensor starts it: it works until nothing has come for a while."""
        return self.start(
            "worker", "dagster", "job", "execute", "-m", "esl_pipeline.definitions", "-j", "event_sync"
        )

    def said(self, name: str) -> str:
        """The log of what `start` has started."""
        return (self.home / f"{name}.log").read_text()

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("ESL_", "DAGSTER_"))}
        return own | {"PYTHONPATH": str(self.tree), "ESL_HOME": str(self.home)} | self.settings


@pytest.fixture(scope="module")
def trees() -> Iterator[tuple[Path, Path]]:
    """The previous release and this code, as trees; this one with a migration more when it has none of its own."""
    with scratch_home("esl-versions-") as home:
        old, new = home / "old", home / "new"
        try:
            unpacked(BEFORE, old)
        except MissingReleaseError as missing:
            pytest.skip(str(missing))
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "esl_pipeline", new / "esl_pipeline", ignore=ignored)
        shutil.copy(ROOT / "dagster.yaml", new)
        if code_version() == BEFORE_VERSION:
            number = f"{BEFORE_VERSION + 1:04d}"
            (new / f"esl_pipeline/buffer/migrations/{number}_of_a_test.sql").write_text(
                "alter table esl.webhook_inbox add column if not exists of_a_test text;\n"
            )
            with (new / "esl_pipeline/buffer/functions/push.sql").open("a") as functions:
                functions.write("-- Another build.\n")
        yield old, new


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.temporary() as postgres:
        yield postgres


def _sql(dsn: str, query: str, *values: Any) -> list[Row]:
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(query.encode(), values).fetchall()


def _version(dsn: str) -> int:
    (row,) = _sql(dsn, "select max(version) as version from esl.schema_migrations")
    return int(row["version"])


@contextmanager
def _receiver(release: Release, port: int) -> Iterator[Leashed]:
    running = release.start("receiver", "esl_pipeline.commands.cli", "receiver", "--port", str(port))

    def answers() -> bool:
        assert running.poll() is None, running.log_tail(20)
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    try:
        eventually(answers, 60, "the receiver")
        yield running
    finally:
        running.stop()


@contextmanager
def _stream(change: Callable[[], None]) -> Iterator[None]:
    """Changes of the shop, ten a second, for the length of the block."""
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(0.1):
            change()

    thread = threading.Thread(target=go_on, name="traffic")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_f37_old_code_works_while_new_code_migrates_and_nothing_is_lost(
    trees: tuple[Path, Path], server: EmbeddedPostgres
) -> None:
    server.create_database("deployment")
    dsn = server.dsn("deployment")
    with ExitStack() as stack:
        labels = stack.enter_context(LabelServer(trees[0]))
        ports = free_port(), free_port()
        senders = [
            stack.enter_context(
                WebhookSender(
                    f"http://127.0.0.1:{port}/webhooks/shopify",
                    WEBHOOK_SECRET,
                    retry_hours=4 / 60,
                    connections=4,
                )
            )
            for port in ports
        ]
        shopify = stack.enter_context(
            running_shopify(open_shop(37), sender=(sent := Senders(senders[0])))  # type: ignore[arg-type]
        )
        settings = pipeline_settings(labels.url, shopify.url) | {"ESL_DATABASE_URL": dsn}
        old, new = (Release(tree, settings) for tree in trees)
        products = shopify.sandbox.shop.products

        def log(release_run: str) -> list[Row]:
            return _sql(dsn, "select * from esl.sync_log where run_id = %s order by id", release_run)

        assert f"applied {BEFORE_VERSION:04d}" in old.run("esl_pipeline.commands.cli", "migrate").stdout
        map_shop(dsn)
        for product in products.values():
            sent.send(shopify.sandbox.webhooks.created(product))
        stack.enter_context(_receiver(old, ports[0]))
        old_worker = old.work()
        stack.callback(old_worker.stop)
        eventually(lambda: not labels.wrong(list(products.values())), 90, "the first labels, by the old code")
        (row,) = _sql(dsn, "select distinct run_id from esl.sync_log")
        old_run = row["run_id"]

        traffic = Traffic(shopify.sandbox, random.Random(37))
        with _stream(traffic.change):
            time.sleep(5)
            began = time.monotonic()
            migrated = new.run("esl_pipeline.commands.cli", "migrate")
            took = time.monotonic() - began
            assert migrated.returncode == 0 and _version(dsn) > BEFORE_VERSION, migrated.stderr
            by_then = len(log(old_run))
            # The old receiver and worker know nothing of it and call the new functions with their old arguments.
            time.sleep(10)
            assert old_worker.poll() is None, old.said("worker")
            meanwhile = [row for row in log(old_run)[by_then:] if row["outcome"] == "accepted"]
            assert len(meanwhile) > 20, "the old worker pushes on after the migration"

            # The new receiver takes over; the old worker is stopped in its tracks, and a new one works beside it.
            stack.enter_context(_receiver(new, ports[1]))
            sent.to(senders[1])
            os.kill(old_worker.pid, signal.SIGSTOP)
            lease = "select 1 from esl.leases where name = 'event_sync:default' and until > now()"
            eventually(
                lambda: not _sql(dsn, lease),
                40,
                "the end of the old worker's lease",
            )
            new_worker = new.work()
            stack.callback(new_worker.stop)
            eventually(
                lambda: _sql(dsn, "select 1 from esl.sync_log where run_id <> %s", old_run),
                60,
                "a push by the new",
            )
            os.kill(old_worker.pid, signal.SIGCONT)
            time.sleep(10)
        for sender in senders:
            assert sender.wait(60), sender.state(5)
        eventually(lambda: not labels.wrong(list(products.values())), 120, "all labels")
        # The old one ends by itself: its lease is somebody else's.
        eventually(lambda: old_worker.poll() is not None, 60, "the end of the old worker")
        states = _sql(dsn, "select state, count(*) as n from esl.webhook_inbox group by state")
        kept = {row["webhook_id"] for row in _sql(dsn, "select webhook_id from esl.webhook_inbox")}
        pushed = _sql(
            dsn,
            "select run_id = %s as old, count(*) as n from esl.sync_log where outcome = 'accepted' group by 1",
            old_run,
        )

    assert not sent.sent.keys() - kept
    assert {row["state"] for row in states} <= {"done", "superseded"}, states
    counts = {"old" if row["old"] else "new": row["n"] for row in pushed}
    print(
        f"migrated {BEFORE_VERSION} to {_version(dsn)} in {took:.1f} s under {len(sent.sent)} webhooks; pushed:"
        f" {counts['old']} labels by the old worker, {len(meanwhile)} of them in 10 s after the migration,"
        f" {counts['new']} by the new; the old one ended with exit code {old_worker.poll()}; all labels right,"
        " every webhook kept"
    )


def test_f37_old_code_starts_nothing_on_a_newer_buffer_but_a_receiver_of_webhooks(
    trees: tuple[Path, Path], server: EmbeddedPostgres
) -> None:
    server.create_database("newer")
    settings = pipeline_settings("http://127.0.0.1:1", "http://127.0.0.1:1")
    old, new = (Release(tree, settings).on(server.dsn("newer")) for tree in trees)
    assert new.run("esl_pipeline.commands.cli", "migrate").returncode == 0
    version = _version(server.dsn("newer"))
    sentence = (
        f"the buffer is at version {version}, newer than this code ({BEFORE_VERSION}), which leaves it as it"
    )

    for arguments in (
        ("esl_pipeline.commands.cli", "receiver", "--only", "admin", "--port", "0"),
        ("esl_pipeline.commands.cli", "up", "--receiver-port", "0", "--ui-port", "0", "--labels-port", "0"),
        ("esl_pipeline.commands.cli", "status"),
        ("esl_pipeline.commands.cli", "migrate"),
        ("dagster", "job", "execute", "-m", "esl_pipeline.definitions", "-j", "event_sync"),
    ):
        said = old.run(*arguments)
        assert said.returncode == 1, said
        assert sentence in said.stdout + said.stderr, said
    with _receiver(old, free_port()):
        assert f"deliveries are kept, but {sentence}" in old.said("receiver")
    print(sentence)
    assert new.run("esl_pipeline.commands.cli", "status").returncode == 0


def test_f37_new_code_refuses_an_older_buffer_until_it_is_migrated(
    trees: tuple[Path, Path], server: EmbeddedPostgres
) -> None:
    server.create_database("older")
    settings = pipeline_settings("http://127.0.0.1:1", "http://127.0.0.1:1")
    old, new = (Release(tree, settings).on(server.dsn("older")) for tree in trees)
    assert old.run("esl_pipeline.commands.cli", "migrate").returncode == 0

    for arguments in (
        ("esl_pipeline.commands.cli", "receiver", "--port", "0"),
        ("esl_pipeline.commands.cli", "up", "--receiver-port", "0", "--ui-port", "0", "--labels-port", "0"),
        ("dagster", "job", "execute", "-m", "esl_pipeline.definitions", "-j", "event_sync"),
    ):
        said = new.run(*arguments)
        assert said.returncode == 1, said
        assert f"the buffer is at version {BEFORE_VERSION}, this code needs" in said.stdout + said.stderr, (
            said
        )
        assert "run `esl-pipeline migrate`" in said.stdout + said.stderr, said
    assert new.run("esl_pipeline.commands.cli", "migrate").returncode == 0
    assert new.run("esl_pipeline.commands.cli", "status").returncode == 0


def test_field_38_of_two_builds_of_one_version_the_older_touches_nothing_and_goes_on(
    server: EmbeddedPostgres,
) -> None:
    server.create_database("builds")
    dsn = server.dsn("builds")
    settings = pipeline_settings("http://127.0.0.1:1", "http://127.0.0.1:1")
    with scratch_home("esl-builds-") as home, ExitStack() as stack:
        for name in ("older", "newer"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "esl_pipeline", home / name / "esl_pipeline", ignore=ignored)
            shutil.copy(ROOT / "dagster.yaml", home / name)
        older, newer = (Release(home / name, settings).on(dsn) for name in ("older", "newer"))
        with (newer.tree / "esl_pipeline/buffer/functions/push.sql").open("a") as functions:
            functions.write("-- A later build.\n")
        assert newer.run("esl_pipeline.buffer.build").returncode == 0
        assert older.run("esl_pipeline.commands.cli", "migrate").returncode == 0
        map_shop(dsn)

        port = free_port()
        stack.enter_context(_receiver(older, port))
        assert "applied functions" in newer.run("esl_pipeline.commands.cli", "migrate").stdout
        (build,) = _sql(dsn, "select obj_description('esl'::regnamespace, 'pg_namespace') as of")

        # What runs goes on; what starts again, or is told to migrate, says what to do and leaves the functions alone.
        shop = stack.enter_context(running_shopify(open_shop(38), sender=None))
        with WebhookSender(f"http://127.0.0.1:{port}/webhooks/shopify", WEBHOOK_SECRET) as sender:
            sender.send(shop.sandbox.webhooks.created(next(iter(shop.sandbox.shop.products.values()))))
            assert sender.wait(30), sender.state(5)
        assert len(_sql(dsn, "select 1 from esl.webhook_inbox")) == 1

        # A receiver that starts again before the roll-out loses no delivery either, and opens nothing else.
        port = free_port()
        stack.enter_context(_receiver(older, port))
        with WebhookSender(f"http://127.0.0.1:{port}/webhooks/shopify", WEBHOOK_SECRET) as sender:
            sender.send(shop.sandbox.webhooks.created(list(shop.sandbox.shop.products.values())[1]))
            assert sender.wait(30), sender.state(5)
        assert len(_sql(dsn, "select 1 from esl.webhook_inbox")) == 2
        assert httpx.get(f"http://127.0.0.1:{port}/api/store-mappings/").status_code == 404
        assert "deliveries are kept, but the buffer is at build" in older.said("receiver")

        for arguments in (
            ("esl_pipeline.commands.cli", "receiver", "--only", "admin", "--port", "0"),
            ("esl_pipeline.commands.cli", "migrate"),
            ("esl_pipeline.commands.cli", "status"),
            ("dagster", "job", "execute", "-m", "esl_pipeline.definitions", "-j", "event_sync"),
        ):
            said = older.run(*arguments)
            assert said.returncode == 1, said
            assert "newer than this code" in said.stdout + said.stderr, said
            assert "update esl_pipeline here" in said.stdout + said.stderr, said
            assert "run `esl-pipeline migrate`" not in said.stdout + said.stderr, said
        assert _sql(dsn, "select obj_description('esl'::regnamespace, 'pg_namespace') as of") == [build]
        assert newer.run("esl_pipeline.commands.cli", "status").returncode == 0
