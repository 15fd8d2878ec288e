"""No text from outside becomes SQL or a PostgREST filter: by construction (the code is read), and tried."""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import ActionRefused, BufferError
from esl_pipeline.buffer.transports import PsycopgTransport, SupabaseTransport
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline_tests.gateway import Gateway
from esl_pipeline_tests.shared_data import DATA

ROOT = Path(__file__).parents[2]
CODE = sorted((ROOT / "esl_pipeline").rglob("*.py"))
NAUGHTY = DATA / "security" / "blns.json"

# Inlined by the planner, which a setting of its own would forbid; called from functions that have the empty path.
WITHOUT_SEARCH_PATH = {
    "as_it_is",
    "battery_kept",
    "blank_hash",
    "blanked",
    "bucket_bounds",
    "cause_of_news",
    "content",
    "content_columns",
    "cut_days",
    "drastic_kind",
    "files_of",
    "has_passed",
    "hindrance",
    "history_of",
    "in_ledger",
    "is_at_work",
    "is_blanked",
    "is_large_change",
    "is_pushed",
    "is_reserved",
    "is_revived",
    "kinds",
    "last_reads",
    "missed",
    "moves",
    "plain_price",
    "policy_bounds",
    "policy_defaults",
    "policy_number",
    "policy_text",
    "price_of",
    "product_key",
    "said",
    "server_in",
    "shows_cuts",
    "staleness",
    "stock_of",
    "text_bytes",
    "unsaid",
    "wait_of",
    "waiting_state",
    "waits_for_window",
    "weight",
    "what_is_due",
    "written",
}
# Where text is put together to SQL, with what is put in: names of our own files and tables only.
COMPOSED = {"buffer/migrate.py": 1, "sandbox/label_server/store.py": 1}


def ours(dsn: str, schema: str) -> list[tuple[Any, ...]]:
    """Our functions of a schema: name, arguments, result, security definer?, settings, source."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "select proname, pg_get_function_arguments(p.oid), prorettype::regtype::text, prosecdef, proconfig, prosrc"
            " from pg_proc p where prokind <> 'a' and pronamespace = %s::regnamespace"
            r" and (pronamespace <> 'public'::regnamespace or proname like 'esl\_%%') order by 1",
            [schema],
        ).fetchall()


def test_s19_every_function_runs_with_an_empty_search_path_and_no_text_becomes_sql(buffer_dsn: str) -> None:
    """The doors run as their owner, because the tables are nobody else's; what is behind them as its caller."""
    doors, inner = ours(buffer_dsn, "public"), ours(buffer_dsn, "esl")
    assert len(doors) > 30 and len(inner) > 8
    for name, arguments, result, is_definer, settings, source in doors:
        assert (arguments, result, is_definer) == ("p jsonb", "jsonb", True), name
        assert 'search_path=""' in settings, name
        assert not re.search(r"\bexecute\b", source, re.IGNORECASE), name
    for name, _, _, is_definer, settings, source in inner:
        assert not is_definer, name
        assert name in WITHOUT_SEARCH_PATH or 'search_path=""' in (settings or []), name
        for statement in re.findall(r"\bexecute\b(.*?);", source, re.IGNORECASE | re.DOTALL):
            assert name in ("restrict_functions", "forget_shop", "drop_older_overloads", "know_what_grew"), (
                name
            )
            template, values = re.fullmatch(
                r" format\('([^']*)',\s+([^)]*)\)(?: using [\w, ]+)?", statement.strip("\n") or ""
            ).groups()  # type: ignore[union-attr]
            for placeholder, value in zip(re.findall("%.", template), values.split(", "), strict=True):
                # %s only where the text is a regclass or regprocedure, which Postgres has quoted itself.
                assert placeholder in ("%I", "%L") or value in ("t", "f.signature"), statement


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def test_s19_python_puts_no_sql_together() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in ruff["select"] and not {"S", "S6", "S608"} & set(ruff["ignore"])
    composed: dict[str, int] = {}
    for file in CODE:
        name = str(file.relative_to(ROOT / "esl_pipeline"))
        text = file.read_text()
        if count := text.count("noqa: S608"):
            composed[name] = count
        for call in calls(ast.parse(text), "execute", "executemany"):
            formatted = (ast.JoinedStr, ast.BinOp)
            if call.args and any(isinstance(node, formatted) for node in ast.walk(call.args[0])):
                assert name in COMPOSED, f"{name}:{call.lineno}"
    assert composed == COMPOSED


