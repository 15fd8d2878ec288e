"""The threads that push: what they look like from outside, at every moment and when one of them fails."""

import threading

import pandas as pd
import pytest

from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.connections import LABEL_SERVER_TRIES, push_rules
from esl_pipeline.model.push import Claim, Later, PushRules
from esl_pipeline.settings import load_settings
from esl_pipeline.stages.pusher import Pusher, batches_at_once
from esl_pipeline_tests.waiting import eventually


def batch(store: str) -> Claim:
    return Claim(store, store, "upsert", [], 0)


class Watched(threading.Condition):
    """Looks at the pusher after each step that one of its threads has made under the lock."""

    def __init__(self, pusher: Pusher) -> None:
        super().__init__()
        self.pusher, self.begun, self.idle_steps = pusher, False, 0

    def __exit__(self, *args: object) -> None:
        if self.begun and threading.current_thread() in self.pusher._threads:
            is_idle = not (self.pusher._asked or self.pusher._looks or self.pusher._pushing)
            self.idle_steps += is_idle and not self.pusher._results
        super().__exit__(*args)  # type: ignore[arg-type]


def test_a_pusher_never_looks_idle_between_a_call_and_its_result() -> None:
    claims = [batch("S1")]
    pusher = Pusher(
        lambda: claims.pop() if claims else None,
        lambda claim: pd.DataFrame([1]),
        threading.Event(),
        concurrency=4,
    )
    pusher._changed = watched = Watched(pusher)
    with pusher:
        pusher.ask()
        watched.begun = True
        assert pusher.wait(5)
        eventually(lambda: not pusher.is_busy)
    assert watched.idle_steps == 0
    assert len(pusher.take()) == 1


def test_when_one_call_fails_the_others_are_finished_and_reported_and_no_further_one_begun() -> None:
    stores, both_run, failed = ["S2", "S1"], threading.Barrier(2), threading.Event()

    def claim() -> Claim | None:
        return batch(stores.pop()) if stores else None

    def push(claimed: Claim) -> pd.DataFrame:
        both_run.wait(5)
        if claimed.store_code == "S1":
            raise BufferError("the buffer is away")
        assert failed.wait(5)
        stores.append("S3")
        return pd.DataFrame({"store_code": [claimed.store_code]})

    with Pusher(claim, push, threading.Event(), concurrency=4) as pusher:
        pusher.ask()
        eventually(lambda: pusher.wait(0))
        failed.set()
    assert [list(frame["store_code"]) for frame in pusher.take()] == [["S2"]]
    assert not pusher.is_busy and stores == ["S3"]
    with pytest.raises(BufferError, match="away"):
        pusher.check()


def test_what_has_to_wait_is_asked_for_again_and_a_pusher_is_busy_until_then() -> None:
    found = [batch("S1"), Later(0.05), Later(0.05)]
    pusher = Pusher(
        lambda: found.pop() if found else None,
        lambda claim: pd.DataFrame({"n": [claim.push_id]}),
        threading.Event(),
        concurrency=1,
    )
    with pusher:
        assert [list(frame["n"]) for frame in pusher.until_idle()] == [["S1"]]
        assert found == [] and not pusher.is_busy


@pytest.mark.parametrize("per_second", [0.05, 10])
def test_a_claim_outlives_the_wait_for_its_turn_at_a_slow_pace(per_second: float) -> None:
    """Else its labels go out when somebody else may have pushed newer ones."""
    settings = load_settings(
        hipoink_rate_limit_per_second=per_second,
        hipoink_concurrency=8,
        hipoink_api_base_url="https://labels.example.com",
    )
    rules = push_rules(settings)
    assert rules.concurrency == 8
    longest_wait = batches_at_once(8) / per_second
    assert rules.lease >= PushRules().lease + LABEL_SERVER_TRIES * longest_wait
