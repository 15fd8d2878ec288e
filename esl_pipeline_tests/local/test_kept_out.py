"""A running `up` against what is on the same machine: foreign pages in a real browser, and its own parts.

The browser is the system's Chromium, driven by playwright: apt-get install chromium.
"""

import json
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx
import psycopg
import pytest

from esl_pipeline.local.variables import running_environment
from esl_pipeline_tests.processes import PARTS, Up, part_of, processes_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# A name of a stranger that he makes mean this machine, and one where his pages are.
REBOUND, FOREIGN = "rebound.example", "foreign.example"
CODE = "4006381333931"
_NO_WAY_IN = {403, 421}


@dataclass
class Running:
    up: Up
    urls: dict[str, str]
    secrets: dict[str, str]

    def graphql(self, query: str) -> Any:
        answer = httpx.post(f"{self.urls['ui']}/graphql", json={"query": query}, timeout=30)
        return answer.raise_for_status().json()["data"]

    def sensor(self) -> dict[str, Any]:
        """The sensor that starts the drain: its id and its status."""
        asked = """{ sensorOrError(sensorSelector: {repositoryName: "__repository__",
            repositoryLocationName: "esl_pipeline", sensorName: "inbox_sensor"}) {
            ... on Sensor { id sensorState { id status } } } }"""
        found: dict[str, Any] = self.graphql(asked)["sensorOrError"]
        return found

    def everything(self) -> dict[str, Any]:
        """All that the attacks below are after."""
        loaded = "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus updatedTimestamp } } } }"
        labels = httpx.get(f"{self.urls['labels']}/sandbox/state").json()
        shop = self.urls["shop"]
        token = {"Authorization": f"Bearer {self.secrets['ESL_ADMIN_TOKEN']}"}
        return {
            "sensor": self.sensor()["sensorState"]["status"],
            "workspace": self.graphql(loaded),
            "code server": part_of(self.up.home, "code server"),
            "assets": self.graphql('{ assetOrError(assetKey: {path: ["attack"]}) { __typename } }'),
            "label": labels["labels"].get("001", {}).get(CODE),
            "label faults": httpx.get(f"{self.urls['labels']}/sandbox/faults").json(),
            "products": httpx.get(f"{shop}/sandbox/products", params={"size": 3}).json(),
            "shop faults": httpx.get(f"{shop}/sandbox/faults").json(),
            "switches": httpx.get(f"{shop}/sandbox/deliveries").json()["switches"],
            "mappings": httpx.get(f"{self.urls['receiver']}/api/store-mappings/", headers=token).json(),
        }


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="esl-up-", dir="/tmp"))
    home.chmod(0o755)
    # What an operator's shell may hold, and none of our parts needs.
    up = Up(
        home, PYTHONPATH=str(Path(__file__).parents[2]), GITHUB_TOKEN="gh-canary", AWS_SESSION_TOKEN="aws"
    )
    try:
        urls = up.wait_until_ready()
        lines = (home / "dev.env").read_text().splitlines()
        secrets = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        yield Running(up, urls, secrets)
    finally:
        family = up.family()
        up.end(signal.SIGTERM)
        up.leaves_nothing(family)
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP {FOREIGN} 127.0.0.1"
    with driver.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules])
        yield found
        found.close()


# --- Dagster's own pages


def test_s32_dagsters_own_pages_work_behind_the_guard(running: Running, browser: Any, tmp_path: Path) -> None:
    page, ui = browser.new_page(viewport={"width": 1400, "height": 900}), running.urls["ui"]
    page.set_default_timeout(60_000)
    failed, frames = [], []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.on("websocket", lambda opened: opened.on("framereceived", lambda frame: frames.append(str(frame))))

    for path, shown in (
        ("/runs", "text=Backfills"),
        ("/assets", "text=hipoink_sync_results"),
        ("/automation", "text=nightly_reconciliation"),
        ("/graphql", ".graphiql-editor"),
    ):
        page.goto(ui + path)
        page.locator(shown).first.wait_for()
        page.screenshot(path=tmp_path / f"{path.strip('/')}.png")

    page.goto(f"{ui}/locations/esl_pipeline/jobs/housekeeping/playground")
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    page.get_by_text("Finished execution of run for").wait_for()  # by the websocket, as it happens
    page.screenshot(path=tmp_path / "run.png")
    assert any("RunSuccessEvent" in frame for frame in frames), "live status came over the websocket"
    assert failed == []
    page.close()


