"""A shop read from its folder, in the words of `source.Reader`.

Which files were read is known to the pipeline (`source.Memory`): each is judged once, by its name, size and time, and
applied once, by its hash. A file's version is the time when it was written; of two statements about a product the later
one holds, whatever is read first.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from esl_pipeline.printable import printable
from esl_pipeline.sources.facts import Facts, Row
from esl_pipeline.sources.files.facts import Telling, facts_of
from esl_pipeline.sources.files.faults import FileError
from esl_pipeline.sources.files.folder import Folder, Found
from esl_pipeline.sources.files.judge import Verdict, judge
from esl_pipeline.sources.files.listing import Listing, read
from esl_pipeline.sources.files.names import kind_of
from esl_pipeline.sources.source import Memory, News, NothingToReadError, OnStart, Reader, SourceError

_CHUNK = 1_000
_COMPLAINTS = 100
_TO_READ = ("ready", "approved")


@dataclass(frozen=True)
class _File:
    """A file that is in the folder, with what is known of it (a row of Buffer.files_known)."""

    found: Found
    row: Row

    @property
    def version_at(self) -> datetime:
        """Its time as a statement: of two about a product the later one holds."""
        return datetime.fromisoformat(self.row["version_at"])


class FilesReader(Reader):
    """Reads a shop's folder. smallest_share: see judge; settle_seconds: how long new files must stand still."""

    stock_in_catalogue = True

    def __init__(
        self,
        folder: Folder,
        shop: str,
        *,
        smallest_share: int,
        settle_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder, self._shop, self._sleep = folder, shop, sleep
        self._smallest_share, self._settle_seconds = smallest_share, settle_seconds
        self._memory: Memory | None = None
        self._named: dict[str, str] = {}
        self._whole: int | None = None
        """The full list that was read, by its id."""

    def remember(self, memory: Memory) -> None:
        """Which files were read, and how the shop's stores call the columns."""
        self._memory, self._named = memory, columns_of(memory.policies(), self._shop)

    def news(self, state: str) -> News:
        """Lists that are new, or approved. Each is told of when it stood still between two looks, whatever comes beside
        it; state: which were seen."""
        found = self._folder.files()
        rows = {_key(row): row for row in self._known(found)["files"]} if found else {}
        new = {
            _digest([file.name, file.size, file.modified_at.isoformat(), row and row["state"]]): file
            for file in found
            if (row := rows.get(_key(file))) is None or row["state"] in _TO_READ
        }
        seen = new.keys() & state.split()
        kinds = {kind_of(new[digest].name) for digest in seen}
        # A name that says no kind is judged by whoever reads changes.
        name = _digest(sorted(seen)) if seen else ""
        return News(" ".join(sorted(new)), name, "full" in kinds, bool(kinds - {"full"}))

    def catalogue(self, on_start: OnStart, *, chunk: int) -> Iterator[Facts]:
        """The newest full list that may be read. As of when it was written: what came later knows better."""
        files, last = self._look()
        full = [
            file
            for file in files
            if file.row["kind"] == "full" and file.row["state"] in (*_TO_READ, "applied")
        ]
        if not full and last is None:
            raise SourceError(
                f"the folder of {self._shop} has no full list that can be read: see `esl-pipeline files list`"
            )
        if last and (not full or full[-1].version_at < datetime.fromisoformat(last["version_at"])):
            raise NothingToReadError(
                f"the last full list of {self._shop}, {printable(last['name'])}, is not in its folder any more, and "
                "none that is newer can be read: see `esl-pipeline files list`"
            )
        newest = full[-1]
        on_start(newest.version_at)
        listing = self._listing(newest)
        yield from self._facts(newest, listing, chunk)
        self._whole = newest.row["id"]

    def stored(self) -> None:
        """The full list is applied."""
        if self._whole is not None:
            self._asked().finish_file(self._whole, None)

    def changes(self, since: datetime) -> Iterator[Facts]:  # noqa: ARG002 - what was read is known by file
        """The change lists that are not applied yet, the oldest first, up to a full list that is still to be read."""
        files, last = self._look()
        misfits = list[str]()
        for file in files:
            if file.row["state"] not in _TO_READ:
                continue
            if file.row["kind"] == "full":
                break  # what follows waits for it: a product that is told of later would keep what it does not say
            if last and file.row["key"] != last["key"]:  # this list came after the change list was judged
                if file.version_at < datetime.fromisoformat(last["version_at"]):
                    self._asked().finish_file(file.row["id"], [])  # whose word counts for every product
                else:
                    misfits.append(printable(file.found.name))
                continue
            listing = self._listing(file)
            # What the full lists say too, and this one does not.
            silent = set(last["fields"] if last else ()) - listing.places.keys()
            yield from self._facts(file, listing, _CHUNK, silent)
            held = set(self._known([file.found])["held"])
            told = (
                [entry.id for entry in listing.entries() if entry.id in held and not entry.problem]
                if held
                else []
            )
            self._asked().finish_file(file.row["id"], told)
        if misfits:
            raise SourceError(
                f"{', '.join(misfits)} of {self._shop} cannot be used: the last full list tells products by another "
                "column; write the changes anew, with that column, and remove the old ones"
            )

    def _look(self) -> tuple[list[_File], Row | None]:
        """The files in the folder that stand still, each judged; and the last full list that was applied."""
        found = self._folder.files()
        known = self._known(found)
        rows = {_key(row): row for row in known["files"]}
        new = [file for file in found if _key(file) not in rows]
        if new:
            self._sleep(self._settle_seconds)
            still = set(self._folder.files())
            for file in new:
                if file in still and (row := self._judged(file)):
                    rows[_key(file)] = row
        files = [_File(file, rows[_key(file)]) for file in found if _key(file) in rows]
        return sorted(files, key=lambda file: file.version_at), known["last_full"]

    def _judged(self, file: Found) -> Row | None:
        """A new file's row, or None when it is gone or was written to while it was read."""
        try:
            raw = self._folder.read(file)
            if file not in self._folder.files():
                return None
        except SourceError:
            if file in self._folder.files():
                raise
            return None
        sha256 = hashlib.sha256(raw).hexdigest()
        known = self._known([file], sha256)
        verdict = judge(file, raw, known, self._named, smallest_share=self._smallest_share)
        return self._asked().note_file(_row(file, sha256, self._columns, verdict))

    def _listing(self, file: _File) -> Listing:
        raw = self._folder.read(file.found)
        if hashlib.sha256(raw).hexdigest() != file.row["sha256"]:
            raise SourceError(
                f"{file.found.name} of {self._shop} has changed and kept its size and time: write it anew"
            )
        try:
            return read(raw, file.row["kind"], self._named)
        except FileError as fault:  # it was judged with other columns
            raise SourceError(f"{file.found.name} of {self._shop} cannot be read: {fault}") from None

    def _facts(
        self, file: _File, listing: Listing, chunk: int, silent: Collection[str] = ()
    ) -> Iterator[Facts]:
        shop = {name: file.row[name] for name in ("source_system", "source_store_id")}
        name = printable(file.found.name)
        return facts_of(Telling(listing, shop, file.row["version_at"], name, silent), chunk=chunk)

    def _known(self, files: Sequence[Found], sha256: str | None = None) -> Row:
        rows = [_told(file) | {"sha256": sha256, "kind": kind_of(file.name)} for file in files]
        return self._asked().known_files(rows, self._columns)

    def _asked(self) -> Memory:
        if self._memory is None:
            raise SourceError(
                f"the files of {self._shop} cannot be read without knowing which were read before"
            )
        return self._memory

    @property
    def _columns(self) -> str:
        return json.dumps(self._named, sort_keys=True, ensure_ascii=False)


def columns_of(policies: Mapping[str, Mapping[str, Any]], shop: str) -> dict[str, str]:
    """The columns that a shop's stores name. Raises SourceError when they differ: the file is read once."""
    found: dict[str, dict[str, str]] = {}
    for store, settings in sorted(policies.items()):
        named = settings.get("columns") or {}
        found[store] = (
            {field: name for field, name in named.items() if name} if isinstance(named, dict) else {}
        )
    different = {json.dumps(named, sort_keys=True): store for store, named in found.items()}
    if len(different) > 1:
        one, other = sorted(different.values())[:2]
        raise SourceError(
            f"the stores {one} and {other} name different columns for the files of {shop}, which are read once for all "
            "of its stores: name the same ones in both, with `esl-pipeline stores set` and --policy columns.…"
        )
    return next(iter(found.values()), {})


def _row(file: Found, sha256: str, columns: str, verdict: Verdict) -> Row:
    listing = verdict.listing
    complaints = list(islice(listing.complaints(), _COMPLAINTS)) if listing else []
    return {
        **_told(file),
        "sha256": sha256,
        "columns": columns,
        "kind": verdict.kind,
        "key": listing.key if listing else None,
        "fields": sorted(listing.places) if listing else [],
        "state": verdict.state,
        "reason": verdict.reason,
        "rows": listing.rows if listing else 0,
        **dict(verdict.counts),
        "complaints": [{"line": one.line, "says": one.says} for one in complaints],
    }


def _told(file: Found) -> Row:
    return {"name": file.name, "size": file.size, "modified_at": file.modified_at.isoformat()}


def _key(file: Found | Row) -> tuple[str, int, datetime]:
    if isinstance(file, Found):
        return file.name, file.size, file.modified_at
    return file["name"], file["size"], datetime.fromisoformat(file["modified_at"]).astimezone(UTC)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
