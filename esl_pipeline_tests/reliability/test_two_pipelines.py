"""Two `esl-pipeline up`, each with a Dagster storage of its own, on one buffer: the webhook function on two machines,
or a deployment beside the old one. Each webhook goes to both."""

import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from esl_pipeline.buffer.migrate import migrate
from esl_pipeline.local.postgres import EmbeddedPostgres
from esl_pipeline.local.webserver import Webserver, WebserverError
from esl_pipeline.sandbox.shopify.delivery import WebhookSender
from esl_pipeline.sandbox.shopify.sandbox import ProductEdit, ShopifySandbox
from esl_pipeline.sandbox.shopify.server import running_shopify
from esl_pipeline.sandbox.shopify.shop import DOMAIN
from esl_pipeline_tests.reliability.outside import (
    STORE,
    WEBHOOK_SECRET,
    LabelServer,
    Senders,
    Traffic,
    map_shop,
    open_shop,
    pipeline_settings,
    scratch_home,
)
from esl_pipeline_tests.reliability.victim import Victim
from esl_pipeline_tests.waiting import eventually

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


@dataclass
class Pair:
    """Both pipelines, and what stands outside."""

    pipelines: tuple[Victim, Victim]
    labels: LabelServer
    shopify: ShopifySandbox
    senders: tuple[WebhookSender, WebhookSender]

    def is_right(self) -> bool:
        return not self.labels.wrong(list(self.shopify.shop.products.values()))

    def pushes(self) -> set[int]:
        """How often each label was sent, as different numbers."""
        return set(self.labels.state()["pushes"].get(STORE, {}).values())


@contextmanager
def _pair(home: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres.temporary())
        postgres.create_database("buffer")
        dsn = postgres.dsn("buffer")
        migrate(dsn)
        map_shop(dsn)
        (home / "outside").mkdir()
        labels = stack.enter_context(LabelServer(home / "outside"))
        pipelines = Victim(home / "one", {}), Victim(home / "two", {})
        senders = tuple(
            stack.enter_context(
                WebhookSender(
                    f"{pipeline.receiver}/webhooks/shopify",
                    WEBHOOK_SECRET,
                    retry_hours=4 / 60,
                    connections=4,
                )
            )
            for pipeline in pipelines
        )
        shop = open_shop(2)
        shopify = stack.enter_context(running_shopify(shop, sender=Senders(*senders)))  # type: ignore[arg-type]
        for pipeline in pipelines:
            pipeline.variables |= pipeline_settings(labels.url, shopify.url) | {"ESL_DATABASE_URL": dsn}
            stack.callback(pipeline.stop)
            pipeline.start()
        for pipeline in pipelines:
            pipeline.wait()
        yield Pair(pipelines, labels, shopify.sandbox, senders)  # type: ignore[arg-type]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with scratch_home("esl-two-") as home, _pair(home) as found:
        yield found


def _tell_all(pair: Pair, change: Callable[[ShopifySandbox], None]) -> float:
    """Change the shop and wait until all labels are right; the seconds it took."""
    began = time.monotonic()
    change(pair.shopify)
    for sender in pair.senders:
        assert sender.wait(60), sender.state(5)
    eventually(pair.is_right, 90, "all labels")
    return time.monotonic() - began


def _open(shopify: ShopifySandbox) -> None:
    for product in list(shopify.shop.products.values()):
        shopify.edit_product(product, ProductEdit(status="active"))


def test_two_pipelines_on_one_buffer_push_every_label_once(pair: Pair) -> None:
    def rename_all(shopify: ShopifySandbox) -> None:
        for product in list(shopify.shop.products.values()):
            shopify.edit_product(product, ProductEdit(title=f"{product.title} neu"))

    first = _tell_all(pair, _open)
    assert pair.pushes() == {1}
    again = _tell_all(pair, rename_all)
    assert pair.pushes() == {2}

    # Both reconcile the shop at the same time, as they would at night: there is nothing to do. Where both read it at
    # once, the later snapshot overtakes the earlier one, whose run fails (Dagster tries it again).
    def reconcile(pipeline: Victim) -> bool:
        webserver = Webserver(pipeline.ui)
        run_id = webserver.launch_night(f"shopify:{DOMAIN}")
        try:
            webserver.wait(run_id, 150)
        except WebserverError as error:
            print(error)
            return False
        return True

    with ThreadPoolExecutor() as pool:
        assert any(pool.map(reconcile, pair.pipelines))
    assert pair.pushes() == {2} and pair.is_right()

    delivered = [sender.state(0)["outcomes"]["delivered"] for sender in pair.senders]
    print(
        f"{delivered} webhooks to two receivers: labels {first:.1f} s, then {again:.1f} s; each pushed once"
    )


def test_two_pipelines_on_one_buffer_survive_the_kill_of_either(pair: Pair) -> None:
    traffic = Traffic(pair.shopify, random.Random(3))

    def change_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            traffic.change()
            time.sleep(0.1)

    _tell_all(pair, _open)
    change_for(10)
    for victim, other in (pair.pipelines, pair.pipelines[::-1]):
        victim.end(signal.SIGKILL)
        change_for(10)
        # The other one does everything; what the killed one had claimed comes back with its leases of 60 s.
        took = eventually(pair.is_right, 120, f"all labels by {other.home.name} alone")
        print(f"{victim.home.name} killed: all labels right by the other after {took:.1f} s")
        victim.start()
        change_for(5)
        victim.wait()
        change_for(5)
    eventually(pair.is_right, 120, "all labels with both")
    print(f"{traffic.made.total()} changes, {dict(traffic.made)}")