# --- foreign pages


class _Foreign(BaseHTTPRequestHandler):
    """The stranger's server: an empty page; it notes what it is asked for."""

    asked: ClassVar[set[tuple[str, ...]]] = set()

    def do_GET(self) -> None:
        told = (self.headers.get(name, "") for name in ("Sec-Fetch-Mode", "Sec-Fetch-Dest", "Content-Type"))
        self.asked.add((self.command, *(value.partition("boundary")[0] for value in told)))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"<!doctype html><title>free coupons</title>")

    do_POST = do_OPTIONS = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Foreign) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


# What a page can do to an address: `got` says what it could read or open. A request is given as [address, type, body].
ATTACK = """async ([gets, posts, changes, sockets]) => {
  const got = [], later = [];
  const until = (what, url, start) => later.push(Promise.race([
    new Promise(done => start(() => { got.push([what, url]); done(); }, done)),
    new Promise(done => setTimeout(done, 5000)),
  ]));
  const element = (name, set) => { const e = document.createElement(name); Object.assign(e, set); return e; };
  const loaded = (what, url, name, set) => until(what, url, (yes, no) =>
    document.body.append(element(name, { ...set, onload: yes, onerror: no })));
  const fetched = (what, url, options) => until(what, url, (yes, no) =>
    fetch(url, options).then(answer => answer.type == 'opaque' ? no() : answer.text().then(yes), no));
  const form = (url, method, enctype, fields) => {
    const frame = element('iframe', { name: 'f' + Math.random() });
    const made = element('form', { action: url, method, enctype, target: frame.name });
    for (const [name, value] of fields) made.append(element('input', { name, value }));
    document.body.append(frame, made);
    made.submit();
    until('form', url, (yes, no) => frame.onload = () => {
      try { frame.contentDocument.body ? yes() : no() } catch { no() }
    });
  };
  for (const url of gets) {
    loaded('image', url, 'img', { src: url });
    loaded('script', url, 'script', { src: url });
    loaded('style', url, 'link', { rel: 'stylesheet', href: url });
    document.body.append(element('iframe', { src: url }));
    fetched('no-cors', url, { mode: 'no-cors', credentials: 'include' });
    fetched('cors', url, {});
    const [address, query] = url.split('?');
    form(address, 'GET', '', [...new URLSearchParams(query)]);
  }
  for (const [url, body] of posts) {
    for (const type of ['text/plain', 'text/plain; application/json', 'application/x-www-form-urlencoded'])
      fetched('post', url, { method: 'POST', mode: 'no-cors', body, headers: { 'Content-Type': type } });
    fetched('post without a type', url, { method: 'POST', mode: 'no-cors', body: new Blob([body]) });
    fetched('post of nothing', url, { method: 'POST', mode: 'no-cors' });
    fetched('json', url, { method: 'POST', body, headers: { 'Content-Type': 'application/json' } });
    navigator.sendBeacon(url, body);
    for (const enctype of ['text/plain', 'multipart/form-data', 'application/x-www-form-urlencoded'])
      form(url, 'POST', enctype, [[body.slice(0, -1) + ',"a":"', '"}']]);
  }
  for (const [method, url, body] of changes)
    fetched(method, url, { method, body, headers: { 'Content-Type': 'application/json' } });
  for (const [url, message] of sockets)
    until('websocket', url, (yes, no) => {
      const socket = new WebSocket(url, 'graphql-ws');
      socket.onerror = no;
      socket.onopen = () => { socket.send(message); yes(); };
    });
  await Promise.all(later);
  return got;
}"""


