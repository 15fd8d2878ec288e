"""The physical labels of the sandbox's stores: to what each is bound, whether it can be reached, and what it shows.

A device shows its product as it was at the device's last refresh (pictures.py). A change of the product, a binding and
its end put the device into the store's refresh queue; the trigger starts it (esl/bind_task, or at once with
auto-trigger); the device fetches its picture at its next poll, if it can be reached. Nothing runs beside the calls:
whoever looks first settles what has fallen due meanwhile, so that 100,000 devices cost nothing while nobody looks.

All of it is our choice, and the knobs are there for every choice that a real server may have made.
"""

import itertools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any

from esl_pipeline.sandbox.label_server.floor import Change, Floor, Hang, Template
from esl_pipeline.sandbox.label_server.pictures import render
from esl_pipeline.sandbox.label_server.places import as_row, dies_at, is_found, iso, last_poll, next_poll
from esl_pipeline.sandbox.label_server.tables import SCHEMA, TEMPLATES

REFRESH = "refresh"
BY_HAND = "by_hand"

_DAY = 86_400.0


class DeviceError(Exception):
    """What a call names does not exist, or does not fit; the message is the server's."""


class Fleet:
    """The devices of one sandbox server, in the database of its labels. Shares lock and connection with LabelStore."""

    def __init__(
        self,
        db: sqlite3.Connection,
        lock: "threading.RLock",
        log: Callable[..., int],
        *,
        auto_trigger: bool,
        floor: Floor,
        clock: Callable[[], float],
    ) -> None:
        self._db, self._lock, self._log, self._clock = db, lock, log, clock
        self._auto_trigger, self._default = auto_trigger, floor
        self._ahead = 0.0
        db.create_function("render", 3, render, deterministic=True)
        db.create_function("next_poll", 6, next_poll, deterministic=True)
        db.create_function("last_poll", 3, last_poll, deterministic=True)
        db.create_function("dies_at", 3, dies_at, deterministic=True)
        db.create_function("is_found", 5, is_found, deterministic=True)
        db.executescript(SCHEMA)
        with db:
            db.execute(TEMPLATES)
        self._order: dict[str, list[int]] = {}
        self._floors = {
            row["store"]: Floor.model_validate_json(row["floor"]) for row in self._all("select * from floor")
        }
        self._stores = {row["store"] for row in self._all("select distinct store from device")}

    # Time

    def now(self) -> float:
        """Seconds since the epoch on the shop floor."""
        return self._clock() + self._ahead

    def tick(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._ahead += seconds
        self.settle()

    def settle(self) -> None:
        """Let happen what has fallen due: pictures are fetched."""
        if not self._stores:
            return
        now = self.now()
        with self._lock, self._db:
            due = self._all(
                "select store, max(due_at) as at from device indexed by device_due"
                " where reach = 1 and due_at <= ? and due_at < dies_at group by store",
                [now],
            )
            for row in due:
                change = self._log(row["store"], "", iso(row["at"]), REFRESH, None)
                self._db.execute(
                    "update device indexed by device_due set shown_at = due_at, due_at = null, change = ?,"
                    " updated = iif(?, due_at, updated),"
                    " shown = render("
                    "(select l.record from label l where l.store = device.store and l.code = device.product),"
                    " shown, (select t.fields from template t where t.id = device.template))"
                    " where store = ? and reach = 1 and due_at <= ? and due_at < dies_at",
                    [change, self.floor(row["store"]).rows_move == "on_refresh", row["store"], now],
                )

    # What LabelStore tells

    def covers(self, store: str) -> bool:
        """Whether the labels of a store are devices."""
        return store in self._stores or self.floor(store).staff

    def product_changed(self, store: str, code: str, change: int) -> None:
        """A product is there, new or different."""
        if self.floor(store).staff:
            self._hang_up(store, code, change)
        self._queue(store, self._bound(store, code), change)

    def product_gone(self, store: str, code: str, change: int) -> None:
        """A product is deleted: that unbinds its devices."""
        bound = self._bound(store, code)
        self._db.execute(
            "update device set product = null, updated = ? where id in (select value from json_each(?))",
            [self.now(), json.dumps(bound)],
        )
        self._queue(store, bound, change)

    def trigger(self, store: str) -> int:
        """Start the refresh queue of a store; how many devices were in it."""
        self.settle()
        floor = self.floor(store)
        with self._lock, self._db:
            started = self._db.execute(
                "update device set waits = 0, due_at = coalesce(due_at,"
                " next_poll(id, :now, coalesce(shown_at, created), :poll, :sleep, :wake))"
                " where store = :store and waits = 1",
                {**_polling(floor), "now": self.now(), "store": store},
            ).rowcount
        self.settle()
        return started

    def take_over(self) -> None:
        """Where staff hang labels, those that hang already are devices from now on."""
        for store in [row["store"] for row in self._all("select distinct store from physical")]:
            if self.covers(store):
                rows = self._all(
                    "select code, record, waits from physical where store = ? order by id", [store]
                )
                self.hang(Hang(store=store, products=[row["code"] for row in rows], shown=False))
                with self._db:
                    self._db.executemany(
                        "update device set shown = ?, waits = ?, due_at = null where store = ? and product = ?",
                        [(row["record"], row["waits"], store, row["code"]) for row in rows],
                    )

    def clear(self) -> None:
        """Forget all devices, how the stores are, and the time that was made to pass."""
        for statement in (
            "delete from device",
            "delete from dead_ap",
            "delete from floor",
            "delete from template",
            TEMPLATES,
        ):
            self._db.execute(statement)
        self._ahead = 0.0
        self._order.clear()
        self._floors.clear()
        self._stores.clear()

    # What people do

    def floor(self, store: str) -> Floor:
        """How the labels of a store behave."""
        return self._floors.get(store, self._default)

    def set_floor(self, store: str, floor: Floor) -> Floor:
        """Change that: what `floor` does not say stays."""
        self.settle()
        with self._lock, self._db:
            said = {name: getattr(floor, name) for name in floor.model_fields_set}
            self._floors[store] = kept = self.floor(store).model_copy(update=said)
            self._db.execute("insert or replace into floor values (?, ?)", [store, kept.model_dump_json()])
        return kept

    def set_template(self, template: Template) -> None:
        """Add a template, or change one: labels that use it show it after their next refresh."""
        with self._lock, self._db:
            fields = None if template.fields is None else json.dumps(template.fields)
            self._db.execute(
                "insert or replace into template values (?, ?, ?, ?, ?)",
                [template.id, template.model, template.name, template.is_default, fields],
            )

    def set_ap(self, store: str, ap: str, *, dead: bool) -> int:
        """An access point dies, or lives again; how many devices are behind it."""
        self.settle()
        with self._lock, self._db:
            self._db.execute("delete from dead_ap where store = ? and ap = ?", [store, ap])
            if dead:
                self._db.execute("insert into dead_ap values (?, ?)", [store, ap])
            behind = [
                r["id"] for r in self._all("select id from device where store = ? and ap = ?", [store, ap])
            ]
            self._reconsider(store, behind)
        return len(behind)

    def hang(self, wish: Hang) -> list[str]:
        """Hang devices; their codes. A store that has any has no other labels."""
        self.settle()
        with self._lock, self._db:
            change = self._log(wish.store, "", iso(self.now()), BY_HAND, None)
            codes = self._insert(wish, change)
            chosen = self._chosen(wish.store, codes, None)
            self._reconsider(wish.store, chosen)
            if wish.shown:
                self._draw(chosen)
            else:
                bound = "select id from device where product is not null and id in (select value from json_each(?))"
                self._queue(wish.store, [row["id"] for row in self._all(bound, [json.dumps(chosen)])], change)
            self._db.execute("delete from physical where store = ?", [wish.store])
        return codes

    def change(self, change: Change) -> int:
        """Let something happen to devices; to how many."""
        self.settle()
        with self._lock, self._db:
            now, chosen = self.now(), self._chosen(change.store, change.esl_codes, change.products)
            self._db.execute(
                "update device set offline = coalesce(:offline, offline), asleep = coalesce(:asleep, asleep),"
                " fallen = coalesce(:fallen, fallen), template = coalesce(:template, template),"
                " model = coalesce(:model, model), ap = coalesce(:ap, ap), drain = coalesce(:drain, drain),"
                " battery = coalesce(:battery, max(0, battery - drain * (:now - battery_at) / 3600)),"
                " battery_at = :now where id in (select value from json_each(:ids))",
                {**change.model_dump(), "now": now, "ids": json.dumps(chosen)},
            )
            self._reconsider(change.store, chosen)
        return len(chosen)

    def remove(self, store: str, esl_codes: list[str] | None = None) -> int:
        """Take devices away for good; how many there were."""
        self.settle()
        with self._lock, self._db:
            chosen = self._chosen(store, esl_codes, None)
            self._db.execute(
                "delete from device where id in (select value from json_each(?))", [json.dumps(chosen)]
            )
            self._log(store, "", iso(self.now()), BY_HAND, None)
            self._order.pop(store, None)
        return len(chosen)

    # What the server's actions do

    def bind(self, store: str, bindings: Iterable[tuple[str, str, int | None]]) -> None:
        """Bind devices (code, product, template or None): all or none."""
        self.settle()
        with self._lock, self._db:
            for code, product, template in bindings:
                device = self._device(store, code)
                if not self._all("select 1 from label where store = ? and code = ?", [store, product]):
                    raise DeviceError("product_code not exists")
                fits = "select 1 from template where id = ? and model = ?"
                if template is not None and not self._all(fits, [template, device["model"]]):
                    raise DeviceError("esltemplate_id not exists")
                self._rebind(store, device["id"], product, template)

    def unbind(self, store: str, code: str) -> None:
        """End the binding of a device."""
        self.settle()
        with self._lock, self._db:
            self._rebind(store, self._device(store, code)["id"], None, None)

    def flash(self, store: str, codes: Iterable[str]) -> None:
        """Let the LEDs of devices flash."""
        with self._lock, self._db:
            for code in codes:
                device = self._device(store, code)
                self._db.execute("update device set flashes = flashes + 1 where id = ?", [device["id"]])

    def page(self, store: str, offset: int, size: int) -> list[dict[str, Any]]:
        """Rows of devices in the order of their hanging."""
        self.settle()
        with self._lock:
            return self._rows(store, self._ids(store)[offset : offset + size])

    def find(self, store: str, codes: Iterable[str]) -> list[dict[str, Any]]:
        """The rows of these devices, where they exist."""
        self.settle()
        with self._lock:
            return self._rows(store, self._chosen(store, list(codes), None))

    def count(self, store: str) -> dict[str, int]:
        """How many the server calls online, and offline."""
        self.settle()
        (row,) = self._all(
            "select count(*) as n, coalesce(sum((silent and since + :after <= :now) or dies_at + :after <= :now), 0)"
            " as lost from device where store = :store",
            {"store": store, "after": self.floor(store).offline_after, "now": self.now()},
        )
        return {"online_count": row["n"] - row["lost"], "offline_count": row["lost"]}

    def templates(self) -> list[sqlite3.Row]:
        """All templates."""
        return self._all("select * from template order by id")

    def look(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        """What a query finds now; see the view `place` (tables.py) and shelf.py."""
        self.settle()
        return self._all(query, values)

    # How it is done

    def _all(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _ids(self, store: str) -> list[int]:
        """The devices of a store in their order, kept: a page is a slice of it."""
        if store not in self._order:
            rows = self._all("select id from device where store = ? order by id", [store])
            self._order[store] = [row["id"] for row in rows]
        return self._order[store]

    def _chosen(self, store: str, codes: list[str] | None, products: list[str] | None) -> list[int]:
        if codes is None and products is None:
            return self._ids(store)
        rows = self._all(
            "select id from device where store = ? and esl in (select value from json_each(?))"
            " union select id from device where store = ? and product in (select value from json_each(?)) order by id",
            [store, json.dumps(codes or []), store, json.dumps(products or [])],
        )
        return [row["id"] for row in rows]

    def _device(self, store: str, code: str) -> sqlite3.Row:
        rows = self._all("select id, model from device where store = ? and esl = ?", [store, code])
        if not rows:
            raise DeviceError("esl_code not exists")
        return rows[0]

    def _rows(self, store: str, ids: list[int]) -> list[dict[str, Any]]:
        now, floor = self.now(), self.floor(store)
        rows = self._all(
            "select * from device where id in (select value from json_each(?)) order by id", [json.dumps(ids)]
        )
        return [as_row(row, floor, now) for row in rows]

    def _triggers(self, store: str) -> bool:
        said = self.floor(store).auto_trigger
        return self._auto_trigger if said is None else said

    def _queue(self, store: str, ids: Iterable[int], change: int) -> None:
        """Put devices into the refresh queue, or start it for them."""
        floor, now = self.floor(store), self.now()
        self._db.execute(
            "update device set waits = :waits, change = :change, updated = iif(:moves, :now, updated),"
            " due_at = iif(:waits, due_at, coalesce(due_at,"
            " next_poll(id, :now, coalesce(shown_at, created), :poll, :sleep, :wake)))"
            " where id in (select value from json_each(:ids))",
            {
                **_polling(floor),
                "waits": not self._triggers(store),
                "moves": floor.rows_move == "on_push",
                "change": change,
                "now": now,
                "ids": json.dumps(list(ids)),
            },
        )

    def _draw(self, ids: list[int]) -> None:
        """Let devices show what they must, whatever stands in the way."""
        self._db.execute(
            "update device set shown_at = ?, shown = (select render(p.held, null, p.fields) from place p"
            " where p.id = device.id) where id in (select value from json_each(?))",
            [self.now(), json.dumps(ids)],
        )

    def _bound(self, store: str, code: str) -> list[int]:
        return [
            row["id"]
            for row in self._all("select id from device where store = ? and product = ?", [store, code])
        ]

    def _rebind(self, store: str, device: int, product: str | None, template: int | None) -> None:
        change = self._log(store, "", iso(self.now()), BY_HAND, None)
        self._db.execute(
            "update device set product = ?, template = coalesce(?, template), updated = ? where id = ?",
            [product, template, self.now(), device],
        )
        self._queue(store, [device], change)

    def _hang_up(self, store: str, code: str, change: int) -> None:
        """The staff bind a spare label to a product that has none, or a new one."""
        if self._bound(store, code):
            return
        spare = self._all(
            "select id from device where store = ? and product is null and shown is null and waits = 0"
            " and reach = 1 limit 1",
            [store],
        )
        if spare:
            self._rebind(store, spare[0]["id"], code, None)
        else:
            self._insert(Hang(store=store, products=[code], shown=False), change)

    def _insert(self, wish: Hang, change: int) -> list[str]:
        (row,) = self._all("select coalesce(max(seq), 0) as n from sqlite_sequence where name = 'device'")
        now, bound = self.now(), self._products(wish)
        codes = wish.esl_codes or [f"AD{row['n'] + n:010d}" for n in range(1, len(bound) + 1)]
        if len(codes) != len(bound):
            raise DeviceError(f"{len(bound)} devices need as many esl_codes")
        default = "select id from template where model = ? and is_default order by id"
        template = wish.template or next((row["id"] for row in self._all(default, [wish.model])), None)
        since = now - _DAY if wish.shown else now
        each = (
            wish.battery,
            now,
            wish.drain,
            dies_at(wish.battery, now, wish.drain),
            since,
            since,
            change,
            now,
        )
        known = "select esl from device where store = ? and esl in (select value from json_each(?))"
        if len(set(codes)) < len(codes) or self._all(known, [wish.store, json.dumps(codes)]):
            raise DeviceError("esl_codes must be new, and each only once")
        self._db.executemany(
            "insert into device (store, esl, product, template, model, ap, battery, battery_at, drain, dies_at,"
            " created, updated, change, since) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (wish.store, code, product, template, wish.model, ap, *each)
                for code, product, ap in zip(codes, bound, itertools.cycle(wish.aps), strict=False)
            ),
        )
        self._stores.add(wish.store)
        self._order.pop(wish.store, None)
        return codes

    def _products(self, wish: Hang) -> list[str | None]:
        """What the devices are to be bound to, one after the other; None: to nothing."""
        codes = wish.products
        if codes is None:
            rows = self._all("select code from label where store = ? order by id", [wish.store])
            codes = [row["code"] for row in rows]
        count = len(codes) if wish.count is None else wish.count
        bound: list[str | None] = (
            list(itertools.islice(itertools.cycle(codes), count)) if codes else [None] * count
        )
        return bound + [None] * wish.unbound

    def _reconsider(self, store: str, ids: list[int]) -> None:
        """After something has happened to devices: which can be reached now, and when they poll next."""
        floor, now = self.floor(store), self.now()
        change = self._log(store, "", iso(now), BY_HAND, None)
        self._db.execute(
            "update device set change = :change, silent = new.silent, reach = new.reach,"
            " since = iif(device.silent = new.silent and device.reach = new.reach, since, :now),"
            " updated = iif(:polls and device.reach, max(updated, last_poll(device.id, :now, :poll)), updated),"
            " dies_at = dies_at(battery, battery_at, drain),"
            " due_at = iif(due_at is null, null,"
            " next_poll(device.id, :now, coalesce(shown_at, created), :poll, :sleep, :wake))"
            " from (select id, offline or fallen or ap_dead as silent,"
            " not (offline or fallen or ap_dead or asleep) as reach from place"
            " where id in (select value from json_each(:ids))) new where new.id = device.id",
            {
                **_polling(floor),
                "polls": floor.rows_move == "on_poll",
                "change": change,
                "now": now,
                "ids": json.dumps(ids),
            },
        )


def _polling(floor: Floor) -> dict[str, float | None]:
    """What next_poll has to know."""
    return {"poll": floor.poll_seconds, "sleep": floor.sleep_after, "wake": floor.wake_seconds}
