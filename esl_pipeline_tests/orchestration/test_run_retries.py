"""Dagster itself retries a killed full_reconciliation: the whole stack of `esl-pipeline up`, and nobody else's help.

What Dagster does about it, with the shipped dagster.yaml. The job runs in one process (in_process_executor), which the
code server has started, and which sees its child dead within its tick of 0.5 s and reports the run failed. The daemon
reads that event within 5 s and queues the retry, which begins anew (`dagster/retry_strategy`) and takes up what the
dead run had claimed. A code server that dies with its runs reports nothing: run monitoring asks the launcher every
10 s, and that asks the code server that is there by now, see orchestration/code_server_runs.py; the next
`esl-pipeline up` does it at once, see orchestration/abandoned_runs.py.

Each kill hits a moment that is held from outside: by the sandboxes' failure switches, or by a lock on which the
database keeps whoever writes a certain row. inbox_sensor and the schedules are stopped, and webhooks are lost.
"""

import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from psycopg.rows import dict_row

from esl_pipeline.local.variables import running_environment
from esl_pipeline.local.webserver import Webserver
from esl_pipeline.orchestration.near_real_time import HOLD_SECONDS, HOLDER_TAG
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline_tests.processes import Up, descendants_of, is_alive, kill_at_once, part_of
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(300),
]

JOB, SHOP, STORE = "full_reconciliation", f"shopify:{DOMAIN}", "001"
REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "esl_pipeline"}
LOCK = 7_150_401
HELD_SECONDS = 120.0
FOREIGN_NAME = "Somebody's own"
# Another one each time: the same drift again and again is left alone after the third time.
_foreign_names = (f"{FOREIGN_NAME} {number}" for number in itertools.count(1))


class Shopify:
    """What somebody does in the shop, whose webhooks are lost."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def close(self) -> None:
        self._http.close()

    def products(self) -> list[dict[str, Any]]:
        """On sale, with all their variants."""
        answer = self._http.get("/sandbox/products", params={"size": 1000}).raise_for_status().json()
        cards = [
            card
            if card["variants_total"] == len(card["variants"])
            else self._http.get(f"/sandbox/products/{card['id']}").json()
            for card in answer["products"]
        ]
        return [card for card in cards if card["status"] == "active" and not card["gift_card"]]

    def prices(self) -> dict[str, str]:
        """What the labels should show."""
        return {
            variant["barcode"]: variant["price"] for card in self.products() for variant in card["variants"]
        }

    def raise_price(self, product: dict[str, Any]) -> None:
        variant = product["variants"][0]
        price = f"{float(variant['price']) + 0.05:.2f}"
        path = f"/sandbox/products/{product['id']}/variants/{variant['id']}"
        self._http.patch(path, json={"price": price}).raise_for_status()

    def set_status(self, product: dict[str, Any], status: str) -> None:
        self._http.patch(f"/sandbox/products/{product['id']}", json={"status": status}).raise_for_status()

    def delete(self, product: dict[str, Any]) -> None:
        self._http.delete(f"/sandbox/products/{product['id']}").raise_for_status()

    def lose_webhooks(self, share: float = 1) -> None:
        self._http.put("/sandbox/deliveries/switches", json={"drop": share}).raise_for_status()

    def faults(self, *rules: dict[str, Any]) -> None:
        self._http.post("/sandbox/faults", json=list(rules)).raise_for_status()

    def fired(self) -> bool:
        return all(rule["fired"] for rule in self._http.get("/sandbox/faults").json())


class Labels:
    """The label server's sandbox."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)

    def close(self) -> None:
        self._http.close()

    def prices(self) -> dict[str, str]:
        """Code to price, as the shelf shows it."""
        return {code: label["pp"] for code, label in self._state()["labels"].get(STORE, {}).items()}

    def names(self) -> set[str]:
        return {label["pn"] for label in self._state()["labels"].get(STORE, {}).values()}

    def removed(self) -> set[str]:
        """Codes that a push has ever taken away."""
        history = self._state()["history"].get(STORE, {})
        return {code for code, changes in history.items() if any(not one["record"] for one in changes)}

    def calls(self) -> int:
        """How often labels were sent or taken away."""
        calls = self._state()["calls"]
        return sum(calls.get(action, 0) for action in ("create", "create_multiple", "del_multiple"))

    def edit(self, code: str, **fields: str) -> None:
        """Behind our back."""
        self._http.put(f"/sandbox/labels/{STORE}/{code}", json=fields).raise_for_status()

    def take_away(self, code: str) -> None:
        """Behind our back, too."""
        self._http.delete(f"/sandbox/labels/{STORE}/{code}").raise_for_status()

    def faults(self, *rules: dict[str, Any]) -> None:
        self._http.post("/sandbox/faults", json=list(rules)).raise_for_status()

    def fired(self) -> bool:
        return all(rule["fired"] for rule in self._http.get("/sandbox/faults").json())

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._http.get("/sandbox/state").raise_for_status().json()
        return state


