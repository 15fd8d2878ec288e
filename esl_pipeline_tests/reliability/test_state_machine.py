"""Whatever happens in whatever order, G1 to G8 hold, and the labels end at what Shopify said last.

A model of two shops against the real functions, stages and label server. Longer: ESL_EXAMPLES=2000 pytest <this file>.
"""

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pandas as pd
import psycopg
import psycopg.rows
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from starlette.datastructures import Headers

from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.labels import schema
from esl_pipeline.labels.policy import Policy
from esl_pipeline.local.label_store import LabelStore
from esl_pipeline.receiver.deliveries import delivery
from esl_pipeline.sources.facts import Facts
from esl_pipeline.sources.shopify.admin import AdminError
from esl_pipeline.sources.shopify.webhooks import read_deliveries
from esl_pipeline.stages import reconcile
from esl_pipeline.stages.drain import drain_round
from esl_pipeline_tests.hipoink.servers import client_of, running_sandbox
from esl_pipeline_tests.reliability.stepping import LABEL_SERVER, Fate, Job, Worker
from esl_pipeline_tests.world import ASSET, RULES, World, product, variant, when

EXAMPLES = int(os.environ.get("ESL_EXAMPLES", "0"))

SLOTS = (1, 2, 3)
WORKERS = (0, 1)
SHOPS = st.sampled_from("AB")
CODES = st.sampled_from(["own"] * 5 + ["X", None])
PRICES = st.sampled_from(["new"] * 4 + ["old"] * 2 + [None])
Variants = list[tuple[str | None, str | None]]
VARIANTS: st.SearchStrategy[Variants] = st.lists(st.tuples(CODES, PRICES), min_size=1, max_size=2)
FAULTS: list[dict[str, Any]] = [
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
FATES: st.SearchStrategy[Fate] = st.sampled_from(["go"] * 5 + ["repeat", "lose", "fail", "kill", "kill"])
TOPICS = ("products/create", "products/update", "products/delete")
FOREIGN = "FOREIGN"
# What failed waits until the machine says that time has passed, so that an example does not depend on the clock.
SLOW = replace(
    RULES,
    initial_delay=600,
    max_delay=600,
    refused_delay=600,
    max_refused_delay=600,
    pause=600,
    max_pause=600,
)
PREFIX = "New: "


@dataclass
class Parts:
    """What is real: one buffer and one label server for all examples, emptied before each."""

    world: World
    labels: LabelStore
    connection: psycopg.Connection[dict[str, Any]]
    workers: list[Worker]

    def empty(self) -> None:
        """Forget the last example."""
        self.sql(
            "do $$ begin set local session_replication_role = replica; execute (select 'truncate ' ||"
            " string_agg(format('esl.%I', relname), ',') from pg_class where relkind = 'r'"
            " and relnamespace = 'esl'::regnamespace and relname <> 'schema_migrations'); end $$"
        )
        self.labels.clear()

    def sql(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Look (or tamper) behind the functions."""
        cursor = self.connection.execute(query.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


@dataclass
class Message:
    """One webhook as Shopify made it."""

    shop: str
    topic: str
    body: dict[str, Any]
    triggered_at: str
    webhook_id: str
    delivered: bool = False


@dataclass
class ShopModel:
    """What one shop says now, and what each of its variants said at which version."""

    domain: str
    stores: list[str]
    mapping: str = ""
    prefix: str = ""
    products: dict[int, dict[str, Any]] = field(default_factory=dict)
    remade: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SLOTS, 0))
    said: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, str]:
        return {"source_system": "shopify", "source_store_id": self.domain}

    def on_shelf(self) -> list[dict[str, Any]]:
        """The variants of active products, each with its product's title."""
        return [
            item | {"of": body["title"]}
            for body in self.products.values()
            if body["status"] == "active"
            for item in body["variants"]
        ]

    def publishable(self) -> dict[str, tuple[str, str, str]]:
        """Code to (sku, name, price) of what must be on a label."""
        items = self.on_shelf()
        codes = [item["barcode"] for item in items if item["barcode"] and item["price"]]
        return {
            item["barcode"]: (item["sku"], self.prefix + item["of"], item["price"])
            for item in items
            if item["barcode"] and item["price"] and codes.count(item["barcode"]) == 1
        }


class Catalogue:
    """The model as the source of a full reconciliation; a part is a product, and it may break off before the end."""

    def __init__(self, shop: ShopModel, as_of: str, parts: int | None) -> None:
        self.shop, self.as_of, self.parts = shop, as_of, parts
        self.bodies = [json.dumps(body).encode() for body in shop.products.values()]

    def read(self, on_poll: Any) -> Iterator[Facts]:
        on_poll(SimpleNamespace(created_at=datetime.fromisoformat(self.as_of)))
        for raw in self.bodies[: self.parts]:
            said = self.shop.key | {
                "id": 0,
                "topic": "products/update",
                "body_base64": base64.b64encode(raw).decode(),
                "body_sha256": hashlib.sha256(b"read" + raw).hexdigest(),
                "received_at": datetime.now(UTC).isoformat(),
                "triggered_at": self.as_of,
            }
            facts = read_deliveries([said])
            for row in [*facts.products, *facts.variants]:
                row["event_ids"] = []
            for row in facts.products:
                row["variant_ids"] = None
            facts.events.clear()
            yield facts
        if self.parts is not None:
            raise AdminError("the download broke off")


class Machine(RuleBasedStateMachine):
    """Each version has a number. The price of a variant is the number of the version that set it."""

    parts: Parts

    def __init__(self) -> None:
        super().__init__()
        self.parts.empty()
        self.world, self.workers = self.parts.world, self.parts.workers
        self.version = self.second = 0
        self.shops = {
            letter: ShopModel(f"shop-{letter.lower()}.myshopify.com", [letter + "2", letter + "1"])
            for letter in "AB"
        }
        self.messages: list[Message] = []
        self.replays = itertools.count()
        self.sent: set[tuple[str, str, str]] = set()
        self.acknowledged: set[tuple[str, str, str]] = set()
        self.to_compare: set[str] = set()  # stores of whose labels somebody else has changed one
        self.was_late = False

    @initialize(guard=st.sampled_from([1, 1000]))
    def stock(self, guard: int) -> None:
        self.guard = guard
        for letter, shop in self.shops.items():
            shop.mapping = self.world.map(shop.domain, shop.stores[-1], settings=self._settings(shop))
            for slot in SLOTS[:2]:
                self._edit(letter, slot, [("own", "new")])
        self._deliver_all()
        self.world.round()

    def teardown(self) -> None:
        try:
            if self.shops["A"].mapping:
                self._converge()
        finally:
            for worker in self.workers:
                worker.kill()

    # --- at Shopify

    @rule(
        letter=SHOPS,
        slot=st.sampled_from(SLOTS),
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
        if variants is None:
            self._delete(letter, slot)
        else:
            self._edit(letter, slot, variants, title=title, status=status, at_once=at_once)
        if deliver:
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
    ) -> None:
        shop = self.shops[letter]
        triggered_at = self._tick(at_once)
        before = shop.products.get(slot)
        number = 1_000 * "AB".index(letter) + 10 * shop.remade[slot] + slot  # ids are unique over all shops
        old = {item["id"]: item["price"] for item in before["variants"]} if before else {}
        new = f"{self.version}.00"
        rows = []
        for place, (code, price) in enumerate(variants, start=1):
            item = 10 * number + place
            prices = {"new": new, "old": old.get(item, new), "plain": "9999.00", None: None}
            barcode = f"own-{slot}{place}" if code == "own" else code
            rows.append(variant(item, barcode, prices[price], sku=f"{letter}{item}"))
        titles = {"new": f"Title {self.version}", "plain": "Title"}
        name = before["title"] if before and title == "old" else titles.get(title, titles["new"])
        shop.products[slot] = product(number, self.second, rows, title=name, status=status)
        topic = "products/update" if before else "products/create"
        self._say(letter, topic, shop.products[slot], triggered_at)

    def _delete(self, letter: str, slot: int) -> None:
        """Shopify never uses an id again: who makes the product again makes another one."""
        shop = self.shops[letter]
        if gone := shop.products.pop(slot, None):
            shop.remade[slot] += 1
            self._say(letter, "products/delete", {"id": gone["id"]}, self._tick())

    def _tick(self, at_once: bool = False) -> str:
        """The next version; when its webhook was triggered."""
        self.version += 1
        self.second += not at_once
        return when(self.second + self.version / 10_000)

    def _say(self, letter: str, topic: str, body: dict[str, Any], triggered_at: str) -> None:
        webhook_id = f"webhook-{len(self.messages)}"
        self.messages.append(Message(letter, topic, body, triggered_at, webhook_id))
        shop = self.shops[letter]
        for item in shop.on_shelf():
            shop.said.setdefault((item["sku"], item["of"] + str(item["price"])), []).append(self.version)

    # --- on the way

    @rule(
        data=st.data(),
        how=st.sampled_from(["late"] * 4 + ["again", "answer lost", "other id", "other topic", "other shop"]),
    )
    def deliver_any(self, data: st.DataObject, how: str) -> None:
        """What is under way, or was hours ago; or an old body again under what is not signed: id, topic, shop."""
        under_way = [message for message in self.messages if not message.delivered]
        message = data.draw(st.sampled_from((how == "late" and under_way) or self.messages))
        if how in ("late", "again", "answer lost"):
            self._deliver(message, is_acknowledged=how != "answer lost")
            return
        domain = self.shops[message.shop].domain
        if how == "other shop":  # the first shop that claims a product owns it
            other = self.shops["B" if message.shop == "A" else "A"].domain
            domain = other if message.delivered else "third-shop.myshopify.com"
        self._send(
            domain,
            data.draw(st.sampled_from(TOPICS)) if how == "other topic" else message.topic,
            message.body,
            message.triggered_at,
            f"replay-{next(self.replays)}",
        )

    def _deliver(self, message: Message, *, is_acknowledged: bool = True) -> None:
        domain = self.shops[message.shop].domain
        row = self._send(domain, message.topic, message.body, message.triggered_at, message.webhook_id)
        if is_acknowledged:
            message.delivered = True
            self.acknowledged.add(row)

    def _deliver_all(self) -> None:
        for message in self.messages:
            if not message.delivered:
                self._deliver(message)

    def _send(
        self, domain: str, topic: str, body: dict[str, Any], triggered_at: str, webhook_id: str
    ) -> tuple[str, str, str]:
        headers = {
            "x-shopify-topic": topic,
            "x-shopify-shop-domain": domain,
            "x-shopify-webhook-id": webhook_id,
            "x-shopify-triggered-at": triggered_at,
        }
        kept = delivery(topic, Headers(headers), json.dumps(body).encode(), datetime.now(UTC))
        self.world.buffer.inbox_add([kept])
        row = (domain, topic, kept["body_sha256"])
        self.sent.add(row)
        return row

    # --- workers

    @rule(fault=st.sampled_from([None, None, *FAULTS]))
    def drain(self, fault: dict[str, Any] | None) -> None:
        """One whole round."""
        self._fail_with(fault)
        drain_round(self.world.buffer, self.world.client, SLOW, run_id="drain", asset=ASSET)
        self._fail_with(None)

    @rule(
        number=st.sampled_from(WORKERS),
        letter=SHOPS,
        kind=st.sampled_from(["drain"] * 4 + ["read", "list"]),
        until=st.sampled_from([LABEL_SERVER, LABEL_SERVER, "esl_push_finish", "its end", 1, 2, 3, 4]),
        fate=FATES,
        fault=st.sampled_from([None, None, *FAULTS]),
    )
    def work(
        self, number: int, letter: str, kind: str, until: str | int, fate: Fate, fault: dict[str, Any] | None
    ) -> None:
        """The next call meets its fate; then on, to a certain call or so many calls.

        A round, a snapshot of a shop, or a comparison with the label server's list.
        """
        worker = self.workers[number]
        if worker.at is None:
            self._start(worker, letter, kind)
        else:
            self._step(worker, fate, fault)
        self._go_on(worker, until, fault)

    def _start(self, worker: Worker, letter: str, kind: str) -> None:
        if kind == "drain":  # else it would find nothing to do, mostly
            self._change_price(letter)
        job = {"drain": self._drain_job, "read": self._read_job, "list": self._list_job}[kind]
        worker.start(job(self.shops[letter]))

    def _go_on(self, worker: Worker, until: str | int, fault: dict[str, Any] | None = None) -> None:
        calls = until if isinstance(until, int) else 50
        while worker.at not in (None, until) and calls:
            self._step(worker, "go", fault)
            calls -= 1

    @rule(number=st.sampled_from(WORKERS), letter=SHOPS)
    def overtake(self, number: int, letter: str) -> None:
        """Who holds a claim stands still past its lease, and another worker pushes something newer."""
        if self.workers[number].at is None:
            self._start(self.workers[number], letter, "drain")
            self._go_on(self.workers[number], LABEL_SERVER)
        self._expire_leases()
        self._change_price(letter)
        self.world.round()

    def _change_price(self, letter: str) -> None:
        self._edit(letter, SLOTS[0], [("own", "new")])
        self._deliver(self.messages[-1])

    def _drain_job(self, _: ShopModel) -> Job:
        return lambda buffer, client: drain_round(buffer, client, SLOW, run_id="worker", asset=ASSET)

    def _read_job(self, shop: ShopModel, parts: int | None = None) -> Job:
        self._tick()
        catalogue: Any = Catalogue(shop, when(self.second), parts)
        return lambda buffer, _: _unless_admin_error(buffer, catalogue)

    def _list_job(self, shop: ShopModel) -> Job:
        store = shop.stores[-1]
        return lambda buffer, client: reconcile.compare_store(buffer, client, store=store, run_id="worker")

    def _step(self, worker: Worker, fate: Fate, fault: dict[str, Any] | None) -> None:
        if fate in ("fail", "kill"):
            self._forget(worker)
        elif worker.at == LABEL_SERVER:
            self.was_late |= worker.is_late
            self._fail_with(fault)
        worker.step(fate)
        self._fail_with(None)
        if worker.at not in (LABEL_SERVER, "esl_push_finish"):
            worker.is_late = False

    def _forget(self, worker: Worker) -> None:
        """Nobody learns what a late worker has pushed when it dies before it could say so: the nightly list does."""
        if worker.is_late and worker.at == "esl_push_finish":
            self.to_compare.update(store for shop in self.shops.values() for store in shop.stores)

    def _run(self, job: Job) -> None:
        job(self.world.buffer, self.world.client)

    def _fail_with(self, fault: dict[str, Any] | None) -> None:
        if fault != self._fault:
            self.world.sandbox.faults(*([fault | {"times": 1}] if fault else []))
            self._fault = fault

    _fault: dict[str, Any] | None = None

    # --- time, people, machines

    @rule(
        letter=SHOPS,
        what=st.sampled_from(
            ["leases expire"] * 4
            + ["back-off ends"] * 2
            + ["connections break", "redrive", "approve", "off", "on", "on", "move", "policy"]
            + ["label edited", "label taken away", "foreign label", "read", "read in part"]
        ),
    )
    def disturb(self, letter: str, what: str) -> None:
        """What else happens to a shop."""
        shop = self.shops[letter]
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
            case "off" | "on":
                self._map(shop, is_active=what == "on")
            case "move":
                shop.stores.reverse()
                self._map(shop, hipoink_store_code=shop.stores[-1])
            case "policy":
                shop.prefix = "" if shop.prefix else PREFIX
                self._map(shop, settings=self._settings(shop))
            case "read":
                self._run(self._read_job(shop))
            case "read in part":
                self._read_in_part(shop)
            case _:
                self._change_a_label(shop.stores[-1], what)

    def _expire_leases(self) -> None:
        """Every worker that stands still after its claim is late from now on."""
        for table in ("webhook_inbox", "sync_queue"):
            self.parts.sql(
                f"update esl.{table} set lease_until = now() - interval '1 s' where state = 'leased'"
            )
        for worker in self.workers:
            worker.is_late = worker.at in (LABEL_SERVER, "esl_push_finish")

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
        done = [self.world.buffer.changes_approve(store=store, by="test") for store in shop.stores]
        return any(count for counts in done for count in counts.values())

    def _settings(self, shop: ShopModel) -> dict[str, Any]:
        return {"title_template": shop.prefix + "{title}", "guard_labels": self.guard}

    def _map(self, shop: ShopModel, **changes: Any) -> None:
        self.world.buffer.mapping_update(shop.mapping, changes)

    def _read_in_part(self, shop: ShopModel) -> None:
        """A catalogue that breaks off removes nothing."""
        removed = "select variant_id from esl.products where removed and source_store_id = %s"
        before = self.parts.sql(removed, shop.domain)
        self._run(self._read_job(shop, parts=1))
        assert len(self.parts.sql(removed, shop.domain)) <= len(before)

    def _change_a_label(self, store: str, what: str) -> None:
        """Behind our back."""
        codes = sorted(self.parts.labels.state()["labels"].get(store, {}))
        if what == "foreign label":
            self.parts.labels.edit(store, FOREIGN, {"pn": "not ours", "pp": "1.00"})
        elif codes:
            self.to_compare.add(store)
            self.version += 1
            if what == "label edited":
                self.parts.labels.edit(store, codes[0], {"pp": f"0.{self.version:02}"})
            else:
                self.parts.labels.take_away(store, codes[0])

    # --- what must hold after every rule

    @invariant()
    def g1_g2_every_acknowledged_delivery_is_one_row(self) -> None:
        rows = self.parts.sql("select source_store_id, topic, body_sha256 from esl.webhook_inbox")
        kept = [tuple(row.values()) for row in rows]
        assert len(kept) == len(set(kept))
        assert self.acknowledged <= set(kept) <= self.sent

    @invariant()
    def g4_no_older_version_follows_a_newer_one_uncorrected(self) -> None:
        history = self.parts.labels.state()["history"]
        for shop in self.shops.values():
            for store in shop.stores:
                for code, changes in history.get(store, {}).items():
                    if self._went_back(shop, changes):
                        assert self.was_late
                        assert store in self.to_compare or self._is_being_corrected(store, code), [
                            tuple(row.values())
                            for row in self.parts.sql(
                                "select kind, left(push_id::text, 4), outcome, label ->> 'pp', run_id from esl.sync_log"
                                " where store_code = %s and code = %s order by id",
                                store,
                                code,
                            )
                        ] + [(change["action"], (change["record"] or {}).get("pp")) for change in changes]

    def _went_back(self, shop: ShopModel, changes: list[dict[str, Any]]) -> bool:
        """Whether the label shows an older version of its variant than it did before."""
        newest: dict[str, int] = {}
        went_back = False
        for change in changes:
            if (label := change["record"]) is None:
                went_back = False
                continue
            versions = shop.said[label["pi"], label["pn"].removeprefix(PREFIX) + label["pp"]]
            went_back = versions[-1] < newest.get(label["pi"], 0)
            if went_back:
                assert self.was_late, (label, changes)
            newest[label["pi"]] = max(versions[0], newest.get(label["pi"], 0))
        return went_back

    def _is_being_corrected(self, store: str, code: str) -> bool:
        if any(worker.is_late and worker.at == "esl_push_finish" for worker in self.workers):
            return True
        waiting = "select from esl.sync_queue where store_code = %s and code = %s"
        return len(self.parts.sql(waiting, store, code)) == 1

    @invariant()
    def g5_nothing_is_queued_that_the_label_server_has_unless_in_doubt(self) -> None:
        assert not self.parts.sql(
            "select q.* from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)"
            " where q.state <> 'leased' and not q.in_doubt and q.label_hash is not distinct from s.label_hash"
        )

    @invariant()
    def g6_every_push_has_its_intent_and_every_end_its_result(self) -> None:
        logged = self.parts.sql(
            "select store_code, code, count(*) as n from esl.sync_log where kind = 'intent' group by 1, 2"
        )
        intents = {(row["store_code"], row["code"]): row["n"] for row in logged}
        for store, pushes in self.parts.labels.state()["pushes"].items():
            assert all(intents.get((store, code), 0) >= n for code, n in pushes.items())
        assert not self.parts.sql(
            "select i.* from esl.sync_log i where i.kind = 'intent'"
            " and not exists (select from esl.sync_log r"
            " where r.kind = 'result' and r.push_id = i.push_id and r.code = i.code)"
            " and not exists (select from esl.sync_queue q"
            " where q.state = 'leased' and q.push_id = i.push_id and q.code = i.code)"
        )

    @invariant()
    def g8_no_shop_is_in_anothers_rows(self) -> None:
        assert not self.parts.sql(
            "select o.* from esl.products o where o.source_store_id not like 'shop-' || lower(left(o.sku, 1)) || '.%'"
        )
        assert not self.parts.sql(
            "select * from esl.hipoink_products where left(store_code, 1) <> left(label ->> 'pi', 1)"
        )
        for store, by_code in self.parts.labels.state()["labels"].items():
            assert all(code == FOREIGN or label["pi"][0] == store[0] for code, label in by_code.items())

    # --- G3, when all is over

    def _converge(self) -> None:
        self._fail_with(None)
        for worker in self.workers:
            while worker.at is not None:
                self._step(worker, "go", None)
        for letter, shop in self.shops.items():
            self._map(shop, is_active=True)
            under_way = [
                message for message in self.messages if message.shop == letter and not message.delivered
            ]
            if under_way and letter == "A":
                self._run(self._read_job(shop))  # they are lost for good
            else:
                for message in reversed(under_way):
                    self._deliver(message)
        self._settle()
        for store in self.to_compare:
            reconcile.compare_store(self.world.buffer, self.world.client, store=store, run_id="list")
        self._settle()
        for shop in self.shops.values():
            shown = self._shown(shop.stores[-1])
            wanted = shop.publishable()
            assert {code: shown.get(code) for code in wanted} == wanted
        if all(self._is_exact(shop) for shop in self.shops.values()):
            return
        for letter, shop in self.shops.items():
            for slot in sorted(shop.products):  # the shopkeeper puts right what was held back
                self._edit(
                    letter, slot, [("own", "plain")] * len(shop.products[slot]["variants"]), title="plain"
                )
                self._deliver(self.messages[-1])
        self._settle()
        for shop in self.shops.values():
            assert self._is_exact(shop), {
                store: self._shown(store) for store in shop.stores
            } | shop.publishable()
        assert not self.parts.sql("select * from esl.sync_queue")

    def _is_exact(self, shop: ShopModel) -> bool:
        """Whether the labels of its stores are what the model says, and no others."""
        other, store = shop.stores
        return self._shown(store) == shop.publishable() and not self._shown(other)

    def _settle(self) -> None:
        """Drain until nothing is due; what waits for somebody's word gets it."""
        self._expire_leases()
        for _ in range(50):
            self._end_back_off()
            if self.world.round().did_something or any(self._approve(shop) for shop in self.shops.values()):
                continue
            if not self.world.buffer.redrive()["labels"]:
                return
        raise AssertionError("it never ends")

    def _shown(self, store: str) -> dict[str, tuple[str, str, str]]:
        labels = self.parts.labels.state()["labels"].get(store, {})
        return {
            code: (label["pi"], label["pn"], label["pp"]) for code, label in labels.items() if code != FOREIGN
        }


def _unless_admin_error(buffer: Buffer, catalogue: Any) -> None:
    """A snapshot that may fail, as the model says."""
    with suppress(AdminError, reconcile.SnapshotLostError):
        reconcile.read_snapshot(buffer, catalogue, shop=catalogue.shop.key, run_id="read")


@contextmanager
def _model_is_the_source() -> Iterator[None]:
    with mock.patch.multiple(
        reconcile,
        read_shop=lambda catalogue, shop: Facts(),
        read_catalogue=lambda catalogue, **options: catalogue.read(options["on_poll"]),
    ):
        yield


def _remembered(findings: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
    """Pure, and of each row alone (labels/test_evaluate.py), so its results are kept: pandera takes 40 ms a call."""
    known: dict[tuple[Any, ...], pd.DataFrame] = {}

    def remembered(facts: pd.DataFrame, policy: Policy) -> pd.DataFrame:
        rows = {index: (policy, *row) for index, *row in facts.itertuples()}
        new = [index for index, row in rows.items() if row not in known]
        if new or facts.empty:
            found = findings(facts.loc[new], policy)
            known.update({rows[index]: found[found["row"] == index] for index in new})
            if facts.empty:
                return found
        return pd.concat([known[row].assign(row=index) for index, row in rows.items()], ignore_index=True)

    return remembered


@pytest.fixture
def parts(buffer: Buffer, buffer_dsn: str) -> Iterator[Parts]:
    with (
        LabelStore() as labels,
        running_sandbox(labels) as sandbox,
        client_of(sandbox.url, retries=1, timeout_seconds=5) as client,
        psycopg.connect(buffer_dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection,
        _model_is_the_source(),
        mock.patch.object(schema, "findings", _remembered(schema.findings)),
    ):
        workers = [Worker(buffer.transport, sandbox.url) for _ in WORKERS]
        yield Parts(World(buffer, buffer_dsn, sandbox, client), labels, connection, workers)
        for worker in workers:
            worker.close()


@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_whatever_happens_the_guarantees_hold(parts: Parts) -> None:
    Machine.parts = parts
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 10,
            stateful_step_count=50 if EXAMPLES else 30,
            deadline=None,
            database=None,
            # Fast: always the same, and not shrunk, which takes longer than a test may.
            derandomize=not EXAMPLES,
            phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
            print_blob=bool(EXAMPLES),
            suppress_health_check=list(HealthCheck),
        ),
    )
