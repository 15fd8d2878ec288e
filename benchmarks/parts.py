"""The real parts of a pipeline, each in a process of its own: what the benchmarks run against. Linux.

`deployment` starts them: embedded Postgres, receiver, label-server sandboxes and for each of these the drain, as the
sensor starts it. `Memory` and `Busy` tell what the processes took.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from esl_pipeline.label_servers import sign_variable
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres

SECRET, SIGN, TOKEN = "benchmark-webhook-secret", "benchmark-sign", "shpat_benchmark"
DEFAULT = "default"
# The guard against mass changes is for people; here nobody is there to approve them.
UNGUARDED = {"guard_share_pct": 100}
STORE_SETTINGS = UNGUARDED | {"expected_currency": "EUR"}
_DAGSTER = """
storage: {postgres: {postgres_url: {env: ESL_DAGSTER_DATABASE_URL}}}
telemetry: {enabled: false}
"""
_HERE = Path(__file__).resolve().parents[1]
_RECEIVER = ("-m", "esl_pipeline.commands.cli", "receiver", "--only", "webhooks")
_LABELS, _SHOPIFY = "esl_pipeline.sandbox.label_server.server", "esl_pipeline.sandbox.shopify.server"


@contextmanager
def process(*command: str, log: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Python with these arguments, killed at the end of the block; what it complains of goes to `log`."""
    with (
        log.open("a") as out,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            env=os.environ | {"PYTHONPATH": str(_HERE)} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        ) as child,
    ):
        try:
            yield child
        finally:
            child.kill()  # all that it worked on goes as well


def told(child: subprocess.Popen[str], given: str | None = None) -> Any:
    """What a child prints in its last line, as JSON, once it has ended. Ends the benchmark when it failed."""
    said, _ = child.communicate(given)
    if child.returncode:
        sys.exit(f"{' '.join(map(str, child.args))} ended with {child.returncode}")  # type: ignore[arg-type, unused-ignore]
    return json.loads(said.splitlines()[-1])


def address_of(child: subprocess.Popen[str]) -> str:
    """Where a sandbox that has just been started listens."""
    assert child.stdout is not None
    return child.stdout.readline().split()[-1]


