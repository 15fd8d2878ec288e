"""What only one does at a time: leases, how they are handed over, and what wakes who holds one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from esl_pipeline.buffer.door import Door, Row
from esl_pipeline.buffer.migrate import functions_build

# esl_inbox_add notifies it.
INBOX_CHANNEL = "esl_inbox"


@dataclass(frozen=True)
class Lease:
    """How a lease stands for who asked for it. successor_is_ready: somebody is there to take it over."""

    is_held: bool
    successor_is_ready: bool


class LeaseCalls(Door):
    """The lease methods of Buffer."""

    def lease_take(self, *, name: str, holder: str, seconds: float, relieve_in: float | None = None) -> Lease:
        """Take or renew a lease, and say in how many seconds somebody else shall take it over."""
        answer = self._call(
            "esl_lease_take",
            name=name,
            holder=holder,
            seconds=seconds,
            relieve_in=relieve_in,
            build=functions_build(),
        )
        return Lease(is_held=answer["held"], successor_is_ready=answer["successor_is_ready"])

    def lease_keep(self, *, name: str, holder: str, seconds: float) -> bool:
        """Keep a lease that is free for a holder that is being started -> whether it is. Who is there may take it."""
        kept: bool = self._call("esl_lease_take", name=name, holder=holder, seconds=seconds)["held"]
        return kept

    def lease_await(
        self, *, name: str, holder: str, seconds: float, ready: bool = True
    ) -> Literal["held", "waits", "refused"]:
        """Take a lease that is free, else wait so long to be its next holder, unless another waits already.

        ready: whether the holder may hand it over now; else it waits for who will ask then.
        """
        answer = self._call(
            "esl_lease_await",
            name=name,
            holder=holder,
            seconds=seconds,
            ready=ready,
            build=functions_build(),
        )
        return "held" if answer["held"] else "waits" if answer["waits"] else "refused"

    def lease_release(self, *, name: str, holder: str, seconds: float) -> Row:
        """Give a lease back, if it is still this holder's -> {released}: to who waits for it, for these seconds."""
        return self._call("esl_lease_release", name=name, holder=holder, seconds=seconds)

    def wake_ups(self, wake: Callable[[], None]) -> AbstractContextManager[None]:
        """While it is open, `wake` is called when a delivery has come; where the buffer is not reached directly (a
        transaction pooler, PostgREST), it never is."""
        return self.transport.listening(INBOX_CHANNEL, wake)
