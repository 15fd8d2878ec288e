"""What every registered source passes, whatever kind it is: see stands.py for how each is played.

A fourth source, made up here, is registered by one line; nothing else knows it.
"""

import base64
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.environment import SettingsError
from esl_pipeline.receiver.app import create_app
from esl_pipeline.settings import Settings, load_settings
from esl_pipeline.sources.registry import SOURCES
from esl_pipeline.sources.source import Source, SourceError
from esl_pipeline.stages.catch_up import read_changes
from esl_pipeline.stages.snapshot import SnapshotLostError, read_snapshot
from esl_pipeline_tests.hipoink.servers import Sandbox, client_of, running_sandbox
from esl_pipeline_tests.receiver.support import call
from esl_pipeline_tests.sources.stands import STANDS, A, B, Stand, Told, stand_of
from esl_pipeline_tests.world import World

# Labels that leave are the subject here, and stores are small.
UNGUARDED = {"guard_labels": 1_000, "guard_share_pct": 100}
STORES = ("S1", "S2")


@dataclass
class Bench:
    """A source's stand before the whole pipeline: receiver, buffer, label server."""

    stand: Stand
    world: World
    settings: Settings
    app: FastAPI

    @property
    def source(self) -> Source[Any]:
        return self.settings.sources[self.stand.system]

    def shop(self, shop: int = A) -> dict[str, str]:
        return {"source_system": self.stand.system, "source_store_id": self.stand.shops[shop]}

    def post(self, told: Told, **changes: Any) -> httpx.Response:
        body = changes.pop("body", told.body)
        return call(self.app, "POST", told.path, content=body, headers={**told.headers, **changes})

    def tell(self, *tellings: Told, shop: int = A) -> None:
        """What the shop says arrives, in this order."""
        for told in tellings:
            if told.path:
                assert self.post(told).status_code == 200
            else:
                self.stand.put_file(told, shop)
                self.catch_up(shop)

    def catch_up(self, shop: int = A) -> None:
        with self.source.reader(self.stand.shops[shop]) as reader:
            read_changes(self.world.buffer, reader, shop=self.shop(shop), run_id="catch-up")

    def night(self, shop: int = A) -> None:
        self.stand.before_a_whole_read(shop)
        with self.source.reader(self.stand.shops[shop]) as reader:
            read_snapshot(self.world.buffer, reader, shop=self.shop(shop), run_id="night")

    def prices(self, shop: int = A) -> dict[str, str]:
        self.world.settle()
        return self.world.prices(STORES[shop])


@pytest.fixture(scope="module")
def label_server() -> Iterator[Sandbox]:
    with running_sandbox() as sandbox:
        yield sandbox


