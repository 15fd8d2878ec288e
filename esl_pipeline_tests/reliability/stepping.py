"""A worker that stops before every call it makes and goes on when it is told: every arrow is a place to die at.

The code between the calls is the pipeline's own. Its seams are the buffer's transport and the label server's limiter:
there it stops twice, before it asks for the call's slot, and before the call itself, while it has the slot.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from uuid import uuid4

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.buffer.transports import Transport
from esl_pipeline.hipoink import Call, HipoinkClient
from esl_pipeline_tests.hipoink.servers import client_of

SLOT, LABEL_SERVER = "a call's slot", "label server"
# A call counts as in flight until somebody says that time has passed.
_CALL_SECONDS = 3600.0

# repeat: the answer was lost, and the transport called again. lose: it was lost for good. fail: nothing got through.
# kill: the process is no more.
Fate = Literal["go", "repeat", "lose", "fail", "kill"]
Job = Callable[[Buffer, HipoinkClient], object]


class _Killed(BaseException):
    """Not an Exception: nothing that a dead process would not do either may be done about it."""


class Worker:
    """Runs one job at a time in a thread, a call at a time, at one of some label servers (name to address).

    `at` is the call it stands before; None: it has ended. `server` is where its job works, `push` the one that it has
    in hand, `call` the call that has its slot.
    """

    def __init__(self, buffer: Buffer, label_servers: Mapping[str, str]) -> None:
        self.at: str | None = None
        self.is_late = False
        self.server = buffer.label_server
        self.push: str | None = None
        self.call: str | None = None
        self.concurrency = 1
        self._buffer = Buffer(_Gated(buffer.transport, self), label_servers=buffer.label_servers)
        self._clients = {
            name: client_of(url, limiter=_Slots(self, buffer.at(name)), retries=1, timeout_seconds=5)
            for name, url in label_servers.items()
        }
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._fate: Fate = "go"
        self._error: Exception | None = None

    def close(self) -> None:
        """End, and close the connections."""
        self.kill()
        for client in self._clients.values():
            client.close()

    @property
    def is_in_hand(self) -> bool:
        """Whether it has claimed a batch that it has not told the end of."""
        return self.push is not None and self.at in (SLOT, LABEL_SERVER, "esl_push_finish")

    def start(self, job: Job, server: str) -> None:
        """Run up to the first call, at this label server."""
        self.server, self.push, self.call = server, None, None
        self.is_late, self._error, self._fate = False, None, "go"
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        self._wait()

    def step(self, fate: Fate = "go") -> None:
        """Make the call it stands before, and run up to the next one. Raises what no worker may raise."""
        self._fate = fate
        self._go.release()
        self._wait()

    def kill(self) -> None:
        """It never makes the call it stands before."""
        if self.at is not None:
            self.step("kill")

    def _stop_before(self, call: str) -> Fate:
        if self._fate != "kill":
            self.at = call
            self._stopped.release()
            self._go.acquire()
        if self._fate == "kill":
            raise _Killed
        return self._fate

    def _run(self, job: Job) -> None:
        try:
            job(self._buffer.at(self.server), self._clients[self.server])
        except (_Killed, BufferError):
            pass  # the run has failed
        except Exception as error:
            self._error = error
        self.at = self.push = self.call = None
        self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=30), f"stuck in {self.at}"
        if self._error is not None:
            raise self._error


class _Slots:
    """A label server's limiter, asked before every call: the buffer's, a question at a time."""

    def __init__(self, worker: Worker, buffer: Buffer) -> None:
        self._worker, self._buffer = worker, buffer

    @contextmanager
    def slot(self, call: Call) -> Iterator[None]:
        worker, call_id = self._worker, str(uuid4())
        worker.push = call.recorded_as
        while True:
            if worker._stop_before(SLOT) == "fail":
                raise BufferUnavailable("the shared limiter is out of reach")
            if self._begins(call_id, call):
                break
        worker.call = call_id
        worker._stop_before(LABEL_SERVER)
        try:
            yield
        finally:
            worker.call = None
            if call.recorded_as is None:  # else what is recorded of it tells of its end as well
                self._buffer.rate_give(ended=[call_id])

    def close(self) -> None:
        """Nothing is kept."""

    def _begins(self, call_id: str, call: Call) -> bool:
        wait, _ = self._buffer.rate_take(
            server=self._worker.server,
            rate_per_second=1_000_000,
            concurrency=self._worker.concurrency,
            call_id=call_id,
            recorded_as=call.recorded_as,
            seconds=_CALL_SECONDS,
        )
        return wait is not None


class _Gated:
    """A transport that lets each call through when its worker is told to go on."""

    def __init__(self, transport: Transport, worker: Worker) -> None:
        self._transport, self._worker = transport, worker
        self.calls = 0

    def call(self, function: str, p: Mapping[str, Any]) -> Any:
        fate = self._worker._stop_before(function)
        if fate != "fail":
            answer = self._transport.call(function, p)
            if fate == "repeat":
                answer = self._transport.call(function, p)
            if fate != "lose":
                return answer
        raise BufferUnavailable(f"{function}: the connection is gone")

    def close(self) -> None:
        """The connections are the transport's."""

    def describe(self) -> str:
        return self._transport.describe()
