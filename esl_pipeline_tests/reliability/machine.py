"""The state machine: a model of two shops and five stores against the real functions, stages and two label servers.

test_state_machine.py runs it briefly, long_machine.py for as long as you like, breaks.py against broken code.
"""

import base64
import copy
import hashlib
import itertools
import json
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import psycopg
import psycopg.rows
import stamina
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.buffer.errors import ActionRefused, BufferError
from esl_pipeline.hipoink import HipoinkClient
from esl_pipeline.hipoink.paging import Page
from esl_pipeline.labels.lengths import MOST_PARTS, MOST_VARIANTS
from esl_pipeline.model.push import PushRules
from esl_pipeline.sandbox.label_server.store import LabelStore
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.deliveries import delivery
from esl_pipeline.sources.shopify.facts import read_deliveries
from esl_pipeline.sources.source import OnStart, Reader, SourceError
from esl_pipeline.stages import drift as drift_stage
from esl_pipeline.stages import snapshot as snapshot_stage
from esl_pipeline.stages.drain import Portion, read_round
from esl_pipeline.stages.inbox import read_inbox
from esl_pipeline.stages.push import push_batch
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.reliability import model
from esl_pipeline_tests.reliability.light import light_evaluation
from esl_pipeline_tests.reliability.model import MappingModel, Place, Shown, Told, Verdict
from esl_pipeline_tests.reliability.stepping import LABEL_SERVER, SLOT, Fate, Job, Worker
from esl_pipeline_tests.whole import whole
from esl_pipeline_tests.world import ASSET, RULES, World, drain_round, product, variant, when

# What the code cannot do yet. ESL_MACHINE_ON=a,b tries some of them all the same.
NOT_YET: tuple[str, ...] = ()


@dataclass
class Faults:
    """Which faults the machine may make beside those that it always makes. ESL_MACHINE_OFF=a,b switches some off."""

    page_slips: bool = True  # the label server's list: a row comes and one goes between two pages
    empty_variants: bool = True  # a body with "variants": []
    unsaid_keys: bool = True  # a body without a key
    there_and_back: bool = True  # three versions in a second, the third with the body of the first
    levels_in_a_second: bool = True  # two levels with one updated_at
    levels_gone: bool = True  # stock no longer kept at the location: a message, and what a read does not have
    late_orders: bool = True  # app/uninstalled and shop/redact older than what the shop has said since
    real_uninstall: bool = True
    bad_settings: bool = True  # no valid policy
    absurd_settings: bool = True  # nor anything that SQL can calculate with
    label_refused: bool = True  # a label that the server refuses, for as long as the fault stands
    label_forbidden: bool = True  # the same with HTTP 403
    label_crashes: bool = True  # the same with HTTP 500
    store_refuses: bool = True  # the server refuses everything of one store
    busy: bool = True  # the server refuses everything for a few calls: no label may be blamed
    windows: bool = True  # a raise window that is closed
    leaving: bool = True  # on_delete and on_unpublish other than remove
    guards: bool = True  # guard_labels and max_change_pct change at any time; changes wait unapproved
    two_stores: bool = True  # a second mapping of a shop
    two_servers: bool = True  # some stores are at another label server, and stores move from one to the other
    dry_runs: bool = True  # a mapping in dry run with a wrong template
    held_claims: bool = True  # a variant with an error keeps its claim
    graces: bool = (
        True  # removals wait, with their labels blank or as they were; time passes, or devices are read
    )
    left_stores: bool = True  # what a mapping has left behind in another store goes, whatever it was
    edits_among_rivals: bool = (
        True  # a label of a variant that has left, kept because others collide there, is edited
    )
    removals_in_doubt: bool = True  # a removal without an answer, and then the label must stay
    findings: bool = True  # collisions are found as they are
    accuracy: bool = True  # esl_accuracy says what the oracle says
    taken: bool = True  # shops with secrets of their own send products with the ids of another shop's
    sizes: bool = (
        True  # texts and codes around their limits, bodies of megabytes, more variants than a product has
    )

    def __post_init__(self) -> None:
        off = set(NOT_YET) - set(os.environ.get("ESL_MACHINE_ON", "").split(","))
        for name in [*off, *filter(None, os.environ.get("ESL_MACHINE_OFF", "").split(","))]:
            assert hasattr(self, name), f"there is no fault called {name}"
            setattr(self, name, False)

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]


FAULTS = Faults()

SLOTS = (1, 2, 3)
TAKEN = 4  # the slot whose products have the ids of the other shop's first slot
ALL_SLOTS = st.sampled_from((*SLOTS, TAKEN))
WORKERS = (0, 1, 2, 3)
SERVERS = ("default", "north")
STORES = ("A1", "A2", "A3", "B1", "B2")
SHOPS = st.sampled_from("AB")
CODES = st.sampled_from(["own"] * 5 + ["X", None])
PRICES = st.sampled_from(["new"] * 4 + ["old"] * 2 + ["zero", None])
Variants = list[tuple[str | None, str | None]]
VARIANTS: st.SearchStrategy[Variants] = st.lists(st.tuples(CODES, PRICES), min_size=1, max_size=2)
BUSY: dict[str, Any] = {"kind": "error", "error_msg": "system busy, try again later"}
ONCE: list[dict[str, Any]] = [
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 500, "apply": True},
    {"kind": "status", "status": 429, "retry_after": "30"},
    {"kind": "status", "status": 401},
    {"kind": "reset", "apply": True},  # to the client the same as a time-out after acceptance
    {"kind": "reset"},
    {"kind": "error", "error_msg": "no"},
    {"kind": "error", "error_msg": "no", "apply": True},
    {"kind": "text"},
    {"kind": "bad_codes", "codes": ["own-11"], "apply": True},
]
ONCE_OR_NOT = st.sampled_from([None, None, *ONCE])
FATES: st.SearchStrategy[Fate] = st.sampled_from(["go"] * 5 + ["repeat", "lose", "fail", "kill", "kill"])
TOPICS = ("products/create", "products/update", "products/delete")
POLICIES = [
    *(
        "prefix",
        "prefix",
        "window",
        "window",
        "leaving",
        "leaving",
        "guard",
        "guard",
        "grace",
        "grace",
        "grace",
    ),
    *("bad", "absurd", "mend", "mend", "dry", "live"),
]
FOREIGN = "FOREIGN"
# Less than what the model's clock is behind: when a mapping was switched on is long ago.
GRACE_HOURS = 2
WITH_A_BATCH = (SLOT, LABEL_SERVER, "esl_push_finish")
PREFIX = "New: "
WRONG = "WRONG "  # of a policy that was never live: on no label, ever
LIFECYCLE = ("app/uninstalled", "shop/redact")
# What a round of the machine reads, as much as one may.
AT_ONCE = Portion(MAX_ROWS_PER_CALL)
# What failed waits until the machine says that time has passed, so that an example does not depend on the clock.
SLOW = replace(
    RULES,
    initial_delay=600,
    max_delay=600,
    max_refusals=PushRules().max_refusals,
    refused_delay=600,
    max_refused_delay=600,
    pause=600,
    max_pause=600,
)
# Settings that are no policy; then such as SQL cannot calculate with either.
BAD: list[Any] = [
    {"duplicate_rule": "toss a coin"},
    {"title_template": "{nonsense}"},
    {"statuses": "active", "unknown": 1},
]
ABSURD: list[Any] = [
    {"guard_labels": 3_000_000_000},
    {"guard_labels": "many"},
    {"guard_labels": -1, "guard_share_pct": 10**12},
    {"max_change_pct": 10**200},
    {"max_held_share_pct": 3_000_000_000},
    {"raise_window": {"opens": "08:00", "closes": "09:00", "time_zone": "localtime"}},
    {"raise_window": {"opens": "08:00", "closes": "09:00", "time_zone": "Mars/Phobos"}},
    {"raise_window": {"opens": "25:99", "closes": 7, "time_zone": "UTC"}},
    {"raise_window": "at night"},
    {"show_compare_at": "if_prior_30d_ok", "guard_labels": None},
]


@dataclass
class Site:
    """One label server, and the world as its drain sees it."""

    labels: LabelStore
    world: World


@dataclass
class Parts:
    """What is real: one buffer and two label servers for all examples, emptied before each."""

    sites: Mapping[str, Site]
    connection: psycopg.Connection[dict[str, Any]]
    workers: list[Worker]

    @property
    def world(self) -> World:
        return self.sites[SERVERS[0]].world

    @property
    def labels(self) -> LabelStore:
        return self.sites[SERVERS[0]].labels

    def empty(self) -> None:
        """Forget the last example."""
        self.sql(
            "do $$ begin set local session_replication_role = replica; execute (select 'truncate ' ||"
            " string_agg(format('esl.%I', relname), ',') from pg_class where relkind = 'r'"
            " and relnamespace = 'esl'::regnamespace and relname <> 'schema_migrations'); end $$"
        )
        for site in self.sites.values():
            site.labels.clear()

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Look (or tamper) behind the functions."""
        cursor = self.connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def shelves(self, placed: Mapping[str, str]) -> dict[str, dict[str, dict[str, Any]]]:
        """The records that hang, by store and code, at the label server where each store is."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, site in self.sites.items():
            for row in site.labels._all("select store, code, record from label"):
                if placed[row["store"]] == name:
                    found.setdefault(row["store"], {})[row["code"]] = json.loads(row["record"])
        return found


@dataclass
class Message:
    """One webhook as Shopify made it. heard: what the shop's Told makes of it, once it is delivered."""

    shop: str
    topic: str
    body: dict[str, Any]
    triggered_at: str
    webhook_id: str
    heard: Callable[[], None]
    triggered: float
    delivered: bool = False


