"""Calls counted: what one event, one push and one unchanged product cost."""

from esl_pipeline.stages.evaluate import due_variants, stage, validate
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline.stages.push import push_batch
from esl_pipeline_tests.world import ASSET, RUN, STORE, World, product, variant

HUNDRED = [variant(n) for n in range(1, 101)]


def test_the_acknowledgement_is_one_call(world: World) -> None:
    before = world.buffer.transport.calls
    world.update(product(variants=HUNDRED))
    assert world.buffer.transport.calls - before == 1


def test_an_event_of_100_variants_costs_few_calls(world: World) -> None:
    world.map()
    world.update(product(variants=HUNDRED))
    start = world.buffer.transport.calls
    read_inbox(world.buffer, run_id=RUN)
    variants, mappings = due_variants(world.buffer)
    stage(world.buffer, variants, validate(variants, mappings))
    ingested = world.buffer.transport.calls
    results = push_batch(world.buffer, world.client, world.rules, run_id=RUN, asset=ASSET)
    assert len(results) == len(world.labels(STORE)) == 100
    assert ingested - start <= 6
    assert world.buffer.transport.calls - ingested <= 3
    assert world.calls() == 1


def test_an_identical_update_costs_no_call_at_the_label_server(world: World) -> None:
    world.map()
    world.settle(product(version=1, variants=HUNDRED))
    world.settle(product(version=2, variants=HUNDRED))
    assert world.calls() == 1


def test_many_events_are_read_in_one_go(world: World) -> None:
    world.map()
    world.update(*[product(n) for n in range(1, 51)])
    before = world.buffer.transport.calls
    world.round()
    # Claim, merge, due, stage; claim and finish of one batch; the claim that finds nothing more; claim and finish
    # of the store's refresh.
    assert world.buffer.transport.calls - before == 9
    assert world.calls() == 1


def test_a_burst_costs_two_calls_for_its_refresh_and_a_push_none(world: World) -> None:
    world.map()
    world.settle(product(variants=HUNDRED))
    before = world.buffer.transport.calls
    assert world.round().did_something is False
    # Inbox, due, queue: the refresh is over.
    assert world.buffer.transport.calls - before == 3
    assert world.sandbox.state()["calls"] == {"create_multiple": 1, "bind_task": 1}