def eventually(what: str, ready: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so; end the benchmark when it takes longer."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            sys.exit(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether there is a 2xx."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def own_mib(pid: int) -> float:
    """What a process has of its own, without files and shared memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0)


class Memory(threading.Thread):
    """The peak of what each process has of its own, in MiB, by name; of Postgres that of its largest process."""

    def __init__(self, dsn: str, pids: Mapping[str, int]) -> None:
        super().__init__(daemon=True)
        self._pids, self._over = pids, threading.Event()
        with psycopg.connect(dsn) as connection:
            backend = connection.info.backend_pid
            self._postgres = Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1]
        self.peaks: dict[str, float] = {}

    def run(self) -> None:
        while not self._over.wait(0.25):
            for name, pid in (*self._pids.items(), *(("Postgres", pid) for pid in self._backends())):
                self.peaks[name] = max(self.peaks.get(name, 0), own_mib(pid))

    def stop(self) -> None:
        """The end."""
        self._over.set()
        self.join()

    def _backends(self) -> list[int]:
        try:
            children = Path(f"/proc/{self._postgres}/task/{self._postgres}/children").read_text()
            return [int(pid) for pid in children.split()]
        except (OSError, ValueError):
            return []


class Busy:
    """Prints how much of a processor each process had, and how busy the machine was with all else."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids, self._at, self._used = pids, 0.0, dict[str, float]()
        self.tell()

    def tell(self, when: str = "") -> None:
        """Print it, since the last time; without a name only begin anew."""
        now, used = time.monotonic(), {name: self._seconds(pid) for name, pid in self._pids.items()}
        if when:
            shares = (
                f"{name} {100 * (used[name] - self._used[name]) / (now - self._at):.0f} %" for name in used
            )
            print(f"{when}: {', '.join(shares)} of a processor; load average {os.getloadavg()[0]:.1f}")
        self._at, self._used = now, used

    @staticmethod
    def _seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Deployment:
    """A pipeline that runs. labels: the address of each label server, by name; pids: of its parts, by name; beside:
    processes that were started with it."""

    home: Path
    postgres: EmbeddedPostgres
    dsn: str
    receiver: str
    labels: Mapping[str, str]
    pids: Mapping[str, int]
    beside: Mapping[str, subprocess.Popen[str]]
    memory: Memory

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """What the buffer's database says."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def execute(self, statement: str) -> None:
        """Do this in the buffer's database."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(statement.encode())

    def map_shops(
        self, shops: Mapping[str, str], settings: Mapping[str, object], *, server: str = DEFAULT
    ) -> None:
        """Map shops (name to store code) to a label server, with these settings of the stores."""
        from pydantic import SecretStr

        from esl_pipeline.buffer.buffer import Buffer
        from esl_pipeline.buffer.transports import PsycopgTransport

        at = {} if server == DEFAULT else {"label_server": server}
        with PsycopgTransport(SecretStr(self.dsn)) as transport:
            for shop, store in shops.items():
                fields = {"source_system": "shopify", "source_store_id": shop, "hipoink_store_code": store}
                Buffer(transport).mapping_create(fields | {"settings": dict(settings)} | at)

    def faults(self, server: str, *rules: Mapping[str, Any]) -> None:
        """What goes wrong at a label server from now on, and nothing else."""
        httpx.post(f"{self.labels[server]}/sandbox/faults", json=rules, timeout=30).raise_for_status()

    def take(self, milliseconds: float) -> None:
        """From now on every call to any label server takes so long."""
        for server in self.labels:
            self.faults(server, {"kind": "latency", "ms": milliseconds})

    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.rows(
            "select exists (select from esl.webhook_inbox where state in ('ready', 'leased'))"
            " or exists (select from esl.products where due) or exists (select from esl.sync_queue)"
        ) == [(False,)]

    @contextmanager
    def shopify(self, variants: int) -> Iterator[str]:
        """A Shopify sandbox with so many variants, whatever the shop is called; its address."""
        options = ("--port", "0", "--variants", str(variants), "--token", TOKEN)
        with process("-m", _SHOPIFY, *options, log=self.home / "shopify.log") as child:
            yield address_of(child)


@contextmanager
def label_server(log: Path) -> Iterator[tuple[str, int]]:
    """A label-server sandbox: its address and process."""
    with process("-m", _LABELS, "--port", "0", "--sign", SIGN, log=log) as child:
        yield address_of(child), child.pid


@contextmanager
def deployment(
    servers: Sequence[str] = (DEFAULT,),
    *,
    durable: bool = True,
    settings: Mapping[str, str] = {},
    beside: Mapping[str, Sequence[str]] = {},
) -> Iterator[Deployment]:
    """A pipeline with these label servers; without any, the receiver alone. `settings` are variables of all its parts,
    `beside` arguments of further Python processes with its environment, by name. Data and logs are deleted at the end.
    """
    from esl_pipeline.buffer.migrate import migrate

    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esl-bench-", dir="/tmp")))
        home.chmod(0o755)  # Postgres does not run as root
        stack.enter_context(_inside(home))
        room = {"max_connections": "400"}  # of ten drains
        postgres = stack.enter_context(
            EmbeddedPostgres.start(home / "data", durable=durable, trust=True, settings=room)
        )
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        started = {name: stack.enter_context(label_server(home / f"{name}.log")) for name in servers}
        labels = {name: address for name, (address, _) in started.items()}
        port = free_port()
        commands: dict[str, Sequence[str]] = {
            "receiver": (*_RECEIVER, "--port", str(port)),
            **{f"drain {name}": ("-m", "benchmarks.drain", name) for name in servers},
            **beside,
        }
        postgres.create_database("dagster")
        variables = _variables(home, dsn, labels) | _dagster(home, postgres.dsn("dagster")) | dict(settings)
        running = {
            name: stack.enter_context(process(*command, log=home / f"{name}.log", **variables))
            for name, command in commands.items()
        }
        pids = {f"label server {name}": pid for name, (_, pid) in started.items()}
        pids |= {name: child.pid for name, child in running.items()}
        memory = Memory(dsn, pids)
        memory.start()
        stack.callback(memory.stop)
        address = f"http://127.0.0.1:{port}"
        eventually("the receiver", lambda: answers(f"{address}/health"), 60)
        children = {name: running[name] for name in beside}
        deployed = Deployment(home, postgres, dsn, address, labels, pids, children, memory)
        eventually("the drains", lambda: _drains(deployed) == len(servers), 90)
        yield deployed


def _variables(home: Path, dsn: str, labels: Mapping[str, str]) -> dict[str, str]:
    """The settings of every part. The label server `default` stands in variables, the others in a file."""
    variables = {
        "ESL_DATABASE_URL": dsn,
        "ESL_HOME": str(home / "esl"),
        "SHOPIFY_WEBHOOK_SECRET": SECRET,
        "SHOPIFY_ADMIN_TOKEN": TOKEN,
        "ESL_DRAIN_IDLE_SECONDS": "3600",
        "ESL_DRAIN_MAX_AGE_SECONDS": "86400",
        "LOG_LEVEL": "WARNING",
    }
    if DEFAULT in labels:
        variables |= {"HIPOINK_API_BASE_URL": labels[DEFAULT], "HIPOINK_API_SECRET": SIGN}
    if others := {name: address for name, address in labels.items() if name != DEFAULT}:
        tables = [f'[{name}]\nbase_url = "{address}"\n' for name, address in others.items()]
        (home / "servers.toml").write_text("\n".join(tables))
        variables["HIPOINK_SERVERS_FILE"] = str(home / "servers.toml")
        variables |= dict.fromkeys(map(sign_variable, others), SIGN)
    return variables


def _dagster(home: Path, dsn: str) -> dict[str, str]:
    """Dagster's storage in Postgres, as in production (benchmarks.instance opens it)."""
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text(_DAGSTER)
    return {"DAGSTER_HOME": str(home / "dagster"), "ESL_DAGSTER_DATABASE_URL": dsn}


def _drains(deployed: Deployment) -> int:
    """How many drains hold their lease."""
    ((held,),) = deployed.rows(
        "select count(*) from esl.leases where name like 'event_sync%%' and until > clock_timestamp()"
    )
    return int(held)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work there, for the length of the block: a .env of where the benchmark was started says nothing here."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