@dataclass
class ShopModel:
    """What one shop says now, and what each of its variants said at which version."""

    domain: str
    mappings: list[MappingModel]
    products: dict[int, dict[str, Any]] = field(default_factory=dict)
    remade: dict[int, int] = field(default_factory=lambda: dict.fromkeys((*SLOTS, TAKEN), 0))
    levels: dict[int, tuple[float, int]] = field(default_factory=dict)  # item: (second, available)
    said: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    is_certain: bool = True  # whether told is exact: a read that was killed may have told a part
    reading: "Catalogue | None" = None

    @property
    def key(self) -> dict[str, str]:
        return {"source_system": "shopify", "source_store_id": self.domain}

    def on_shelf(self) -> list[dict[str, Any]]:
        """The variants of active products, each with its product's title."""
        return [
            item | {"of": model.kept(body["title"])}
            for body in self.products.values()
            if body["status"] == "active"
            for item in body["variants"]
        ]

    def truth(self) -> Told:
        """What is told once everything is."""
        told = Told()
        for body in self.products.values():
            told.hear(body["id"], 1, 1, body)
        for item, (at, available) in self.levels.items():
            told.hear_level(item, at, at, available)
        return told


class Catalogue(Reader):
    """The model as the source of a full reconciliation; a part is a product, and it may break off before the end."""

    def __init__(self, shop: ShopModel, as_of: float, parts: int | None) -> None:
        self.model, self.as_of, self.parts = shop, as_of, parts
        self.bodies = [copy.deepcopy(body) for body in shop.products.values()]
        self.seconds = {body["id"]: body.pop("second") for body in self.bodies}
        self.levels = dict(shop.levels)

    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        on_start(datetime.fromisoformat(when(self.as_of)))  # type: ignore[arg-type]
        for body in self.bodies[: self.parts]:
            raw = json.dumps(body).encode()
            said = self.model.key | {
                "id": 0,
                "topic": "products/update",
                "body_base64": base64.b64encode(raw).decode(),
                "body_sha256": hashlib.sha256(b"read" + raw).hexdigest(),
                "received_at": datetime.now(UTC).isoformat(),
                "triggered_at": when(self.as_of),  # type: ignore[arg-type]
            }
            facts = whole(read_deliveries([said]))
            for row in [*facts.products, *facts.variants]:
                row["event_ids"] = []
            for row in facts.products:
                row["variant_ids"] = None
            facts.events.clear()
            yield facts
        if self.parts is not None:
            raise SourceError("the download broke off")

    def changes(self, since: datetime) -> Iterator[Facts]:
        raise NotImplementedError

    def stock(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        on_start(datetime.fromisoformat(when(self.as_of)))  # type: ignore[arg-type]
        yield Facts(
            levels=[
                self.model.key
                | {
                    "inventory_item_id": str(item),
                    "location_id": model.LOCATION,
                    "available": available,
                    "updated_at": when(at),  # type: ignore[arg-type]
                    "triggered_at": when(self.as_of),  # type: ignore[arg-type]
                    "body_sha256": hashlib.sha256(f"{item} {available}".encode()).hexdigest(),
                }
                for item, (at, available) in self.levels.items()
            ]
        )

    def heard(self) -> None:
        """The read is over: this is what it told."""
        told = self.model.told
        for body in self.bodies[: self.parts]:
            told.hear(body["id"], self.seconds[body["id"]], self.as_of, body)
        if self.parts is not None:
            return
        there = {body["id"] for body in self.bodies}
        for slot, remade in self.model.remade.items():
            letter = self.model.mappings[0].shop
            for number in (_product_id(letter, slot, n) for n in range(remade + 1)):
                if number not in there:
                    told.hear(number, self.as_of, self.as_of, None)
        if any(mapping.shows_stock and mapping.is_active for mapping in self.model.mappings):
            for item, (at, available) in self.levels.items():
                told.hear_level(item, at, self.as_of, available)
            for item in set(told.levels) - set(self.levels):
                told.hear_level(item, self.as_of, self.as_of, None)


def _product_id(letter: str, slot: int, remade: int) -> int:
    """Ids are unique over all shops and for ever, but for those that a shop takes."""
    if slot == TAKEN:
        letter, slot = "B" if letter == "A" else "A", SLOTS[0]
    return 1_000 * (1 + "AB".index(letter)) + 10 * remade + slot


class Slipping(HipoinkClient):
    """A client of which somebody else's label goes and another one comes between page 1 and the rest of a list."""

    @classmethod
    def of(cls, client: HipoinkClient) -> "Slipping":
        slipping = copy.copy(client)
        slipping.__class__ = cls
        return slipping  # type: ignore[return-value]

    def query_page(self, store_code: str, page: int, size: int) -> Page:
        ours = super().query_page(store_code, 1, 1_000).rows
        before, after = [_listed("F-went"), *ours], [*ours, _listed("F-came")]
        rows = before if page == 1 else after
        return Page(rows[(page - 1) * size : page * size], 0, 0)

    def query_count(self, store_code: str) -> int:
        return super().query_count(store_code) + 1


def _listed(code: str) -> dict[str, object]:
    return {"product_code": code, "product_name": "not ours", "product_price": "1.00", "enabled": 1}


class Machine(RuleBasedStateMachine):
    """Each version has a number. The price of a variant is the number of the version that set it."""

    parts: Parts
    faults: Faults = FAULTS
    went_well: list[bool] = []  # noqa: RUF012 # of each example that was run

    def __init__(self) -> None:
        super().__init__()
        self.trouble_before = sys.exc_info()[1]
        self.parts.empty()
        self.world, self.workers = self.parts.world, self.parts.workers
        self.version = self.second = 0
        mappings = {
            "A": [MappingModel("A", ["A2", "A1"])],
            "B": [MappingModel("B", ["B2", "B1"], shows_stock=True)],
        }
        if self.faults.two_stores:
            mappings["A"].append(MappingModel("A", ["A3"], shows_stock=True))
        self.shops = {
            letter: ShopModel(f"shop-{letter.lower()}.myshopify.com", mappings[letter]) for letter in "AB"
        }
        self.messages: list[Message] = []
        self.numbers = itertools.count(1)
        self.sent: set[tuple[str, str, str]] = set()
        self.acknowledged: set[tuple[str, str, str]] = set()
        self.to_compare: set[str] = set()  # stores of whose labels somebody else has changed one
        # Codes of a store that a comparison says it puts right no more.
        self.given_up: dict[str, set[str]] = {}
        self.was_late = False
        # Faults of the label servers that stay until they are lifted.
        self.standing: dict[str, list[dict[str, Any]]] = {name: [] for name in SERVERS}
        self.placed = dict.fromkeys(STORES, SERVERS[0])  # the label server of each store
        self.was_at = {store: {SERVERS[0]} for store in STORES}
        self.push_rules = SLOW
        self.blamed: set[str] = {"own-11"}  # codes that the label server has ever refused by themselves
        self.started = False
        self.own_secrets = False
        for name, site in self.parts.sites.items():
            site.world.sandbox.faults()
            self._rules[name] = []

    @property
    def mappings(self) -> list[MappingModel]:
        return [mapping for shop in self.shops.values() for mapping in shop.mappings]

    @initialize(
        guard=st.sampled_from([1, 1000]),
        own_secrets=st.booleans(),
        north=st.sets(st.sampled_from(STORES)),
        concurrency=st.sampled_from([1, 2, 4, 4]),
    )
    def stock(self, guard: int, own_secrets: bool, north: set[str], concurrency: int) -> None:
        self.started, self.own_secrets = True, own_secrets and self.faults.taken
        self.push_rules = replace(SLOW, concurrency=concurrency)
        for site in self.parts.sites.values():
            site.world.rules = self.push_rules
        for worker in self.workers:
            worker.concurrency = concurrency
        for letter, shop in self.shops.items():
            for mapping in shop.mappings:
                mapping.guard = guard
                mapping.id = self.world.map(shop.domain, mapping.store, settings=self._settings(mapping))
                if mapping.store in north and self.faults.two_servers:
                    self._move_to(mapping, SERVERS[1])
            self._date_activation(shop, 0)
            for slot in SLOTS[:2]:
                self._edit(letter, slot, [("own", "new")])
        self._deliver_all()
        self._round()

    def teardown(self) -> None:
        is_well = sys.exc_info()[1] is self.trouble_before  # else a step has failed
        try:
            if self.started and is_well:
                is_well = False
                self._converge()
                is_well = True
        finally:
            self.went_well.append(is_well)
            for worker in self.workers:
                worker.kill()

    # --- at Shopify

    @rule(
        letter=SHOPS,
        slot=ALL_SLOTS,
        variants=st.one_of(VARIANTS, VARIANTS, VARIANTS, VARIANTS, st.none()),
        title=st.sampled_from(["old", "old", "new"]),
        status=st.sampled_from(["active"] * 6 + ["draft"]),
        at_once=st.sampled_from([False, False, True]),
        deliver=st.sampled_from([True, True, False]),
    )
    def edit(
        self,
        letter: str,
        slot: int,
        variants: Variants | None,
        title: str,
        status: str,
        at_once: bool,
        deliver: bool,
    ) -> None:
        """A product is changed, made or made again, or deleted; at_once: within the second of the last change."""
        slot = self._slot(slot)
        if variants is None:
            self._delete(letter, slot)
        else:
            self._edit(letter, slot, variants, title=title, status=status, at_once=at_once)
        if deliver:
            self._deliver(self.messages[-1])

    def _slot(self, slot: int) -> int:
        """Where a secret is shared, evidence decides whose a thing is (test_s31): nothing is taken there."""
        return SLOTS[0] if slot == TAKEN and not self.own_secrets else slot

    @rule(
        letter=SHOPS,
        slot=ALL_SLOTS,
        what=st.sampled_from(["title", "title", "code", "code", "body", "variants", "parts"]),
        over=st.sampled_from([-1, 0, 1, 1_000, 100_000]),
    )
    @precondition(lambda self: self.faults.sizes)
    def outgrow(self, letter: str, slot: int, what: str, over: int) -> None:
        """A text around its longest, a body larger than an ordinary round reads, more parts than any product has."""
        slot, shop = self._slot(slot), self.shops[letter]
        match what:
            case "title":
                self._edit(letter, slot, [("own", "new")], title="L" * (model.LONGEST_TEXT + over))
            case "code":
                code = f"L{slot}".ljust(model.LONGEST_CODE + over, "L")
                self._edit(letter, slot, [(code, "new")])
            case "body":
                self._edit(letter, slot, [("own", "new")], text="L" * (300_000 + over))
            case _ if slot in shop.products:
                self._deliver_all(letter)
                triggered = self._tick()
                listed = [{}] * (MOST_VARIANTS + 1) if what == "variants" else [[]] * MOST_PARTS
                body = shop.products[slot] | {"variants": listed, "updated_at": when(self.second)}
                body.pop("second")
                self._post(letter, "products/update", body, triggered, lambda: None)
            case _:
                return
        self._deliver(self.messages[-1])

    def _edit(
        self,
        letter: str,
        slot: int,
        variants: Variants,
        *,
        title: str = "old",
        status: str = "active",
        at_once: bool = False,
        text: str = "",
    ) -> None:
        shop = self.shops[letter]
        triggered = self._tick(at_once)
        before = shop.products.get(slot)
        number = _product_id(letter, slot, shop.remade[slot])
        old = {item["id"]: item["price"] for item in before["variants"]} if before else {}
        new = f"{self.version}.00"
        rows = []
        for place, (code, price) in enumerate(variants, start=1):
            item = 10 * number + place
            prices = {
                "new": new,
                "old": old.get(item, new),
                "plain": "9999.00",
                "zero": "0.00",
                "cheap": f"{self.version / 100:.2f}",
                None: None,
            }
            barcode = f"own-{slot}{place}" if code == "own" else code
            rows.append(variant(item, barcode, prices[price], sku=f"{letter}{item}"))
        names = {"new": f"Title {self.version}", "old": f"Title {self.version}", "plain": "Title 0"}
        name = before["title"] if before and title == "old" else names.get(title, title)
        shop.products[slot] = product(number, self.second, rows, title=name, status=status, body_html=text)
        self._say(letter, "products/update" if before else "products/create", slot, triggered)

    def _delete(self, letter: str, slot: int) -> None:
        """Shopify never uses an id again: who makes the product again makes another one."""
        shop = self.shops[letter]
        if gone := shop.products.pop(slot, None):
            shop.remade[slot] += 1
            triggered = self._tick()
            self._post(
                letter,
                "products/delete",
                {"id": gone["id"]},
                triggered,
                lambda: shop.told.hear(gone["id"], triggered, triggered, None),
            )

    def _tick(self, at_once: bool = False) -> float:
        """The next version; when its webhook was triggered."""
        self.version += 1
        self.second += not at_once
        return self.second + self.version / 10_000

    def _say(self, letter: str, topic: str, slot: int, triggered: float, without: Sequence[str] = ()) -> None:
        shop = self.shops[letter]
        body = shop.products[slot] = shop.products[slot] | {"second": self.second}
        second = self.second
        for item in shop.on_shelf():
            shop.said.setdefault((item["sku"], item["of"] + str(item["price"])), []).append(self.version)
        message = {name: value for name, value in body.items() if name != "second" and name not in without}
        message["variants"] = [
            {name: value for name, value in item.items() if "variants." + name not in without}
            for item in body["variants"]
        ]
        self._post(
            letter,
            topic,
            message,
            triggered,
            lambda: shop.told.hear(body["id"], second, triggered, body, is_whole=not without),
        )

    def _post(
        self, letter: str, topic: str, body: dict[str, Any], triggered: float, heard: Callable[[], None]
    ) -> None:
        at = when(triggered)  # type: ignore[arg-type]
        name = f"webhook-{len(self.messages)}"
        self.messages.append(Message(letter, topic, body, at, name, heard, triggered))

    @rule(
        letter=SHOPS,
        slot=st.sampled_from(SLOTS),
        what=st.sampled_from(["empty", "unsaid", "there and back"]),
        key=st.sampled_from(["status", "title", "variants.price", "variants.barcode", "variants.sku"]),
    )
    @precondition(
        lambda self: self.faults.empty_variants or self.faults.unsaid_keys or self.faults.there_and_back
    )
    def say_oddly(self, letter: str, slot: int, what: str, key: str) -> None:
        """A body that lacks its variants (which is never true) or a key (which says nothing of it); or a price that
        comes and goes within a second."""
        shop = self.shops[letter]
        before = shop.products.get(slot)
        if before is None:
            return
        if what == "empty" and self.faults.empty_variants:
            self._deliver_all(letter)
            triggered = self._tick()
            lie = before | {"variants": [], "variant_gids": [], "updated_at": when(self.second)}
            lie.pop("second")
            self._post(letter, "products/update", lie, triggered, lambda: None)
            self._deliver(self.messages[-1])
        elif what == "unsaid" and self.faults.unsaid_keys:
            self._deliver_all(letter)
            triggered = self._tick()
            body = before | {"updated_at": when(self.second)}
            if key != "title":
                body["title"] = f"Title {self.version}"
            body["variants"] = [
                item | ({"price": f"{self.version}.00"} if key != "variants.price" and item["price"] else {})
                for item in before["variants"]
            ]
            shop.products[slot] = body
            self._say(letter, "products/update", slot, triggered, [key])
            self._deliver(self.messages[-1])
        elif what == "there and back" and self.faults.there_and_back:
            self._change_price(letter, slot)
            first = shop.products[slot]
            self._edit(letter, slot, [("own", "new")] * len(first["variants"]), at_once=True)
            self._deliver(self.messages[-1])
            shop.products[slot] = first
            self._say(letter, "products/update", slot, self._tick(at_once=True))
            self._deliver(self.messages[-1])

    @rule(
        letter=SHOPS,
        slot=st.sampled_from(SLOTS),
        what=st.sampled_from(["another second"] * 2 + ["the same second"] * 2 + ["gone"]),
        deliver=st.sampled_from([True, True, False]),
    )
    def stock_changes(self, letter: str, slot: int, what: str, deliver: bool) -> None:
        """The stock of a product's first variant: once, or twice within a second."""
        shop = self.shops[letter]
        if (body := shop.products.get(slot)) is None:
            return
        item = body["variants"][0]["inventory_item_id"]
        if what == "the same second" and self.faults.levels_in_a_second:
            self._stock_changes(shop, letter, item, "another second")
            if not deliver:
                self._stock_changes(shop, letter, item, what)
                self._deliver(self.messages[-1])
                self._deliver(self.messages[-2])
                return
            self._deliver(self.messages[-1])
        self._stock_changes(shop, letter, item, what)
        if deliver:
            self._deliver(self.messages[-1])

    def _stock_changes(self, shop: ShopModel, letter: str, item: int, what: str) -> None:
        triggered = self._tick(at_once=what == "the same second" and self.faults.levels_in_a_second)
        at, version = float(self.second), self.version
        if what == "gone" and self.faults.levels_gone and item in shop.levels:
            del shop.levels[item]
            self._post(
                letter,
                "inventory_levels/disconnect",
                {"inventory_item_id": item, "location_id": int(model.LOCATION)},
                triggered,
                lambda: shop.told.hear_level(item, triggered, triggered, None),
            )
        else:
            shop.levels[item] = (at, version)
            self._post(
                letter,
                "inventory_levels/update",
                {
                    "inventory_item_id": item,
                    "location_id": int(model.LOCATION),
                    "available": version,
                    "updated_at": when(self.second),
                },
                triggered,
                lambda: shop.told.hear_level(item, at, triggered, version),
            )

    @rule(letter=SHOPS, what=st.sampled_from(["late uninstall", "late redact", "uninstall", "uninstall"]))
    @precondition(lambda self: self.faults.late_orders or self.faults.real_uninstall)
    def leaves(self, letter: str, what: str) -> None:
        """The shop uninstalls the app; or a message says so that is older than what it has said since."""
        shop = self.shops[letter]
        if what == "uninstall" and self.faults.real_uninstall:
            if not any(mapping.is_active for mapping in shop.mappings):
                return
            triggered = self._tick()
            self._send_order(shop, "app/uninstalled", triggered)
            for mapping in shop.mappings:
                mapping.is_active = False
        elif what != "uninstall" and self.faults.late_orders:
            if shop.told.newest <= 1:
                return
            topic = "app/uninstalled" if what == "late uninstall" else "shop/redact"
            self._send_order(shop, topic, shop.told.newest - 0.5)
            self.parts.sql("update esl.redactions set not_before = now()")
            while self.world.buffer.housekeep(keep_bodies_days=30)["more"]:
                pass

    def _send_order(self, shop: ShopModel, topic: str, triggered: float) -> None:
        body = {"shop_id": 1, "shop_domain": shop.domain}
        if topic == "app/uninstalled":
            at = when(triggered)  # type: ignore[arg-type]
            body = {"id": 1, "myshopify_domain": shop.domain, "updated_at": at}
        self._send(shop.domain, topic, body, when(triggered), f"order-{next(self.numbers)}")  # type: ignore[arg-type]

    # --- on the way

    @rule(
        data=st.data(),
        how=st.sampled_from(["late"] * 4 + ["again", "answer lost", "other id", "other topic", "other shop"]),
    )
    def deliver_any(self, data: st.DataObject, how: str) -> None:
        """What is under way, or was hours ago; or an old body again under what is not signed: id, topic, shop."""
        under_way = [message for message in self.messages if not message.delivered]
        pool = (how == "late" and under_way) or self.messages
        message = pool[data.draw(st.integers(0, 10**6)) % len(pool)]
        if how in ("late", "again", "answer lost"):
            self._deliver(message, is_acknowledged=how != "answer lost")
            return
        domain = self.shops[message.shop].domain
        if how == "other shop" and self.own_secrets:
            return  # the signature is not that shop's
        if how == "other shop":
            # Where a secret is shared, evidence decides (test_s31): here somebody has said whose the thing is.
            self._is_owner(domain, message)
            other = self.shops["B" if message.shop == "A" else "A"].domain
            domain = other if message.delivered else "third-shop.myshopify.com"
        topic = message.topic
        if how == "other topic" and topic in TOPICS:
            topic = data.draw(st.sampled_from(TOPICS))
        self._send(domain, topic, message.body, message.triggered_at, f"replay-{next(self.numbers)}", message)

    def _is_owner(self, domain: str, message: Message) -> None:
        item = message.body.get("inventory_item_id")
        thing = f"product:{message.body['id']}" if item is None else f"inventory_item:{item}"
        self.parts.sql(
            "insert into esl.contests (source_system, thing, shops, owner, settled_at, settled_by)"
            " values ('shopify', %s, array[%s], %s, now(), 'a person') on conflict do nothing",
            *(thing, domain, domain),
        )

    def _deliver(self, message: Message, *, is_acknowledged: bool = True) -> None:
        domain = self.shops[message.shop].domain
        row = self._send(
            domain, message.topic, message.body, message.triggered_at, message.webhook_id, message
        )
        if is_acknowledged:
            message.delivered = True
            self.acknowledged.add(row)

    def _deliver_all(self, letter: str = "AB") -> None:
        for message in self.messages:
            if not message.delivered and message.shop in letter:
                self._deliver(message)

    def _send(
        self,
        domain: str,
        topic: str,
        body: dict[str, Any],
        triggered_at: str,
        webhook_id: str,
        message: Message | None = None,
    ) -> tuple[str, str, str]:
        headers = {
            "x-shopify-topic": topic,
            "x-shopify-shop-domain": domain,
            "x-shopify-webhook-id": webhook_id,
            "x-shopify-triggered-at": triggered_at,
        }
        kept = delivery(topic, Headers(headers), json.dumps(body).encode(), datetime.now(UTC))
        kept["proven"] = self.own_secrets
        self.world.buffer.inbox_add([kept])
        if message and kept["state"] == "ready" and domain == self.shops[message.shop].domain:
            message.heard()
            if "updated_at" in body:
                told = self.shops[message.shop].told
                told.newest = max(told.newest, float(int(message.triggered)))
        row = (domain, topic, f"{kept['body_sha256']} {_moment(triggered_at)}")
        self.sent.add(row)
        return row

    # --- workers

    @rule(
        fault=ONCE_OR_NOT,
        busy=st.sampled_from([0, 0, 0, 1, 3]),
        servers=st.sampled_from([SERVERS, SERVERS, SERVERS[::-1], SERVERS[:1], SERVERS[1:]]),
    )
    def drain(self, fault: dict[str, Any] | None, busy: int, servers: Sequence[str] = SERVERS) -> None:
        """One whole round of some servers, with a fault at the first of them.

        Whatever label it changes, it changes to what the shop has told.
        """
        if busy and self.faults.busy:
            fault = BUSY | {"times": busy}
        self._fail_with(fault, servers[0])
        can_tell = self._can_tell()
        before = self._places() if can_tell else {}
        verdicts = self._verdicts(before, set()) if can_tell else {}
        for name in servers:
            world = self.parts.sites[name].world
            drain_round(world.buffer, world.client, self.push_rules, run_id="drain", portion=replace(AT_ONCE))
        self._fail_with(None)
        if can_tell:
            self._check_changes(before, verdicts)

    @rule(
        letter=SHOPS,
        story=st.sampled_from(["rivals", "there and back", "slip", "dearer heir", "doubt"]),
        price=st.sampled_from(["zero", None]),
        other=st.booleans(),
    )
    def story(self, letter: str, story: str, price: str | None, other: bool) -> None:
        """Steps that matter when they follow each other, which they rarely do by chance; a round after each."""
        first, second = SLOTS[0], SLOTS[1 + other]
        match story:
            case "rivals":  # two have one code, then one of them has an error
                self._told_at_once(letter, first, [("X", "new")])
                self._told_at_once(letter, second, [("X", "new")])
                self.drain(None, 0)
                self._told_at_once(letter, second if other else first, [("X", price)])
            case "there and back" if (
                self.faults.removals_in_doubt
            ):  # a removal is lost on its way; then the label must stay
                self._told_at_once(letter, first, [("own", "new")])
                self.drain(None, 0)
                self._told_at_once(letter, first, [("own", "new")], status="draft")
                self.drain(ONCE[1] if other else ONCE[0], 0)
                self._told_at_once(letter, first, [("own", price)])
                self._end_back_off()
            case "slip":  # a list that lacks what hangs; then it must go
                self._run(*self._list_job(self.shops[letter], slips=self.faults.page_slips))
                if other:
                    self._delete(letter, first)
                    self._deliver_all(letter)
                else:
                    self._told_at_once(letter, first, [("X", "new")])
            case "dearer heir":  # a code passes on; no window holds that back
                self._delete(letter, second)
                self._deliver_all(letter)
                self._told_at_once(letter, first, [("X", "new")])
                if other:
                    self.drain(None, 0)
                self._told_at_once(letter, second, [("X", "new")])
                self._delete(letter, first)
                self._deliver_all(letter)
            case "doubt":  # a price in doubt, then a lower one
                self._told_at_once(letter, first, [("own", "new")])
                self.drain(ONCE[4] if other else ONCE[5], 0)
                self._told_at_once(letter, first, [("own", "cheap")])
                self._end_back_off()
        self.drain(None, 0)

    def _told_at_once(self, letter: str, slot: int, variants: Variants, status: str = "active") -> None:
        self._edit(letter, slot, variants, status=status)
        self._deliver(self.messages[-1])

    def _can_tell(self) -> bool:
        """Whether what a round does follows from what was told: nobody else is at work, nothing is left half done, and
        it reads all."""
        if any(worker.at for worker in self.workers) or not all(s.is_certain for s in self.shops.values()):
            return False
        half_done = (
            "select (select count(*) from esl.webhook_inbox where state = 'leased')"
            " + (select count(*) from esl.sync_queue where state = 'leased') as n,"
            " (select coalesce(sum(octet_length(body) + 1000), 0) from esl.webhook_inbox"
            " where state = 'ready') as bytes"
        )
        (row,) = self.parts.sql(half_done)
        return bool(row["n"] == 0 and row["bytes"] < AT_ONCE.bytes)

    def _check_changes(
        self, before: dict[tuple[str, str], Place], verdicts: dict[tuple[str, str], Verdict]
    ) -> None:
        shelves = self.parts.shelves(self.placed)
        guards = {store: mapping.guard for mapping in self.mappings for store in mapping.stores}
        for (store, code), verdict in verdicts.items():
            now = Shown.of(shelves.get(store, {}).get(code))
            place = before[store, code]
            if now != place.shelf:
                assert now in verdict.allowed, self._told_of(store, code, place, now, verdict)
                was_blank = place.shelf is not None and place.shelf.is_blank  # for this the guard has let it
                is_removal = (now is None and not was_blank) or (
                    now is not None and now.is_blank and place.ledger == place.shelf
                )
                if self.faults.guards and is_removal and guards[store] == 0 and not place.in_doubt:
                    assert place.approved, (
                        "not guarded",
                        self._told_of(store, code, place, now, verdict),
                    )

    @rule(
        number=st.sampled_from(WORKERS),
        letter=SHOPS,
        kind=st.sampled_from(["drain"] * 4 + ["push", "push", "read", "list"]),
        until=st.sampled_from([SLOT, LABEL_SERVER, LABEL_SERVER, "esl_push_finish", "its end", 1, 2, 3, 4]),
        fate=FATES,
        fault=ONCE_OR_NOT,
    )
    def work(
        self, number: int, letter: str, kind: str, until: str | int, fate: Fate, fault: dict[str, Any] | None
    ) -> None:
        """The next call meets its fate; then on, to a certain call or so many calls.

        A worker without a job begins one and goes on.
        """
        worker = self.workers[number]
        if worker.at is None:
            self._start(worker, letter, kind)
        else:
            self._step(worker, fate, fault)
        self._go_on(worker, until, fault)

    def _start(self, worker: Worker, letter: str, kind: str) -> None:
        job = {
            "drain": self._drain_job,
            "push": self._push_job,
            "read": self._read_job,
            "list": self._list_job,
        }[kind]
        worker.start(*job(self.shops[letter]))

    @rule(
        letter=SHOPS,
        order=st.permutations(WORKERS),
        again=st.booleans(),
        fates=st.lists(FATES, min_size=len(WORKERS), max_size=len(WORKERS)),
        fault=ONCE_OR_NOT,
        stays=st.integers(0, 2),
    )
    def push_at_once(
        self,
        letter: str,
        order: list[int],
        again: bool,
        fates: list[Fate],
        fault: dict[str, Any] | None,
        stays: int,
    ) -> None:
        """Of a shop several batches of a label each are claimed, and a newer version may come meanwhile.

        Then the workers go on in any order, each to its fate, and some not yet.
        """
        shop = self.shops[letter]
        for slot in SLOTS[:2]:
            self._edit(letter, slot, [("own", "new")] * 2, title="new")
            self._deliver(self.messages[-1])
        self._evaluate()
        self._approve(shop)
        for worker in self.workers:
            if worker.at is None:
                self._hold_the_clock()
                self._start(worker, letter, "push")
                self._go_on(worker, LABEL_SERVER)
        self._see_what_is_in_flight()
        if again:
            self._change_price(letter, SLOTS[0])
            self._evaluate()
        for number, fate in zip(order[stays:], fates, strict=False):
            worker = self.workers[number]
            if worker.at is not None:
                self._step(worker, fate, fault)
                self._go_on(worker, "its end")
                self._see_what_is_in_flight()

    def _hold_the_clock(self) -> None:
        """However long this takes: no call that is in flight is overdue."""
        self.parts.sql("update esl.flights set begun_at = clock_timestamp() where begun_at is not null")

    def _evaluate(self) -> None:
        for site in self.parts.sites.values():
            read_round(site.world.buffer, run_id="read", portion=replace(AT_ONCE))

    def _go_on(self, worker: Worker, until: str | int, fault: dict[str, Any] | None = None) -> None:
        calls = until if isinstance(until, int) else 50
        while worker.at not in (None, until) and calls:
            was_at = worker.at
            self._step(worker, "go", fault)
            calls -= 1
            if was_at == worker.at == SLOT:  # it waits for the slot of another
                return

    @rule(number=st.sampled_from(WORKERS), letter=SHOPS)
    def overtake(self, number: int, letter: str) -> None:
        """Who holds a claim stands still past its lease, and another worker pushes something newer."""
        if self.workers[number].at is None:
            self._start(self.workers[number], letter, "drain")
            self._go_on(self.workers[number], LABEL_SERVER)
        self._expire_leases()
        self._change_price(letter, SLOTS[0])
        self._round()

    def _change_price(self, letter: str, slot: int) -> None:
        self._edit(letter, slot, [("own", "new")])
        self._deliver(self.messages[-1])

    def _drain_job(self, shop: ShopModel) -> tuple[Job, str]:
        def job(buffer: Buffer, client: HipoinkClient) -> None:
            drain_round(buffer, client, self.push_rules, run_id="worker", asset=ASSET)

        return job, self._server_of(shop)

    def _push_job(self, shop: ShopModel) -> tuple[Job, str]:
        """A batch of one label."""
        one = replace(self.push_rules, batch_size=1)

        def job(buffer: Buffer, client: HipoinkClient) -> None:
            push_batch(buffer, client, one, run_id="worker", asset=ASSET)

        return job, self._server_of(shop)

    def _server_of(self, shop: ShopModel) -> str:
        """Of a shop that feeds both, now the one, now the other."""
        mapping = shop.mappings[self.version % len(shop.mappings)]
        return self.placed[mapping.store]

    def _read_job(self, shop: ShopModel, parts: int | None = None) -> tuple[Job, str]:
        self._tick()
        catalogue = Catalogue(shop, self.second, parts)
        shop.reading = catalogue if shop.is_certain else None
        shop.is_certain = False

        def job(buffer: Buffer, _: HipoinkClient) -> None:
            try:
                snapshot_stage.read_snapshot(buffer, catalogue, shop=shop.key, run_id="read")
            except snapshot_stage.SnapshotLostError:
                return
            except SourceError:  # it broke off, as the model says
                pass
            catalogue.heard()
            # Of several reads at once nobody knows which of them told what.
            shop.is_certain = catalogue is shop.reading

        return job, SERVERS[0]

    def _list_job(self, shop: ShopModel, slips: bool | None = None) -> tuple[Job, str]:
        store = shop.mappings[0].store
        if slips is None:
            slips = self.faults.page_slips and self.version % 2 == 0

        def job(buffer: Buffer, client: HipoinkClient) -> None:
            lists = Slipping.of(client) if slips else client
            # One call after the other: a worker stands before one at a time.
            drift_stage.compare_store(buffer, lists, store=store, run_id="worker", page_size=2, pages_ahead=0)

        return job, self.placed[store]

    def _step(self, worker: Worker, fate: Fate, fault: dict[str, Any] | None) -> None:
        was_at = worker.at
        if was_at == LABEL_SERVER and fate != "kill":
            fate = "go"
            self.was_late |= worker.is_late
            self._fail_with(fault, worker.server)
        if fate in ("fail", "kill"):
            self._forget(worker)
        worker.step(fate)
        self._fail_with(None)
        if worker.at not in WITH_A_BATCH:
            worker.is_late = False
        if was_at == "esl_push_claim" and worker.at == SLOT:
            self._check_claim(worker)

    def _check_claim(self, worker: Worker) -> None:
        """A removal is never claimed before its variant's new label is accepted."""
        too_early = self.parts.sql(
            "select q.* from esl.sync_queue q where q.push_id = %s::uuid and q.state = 'leased'"
            " and (q.operation = 'delete' or esl.is_blanked(q.label_hash)) and q.variant_id <> '' and ("
            "  exists (select from esl.sync_queue u where u.mapping_id = q.mapping_id"
            "          and u.variant_id = q.variant_id and u.operation = 'upsert' and not esl.is_blanked(u.label_hash))"
            "  or exists (select from esl.labels l where l.mapping_id = q.mapping_id and l.variant_id = q.variant_id"
            "             and l.state = 'publish' and not l.collides and not exists ("
            "               select from esl.hipoink_products s where s.store_code = l.store_code and s.code = l.code"
            "                 and s.variant_id = l.variant_id)))",
            worker.push,
        )
        assert not too_early, ("removed before its new label is accepted", too_early)

    def _forget(self, worker: Worker) -> None:
        """Nobody learns what a late worker has pushed when it dies before it could say so: the nightly list does."""
        if worker.is_late and worker.at == "esl_push_finish":
            self.to_compare.update(store for mapping in self.mappings for store in mapping.stores)

    def _run(self, job: Job, server: str) -> None:
        world = self.parts.sites[server].world
        job(world.buffer, world.client)

    def _round(self) -> bool:
        """A round of each server's drain; whether any did something."""
        rounds = [site.world.round() for site in self.parts.sites.values()]
        return any(done.did_something for done in rounds)

    def _fail_with(self, fault: dict[str, Any] | None, server: str = SERVERS[0]) -> None:
        """The next call of a server meets this fault, beside what stands at each."""
        for name, site in self.parts.sites.items():
            rules = [{"times": 1} | fault] if fault and name == server else []
            rules += self.standing[name]
            if rules != self._rules[name]:
                site.world.sandbox.faults(*rules)
                self._rules[name] = rules

    @property
    def _is_anything_standing(self) -> bool:
        return any(self.standing.values())

    _rules: dict[str, list[dict[str, Any]]] = {}  # noqa: RUF012

    # --- time, people, machines

    @rule(
        letter=SHOPS,
        what=st.sampled_from(
            ["leases expire"] * 4
            + ["back-off ends"] * 2
            + ["connections break", "redrive", "approve", "off", "on", "on", "move"]
            + ["label edited", "label taken away", "foreign label", "read", "read in part", "list"]
            + ["to another server"] * 3
            + ["removals have waited"] * 3
            + ["devices are read"]
        ),
        which=st.integers(0, 1),
    )
    def disturb(self, letter: str, what: str, which: int) -> None:
        """What else happens to a shop."""
        shop = self.shops[letter]
        mapping = shop.mappings[which % len(shop.mappings)]
        match what:
            case "leases expire":
                self._expire_leases()
            case "back-off ends":
                self._end_back_off()
            case "connections break":
                self._break_connections()
            case "redrive":
                self.world.buffer.redrive()
            case "approve":
                self._approve(shop)
            case "off":
                self._map(mapping, is_active=False)
                mapping.is_active = False
            case "on":
                self._switch_on(shop, mapping)
            case "move" if len(mapping.stores) > 1:
                mapping.stores.reverse()
                self._map(mapping, hipoink_store_code=mapping.store)
            case "read":
                self._run(*self._read_job(shop))
            case "read in part":
                self._read_in_part(shop)
            case "list":
                self._run(*self._list_job(shop))
            case "removals have waited" if self.faults.graces:
                back = f"interval '{GRACE_HOURS} hours'"
                self.parts.sql(f"update esl.graces set since = since - {back}, until = until - {back}")
                if which:
                    self._end_graces()
            case "devices are read" if self.faults.graces:
                self._read_devices(mapping.store)
            case "to another server" if self.faults.two_servers:
                self._move_to(mapping, SERVERS[self.placed[mapping.store] == SERVERS[0]])
            case "move" | "to another server" | "removals have waited" | "devices are read":
                pass
            case _:
                self._change_a_label(mapping.store, what)

    def _end_graces(self) -> int:
        return sum(site.world.buffer.graces_end() for site in self.parts.sites.values())

    def _read_devices(self, store: str) -> None:
        """A pass over the physical labels of a store: there are none."""
        buffer = self.parts.sites[self.placed[store]].world.buffer
        pass_id = str(uuid.uuid4())
        begun = buffer.device_pass_begin(pass_id=pass_id, store=store, run_id="devices")
        if begun["outcome"] == "open":
            buffer.device_pass_finish(pass_id=pass_id, state="complete")

    def _move_to(self, mapping: MappingModel, server: str) -> None:
        """A store moves to a label server, where its people begin afresh; at the other nobody changes anything more."""
        store = mapping.store
        for code in self._codes_at(server, store):
            self.parts.sites[server].labels.take_away(store, code)
        self._map(mapping, label_server=server)
        self.placed[store] = server
        self.was_at[store].add(server)

    def _codes_at(self, server: str, store: str) -> list[str]:
        rows = self.parts.sites[server].labels._all("select code from label where store = ?", [store])
        return sorted(row["code"] for row in rows)

    def _switch_on(self, shop: ShopModel, mapping: MappingModel) -> None:
        self._map(mapping, is_active=True)
        if not mapping.is_active:
            mapping.is_active = True
            self._tick()
            self._date_activation(shop, self.second)

    def _date_activation(self, shop: ShopModel, second: float) -> None:
        """Shopify's clock is the model's; the mapping's activation must be by it too."""
        self.parts.sql(
            "update esl.store_mappings set activated_at = %s::timestamptz where source_store_id = %s",
            when(second),  # type: ignore[arg-type]
            shop.domain,
        )

    @rule(
        letter=SHOPS,
        which=st.integers(0, 1),
        what=st.sampled_from(POLICIES),
        data=st.data(),
    )
    def policy(self, letter: str, which: int, what: str, data: st.DataObject) -> None:
        """What people do to a store's policy, whatever is queued, guarded, in doubt or failed under it."""
        shop = self.shops[letter]
        mapping = shop.mappings[which % len(shop.mappings)]
        match what:
            case "prefix":
                mapping.prefix = "" if mapping.prefix else PREFIX
            case "window" if self.faults.windows:
                mapping.window = None if mapping.window else "closed"
            case "leaving" if self.faults.leaving:
                mapping.on_delete = data.draw(st.sampled_from(["remove", "keep", "blank"]))
                mapping.on_unpublish = data.draw(st.sampled_from(["remove", "keep", "blank"]))
            case "guard" if self.faults.guards:
                mapping.guard = data.draw(st.sampled_from([0, 1, 3, 1000]))
                mapping.max_change = data.draw(st.sampled_from([1, 80, 10_000]))
            case "grace" if self.faults.graces:
                mapping.grace = data.draw(st.sampled_from([None, "blank", "blank", "keep"]))
            case "bad" if self.faults.bad_settings:
                return self._tamper(mapping, data.draw(st.sampled_from(BAD)), data.draw(st.booleans()))
            case "absurd" if self.faults.absurd_settings:
                return self._tamper(mapping, data.draw(st.sampled_from(ABSURD)), data.draw(st.booleans()))
            case "dry" if self.faults.dry_runs and not mapping.unsure:
                mapping.is_dry = True
                wrong = self._settings(mapping) | {"title_template": WRONG + "{title}"}
                return self._map(mapping, is_dry_run=True, settings=wrong)
            case "live" if mapping.is_dry:
                mapping.is_dry = mapping.unsure = False
                return self._map(mapping, is_dry_run=False, settings=self._settings(mapping))
            case "mend":
                pass
            case _:
                return None
        if not mapping.is_dry:
            mapping.unsure = False
            self._map(mapping, settings=self._settings(mapping))
        return None

    def _tamper(self, mapping: MappingModel, wrong: Any, by_sql: bool) -> None:
        """Settings that the API would refuse. Wherever they are refused, the old ones stand."""
        if mapping.is_dry:
            return
        mapped = self._settings(mapping) | wrong
        try:
            if by_sql:
                query = "update esl.store_mappings set settings = %s::jsonb where id = %s::uuid"
                self.parts.sql(query, json.dumps(mapped), mapping.id)
            else:
                self._map(mapping, settings=mapped)
        except (BufferError, psycopg.Error):
            return
        mapping.unsure = True

    @rule(
        what=st.sampled_from(["refused", "forbidden", "crashes", "store", "down", "lifted", "lifted"]),
        server=st.sampled_from(SERVERS),
        code=st.sampled_from(["own-11", "own-21", "X"]),
        store=st.sampled_from(["A1", "A3", "B1"]),
        applies=st.booleans(),
    )
    def label_server(self, what: str, server: str, code: str, store: str, applies: bool) -> None:
        """A label server will have none of a label, of a store, or of anything, until the fault is lifted."""
        match what:
            case "refused" if self.faults.label_refused:
                self.standing[server] = [{"kind": "bad_codes", "codes": [code], "apply": applies}]
                self.blamed.add(code)
            case "forbidden" if self.faults.label_forbidden:
                self.standing[server] = [{"kind": "status", "status": 403, "codes": [code]}]
                self.blamed.add(code)
            case "crashes" if self.faults.label_crashes:
                self.standing[server] = [{"kind": "status", "status": 500, "codes": [code]}]
                self.blamed.add(code)
            case "store" if self.faults.store_refuses:
                self.standing[self.placed[store]] = [
                    {"kind": "error", "store": store, "error_msg": "store does not exist", "action": action}
                    for action in ("create_multiple", "del_multiple")
                ]
            case "down" if self.faults.two_servers:
                self.standing[server] = [
                    {"kind": "status", "status": 503, "action": action}
                    for action in ("create_multiple", "del_multiple")
                ]
            case "lifted":
                self.standing[server] = []
            case _:
                return
        self._fail_with(None)

    def _expire_leases(self) -> None:
        """Every worker that stands still after its claim is late from now on."""
        for table in ("webhook_inbox", "sync_queue"):
            self.parts.sql(
                f"update esl.{table} set lease_until = now() - interval '1 s' where state = 'leased'"
            )
        for table in ("calls", "flights"):
            self.parts.sql(f"update esl.{table} set until = now() - interval '1 s'")
        for worker in self.workers:
            worker.is_late = worker.at in WITH_A_BATCH

    def _end_back_off(self) -> None:
        self.parts.sql("update esl.sync_queue set next_attempt_at = now() where next_attempt_at > now()")
        self.parts.sql("update esl.label_servers set probe_at = now() where probe_at > now()")
        self.parts.sql("update esl.store_health set until = now() where until > now()")

    def _break_connections(self) -> None:
        self.parts.sql(
            "select pg_terminate_backend(pid, 1000) from pg_stat_activity"
            " where pid <> pg_backend_pid() and datname = current_database()"
        )

    def _approve(self, shop: ShopModel) -> bool:
        stores = [store for mapping in shop.mappings for store in mapping.stores]
        done = []
        for store in stores:
            with suppress(ActionRefused):  # no mapping has ever named it
                done.append(self.world.buffer.changes_approve(store=store, by="test"))
        return any(count for counts in done for count in counts.values())

    def _settings(self, mapping: MappingModel) -> dict[str, Any]:
        said: dict[str, Any] = {
            "title_template": mapping.prefix + "{title}",
            "guard_labels": mapping.guard,
            "guard_share_pct": 0 if self.faults.guards else 20,
            "max_change_pct": mapping.max_change,
            "on_delete": mapping.on_delete,
            "on_unpublish": mapping.on_unpublish,
            "unbind_grace_hours": GRACE_HOURS if mapping.grace else 0,
            "during_grace": mapping.grace or "blank",
        }
        if mapping.shows_stock:
            said |= {"stock_field": "qty", "location_id": model.LOCATION}
        if mapping.window:
            now = datetime.now(UTC)
            opens, closes = now + timedelta(hours=6), now + timedelta(hours=7)
            said["raise_window"] = {
                "opens": f"{opens:%H}:00",
                "closes": f"{closes:%H}:00",
                "time_zone": "UTC",
            }
        return said

    def _map(self, mapping: MappingModel, **changes: Any) -> None:
        self.world.buffer.mapping_update(mapping.id, changes)

    def _read_in_part(self, shop: ShopModel) -> None:
        """A catalogue that breaks off removes nothing."""
        removed = "select variant_id from esl.products where removed and source_store_id = %s"
        before = self.parts.sql(removed, shop.domain)
        self._run(*self._read_job(shop, parts=1))
        assert len(self.parts.sql(removed, shop.domain)) <= len(before)

    def _change_a_label(self, store: str, what: str) -> None:
        """Behind our back."""
        labels = self.parts.sites[self.placed[store]].labels
        codes = sorted(set(self._codes_at(self.placed[store], store)) - {FOREIGN})
        if what == "foreign label":
            labels.edit(store, FOREIGN, {"pn": "not ours", "pp": "1.00"})
        elif codes:
            self.to_compare.add(store)
            self.version += 1
            if what == "label edited":
                labels.edit(store, codes[0], {"pp": f"0.{self.version % 100:02}"})
            else:
                labels.take_away(store, codes[0])

    # --- a quiet point

    @rule(
        approve=st.sampled_from([True, True, False]),
        deliver=st.booleans(),
        lift=st.booleans(),
        fate=st.sampled_from(["go", "kill"]),
    )
    def quiet(self, approve: bool, deliver: bool, lift: bool, fate: Fate) -> None:
        """No worker is under way, time has passed: every label is what was told, or is accounted for."""
        self._end_workers(fate)
        if lift:
            self._lift()
        for letter, shop in self.shops.items():
            if deliver or not shop.is_certain:
                self._deliver_all(letter)
                shop.is_certain = True
        self._settle_and_check(approve=approve)

    def _lift(self) -> None:
        self.standing = {name: [] for name in SERVERS}
        self._fail_with(None)

    def _end_workers(self, fate: Fate = "go") -> None:
        """In turns: one may wait for another's slot, and for those of the dead until their time is over."""
        self._end_dead_calls()
        while any(worker.at for worker in self.workers):
            for worker in self.workers:
                if worker.at is not None:
                    self._step(worker, fate, None)
            self._end_dead_calls()

    def _end_dead_calls(self) -> None:
        alive = [worker.call for worker in self.workers if worker.call]
        self.parts.sql("delete from esl.calls where not call_id = any(%s::uuid[])", alive)

    def _settle_and_check(self, *, approve: bool) -> None:
        self._expire_leases()
        self._end_back_off()
        for _ in range(30):
            read = [read_inbox(site.world.buffer, run_id="quiet") for site in self.parts.sites.values()]
            if not any(read):
                break
        before = self._places()
        edited = set(self.to_compare)
        verdicts = self._verdicts(before, edited)
        self._settle(approve=approve)
        if edited and not self._is_anything_standing:
            for store in sorted(edited):
                world = self.parts.sites[self.placed[store]].world
                for _ in range(2):  # a doubt may need a second look
                    drift = drift_stage.compare_store(world.buffer, world.client, store=store, run_id="quiet")
                    self._settle(approve=approve)
                self.given_up[store] = set(drift.given_up)
            # What a mapping does not write, nobody puts right, nor what came back after three repairs.
            writing = [mapping for mapping in self.mappings if not mapping.is_frozen and not mapping.unsure]
            self.to_compare -= {
                store for mapping in writing for store in mapping.stores if not self.given_up.get(store)
            }
        self._check(before, verdicts, approve=approve)

    def _settle(self, *, approve: bool = True) -> None:
        """Drain until nothing is due; what waits for somebody's word gets it, if it does."""
        accepted, fruitless = -1, 0
        for _ in range(200):
            self._end_back_off()
            did = self._end_graces() > 0
            did |= self._round()
            if approve:
                for shop in self.shops.values():
                    did |= self._approve(shop)
            if not did:
                did = bool(self._night())
            if not did:
                return
            now = self.parts.sql("select count(*) as n from esl.sync_log where outcome = 'accepted'")[0]["n"]
            fruitless = fruitless + 1 if now == accepted and self._is_anything_standing else 0
            accepted = now
            if fruitless > 12:  # what the label server will not have
                return
        raise AssertionError("it never ends")

    def _night(self) -> int:
        """What was given up is tried once a night."""
        shops = self.shops.values()
        return sum(self.world.buffer.push_again(shop=shop.key)["labels"] for shop in shops)

    def _places(self) -> dict[tuple[str, str], Place]:
        """What hangs where, as the label server and the ledger have it."""
        shelves = self.parts.shelves(self.placed)
        known = self.parts.sql(
            "select store_code, code, s.label, coalesce(s.variant_id, q.variant_id) as owner,"
            " coalesce(q.in_doubt or q.state = 'leased', false) as in_doubt, q.label as pending,"
            " coalesce(q.approved, false) as approved,"
            f" coalesce(g.since <= now() - interval '{GRACE_HOURS} hours'"
            "   or exists (select from esl.device_passes d where d.store_code = g.store_code and d.state = 'complete'"
            "              and d.started_at > g.decided_at), false) as is_over"
            " from esl.hipoink_products s full join esl.sync_queue q using (store_code, code)"
            " left join esl.graces g using (store_code, code)"
        )
        rows = {(row["store_code"], row["code"]): row for row in known}
        keys = set(rows)
        for mapping in self.mappings:
            told = self.shops[mapping.shop].told
            keys |= {(mapping.store, code) for code in model.codes_of(told, mapping)}
            for store in mapping.stores:
                keys |= {(store, code) for code in shelves.get(store, {})}
        places = {}
        for store, code in keys:
            if code == FOREIGN or code.startswith("F-"):
                continue
            row = rows.get((store, code))
            shelf = Shown.of(shelves.get(store, {}).get(code))
            ledger = Shown.of(row["label"]) if row else None
            owners = {row["owner"]} if row else set()
            if shelf and shelf.sku and shelf != ledger:
                owners.add(shelf.sku[1:])
            in_doubt = bool(row and row["in_doubt"])
            pending = Shown.of(row["pending"]) if row and in_doubt else None
            approved, is_over = bool(row and row["approved"]), bool(row and row["is_over"])
            owned = frozenset(owners - {""})
            places[store, code] = Place(shelf, ledger, owned, in_doubt, pending, approved, is_over)
        return places

    def _oracle_rules(self) -> model.Rules:
        return model.Rules(
            held_claims=self.faults.held_claims,
            left_stores=self.faults.left_stores,
            edits_among_rivals=self.faults.edits_among_rivals,
        )

    def _verdicts(
        self, places: dict[tuple[str, str], Place], edited: set[str]
    ) -> dict[tuple[str, str], Verdict]:
        rules = self._oracle_rules()
        by_store = {store: mapping for mapping in self.mappings for store in mapping.stores}
        found = {}
        for (store, code), place in places.items():
            mapping = by_store[store]
            if mapping.unsure:
                continue
            told = self.shops[mapping.shop].told
            found[store, code] = model.judge(
                told, mapping, store, code, place, edited=store in edited, rules=rules
            )
        return found

    def _check(
        self,
        before: dict[tuple[str, str], Place],
        verdicts: dict[tuple[str, str], Verdict],
        *,
        approve: bool,
    ) -> None:
        after = self._places()
        excused = self._excused(before, approve=approve)
        frozen = {store: mapping.is_frozen for mapping in self.mappings for store in mapping.stores}
        for (store, code), verdict in verdicts.items():
            place = after.get((store, code), Place(None, None, frozenset()))
            if (store, code) in excused:
                continue
            assert place.shelf in verdict.allowed, self._told_of(
                store, code, before[store, code], place.shelf, verdict
            )
            if store not in self.to_compare and not (place.in_doubt and frozen[store]):
                assert place.ledger == place.shelf, ("the ledger differs", store, code, place)
        for key, place in after.items():
            assert key in before or place.shelf is None, ("out of nothing", key, place)
        self._check_queue(excused)
        self._check_audit()
        if self.faults.findings:
            self._check_findings()
        if self.faults.accuracy:
            self._check_accuracy(verdicts, after, excused)

    def _excused(self, before: dict[tuple[str, str], Place], *, approve: bool) -> set[tuple[str, str]]:
        """Places whose change cannot go out: the label server refuses it, nobody has approved it, or it came back after
        three repairs, as people are told."""
        blocked = {key for key in before if self._is_refused(*key)}
        given_up = {(store, code) for store, codes in self.given_up.items() for code in codes}
        assert given_up <= {(row["store_code"], row["code"]) for row in self.parts.sql(_REPAIRED_THRICE)}
        blocked |= given_up
        if not approve:
            guarded = self.parts.sql("select store_code, code from esl.sync_queue where state = 'guarded'")
            blocked |= {(row["store_code"], row["code"]) for row in guarded}
        if self._is_anything_standing and self.to_compare:
            blocked |= {key for key in before if key[0] in self.to_compare}
        for mapping in self.mappings:
            told = self.shops[mapping.shop].told
            waiting = {code for store, code in blocked if store == mapping.store}
            rises = self._rises_that_wait(mapping)
            for (store, code), place in before.items():
                late = waiting if store == mapping.store and code in rises else waiting | rises
                if store in mapping.stores and model.owners_waiting(told, mapping, late, place.owners):
                    blocked.add((store, code))
        return blocked

    def _rises_that_wait(self, mapping: MappingModel) -> set[str]:
        """Codes whose new label waits for its window; what it takes the place of elsewhere waits with it."""
        if mapping.window is None:
            return set()
        rising = "select code from esl.sync_queue where store_code = %s and state = 'ready' and is_rise"
        return {row["code"] for row in self.parts.sql(rising, mapping.store)}

    def _is_refused(self, store: str, code: str) -> bool:
        """Whether the label server of a store will have none of this label for now."""
        return any(
            rule.get("store", store) == store and code in rule.get("codes", [code])
            for rule in self.standing[self.placed[store]]
        )

    def _check_queue(self, excused: set[tuple[str, str]]) -> None:
        """What waits, waits for a reason."""
        writing = {
            store: mapping
            for mapping in self.mappings
            for store in mapping.stores
            if not mapping.is_frozen and not mapping.unsure
        }
        for row in self.parts.sql("select * from esl.sync_queue"):
            key = (row["store_code"], row["code"])
            mapping = writing.get(row["store_code"])
            if mapping is not None and row["state"] == "guarded" and self.faults.guards:
                assert mapping.guard < 1_000, ("guarded though nothing is too much", row)
            if mapping is None or key in excused or row["code"] == FOREIGN:
                continue
            assert mapping.window or row["store_code"] != mapping.store, ("waits for nothing", row)

    def _check_audit(self) -> None:
        """Nothing is leased, every intent has its end."""
        assert not self.parts.sql(
            "select i.* from esl.sync_log i where i.kind = 'intent' and not exists (select from esl.sync_log r"
            " where r.kind = 'result' and r.push_id = i.push_id and r.code = i.code)"
        )
        assert not self.parts.sql("select * from esl.webhook_inbox where state = 'leased'")

    def _check_findings(self) -> None:
        rules = self._oracle_rules()
        found = self.parts.sql(
            "select f.mapping_id::text as mapping_id, f.variant_id from esl.findings f"
            " join esl.labels l using (mapping_id, variant_id)"
            " where f.check_name = 'duplicate_code' and f.level = 'error' and f.resolved_at is null"
            " and l.state = 'publish'"
        )
        for mapping in self.mappings:
            if mapping.is_frozen or mapping.unsure:
                continue
            shop = self.shops[mapping.shop]
            if shop.told.unsaid:
                continue
            by_code = model.collisions(model.claims(shop.told, mapping), rules)
            wanted = {variant for rivals in by_code.values() for variant in rivals}
            told = {row["variant_id"] for row in found if row["mapping_id"] == mapping.id}
            assert told == wanted, ("collisions", mapping, told, wanted)

    def _check_accuracy(
        self,
        verdicts: dict[tuple[str, str], Verdict],
        after: dict[tuple[str, str], Place],
        excused: set[tuple[str, str]],
    ) -> None:
        said = {row["mapping_id"]: row for row in self.world.buffer.accuracy()}
        for mapping in self.mappings:
            if mapping.is_frozen or mapping.store in self.to_compare or self.shops[mapping.shop].told.unsaid:
                continue
            row = said[mapping.id]
            if mapping.unsure:
                continue
            wanted = {
                key: verdict.wanted
                for key, verdict in verdicts.items()
                if key[0] == mapping.store and verdict.wanted
            }
            right = {key for key, label in wanted.items() if after[key].shelf == label}
            assert row["publishable"] == len(wanted), (row, wanted)
            sure = {key for key in right if key not in excused}
            assert len(sure) <= row["accurate"] <= len(right), (row, wanted, right, sure)

    def _told_of(
        self, store: str, code: str, place: Place, shelf: Shown | None, verdict: Verdict
    ) -> dict[str, Any]:
        """Everything that explains a wrong label."""
        return {
            "place": (store, code),
            "shows": shelf,
            "may show": set(verdict.allowed),
            "because": verdict.why,
            "before": place,
            "mapping": next(m for m in self.mappings if store in m.stores),
            "queue": self.parts.sql("select * from esl.sync_queue where code = %s", code),
            "log": [
                tuple(row.values())
                for row in self.parts.sql(
                    "select kind, operation, left(push_id::text, 4), outcome, label ->> 'pp', run_id, message"
                    " from esl.sync_log where store_code = %s and code = %s order by id",
                    store,
                    code,
                )
            ],
            "drift": self.parts.sql(
                "select at, kind, run_id from esl.drift where store_code = %s and code = %s order by id",
                store,
                code,
            ),
            "compared": self.parts.sql("select * from esl.comparisons where store_code = %s", store),
        }

    # --- what must hold after every rule

    @invariant()
    def what_is_in_the_buffer(self) -> None:
        """One query for all that is asked of the buffer after each step."""
        (row,) = self.parts.sql(_AFTER_EACH_STEP)
        kept = [
            (shop, topic, f"{sha} {_moment(at)}")
            for shop, topic, sha, at in row["inbox"]
            if topic not in LIFECYCLE
        ]
        assert len(kept) == len(set(kept)), "G2: one row per delivery"
        acknowledged = {sent for sent in self.acknowledged if sent[1] not in LIFECYCLE}
        assert acknowledged <= set(kept) <= self.sent, "G1: a 2xx means a committed row"
        assert row["unneeded"] == 0, "G5: what the label server has is queued though not in doubt"
        assert row["without_end"] == 0, "G6: an intent without a result"
        assert row["foreign_products"] == 0 and row["foreign_labels"] == 0, "G8: a shop in another's rows"
        assert not row["refused"], ("G7: the buffer cannot take a delivery", row["refused"])
        if self.own_secrets:
            assert not row["set_aside"], ("G8: set aside for another shop", row["set_aside"])
        if self.faults.busy:
            # One or two that are alone in a store that refuses everything cannot be told from ones at fault.
            assert set(row["failed"]) <= self.blamed, ("a label is blamed without evidence", row["failed"])
        intents = {(store, code): n for store, code, n in row["intents"]}
        times: Counter[tuple[str, str]] = Counter()
        for name, site in self.parts.sites.items():
            for pushed in site.labels._all("select store, code, times from push"):
                times[pushed["store"], pushed["code"]] += pushed["times"]
                assert name in self.was_at[pushed["store"]], ("at a server where the store never was", pushed)
        for place, count in times.items():
            assert intents.get(place, 0) >= count, "G6: no intent"

    @invariant()
    def what_is_in_flight(self) -> None:
        self._see_what_is_in_flight()

    def _see_what_is_in_flight(self) -> None:
        """Of workers that are not late: no more calls than may be, and no label in two batches at once."""
        at_work = [worker for worker in self.workers if not worker.is_late]
        calls = Counter(worker.server for worker in at_work if worker.call)
        assert all(n <= self.push_rules.concurrency for n in calls.values()), ("too many calls", calls)
        pushes = [worker.push for worker in at_work if worker.is_in_hand]
        twice = self.parts.sql(
            "select store_code, code from esl.sync_log where kind = 'intent' and push_id = any(%s::uuid[])"
            " group by 1, 2 having count(*) > 1",
            pushes,
        )
        assert not twice, ("in two batches at once", twice)

    @invariant()
    def what_hangs(self) -> None:
        for name, site in self.parts.sites.items():
            state = site.labels.state()
            for store, by_code in state["labels"].items():
                for code, label in by_code.items():
                    assert code == FOREIGN or not label["pi"] or label["pi"][0] == store[0], "G8: wrong store"
            for store, by_code in state["history"].items():
                shop = self.shops[store[0]]
                for code, changes in by_code.items():
                    if self._went_back(shop, changes) and self.placed[store] == name:
                        assert self.was_late
                        assert store in self.to_compare or self._is_being_corrected(store, code), (
                            store,
                            code,
                            [(change["action"], (change["record"] or {}).get("pp")) for change in changes],
                        )

    def _went_back(self, shop: ShopModel, changes: list[dict[str, Any]]) -> bool:
        """G4: whether the label shows an older version of its variant than it did before."""
        newest: dict[str, int] = {}
        went_back = False
        for change in changes:
            label = change["record"]
            if label is None or label["pn"] == model.BLANK_NAME:
                went_back = False
                continue
            assert not label["pn"].startswith(WRONG), ("of a policy that was never live", label)
            versions = shop.said[label["pi"], label["pn"].removeprefix(PREFIX) + label["pp"]]
            went_back = versions[-1] < newest.get(label["pi"], 0)
            if went_back:
                assert self.was_late, ("an older version, and nobody was late", label, changes)
            newest[label["pi"]] = max(versions[0], newest.get(label["pi"], 0))
        return went_back

    def _is_being_corrected(self, store: str, code: str) -> bool:
        if any(worker.is_late and worker.at == "esl_push_finish" for worker in self.workers):
            return True
        waiting = "select 1 as n from esl.sync_queue where store_code = %s and code = %s"
        return len(self.parts.sql(waiting, store, code)) == 1

    # --- G3, when all is over

    def _converge(self) -> None:
        self._lift()
        self._end_workers()
        for mapping in self.mappings:
            mapping.on_delete = mapping.on_unpublish = "remove"
            mapping.window, mapping.unsure, mapping.is_dry, mapping.grace = None, False, False, None
            self._map(mapping, is_dry_run=False, settings=self._settings(mapping))
            self._switch_on(self.shops[mapping.shop], mapping)
        for letter, shop in self.shops.items():
            under_way = [
                message for message in self.messages if message.shop == letter and not message.delivered
            ]
            if under_way and letter == "A":
                self._run(*self._read_job(shop))  # they are lost for good
            else:
                for message in reversed(under_way):
                    self._deliver(message)
            shop.is_certain = True
            if not shop.told.unsaid:
                assert model.claims(shop.told, shop.mappings[-1]) == model.claims(
                    shop.truth(), shop.mappings[-1]
                ), "the model is wrong"
        self._settle_and_check(approve=True)
        if self._is_exact():
            return
        for letter, shop in self.shops.items():
            for slot in sorted(shop.products):  # the shopkeeper puts right what was held back
                self._edit(
                    letter, slot, [("own", "plain")] * len(shop.products[slot]["variants"]), title="plain"
                )
                self._deliver(self.messages[-1])
        self._settle_and_check(approve=True)
        assert self._is_exact(), [
            self._told_of(store, code, place, place.shelf, Verdict(frozenset(), "not exact"))
            for (store, code), place in self._places().items()
        ]
        assert not self.parts.sql("select * from esl.sync_queue")

    def _is_exact(self) -> bool:
        """Whether the labels of all stores are what their shops say, and no others."""
        shelves = self.parts.shelves(self.placed)
        for mapping in self.mappings:
            claims = model.claims(self.shops[mapping.shop].truth(), mapping)
            wanted = {claim.code: claim.label for claim in claims.values() if claim.state == "publish"}
            if any(claim.state != "publish" for claim in claims.values()) or len(wanted) < len(claims):
                return False
            for store in mapping.stores:
                shown = {
                    code: Shown.of(label) for code, label in shelves.get(store, {}).items() if code != FOREIGN
                }
                if shown != (wanted if store == mapping.store else {}):
                    return False
        return True


_REPAIRED_THRICE = """
select store_code, code from esl.drift group by store_code, code, kind having count(*) >= 3"""
_AFTER_EACH_STEP = """
select (select coalesce(jsonb_agg(jsonb_build_array(source_store_id, topic, body_sha256, triggered_at)), '[]')
        from esl.webhook_inbox) as inbox,
    (select count(*) from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)
     where q.state <> 'leased' and not q.in_doubt and q.label_hash is not distinct from s.label_hash) as unneeded,
    (select count(*) from esl.sync_log i where i.kind = 'intent'
     and not exists (select from esl.sync_log r
                     where r.kind = 'result' and r.push_id = i.push_id and r.code = i.code)
     and not exists (select from esl.sync_queue q
                     where q.state = 'leased' and q.push_id = i.push_id and q.code = i.code)) as without_end,
    (select count(*) from esl.products o
     where o.source_store_id not like 'shop-' || lower(left(o.sku, 1)) || '.%') as foreign_products,
    (select count(*) from esl.hipoink_products where label ->> 'pi' <> ''
     and left(store_code, 1) <> left(label ->> 'pi', 1)) as foreign_labels,
    (select coalesce(array_agg(i.reason), '{}') from esl.webhook_inbox i
     where i.state = 'dead' and i.reason like 'the buffer cannot take it%') as refused,
    (select coalesce(array_agg(i.reason), '{}') from esl.webhook_inbox i where i.contested is not null) as set_aside,
    (select coalesce(array_agg(q.code), '{}') from esl.sync_queue q where q.state = 'failed'
     and (select count(distinct r.code) from esl.sync_log r where r.kind = 'result' and r.store_code = q.store_code
          and r.code <> q.code and r.at >= q.refused_at) >= 2) as failed,
    (select coalesce(jsonb_agg(jsonb_build_array(store_code, code, n)), '[]') from (
        select store_code, code, count(*) as n from esl.sync_log where kind = 'intent' group by 1, 2) t) as intents
"""


def _moment(at: str | None) -> str:
    """One text for a time, however it is written."""
    return "" if at is None else datetime.fromisoformat(at).astimezone(UTC).isoformat()


@contextmanager
def machine_parts(buffer: Buffer, dsn: str) -> Iterator[Parts]:
    """The real things that a Machine works on: set Machine.parts to them."""
    stamina.set_testing(True, attempts=3, cap=True)  # repeats without their pauses
    try:
        both = Buffer(buffer.transport, label_servers=SERVERS)
        with ExitStack() as stack:
            sites = {name: _site(both.at(name), dsn, stack) for name in SERVERS}
            connection = stack.enter_context(
                psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row)
            )
            stack.enter_context(light_evaluation())
            urls = {name: site.world.sandbox.url for name, site in sites.items()}
            workers = [Worker(both, urls) for _ in WORKERS]
            for worker in workers:
                stack.callback(worker.close)
            yield Parts(sites, connection, workers)
    finally:
        stamina.set_testing(False)


def _site(buffer: Buffer, dsn: str, stack: ExitStack) -> Site:
    labels = stack.enter_context(LabelStore())
    sandbox = stack.enter_context(running_sandbox(labels))
    client = stack.enter_context(client_of(sandbox.url, retries=1, timeout_seconds=5))
    return Site(labels, World(buffer, dsn, sandbox, client, SLOW))


def machine_settings(examples: int, steps: int, *, fixed: bool, shrink: bool) -> settings:
    """How Hypothesis runs the machine. fixed: the same examples each time."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=fixed,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        print_blob=shrink,
        suppress_health_check=list(HealthCheck),
    )
