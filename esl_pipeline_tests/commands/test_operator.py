"""What operators type: each command does what it says and is kept, each wrong name is one sentence and exit code 1."""

from collections.abc import Callable

import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.connections import open_label_server, push_rules
from esl_pipeline.settings import load_settings
from esl_pipeline_tests.commands.conftest import Run
from esl_pipeline_tests.hipoink.servers import Sandbox
from esl_pipeline_tests.orchestration.world import SHOP, STORE, arrive, map_shop, product
from esl_pipeline_tests.world import drain_round


def drained(buffer: Buffer) -> None:
    settings = load_settings()
    with open_label_server(settings, buffer) as client:
        drain_round(buffer, client, push_rules(settings))


@pytest.fixture
def stocked(sandbox: Sandbox, buffer: Buffer) -> Sandbox:
    """Three labels that hang."""
    map_shop(buffer)
    arrive(buffer, product(1, codes=["C-1"]), product(2), product(3))
    drained(buffer)
    return sandbox


def prices(sandbox: Sandbox) -> dict[str, str]:
    return {code: label["pp"] for code, label in sandbox.state()["labels"].get(STORE, {}).items()}


def test_push(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    stocked.clear()
    assert run("push", "C-1", "C-3", "--store", STORE).out == f"{STORE}: 2 labels are due now\n"
    drained(buffer)
    assert set(prices(stocked)) == {"C-1", "C-3"}
    assert run("push", "--store", STORE, "--all", "--json").json["labels"] == 3
    assert run("push", "--store", STORE, "--sku", "sku-2000").out == f"{STORE}: 1 label is due now\n"


@pytest.mark.long
def test_pause_and_resume(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    said = run("stores", "pause", STORE, "--reason", "stock-taking", "--until", "2h").out
    assert said.startswith(f"{STORE}: paused until 20") and said.endswith(
        "stock-taking; what is under way ends, what comes waits\n"
    )
    arrive(buffer, product(1, price="9.00"))
    drained(buffer)
    assert prices(stocked)["C-1"] == "1.50"
    assert f"store {STORE}: paused by cli:" in run("status").out
    assert "the store is paused, so they wait" in run("push", "C-2", "--store", STORE).out
    assert "2 labels go out now" in run("stores", "resume", STORE).out
    drained(buffer)
    assert prices(stocked)["C-1"] == "9.00"
    assert "stock-taking" in run("stores", "pauses", STORE).out
    (pause,) = run("stores", "pauses", "--json").json
    assert (pause["holds"], pause["by"]) == (False, pause["ended_by"])


def test_replay(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    assert run("replay", "--shop", SHOP, "--dry-run").out == "3 deliveries would be read again\n"
    said = run("replay", "--shop", SHOP, "--since", "1h", "--state", "done").out
    assert said == "3 deliveries are read again\n"
    assert run("replay", "--shop", SHOP, "--json").json["waiting"] == 3


def test_redrive_by_reason(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    stocked.faults({"kind": "error", "codes": ["C-1"], "error_msg": "no such template"})
    arrive(buffer, product(1, price="9.00"))
    drained(buffer)
    stocked.faults()
    assert run("redrive", "--reason", "TEMPLATE").out == "1 labels and 0 deliveries are due again\n"


def test_a_label_server_is_tried(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    assert run("servers", "try", "default").out == (
        "label server default is not known to be down: 0 labels wait\n"
    )


@pytest.mark.long
def test_changes(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    assert run("changes", "list").out == "nothing waits for approval\n"
    arrive(buffer, *(product(n) for n in range(4, 13)))
    drained(buffer)
    arrive(buffer, *(product(n, price="99.00") for n in range(1, 9)))
    drained(buffer)
    said = run("changes", "list", "--store", STORE).out
    assert "Product 1" in said and "1.50" in said and "99.00" in said
    assert run("changes", "approve", "C-1", "--store", STORE).out == (
        f"{STORE}: 0 removals and 1 price changes may go on\n"
    )
    assert "0 removals and 2 price changes are not made" in (
        run("changes", "reject", "C-2", "C-3", "--store", STORE, "--reason", "a decimal point").out
    )
    assert "a decimal point" in run("changes", "list").out
    assert f"store {STORE}: 2 changes were rejected: esl-pipeline changes list" in run("status").out
    drained(buffer)
    assert [code for code, price in prices(stocked).items() if price == "99.00"] == ["C-1"]


def test_a_store_is_removed(run: Run, stocked: Sandbox, buffer: Buffer) -> None:
    said = run("stores", "remove", STORE, "--labels", "remove").out
    assert "3 labels at label server default are removed there; it leaves `esl-pipeline stores list`" in said
    assert f"store {STORE}: is being removed, its labels are removed" in run("stores", "list").out
    drained(buffer)
    assert prices(stocked) == {}
    assert "no store is mapped yet" in run("stores", "list").out


@pytest.mark.long
def test_who_did_what_is_shown(run: Run, stocked: Sandbox) -> None:
    assert run("actions").out == "nobody has done anything yet\n"
    run("stores", "pause", STORE, "--reason", "stock-taking")
    run("stores", "resume", STORE)
    run("push", "C-1", "--store", STORE)
    said = run("actions", "--store", STORE).out
    assert all(word in said for word in ("pause", "resume", "push", "codes C-1", "(not verified)"))
    assert [row["action"] for row in run("actions", "--json").json] == ["push", "resume", "pause"]
    assert len(run("actions", "--action", "push", "--json").json) == 1


WRONG = [
    ("push", "C-9", "--store", STORE),
    ("push", "--store", "S9", "--all"),
    ("push", "--store", STORE),
    ("push", "--store", STORE, "--vendor", "Nobody"),
    ("stores", "pause", "S9", "--reason", "x"),
    ("stores", "pause", STORE, "--reason", "x", "--until", "soon"),
    ("stores", "pause", STORE, "--reason", "x", "--until", "2020-01-01"),
    ("stores", "resume", "S9"),
    ("stores", "resume", STORE),
    ("stores", "remove", "S9", "--labels", "keep"),
    ("stores", "remove", STORE, "--labels", "keep", "--shop", "nobody.myshopify.com"),
    ("stores", "approve", "S9"),
    ("replay", "nope"),
    ("replay",),
    ("replay", "--shop", "nobody.myshopify.com"),
    ("replay", "--since", "yesterday-ish"),
    ("redrive", "--store", "S9"),
    ("redrive", "--code", "C-9"),
    ("redrive", "--reason", "nonsense"),
    ("servers", "try", "north"),
    ("changes", "approve", "C-1", "--store", STORE),
    ("changes", "reject", "C-9", "--store", STORE),
    ("changes", "reject", "C-1", "--store", "S9"),
]


@pytest.mark.long
def test_what_is_wrong_is_one_sentence_and_nothing_is_done(
    refused: Callable[..., str], stocked: Sandbox, buffer: Buffer
) -> None:
    for arguments in WRONG:
        assert refused(*arguments), arguments
    assert buffer.operator_actions() == []
