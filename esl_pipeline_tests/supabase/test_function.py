"""The webhook function for Supabase beside receiver/test_contract.py: its parts against Python's, and its files."""

import base64
import json
import re
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from esl_pipeline.settings import every_field
from esl_pipeline.sources.content import instant
from esl_pipeline.sources.shopify.deliveries import LIFECYCLE_TOPICS
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline.sources.shopify.topics import TOPICS
from esl_pipeline.sources.signature import verify
from esl_pipeline_tests.receiver.support import signature, signed
from esl_pipeline_tests.shared_data import DATA
from esl_pipeline_tests.supabase.function import FOLDER, VARIABLES, evaluated, run, running

PROJECT = FOLDER.parents[1]
SHOP = "corner-shop.myshopify.com"
HEX = "0123456789abcdef" * 2


# Its files


def test_the_project_exposes_no_tables_and_lets_the_function_verify_for_itself() -> None:
    config = tomllib.loads((PROJECT / "config.toml").read_text())
    assert config["api"]["schemas"] == ["public"]
    (name,) = config["functions"]
    assert config["functions"][name]["verify_jwt"] is False
    assert PROJECT / config["functions"][name]["entrypoint"] == PROJECT / "functions" / name / "index.ts"
    assert (FOLDER.name, sorted(path.name for path in FOLDER.parent.iterdir())) == (name, [name])
    assert config["db"]["major_version"] >= 15 and (PROJECT / "migrations").is_dir()


def test_nothing_is_fetched() -> None:
    for file in FOLDER.glob("*.ts"):
        imported = re.findall(r"""(?:from|import)\s*\(?["']([^"']+)["']""", file.read_text())
        assert all(name.startswith("./") and (FOLDER / name).is_file() for name in imported), file.name
    assert json.loads((FOLDER / "deno.json").read_text())["imports"] == {}


def test_its_variables_are_those_that_are_told() -> None:
    read = {
        name for file in FOLDER.glob("*.ts") for name in re.findall(r'get\("([A-Z_]+)"\)', file.read_text())
    }
    assert read == set(VARIABLES)
    ours = {name for name in read if not name.startswith("SUPABASE_")}
    assert ours <= {name.upper() for name in every_field()}


def test_its_topics_are_the_receivers() -> None:
    said = evaluated('import { TOPICS } from "./delivery.ts"; console.log(JSON.stringify(TOPICS));', "")
    assert json.loads(said) == [*TOPICS, *LIFECYCLE_TOPICS]


@pytest.mark.long
@pytest.mark.parametrize(
    "command", [("check", "--no-remote"), ("lint",), ("fmt", "--check")], ids=lambda c: c[0]
)
def test_its_types_rules_and_form_are_checked(command: tuple[str, ...]) -> None:
    ended = run(*command, *sorted(file.name for file in FOLDER.glob("*.ts")))
    assert ended.returncode == 0, ended.stdout + ended.stderr


# Signatures


VERIFIED = """
import { verify } from "./signature.ts";
const bytes = (hex) => new Uint8Array((hex.match(/../g) ?? []).map((two) => parseInt(two, 16)));
const cases = INPUT;
console.log(JSON.stringify(await Promise.all(
    cases.map(([raw, header, keys]) => verify(bytes(raw), header, keys.map(bytes))))));
"""


def verified(cases: list[tuple[bytes, str, list[bytes]]]) -> list[bool]:
    given = [[raw.hex(), header, [key.hex() for key in keys]] for raw, header, keys in cases]
    answers: list[bool] = json.loads(evaluated(VERIFIED, json.dumps(given)))
    return answers


@pytest.mark.shared_data("data/security/wycheproof_hmac_sha256_test.json")
def test_f24_wycheproof_vectors_are_judged_as_python_judges_them() -> None:
    groups = json.loads((DATA / "security" / "wycheproof_hmac_sha256_test.json").read_text())["testGroups"]
    cases, expected = [], []
    for group in groups:
        for case in group["tests"]:
            key, raw, tag = (bytes.fromhex(case[name]) for name in ("key", "msg", "tag"))
            cases.append((raw, base64.b64encode(tag).decode(), [key]))
            expected.append(case["result"] == "valid" and group["tagSize"] == 256)
    assert len(cases) == 174 and sum(expected) == 33
    assert verified(cases) == expected
    assert [verify(*case) for case in cases] == expected


