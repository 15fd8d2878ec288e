"""The processes that the tests kill: the receiver as its command runs it, and a worker that drains like Dagster's runs.

They are forked from a server that has done the imports, so that a start costs a tenth of a second. Leases are short
here, so that the tests need not wait for them as long as people do.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx

from esl_pipeline import connections
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.commands import running
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.settings import load_settings
from esl_pipeline.stages import drain
from esl_pipeline_tests.hipoink.servers import Sandbox
from esl_pipeline_tests.receiver.support import SECRET
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import ASSET

LEASE = 1.5
_PR_SET_PDEATHSIG = 1
RUN_ENDED = "a run has ended"
_FORKS = multiprocessing.get_context("forkserver")
# Not this module itself: the fork server does not look where pytest has found it.
_FORKS.set_forkserver_preload(
    [
        "esl_pipeline.commands.cli",
        "esl_pipeline.connections",
        "esl_pipeline.sandbox.label_server.server",
        "esl_pipeline.receiver.app",
        "psycopg",
        "pytest",
    ]
)


class _HastyBuffer(Buffer):
    """Claims deliveries for a short time."""

    def inbox_claim(self, **options: Any) -> tuple[str, list[dict[str, Any]]]:
        return super().inbox_claim(**options | {"lease_seconds": LEASE})


def _receive(dsn: str, port: int, log: Path) -> None:
    _begin(log)
    os.environ.update(ESL_DATABASE_URL=dsn, SHOPIFY_WEBHOOK_SECRET=SECRET)
    running.receiver(port=port)


def _work(
    dsn: str,
    labels_url: str,
    log: Path,
    timeout: float,
    lease: float,
    keep_warm: bool = False,
    **variables: Any,
) -> None:
    """Drain run after drain run, as the sensor starts them; one that fails is followed by the next.

    keep_warm: of a run that waits until another one hands over to it.
    """
    _begin(log)
    logging.basicConfig(level=logging.INFO)
    drain.LEASE_SECONDS, drain._RENEW_SECONDS = LEASE, LEASE / 4
    # One try: so each call that the label server saw has an intent of its own.
    connections.LABEL_SERVER_TIMEOUT_SECONDS, connections.LABEL_SERVER_TRIES = timeout, 1
    settings = load_settings(
        **{
            "esl_database_url": dsn,
            "hipoink_api_base_url": labels_url,
            "hipoink_api_secret": SIGN,
            "hipoink_rate_limit_per_second": 1000,
            "retry_initial_delay_seconds": 0.05,
            "retry_backoff_multiplier": 1,
            **variables,
        }
    )
    # A call that is begun within this time of its claim ends before the claim does.
    rules = replace(connections.push_rules(settings), lease=lease, call=lease / 3)
    buffer = _HastyBuffer(connections.open_buffer(settings).transport)
    client = connections.open_label_server(settings, buffer)
    logger = logging.getLogger(__name__)
    while True:
        run = str(uuid4())
        try:
            ran = drain.drain(
                buffer,
                client,
                rules,
                drain.DrainLimits(idle=60, age=600, keep_warm=keep_warm),
                run_id=run,
                holder=run,
                asset=ASSET,
                on_round=lambda _: None,
                on_idle=lambda: None,
            )
        except BufferError as error:
            logger.error("the run failed: %s", error)
        else:
            if ran:
                logger.info(RUN_ENDED)
        time.sleep(0.1)


def _run_event_sync(dsn: str, labels_url: str, log: Path) -> None:
    """One run of the Dagster job, in this process as in a run's own."""
    _begin(log)
    os.environ.update(
        ESL_DATABASE_URL=dsn,
        HIPOINK_API_BASE_URL=labels_url,
        HIPOINK_API_SECRET=SIGN,
        HIPOINK_RATE_LIMIT_PER_SECOND="1000",
    )
    import dagster as dg

    from esl_pipeline.definitions import build_definitions

    with dg.DagsterInstance.ephemeral() as instance:
        try:
            build_definitions().resolve_job_def("event_sync").execute_in_process(instance=instance)
        finally:
            records = instance.get_event_records(
                dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION)
            )
            for record in records:
                print("materialised", record.asset_key.to_user_string(), flush=True)


def _begin(log: Path) -> None:
    """In the new process: its output to the log, and its end with the fork server's, which ends with the tests."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.chdir(log.parent)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


class Victim:
    """A process that may be stopped, continued and killed at any time; ended at the end of the block."""

    def __init__(self, target: Callable[..., None], *arguments: Any, log: Path, **options: Any) -> None:
        self.log = log
        self._process = _FORKS.Process(target=target, args=(*arguments, log), kwargs=options)
        self._process.start()

    @classmethod
    def receiver(cls, dsn: str, port: int, log: Path) -> Self:
        """A receiver that answers."""
        victim = cls(_receive, dsn, port, log=log)
        eventually(lambda: victim.said("Uvicorn running"), 30)
        return victim

    @classmethod
    def worker(
        cls,
        dsn: str,
        labels_url: str,
        log: Path,
        *,
        timeout: float = 15,
        lease: float = LEASE,
        **variables: Any,
    ) -> Self:
        """A worker that is about to look for work."""
        return cls(_work, dsn, labels_url, log=log, timeout=timeout, lease=lease, **variables)

    @classmethod
    def event_sync(cls, dsn: str, labels_url: str, log: Path) -> Self:
        """A Dagster run of the drain job."""
        return cls(_run_event_sync, dsn, labels_url, log=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.exit_code is None:
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The signal's number with a minus after a death by signal; None while it lives."""
        return self._process.exitcode

    def said(self, words: str) -> bool:
        return self.log.exists() and words in self.log.read_text()

    def kill(self) -> None:
        """As a power cut would; returns when it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(10)
        assert self.exit_code == -signal.SIGKILL

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)

    def ends_within(self, seconds: float) -> None:
        """See that it does what it was asked."""
        self._process.join(seconds)
        assert self.exit_code == -signal.SIGTERM, f"it did not end within {seconds} s"

    def pause(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def label_server(log: Path) -> Iterator[Sandbox]:
    """The sandbox in a process of its own."""
    command = [sys.executable, "-m", "esl_pipeline.sandbox.label_server.server", "--port", "0"]
    with ExitStack() as stack:
        errors = stack.enter_context(log.open("w"))
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        yield Sandbox(url, stack.enter_context(httpx.Client(base_url=url, timeout=10)))
