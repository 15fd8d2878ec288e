"""What the sandbox label server remembers: labels, what was pushed, how often it was called.

One SQLite file, or memory. Everything that ever changed a label is kept in order, so that a test
can ask whether an older price followed a newer one.
"""

import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]
"""A label as pushed: request codes (`pc`, `pn`, `pp`, ...) to values."""

_BY_HAND = "by_hand"

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
create index if not exists label_change on label (change);
create table if not exists call (action text primary key, times integer not null);
create table if not exists push (
    store text not null, code text not null, times integer not null, primary key (store, code)
);
"""


class LabelStore:
    """The labels of one sandbox server, keyed by (store, code); safe to share between threads."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.executescript(_SCHEMA)

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
        with self._lock, self._db:
            for record in records:
                now = _now()
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

    def delete(self, store: str, codes: Iterable[str], action: str) -> int:
        """Delete labels; returns how many there were."""
        deleted = 0
        with self._lock, self._db:
            for code in codes:
                found = self._db.execute("delete from label where store = ? and code = ?", [store, code])
                if found.rowcount:
                    self._log(store, code, _now(), action, None)
                    deleted += 1
        return deleted

    def edit(self, store: str, code: str, fields: Mapping[str, Any]) -> Record:
        """Change fields of a label by hand: no call, no push and no history, as a person would."""
        with self._lock:
            row = self._db.execute(
                "select record from label where store = ? and code = ?", [store, code]
            ).fetchone()
            record = {**(json.loads(row["record"]) if row else {}), **fields, "pc": code}
            self.put(store, [record], _BY_HAND)
        return record

    def take_away(self, store: str, code: str) -> int:
        """Delete a label by hand, in the same way; returns how many there were."""
        return self.delete(store, [code], _BY_HAND)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock, self._db:
            for table in ("change", "label", "call", "push"):
                self._db.execute(f"delete from {table}")  # noqa: S608

    def page(self, store: str, offset: int, size: int) -> list[sqlite3.Row]:
        """Labels of a store in the order of their creation."""
        return self._all(
            "select * from label where store = ? order by id limit ? offset ?", [store, size, offset]
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
        (row,) = self._all("select coalesce(max(id), 0) as revision from change")
        return int(row["revision"])

    def latest(self, search: str, limit: int) -> list[sqlite3.Row]:
        """The most recently changed labels whose code, name, SKU or store contains `search`, by store."""
        return self._all(
            "select * from (select * from label where instr(search, ?) order by change desc limit ?)"
            " order by store, id",
            [search.casefold(), limit],
        )

    def totals(self, search: str) -> dict[str, Any]:
        """The figures for the page's header."""
        (row,) = self._all(
            "select count(*) as labels_total, count(distinct store) as stores,"
            " coalesce(sum(instr(search, ?) > 0), 0) as matching,"
            " (select coalesce(sum(times), 0) from call) as calls,"
            " (select at from change order by id desc limit 1) as last_change from label",
            [search.casefold()],
        )
        return dict(row)

    def state(self) -> dict[str, Any]:
        """Everything, as plain data.

        `labels[store][code]` is the record now; `calls[action]` the calls received; `pushes[store][code]`
        how many of them named the label for a change, applied or not; `history[store][code]` what was
        applied to it, in order, each with `at`, `action` and `record` (None after a delete).
        """
        with self._lock:
            labels = self._all("select store, code, record from label order by id")
            changes = self._all("select * from change where action <> ? order by id", [_BY_HAND])
            pushes = self._all("select store, code, times from push")
            calls = self._all("select action, times from call")
        history: dict[str, dict[str, list[Record]]] = {}
        for row in changes:
            record = json.loads(row["record"]) if row["record"] else None
            entry = {"at": row["at"], "action": row["action"], "record": record}
            history.setdefault(row["store"], {}).setdefault(row["code"], []).append(entry)
        return {
            "labels": _by_label((row["store"], row["code"], json.loads(row["record"])) for row in labels),
            "calls": {row["action"]: row["times"] for row in calls},
            "pushes": _by_label((row["store"], row["code"], row["times"]) for row in pushes),
            "history": history,
        }

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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