def test_s03_only_the_canonical_text_of_one_of_the_keys_verifies() -> None:
    raw, key = b'{"id": 1}', b"key"
    good = signature(raw, "key")
    texts = {
        good: True, good + "=": False, good[:-1]: False, good + "\n": False, " " + good: False, "": False,
        good.replace("=", "A"): False, base64.urlsafe_b64encode(b"\xff" * 32).decode(): False, "A" * 50_000: False,
        good[:-2] + chr(ord(good[-2]) + 1) + "=": False, base64.b64decode(good).hex(): False,
    }  # fmt: skip
    assert verified([(raw, text, [b"other", key]) for text in texts]) == list(texts.values())
    assert verified([(raw, good, []), (raw, good, [b"other"]), (b"", good, [key])]) == [False] * 3


# Settings


SECRETS = """
import { readSecrets } from "./secrets.ts";
console.log(JSON.stringify(INPUT.map((text) => {
    try {
        return readSecrets(text).map((secret) => [secret.text, secret.shop, secret.notAfter]);
    } catch (error) {
        return error.message;
    }
})));
"""
WRITTEN = [
    *(
        "",
        "a",
        " a , b ,",
        ",",
        "a,,b",
        "two words",
        "é",
        "a=b",
        "shop=secret",
        "=a",
        "a=",
        "a@b",
        "a@",
        "@2026-12-31",
    ),
    *(
        "a@2026-12-31",
        "a@2026-12-31T12:00:00Z",
        "a@2026-12-31 12:00",
        "a@2026-12-31T12:00:00+02:00",
        "a@2026-02-30",
    ),
    *(
        "a@2026-12-31x",
        "a@2026-12-31T25:00",
        "a@0000-01-01",
        "a@2026-12-31@2027-01-01",
        "a@2026-12-31T12:00:00.5Z",
    ),
    *(
        f"{SHOP}=a",
        f"{SHOP.upper()} = a@2026-12-31",
        f"{SHOP}=",
        f"{SHOP}=a=b",
        f"{SHOP}x=a",
        f"https://{SHOP}=a",
    ),
    *(
        f"corner={HEX}",
        f"corner=shpss_{HEX}@2026-12-31",
        f"-corner={HEX}",
        f"corner={HEX}x",
        f"\u212aorner={HEX}",
    ),
    *(f"https://admin.shopify.com/store/corner={HEX}", f"corner.={HEX}", f"corner/x={HEX}", f"{HEX}={HEX}"),
    *("a.myshopify.com.evil=b", "A.MYSHOPIFY.x=b", f"{SHOP}=a,{SHOP}=b@2026-12-31,c"),
]


def by_python(text: str) -> Any:
    try:
        secrets = ShopifySettings(shopify_webhook_secret=text).webhook_secrets
    except ValidationError as error:
        (wrong,) = error.errors()
        return wrong["msg"].removeprefix("Value error, ")
    return [
        [found.key.decode(), found.shop, found.not_after and int(found.not_after.timestamp() * 1000)]
        for found in secrets
    ]