@dataclass
class Attack:
    """All that is tried at the addresses of a running `up`, in the forms that a page has."""

    running: Running
    sensor_id: str
    gets: list[str] = field(default_factory=list)
    posts: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str, str | None]] = field(default_factory=list)
    sockets: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        ui, labels, shop, receiver = (
            self.running.urls[name] for name in ("ui", "labels", "shop", "receiver")
        )
        self._dagster(ui)
        # The stranger even knows the sign: it is in every address that the pipeline calls.
        signed = {"store_code": "001", "is_base64": "0", "sign": self.running.secrets["HIPOINK_API_SECRET"]}
        label = {"pc": CODE, "pn": "attack", "pp": "0.01", **signed}
        fault = json.dumps([{"kind": "status", "status": 500}])
        query = "&".join(f"{name}={value}" for name, value in signed.items())
        self.gets += [
            f"{labels}/",
            f"{labels}/sandbox/state",
            f"{labels}/api/default/product/query?{query}&f1=1&f2=9",
        ]
        self.posts += [
            (f"{labels}/api/default/product/create", json.dumps(label)),
            (f"{labels}/api/default/product/del_multiple", json.dumps({"f1": [{"pc": CODE}], **signed})),
            (f"{labels}/sandbox/faults", fault),
        ]
        self.changes += [
            ("DELETE", f"{labels}/sandbox/state", None),
            ("PUT", f"{labels}/sandbox/labels/001/{CODE}", '{"pp": "0.01"}'),
        ]
        self.gets += [f"{shop}/", f"{shop}/sandbox/products", f"{shop}/sandbox/deliveries"]
        self.posts += [(f"{shop}/sandbox/faults", fault), (f"{shop}/sandbox/deliveries/subscribe", "{}")]
        (product, *_) = httpx.get(f"{shop}/sandbox/products").json()["products"]
        self.changes += [
            ("DELETE", f"{shop}/sandbox/products/{product['id']}", None),
            ("PUT", f"{shop}/sandbox/deliveries/switches", '{"lose": true}'),
        ]
        mapping = {
            "source_system": "shopify",
            "source_store_id": "e.myshopify.com",
            "hipoink_store_code": "001",
        }
        self.gets += [
            f"{receiver}/{path}" for path in ("", "docs", "openapi.json", "health", "api/store-mappings/")
        ]
        self.posts += [
            (f"{receiver}/api/store-mappings/", json.dumps(mapping)),
            (f"{receiver}/webhooks/shopify/products/update", json.dumps({"id": 1})),
        ]

    def _dagster(self, ui: str) -> None:
        for mutation in (
            f'mutation {{ stopSensor(id: "{self.sensor_id}") {{ __typename }} }}',
            'mutation { shutdownRepositoryLocation(repositoryLocationName: "esl_pipeline") { __typename } }',
        ):
            body = json.dumps({"query": mutation})
            asked = f"{ui}/graphql?query={quote(mutation)}"
            self.gets.append(asked)
            self.posts += [(f"{ui}/graphql", body), (asked, body)]
            start = {"type": "start", "id": "1", "payload": {"query": mutation}}
            self.sockets.append((f"{ui.replace('http', 'ws')}/graphql", json.dumps(start)))
        self.gets += [f"{ui}/", f"{ui}/server_info", f"{ui}/graphql?query={{version}}"]
        self.posts.append((f"{ui}/report_asset_materialization/attack", "{}"))

    def arguments(self) -> list[Any]:
        return [self.gets, self.posts, self.changes, self.sockets]

    def ports(self) -> set[int | None]:
        return {urlsplit(url).port for url in self.running.urls.values()}


@pytest.fixture(scope="module")
def attack(running: Running) -> Attack:
    label = f"{running.urls['labels']}/sandbox/labels/001/{CODE}"
    httpx.put(label, json={"pn": "of an honest shop", "pp": "9.99"}).raise_for_status()
    return Attack(running, running.sensor()["sensorState"]["id"])


class Answers:
    """What our servers answered to a page, by method and kind of request."""

    def __init__(self, page: Any, ports: set[int | None]) -> None:
        self.statuses: dict[tuple[str, str], set[int]] = {}
        self._ports = ports
        page.context.on("response", self._note)

    def _note(self, answer: Any) -> None:
        if urlsplit(answer.url).port in self._ports:
            kind = (answer.request.method, answer.request.resource_type)
            self.statuses.setdefault(kind, set()).add(answer.status)


