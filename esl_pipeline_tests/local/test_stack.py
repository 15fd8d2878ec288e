"""`esl-pipeline up` as its users meet it: a process of its own, on free ports, that may be killed at any moment."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from esl_pipeline.local.databases import dagster_url, prepare_database
from esl_pipeline.local.parts import StackError
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.stack import Ports, Stack
from esl_pipeline.local.variables import given_to, running_environment
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline.settings import every_field, load_settings
from esl_pipeline.sources.shopify.settings import ShopifySettings
from esl_pipeline_tests.orchestration.world import SHOP, product
from esl_pipeline_tests.processes import Up, part_of
from esl_pipeline_tests.receiver.support import signed
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(240),
]

ROOT = Path(__file__).parents[2]
STORE = "S1"


@pytest.fixture
def home(place: Path) -> Path:
    return place


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: str, **variables: str) -> Up:
        started.append(Up(home, *arguments, **variables))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            family = up.family()
            up.process.kill()
            up.process.wait()
            up.leaves_nothing(family)


class ShopPage:
    """What somebody does on the Shopify sandbox's page, and what the labels of its store show."""

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        (found,) = httpx.get(f"{urls['shop']}/sandbox/products", params={"q": "Käsespätzle"}).json()[
            "products"
        ]
        self._product, self._variant = found["id"], found["variants"][0]
        self.price, self.code = self._variant["price"], self._variant["barcode"]

    def reprice(self, price: str) -> None:
        path = f"/sandbox/products/{self._product}/variants/{self._variant['id']}"
        httpx.patch(self._urls["shop"] + path, json={"price": price}).raise_for_status()

    def label(self) -> str | None:
        """The price on the variant's label."""
        labels = httpx.get(f"{self._urls['labels']}/sandbox/state", timeout=10).json()["labels"]
        shown: str | None = labels.get("001", {}).get(self.code, {}).get("pp")
        return shown


class Shop:
    """Maps a shop to a store over the API, sends its webhooks, and looks at the labels."""

    def __init__(self, home: Path, urls: dict[str, str]) -> None:
        lines = (home / "dev.env").read_text().splitlines()
        self._secrets = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self._urls = urls

    def map(self) -> None:
        mapping = {"source_system": "shopify", "source_store_id": SHOP, "hipoink_store_code": STORE}
        token = {"Authorization": f"Bearer {self._secrets['ESL_ADMIN_TOKEN']}"}
        answer = httpx.post(f"{self._urls['receiver']}/api/store-mappings/", json=mapping, headers=token)
        assert answer.status_code == 201, answer.text

    def send(self, number: int, price: str) -> None:
        """One products/update; returns when it was acknowledged."""
        raw = json.dumps(product(number, price=price)).encode()
        headers = signed(
            "products/update", raw, secret=self._secrets["SHOPIFY_WEBHOOK_SECRET"], shop_domain=SHOP
        )
        url = f"{self._urls['receiver']}/webhooks/shopify/products/update"
        answer = httpx.post(url, content=raw, headers=headers, timeout=10)
        assert answer.status_code == 200, answer.text

    def prices(self) -> dict[str, str]:
        """Code to price, as the shelf shows it."""
        labels = self._sandbox()["labels"].get(STORE, {})
        return {code: label["pp"] for code, label in labels.items()}

    def calls(self) -> int:
        """How often labels were sent, answered or not."""
        return int(self._sandbox()["calls"].get("create_multiple", 0))

    def slow_down(self, milliseconds: int) -> None:
        rule = {"kind": "latency", "action": "create_multiple", "ms": milliseconds}
        httpx.post(f"{self._urls['labels']}/sandbox/faults", json=[rule]).raise_for_status()

    def _sandbox(self) -> dict[str, Any]:
        state: dict[str, Any] = httpx.get(f"{self._urls['labels']}/sandbox/state", timeout=10).json()
        return state


