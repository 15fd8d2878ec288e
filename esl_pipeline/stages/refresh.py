"""After the pushes: the label server is told to refresh the physical labels of each store, once a burst.

A server without auto-trigger shows nothing of what it has accepted before that (esl/bind_task). Which stores wait for
it stands in the buffer, marked with the accepted push itself; nothing here holds up or fails a label.
"""

import logging
import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.client import HipoinkClient
from esl_pipeline.hipoink.devices import is_not_known
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.hipoink.limiter import Call
from esl_pipeline.model.push import Outcome, RefreshClaim
from esl_pipeline.model.shop import Shop
from esl_pipeline.stages.outcomes import accepted, milliseconds_since, not_accepted

_log = logging.getLogger(__name__)

# At the end of a run, for the call at hand: one that is cut off is made again when its claim runs out.
_LAST_SECONDS = 5.0


@dataclass(frozen=True)
class RefreshRules:
    """When a store's labels are refreshed; seconds.

    Once nothing more can be pushed to it, at the latest when its policy says so (refresh_seconds) after the first push
    of a burst, or `rise` after the first of a price that rises; two triggers of a store are `gap` apart. After failures
    it is tried again with the next burst, or with growing delays. `look`: so often does a run ask what is due.
    `concurrency`: how many calls the label server takes at a time; a store leaves one of them to the others.
    """

    gap: float = 3
    rise: float = 3
    initial_delay: float = 5
    multiplier: float = 2
    max_delay: float = 900
    look: float = 0.5
    concurrency: int | None = None
    # Longer than the client's longest call with its own retries, so that no store is triggered by two workers at once.
    lease: float = 60


DEFAULT_RULES = RefreshRules()


def refresh_stores(
    buffer: Buffer,
    client: HipoinkClient,
    rules: RefreshRules = DEFAULT_RULES,
    *,
    run_id: str,
    shop: Shop | None = None,
) -> list[str]:
    """Trigger the stores that are due, one after another -> those whose trigger the label server accepted.

    Two round trips and a call each, beside the limiter's; one round trip when nothing is due. Raises BufferError only.
    """
    triggered, more = list[str](), True
    while more:
        claim = buffer.refresh_claim(
            lease_seconds=rules.lease,
            rise_seconds=rules.rise,
            concurrency=rules.concurrency,
            run_id=run_id,
            shop=shop,
        )
        if claim is None:
            break
        outcome = _trigger(client, claim)
        if outcome.outcome == "accepted":
            triggered.append(claim.store_code)
        more = buffer.refresh_finish(
            claim,
            outcome,
            run_id=run_id,
            gap_seconds=rules.gap,
            initial_delay_seconds=rules.initial_delay,
            multiplier=rules.multiplier,
            max_delay_seconds=rules.max_delay,
        )
    return triggered


class Refresher:
    """A thread that triggers what is due whenever it is asked: a server that is slow with it delays no push.

    A context manager; at its end what was asked for is still done, or given up after some seconds: the mark stands.
    """

    def __init__(
        self,
        buffer: Buffer,
        client: HipoinkClient,
        rules: RefreshRules = DEFAULT_RULES,
        *,
        run_id: str,
        shop: Shop | None = None,
    ) -> None:
        self._buffer, self._client, self._rules = buffer, client, rules
        self._run_id, self._shop = run_id, shop
        self._changed = threading.Condition()
        self._asked = self._ends = False
        self._thread = threading.Thread(target=self._work, name="refresh", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ends = True
            self._changed.notify()
        self._thread.join(timeout=_LAST_SECONDS)

    def ask(self) -> None:
        """Something was accepted, or may be due for another reason."""
        with self._changed:
            self._asked = True
            self._changed.notify()

    def _work(self) -> None:
        while self._is_asked():
            try:
                refresh_stores(self._buffer, self._client, self._rules, run_id=self._run_id, shop=self._shop)
            except Exception as error:  # the marks stand, and the run meets the same trouble itself
                _log.warning("the label server was not told to refresh: %s", type(error).__name__)
            with self._changed:
                self._changed.wait_for(lambda: self._ends, self._rules.look)

    def _is_asked(self) -> bool:
        """Wait until asked; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._ends)
            asked, self._asked = self._asked, False
            return asked


def _trigger(client: HipoinkClient, claim: RefreshClaim) -> Outcome:
    """One call."""
    started = time.monotonic()
    try:
        answer = client.bind_task(claim.store_code, Call(recorded_as=claim.claim_id))
    except BufferError:  # of the shared limiter: no call was made
        raise
    except HipoinkError as error:
        outcome = not_accepted(error, started)
        return replace(outcome, outcome="not_known") if is_not_known(error) else outcome
    except Exception as error:  # whatever it is, it is this call's
        message = f"the call could not be made: {type(error).__name__}"
        return Outcome("transient", message, duration_ms=milliseconds_since(started))
    return accepted(answer)
