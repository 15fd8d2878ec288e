"""The receiver as it is run, a process of its own on a Postgres of its own: copies, giants, slow senders, outages."""

import gzip
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import SupabaseTransport
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.receiver.app import create_app
from esl_pipeline.receiver.held import Holding
from esl_pipeline_tests.receiver.support import (
    CANARY,
    LIFECYCLE_BODIES,
    PRODUCT,
    SECRET,
    connected,
    deliver,
    make_app,
    make_settings,
    raw_exchange,
    served,
    signed,
)
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.watched import WatchedBuffer

pytestmark = pytest.mark.long

UPDATE = "/webhooks/shopify/products/update"


@dataclass
class Receiver:
    """A running `esl-pipeline receiver`, the database that it keeps deliveries in, and a sender."""

    url: str
    dsn: str
    log: Path
    process: Leashed
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def send(self, body: Any, topic: str = "products/update", **headers: Any) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = f"{self.url}/webhooks/shopify/{topic}"
        return self.client.post(path, content=raw, headers=signed(topic, raw, **headers))

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> int:
        return int(self.sql("select count(*) from esl.webhook_inbox")[0][0])

    def peak_memory(self) -> int:
        """The most memory that the process ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def body(number: int) -> dict[str, Any]:
    return PRODUCT | {"id": number, "admin_graphql_api_id": f"gid://shopify/Product/{number}"}


@contextmanager
def running(dsn: str, folder: Path, secrets: str = SECRET) -> Iterator[Receiver]:
    port = free_port()
    log = folder / f"receiver-{port}.log"
    environment = os.environ | {
        "ESL_DATABASE_URL": dsn,
        "SHOPIFY_WEBHOOK_SECRET": secrets,
        "LOG_LEVEL": "DEBUG",
    }
    command = [sys.executable, "-m", "esl_pipeline.commands.cli", "receiver", "--port", str(port)]
    process = Leashed.start("receiver", command, env=environment, cwd=folder, log=log, grace=8)
    found = Receiver(f"http://127.0.0.1:{port}", dsn, log, process)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return found.client.get(f"{found.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(ready, 60)
        yield found
    finally:
        found.client.close()
        process.stop()


@pytest.fixture(scope="module")
def receiver(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with running(module_dsn, tmp_path_factory.mktemp("receiver")) as found:
        yield found


@pytest.fixture
def empty(receiver: Receiver) -> Receiver:
    receiver.sql("truncate esl.webhook_inbox")
    return receiver


# Copies


@pytest.mark.parametrize("copies", [2, 50])
def test_f01_copies_at_once_make_one_row(empty: Receiver, copies: int) -> None:
    raw = json.dumps(PRODUCT).encode()
    headers = signed("products/update", raw)
    with ThreadPoolExecutor(copies) as pool:
        answers = list(
            pool.map(
                lambda _: empty.client.post(empty.url + UPDATE, content=raw, headers=headers), range(copies)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["status"] for answer in answers) == ["accepted"] + ["duplicate"] * (
        copies - 1
    )
    assert empty.rows() == 1


# Giants and slow senders


def head(*lines: str, topic: str = "products/update") -> bytes:
    given = [f"POST /webhooks/shopify/{topic} HTTP/1.1", "Host: receiver", *lines]
    given += [f"{name}: {value}" for name, value in signed(topic, b"x").items()]
    return ("\r\n".join(given) + "\r\n\r\n").encode()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("megabytes", [10, 30])
def test_s07_giant_bodies_are_413_before_memory_grows(empty: Receiver, megabytes: int) -> None:
    giant = b" " * (megabytes * 1_000_000)
    empty.send(body(1))
    before = empty.peak_memory()

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(giant), 100_000):
            yield giant[start : start + 100_000]

    declared = raw_exchange(empty.url, head(f"Content-Length: {len(giant)}"))
    assert declared.startswith(b"HTTP/1.1 413 ")
    assert httpx.get(f"{empty.url}/health").status_code == 200
    for _ in range(3):  # chunked, without a length
        try:
            answer = httpx.post(
                empty.url + UPDATE, content=chunks(), headers=signed("products/update", b"x"), timeout=20
            )
            assert answer.status_code == 413
        except httpx.WriteError:
            pass  # the connection was closed while we were still sending
    assert empty.peak_memory() - before < 25_000_000
    assert empty.rows() == 1


def test_s07_a_gzip_bomb_is_415_and_not_unpacked(empty: Receiver) -> None:
    bomb = gzip.compress(b" " * 30_000_000)
    headers = signed("products/update", bomb) | {"Content-Encoding": "gzip"}
    assert empty.client.post(empty.url + UPDATE, content=bomb, headers=headers).status_code == 415
    # The same without saying so: bytes like any others, and no JSON.
    assert empty.send(bomb).status_code == 200
    assert empty.sql("select state from esl.webhook_inbox") == [("unusable",)]


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "\x80"])
def test_f27_the_content_type_is_not_trusted_either_way(empty: Receiver, kind: str) -> None:
    raw = json.dumps(PRODUCT).encode()
    headers = {n.encode(): v.encode() for n, v in signed("products/update", raw).items()}
    headers[b"Content-Type"] = kind.encode("latin-1")
    assert empty.client.post(empty.url + UPDATE, content=raw, headers=headers).status_code == 200


def closes_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("begun", [b"", b"POST / HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_s07_a_head_that_does_not_come_is_not_waited_for(watched: WatchedBuffer, begun: bytes) -> None:
    with served(make_app(watched), Holding(head=0.3)) as url:
        with connected(url) as connection:
            connection.sendall(begun)
            assert closes_within(connection, 5)
        # A second head on a connection that is kept alive, byte by byte.
        with connected(url) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(9) == b"HTTP/1.1 "
            began = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - began < 5:
                    connection.sendall(b"G" if begun else b"\r\n")
                    time.sleep(0.05)
        # A request that takes longer than a head may is left alone.
        threading.Timer(1.5, watched.stall("inbox_add").set).start()
        raw = json.dumps(PRODUCT).encode()
        assert (
            httpx.post(url + UPDATE, content=raw, headers=signed("products/update", raw)).status_code == 200
        )


@pytest.mark.slow
def test_s07_slow_loris_does_not_keep_others_out(empty: Receiver) -> None:
    """300 connections that send a head or a body a byte at a time; deliveries go on, and all are closed."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(empty.url)) for _ in range(300)]
        for number, connection in enumerate(slow):
            connection.sendall(head("Content-Length: 1000") if number % 5 == 0 else b"POST / HTTP/1.1\r\nX: ")
        began, statuses = time.monotonic(), []
        while time.monotonic() - began < 12:
            for connection in slow:
                try:
                    connection.sendall(b"a")
                except OSError:
                    continue
            statuses.append(empty.send(body(len(statuses) + 1)).status_code)
            time.sleep(0.2)
        assert all(closes_within(connection, 5) for connection in slow)
    assert set(statuses) <= {200, 503}  # the places for bodies were all taken for a moment
    assert statuses.count(200) > len(statuses) / 2 and statuses[-1] == 200
    assert empty.rows() == statuses.count(200)