@pytest.mark.slow
def test_from_the_first_label_over_a_kill_to_all_labels(start: Callable[..., Up], home: Path) -> None:
    up = start()
    urls = up.wait_until_ready()
    for path in (
        urls["receiver"] + "/health",
        urls["receiver"] + "/docs",
        *(urls[name] for name in ("ui", "labels", "shop")),
    ):
        assert httpx.get(path, follow_redirects=True).status_code == 200
    assert (home / "dev.env").stat().st_mode & 0o077 == 0 and (home / "up.env").stat().st_mode & 0o077 == 0

    page = ShopPage(urls)
    page.reprice("7.77")
    from_idle = eventually(lambda: page.label() == "7.77", 30, "the label of an edit, with no other command")
    page.reprice("7.88")
    edited = eventually(lambda: page.label() == "7.88", 15, "the label of the next edit")
    print(f"edit to label: from idle {from_idle:.2f} s, within a drain {edited:.2f} s")

    shop = Shop(home, urls)
    shop.map()
    shop.send(1, "1.00")
    eventually(lambda: shop.prices() == {"C-1": "1.00"}, 30, "the first label of another shop")
    shop.send(1, "2.00")
    in_drain = eventually(lambda: shop.prices() == {"C-1": "2.00"}, 15, "the second label")
    print(f"webhook to label within a drain {in_drain:.2f} s")

    # A push is on its way when the plug is pulled, and webhooks were acknowledged the moment before.
    before = shop.calls()
    shop.slow_down(8_000)
    shop.send(2, "3.00")
    eventually(lambda: shop.calls() > before, 15, "a slow push")
    with ThreadPoolExecutor(8) as senders:
        list(senders.map(lambda n: shop.send(n, "4.00"), range(10, 30)))
    family = up.family()
    up.process.kill()
    up.leaves_nothing(family)
    assert up.process.wait() == -signal.SIGKILL and len(family) > 8

    up = start()
    urls = up.wait_until_ready()
    shop, page = Shop(home, urls), ShopPage(urls)
    wanted = {"C-1": "2.00", "C-2": "3.00", **{f"C-{n}": "4.00" for n in range(10, 30)}}
    # The killed run's claims are free after their leases of 60 s.
    after_kill = eventually(lambda: shop.prices() == wanted, 90, f"all labels, not {shop.prices()}")
    print(f"all labels {after_kill:.1f} s after the second start")

    assert page.price == "7.88", "the shop forgot an edit that the buffer remembers"
    page.reprice("7.99")
    eventually(lambda: page.label() == "7.99", 15, "the label of an edit after the restart")
    told = running_environment(home)
    settings = load_settings(**told)
    assert (
        settings.of(ShopifySettings).admin_access(DOMAIN)
        and settings.of(ShopifySettings).admin_access(SHOP) is None
    )
    asked = httpx.get(f"{urls['shop']}/sandbox/app").json()["token_requests"]
    assert [one["outcome"] for one in asked] == ["granted"], "the shop is read with tokens that it gave"
    assert settings.app_base_url == urls["receiver"]
    assert settings.of(ShopifySettings).shopify_admin_url == urls["shop"]
    assert "no shop was mapped" not in up.said()

    family = up.family()
    assert up.end(signal.SIGINT) == 0
    up.leaves_nothing(family)
    assert "Traceback" not in up.said() and not (home / "up.env").exists()