@contextmanager
def bench_of(
    stand: Stand, buffer: Buffer, dsn: str, label_server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    for name, value in stand.environment().items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    label_server.clear()
    with client_of(label_server.url, retries=1, timeout_seconds=0.5) as client:
        world = World(buffer, dsn, label_server, client)
        for shop, store in zip(stand.shops, STORES, strict=True):
            world.map(shop=shop, store=store, source_system=stand.system, settings=UNGUARDED)
        yield Bench(stand, world, settings, create_app(settings, buffer))


@pytest.fixture(params=sorted(STANDS))
def bench(
    request: pytest.FixtureRequest,
    buffer: Buffer,
    buffer_dsn: str,
    label_server: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    with (
        stand_of(request.param, tmp_path) as stand,
        bench_of(stand, buffer, buffer_dsn, label_server, monkeypatch) as found,
    ):
        yield found


def test_every_source_has_a_stand() -> None:
    assert STANDS.keys() == SOURCES.keys()


@pytest.mark.long
def test_what_is_told_hangs_on_the_label_however_often_it_is_told(bench: Bench) -> None:
    made, changed = bench.stand.put(1, "1.00"), bench.stand.put(1, "2.00")
    bench.tell(made)
    assert bench.prices() == {"C-1": "1.00"}
    bench.tell(changed)
    assert bench.prices() == {"C-1": "2.00"}
    calls = bench.world.calls()
    bench.tell(changed, made)
    assert bench.prices() == {"C-1": "2.00"}
    assert bench.world.calls() == calls


def test_whatever_comes_first_the_newest_statement_holds(bench: Bench) -> None:
    first, second, third = (bench.stand.put(1, price) for price in ("1.00", "2.00", "3.00"))
    bench.tell(third, first, second)
    assert bench.prices() == {"C-1": "3.00"}


def test_what_was_deleted_stays_deleted_for_what_is_older(bench: Bench) -> None:
    made = bench.stand.put(1, "1.00")
    late = bench.stand.put(1, "1.50")
    bench.tell(made, bench.stand.put(2, "2.00"))
    assert bench.prices() == {"C-1": "1.00", "C-2": "2.00"}
    bench.tell(bench.stand.delete(1), late)
    assert bench.prices() == {"C-2": "2.00"}


def test_a_read_of_everything_needs_nothing_told_and_removes_what_is_gone(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.stand.put(number, f"{number}.00")
    bench.night()
    assert bench.prices() == {"C-1": "1.00", "C-2": "2.00", "C-3": "3.00"}
    bench.stand.delete(2)
    bench.stand.put(3, "3.50")
    bench.night()
    assert bench.prices() == {"C-1": "1.00", "C-3": "3.50"}
    calls = bench.world.calls()
    bench.night()
    assert bench.prices() == {"C-1": "1.00", "C-3": "3.50"} and bench.world.calls() == calls


@pytest.mark.long
def test_a_read_that_breaks_half_way_concludes_nothing(bench: Bench) -> None:
    for number in range(1, 7):
        bench.stand.put(number, f"{number}.00")
    bench.night()
    everything = bench.prices()
    assert len(everything) == 6
    bench.stand.delete(1)
    bench.stand.break_a_read()
    try:
        bench.night()
    except (SourceError, SnapshotLostError) as error:
        assert not any(canary in str(error) for canary in bench.stand.canaries)
    assert bench.prices() == everything
    bench.stand.mend()
    bench.night()
    assert bench.prices() == {code: price for code, price in everything.items() if code != "C-1"}


def test_changes_are_read_although_nothing_was_told(bench: Bench) -> None:
    bench.stand.put(1, "1.00")
    bench.night()
    # Whoever sends files tells by them, so that one has to arrive.
    told = bench.stand.put(1, "1.20")
    if not told.path:
        bench.stand.put_file(told)
    bench.catch_up()
    assert bench.prices() == {"C-1": "1.20"}


@pytest.mark.long
def test_equal_ids_of_two_shops_are_two_products_unless_the_source_says_otherwise(bench: Bench) -> None:
    bench.tell(bench.stand.put(1, "1.00", A))
    bench.tell(bench.stand.put(1, "9.00", B), shop=B)
    bench.tell(bench.stand.put(1, "1.10", A))
    theirs = {} if bench.source.ids_are_global else {"C-1": "9.00"}
    assert (bench.prices(A), bench.prices(B)) == ({"C-1": "1.10"}, theirs)
    if not bench.source.ids_are_global:
        bench.tell(bench.stand.delete(1, B), shop=B)
        assert (bench.prices(A), bench.prices(B)) == ({"C-1": "1.10"}, {})


def test_only_what_is_signed_is_kept(bench: Bench) -> None:
    told = bench.stand.put(1, "1.00")
    webhooks = bench.source.webhooks()
    assert (webhooks is not None) == bench.stand.sends_webhooks == bool(told.path)
    if webhooks is None:
        assert call(bench.app, "POST", f"/webhooks/{bench.stand.system}").status_code == 404
        return
    header = webhooks.signature_header
    right = told.headers[header]
    others = call(bench.app, "POST", told.path, content=told.body)
    assert others.status_code == 401
    for changes in ({"body": told.body + b" "}, {header: right[:-4] + "AAA="}, {header: ""}):
        assert bench.post(told, **changes).status_code == 401
    assert bench.world.inbox() == []
    assert bench.post(told).status_code == 200
    assert bench.post(told).json()["status"] == "duplicate"
    assert bench.world.inbox() == ["ready"]


def test_all_that_is_wrong_with_the_settings_is_said_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bench.stand.nonsense.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert {problem.partition(":")[0] for problem in refused.value.problems} == bench.stand.nonsense.keys()


def test_no_secret_is_in_what_is_said(bench: Bench) -> None:
    source = bench.source
    said = [repr(source), repr(source.settings), str(source.settings), repr(bench.settings)]
    with source.reader(bench.stand.shops[A]) as reader:
        said.append(repr(reader))
    with pytest.raises(SourceError) as unknown:
        source.reader("no-such-shop")
    said.append(str(unknown.value))
    said += [check.says for check in source.checks(list(bench.stand.shops), list(bench.stand.shops))]
    assert not [text for text in said for canary in bench.stand.canaries if canary in text]


def test_a_shop_has_one_name_and_is_opened_by_it(bench: Bench) -> None:
    source = bench.source
    for shop in bench.stand.shops:
        assert type(source).shop_id(shop) == shop == type(source).shop_named(f" {shop} ")
    assert source.opens(bench.stand.shops[A]) and source.reads_any
    assert type(source).shop_id(type(source).example_shop) and type(source).shop_id("no shop!") is None


def test_a_finding_names_the_row_and_the_label_stays(bench: Bench) -> None:
    bench.tell(bench.stand.put(1, "1.00"))
    assert bench.prices() == {"C-1": "1.00"}
    bench.tell(bench.stand.put(1, "abc"))
    assert bench.prices() == {"C-1": "1.00"}
    assert {check for _, check in bench.world.findings()} & {"price_form", "price_missing"}
    (place,) = bench.world.buffer.trace("C-1")
    (variant,) = place["variants"]
    assert variant["label_state"] == "held" and variant["findings"]


TOY = Path(__file__).parent / "toy.py"


@pytest.mark.long
def test_a_fourth_source_is_sixty_lines_and_one_more(
    buffer: Buffer, buffer_dsn: str, label_server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered by one line it gets webhooks, reads of everything, findings and trace."""
    from esl_pipeline_tests.sources import toy

    assert len(TOY.read_text(encoding="utf-8").splitlines()) <= 60
    monkeypatch.setitem(SOURCES, "toy", toy.ToySource)
    settings = load_settings()
    app = create_app(settings, buffer)
    label_server.clear()

    def say(row: dict[str, Any], shop: str = "a", key: bytes = b"toy") -> int:
        raw = json.dumps(row).encode()
        headers = {
            "X-Topic": "changed",
            "X-Shop": shop,
            "X-Sign": base64.b64encode(hmac.digest(key, raw, "sha256")),
        }
        return call(app, "POST", "/webhooks/toy/changed", content=raw, headers=headers).status_code

    def toy_row(number: int, price: str, second: int) -> dict[str, Any]:
        return {
            "id": number,
            "barcode": f"T-{number}",
            "price": price,
            "at": f"2026-01-01T00:00:{second:02}+00:00",
        }

    with client_of(label_server.url, retries=1, timeout_seconds=0.5) as client:
        world = World(buffer, buffer_dsn, label_server, client)
        for shop, store in (("a", "S1"), ("b", "S2")):
            world.map(shop=shop, store=store, source_system="toy", settings=UNGUARDED)
        # Webhooks: two shops with one id, an old one late, a forged one.
        assert [say(toy_row(1, "2.00", 2)), say(toy_row(1, "1.00", 1)), say(toy_row(1, "9.00", 1), "b")] == [
            200
        ] * 3
        assert say(toy_row(1, "0.01", 3), key=b"not the key") == 401
        world.settle()
        assert (world.prices("S1"), world.prices("S2")) == ({"T-1": "2.00"}, {"T-1": "9.00"})
        # The night: one price has changed, one product has come with a price that is none, one is gone.
        say(toy_row(3, "3.00", 1))
        toy.SHELVES["a"] = [toy_row(1, "2.50", 4), toy_row(2, "cheap", 4)]
        shop = {"source_system": "toy", "source_store_id": "a"}
        with settings.sources["toy"].reader("a") as reader:
            read_snapshot(buffer, reader, shop=shop, run_id="night")
        world.settle()
        assert world.prices("S1") == {"T-1": "2.50"}
        assert world.findings() == {("2", "price_form")}
        (place,) = buffer.trace("T-1", store="S1")
        assert place["deliveries"] and place["variants"][0]["price"] == "2.50"
    assert f"{toy.ToySource.system}_products" == toy.ToySource.products_asset()