# What people are called is nowhere


def test_s12_nothing_about_people_is_in_the_log_or_the_database(empty: Receiver) -> None:
    for topic, sent in LIFECYCLE_BODIES.items():
        assert empty.send(sent, topic).status_code == 200
        assert empty.send(sent, topic, hmac_sha256="wrong").status_code == 401
    tables = empty.sql("select table_name from information_schema.tables where table_schema = 'esl'")
    for (table,) in tables:
        text = "\n".join(row[0] for row in empty.sql(f"select t::text from esl.{table} t"))
        assert CANARY not in text and CANARY.encode().hex() not in text, table
    assert "webhook customers/redact" in empty.log.read_text()
    assert CANARY not in empty.log.read_text()
    assert empty.sql("select count(*) from esl.webhook_inbox where body is null") == [
        (len(LIFECYCLE_BODIES),)
    ]


@pytest.mark.shared_data("data/security/json_test_parsing")
@pytest.mark.slow
def test_f25_no_file_of_the_json_test_suite_is_a_500_anywhere(empty: Receiver) -> None:
    files = sorted((DATA / "security" / "json_test_parsing").glob("*.json"))
    assert len(files) == 318
    topics = (
        "products/update",
        "products/delete",
        "inventory_levels/update",
        "shop/redact",
        "customers/redact",
    )
    for file in files:
        for topic in topics:
            assert empty.send(file.read_bytes(), topic).status_code == 200, (file.name, topic)
    states = dict(empty.sql("select state, count(*) from esl.webhook_inbox group by 1"))
    assert set(states) == {"unusable"}


# Outages


@dataclass
class OwnServer:
    """A Postgres that may be stopped, and a receiver that lives through it."""

    folder: Path
    postgres: EmbeddedPostgres
    receiver: Receiver

    def stop(self) -> None:
        self.postgres.stop()

    def start(self) -> None:
        self.postgres = start_postgres_in(self.folder)

    def resumes(self) -> None:
        """It is back by itself, and keeps what it refused."""
        eventually(lambda: self.receiver.send(body(999)).status_code == 200, 20)


