"""The rehearsal of a deployment: `make rehearsal`, or `python -m esl_pipeline_tests.deploy.rehearsal --from <commit>`.

Processes of their own under an ordinary user, each with the variables that it needs and no more: a Postgres of the
system that takes TLS only, nginx with TLS before two receivers and before the label server (with an authority of its
own), code server and daemon. A shop sends webhooks all the time. On the way an older release is upgraded to this code
as docs/operations.md says, and then each part is restarted, and killed. At the end every label must be what the shop
says, and no delivery lost. Exits 1 when it is not so, or when a part does not come back; 0 with a reason when it cannot
be held here: a program is missing, or the older release is not in this clone.
"""

import os
import pwd
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import psycopg
import typer
from psycopg import sql

from esl_pipeline.commands.health import Unhealthy, code_server
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.server_user import own, run, server_user
from esl_pipeline.local.webserver import Webserver, WebserverError
from esl_pipeline.sandbox.shopify.catalogue import Product
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline.sandbox.shopify.webhooks import Delivery
from esl_pipeline_tests.deploy.tls import Certificates
from esl_pipeline_tests.releases import BEFORE, ROOT, MissingReleaseError, unpacked
from esl_pipeline_tests.reliability.outside import (
    WEBHOOK_SECRET,
    LabelServer,
    Senders,
    Traffic,
    body_hash,
    map_shop,
    open_shop,
    pipeline_settings,
    scratch_home,
)
from esl_pipeline_tests.waiting import eventually

RATE = 5.0
PASSWORD = "rehearsal-password"
LOGINS = {"receiver": ("esl_receiver", "esl_admin"), "pipeline": ("esl_pipeline",)}
BACK_SECONDS, END_SECONDS, DOWN_SECONDS = 240.0, 300.0, 5.0
PROBLEMS_SHOWN = 20
DATABASE = "esl"


class MissingError(Exception):
    """The rehearsal cannot be held here; the message says why."""


@dataclass
class Part:
    """A process under the ordinary user; `start` starts it, as the release that is deployed then."""

    name: str
    start: Callable[[], Leashed]
    running: Leashed | None = None
    started_at: float = 0.0
    """By the clock of this machine, which is Postgres' too."""

    def end(self, number: signal.Signals) -> None:
        """End it and what it has started, as systemd does it: SIGTERM with patience, or SIGKILL."""
        assert self.running is not None
        if number == signal.SIGKILL:
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.stop()
        self.running = None