class Stack:
    """A running `up`, driven and looked at from outside."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._opened = ExitStack()

    def start(self) -> None:
        # A warm drain would push what a night has queued.
        self.up = Up(self.home, ESL_DRAIN_KEEP_WARM="false")
        urls = self.up.wait_until_ready()
        told = running_environment(self.home)
        self.dsn = told["ESL_DATABASE_URL"]
        self.ui, self.webserver = urls["ui"], Webserver(urls["ui"])
        self.shopify, self.labels = Shopify(urls["shop"]), Labels(urls["labels"])
        os.environ["ESL_DAGSTER_DATABASE_URL"] = told["ESL_DAGSTER_DATABASE_URL"]
        self.instance = DagsterInstance.from_config(str(self.home / "dagster"))
        self._opened.callback(self.shopify.close)
        self._opened.callback(self.labels.close)
        self._opened.callback(self.instance.dispose)

    def end(self) -> None:
        self._opened.close()
        family = self.up.family()
        self.up.end(signal.SIGINT)
        self.up.leaves_nothing(family)

    def lose_power(self) -> None:
        """Every process is gone at once: none has the time to report anything."""
        self._opened.close()
        family = self.up.family()
        kill_at_once(family)
        self.up.process.wait(60)
        self.up.leaves_nothing(family)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Dagster's GraphQL."""
        body = {"query": query, "variables": variables}
        answer = httpx.post(f"{self.ui}/graphql", json=body, timeout=30).raise_for_status().json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def stop_sensors(self) -> None:
        """Or near real time would mend what a retry leaves undone."""
        found = self.ask(
            "query ($of: RepositorySelector!) {"
            " sensorsOrError(repositorySelector: $of) { ... on Sensors { results { id } } } }",
            of=REPOSITORY,
        )
        for sensor in found["sensorsOrError"]["results"]:
            self.ask("mutation ($id: String!) { stopSensor(id: $id) { __typename } }", id=sensor["id"])
        # A tick that was under way ends first; it would start a drain that lives on as long as there is work.
        time.sleep(HOLD_SECONDS + 2)

    def launch_drain(self) -> str:
        """As inbox_sensor does it."""
        run = {
            "selector": {**REPOSITORY, "jobName": "event_sync"},
            "executionMetadata": {"tags": [{"key": HOLDER_TAG, "value": "the sensor's"}]},
        }
        answer = self.ask(
            "mutation ($run: ExecutionParams!) {"
            " launchRun(executionParams: $run) { ... on LaunchRunSuccess { run { runId } } } }",
            run=run,
        )
        return str(answer["launchRun"]["run"]["runId"])

    def sql(self, statement: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.dsn, autocommit=True, row_factory=dict_row) as connection:
            done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def run(self, run_id: str) -> DagsterRun:
        found = self.instance.get_run_by_id(run_id)
        assert found is not None
        return found

    def runs(self) -> set[str]:
        return {run.run_id for run in self.instance.get_runs(RunsFilter())}

    def started(self, run_id: str) -> float:
        """When a run began, in seconds of the epoch; 0 while it has not."""
        (record,) = self.instance.get_run_records(RunsFilter(run_ids=[run_id]))
        return record.start_time or 0

    def kill(self, run_id: str) -> None:
        """Kill the process of a run that is at work."""
        said = [entry.message for entry in self.instance.all_logs(run_id)]
        (process,) = {int(pid) for text in said for pid in re.findall(r"\(pid: (\d+)\)", text)}
        assert self.run(run_id).status == DagsterRunStatus.STARTED
        assert process in descendants_of(self.up.process.pid)
        os.kill(process, signal.SIGKILL)
        eventually(lambda: not is_alive(process), 5, "the end of the process")

    def kill_code_server(self) -> None:
        """With all its runs, in no time: none of them can report anything. `up` starts another."""
        code_server = part_of(self.home, "code server")
        kill_at_once({code_server, *descendants_of(code_server)})

    def retried(self, run_id: str, before: set[str], *, within: float = 30) -> DagsterRun:
        """The run that Dagster starts by itself for one that was just killed, when it has succeeded."""
        began = time.time()
        noticed = eventually(
            lambda: self.run(run_id).status == DagsterRunStatus.FAILURE, within, "a failed run"
        )
        eventually(lambda: self.runs() - before - {run_id}, 30, "a retry")
        (retry,) = self.runs() - before - {run_id}
        eventually(lambda: self.started(retry), 30, "the start of the retry")
        self.webserver.wait(retry, 60)
        print(
            f"failed after {noticed:.1f} s, started again after {self.started(retry) - began:.1f} s,"
            f" done after {time.time() - began:.1f} s"
        )
        return self.run(retry)

    @contextmanager
    def holds(self, table: str, when: str = "") -> Iterator[Callable[[], bool]]:
        """Stop whoever writes such a row in the middle of it, until this is left; tells whether anybody is held."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("select pg_advisory_lock(%s)", [LOCK])
            connection.execute(
                f"create trigger held before insert or update on {table} for each row"
                f" {when and f'when ({when})'} execute function held.until_released()"
            )

            def is_held() -> bool:
                (row,) = self.sql(
                    f"select count(*) from pg_locks where locktype = 'advisory' and objid = {LOCK} and not granted"
                )
                return bool(row["count"])

            try:
                yield is_held
            finally:
                connection.execute("select pg_advisory_unlock(%s)", [LOCK])
                connection.execute(f"drop trigger held on {table}")

    @contextmanager
    def shop_fault(self, **rule: Any) -> Iterator[Callable[[], bool]]:
        self.shopify.faults(rule)
        try:
            yield self.shopify.fired
        finally:
            self.shopify.faults()

    @contextmanager
    def label_fault(self, **rule: Any) -> Iterator[Callable[[], bool]]:
        self.labels.faults(rule)
        try:
            yield self.labels.fired
        finally:
            self.labels.faults()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One `up` for all kills, its labels there."""
    home = Path(tempfile.mkdtemp(prefix="esl-retry-", dir="/tmp"))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESL_DAGSTER_DATABASE_URL", "")
        stack = Stack(home)
        try:
            stack.start()
            stack.stop_sensors()
            stack.webserver.stop_schedules()
            stack.sql(
                "create schema held; grant usage on schema held to public;"
                " create function held.until_released() returns trigger language plpgsql as"
                f" $$begin perform pg_advisory_xact_lock_shared({LOCK}); return new; end$$"
            )
            # What has to go goes at once, or no removal would ever be out.
            stack.sql("""update esl.store_mappings set settings = settings || '{"unbind_grace_hours": 0}'""")
            stack.instance.add_dynamic_partitions("shops", [SHOP])
            stack.webserver.wait(stack.webserver.launch_night(SHOP), 60)
            assert stack.labels.prices() == stack.shopify.prices()
            yield stack
        finally:
            stack.end()
            shutil.rmtree(home)