def start_postgres_in(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres.start(folder, durable=False, settings={"max_connections": "20"})


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-pg-data-", dir="/tmp")))
        home.chmod(0o755)
        postgres = start_postgres_in(home / "data")
        found = None
        try:
            postgres.create_database("esl")
            migrate(postgres.dsn("esl"))
            own = stack.enter_context(running(postgres.dsn("esl"), tmp_path_factory.mktemp("own")))
            found = OwnServer(home / "data", postgres, own)
            yield found
        finally:
            (found.postgres if found else postgres).stop()


@pytest.fixture
def outage(own_server: OwnServer) -> OwnServer:
    own_server.receiver.sql("truncate esl.webhook_inbox")
    assert own_server.receiver.send(body(1)).status_code == 200
    return own_server


def is_refused(answer: httpx.Response) -> bool:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    return True


@pytest.mark.slow
def test_f19_while_postgres_is_stopped_it_is_503_and_then_goes_on(outage: OwnServer) -> None:
    outage.stop()
    try:
        assert all(is_refused(outage.receiver.send(body(number))) for number in range(2, 12))
        assert httpx.get(f"{outage.receiver.url}/health").status_code == 503
    finally:
        outage.start()
    outage.resumes()
    assert outage.receiver.rows() == 2


@pytest.mark.slow
def test_f19_under_load_through_two_restarts_every_200_is_a_row_and_nothing_is_lost(
    outage: OwnServer,
) -> None:
    accepted: set[int] = set()
    refusals: list[int] = []
    stop = threading.Event()

    def sender(first: int) -> None:
        for number in range(first, 1_000_000, 4):
            while not stop.is_set():
                status = outage.receiver.send(body(number), webhook_id=f"w-{number}").status_code
                if status == 200:
                    accepted.add(number)
                    break
                assert status == 503, status
                refusals.append(number)
                time.sleep(0.05)
            if stop.is_set():
                return

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(sender, 1_000 + n) for n in range(4)]
        try:
            for _ in range(2):
                time.sleep(1.5)
                outage.stop()
                time.sleep(0.5)
                outage.start()
            time.sleep(1.5)
        finally:
            stop.set()
        for done in senders:
            done.result()
    kept = {row[0] for row in outage.receiver.sql("select webhook_id from esl.webhook_inbox")}
    assert refusals and len(accepted) > 20
    assert {f"w-{number}" for number in accepted} <= kept
    # A row without its 200 (the connection broke after the commit) is absorbed when it comes again.
    count = outage.receiver.rows()
    assert all(
        outage.receiver.send(body(number), webhook_id=f"w-{number}").json()["status"] == "duplicate"
        for number in sorted(accepted)[:20]
    )
    assert outage.receiver.rows() == count