def is_healthy(receiver: str) -> bool:
    try:
        return httpx.get(f"{receiver}/health").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_the_first_look_fills_the_store_and_a_second_up_is_told_where_the_first_is(
    start: Callable[..., Up], home: Path
) -> None:
    up = start("--fill")
    urls = up.wait_until_ready()
    eventually(lambda: "What to try next:" in up.said(), 120, "a filled store")
    (filled,) = re.findall(r"^(\d+) labels hang, after one full_reconciliation", up.said(), re.MULTILINE)
    labels = httpx.get(f"{urls['labels']}/sandbox/state", timeout=10).json()["labels"]["001"]
    assert int(filled) == len(labels) > 300

    def told(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "esl_pipeline.commands.cli", *arguments]
        done = subprocess.run(
            command, env=os.environ | {"ESL_HOME": str(home)}, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    code, said = told("up")
    assert (
        code == 1 and f"(process {up.process.pid}): Dagster UI {urls['ui']}; labels {urls['labels']}" in said
    )
    assert told("report", "--limit", "1")[0] == 0
    family = up.family()
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    code, said = told("status")
    assert code == 1 and said.startswith(f"esl-pipeline up, which ran on {home}, has ended without a word")
    up.leaves_nothing(family)


@pytest.mark.slow
def test_a_part_that_dies_is_started_again(start: Callable[..., Up], home: Path) -> None:
    up = start(SHOPIFY_ADMIN_TOKEN="shpat_of_a_real_shop")
    urls = up.wait_until_ready()
    assert urls["shop"] is None and "Shopify sandbox" not in up.said()
    assert "SHOPIFY" not in (home / "up.env").read_text(), "a real token is the settings' to keep"
    shop = Shop(home, urls)
    shop.map()

    for name in ("receiver", "Dagster daemon", "code server", "Dagster webserver", "Postgres"):
        part = part_of(home, name)
        assert part, f"no {name}"  # 0 would be ourselves
        os.kill(part, signal.SIGKILL)
        eventually(partial(part_of, home, name), 60, f"the next {name}")
    # It may have been starting while Postgres was away, and then ends once more.
    eventually(partial(is_healthy, urls["receiver"]), 60, "the receiver's health")
    shop.send(1, "1.00")
    took = eventually(lambda: shop.prices() == {"C-1": "1.00"}, 90, "a label after all those kills")

    print(f"a label {took:.1f} s after every part was killed once")
    assert re.search(r"^receiver has ended \(exit code 137\): it is started again in 1 s", up.said(), re.M)
    assert "Traceback" not in up.said()
    family = up.family()
    assert up.end(signal.SIGINT) == 0
    up.leaves_nothing(family)


@pytest.mark.slow
def test_terminated_while_starting(start: Callable[..., Up]) -> None:
    up = start()
    eventually(lambda: "starting Dagster" in up.said(), 60, up.said())
    family = up.family()

    assert up.end(signal.SIGTERM) == 0

    up.leaves_nothing(family)
    assert up.said().endswith("stopped\n") and not up.ready.exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["receiver", "ui", "labels", "shop"])
def test_a_busy_port_is_one_sentence(start: Callable[..., Up], home: Path, name: str) -> None:
    (home / "up.env").write_text("export ESL_DATABASE_URL=of another up on this home\n")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        up = start(f"--{name}-port", str(port))
        assert up.process.wait(30) == 1

    (line,) = up.said().strip().splitlines()
    assert line.startswith(f"port {port} for {name} cannot be used (Address already in use)")
    up.leaves_nothing(set())
    assert (home / "up.env").exists(), "it belongs to the other one"