def test_s04_secrets_are_written_as_for_the_receiver() -> None:
    found = json.loads(evaluated(SECRETS, json.dumps(WRITTEN)))
    assert dict(zip(WRITTEN, found, strict=True)) == {text: by_python(text) for text in WRITTEN}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"SHOPIFY_WEBHOOK_SECRET": "CANARY,CANARY@2026-02-30"},
            "SHOPIFY_WEBHOOK_SECRET: entry 2 ends with a date",
        ),
        ({"ESL_WEBHOOK_BODY_LIMIT_BYTES": "999"}, "ESL_WEBHOOK_BODY_LIMIT_BYTES: write a number from 1000"),
        ({"ESL_WEBHOOK_BODY_LIMIT_BYTES": "5e6"}, "ESL_WEBHOOK_BODY_LIMIT_BYTES: write a number from 1000"),
        ({"SUPABASE_URL": "project/CANARY"}, "SUPABASE_URL: write the project's address"),
        ({"SUPABASE_SECRET_KEYS": "{CANARY"}, "SUPABASE_SECRET_KEYS: is not JSON"),
        ({"SUPABASE_SECRET_KEYS": '{"default": "CANARY\\n"}'}, "holds a secret key of the project"),
        ({"SUPABASE_SECRET_KEYS": "{}"}, "holds a secret key of the project"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name_and_stops_the_start(
    variables: dict[str, str], says: str
) -> None:
    good = {
        "SHOPIFY_WEBHOOK_SECRET": "s",
        "SUPABASE_URL": "https://x.supabase.co",
        "SUPABASE_SECRET_KEYS": '{"a":"k"}',
    }
    rights = (
        "--no-remote",
        "--cached-only",
        "--no-prompt",
        "--allow-net=127.0.0.1",
        f"--allow-env={','.join(VARIABLES)}",
    )
    ended = run("run", *rights, "index.ts", **(good | variables))
    assert ended.returncode == 1 and says in ended.stderr
    assert "CANARY" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("project", "sent"),
    [
        (
            {"SUPABASE_SECRET_KEYS": '{"other": "sb_secret_b", "default": "sb_secret_a"}'},
            ("sb_secret_a", None),
        ),
        ({"SUPABASE_SECRET_KEYS": '{"mine": "sb_secret_b"}'}, ("sb_secret_b", None)),
        (
            {"SUPABASE_SECRET_KEYS": '{"a": "sb_secret_a"}', "SUPABASE_SERVICE_ROLE_KEY": "eyJ.b.c"},
            ("sb_secret_a", None),
        ),
        ({"SUPABASE_SERVICE_ROLE_KEY": "eyJ.b.c"}, ("eyJ.b.c", "Bearer eyJ.b.c")),
    ],
)
def test_a_key_of_either_kind_opens_the_project(
    project: dict[str, str], sent: tuple[str, str | None]
) -> None:
    raw = b"{}"
    headers = signed("products/update", raw, secret="s", webhook_id="a\u00e9\u00a0b".encode("latin-1"))
    with (
        listening() as (url, heads),
        running(project | {"SHOPIFY_WEBHOOK_SECRET": "s", "SUPABASE_URL": url}) as function,
    ):
        assert httpx.get(f"{function.url}/health").status_code == 200
        # Where `shopify connect` lets Shopify send when APP_BASE_URL is the function's address.
        answer = httpx.post(f"{function.url}/webhooks/shopify", content=raw, headers=headers)
        assert answer.json() == {"status": "duplicate"}
        assert httpx.post(f"{function.url}/webhooks/shopify/orders/create").status_code == 404
        assert httpx.post(function.url.replace("/shopify-webhook", "/other")).status_code == 404
    assert {(head["apikey"], head.get("authorization")) for head in heads} == {sent}
    lines = "".join(function.lines)
    assert not any(secret in lines for secret in sent if secret)
    (line,) = [line for line in function.lines if line.startswith("webhook ")]
    assert line.isascii() and line.endswith('with id "a\\u00e9\\u00a0b", outcome duplicate\n')


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Something that answers {} to every call, and the heads of what came."""
    heads: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heads.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", heads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Times


TIMES = """
import { instant } from "./times.ts";
console.log(JSON.stringify(INPUT.map((text) => {
    const time = instant(text);
    return time?.hasOffset ? time.iso : null;
})));
"""


def test_times_are_read_and_written_as_python_does() -> None:
    texts = [
        f"{day}{separator}{time}{offset}"
        for day in (
            "2026-02-28",
            "2026-02-29",
            "2028-02-29",
            "0001-01-01",
            "9999-12-31",
            "2026-13-01",
            "1969-12-31",
        )
        for separator in "T "
        for time in (
            "00:00:00",
            "23:59:59",
            "24:00:00",
            "12:60:00",
            "12:00",
            "00:00:00.5",
            "12:34:56.123456789",
        )
        for offset in ("Z", "+00:00", "-05:00", "+0530", "+14", "+25:00", "", "z")
    ]
    found = json.loads(evaluated(TIMES, json.dumps(texts)))
    wrong = {}
    for text, said in zip(texts, found, strict=True):
        at = instant(text)
        if said != (at and at.isoformat()):
            wrong[text] = (said, at and at.isoformat())
    assert wrong == {}