@pytest.mark.slow
def test_g1_every_200_is_a_row_whoever_is_killed_while_groups_are_under_way(tmp_path: Path) -> None:
    """40 senders; SIGKILL of the receiver, then of Postgres, then of both, in the middle of it."""
    accepted: set[str] = set()
    stop, lost = threading.Event(), []

    def sender(first: int) -> None:
        numbers = iter(range(first, 1_000_000, 40))
        number = next(numbers)
        while not stop.is_set():
            try:
                status = current[0].send(body(number), webhook_id=f"w-{number}").status_code
            except (httpx.TransportError, RuntimeError):  # killed, or its client is closed already
                lost.append(number)
                time.sleep(0.05)
                continue
            assert status in (200, 503), status
            if status == 200:
                accepted.add(f"w-{number}")
                number = next(numbers)
            else:
                time.sleep(0.05)

    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-pg-data-", dir="/tmp")))
        home.chmod(0o755)
        postgres = EmbeddedPostgres.start(home / "data", durable=True)
        stack.callback(lambda: postgres.stop())  # noqa: PLW0108 - whichever it is by then
        postgres.create_database("esl")
        migrate(postgres.dsn("esl"))
        current = [stack.enter_context(running(postgres.dsn("esl"), tmp_path))]
        pool = stack.enter_context(ThreadPoolExecutor(40))
        stack.callback(stop.set)
        senders = [pool.submit(sender, 1_000 + n) for n in range(40)]
        for killed in ({"receiver"}, {"postgres"}, {"receiver", "postgres"}):
            before = len(accepted)
            eventually(lambda before=before: len(accepted) > before + 40)  # type: ignore[misc]
            if "receiver" in killed:
                os.kill(current[0].process.pid, signal.SIGKILL)
            if "postgres" in killed:
                os.kill(int((home / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
                postgres.stop()
                postgres = EmbeddedPostgres.start(home / "data", durable=True)
            if "receiver" in killed:
                current[0] = stack.enter_context(running(postgres.dsn("esl"), tmp_path))
        before = len(accepted)
        eventually(lambda: len(accepted) > before + 40)
        stop.set()
        for done in senders:
            done.result()
        ids = [row[0] for row in current[0].sql("select webhook_id from esl.webhook_inbox")]
        (commits,) = current[0].sql("select count(distinct xmin::text) from esl.webhook_inbox")[0]
    assert lost and accepted <= set(ids) and len(ids) == len(set(ids))
    assert commits < len(ids) / 2  # they went in groups


@pytest.mark.slow
def test_f19_a_read_only_database_is_503(outage: OwnServer) -> None:
    """As after a failover to a standby, or when a host has put the database to sleep."""
    outage.receiver.sql("alter database esl set default_transaction_read_only = on")
    drop_connections(outage)
    try:
        assert all(is_refused(outage.receiver.send(body(number))) for number in (2, 3))
    finally:
        with psycopg.connect(outage.postgres.dsn(), autocommit=True) as connection:
            connection.execute("alter database esl reset default_transaction_read_only")
    outage.resumes()
    assert outage.receiver.rows() == 2


def drop_connections(outage: OwnServer) -> None:
    with psycopg.connect(outage.postgres.dsn(), autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'esl'")


@pytest.mark.slow
def test_f19_a_server_without_free_connections_is_503(outage: OwnServer) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(psycopg.connect(outage.postgres.dsn(), autocommit=True))
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            while True:
                drop = "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'esl'"
                first.execute(drop)
                stack.enter_context(psycopg.connect(outage.postgres.dsn()))
        assert is_refused(outage.receiver.send(body(2)))
    outage.resumes()
    assert outage.receiver.rows() == 2


@pytest.mark.slow
def test_f19_when_all_own_connections_hang_it_is_503_and_what_hung_is_not_doubled(outage: OwnServer) -> None:
    with ThreadPoolExecutor(12) as pool:
        with psycopg.connect(outage.receiver.dsn) as blocker:
            blocker.execute("lock table esl.webhook_inbox")
            sent = [pool.submit(outage.receiver.send, body(number)) for number in range(2, 14)]
            # A shop's call hangs, with those that came together; who waits for the next gives up after five seconds.
            eventually(lambda: outage.receiver.process.poll() is None and any(one.done() for one in sent), 20)
            time.sleep(1)
            refused = sum(one.done() for one in sent)
            assert refused and all(is_refused(one.result()) for one in sent if one.done())
        assert sorted(one.result().status_code for one in sent) == [200] * (12 - refused) + [503] * refused
    outage.resumes()
    assert outage.receiver.rows() == 1 + 12 - refused + 1


FULL = """
create function esl.disk_full() returns trigger language plpgsql as $$
begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "trigger",
    [
        "create trigger full_disk before insert on esl.webhook_inbox",
        # While committing: the row was written already.
        "create constraint trigger full_disk after insert on esl.webhook_inbox deferrable initially deferred",
    ],
    ids=["insert", "commit"],
)
def test_f19_a_full_disk_is_503(outage: OwnServer, trigger: str) -> None:
    """The error that Postgres raises when a disk is full (53100), raised by a trigger."""
    outage.receiver.sql(f"{FULL} {trigger} for each row execute function esl.disk_full()")
    try:
        assert all(is_refused(outage.receiver.send(body(number))) for number in (2, 3))
        assert outage.receiver.rows() == 1
    finally:
        outage.receiver.sql("drop trigger full_disk on esl.webhook_inbox; drop function esl.disk_full()")
    outage.resumes()
    assert outage.receiver.rows() == 2


SLOW_COMMIT = """
create function esl.slowly() returns trigger language plpgsql as $$ begin perform pg_sleep(2); return new; end $$;
create trigger slowly before insert on esl.webhook_inbox for each row execute function esl.slowly()
"""


@pytest.mark.slow
def test_f07_a_receiver_that_is_killed_before_the_commit_has_answered_nothing(
    outage: OwnServer, tmp_path: Path
) -> None:
    outage.receiver.sql(SLOW_COMMIT)
    try:
        with running(outage.receiver.dsn, tmp_path) as killed, ThreadPoolExecutor(1) as pool:
            sent = pool.submit(killed.send, body(2), webhook_id="w-2")
            eventually(lambda: outage.receiver.sql(
                "select 1 from pg_stat_activity where query like '%esl_inbox_add%' and wait_event = 'PgSleep'"
            ))  # fmt: skip
            os.kill(killed.process.pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                sent.result()
        # Postgres notices when it answers: the row is there or not, and the next delivery makes it one.
        assert outage.receiver.send(body(2), webhook_id="w-2").status_code == 200
    finally:
        outage.receiver.sql("drop trigger slowly on esl.webhook_inbox; drop function esl.slowly()")
    assert outage.receiver.rows() == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 522, 429, 404, 200])
def test_f20_whatever_supabase_answers_but_a_result_is_503(status: int) -> None:
    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            page = b"<html>an error page of somebody on the way</html>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{gateway.server_address[1]}"
        with SupabaseTransport(url, SecretStr("canary-key"), attempts=1) as transport:
            answer = deliver(create_app(make_settings(), Buffer(transport)), "products/update", PRODUCT)
        gateway.shutdown()
    assert is_refused(answer) and "canary" not in answer.text