@dataclass(frozen=True)
class Moment:
    """When a run is killed: how it is held there, and what the buffer says of the snapshot by then."""

    hold: Callable[[Stack], AbstractContextManager[Callable[[], bool]]]
    snapshot: str


def dagster_event(kind: str, step: str | None = None) -> Moment:
    """While Dagster writes this event."""
    when = f"new.dagster_event_type = '{kind}'" + (f" and new.step_key = '{step}'" if step else "")
    return Moment(lambda stack: stack.holds("dagster.event_logs", when), "finished")


MOMENTS = {
    "the bulk operation runs": Moment(
        lambda stack: stack.shop_fault(kind="bulk_slow", seconds=HELD_SECONDS, times=1), "open"
    ),
    "the download streams": Moment(
        lambda stack: stack.shop_fault(kind="broken_download", seconds=HELD_SECONDS, times=1), "open"
    ),
    "the catalogue is merged": Moment(lambda stack: stack.holds("esl.products"), "open"),
    "the snapshot is finished, its step not": dagster_event("STEP_OUTPUT", "shopify_products"),
    "labels are judged": Moment(lambda stack: stack.holds("esl.labels"), "finished"),
    "a push is out": Moment(
        lambda stack: stack.label_fault(kind="hold", action="create_multiple", seconds=HELD_SECONDS, times=1),
        "finished",
    ),
    "a removal is out": Moment(
        lambda stack: stack.label_fault(kind="hold", action="del_multiple", seconds=HELD_SECONDS, times=1),
        "finished",
    ),
    "an answer is recorded": Moment(lambda stack: stack.holds("esl.hipoink_products"), "finished"),
    "the label server lists": Moment(
        lambda stack: stack.label_fault(kind="hold", action="query", seconds=HELD_SECONDS, times=1),
        "finished",
    ),
    "drift is repaired": Moment(lambda stack: stack.holds("esl.drift"), "finished"),
    "the run ends": dagster_event("PIPELINE_SUCCESS"),
}


