"""Every secret is a canary: the whole pipeline runs and fails in every way, then all that it left is searched."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import stamina
from psycopg import sql
from psycopg.types.string import TextLoader

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.connections import open_buffer, open_label_server
from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.webserver import Webserver, WebserverError
from esl_pipeline.orchestration.resources import Sources
from esl_pipeline.sandbox.shopify.faults import BulkEndless
from esl_pipeline.sandbox.shopify.oauth import App
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.settings import every_field, load_settings
from esl_pipeline.sources.shopify.admin import AdminError, queries
from esl_pipeline.sources.shopify.admin.bulk import run
from esl_pipeline.sources.shopify.admin.tokens import AppTokens, forget_tokens
from esl_pipeline.sources.shopify.connection import look
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline_tests.gateway import Failure, Gateway
from esl_pipeline_tests.hipoink.servers import running_sandbox
from esl_pipeline_tests.orchestration.conftest import DAGSTERS_OWN_WARNINGS
from esl_pipeline_tests.orchestration.world import OTHER_SHOP, OTHER_STORE, SHOP, STORE, product
from esl_pipeline_tests.processes import Up
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.sandbox.shopify.support import small_shop
from esl_pipeline_tests.waiting import eventually

pytestmark = pytest.mark.long

# One word in all of them, that nothing else has; letters and digits only, so that no layer spells it otherwise.
MARK = "c4naryZq7"
NEVER = "127.0.0.1:9"

SECRETS = {
    "HIPOINK_API_SECRET": f"{MARK}sign",
    "HIPOINK_PASSWORD": f"{MARK}password",
    "SUPABASE_SERVICE_KEY": f"{MARK}supabase",
    "SHOPIFY_WEBHOOK_SECRET": f"{MARK}webhook,{MARK}webhookOld",
    "SHOPIFY_API_KEY": f"{MARK}client",
    "SHOPIFY_API_SECRET": f"{MARK}clientSecret",
    "SHOPIFY_APPS": f"{OTHER_SHOP}={MARK}appId:{MARK}appSecretNew:{MARK}appSecret",
    "SHOPIFY_ADMIN_TOKEN": f"{SHOP}=shpat{MARK}admin",
    "WOOCOMMERCE_KEYS": f"shop.example.com=ck_{MARK}key:cs_{MARK}secret",
    "WOOCOMMERCE_WEBHOOK_SECRET": f"{MARK}webhookOfWooCommerce",
    "FILES_FOLDERS": f"corner=/nowhere/{MARK}folder",
    "ESL_ALERT_WEBHOOK_URL": f"info=http://{NEVER}/{MARK}alerts",
    "ESL_HEARTBEAT_URL": f"http://{NEVER}/{MARK}heartbeat",
    "ESL_ADMIN_TOKEN": f"{MARK}bearer0123456789012345678901234567",
    "ESL_DATABASE_URL": f"postgresql://postgres:{MARK}buffer@{NEVER}/esl",
    "ESL_DAGSTER_DATABASE_URL": f"postgresql://dagster:{MARK}dagster@{NEVER}/esl",
    "ESL_OPERATOR_DATABASE_URL": f"postgresql://postgres:{MARK}operator@{NEVER}/esl",
}


def test_f40_every_secret_setting_has_its_canary() -> None:
    secret = [name.upper() for name, f in every_field().items() if "SecretStr" in str(f.annotation)]
    assert sorted(secret) == sorted(SECRETS)


class Meddler:
    """A server in front of another one, that can fail in many ways and repeats what it was told, secrets included."""

    def __init__(self, target: str) -> None:
        self.mode = "ok"
        self.seen: list[str] = []
        self.told: list[str] = []
        meddler = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                told = f"{self.path} {dict(self.headers)} {body.decode(errors='replace')}"
                mode = meddler.mode
                meddler.seen.append(mode)
                meddler.told.append(told)
                if mode == "ok" or (mode == "refused" and "oauth" in self.path):
                    headers = {k: v for k, v in self.headers.items() if k.lower() != "content-length"}
                    got = httpx.request(
                        self.command, target + self.path, headers=headers, content=body, timeout=30
                    )
                    self.reply(got.status_code, got.content)
                elif mode == "refused":
                    self.reply(401, told.encode())
                elif mode == "hold":
                    time.sleep(17)
                elif mode == "drop":
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif mode == "half":
                    self.reply(200, told.encode(), length=len(told) + 999)
                elif mode == "no":
                    self.reply(200, json.dumps({"error_code": 1, "error_msg": told, "errors": told}).encode())
                else:
                    self.reply(int(mode), told.encode())

            do_GET = do_POST = answer

            def reply(self, status: int, body: bytes, length: int | None = None) -> None:
                told = re.sub(r"[^!-~]", "", meddler.told[-1])[:2000]
                self.close_connection = True
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body) if length is None else length))
                    self.send_header("X-Told", told)
                    self.send_header("Location", f"https://elsewhere.example/{told}")
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@contextmanager
def meddling(target: str) -> Iterator[Meddler]:
    meddler = Meddler(target)
    thread = threading.Thread(target=meddler.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield meddler
    finally:
        meddler.http.shutdown()
        meddler.http.server_close()
        thread.join()


def rows(dsn: str) -> Iterator[tuple[str, bytes]]:
    """Every row of every table of a database as bytes, packed columns unpacked too."""
    with psycopg.connect(dsn) as connection:
        connection.adapters.register_loader("timestamptz", TextLoader)  # -infinity is no datetime
        tables = connection.execute(
            "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where c.relkind = 'r' and n.nspname not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert len(tables) > 15
        for schema, table in tables:
            for row in connection.execute(sql.SQL("select * from {}").format(sql.Identifier(schema, table))):
                yield f"{schema}.{table}", repr(row).encode()
                for value in row:
                    if isinstance(value, bytes):
                        yield f"{schema}.{table}", value
                        with suppress(zlib.error):
                            yield f"{schema}.{table}", zlib.decompress(value)


def leaks(home: Path, *dsns: str, said: Mapping[str, str]) -> list[str]:
    """Where a canary is, with what stands around it."""
    found = []

    def look(where: str, data: bytes) -> None:
        for at in re.finditer(MARK.encode(), data, re.IGNORECASE):
            found.append(f"{where}: {data[max(at.start() - 120, 0) : at.end() + 40]!r}")

    for file in home.rglob("*"):
        if file.is_file():
            look(str(file.relative_to(home)), file.read_bytes())
    for dsn in dsns:
        for where, row in rows(dsn):
            look(where, row)
    for where, text in said.items():
        look(where, text.encode())
    return found


@dataclass
class Command:
    """Runs the command as a process with these variables, and keeps what it says."""

    home: Path
    variables: Mapping[str, str]
    said: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, **variables: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "esl_pipeline.commands.cli", *arguments],
            # Without PYTHONPATH the installed copy would be started, which may be another one.
            env={**{k: v for k, v in os.environ.items() if k == "PYTHONPATH"}, **self.variables, **variables},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        name = " ".join([*arguments, *variables])
        self.said[name] = f"{done.stdout}\n{done.stderr}"
        return done.returncode


def the_app() -> App:
    """What the sandbox knows of the app: its older secret is the right one."""
    return App(
        f"{MARK}appId", [f"{MARK}appSecret"], lasting_token=f"shpat{MARK}admin", prefix=f"shpat{MARK}granted"
    )


@pytest.fixture
def home(place: Path) -> Path:
    return place


def webhook(url: str, number: int, secret: str = f"{MARK}webhook", **changes: Any) -> int:
    raw = json.dumps(product(number)).encode()
    headers = signed("products/update", raw, secret=secret, shop_domain=SHOP, **changes)
    return httpx.post(
        f"{url}/webhooks/shopify/products/update", content=raw, headers=headers, timeout=20
    ).status_code


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_f40_no_secret_is_left_anywhere(home: Path, postgres: EmbeddedPostgres, buffer_dsn: str) -> None:
    prepare_database(postgres)

    def with_password(dsn: str, name: str) -> str:
        return re.sub(r"//(\w+)@", rf"//\1:{MARK}{name}@", dsn, count=1)

    with (
        running_sandbox(sign=SECRETS["HIPOINK_API_SECRET"]) as sandbox,
        running_shopify(small_shop(), app=the_app()) as shop,
        meddling(sandbox.url) as labels,
        meddling(shop.url) as shopify,
        Gateway.start(buffer_dsn) as gateway,
        PsycopgTransport(buffer_dsn) as transport,
    ):
        buffer = Buffer(transport)
        variables = SECRETS | {
            "ESL_DATABASE_URL": with_password(buffer_dsn, "buffer"),
            "ESL_DAGSTER_DATABASE_URL": with_password(dagster_url(postgres), "dagster"),
            "HIPOINK_API_BASE_URL": labels.url,
            "SHOPIFY_ADMIN_URL": shopify.url,
            "LOG_LEVEL": "DEBUG",
            "RETRY_INITIAL_DELAY_SECONDS": "0.1",
            "HIPOINK_RATE_LIMIT_PER_SECOND": "100",
            "ESL_SILENCE_HOURS": "1",
        }
        up = Up(home, **variables)
        try:
            urls = up.wait_until_ready()
            (secrets,) = home.glob("*.env")  # ours to keep while it runs, for its owner alone
            assert secrets.stat().st_mode & 0o077 == 0
            command = Command(
                home, variables | {"PATH": "/usr/bin:/bin", "ESL_HOME": str(home), "APP_BASE_URL": urls["receiver"]}
            )  # fmt: skip
            store = ("stores", "add", SHOP, STORE)
            assert command(*store) == 0 and command(*store) == 1
            assert command("stores", "add", OTHER_SHOP, OTHER_STORE) == 0

            # The receiver: good, forged, replayed, odd; the API with a right, a wrong and a garbled token.
            receiver = urls["receiver"]
            assert webhook(receiver, 1) == webhook(receiver, 2, secret=f"{MARK}webhookOld") == 200
            assert webhook(receiver, 3, secret=f"{MARK}not") == 401
            for header in (MARK, f"{MARK}é".encode(), ""):
                assert webhook(receiver, 3, hmac_sha256=header) == 401
            assert webhook(receiver, 3, topic="app/other") == 400
            for token in (SECRETS["ESL_ADMIN_TOKEN"], f"{MARK}wrong", f"{MARK} two words"):
                httpx.get(
                    f"{receiver}/api/store-mappings/?token={token}",
                    headers={"Authorization": f"Bearer {token}"},
                )

            # Labels, through every way that the label server can fail.
            def results() -> int:
                with psycopg.connect(buffer_dsn) as connection:
                    query = "select count(*) from esl.sync_log where kind = 'result'"
                    return int((connection.execute(query).fetchone() or [0])[0])

            eventually(lambda: sandbox.state()["labels"].get(STORE), 60, "the first label")
            for number, mode in enumerate(
                ("401", "403", "500", "302", "400", "no", "drop", "half", "hold"), 10
            ):
                labels.mode, before = mode, results()
                assert webhook(receiver, number) == 200
                eventually(lambda mode=mode: mode in labels.seen, 60, f"a call in mode {mode}")
                eventually(lambda before=before: results() > before, 60, f"the result of mode {mode}")
                labels.mode = "ok"
                buffer.redrive()

            # Nights: one that ends well, and Shopify failing in every way, with the label server failing too.
            dagster = Webserver(urls["ui"])
            dagster.wait(dagster.launch_night(f"shopify:{SHOP}"), 120)
            for shopify.mode in ("401", "500", "no"):
                with pytest.raises(WebserverError, match="FAILURE"):
                    dagster.wait(dagster.launch_night(f"shopify:{SHOP}"), 120)
            # Those of a shop whose tokens are granted: one that ends well, and each way not to get or keep one.
            shopify.mode, night = "ok", f"shopify:{OTHER_SHOP}"
            dagster.wait(dagster.launch_night(night), 120)
            for shopify.mode in ("400", "402", "301", "drop", "no", "refused"):
                with pytest.raises(WebserverError, match="FAILURE"):
                    dagster.wait(dagster.launch_night(night), 240)
                if shopify.mode != "refused":
                    command("doctor", "--json", MODE=shopify.mode)
            shopify.mode, labels.mode = "ok", "401"
            dagster.wait(dagster.launch_night(f"shopify:{SHOP}"), 120)
            assert {"ok", "401", "500", "no"} <= set(shopify.seen)

            # The command: with everything, and with each connection broken.
            for line in ("doctor", "doctor --json", "status", "findings", "trace C-1", "stores list",
                         "alerts list", "alerts test",
                         f"preview --store {STORE}", f"reconcile --shop {SHOP}"):  # fmt: skip
                command(*line.split())
            broken = {
                "ESL_DATABASE_URL": SECRETS["ESL_DATABASE_URL"],
                "ESL_DAGSTER_DATABASE_URL": SECRETS["ESL_DAGSTER_DATABASE_URL"],
            }
            for arguments in (("status",), ("doctor",), ("migrate",), ("receiver", "--port", "0")):
                assert command(*arguments, **broken) == 1
            gateway.service_key = SECRETS["SUPABASE_SERVICE_KEY"]
            hosted = {"ESL_DATABASE_URL": "", "SUPABASE_URL": gateway.url}
            assert command("status", **hosted) == 0
            gateway.fail(Failure.CLOUDFLARE, 3)
            assert command("status", **hosted) == 1
            assert command("status", **hosted, SUPABASE_SERVICE_KEY=f"{MARK}another") == 1
            wrong = {
                "ESL_DATABASE_URL": f"mysql://u:{MARK}@x",
                "HIPOINK_API_BASE_URL": f"https://u:{MARK}@x",
                "SHOPIFY_ADMIN_TOKEN": f"{MARK},{MARK}",
                "ESL_ADMIN_TOKEN": f"{MARK}",
                "ESL_FRAMES_URL": f"s3://key:{MARK}@bucket/frames",
            }
            assert (
                command("doctor", **wrong) == 1
                and "5 settings are wrong" in command.said[" ".join(["doctor", *wrong])]
            )
        finally:
            up.end(2) if up.process.poll() is None else None

        # The servers were really told the secrets, in the modes that repeat them.
        assert any(SECRETS["HIPOINK_API_SECRET"] in told for told in labels.told)
        assert any(f"shpat{MARK}admin" in told for told in shopify.told)
        assert all(
            any(f"{MARK}{part}" in told for told in shopify.told)
            for part in ("appId", "appSecret", "granted")
        )
        storage = postgres.dsn("esl")
        with psycopg.connect(storage) as connection:
            events = connection.execute("select count(*) from dagster.event_logs").fetchone()
            failed = connection.execute(
                "select count(*) from dagster.runs where status = 'FAILURE'"
            ).fetchone()
        assert events and events[0] > 100 and failed and failed[0] >= 3
        print(f"{events[0]} events, {failed[0]} failed runs, {len(command.said)} commands,"
              f" {sum(1 for f in home.rglob('*') if f.is_file())} files")  # fmt: skip
        assert leaks(home, buffer_dsn, storage, said=command.said) == []


def test_f40_the_search_finds_what_is_there(home: Path, buffer_dsn: str) -> None:
    with psycopg.connect(buffer_dsn) as connection:
        connection.execute("create table public.packed (body bytea)")
        connection.execute("insert into public.packed values (%s)", [zlib.compress(MARK.encode())])
    (home / "a").mkdir()
    (home / "a" / "x.log").write_text(f"before {MARK}sign after")
    found = leaks(home, buffer_dsn, said={"status": MARK.upper()})
    assert [where.split(":")[0] for where in found] == ["a/x.log", "public.packed", "status"]


@pytest.mark.filterwarnings(*DAGSTERS_OWN_WARNINGS)
def test_s16_no_object_shows_a_secret(monkeypatch: pytest.MonkeyPatch, buffer_dsn: str) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HIPOINK_API_BASE_URL", f"http://{NEVER}")
    monkeypatch.setenv("SHOPIFY_ADMIN_URL", f"http://{NEVER}")
    from esl_pipeline.definitions import build_definitions

    settings = load_settings()
    buffer, hosted = (
        open_buffer(settings),
        open_buffer(load_settings(esl_database_url="", supabase_url=f"http://{NEVER}")),
    )
    admin = settings.sources["shopify"].open_admin(SHOP)
    assert admin is not None
    with open_label_server(settings, buffer) as client, admin:
        definitions = build_definitions()
        resources = list((definitions.resources or {}).values())
        for thing in (settings, buffer, buffer.transport, hosted, hosted.transport, client, admin, definitions,
                      Sources(settings), *resources):  # fmt: skip
            shown = f"{thing!r} {thing} {vars(thing)!r}"
            assert MARK not in shown, type(thing)
        for call in (
            buffer.status,
            hosted.status,
            lambda: client.query_count("1"),
            lambda: admin.execute("query Q { x }"),
        ):
            with pytest.raises(Exception) as caught:
                call()
            error: BaseException | None = caught.value
            while error is not None:
                assert MARK not in f"{error!r} {error} {vars(error)!r}", type(error)
                error = error.__cause__ or error.__context__


def everything_of(error: BaseException | None) -> Iterator[str]:
    """What a log or a page may show of an error, and of those that it comes from."""
    while error is not None:
        yield f"{error!r} {error} {vars(error)!r} {''.join(traceback.format_exception(error))}"
        assert not hasattr(error, "request")
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "mode", ["400", "401", "402", "301", "403", "404", "500", "no", "half", "drop", "refused"]
)
def test_s16_no_way_to_a_token_shows_a_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    caplog.set_level("DEBUG", logger="esl_pipeline")
    monkeypatch.setenv("SHOPIFY_APPS", SECRETS["SHOPIFY_APPS"])
    said = list[str]()
    with running_shopify(small_shop(), app=the_app()) as shop, meddling(shop.url) as shopify:
        monkeypatch.setenv("SHOPIFY_ADMIN_URL", shopify.url)
        settings = load_settings()
        client = settings.sources["shopify"].open_admin(OTHER_SHOP, patient=False)
        assert client is not None
        with client, stamina.set_testing(True, attempts=2):
            tokens = client._tokens
            assert isinstance(tokens, AppTokens)
            tokens._grant._sleep = lambda _: None
            if mode == "refused":  # in the middle of a bulk read
                shop.sandbox.faults.replace([BulkEndless()])
                with pytest.raises(AdminError) as caught:
                    run(client, queries.BULK_CATALOGUE, on_poll=lambda _: setattr(shopify, "mode", mode))
                assert "HTTP 401" in str(caught.value)
            else:
                shopify.mode = mode
                with pytest.raises(AdminError) as caught:
                    client.execute(queries.SHOP)
            said += everything_of(caught.value)
            said.append(str(look(client, OTHER_SHOP)))
            for thing in (
                settings,
                settings.of(ShopifySettings).apps,
                client,
                tokens,
                tokens._grant,
                tokens._grant._token,
            ):
                said.append(f"{thing!r} {thing}")
            said += [repr(vars(thing)) for thing in (settings, client, tokens, tokens._grant)]
    forget_tokens()
    assert any(f"{MARK}appId" in told for told in shopify.told), "it was really told"
    assert len(said) > 10
    assert [text for text in (*said, caplog.text) if MARK.lower() in text.lower()] == []
