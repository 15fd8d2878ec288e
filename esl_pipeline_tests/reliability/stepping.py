"""A worker that stops before every call it makes and goes on when it is told: every arrow is a place to die at.

The code between the calls is the pipeline's own. Its seams are the buffer's transport and the label server's limiter.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError, BufferUnavailable
from esl_pipeline.buffer.transports import Transport
from esl_pipeline.hipoink import HipoinkClient
from esl_pipeline_tests.hipoink.servers import client_of

LABEL_SERVER = "label server"

# repeat: the answer was lost, and the transport called again. lose: it was lost for good. fail: nothing got through.
# kill: the process is no more.
Fate = Literal["go", "repeat", "lose", "fail", "kill"]
Job = Callable[[Buffer, HipoinkClient], object]


class _Killed(BaseException):
    """Not an Exception: nothing that a dead process would not do either may be done about it."""


class Worker:
    """Runs one job at a time in a thread, a call at a time. `at` is the call it stands before; None: it has ended."""

    def __init__(self, transport: Transport, label_server_url: str) -> None:
        self.at: str | None = None
        self.is_late = False
        self._buffer = Buffer(_Gated(transport, self))
        self._client = client_of(label_server_url, limiter=self, retries=1, timeout_seconds=5)
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._fate: Fate = "go"
        self._error: Exception | None = None

    def close(self) -> None:
        """End, and close the connections."""
        self.kill()
        self._client.close()

    def start(self, job: Job) -> None:
        """Run up to the first call."""
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

    def acquire(self) -> None:
        """The label server's limiter: asked before every call."""
        if self._stop_before(LABEL_SERVER) == "fail":
            raise BufferUnavailable("the shared limiter is out of reach")

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
            job(self._buffer, self._client)
        except (_Killed, BufferError):
            pass  # the run has failed
        except Exception as error:
            self._error = error
        self.at = None
        self._stopped.release()

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=30), f"stuck in {self.at}"
        if self._error is not None:
            raise self._error


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
