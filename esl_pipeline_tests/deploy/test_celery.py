"""deploy/celery as it is shipped: the daemon, the code server, the webserver and a worker, each a process of its own.

CeleryRunLauncher and Kombu's transport on PGMQ are young (dagster issue 32915): this is what says that they work, and
what a worker that is killed in the middle of a push leaves behind.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter

pytest.importorskip("dagster_celery", reason="the extra `celery` is not installed")

from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.buffer.transports import PsycopgTransport
from esl_pipeline.local.databases import DATABASE, dagster_url, prepare_database
from esl_pipeline.local.leash import Leashed
from esl_pipeline.local.ports import free_port
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.orchestration.near_real_time import HOLDER_TAG
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.sandbox.shopify.sandbox import TOKEN
from esl_pipeline.sandbox.shopify.server import RunningShopify, running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline.stages.drain import lease_of
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.world import OTHER_STORE, arrive, map_shop, product
from esl_pipeline_tests.processes import descendants_of, is_alive, kill_at_once
from esl_pipeline_tests.sandbox.shopify.support import small_shop
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import STORE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(300),
]

SHIPPED = Path(__file__).parents[2] / "deploy" / "celery"
# Each label server, and the store of the one shop that is at it.
STORES = {"default": STORE, "north": OTHER_STORE}
NIGHT_SHOP, NIGHT_STORE = f"shopify:{DOMAIN}", "N1"
# Of a run that inbox_sensor does not start: it sees the lease of this holder and starts none beside it.
HOLDER = "the test"
WORKER = ("celery", "-A", "esl_pipeline.orchestration.celery_worker", "worker", "--queues", "dagster")


class Deployment:
    """The processes of deploy/celery around one Postgres, and what stands outside."""

    def __init__(
        self,
        home: Path,
        postgres: EmbeddedPostgres,
        servers: dict[str, Sandbox],
        shopify: RunningShopify,
    ) -> None:
        self.home, self.servers, self.shopify = home, servers, shopify
        self.labels = servers["default"]
        (home / "servers.toml").write_text(f'[north]\nbase_url = "{servers["north"].url}"\n')
        self.dsn = postgres.dsn(DATABASE)
        self.buffer = Buffer(PsycopgTransport(SecretStr(self.dsn)), label_server="default")
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
            "DAGSTER_HOME": str(home),
            "DAGSTER_EVENT_LOG_CONSUMER_DAEMON_INTERVAL_SECONDS": "1",
            "ESL_HOME": str(home / "esl"),
            "ESL_DATABASE_URL": self.dsn,
            "ESL_DAGSTER_DATABASE_URL": dagster_url(postgres),
            "ESL_FRAMES_URL": f"file://{home}/frames",
            "ESL_DRAIN_IDLE_SECONDS": "0.5",
            "ESL_DRAIN_KEEP_WARM": "false",
            "HIPOINK_API_BASE_URL": self.labels.url,
            "HIPOINK_API_SECRET": SIGN,
            "HIPOINK_SERVERS_FILE": str(home / "servers.toml"),
            "HIPOINK_API_SECRET__NORTH": SIGN,
            "SHOPIFY_ADMIN_URL": shopify.url,
            "SHOPIFY_ADMIN_TOKEN": TOKEN,
        }
        self.worker: Leashed
        self._parts: list[Leashed] = []

    def start(self) -> None:
        instance = (SHIPPED / "dagster.yaml").read_text()
        quick = instance.replace("poll_interval_seconds: 10", "poll_interval_seconds: 1")
        assert quick != instance
        (self.home / "dagster.yaml").write_text(quick)
        code, ui = free_port(), free_port()
        workspace = (SHIPPED / "workspace.yaml").read_text().replace("4000", str(code))
        (self.home / "workspace.yaml").write_text(workspace)
        self.instance = self._instance()
        self.instance.add_dynamic_partitions("shops", [NIGHT_SHOP])
        self.hold_leases()
        self.worker = self._start_worker()
        served = ("--host", "127.0.0.1", "--port")
        location = ("--module-name", "esl_pipeline.definitions", "--location-name", "esl_pipeline")
        self._parts.append(self._run("code server", "dagster", "api", "grpc", *location, *served, str(code)))
        named = ("--workspace", str(self.home / "workspace.yaml"))
        self._parts.append(
            self._run(
                "webserver",
                "esl_pipeline.orchestration.dagster_ui",
                *named,
                *served,
                str(ui),
                "--host-names",
                "",
            )
        )
        self.ui = f"http://127.0.0.1:{ui}"
        self.webserver = Webserver(self.ui)
        eventually(self.webserver.is_loaded, 90, self._said("webserver"))
        self._parts.append(self._run("daemon", "dagster._daemon", "run", *named))

    def start_worker(self) -> None:
        """Another one, when there is none any more."""
        self.worker.stop()
        self.worker = self._start_worker()

    def stop(self) -> None:
        for part in [self.worker, *reversed(self._parts)]:
            part.stop()
        self.instance.dispose()
        self.buffer.close()

    def hold_leases(self) -> None:
        for name in STORES:
            assert self.buffer.lease_take(name=lease_of(name), holder=HOLDER, seconds=300)

    def arrive(self, *products: dict[str, Any]) -> None:
        self.hold_leases()
        arrive(self.buffer, *products)

    def launch_drain(self, name: str = "default") -> str:
        """As inbox_sensor does it."""
        self.hold_leases()
        config = {"ops": {"drain_events": {"config": {"label_server": name}}}}
        return self.webserver.launch("event_sync", config=config, tags={HOLDER_TAG: HOLDER})

    def run(self, run_id: str) -> DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def terminate(self, run_id: str) -> None:
        """As the UI does it."""
        query = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"
        body = {"query": query, "variables": {"id": run_id}}
        answer = httpx.post(f"{self.ui}/graphql", json=body, timeout=30).raise_for_status().json()
        assert answer["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess", answer

    def retry_of(self, run_id: str) -> str:
        """The run that Dagster has begun in its place."""
        found: list[DagsterRun] = []

        def is_there() -> bool:
            found[:] = self.instance.get_runs(RunsFilter(tags={"dagster/parent_run_id": run_id}))
            return bool(found)

        eventually(is_there, 60, f"a retry of {run_id}; {self._said('daemon')}")
        assert len(found) == 1
        return found[0].run_id

    def prices(self, name: str = "default", store: str | None = None) -> dict[str, str]:
        labels = self.servers[name].state()["labels"].get(store or STORES[name], {})
        return {code: label["pp"] for code, label in labels.items()}

    def shown(self, code: str) -> list[str]:
        """What the label has shown, one after the other."""
        changes = self.labels.state()["history"][STORE][code]
        prices = [change["record"] and change["record"]["pp"] for change in changes]
        return [price for i, price in enumerate(prices) if i == 0 or price != prices[i - 1]]

    def labels_are_asked(self) -> bool:
        return all(rule["fired"] for rule in self.labels.http.get("/sandbox/faults").json())

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(query.encode()).fetchall()

    def process_of_run(self, run_id: str) -> int:
        """The worker's process that has the run."""
        (pid,) = {
            event.dagster_event.engine_event_data.metadata["pid"].value
            for event in self.instance.all_logs(run_id)
            if event.dagster_event
            and event.dagster_event.is_engine_event
            and (event.dagster_event.message or "").startswith("Started process for run")
        }
        return int(str(pid))

    def _instance(self) -> DagsterInstance:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ESL_DAGSTER_DATABASE_URL", self.environment["ESL_DAGSTER_DATABASE_URL"])
            instance = DagsterInstance.from_config(str(self.home))
            instance.run_storage, instance.event_log_storage  # noqa: B018  # tables are made once, before the others
        return instance

    def _start_worker(self) -> Leashed:
        return self._run("worker", *WORKER, "--concurrency", "2", "--loglevel", "info")

    def _run(self, name: str, module: str, *arguments: str) -> Leashed:
        return Leashed.start(
            name,
            [sys.executable, "-m", module, *arguments],
            env=self.environment,
            cwd=self.home,
            log=self.home / f"{name}.log",
            grace=2,
        )

    def _said(self, name: str) -> str:
        return f"see {self.home / name}.log"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("celery")
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres.temporary())
        prepare_database(postgres)
        migrate(postgres.dsn(DATABASE))
        with psycopg.connect(postgres.dsn(DATABASE), autocommit=True) as connection:
            connection.execute("create schema pgmq authorization dagster")
        servers = {name: stack.enter_context(running_sandbox()) for name in STORES}
        shopify = stack.enter_context(running_shopify(small_shop(), token=TOKEN))
        found = Deployment(home, postgres, servers, shopify)
        for name, store in STORES.items():
            map_shop(found.buffer, store=store, label_server=name)
        map_shop(found.buffer, shop=DOMAIN, store=NIGHT_STORE)
        try:
            found.start()
            yield found
        finally:
            found.stop()
    shutil.rmtree(home, ignore_errors=True)