@pytest.mark.long
def test_dagster_loads_the_shipped_workspace(home: Path, postgres: EmbeddedPostgres) -> None:
    prepare_database(postgres)
    command = [
        str(Path(sys.executable).with_name("dagster")),
        "definitions",
        "validate",
        "-w",
        "workspace.yaml",
    ]
    checked = subprocess.run(
        command,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "ESL_HOME": str(home),
            "ESL_DAGSTER_DATABASE_URL": dagster_url(postgres),
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
    assert "esl_pipeline" in checked.stdout + checked.stderr


def test_s05_the_sandbox_shop_signs_with_its_own_secret_or_says_that_it_has_none() -> None:
    stack = Stack(load_settings(), Ports(), print)
    stack.environment = {"SHOPIFY_WEBHOOK_SECRET": f"shared,{DOMAIN}=mine"}
    assert stack.signing_key() == "mine"
    stack.environment = {"SHOPIFY_WEBHOOK_SECRET": "other.myshopify.com=theirs"}
    with pytest.raises(StackError, match=f"add {DOMAIN}=secret") as caught:
        stack.signing_key()
    assert "theirs" not in str(caught.value)


SECRETS = (
    *("ESL_DATABASE_URL", "ESL_DAGSTER_DATABASE_URL", "SUPABASE_SERVICE_KEY", "SHOPIFY_WEBHOOK_SECRET"),
    *("SHOPIFY_ADMIN_TOKEN", "HIPOINK_API_SECRET", "ESL_ADMIN_TOKEN"),
    *("HIPOINK_PASSWORD", "SHOPIFY_API_KEY", "SHOPIFY_API_SECRET", "SHOPIFY_APPS"),
    *("WOOCOMMERCE_KEYS", "WOOCOMMERCE_WEBHOOK_SECRET", "FILES_FOLDERS"),
    *("ESL_ALERT_WEBHOOK_URL", "ESL_HEARTBEAT_URL", "ESL_OPERATOR_DATABASE_URL"),
)
PIPELINES = {
    *("ESL_DATABASE_URL", "ESL_DAGSTER_DATABASE_URL", "SUPABASE_SERVICE_KEY", "SHOPIFY_ADMIN_TOKEN"),
    *("HIPOINK_API_SECRET", "SHOPIFY_API_KEY", "SHOPIFY_API_SECRET", "SHOPIFY_APPS"),
    *("WOOCOMMERCE_KEYS", "FILES_FOLDERS", "ESL_ALERT_WEBHOOK_URL", "ESL_HEARTBEAT_URL"),
    "ESL_OPERATOR_DATABASE_URL",
}

HOW_TO_LOG = ("LOG_LEVEL", "app_environment")


@pytest.mark.parametrize(
    ("part", "secrets", "others"),
    [
        ("label server", set(), {"PATH", *HOW_TO_LOG}),
        ("shop", set(), {"PATH", *HOW_TO_LOG}),
        (
            "receiver",
            {
                *("ESL_DATABASE_URL", "SUPABASE_SERVICE_KEY", "ESL_ADMIN_TOKEN"),
                *("SHOPIFY_WEBHOOK_SECRET", "WOOCOMMERCE_WEBHOOK_SECRET"),
            },
            {"PATH", "SUPABASE_URL", "LOG_LEVEL", "app_environment", "https_proxy", "PGSSLMODE"},
        ),
        (
            "code server",
            PIPELINES,
            {
                *("PATH", "SUPABASE_URL", "LOG_LEVEL", "app_environment", "https_proxy", "PGSSLMODE"),
                *("DAGSTER_HOME", "AWS_SECRET_ACCESS_KEY"),
            },
        ),
        (
            "Dagster webserver",
            {"ESL_DAGSTER_DATABASE_URL"},
            {"PATH", "PGSSLMODE", "DAGSTER_HOME", *HOW_TO_LOG},
        ),
        ("Dagster daemon", {"ESL_DAGSTER_DATABASE_URL"}, {"PATH", "PGSSLMODE", "DAGSTER_HOME", *HOW_TO_LOG}),
    ],
)
def test_s40_a_part_is_given_what_is_named_for_it_and_nothing_else(
    part: str, secrets: set[str], others: set[str]
) -> None:
    plain = (
        "PATH",
        "SUPABASE_URL",
        "LOG_LEVEL",
        "app_environment",
        "https_proxy",
        "PGSSLMODE",
        "DAGSTER_HOME",
    )
    strangers = ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PATHOLOGY", "SSH_AUTH_SOCK")
    stack = Stack(load_settings(), Ports(), print)
    stack.environment = dict.fromkeys((*SECRETS, *plain, *strangers), "x")
    assert set(given_to(part, stack.environment)) == secrets | others


def test_s40_every_secret_setting_is_known_as_one() -> None:
    secret = {name.upper() for name, field in every_field().items() if "Secret" in str(field.annotation)}
    assert secret == set(SECRETS)