def test_s18_the_only_words_with_postgrest_are_a_known_function_and_a_json_body(buffer_dsn: str) -> None:
    """No filter, select or order is ever sent, so there is no grammar that a value could break out of."""
    speakers, said, names = [], [], set()
    for file in CODE:
        tree = ast.parse(file.read_text())
        imported = {
            part.split(".")[0]
            for node in ast.walk(tree)
            for part in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        if imported & {"supabase", "postgrest"}:
            speakers.append(file.name)
            said += [ast.unparse(call) for call in calls(tree, "rpc")]
            assert not [*calls(tree, "table", "from_", "schema", "filter", "or_", "select", "order", "eq")]
        for call in calls(tree, "call", "_call", "_act"):
            if isinstance(call.args[0], ast.Constant):
                names.add(call.args[0].value)
            else:
                assert file.name in ("door.py", "operator.py"), (
                    f"{file}:{call.lineno}"
                )  # whose callers name it
    assert speakers == ["transports.py"]
    assert said == ["client.rpc(function, {'p': orjson.loads(body)})"]
    assert names == {name for name, *_ in ours(buffer_dsn, "public")}


GRAMMAR = [
    "x),id.gt.(0",
    "eq.1,or(id.gt.0)",
    "*",
    "%",
    "a.b:c(d)",
    '"quoted",',
    "\\",
    "',''); drop table esl.products; --",
    "$$; select 1; $$",
    "{a,b}",
    "?select=*&id=gt.0",
    "../../rest/v1/esl_due",
    "a\r\nPrefer: count=exact",
    "١٢٣",
    "\u202egnihton",
    "'; select pg_sleep(9); --",
]


def hostile() -> list[str]:
    """Thirty values: PostgREST's and SQL's own grammar, and of the naughty strings those that know some."""
    found = list(GRAMMAR)
    if NAUGHTY.is_file():
        strings = json.loads(NAUGHTY.read_text())
        found += [text for text in strings if re.search(r"['\"\\,.()]", text) and len(text) < 200][::9]
    return found[:30]


def contents(dsn: str) -> dict[str, list[Any]]:
    """Every row of every table of the buffer."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "select relname from pg_class where relnamespace = 'esl'::regnamespace and relkind = 'r' order by 1"
        ).fetchall()
        return {
            table: connection.execute(f"select to_jsonb(t) from esl.{table} t order by t::text".encode()).fetchall()
            for (table,) in tables
        }  # fmt: skip


def refused_politely(buffer: Buffer, value: str, shop: dict[str, str]) -> None:
    """What operators may be asked for names nothing that there is."""
    calls: list[Callable[[], Any]] = [
        lambda: buffer.redrive(store=value, code=value, by=value),
        lambda: buffer.redrive(reason=value or "nothing", by=value),
        lambda: buffer.labels_push(store=value, whole=True, by=value),
        lambda: buffer.labels_push(store="S1", codes=[value], by=value),
        lambda: buffer.labels_push(store="S1", vendor=value, by=value),
        lambda: buffer.labels_push(store="S1", tag=value, by=value),
        lambda: buffer.store_pause(store=value, reason=value, by=value),
        lambda: buffer.store_resume(store=value, by=value),
        lambda: buffer.deliveries_replay(ids=[value], by=value),
        lambda: buffer.deliveries_replay(shop=shop | {"source_store_id": value}, by=value),
        lambda: buffer.label_server_try(label_server=value, by=value),
        lambda: buffer.changes_approve(store="S1", codes=[value], by=value),
        lambda: buffer.changes_reject(store=value, codes=[value], by=value),
        lambda: buffer.store_remove(store=value, labels=value, by=value),
    ]
    for call in calls:
        with pytest.raises(ActionRefused):
            call()
    assert buffer.changes_waiting(store=value) == [] and buffer.operator_actions(store=value) == []


@pytest.mark.long
@pytest.mark.shared_data  # more of them where the naughty strings are
@pytest.mark.parametrize("way", ["psycopg", "supabase"])
def test_s18_hostile_values_are_only_values(postgres: EmbeddedPostgres, buffer_dsn: str, way: str) -> None:
    shop = {"source_system": "shopify", "source_store_id": "bystander.myshopify.com"}
    with ExitStack() as stack:
        if way == "supabase":
            gateway = stack.enter_context(Gateway.start(buffer_dsn))
            transport: Any = SupabaseTransport(gateway.url, SecretStr(Gateway.service_key))
        else:
            transport = PsycopgTransport(buffer_dsn)
        buffer = Buffer(stack.enter_context(transport))
        bystander = buffer.mapping_create(shop | {"hipoink_store_code": "S1"})
        before = contents(buffer_dsn)
        values = hostile()
        assert len(values) == (30 if NAUGHTY.is_file() else len(GRAMMAR))
        for value in values:
            assert buffer.trace(value, store=value) == []
            assert buffer.findings(store=value) == [] and buffer.preview(store=value) == []
            refused_politely(buffer, value, shop)
            assert buffer.missing_variants(shop=shop | {"source_store_id": value}, after=value) == []
            assert buffer.watermark(shop=shop, source=value) is None
            assert buffer.inbox_claim(run_id=value, shop=shop | {"source_system": value})[1] == []
            with pytest.raises(BufferError) as refused:
                buffer.mapping_get(value)
            assert refused.value.code == "22P02"
            with pytest.raises(BufferError) as refused:
                buffer.mapping_update(bystander["id"], {"hipoink_store_code": value})
            assert refused.value.code == "23514"
            with pytest.raises(ValueError, match="not the name of a buffer function"):
                transport.call(f"esl_due{value}", {})
        assert contents(buffer_dsn) == before
        for number, value in enumerate(values):
            fields = {"source_system": value, "source_store_id": value, "hipoink_store_code": f"H{number}"}
            for no_shop in (fields, fields | {"source_system": "shopify"}):
                with pytest.raises(BufferError) as refused:
                    buffer.mapping_create(no_shop)
                assert refused.value.code == "22023"
            named = {"source_system": "shopify", "source_store_id": f"hostile-{number}.myshopify.com"}
            kept = buffer.mapping_create(fields | named | {"settings": {value: value}}, by=value)
            assert kept["settings"] == {value: value}
            assert buffer.mapping_history(limit=1)[0]["by"] == value
        after = contents(buffer_dsn)
        assert len(after["store_mappings"]) == len(values) + 1
        assert after["store_mappings"] != before["store_mappings"]
        assert before["store_mappings"][0] in after["store_mappings"]