def test_the_drains_of_two_label_servers_run_in_a_worker(deployment: Deployment) -> None:
    deployment.arrive(product(1), product(2))
    for name in STORES:
        run_id = deployment.launch_drain(name)
        deployment.webserver.wait(run_id, 60)
        assert deployment.prices(name) == {"C-1": "1.50", "C-2": "1.50"}
        assert deployment.process_of_run(run_id) in descendants_of(deployment.worker.pid)


def test_a_night_runs_in_a_worker(deployment: Deployment) -> None:
    run_id = deployment.webserver.launch_night(NIGHT_SHOP)
    deployment.webserver.wait(run_id, 90)
    assert len(deployment.prices(store=NIGHT_STORE)) > 100
    assert {entry.name for entry in (deployment.home / "frames").iterdir()} >= {"validated_variants"}


@pytest.mark.parametrize("dies", ["the process of the run", "the worker and all its processes"])
def test_a_worker_that_is_killed_in_mid_push_leaves_nothing_undone(deployment: Deployment, dies: str) -> None:
    price, later = ("2.00", "2.50") if dies == "the process of the run" else ("3.00", "3.50")
    before = {code: deployment.shown(code) for code in ("C-1", "C-2")}
    deployment.arrive(product(1, price=price), product(2, price=price))
    deployment.labels.faults({"kind": "hold", "action": "create_multiple", "seconds": 120, "times": 1})
    run_id = deployment.launch_drain()
    eventually(deployment.labels_are_asked, 30, "a push")

    worker = deployment.worker.pid
    if dies == "the process of the run":
        os.kill(deployment.process_of_run(run_id), signal.SIGKILL)
    else:
        kill_at_once({worker, *descendants_of(worker)})
    deployment.arrive(product(2, price=later))  # nobody is there to read it
    deployment.labels.faults()
    if not is_alive(worker):
        deployment.start_worker()

    retry = deployment.retry_of(run_id)
    deployment.webserver.wait(retry, 60)
    deployment.webserver.wait(deployment.launch_drain("north"), 60)

    assert deployment.run(run_id).status == DagsterRunStatus.FAILURE
    assert deployment.prices() == deployment.prices("north") == {"C-1": price, "C-2": later}
    assert deployment.shown("C-1") == [*before["C-1"], price]
    # The delivery that came in between may have overtaken what was never pushed, but nothing older came after it.
    assert deployment.shown("C-2") in ([*before["C-2"], price, later], [*before["C-2"], later])
    assert deployment.rows("select code, state from esl.sync_queue") == []
    assert set(deployment.rows("select distinct state from esl.webhook_inbox")) == {("done",)}


def test_a_run_ends_when_the_ui_says_so(deployment: Deployment) -> None:
    deployment.arrive(product(1, price="4.00"))
    deployment.labels.faults({"kind": "hold", "action": "create_multiple", "seconds": 120, "times": 1})
    run_id = deployment.launch_drain()
    eventually(deployment.labels_are_asked, 30, "a push")

    deployment.terminate(run_id)

    eventually(lambda: deployment.run(run_id).status == DagsterRunStatus.CANCELED, 30, "the end of the run")
    deployment.labels.faults()
    deployment.webserver.wait(deployment.launch_drain(), 60)  # its process has stayed, for the next one
    assert deployment.prices()["C-1"] == "4.00"