class Deployment:
    """All parts, and what an administrator does with them."""

    def __init__(self, home: Path, labels: LabelServer, shopify: str, trees: dict[str, Path]) -> None:
        self.home, self.trees, self.release = home, trees, "old"
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._postgres_user = server_user(home / "postgres")
        self._bindir = system_postgres()
        self.python = _python(self._user, trees["new"])
        self.certificates = Certificates(home / "tls")
        self.ca = self.certificates.ca
        self._ports = {name: free_port() for name in ("postgres", "https", "labels", "code", "one", "two")}
        self._labels = labels
        self.url, self.labels_url = (f"https://127.0.0.1:{self._ports[name]}" for name in ("https", "labels"))
        self._settings = pipeline_settings(self.labels_url, shopify) | {"HIPOINK_CA_FILE": str(self.ca)}
        self.parts = {
            "Postgres": Part("Postgres", self._postgres),
            "receiver 1": Part("receiver 1", lambda: self._receiver("one")),
            "receiver 2": Part("receiver 2", lambda: self._receiver("two")),
            "nginx": Part("nginx", self._nginx),
            "code server": Part("code server", self._code_server),
            "daemon": Part("daemon", self._daemon),
        }
        self.fallen = Counter[str]()
        """Parts that have ended by themselves and were started again, as systemd would."""

    # --- what an administrator does

    def install(self) -> None:
        """Databases, logins and tables, by the older release; then every part, one after the other."""
        self._folder("work")
        self._make_cluster()
        self.start("Postgres")
        eventually(self._accepts, 60, "Postgres")
        with psycopg.connect(self.owner("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
        self.migrate()
        with psycopg.connect(self.owner(), autocommit=True) as connection:
            for login, groups in (*LOGINS.items(), ("dagster", ())):
                connection.execute(f"create role {login} login password '{PASSWORD}'")
                for group in groups:
                    connection.execute(f"grant {group} to {login}")
            connection.execute("create schema dagster authorization dagster")
            connection.execute("alter role dagster set search_path = dagster")
        dagster = self._folder("dagster")
        self.configure_dagster()
        (dagster / "workspace.yaml").write_text(
            "load_from:\n  - grpc_server:\n      host: 127.0.0.1\n"
            f"      port: {self._ports['code']}\n      location_name: esl_pipeline\n"
        )
        self.run("dagster", "instance", "migrate", **self._dagster())  # makes its tables, alone
        for name in self.parts:
            if name != "Postgres":
                self.start(name)
                self.wait(name)

    def configure_dagster(self) -> None:
        """The instance file of the release that is to be deployed: it may name classes of it."""
        shutil.copy(self.trees[self.release] / "dagster.yaml", self.home / "dagster" / "dagster.yaml")

    def migrate(self) -> str:
        """By the owner of the buffer, with the release that is to be deployed."""
        said = self.run("esl_pipeline.commands.cli", "migrate", ESL_DATABASE_URL=self.owner())
        return f"{said.count('applied')} changes"

    def start(self, name: str) -> None:
        part = self.parts[name]
        part.started_at = time.time()
        part.running = part.start()

    def restart(self, name: str, number: signal.Signals = signal.SIGTERM) -> float:
        """End a part and start it -> the seconds until it does its work again."""
        began = time.monotonic()
        self.parts[name].end(number)
        self.start(name)
        self.wait(name)
        return time.monotonic() - began

    def wait(self, name: str) -> None:
        """Until a part does its work again: it answers or, the daemon, its sensors' thread has told of itself."""
        answers = {
            "Postgres": self._accepts,
            "receiver 1": lambda: _answers(f"http://127.0.0.1:{self._ports['one']}/health"),
            "receiver 2": lambda: _answers(f"http://127.0.0.1:{self._ports['two']}/health"),
            "nginx": lambda: _answers(f"{self.url}/health", self.ca),
            "code server": self._serves,
            "daemon": self._tells,
        }[name]
        eventually(lambda: self.keep_up() and answers(), BACK_SECONDS, f"{name}, see {self.home}/*.log")

    def keep_up(self) -> bool:
        """Start again what has ended by itself."""
        for name, part in self.parts.items():
            if part.running is not None and part.running.poll() is not None:
                self.fallen[name] += 1
                part.running.stop()
                self.start(name)
        return True

    def reconcile(self) -> None:
        """One full_reconciliation, as people start it: by the webserver, which is started for it."""
        port = free_port()
        workspace = ("--workspace", str(self.home / "dagster" / "workspace.yaml"), "--host-names", "")
        module = ("esl_pipeline.orchestration.dagster_ui", "--host", "127.0.0.1", "--port", str(port))
        running = self._python_part("webserver", (*module, *workspace), self._dagster())
        try:
            webserver = Webserver(f"http://127.0.0.1:{port}")
            eventually(webserver.is_loaded, BACK_SECONDS, "the webserver")
            webserver.wait(webserver.launch_night(f"shopify:{DOMAIN}"), END_SECONDS)
        finally:
            running.stop()

    def stop(self) -> None:
        for part in reversed(self.parts.values()):
            if part.running is not None:
                part.running.stop()

    def owner(self, database: str = DATABASE) -> str:
        return self._dsn("owner", database)

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.owner()) as connection:
            return connection.execute(query.encode()).fetchall()

    # --- the parts

    def _receiver(self, port: str) -> Leashed:
        only = ("SHOPIFY_WEBHOOK_SECRET", "ESL_ADMIN_TOKEN")
        known = {name: self._settings[name] for name in only} | {
            "ESL_DATABASE_URL": self._dsn("receiver"),
            "ESL_TRUSTED_PROXIES": "127.0.0.1",
            "APP_BASE_URL": self.url,
        }
        command = ("esl_pipeline.commands.cli", "receiver", "--port", str(self._ports[port]))
        return self._python_part(f"receiver-{port}", command, known)

    def _code_server(self) -> Leashed:
        known = self._settings | self._dagster() | {"ESL_DATABASE_URL": self._dsn("pipeline")}
        del known["SHOPIFY_WEBHOOK_SECRET"], known["ESL_ADMIN_TOKEN"]
        served = ("--host", "127.0.0.1", "--port", str(self._ports["code"]))
        location = ("--module-name", "esl_pipeline.definitions", "--location-name", "esl_pipeline")
        command = ("dagster", "api", "grpc", *location, *served)
        if self._has("code_server"):
            command = ("esl_pipeline.orchestration.code_server", *served)
        if not self._has("code_server_runs"):  # its runs have ended with it, and nobody else can say so
            self.run("esl_pipeline.orchestration.abandoned_runs", **self._dagster())
        return self._python_part("code-server", command, known)

    def _daemon(self) -> Leashed:
        """It needs Dagster's storage and nothing else."""
        module = ("dagster._daemon", "run")
        if self._has("dagster_daemon"):
            module = ("esl_pipeline.orchestration.dagster_daemon",)
        workspace = ("--workspace", str(self.home / "dagster" / "workspace.yaml"))
        return self._python_part("daemon", (*module, *workspace), self._dagster())

    def _has(self, module: str) -> bool:
        """Whether the release that is deployed has a module of orchestration/."""
        return (self.trees[self.release] / f"esl_pipeline/orchestration/{module}.py").exists()

    def _nginx(self) -> Leashed:
        folder = self._folder("nginx")
        (folder / "nginx.conf").write_text(
            _nginx_conf(folder, self.certificates, self._ports, self._labels.url)
        )
        command = [_program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        return Leashed.start("nginx", command, env={"PATH": os.environ["PATH"]}, cwd=folder,
                             log=self.home / "nginx.log", user=self._user and self._user.pw_uid)  # fmt: skip

    def _postgres(self) -> Leashed:
        command = [str(self._bindir / "postgres"), "-D", str(self.home / "postgres")]
        return Leashed.start("Postgres", command, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, cwd=Path("/"),
                             log=self.home / "postgres.log", stop_signal="INT", grace=60,
                             user=self._postgres_user and self._postgres_user.pw_uid)  # fmt: skip

    def _make_cluster(self) -> None:
        data = self.home / "postgres"
        data.mkdir(mode=0o700)
        own(data, self._postgres_user)
        secret = self.home / "owner-password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        made = run(
            [str(self._bindir / "initdb"), "-D", str(data), "--username=owner", "--encoding=UTF8", "--locale=C",
             "--auth=scram-sha-256", f"--pwfile={secret}"],
            self._postgres_user,
        )  # fmt: skip
        if made.returncode:
            raise MissingError(f"initdb: {made.stderr.strip()}")
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        certificate, key = self.certificates.issue("postgres", self._postgres_user)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self._ports['postgres']}\nunix_socket_directories = ''\n"
                f"ssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\nmax_connections = 100\n"
            )

    # --- how they are started

    def run(self, *command: str, **variables: str) -> str:
        """A command of the release to its end -> what it says. Raises AssertionError when it fails."""
        done = subprocess.run(
            [self.python, "-m", *command],
            env=self._own() | variables, cwd=self.home / "work", capture_output=True, text=True, check=False,
            timeout=240, user=self._user and self._user.pw_uid, group=self._user and self._user.pw_gid,
            extra_groups=self._user and [],
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def _python_part(self, name: str, command: tuple[str, ...], variables: dict[str, str]) -> Leashed:
        return Leashed.start(
            name,
            [self.python, "-m", *command],
            env=self._own() | variables,
            cwd=self.home / "work",
            log=self.home / f"{name}.log",
            grace=30,
            user=self._user and self._user.pw_uid,
        )

    def _own(self) -> dict[str, str]:
        packages = [path for path in sys.path if "-packages" in path]
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home / "work"),
            "PYTHONPATH": os.pathsep.join([str(self.trees[self.release]), *packages]),
            "ESL_HOME": str(self.home / "work"),
        }

    def _dagster(self) -> dict[str, str]:
        url = self._dsn("dagster").replace("postgresql://", "postgresql+psycopg2://", 1)
        return {"DAGSTER_HOME": str(self.home / "dagster"), "ESL_DAGSTER_DATABASE_URL": url}

    def _dsn(self, login: str, database: str = DATABASE) -> str:
        tls = f"sslmode=verify-full&sslrootcert={self.ca}"
        return f"postgresql://{login}:{PASSWORD}@127.0.0.1:{self._ports['postgres']}/{database}?{tls}"

    def _folder(self, name: str) -> Path:
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        own(folder, self._user)
        return folder

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.owner("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _serves(self) -> bool:
        try:
            return bool(code_server(f"127.0.0.1:{self._ports['code']}"))
        except Unhealthy:
            return False

    def _tells(self) -> bool:
        """Whether this daemon's thread of the sensors has told of itself: the row is there from the one before it."""
        since = self.parts["daemon"].started_at
        return bool(
            self.rows(
                "select 1 from dagster.daemon_heartbeats "
                f"where daemon_type = 'SENSOR' and timestamp > to_timestamp({since}) at time zone 'utc'"
            )
        )


def _nginx_conf(folder: Path, certificates: Certificates, ports: dict[str, int], labels: str) -> str:
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    certificate, key = certificates.issue("nginx", user)
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    tls = f"ssl;\n    ssl_certificate {certificate};\n    ssl_certificate_key {key};"
    return f"""
daemon off;
pid {folder}/pid;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off;
{temporary}
  upstream receivers {{
    server 127.0.0.1:{ports["one"]} max_fails=0;
    server 127.0.0.1:{ports["two"]} max_fails=0;
  }}
  server {{
    listen 127.0.0.1:{ports["https"]} {tls}
    client_max_body_size 5m;
    location / {{
      proxy_pass http://receivers;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_connect_timeout 1s;
      # A delivery may be sent to both: its id is kept once.
      proxy_next_upstream error timeout http_502 http_503 non_idempotent;
    }}
  }}
  server {{
    listen 127.0.0.1:{ports["labels"]} {tls}
    client_max_body_size 20m;
    location / {{ proxy_pass {labels}; proxy_read_timeout 120s; }}
  }}
}}
"""


def system_postgres() -> Path:
    """The programs of the newest Postgres that the system has."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if not found:
        raise MissingError("no Postgres of the system: apt-get install postgresql")
    return max(found, key=lambda path: int(path.parent.name))


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise MissingError(f"no {name}: apt-get install {name}")
    return found


def _python(user: pwd.struct_passwd | None, tree: Path) -> str:
    """A Python that the ordinary user may run, with our packages."""
    packages = [path for path in sys.path if "-packages" in path]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([str(tree), *packages])}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            if (
                run([python, "-c", "import esl_pipeline.settings, psycopg"], user, environment).returncode
                == 0
            ):
                return python
        except OSError:
            continue
    raise MissingError("no Python of this version that an ordinary user may run")


def _answers(url: str, ca: Path | None = None) -> bool:
    try:
        answer = httpx.get(url, timeout=5, verify=ssl.create_default_context(cafile=ca))
        return answer.status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def trees(home: Path, commit: str) -> dict[str, Path]:
    """The older release as git has it, and this code, where an ordinary user can read them."""
    try:
        unpacked(commit, home / "old")
    except MissingReleaseError as missing:
        raise MissingError(str(missing)) from None
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "esl_pipeline", home / "new" / "esl_pipeline", ignore=ignored)
    shutil.copy(ROOT / "dagster.yaml", home / "new")
    return {name: home / name for name in ("old", "new")}


@contextmanager
def stream(change: Callable[[], None], rate: float) -> Iterator[None]:
    """Changes of the shop for the length of the block."""
    stop, began, made = threading.Event(), time.monotonic(), 0

    def go_on() -> None:
        nonlocal made
        while not stop.wait(max(0.0, began + made / rate - time.monotonic())):
            change()
            made += 1

    thread = threading.Thread(target=go_on, name="traffic")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Verdict:
    """What was wrong at the end, a line each, and the whole of it in one line."""

    problems: list[str]
    summary: str


Kept = tuple[str, str, str, str]
"""A row of the inbox: webhook id, topic, hash of the body, state."""


def lost(sent: Collection[Delivery], kept: Collection[Kept]) -> list[str]:
    """Deliveries of which neither the id nor the same body is in the inbox."""
    ids, bodies = {one[0] for one in kept}, {(one[1], one[2]) for one in kept}
    return [
        f"lost: {one.topic} {one.webhook_id}"
        for one in sent
        if one.webhook_id not in ids and (one.topic, body_hash(one)) not in bodies
    ]


def unread(kept: Collection[Kept]) -> list[str]:
    """Deliveries that are in the inbox and were not taken to their end."""
    return [
        f"{state}: {topic} {webhook_id}"
        for webhook_id, topic, _, state in kept
        if state not in ("done", "superseded")
    ]


class Rehearsal:
    """One rehearsal, told line by line."""

    def __init__(
        self, deployment: Deployment, labels: LabelServer, sender: WebhookSender, sent: Senders
    ) -> None:
        self._to, self._labels, self._sender, self._sent = deployment, labels, sender, sent
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        state = self._sender.state(0)
        print(f"{time.monotonic() - self._began:7.1f} s  {what}  ({state['sent']} webhooks sent)", flush=True)

    def upgrade(self) -> None:
        """In the order of docs/operations.md."""
        self._to.release = "new"
        self.say(f"migrate by the new release, beside the old processes: {self._to.migrate()}")
        self._to.configure_dagster()
        for name in ("receiver 1", "receiver 2", "code server", "daemon"):
            self.say(f"upgraded {name}: at work after {self._to.restart(name):.1f} s")
        # Not before: the older drain goes on or has ended, and then no older one starts.
        self._flows("the upgrade")

    def break_everything(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for name in self._to.parts:
                self.say(f"{number.name} {name}: at work after {self._to.restart(name, number):.1f} s")
                self._flows(f"{number.name} {name}")
        began = time.monotonic()
        self._labels.refuse()
        time.sleep(DOWN_SECONDS)
        self._labels.accept()
        self.say(
            f"SIGKILL label server, down for {DOWN_SECONDS:.0f} s: answers after {time.monotonic() - began:.1f} s"
        )
        self._flows("SIGKILL label server")

    def _flows(self, after: str) -> None:
        """Wait for a delivery that is kept from now on and read, and for a label that is accepted from now on."""
        ((kept, sent),) = self._to.rows(
            "select (select coalesce(max(id), 0) from esl.webhook_inbox),"
            " (select coalesce(max(id), 0) from esl.sync_log)"
        )
        query = (
            f"select from esl.webhook_inbox, esl.sync_log where webhook_inbox.id > {kept} and state = 'done'"
            f" and sync_log.id > {sent} and outcome = 'accepted' limit 1"
        )
        took = eventually(
            lambda: self._to.keep_up() and self._to.rows(query),
            BACK_SECONDS,
            f"a delivery read and a label sent after {after}",
        )
        self.say(f"  a delivery read and a label sent after it: {took:.1f} s")

    def judge(self, products: list[Product]) -> Verdict:
        """Wait for the end of all work, reconcile, and look at everything."""
        self._sender.wait(END_SECONDS)
        self.say(f"no more changes in the shop; {self._tries()}")
        ready = "select id from esl.webhook_inbox where state = 'ready'"
        left = _settled(lambda: self._to.keep_up() and self._to.rows(ready))
        self.say(f"deliveries that are not read: {len(left) or 'none'}")
        # For what no webhook tells: a deletion's id is rounded beyond 2^53, as Shopify's are.
        self._to.reconcile()
        self.say("full_reconciliation has succeeded")
        _settled(lambda: self._to.keep_up() and self._to.rows("select code from esl.sync_queue"))
        wrong = _settled(lambda: self._to.keep_up() and self._labels.wrong(products))
        hidden = _settled(lambda: self._to.keep_up() and self._labels.not_shown(products))
        kept = self._to.rows("select webhook_id, topic, body_sha256, state from esl.webhook_inbox")
        missing, waiting = lost(self._sent.sent.values(), kept), unread(kept)
        fallen = ", ".join(f"{name} {count} times" for name, count in self._to.fallen.items())
        self.say(f"parts that ended by themselves and were started again: {fallen or 'none'}")
        variants = sum(len(product.variants) for product in products)
        summary = (
            f"{len(self._sent.sent)} webhooks: {len(missing)} lost, {len(waiting)} not read; "
            f"labels of {variants} variants: {len(wrong)} wrong, {len(hidden)} not shown"
        )
        unlike = [*(f"wrong: {one}" for one in wrong), *(f"not shown: {one}" for one in hidden)]
        return Verdict([*unlike, *missing, *waiting], summary)

    def _tries(self) -> str:
        attempts = self._sender.attempts()
        failed = Counter(one.detail for one in attempts if one.outcome == "failed")
        why = ", ".join(f"{count} {detail}" for detail, count in failed.most_common())
        tries = f"{len(attempts)} tries to deliver, {failed.total()} without a 2xx" + (
            f" ({why})" if why else ""
        )
        pending = self._sender.state(0)["pending"]
        return tries + (f", {pending} deliveries still tried" if pending else "")


def _settled(look: Callable[[], list[Any]]) -> list[Any]:
    """What is still there when nothing changes any more: empty as soon as it is."""
    deadline = time.monotonic() + END_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def rehearse(commit: str, home: Path, rate: float = RATE) -> Verdict:
    """Hold it -> how it ended. Raises MissingError, and AssertionError when a part does not come back."""
    _program("nginx"), _program("openssl"), system_postgres()
    both = trees(home, commit)
    outside = home / "outside"
    outside.mkdir()
    with ExitStack() as stack:
        labels = stack.enter_context(LabelServer(outside))
        shop = open_shop(17)
        sent = Senders()
        shopify = stack.enter_context(running_shopify(shop, sender=sent))  # type: ignore[arg-type]
        deployment = Deployment(home, labels, shopify.url, both)
        sender = stack.enter_context(
            WebhookSender(
                f"{deployment.url}/webhooks/shopify", WEBHOOK_SECRET, retry_hours=4 / 60, connections=4,
                ca_file=deployment.ca,
            )
        )  # fmt: skip
        sent.to(sender)
        stack.callback(deployment.stop)
        told = Rehearsal(deployment, labels, sender, sent)
        deployment.install()
        told.say(f"installed {commit}: {', '.join(deployment.parts)}")
        map_shop(deployment.owner())
        products = shop.products
        for product in products.values():
            sent.send(shopify.sandbox.webhooks.created(product))
        eventually(
            lambda: deployment.keep_up() and not labels.wrong(list(products.values())),
            END_SECONDS,
            "the first fill",
        )
        told.say("every label is right")
        with stream(Traffic(shopify.sandbox, random.Random(17)).change, rate):
            told.upgrade()
            told.break_everything()
        return told.judge(list(products.values()))


def main(
    commit: Annotated[str, typer.Option("--from", help="The release that is upgraded.")] = BEFORE,
) -> None:
    """Hold the rehearsal and print what happens."""
    with scratch_home("esl-rehearsal-") as home:
        try:
            verdict = rehearse(commit, home)
        except MissingError as missing:
            print(f"rehearsal skipped, it cannot be held here: {missing}")
            return
        except (AssertionError, WebserverError) as stopped:
            print(f"rehearsal FAILED: {stopped}; logs in {home}")
            raise typer.Exit(1) from None
        for problem in verdict.problems[:PROBLEMS_SHOWN]:
            print(problem)
        if more := len(verdict.problems[PROBLEMS_SHOWN:]):
            print(f"and {more} more")
        if verdict.problems:
            print(f"rehearsal FAILED: {verdict.summary}; logs in {home}")
            raise typer.Exit(1)
        print(f"rehearsal passed: {verdict.summary}")


if __name__ == "__main__":
    typer.run(main)