def change_the_shop(stack: Stack) -> dict[str, str]:
    """New prices, a product gone, one hidden, two labels edited behind our back -> what the labels should show."""
    shopify, labels = stack.shopify, stack.labels
    shopify.lose_webhooks()
    for product in shopify.products()[3:7]:
        shopify.raise_price(product)
    gone, hidden = [card for card in shopify.products()[7:] if len(card["variants"]) == 2][:2]
    shopify.delete(gone)
    shopify.set_status(hidden, "draft")
    name = next(_foreign_names)
    labels.edit(shopify.products()[-2]["variants"][0]["barcode"], pn=name)
    lost = shopify.products()[-12:-2]
    labels.take_away(lost[int(name.split()[-1]) % len(lost)]["variants"][-1]["barcode"])
    return shopify.prices()


def assert_converged(stack: Stack, staying: dict[str, str]) -> None:
    assert stack.labels.prices() == staying == stack.shopify.prices()
    assert not any(name.startswith(FOREIGN_NAME) for name in stack.labels.names())
    assert stack.labels.removed().isdisjoint(staying)
    in_shop = {card["id"] for card in stack.shopify.products()}
    removed = stack.sql("select distinct product_id from esl.products where removed")
    assert {str(row["product_id"]) for row in removed}.isdisjoint(in_shop)
    assert stack.sql("select code, state, last_error from esl.sync_queue") == []
    assert stack.sql("select variant_id from esl.snapshot_variants") == []


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_dagster_retries_a_killed_run_until_the_labels_are_right(stack: Stack, moment: Moment) -> None:
    staying, before = change_the_shop(stack), stack.runs()
    run_id = stack.webserver.launch_night(SHOP)
    with moment.hold(stack) as is_reached:
        eventually(is_reached, 30, "the moment")
        (snapshot,) = stack.sql("select state from esl.snapshots order by started_at desc limit 1")
        stack.kill(run_id)

    retry = stack.retried(run_id, before)

    assert snapshot["state"] == moment.snapshot
    assert (retry.parent_run_id, retry.tags["dagster/retry_number"]) == (run_id, "1")
    assert retry.tags["dagster/partition"] == SHOP
    assert_converged(stack, staying)
    assert stack.runs() == before | {run_id, retry.run_id}


def test_a_run_after_all_of_them_has_nothing_to_do(stack: Stack) -> None:
    calls = stack.labels.calls()
    stack.webserver.wait(stack.webserver.launch_night(SHOP), 60)
    assert stack.labels.calls() == calls


def test_a_killed_drain_is_taken_up_before_its_leases_end(stack: Stack) -> None:
    stack.shopify.lose_webhooks(0)
    stack.shopify.raise_price(stack.shopify.products()[0])
    eventually(lambda: stack.sql("select id from esl.webhook_inbox where state = 'ready'"), 10, "the webhook")
    before = stack.runs()
    with stack.label_fault(kind="hold", action="create_multiple", seconds=HELD_SECONDS, times=1) as is_out:
        run_id = stack.launch_drain()
        eventually(is_out, 30, "a push")
        stack.kill(run_id)

    retry = stack.retried(run_id, before)

    assert retry.parent_run_id == run_id
    assert_converged(stack, stack.shopify.prices())


def test_a_run_that_died_with_its_code_server_is_noticed_within_a_minute_and_retried(stack: Stack) -> None:
    stack.shopify.lose_webhooks()
    for product in stack.shopify.products()[3:7]:
        stack.shopify.raise_price(product)
    prices, before = stack.shopify.prices(), stack.runs()
    run_id = stack.webserver.launch_night(SHOP)
    with stack.shop_fault(kind="bulk_slow", seconds=HELD_SECONDS, times=1) as is_reached:
        eventually(is_reached, 30, "a bulk operation")
        assert stack.run(run_id).status == DagsterRunStatus.STARTED
        stack.kill_code_server()

    retry = stack.retried(run_id, before, within=60)

    assert (retry.parent_run_id, retry.tags["dagster/retry_number"]) == (run_id, "1")
    shown = stack.labels.prices()
    assert {code: shown[code] for code in prices} == prices
    assert stack.runs() == before | {run_id, retry.run_id}


def test_runs_that_died_with_everything_are_retried_by_the_next_start(stack: Stack) -> None:
    staying, before = change_the_shop(stack), stack.runs()
    run_id = stack.webserver.launch_night(SHOP)
    with stack.shop_fault(kind="bulk_slow", seconds=HELD_SECONDS, times=1) as is_reached:
        eventually(is_reached, 30, "a bulk operation")
        assert stack.run(run_id).status == DagsterRunStatus.STARTED
        stack.lose_power()
        stack.start()

    retry = stack.retried(run_id, before)

    assert retry.parent_run_id == run_id
    assert_converged(stack, staying)
    assert stack.runs() == before | {run_id, retry.run_id}