def test_s32_the_attacks_arrive_where_nothing_stands_before(browser: Any, foreign_port: int) -> None:
    page = browser.new_page()
    page.goto(f"http://localhost:{foreign_port}/")
    _Foreign.asked.clear()
    bare = f"http://127.0.0.1:{foreign_port}/"
    page.evaluate(ATTACK, [[f"{bare}?a=b"], [(bare, '{"a": "b"}')], [], [(bare.replace("http", "ws"), "{}")]])
    page.close()
    plain, form, multipart = "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; "
    assert _Foreign.asked >= {
        *(("GET", "no-cors", kind, "") for kind in ("image", "script", "style", "empty")),
        ("GET", "navigate", "iframe", ""),
        ("GET", "cors", "empty", ""),
        ("GET", "", "", ""),  # the websocket: nothing but its Origin tells whose it is
        ("OPTIONS", "cors", "empty", ""),
        *(("POST", "no-cors", "empty", kind) for kind in (plain, f"{plain}; application/json", form, "")),
        *(("POST", "navigate", "iframe", kind) for kind in (plain, multipart, form)),
    }, sorted(_Foreign.asked)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", FOREIGN])
def test_s32_a_foreign_page_changes_and_reads_nothing(
    running: Running, browser: Any, attack: Attack, foreign_port: int, host: str
) -> None:
    before = running.everything()
    context = browser.new_context()
    page = context.new_page()
    answers = Answers(page, attack.ports())
    page.goto(f"http://{host}:{foreign_port}/")

    assert page.evaluate(ATTACK, attack.arguments()) == []

    assert set().union(*answers.statuses.values()) <= _NO_WAY_IN, answers.statuses

    # The whole window: a form of another site, and a link to what is no page.
    for url in (attack.gets[0], f"{running.urls['labels']}/sandbox/state"):
        page.goto(f"http://{host}:{foreign_port}/")
        with page.expect_navigation(url=lambda found, url=url: found.startswith(url.split("?")[0])) as gone:
            page.evaluate("url => { location.href = url }", url)
        assert gone.value.status == 403
    page.goto(f"http://{host}:{foreign_port}/")
    submit = """url => { const made = document.createElement('form');
        Object.assign(made, { action: url, method: 'POST' }); document.body.append(made); made.submit(); }"""
    with page.expect_navigation(url="**/graphql**") as gone:
        page.evaluate(submit, attack.posts[1][0])
    assert gone.value.status == 403
    # An ordinary link to a page of ours is none of that.
    page.goto(f"http://{host}:{foreign_port}/")
    with page.expect_navigation(url=f"{running.urls['labels']}/") as gone:
        page.evaluate("url => { location.href = url }", running.urls["labels"])
    assert gone.value.status == 200
    context.close()
    assert running.everything() == before


def test_s32_a_name_that_is_made_to_mean_this_machine_opens_nothing(
    running: Running, browser: Any, attack: Attack
) -> None:
    before = running.everything()
    context = browser.new_context()
    page = context.new_page()
    answers = Answers(page, attack.ports())
    for name in ("ui", "labels", "shop", "receiver"):
        own = running.urls[name]
        # The page has been the stranger's a moment ago, under this very address: for the browser it is its own.
        rebound = own.replace("127.0.0.1", REBOUND)
        assert page.goto(f"{rebound}/").status == 421

        def at(urls: list[Any], own: str = own, rebound: str = rebound) -> list[Any]:
            there = json.dumps([told for told in urls if own in json.dumps(told)])
            return list(json.loads(there.replace(urlsplit(own).netloc, urlsplit(rebound).netloc)))

        arguments = [[url for url in at(told) if "/health" not in str(url)] for told in attack.arguments()]
        arguments[1] = [told for told in arguments[1] if "/webhooks/" not in told[0]]
        read = [what for what, _ in page.evaluate(ATTACK, arguments)]
        # It may read what is said to it: that it is not served under this name.
        assert not {"image", "script", "style", "websocket"} & set(read), read
    context.close()
    assert set().union(*answers.statuses.values()) == {421}, answers.statuses
    assert running.everything() == before


