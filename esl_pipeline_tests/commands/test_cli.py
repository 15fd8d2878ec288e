"""The esl-pipeline command: what a person types, what comes back, and the one sentence when it cannot be done."""

import csv
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.migrate import code_version, functions_build, migrations
from esl_pipeline.buffer.migrate import migrate as migrate_database
from esl_pipeline.commands import cli
from esl_pipeline.connections import open_label_server, push_rules
from esl_pipeline.labels.policy import Policy
from esl_pipeline.local.ports import free_port
from esl_pipeline.receiver.tokens import digest
from esl_pipeline.sandbox.label_server.server import SIGN
from esl_pipeline.settings import load_settings
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline_tests.commands.conftest import Done, Run
from esl_pipeline_tests.hipoink.servers import Sandbox, running_sandbox
from esl_pipeline_tests.orchestration.s3 import BUCKET, running_bucket
from esl_pipeline_tests.orchestration.world import SHOP, STORE, arrive, map_shop, product
from esl_pipeline_tests.world import drain_round

UNREACHABLE = "postgresql://somebody:a-secret-word@127.0.0.1:9/esl"


def drained(buffer: Buffer) -> None:
    """One round, as run `a-run`."""
    settings = load_settings()
    with open_label_server(settings, buffer) as client:
        drain_round(buffer, client, push_rules(settings), run_id="a-run", asset="hipoink_sync_results")


