"""What the sandbox label server remembers: labels, what was pushed, how often it was called; and the physical labels.

One SQLite file, or memory. Everything that ever changed a label is kept in order, so that a test
can ask whether an older price followed a newer one.

A physical label shows a product as it was at the label's last refresh. The sandbox's staff hang one for every product
as soon as it is created; such a label is blank until its first refresh, for binding only fills the refresh queue.
Deleting a product unbinds its label, which is in the queue as well: it shows the old price until the next refresh, and
then is blank, and the staff take it off the shelf.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zoneinfo import ZoneInfo

from esl_pipeline.sandbox.label_server import shelf
from esl_pipeline.sandbox.label_server.devices import BY_HAND, REFRESH, Fleet
from esl_pipeline.sandbox.label_server.floor import Floor

Record = dict[str, Any]
"""A label as pushed: request codes (`pc`, `pn`, `pp`, ...) to values."""

_SCHEMA = """
create table if not exists change (
    id integer primary key autoincrement, store text not null, code text not null,
    at text not null, action text not null, record text
);
create index if not exists change_label on change (store, code, id);
create table if not exists label (
    id integer primary key autoincrement, store text not null, code text not null,
    record text not null, search text not null, change integer not null,
    created_at text not null, updated_at text not null, unique (store, code)
);
create index if not exists label_order on label (store, id);
create table if not exists physical (
    id integer primary key autoincrement, store text not null, code text not null,
    record text, waits integer not null, search text not null, change integer not null, changed_at text not null,
    unique (store, code)
);
create index if not exists physical_change on physical (change);
create index if not exists physical_waits on physical (store) where waits;
create table if not exists call (action text primary key, times integer not null);
create table if not exists push (
    store text not null, code text not null, times integer not null, primary key (store, code)
);
"""


# A file of a version that knew no physical labels: what they were thought to show then.
_HANG_ALL = """
insert or ignore into physical (store, code, record, waits, search, change, changed_at)
select store, code, record, 0, search, change, updated_at from label
where store not in (select store from device) order by id
"""


class LabelStore:
    """The labels of one sandbox server, keyed by (store, code); safe to share between threads.

    `auto_trigger`: physical labels are refreshed with every change; else only by `refresh`.
    `floor`: how the labels of a store behave of which nothing else is said. `time_zone`: the server's.
    `clock`: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        auto_trigger: bool = True,
        floor: Floor | None = None,
        time_zone: str = "UTC",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._auto_trigger = auto_trigger
        self._clock = clock
        self.times_cleared = 0
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.executescript(_SCHEMA)
        self.zone = ZoneInfo(time_zone)
        self.fleet = Fleet(
            self._db, self._lock, self._log, auto_trigger=auto_trigger, floor=floor or Floor(), clock=clock
        )
        with self._db:
            self._db.execute(_HANG_ALL)
        self.fleet.take_over()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def count_call(self, action: str, store: str, codes: Iterable[str]) -> None:
        """Note one received call, and the labels that it names for a change; applied or not."""
        with self._lock, self._db:
            self._db.execute(
                "insert into call values (?, 1) on conflict do update set times = times + 1", [action]
            )
            self._db.executemany(
                "insert into push values (?, ?, 1) on conflict do update set times = times + 1",
                [(store, code) for code in codes],
            )

    def put(self, store: str, records: Iterable[Record], action: str) -> None:
        """Create or replace labels; a record is the whole label, what it omits is gone."""
        self.fleet.settle()
        with self._lock, self._db:
            for record in records:
                now = self._now()
                text = json.dumps(record, ensure_ascii=False)
                change = self._log(store, record["pc"], now, action, text)
                search = f"{record['pc']}\n{record.get('pn', '')}\n{record.get('pi', '')}\n{store}".casefold()
                self._db.execute(
                    "insert into label (store, code, record, search, change, created_at, updated_at)"
                    " values (?, ?, ?, ?, ?, ?, ?) on conflict (store, code) do update set"
                    " record = excluded.record, search = excluded.search,"
                    " change = excluded.change, updated_at = excluded.updated_at",
                    [store, record["pc"], text, search, change, now, now],
                )
                self._queue(store, record["pc"], text, search=search, change=change, now=now)

    def delete(self, store: str, codes: Iterable[str], action: str) -> int:
        """Delete labels; returns how many there were."""
        deleted = 0
        self.fleet.settle()
        with self._lock, self._db:
            for code in codes:
                found = self._db.execute("delete from label where store = ? and code = ?", [store, code])
                if found.rowcount:
                    now = self._now()
                    change = self._log(store, code, now, action, None)
                    self._queue(store, code, None, search="", change=change, now=now)
                    deleted += 1
        return deleted

    def refresh(self, store: str) -> int:
        """Let the physical labels of a store show what the server holds; returns how many were in the queue."""
        with self._lock, self._db:
            (row,) = self._all("select count(*) as n from physical where store = ? and waits", [store])
            if row["n"]:
                now = self._now()
                change = self._log(store, "", now, REFRESH, None)
                self._db.execute(
                    "update physical set waits = 0, change = ?, changed_at = ?, record ="
                    " (select l.record from label l where l.store = physical.store and l.code = physical.code)"
                    " where store = ? and waits",
                    [change, now, store],
                )
                self._db.execute(
                    "delete from physical where store = ? and change = ? and record is null", [store, change]
                )
        return int(row["n"]) + self.fleet.trigger(store)

    def _queue(
        self, store: str, code: str, record: str | None, *, search: str, change: int, now: str
    ) -> None:
        """Put the physical label of a changed product into the refresh queue, or refresh it at once."""
        if self.fleet.covers(store):
            tell = self.fleet.product_gone if record is None else self.fleet.product_changed
            tell(store, code, change)
        elif not self._auto_trigger:
            self._db.execute(
                "insert into physical (store, code, record, waits, search, change, changed_at)"
                " values (?, ?, null, 1, ?, ?, ?) on conflict (store, code) do update set waits = 1,"
                " change = excluded.change, search = iif(excluded.search = '', search, excluded.search)",
                [store, code, search, change, now],
            )
        elif record is None:
            self._db.execute("delete from physical where store = ? and code = ?", [store, code])
        else:
            self._db.execute(
                "insert into physical (store, code, record, waits, search, change, changed_at)"
                " values (?, ?, ?, 0, ?, ?, ?) on conflict (store, code) do update set waits = 0,"
                " record = excluded.record, search = excluded.search, change = excluded.change,"
                " changed_at = excluded.changed_at",
                [store, code, record, search, change, now],
            )

    def edit(self, store: str, code: str, fields: Mapping[str, Any]) -> Record:
        """Change fields of a label by hand: no call, no push and no history, as a person would."""
        with self._lock:
            row = self._db.execute(
                "select record from label where store = ? and code = ?", [store, code]
            ).fetchone()
            record = {**(json.loads(row["record"]) if row else {}), **fields, "pc": code}
            self.put(store, [record], BY_HAND)
        return record

    def take_away(self, store: str, code: str) -> int:
        """Delete a label by hand, in the same way; returns how many there were."""
        return self.delete(store, [code], BY_HAND)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock, self._db:
            self.times_cleared += 1
            for table in ("change", "label", "physical", "call", "push"):
                self._db.execute(f"delete from {table}")  # noqa: S608
            self.fleet.clear()

    def page(self, store: str, offset: int, size: int) -> list[sqlite3.Row]:
        """Labels of a store in the order of their creation."""
        # What is skipped is skipped in the index alone.
        return self._all(
            "select * from label where id in"
            " (select id from label where store = ? order by id limit ? offset ?) order by id",
            [store, size, offset],
        )

    def find(self, store: str, codes: Iterable[str]) -> list[sqlite3.Row]:
        """The labels with these codes, where they exist."""
        return self._all(
            "select * from label where store = ? and code in (select value from json_each(?)) order by id",
            [store, json.dumps(list(codes))],
        )

    def count(self, store: str) -> int:
        """How many labels a store has."""
        (row,) = self._all("select count(*) as labels from label where store = ?", [store])
        return int(row["labels"])

    def revision(self) -> int:
        """A number that is another one whenever a label has changed."""
        self.fleet.settle()
        (row,) = self._all("select coalesce(max(id), 0) as revision from change")
        return int(row["revision"])

    def latest(self, search: str, limit: int) -> list[sqlite3.Row]:
        """The physical labels that changed last whose product's code, name, SKU or store contains `search`, by store.

        Each with `record`, what it shows (None: nothing), `waits`, whether it is in the refresh queue, and `held`, what
        the server holds for it.
        """
        return self._all(
            "select p.*, l.record as held from ("
            "select * from physical where instr(search, ?) order by change desc limit ?) p"
            " left join label l on l.store = p.store and l.code = p.code order by p.store, p.id",
            [search.casefold(), limit],
        )

    def totals(self, search: str) -> dict[str, Any]:
        """The figures for the page's header."""
        (row,) = self._all(
            "select count(*) as labels_total, count(distinct store) as stores,"
            " coalesce(sum(instr(search, ?) > 0), 0) as matching,"
            " (select coalesce(sum(times), 0) from call) as calls,"
            " (select at from change order by id desc limit 1) as last_change,"
            " coalesce(sum(waits), 0) as waiting from physical",
            [search.casefold()],
        )
        devices = shelf.totals(self.fleet, search.casefold())
        added = {
            "labels_total": sum(of["labels"] for of in devices),
            "stores": len(devices),  # a store with devices has no other labels
            "matching": sum(of["matching"] for of in devices),
            "waiting": sum(of["waiting"] for of in devices),
        }
        return {**row, **{name: row[name] + more for name, more in added.items()}}

    def changes(self, store: str) -> list[Record]:
        """Whatever changed the products of a store, by hand too, oldest first: {code, at, action, record}."""
        rows = self._all("select * from change where store = ? and action <> ? order by id", [store, REFRESH])
        return [
            {
                "code": row["code"],
                "at": row["at"],
                "action": row["action"],
                "record": json.loads(row["record"]) if row["record"] else None,
            }
            for row in rows
        ]

    def calls(self) -> dict[str, int]:
        """The calls received, by action."""
        return {row["action"]: row["times"] for row in self._all("select action, times from call")}

    def state(self) -> dict[str, Any]:
        """Everything, as plain data.

        `labels[store][code]` is the record now; `shown[store][code]` what the physical label shows, where it
        shows anything; `calls[action]` the calls received; `pushes[store][code]` how many of them named the
        label for a change, applied or not; `history[store][code]` what was applied to it, in order, each with
        `at`, `action` and `record` (None after a delete); `refreshes[store]` when physical labels changed in
        answer to a trigger.
        """
        self.fleet.settle()
        with self._lock:
            labels = self._all("select store, code, record from label order by id")
            shown = self._all("select store, code, record from physical where record is not null order by id")
            shown += shelf.shown(self.fleet)
            changes = self._all(
                "select * from change where action not in (?, ?) order by id", [BY_HAND, REFRESH]
            )
            refreshes = self._all("select store, at from change where action = ? order by id", [REFRESH])
            pushes = self._all("select store, code, times from push")
            calls = self.calls()
        history: dict[str, dict[str, list[Record]]] = {}
        for row in changes:
            record = json.loads(row["record"]) if row["record"] else None
            entry = {"at": row["at"], "action": row["action"], "record": record}
            history.setdefault(row["store"], {}).setdefault(row["code"], []).append(entry)
        return {
            "labels": _by_label((row["store"], row["code"], json.loads(row["record"])) for row in labels),
            "shown": _by_label((row["store"], row["code"], json.loads(row["record"])) for row in shown),
            "calls": calls,
            "pushes": _by_label((row["store"], row["code"], row["times"]) for row in pushes),
            "history": history,
            "refreshes": {
                store: [row["at"] for row in refreshes if row["store"] == store]
                for store in dict.fromkeys(row["store"] for row in refreshes)
            },
        }

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")

    def _log(self, store: str, code: str, at: str, action: str, record: str | None) -> int:
        done = self._db.execute(
            "insert into change (store, code, at, action, record) values (?, ?, ?, ?, ?)",
            [store, code, at, action, record],
        )
        return int(done.lastrowid or 0)

    def _all(self, query: str, values: Iterable[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, list(values)).fetchall()


def _by_label(entries: Iterable[tuple[str, str, Any]]) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {}
    for store, code, value in entries:
        nested.setdefault(store, {})[code] = value
    return nested