# --- its own parts

_OF_DATABASES = {
    *("ESL_DATABASE_URL", "ESL_OPERATOR_DATABASE_URL", "ESL_DAGSTER_DATABASE_URL", "SUPABASE_SERVICE_KEY")
}
# The secrets that a process may have in its environment, and for the buffer as whom.
MAY_KNOW = {
    "receiver": {"ESL_DATABASE_URL", "SHOPIFY_WEBHOOK_SECRET", "ESL_ADMIN_TOKEN"},
    "code server": {
        *("ESL_DATABASE_URL", "ESL_DAGSTER_DATABASE_URL", "HIPOINK_API_SECRET", "SHOPIFY_APPS"),
        *("ESL_OPERATOR_DATABASE_URL", "AWS_SESSION_TOKEN"),
    },
    "Dagster webserver": {"ESL_DAGSTER_DATABASE_URL"},
    "Dagster daemon": {"ESL_DAGSTER_DATABASE_URL"},
    "label server": {"HIPOINK_API_SECRET"},
    "shop": {"SHOPIFY_API_KEY", "SHOPIFY_API_SECRET", "SHOPIFY_WEBHOOK_SECRET"},
    "Postgres": set[str](),
}
COMMANDS = PARTS | {
    "label server": "esl_pipeline.sandbox.label_server.server",
    "shop": "esl_pipeline.sandbox.shopify.server",
}


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def test_s40_each_part_knows_only_what_it_needs(running: Running) -> None:
    home = running.up.home
    up = environment_of(running.up.process.pid)
    told = running_environment(home) | running.secrets | {"GITHUB_TOKEN": up["GITHUB_TOKEN"]}
    secrets = {name for name in told if name.endswith(("_URL", "_TOKEN", "_SECRET", "_KEY", "_APPS"))}
    secrets -= {"HIPOINK_API_BASE_URL", "SHOPIFY_ADMIN_URL", "APP_BASE_URL"}
    secrets |= {
        "AWS_SESSION_TOKEN",
        "SHOPIFY_ADMIN_TOKEN",
        "SHOPIFY_API_KEY",
        "SHOPIFY_API_SECRET",
    } | _OF_DATABASES
    found = {name: dict[str, str]() for name in COMMANDS}
    for pid, command in processes_of(home).items():
        assert not any(value in command for name, value in told.items() if name in secrets), (
            "in a command line"
        )
        for name, holds in COMMANDS.items():
            if holds in command and pid != running.up.process.pid:  # the part and its leash
                found[name] |= environment_of(pid)
    assert {name: set(variables) & secrets for name, variables in found.items()} == MAY_KNOW

    superuser = psycopg.conninfo.conninfo_to_dict(told["ESL_DATABASE_URL"])
    for name, variables in found.items():
        assert str(superuser["password"]) not in str(variables), name
    for name, login in (("receiver", "up_receiver"), ("code server", "up_pipeline")):
        assert psycopg.conninfo.conninfo_to_dict(found[name]["ESL_DATABASE_URL"])["user"] == login
    operators = found["code server"]["ESL_OPERATOR_DATABASE_URL"]
    assert psycopg.conninfo.conninfo_to_dict(operators)["user"] == "up_operator"

    # Nor does it help to know where the database is.
    for user in ("postgres", "dagster", "up_receiver", "up_pipeline", "up_operator"):
        for password in (None, "", "postgres", str(superuser["password"]) if user != "postgres" else "x"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(host=superuser["host"], dbname="esl", user=user, password=password).close()
    logs = "".join(log.read_text(errors="replace") for log in home.rglob("*.log"))
    for value in {str(superuser["password"]), *(told[name] for name in secrets & set(told))}:
        assert value not in logs
    for file in (home / "up.env", home / "dev.env", home / "postgres" / "esl_secret"):
        assert file.stat().st_mode & 0o077 == 0, file