def sql(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


# Settings and connections


EVERY_BUFFER_COMMAND = [
    ("status",),
    ("trace", "C-1"),
    ("preview", "--store", "S1"),
    ("findings",),
    ("stores", "approve", "S1"),
    ("stores", "history"),
    ("tokens", "list"),
    ("tokens", "add", "ana", "--scope", "read"),
    ("tokens", "revoke", "ana"),
    ("redrive",),
    ("push", "C-1", "--store", "S1"),
    ("replay", "nope"),
    ("actions",),
    ("changes", "list"),
    ("servers", "try", "default"),
    ("stores", "pause", "S1", "--reason", "x"),
    ("stores", "resume", "S1"),
    ("stores", "remove", "S1", "--labels", "keep"),
    ("stores", "list"),
    ("stores", "add", SHOP, STORE),
    ("stores", "set", str(uuid4()), "--inactive"),
]


@pytest.mark.parametrize(
    "arguments", [*EVERY_BUFFER_COMMAND, ("doctor",), ("migrate",), ("receiver",), ("up",)]
)
def test_all_wrong_settings_are_listed_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MAX_RETRY_ATTEMPTS", "many")
    monkeypatch.setenv("ESL_DATABASE_URL", "mysql://a-secret-word")
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    done = run(*arguments)
    assert done.code == 1 and "3 settings are wrong" in done.err
    for name in ("MAX_RETRY_ATTEMPTS", "ESL_DATABASE_URL", "LOG_LEVEL"):
        assert len(re.findall(rf"^  - {name}: ", done.err, re.MULTILINE)) == 1


@pytest.mark.parametrize("arguments", EVERY_BUFFER_COMMAND)
def test_without_a_buffer(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 1 and "no buffer is set: set ESL_DATABASE_URL" in done.err


@pytest.mark.long
@pytest.mark.parametrize("arguments", [*EVERY_BUFFER_COMMAND, ("receiver", "--port", "0")])
def test_an_unreachable_buffer(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", UNREACHABLE)
    assert refused(*arguments).startswith("the buffer is not available (08006)")


def test_an_older_buffer(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    migrate_database(database)
    sql(database, "comment on schema esl is '1 of an older build'")
    monkeypatch.setenv("ESL_DATABASE_URL", database)
    assert refused("status") == (
        f"the buffer is at build 1 of version {code_version()}, this code needs {functions_build()}: "
        "run `esl-pipeline migrate`"
    )


def test_a_buffer_from_before_the_first_release(
    refused: Callable[..., str], configured: None, buffer_dsn: str
) -> None:
    sql(buffer_dsn, "delete from esl.schema_migrations where version > 100")
    sql(buffer_dsn, "update esl.schema_migrations set version = 21")
    for arguments in (("status",), ("migrate",), ("receiver", "--port", "0")):
        said = refused(*arguments)
        assert "at version 21, from before the first release" in said and "make a new database" in said


def test_an_empty_database(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", database)
    assert "run `esl-pipeline migrate`" in refused("status")


def test_a_newer_buffer(refused: Callable[..., str], configured: None, buffer_dsn: str) -> None:
    sql(buffer_dsn, "insert into esl.schema_migrations (version, name) values (9999, 'of the future')")
    for arguments in (("status",), ("stores", "list"), ("receiver", "--only", "admin", "--port", "0")):
        assert f"version 9999, newer than this code ({code_version()})" in refused(*arguments)


def test_a_running_stack_is_found_by_its_home(run: Run, buffer_dsn: str) -> None:
    Path(".esl").mkdir()
    Path(".esl/up.env").write_text(f"export ESL_DATABASE_URL={buffer_dsn}\n")
    assert run("stores", "list", "--json").json == []


# migrate


def test_migrate_once_and_again(run: Run, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", database)
    first, second = run("migrate"), run("migrate")
    assert first.code == second.code == 0
    applied = re.findall(r"^applied (\d{4}) ", first.out, re.MULTILINE)
    assert applied == [f"{migration.version:04d}" for migration in migrations()]
    assert second.out == f"the buffer is at version {code_version()}\n"
    assert run("status", "--json").code == 0


def test_the_printed_file_can_be_run_twice(run: Run, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    printed = run("migrate", "--print")
    assert printed.code == 0 and printed.err == ""
    for _ in range(2):
        sql(database, printed.out)
    monkeypatch.setenv("ESL_DATABASE_URL", database)
    assert run("migrate").out == f"the buffer is at version {code_version()}\n"


def test_migrate_needs_an_address(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("migrate").startswith("migrations need a Postgres address: set ESL_DATABASE_URL")
    monkeypatch.setenv("SUPABASE_URL", "https://abcd.supabase.co")
    monkeypatch.setenv("SUPABASE_SERVICE_KEY", "a-secret-word")
    assert "migrate --print" in refused("migrate")


def test_migrate_where_nobody_answers(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESL_DATABASE_URL", UNREACHABLE)
    assert re.match(r"the migrations were not applied: .*Connection refused", refused("migrate"))


# stores


def test_stores_are_added_listed_and_changed(run: Run, configured: None) -> None:
    added = run(
        "stores",
        "add",
        "Corner-Shop.myshopify.com",
        STORE,
        "--settings",
        '{"expected_currency": "EUR"}',
        "--json",
    )
    (mapping,) = added.json
    assert (
        added.code == 0
        and mapping["source_store_id"] == SHOP
        and mapping["settings"] == {"expected_currency": "EUR"}
    )

    shown = run("stores", "list")
    for text in (mapping["id"], SHOP, STORE, "EUR", "yes"):
        assert text in shown.out

    (changed,) = run("stores", "set", mapping["id"], "--inactive", "--store", "S9", "--json").json
    assert (changed["hipoink_store_code"], changed["is_active"]) == ("S9", False)
    assert changed["settings"] == {"expected_currency": "EUR"}
    (changed,) = run("stores", "set", mapping["id"], "--active", "--settings", "{}", "--json").json
    assert changed["is_active"] is True and changed["settings"] == {}
    shop_says = {"currency": None, "taxes_included": None}
    assert run("stores", "list", "--json").json == [changed | shop_says]


@pytest.mark.parametrize("written", ["https://Corner-Shop.myshopify.com/admin", "corner-shop"])
def test_field_29_a_shop_is_mapped_and_reconciled_under_its_domain(
    run: Run, sandbox: Sandbox, written: str
) -> None:
    (mapping,) = run("stores", "add", written, STORE, "--json").json
    assert mapping["source_store_id"] == SHOP
    assert run("reconcile", "--shop", written, "--json").json[0]["store_code"] == STORE


def test_field_29_a_name_that_is_no_shop_is_refused(refused: Callable[..., str], configured: None) -> None:
    assert "must be the shop's id, like " in refused("stores", "add", "www.corner-shop.example", STORE)


@pytest.mark.long
def test_field_29_shops_that_cannot_be_read_are_said(
    run: Run, sandbox: Sandbox, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(buffer)
    map_shop(buffer, "other.myshopify.com", "S2")
    map_shop(buffer, "left.myshopify.com", "S3", is_active=False)
    assert "not_readable" not in run("status", "--json").json
    monkeypatch.setenv("SHOPIFY_ADMIN_TOKEN", "https://Other.myshopify.com/=shpat_1,misspelt=shpat_2")
    monkeypatch.setenv("SHOPIFY_WEBHOOK_SECRET", "other.myshopify.com=secret,typo.myshopify.com=secret")
    monkeypatch.setenv("SHOPIFY_ADMIN_URL", "http://127.0.0.1:9")

    assert run("status", "--json").json["not_readable"] == [SHOP]
    assert f"{SHOP}: cannot be read" in run("status").out
    said = run("doctor", "--json").json
    found = {
        (check["what"], check["says"].split(":")[0]) for check in said if check["what"].startswith("shop ")
    }
    assert found == {
        (f"shop {SHOP}", "cannot be read"),
        (f"shop {SHOP}", "cannot send webhooks"),
        ("shop other.myshopify.com", "Connection at other.myshopify.com"),
        ("shop misspelt.myshopify.com", "has an entry in SHOPIFY_ADMIN_TOKEN, but feeds no store"),
        ("shop typo.myshopify.com", "has an entry in SHOPIFY_WEBHOOK_SECRET, but feeds no store"),
    }


def test_the_history_of_mappings_says_who_changed_what(
    run: Run, configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing was mapped" in run("stores", "history").out
    monkeypatch.setattr("getpass.getuser", lambda: "ana")
    (mapping,) = run("stores", "add", SHOP, STORE, "--json").json
    run("stores", "set", mapping["id"], "--inactive", "--policy", "zero_price=allow")
    update, create = run("stores", "history", STORE, "--json").json
    assert (create["by"], create["old"], create["new"]["id"]) == ("cli:ana", None, mapping["id"])
    assert (update["old"]["is_active"], update["new"]["is_active"]) == (True, False)
    shown = run("stores", "history").out
    assert "is_active True → False, settings.zero_price - → allow" in shown
    assert re.search(rf"cli:ana +\w+ +{SHOP} +{STORE} +{mapping['id']} +new", shown)
    assert run("stores", "history", "another", "--json").json == []

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    run("stores", "set", mapping["id"], "--active")
    assert re.fullmatch(r"cli:\d+", run("stores", "history", "--limit", "1", "--json").json[0]["by"])


def test_s13_tokens_are_made_listed_and_revoked(
    run: Run, refused: Callable[..., str], configured: None, buffer: Buffer
) -> None:
    assert "esl-pipeline tokens add" in run("tokens", "list").out
    made = run("tokens", "add", "ana-laptop", "--scope", "write", "--days", "30")
    token = made.out.strip()
    assert re.fullmatch(r"esl_[A-Za-z0-9_-]{43}", token) and "cannot be shown again" in made.err
    other = run("tokens", "add", "dashboard", "--scope", "read", "--json").json
    assert other["token"] != token and other["expires_at"] is None

    assert buffer.token_check(digest(token))["token"]["name"] == "ana-laptop"
    listed = run("tokens", "list")
    assert re.search(r"ana-laptop +write +valid .*Z +20.*Z +-", listed.out)
    assert re.search(r"dashboard +read +valid .*Z +- +-", listed.out)
    assert token not in listed.out and token not in str(run("tokens", "list", "--json").json)

    assert "revoked" in run("tokens", "revoke", "ana-laptop").out
    assert buffer.token_check(digest(token))["token"]["state"] == "revoked"
    assert "a name is used once" in refused("tokens", "add", "ana-laptop", "--scope", "read")
    assert "no token nobody" in refused("tokens", "revoke", "nobody")
    for name in ("", "Ana", "ESL_ADMIN_TOKEN", "cli:ana", "a b", "x" * 65):
        assert "small letters" in refused("tokens", "add", name, "--scope", "read")


def test_no_store_yet(run: Run, configured: None) -> None:
    assert "esl-pipeline stores add SHOP STORE" in run("stores", "list").out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("add", "corner-shop.example.com", "S1"), "source_store_id: must be the shop's id, like "),
        (("add", "", "S1"), "source_store_id: must be the shop's id, like "),
        (("add", SHOP, "S/1"), "hipoink_store_code: must be 1 to 32 letters"),
        (("add", SHOP, "S1", "--source", "other"), "no source is called "),
        (("add", SHOP, "S1", "--settings", "{currency: EUR}"), "settings: not JSON: "),
        (("add", SHOP, "S1", "--settings", "[]"), "settings: not a JSON object; write for example "),
        (
            ("add", SHOP, "S1", "--settings", '{"colour": 1}'),
            "settings.colour: is no setting of a policy, see `esl-pipeline stores policy`",
        ),
        (
            ("add", SHOP, "S1", "--settings", '{"expected_currency": "ZZZ"}'),
            "settings: expected_currency: ZZZ is not an ISO 4217",
        ),
        (
            ("add", SHOP, "S1", "--settings", '{"stock_field": "kc"}'),
            "settings: location_id: needed to show stock",
        ),
        (("set", str(uuid4()), "--inactive"), "there is no mapping "),
        (
            ("set", "not-a-uuid", "--inactive"),
            "there is no mapping not-a-uuid: see `esl-pipeline stores list`",
        ),
        (("set", str(uuid4()), "--store", "a b"), "hipoink_store_code: must be 1 to 32 letters"),
        (("set", str(uuid4()), "--settings", "nonsense"), "settings: not JSON: "),
        (("set", str(uuid4()), "--policy", "require_gtin"), "there is no mapping "),
        (("add", SHOP, "S1", "--policy", "require_gtin"), "--policy require_gtin: write NAME=VALUE"),
        (
            ("add", SHOP, "S1", "--policy", "fields.f99={sku}"),
            "settings.fields.f99: is no setting of a policy: did you mean f9?",
        ),
        (
            ("add", SHOP, "S1", "--policy", "fields.f1={colour}"),
            "settings.fields.f1: the template names {colour} at position 1",
        ),
        (("set", str(uuid4())), "nothing to change: see `esl-pipeline stores set --help`"),
    ],
)
def test_what_no_store_can_be(
    refused: Callable[..., str], configured: None, buffer: Buffer, arguments: tuple[str, ...], sentence: str
) -> None:
    assert refused("stores", *arguments).startswith(sentence)
    assert buffer.mapping_list() == []


def test_a_shop_is_mapped_to_a_store_once(
    refused: Callable[..., str], configured: None, buffer: Buffer
) -> None:
    map_shop(buffer)
    other = map_shop(buffer, store="S2")
    wanted = "this shop is mapped to this store already: see `esl-pipeline stores list`"
    assert refused("stores", "add", SHOP, STORE) == wanted
    assert refused("stores", "set", other["id"], "--store", STORE) == wanted


def test_single_settings_of_the_policy_are_changed_and_reset(run: Run, configured: None) -> None:
    changes = ("--policy", 'code_source=["sku", "variant_id"]', "--policy", "fields.f1={vendor}")
    (mapping,) = run("stores", "add", SHOP, STORE, "--dry-run", *changes, "--json").json
    assert mapping["is_dry_run"] is True
    assert mapping["settings"] == {"code_source": ["sku", "variant_id"], "fields": {"f1": "{vendor}"}}
    more = ("--live", "--policy", "fields.f1=", "--policy", "fields.f2={tags}", "--policy", "emoji=keep")
    (mapping,) = run("stores", "set", mapping["id"], *more, "--policy", "code_source=", "--json").json
    assert mapping["is_dry_run"] is False
    assert mapping["settings"] == {"fields": {"f2": "{tags}"}, "emoji": "keep"}


def test_the_policy_is_described(run: Run) -> None:
    said = run("stores", "policy").out
    for name in Policy.model_fields:
        assert re.search(rf"^{name} ", said, re.MULTILINE), name
    assert run("stores", "policy", "--json").json == Policy.model_json_schema()


# preview, findings


@pytest.mark.long
def test_preview_shows_old_and_new_side_by_side(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    mapping = map_shop(buffer)
    arrive(buffer, product(1), product(2))
    drained(buffer)
    run("stores", "set", mapping["id"], "--dry-run", "--policy", "fields.pu={product_type}[ {sku}]")
    arrive(buffer, product(1, price="2.25"), product(3))
    drained(buffer)

    (shown,) = run("preview", "--store", STORE, "--json").json
    assert (shown["new"], shown["changed"], shown["is_dry_run"]) == (1, 2, True)
    said = run("preview", "--store", STORE).out
    assert f"{SHOP} → {STORE} (dry run): 1 new, 2 changed, 0 removed" in said
    assert re.search(r"C-1 +changed +pp +1.50 +2.25", said)
    assert re.search(r"C-3 +new +pc +C-3", said)
    assert "C-3" not in run("preview", "--store", STORE, "--limit", "1").out
    assert f"store {STORE}: dry run, nothing is pushed" in run("status").out
    assert "C-3" not in sandbox.state()["labels"][STORE]


@pytest.mark.long
def test_removals_that_wait_are_shown_and_approved(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, *(product(n) for n in range(1, 8)))
    drained(buffer)
    for number in range(1, 8):
        arrive(buffer, {"id": number}, topic="products/delete")
    drained(buffer)
    wanted = f"7 drastic changes at once wait for approval: esl-pipeline stores approve {STORE}"
    assert wanted in run("preview", "--store", STORE).out
    assert wanted in run("status").out
    assert run("stores", "approve", STORE).out == f"{STORE}: 7 removals and 0 price changes may go on\n"
    drained(buffer)
    assert not sandbox.state()["labels"].get(STORE)
    assert run("stores", "approve", STORE, "--json").json == {"removals": 0, "prices": 0}


def test_preview_of_no_store(refused: Callable[..., str], configured: None) -> None:
    assert refused("preview", "--store", "S404") == (
        "no shop is mapped to store S404: see `esl-pipeline stores list`"
    )


def test_findings_on_screen_and_as_a_file(run: Run, sandbox: Sandbox, buffer: Buffer, tmp_path: Path) -> None:
    map_shop(buffer)
    assert run("findings").out == "no findings: nothing is held back\n"
    arrive(buffer, product(1, price=None), product(2, price="-1", title="=HYPERLINK(1)"))
    drained(buffer)
    said = run("findings", "--store", STORE).out
    assert "the variant has no price" in said and "set a price in Shopify" in said
    assert "there are more" in run("findings", "--limit", "1").out
    assert len(run("findings", "--json").json) == 2

    file = tmp_path / "findings.csv"
    assert run("findings", "--csv", str(file)).out.split() == ["2", "findings", "in", str(file)]
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert {(row["check"], row["value"], row["title"]) for row in rows} == {
        ("price_missing", "", "Product 1"),
        ("price_form", "-1", "'=HYPERLINK(1)"),
    }
    assert {row["store"] for row in rows} == {STORE}


# status, trace, redrive


def test_status_of_an_empty_buffer(run: Run, configured: None) -> None:
    status = run("status", "--json").json
    assert status.pop("sizes")["folders"] == []
    assert status == {
        "shops": [],
        "stores": [],
        "findings": [],
        "outages": [],
        "servers": [],
        "shelf": [],
        "refreshes": {"waiting": [], "unknown": []},
        "contested": 0,
        "contests": [],
        "refused": [],
        "erasures": [],
    }
    assert run("status").code == 0


def test_status(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1), product(2, price=None))
    arrive(buffer, product(3), shop="nobody.myshopify.com")
    drained(buffer)

    (store,) = run("status", "--json").json["stores"]
    assert (store["hipoink_store_code"], store["on_labels"], store["held_back"]) == (STORE, 1, 1)
    said = run("status").out
    assert re.search(rf"^{STORE} +{SHOP} +1 +1 +0 +0 +0 ", said, re.MULTILINE)
    assert re.search(r"^price_missing +error +1", said, re.MULTILINE)
    assert "nobody.myshopify.com: no store is mapped, its deliveries wait" in said


@pytest.mark.long
def test_reconcile_says_what_it_leaves_alone(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer, settings={"owns_store": True})
    arrive(buffer, product(1))
    drained(buffer)
    sandbox.http.put(f"/sandbox/labels/{STORE}/0", json={"pn": "?", "pp": "1.00"}).raise_for_status()
    sandbox.faults({"kind": "hidden", "hides": ["C-1"]})
    for _ in range(3):
        assert run("reconcile", "--shop", SHOP, "--json").json[0]["requeued"] == 1
        drained(buffer)
    said = run("reconcile", "--shop", SHOP)
    assert f"{STORE}: 1 came back after three repairs and are left as they are: C-1 (missing)" in said.out
    assert f"{STORE}: 1 have codes that no label of ours could have and are left: 0" in said.out
    (told,) = run("reconcile", "--shop", SHOP, "--dry-run", "--json").json
    assert (told["missing"], told["odd"], told["requeued"]) == (["C-1"], ["0"], 0)
    assert f"{STORE}: 1 have codes" in told["remarks"][0]


def test_trace_from_the_label_back_to_the_webhook(
    run: Run, sandbox: Sandbox, buffer: Buffer, buffer_dsn: str
) -> None:
    map_shop(buffer)
    arrive(buffer, product(1, price="2.50"))
    drained(buffer)
    with psycopg.connect(buffer_dsn) as connection:
        ((webhook_id,),) = connection.execute("select webhook_id from esl.webhook_inbox").fetchall()

    (story,) = run("trace", "C-1", "--json").json["stories"]
    assert story["deliveries"][0]["webhook_id"] == webhook_id
    (entry, _) = story["entries"]
    assert (entry["run_id"], entry["webhook_id"], entry["cause"]) == ("a-run", webhook_id, "new version")
    assert (story["price"], story["before"], story["evidence"]) == ("2.50", "nothing", "accepted")
    said = run("trace", "C-1", "--store", STORE).out
    first = said.splitlines()[0]
    assert re.fullmatch(
        rf"C-1 in store {STORE}: 2\.50 accepted since [-0-9]+ [:0-9]+Z, because webhook {webhook_id} "
        r"\(products/update\) set it; before: nothing; known to be accepted",
        first,
    )
    assert re.search(
        r"received [-0-9]+ [:0-9]+Z, read \+[.0-9]+ s, queued .*, sent .*, accepted .* in all", said
    )
    assert "run a-run" in said, "the run"
    assert re.search(r"request .*pc 'C-1'.*pp '2.50'", said), "the request"
    assert re.search(r'answer accepted HTTP 200 in \d+ ms: \{"error_code":0', said), "the answer"


def test_trace_of_a_refused_label(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    sandbox.faults({"kind": "error", "error_msg": "no such [bold]store[/]"})
    drained(buffer)
    said = run("trace", "C-1").out
    assert said.startswith("C-1 in store S1: nothing; to come: ")
    assert "the label server has accepted nothing for this code" in said
    assert "waiting (ready)" in said and "no such [bold]store[/]" in said


def test_trace_of_nothing(refused: Callable[..., str], configured: None) -> None:
    names = "no code, SKU, variant, webhook, run, push or label of this name"
    assert refused("trace", "C-404") == f"nothing is known of C-404: {names}"
    assert refused("trace", "C-404", "--store", "S9") == f"nothing is known of C-404 in store S9: {names}"


def test_redrive(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    sandbox.faults({"kind": "error", "error_msg": "bad"})
    drained(buffer)
    sandbox.clear()
    assert run("redrive", "--store", "S9").err.startswith("no shop is mapped to store S9")
    assert run("redrive", "--code", "C-1", "--json").json == {"labels": 1, "deliveries": 0}
    drained(buffer)
    assert set(sandbox.state()["labels"][STORE]) == {"C-1"}
    assert run("redrive").out == "0 labels and 0 deliveries are due again\n"


CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.long
def test_no_control_character_reaches_the_terminal(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    evil = "\x1b]0;owned\x07 \x9b31m Tea\x1b[2J \u202egnihton"
    map_shop(buffer)
    arrive(
        buffer,
        product(1, title=evil),
        product(2, title=evil, price=evil),
        product(3, title=evil, codes=[evil]),
    )
    sandbox.faults({"kind": "bad_codes", "codes": ["C-1"], "error_msg": evil})
    drained(buffer)
    for arguments in (("status",), ("trace", "C-1"), ("trace", "C-1", "--json"), ("status", "--json")):
        said = run(*arguments)
        assert said.code == 0 and "Tea" in run("trace", "C-1").out
        assert not CONTROL.search(said.out + said.err), arguments


# doctor


def checks(done: Done) -> dict[str, tuple[str, str]]:
    return {check["what"]: (check["state"], check["says"]) for check in done.json}


def test_doctor_finds_nothing(run: Run, sandbox: Sandbox, buffer: Buffer) -> None:
    map_shop(buffer)
    arrive(buffer, product(1))
    drained(buffer)
    done = run("doctor", "--json")
    found = checks(done)
    assert done.code == 0 and "wrong" not in {state for state, _ in found.values()}
    assert found[f"label server, store {STORE}"] == ("ok", "holds 1 labels")
    assert found["buffer"][0] == "ok" and f"version {code_version()}" in found["buffer"][1]
    assert re.search(r"^ok +buffer: ", run("doctor").out, re.MULTILINE)


def test_doctor_misses_a_mapping(run: Run, sandbox: Sandbox) -> None:
    done = run("doctor", "--json")
    assert done.code == 0
    assert checks(done)["stores"] == (
        "warning",
        "no shop is mapped to a store: esl-pipeline stores add SHOP STORE",
    )


def test_doctor_finds_a_wrong_key(
    run: Run, sandbox: Sandbox, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(buffer)
    monkeypatch.setenv("HIPOINK_API_SECRET", "a-secret-word")
    done = run("doctor", "--json")
    state, says = checks(done)[f"label server, store {STORE}"]
    assert done.code == 1 and state == "wrong" and "invalid sign" in says
    assert re.search(rf"^wrong +label server, store {STORE}: ", run("doctor").out, re.MULTILINE)


def test_doctor_finds_no_label_server(
    run: Run, configured: None, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(buffer)
    done = run("doctor", "--json")
    assert done.code == 1 and checks(done)["label server"][1].startswith("HIPOINK_API_BASE_URL is not set")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("HIPOINK_API_BASE_URL", f"http://127.0.0.1:{port}")
    done = run("doctor", "--json")
    assert done.code == 1 and checks(done)[f"label server, store {STORE}"][0] == "wrong"


@pytest.fixture
def north(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """A second label server, by the name north."""
    with running_sandbox() as found:
        file = tmp_path / "servers.toml"
        file.write_text(f"[north]\nbase_url = '{found.url}'\nrate_limit_per_second = 1000\nbatch_size = 7\n")
        monkeypatch.setenv("HIPOINK_SERVERS_FILE", str(file))
        monkeypatch.setenv("HIPOINK_API_SECRET__NORTH", SIGN)
        yield found


@pytest.mark.long
def test_stores_are_placed_at_a_label_server_that_there_is(run: Run, north: Sandbox, buffer: Buffer) -> None:
    refused = run("stores", "add", SHOP, "N1", "--server", "nort")
    assert refused.code == 1
    assert "label_server: must be a label server of the settings: default, north" in refused.err
    run("stores", "add", SHOP, STORE)
    assert "north" not in run("stores", "list").out
    made = run("stores", "add", SHOP, "N1", "--server", "north")
    assert made.code == 0 and re.search(r"N1 +north", made.out)
    for store, server in ((STORE, "default"), ("N1", "north")):
        assert re.search(rf"{store} +{server}", run("stores", "list").out)
    (first, _) = run("stores", "list", "--json").json
    assert run("stores", "set", first["id"], "--server", "north", "--json").json[0]["label_server"] == "north"
    assert "label_server default → north" in run("stores", "history").out


def test_moving_a_store_says_what_stays_behind(run: Run, north: Sandbox, buffer: Buffer) -> None:
    mapping = map_shop(buffer)
    arrive(buffer, product(1))
    drained(buffer)
    moved = run("stores", "set", mapping["id"], "--server", "north")
    assert moved.code == 0 and "labels at default stay as they are" in moved.out


@pytest.mark.long
def test_doctor_and_status_tell_of_each_label_server(
    run: Run, north: Sandbox, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_shop(buffer)
    map_shop(buffer, store="N1", label_server="north")
    found = checks(run("doctor", "--json"))
    assert found[f"label server default, store {STORE}"] == ("ok", "holds 0 labels")
    assert found["label server north, store N1"] == ("ok", "holds 0 labels")
    assert re.search(r"north +N1 +1000\.0 +7 +4 +up", run("status").out)

    map_shop(buffer, store="X1", label_server="gone")
    done = run("doctor", "--json")
    assert done.code == 1
    assert checks(done)["label server gone"] == (
        "wrong",
        "no label server is called gone: there is default, north; add a table [gone] to HIPOINK_SERVERS_FILE; the "
        "labels of X1 wait",
    )
    assert "store X1: its labels wait" in run("status").out.replace("\n", " ")


def test_doctor_finds_no_buffer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("doctor", "--json")
    assert done.code == 1 and checks(done)["buffer"][1].startswith("no buffer is set")
    monkeypatch.setenv("ESL_DATABASE_URL", UNREACHABLE)
    done = run("doctor", "--json")
    assert done.code == 1 and checks(done)["buffer"][1].startswith("the buffer is not available")


def test_doctor_asks_the_receiver(run: Run, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks(run("doctor", "--json"))["receiver"] == ("warning", "not asked: APP_BASE_URL is not set")
    monkeypatch.setenv("APP_BASE_URL", sandbox.url)  # answers, but is no receiver
    assert checks(run("doctor", "--json"))["receiver"] == ("wrong", f"{sandbox.url}/health answers 404")
    monkeypatch.setenv("APP_BASE_URL", "http://127.0.0.1:9")
    done = run("doctor", "--json")
    assert done.code == 1 and checks(done)["receiver"][1].startswith("http://127.0.0.1:9 does not answer")


def test_doctor_guards_dagsters_storage(
    run: Run, sandbox: Sandbox, buffer_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def storage(url: str) -> tuple[str, str]:
        monkeypatch.setenv("ESL_DAGSTER_DATABASE_URL", url)
        done = run("doctor", "--json")
        state, says = checks(done)["Dagster's storage"]
        assert done.code == (1 if state == "wrong" else 0)
        return state, says

    with_driver = buffer_dsn.replace("postgresql://", "postgresql+psycopg2://", 1)
    state, says = storage(with_driver)
    assert state == "wrong" and "schema public, which Supabase exposes" in says
    state, says = storage(f"{with_driver}&options=-csearch_path%3Ddagster")
    assert state == "wrong" and "no schema of its role's search_path exists" in says
    sql(buffer_dsn, "create schema dagster")
    assert storage(f"{with_driver}&options=-csearch_path%3Ddagster") == ("ok", "schema dagster")
    state, says = storage(UNREACHABLE)
    assert state == "wrong" and says.startswith("cannot be reached: ")


WORKERS = "run_launcher: {module: esl_pipeline.orchestration.celery_runs, class: WorkersOnPostgres}"


@pytest.mark.long
def test_doctor_finds_frames_that_other_machines_do_not_reach(
    run: Run, sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")

    def frames(instance: str, url: str = "") -> tuple[str, str] | None:
        (tmp_path / "dagster.yaml").write_text(instance)
        monkeypatch.setenv("ESL_FRAMES_URL", url)
        return checks(run("doctor", "--json")).get("frames")

    assert frames(WORKERS) is None  # no DAGSTER_HOME names it
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert frames("run_launcher: {module: dagster, class: DefaultRunLauncher}") is None
    assert frames("telemetry: {enabled: false}") is None
    for url in ("", "frames", f"file://{tmp_path}/frames", "memory://frames"):
        state, says = frames(WORKERS, url) or ("", "")
        assert state == "warning" and "WorkersOnPostgres starts runs on others: set ESL_FRAMES_URL" in says
    assert frames("run_launcher: {module: x, class: RunsOfCodeServer}") is None
    state, says = frames(WORKERS, f"ftp://127.0.0.1:{free_port()}/frames") or ("", "")
    assert state == "wrong" and says.startswith(
        "nothing can be written where frames are kept (ConnectionRefusedError)"
    )
    objects: dict[str, bytes] = {}
    with running_bucket(objects) as url:
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "worker", "SECRET_ACCESS_KEY": "x"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        assert frames(WORKERS, f"s3://{BUCKET}/of/ours") == (
            "ok",
            "s3://, for runs of WorkersOnPostgres on any machine",
        )
        assert objects == {}, "what was written to try is gone"
    state, says = frames("run_launcher: {class: [", "") or ("", "")
    assert state == "warning" and says.startswith("DAGSTER_HOME's dagster.yaml cannot be read: ")


def test_doctor_finds_no_package_for_the_storage_of_frames(
    run: Run, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESL_FRAMES_URL", "nowhere://bucket/frames")
    done = run("doctor", "--json")
    state, says = checks(done)["frames"]
    assert done.code == 1 and state == "wrong" and "Protocol not known: nowhere" in says


# The command itself


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("trace",), ("up", "--ui-port", "99999"), ("stores", "add", SHOP)]
)
def test_wrong_arguments_are_usage_errors(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1
    assert re.search(r": see `.*esl-pipeline.* --help`$", done.err.strip())


def test_help_names_every_command(run: Run) -> None:
    said = run("--help").out
    everyday = ("stores", "tokens", "status", "trace", "redrive", "preview", "findings")
    everyday += ("push", "replay", "actions", "changes", "servers")
    for name in ("demo", "up", "receiver", "migrate", "doctor", "health", *everyday):
        assert re.search(rf"\b{name}\b", said)


def test_what_nobody_expected_is_still_one_sentence(
    refused: Callable[..., str], configured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_buffer: Buffer) -> None:
        raise RuntimeError("a bug [bold]here[/]")

    monkeypatch.setattr(Buffer, "status", fail)
    assert refused("status") == "RuntimeError: a bug [bold]here[/]"
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setattr(sys, "argv", ["esl-pipeline", "status"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_s36_a_store_that_another_shop_feeds_needs_the_word_share(
    run: Run, refused: Callable[..., str], configured: None, buffer: Buffer
) -> None:
    map_shop(buffer)
    assert f"store {STORE} is fed by {SHOP} already" in refused("stores", "add", "tenant-b", STORE)
    (mapping,) = run("stores", "add", "tenant-b", "S9", "--json").json
    assert SHOP in refused("stores", "set", mapping["id"], "--store", STORE)
    (moved,) = run("stores", "set", mapping["id"], "--store", STORE, "--share", "--json").json
    assert moved["hipoink_store_code"] == STORE
    assert run("stores", "add", "tenant-c", STORE, "--share").code == 0


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800"])
def test_s42_what_no_database_can_hold_is_refused_by_name(
    run: Run, refused: Callable[..., str], configured: None, text: str
) -> None:
    for options in (
        ("--policy", f'title_template="{text}"'),
        ("--settings", f'{{"title_template": "{text}"}}'),
    ):
        says = refused("stores", "add", SHOP, STORE, *options)
        assert says == f"settings.title_template: must not hold the character U+{text[2:].upper()}"
    # Bytes that are no text come as halves of characters.
    done = run("trace", "C-\udcff")
    assert done.code == 1 and "argument 2 must not hold the character U+DCFF" in done.err


def test_s31_a_person_says_whose_a_contested_product_is(
    run: Run, refused: Callable[..., str], configured: None, buffer: Buffer
) -> None:
    assert "nothing that" in refused("stores", "owner", SHOP)
    map_shop(buffer)
    map_shop(buffer, "other.myshopify.com", "S2")
    arrive(buffer, product(1), shop="other.myshopify.com")
    arrive(buffer, product(1))
    read_inbox(buffer, run_id="r")
    said = run("status").out
    assert f"product {product(1)['id']} is claimed by {SHOP} and other.myshopify.com" in said
    assert run("stores", "owner", "corner-shop", "--json").json == [f"product:{product(1)['id']}"]
    assert "is claimed by" not in run("status").out
