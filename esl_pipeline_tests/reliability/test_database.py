"""A database that goes away: gateways that fail, calls that nobody answers."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferUnavailable
from esl_pipeline.buffer.transports import PsycopgTransport, SupabaseTransport
from esl_pipeline.receiver.app import create_app
from esl_pipeline_tests.gateway import Failure, Gateway
from esl_pipeline_tests.receiver.support import deliver, make_settings
from esl_pipeline_tests.reliability.chaos import ChaosProxy, Timeout
from esl_pipeline_tests.waiting import eventually
from esl_pipeline_tests.world import World, product, variant

pytestmark = pytest.mark.long

REFUSALS = [failure for failure in Failure if failure is not Failure.ANSWER_LOST]


@pytest.fixture
def gateway(buffer_dsn: str) -> Iterator[Gateway]:
    with Gateway.start(buffer_dsn) as found:
        yield found


def over(gateway: Gateway, attempts: int) -> Buffer:
    return Buffer(SupabaseTransport(gateway.url, SecretStr(Gateway.service_key), attempts=attempts))


def test_f20_a_failing_gateway_is_503_and_never_2xx_without_a_row(gateway: Gateway, buffer: Buffer) -> None:
    def kept() -> int:
        shops = buffer.status()["shops"]
        return int(shops[0]["waiting"]) if shops else 0

    supabase = over(gateway, attempts=1)
    app = create_app(make_settings(), supabase)
    for number, failure in enumerate([*REFUSALS, Failure.ANSWER_LOST], 1):
        body, before = product(number), kept()
        gateway.fail(failure)
        assert deliver(app, "products/update", body, webhook_id=f"d-{number}").status_code == 503, failure
        assert kept() == before + (failure is Failure.ANSWER_LOST)
        again = deliver(app, "products/update", body, webhook_id=f"d-{number}")
        expected = "duplicate" if failure is Failure.ANSWER_LOST else "accepted"
        assert (again.status_code, again.json()["status"]) == (200, expected)
        assert kept() == before + 1
    supabase.close()


@pytest.mark.long
def test_f20_a_worker_goes_on_when_calls_fail(
    gateway: Gateway, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth call fails, each time in another way; no attempt is hidden by a retry."""
    failures, calls = itertools.cycle(Failure), itertools.count(1)
    world.map()
    monkeypatch.setattr(gateway, "next_failure", lambda: next(failures) if next(calls) % 4 == 0 else None)
    supabase = over(gateway, attempts=1)
    failing, failed = replace(world, buffer=supabase), 0

    def quiet() -> bool:
        nonlocal failed
        world.expire_leases()
        # A label that was lost alone more than once waits for longer each time.
        world.sql("update esl.sync_queue set next_attempt_at = now() where next_attempt_at > now()")
        try:
            return not failing.round().did_something and not world.waiting()
        except BufferUnavailable:
            failed += 1
            return False

    for version in range(1, 8):
        world.update(product(1, version, [variant(n, price=f"{version}.00") for n in (1, 2)]))
        eventually(quiet)
    assert world.prices() == {"C-1": "7.00", "C-2": "7.00"}
    assert failed >= len(Failure)
    assert world.queue() == {} and set(world.inbox()) <= {"done", "superseded"}
    for code, pushed in world.sandbox.state()["pushes"]["S1"].items():
        (intents,) = world.sql(
            "select count(*) as n from esl.sync_log where kind = 'intent' and code = %s", code
        )
        assert pushed <= intents["n"]
    supabase.close()


def test_f21_a_call_that_nobody_answers_ends(database_proxy: ChaosProxy, proxied_dsn: str) -> None:
    buffer = Buffer(PsycopgTransport(proxied_dsn, timeout_seconds=0.2, attempts=1))
    buffer.ping()
    database_proxy.toxics = (Timeout(),)
    began = time.monotonic()
    with pytest.raises(BufferUnavailable):
        buffer.ping()
    assert time.monotonic() - began < 5
    database_proxy.toxics = ()
    buffer.ping()
    buffer.close()
