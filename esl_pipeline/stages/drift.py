"""The label server's own list of a store against what it has accepted; what has drifted is queued again."""

import re
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from esl_pipeline.ahead import ahead
from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.hipoink.client import RESPONSE_FIELDS, HipoinkClient
from esl_pipeline.hipoink.errors import HipoinkError
from esl_pipeline.labels.build import canonical_json, label_hash
from esl_pipeline.labels.checks import CODE_PATTERN, UNREADABLE
from esl_pipeline.labels.lengths import fitted
from esl_pipeline.printable import printable
from esl_pipeline.sources.facts import Row

EXAMPLES_KEPT = 50
_COMPARED_AT_ONCE = 1_000

_PRICES = frozenset({"pp", "vp", "pop"})
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
_SENDABLE = re.compile(CODE_PATTERN)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SHORTEST_CUT = 8
_CODE_SHOWN = 40
# Of a label server's field: ours are shorter, so that a longer one still differs.
_TEXT_KEPT = 4_000

T = TypeVar("T")


@dataclass
class Drift:
    """How the label server's own list of a store differs from what it has accepted.

    listed: labels there. ledger: labels that should be. missing: in the ledger, not there, neither in the list nor
    when asked for. different: {code, fields: {field: (ours, theirs)}}. foreign: there, but never ours. taken_back:
    there and not in the ledger, but written by us. odd: rows whose code we could never send (none, "0", NUL, the same
    as another's but for a space); they are neither compared nor removed. changed: missing codes, and the foreign ones
    that they may hang under; those are not removed. given_up: code to kind of what did not hold after three repairs,
    and is left. missing is whole, of the others the first 50 are kept; the counts are whole. requeued: labels that are
    queued because of it. skipped: labels of the ledger of which it says nothing, because they were on their way or the
    list is incomplete (`reason`).
    """

    store_code: str
    listed: int = 0
    ledger: int = 0
    missing: list[str] = field(default_factory=list)
    missing_count: int = 0
    different: list[dict[str, Any]] = field(default_factory=list)
    different_count: int = 0
    foreign: list[str] = field(default_factory=list)
    foreign_count: int = 0
    taken_back: list[str] = field(default_factory=list)
    taken_back_count: int = 0
    odd: list[str] = field(default_factory=list)
    odd_count: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    changed_count: int = 0
    given_up: dict[str, str] = field(default_factory=dict)
    given_up_count: int = 0
    requeued: int = 0
    skipped: int = 0
    complete: bool = True
    reason: str | None = None

    def remarks(self) -> list[str]:
        """What somebody should look at, a sentence each."""
        changed = ", ".join(f"{ours} may hang as {theirs}" for ours, theirs in self.changed.items())
        given_up = ", ".join(f"{code} ({kind})" for code, kind in self.given_up.items())
        said = [
            (self.changed_count, f"missing labels, because the server changes codes: {changed}"),
            (self.given_up_count, f"came back after three repairs and are left as they are: {given_up}"),
            (
                self.taken_back_count,
                f"of ours were in no ledger and are put right: {', '.join(self.taken_back)}",
            ),
            (
                self.odd_count,
                f"have codes that no label of ours could have and are left: {', '.join(self.odd)}",
            ),
        ]
        return [f"{self.store_code}: {count} {words}" for count, words in said if count]


def compare_store(
    buffer: Buffer,
    label_client: HipoinkClient,
    *,
    store: str,
    run_id: str,
    dry_run: bool = False,
    page_size: int = 200,
    pages_ahead: int = 2,
) -> Drift:
    """Compare the label server's list of a store with the ledger, field by field where the server returns a field.

    Missing and different labels are queued again, as far as they are still wanted. What is not listed is asked for by
    code, or where the server cannot say, looked for in the list once more; and what is missing then may hang all the
    same: it is pushed in doubt, or removed when nobody wants it any more. A listed label that is in no ledger but in
    our audit is ours, and its variant decides about it. Foreign ones are left alone, unless a policy's owns_store says
    that nobody else keeps labels there: then they are removed, 5,000 a call, under the guard of mass changes. What did
    not hold after three repairs in 14 days is given up. dry_run: only count. Labels that are on their way, or were
    meanwhile, are not compared. A failing label server makes the Drift incomplete; raises BufferError only. The result
    is kept in esl.comparisons. page_size: rows of the list's first pages; pages_ahead: how many are read while others
    are compared. The list's codes are kept to the end, 200 bytes each.
    """
    comparison = _Comparison(
        buffer,
        label_client,
        store,
        run_id,
        dry_run=dry_run,
        page_size=page_size,
        pages_ahead=pages_ahead,
    )
    comparison.look()
    return comparison.concluded()


class _Comparison:
    """One store's list on its way through the comparison, a part at a time."""

    def __init__(
        self,
        buffer: Buffer,
        client: HipoinkClient,
        store: str,
        run_id: str,
        *,
        dry_run: bool,
        page_size: int,
        pages_ahead: int,
    ) -> None:
        begun = buffer.drift_begin(store=store)
        self.drift = Drift(store, ledger=begun["ledger"])
        self._buffer, self._client, self._store, self._run_id = buffer, client, store, run_id
        self._dry_run, self._page_size, self._pages_ahead = dry_run, page_size, pages_ahead
        self._since, self._is_owned = begun["at"], begun["owned"]
        self._listed: set[str] = set()
        self._reserved = 0
        self._judged: set[str] = set()
        self._foreign: dict[str, Row] = {}
        self._padded: list[Mapping[str, Any]] = []
        self._changed: dict[str, str] = {}

    def look(self, only: Container[str] | None = None) -> None:
        """Compare what the server lists; only: these codes of it."""
        rows: list[Mapping[str, Any]] = []
        listed = self._client.query_pages(self._store, self._page_size)
        try:
            with closing(ahead(listed, self._pages_ahead)) as pages:
                for page in pages:
                    rows += page if only is None else [row for row in page if _code(row) in only]
                    if len(rows) >= _COMPARED_AT_ONCE:
                        self._add(rows)
                        rows = []
        except HipoinkError as error:
            self.drift.complete, self.drift.reason = False, str(error)
        self._add(rows)
        self._add_padded()

    def concluded(self) -> Drift:
        """What follows from the list as a whole, when it is whole."""
        if self.drift.complete:
            self._conclude_missing()
        self.drift.foreign = sorted(self._foreign)[:EXAMPLES_KEPT]
        self.drift.foreign_count = len(self._foreign)
        if self.drift.complete and self._is_owned:
            perhaps_ours = set(self._changed.values())
            strange = [label for code, label in self._foreign.items() if code not in perhaps_ours]
            self._repair([_foreign(label) for label in strange[:MAX_ROWS_PER_CALL]])
        self.drift.skipped = max(0, self.drift.ledger - len(self._judged))
        if not self._dry_run:
            drift = self.drift
            self._buffer.drift_end(
                store=self._store,
                at=self._since,
                run_id=self._run_id,
                complete=drift.complete,
                reason=drift.reason,
                listed=drift.listed,
                ledger=drift.ledger,
                skipped=drift.skipped,
                given_up=drift.given_up_count,
            )
        return self.drift

    def _add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Compare some rows of the list."""
        there: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            code, raw = _code(row), row.get("product_code")
            if not _is_enabled(row):
                continue  # a product that is switched off is on no label: not there, in either direction
            if code is None:
                self._note_odd(raw)
            elif isinstance(raw, str) and raw != code:
                self._padded.append(row)
            else:
                there.setdefault(code, []).append(row)
        self._compare(there)

    def _add_padded(self) -> None:
        """A server may pad all codes with spaces; where the list has the code without them too, that one is meant."""
        there: dict[str, list[Mapping[str, Any]]] = {}
        for row in self._padded:
            code = str(_code(row))
            if code in self._listed:
                self._note_odd(row.get("product_code"))
            else:
                there.setdefault(code, []).append(row)
        self._padded = []
        codes = list(there)
        for part in _parts_of(codes, _COMPARED_AT_ONCE):
            self._compare({code: there[code] for code in part})

    def _compare(self, there: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Rows by their code; where one code is there several times, all must be right."""
        if not there:
            return
        self._listed.update(there)
        known = self._buffer.drift_compare(store=self._store, since=self._since, codes=list(there))
        self._reserved += known["reserved"]
        self.drift.listed = len(self._listed) - self._reserved
        wrong = []
        for held in known["labels"]:
            self._judged.add(held["code"])
            found = (differing_fields(held["label"], row) for row in there[held["code"]])
            if fields := next(filter(None, found), None):
                self.drift.different_count += 1
                if len(self.drift.different) < EXAMPLES_KEPT:
                    self.drift.different.append({"code": held["code"], "fields": fields})
                wrong.append(_different(held, fields))
        for written in known["ours"]:
            self.drift.taken_back_count += 1
            if len(self.drift.taken_back) < EXAMPLES_KEPT:
                self.drift.taken_back.append(written["code"])
            wrong.append(_ours(written, there[written["code"]][0]))
        for code in known["foreign"]:
            if _is_sendable(code):
                self._foreign[code] = _as_label(there[code][0])
            else:
                self._note_odd(code)
        self._repair(wrong)

    def _note_odd(self, code: object) -> None:
        self.drift.odd_count += 1
        if len(self.drift.odd) < EXAMPLES_KEPT:
            self.drift.odd.append(_shown(code))

    def _conclude_missing(self) -> None:
        missing, moving = self._unlisted()
        if missing and not self._ask(list(missing)):
            self.look(only=missing)
        if not self.drift.complete:
            return
        gone = [held for code, held in missing.items() if code not in self._listed]
        self.drift.missing = [held["code"] for held in gone]
        self.drift.missing_count = len(gone)
        self._judged.update(self.drift.missing)
        for part in _parts_of(gone, MAX_ROWS_PER_CALL):
            self._repair([held | {"kind": "missing"} for held in part])
        self._find_changed([*self.drift.missing, *moving])

    def _unlisted(self) -> tuple[dict[str, Row], list[str]]:
        """Labels of the ledger that the list does not have, by code; and codes of labels on their way."""
        missing: dict[str, Row] = {}
        moving: list[str] = []
        codes, after = self._buffer.drift_ledger(store=self._store)
        while after is not None:
            if unlisted := [code for code in codes if code not in self._listed]:
                found = self._buffer.drift_unlisted(store=self._store, since=self._since, codes=unlisted)
                missing |= {held["code"]: held for held in found["labels"] if _is_sendable(held["code"])}
                moving += found["moving"]
            codes, after = self._buffer.drift_ledger(store=self._store, after=after)
        return missing, moving

    def _ask(self, codes: Sequence[str]) -> bool:
        """Ask for labels by code and compare those that are there after all; False: the server cannot say.

        It can when it knows a code that it lists: servers that do not know the call need not say so.
        """
        known = next(filter(_is_sendable, self._listed), None)
        for part in _parts_of(codes, max(1, self._page_size - 1)):
            try:
                rows = self._client.query_with_code(self._store, [*part, *filter(None, [known])])
            except HipoinkError:
                return False
            if known is None or known not in map(_code, rows):
                return False
            asked = set(part)
            self._add([row for row in rows if _code(row) in asked])
            self._add_padded()
        return True

    def _find_changed(self, unlisted: Sequence[str]) -> None:
        """Foreign labels that may be ours: the server may drop zeros, signs, case or the end of a code."""
        ours = {_bare(code): code for code in unlisted}
        sorted_names = sorted(ours)
        for theirs in self._foreign if ours else ():
            name = _bare(theirs)
            at = bisect_left(sorted_names, name)
            found = sorted_names[at] if at < len(sorted_names) else ""
            if found == name or (len(name) >= _SHORTEST_CUT and found.startswith(name)):
                self._changed[ours[found]] = theirs
        self.drift.changed = dict(sorted(self._changed.items())[:EXAMPLES_KEPT])
        self.drift.changed_count = len(self._changed)

    def _repair(self, labels: Sequence[Row]) -> None:
        if not labels or self._dry_run:
            return
        done = self._buffer.drift_repair(
            store=self._store, run_id=self._run_id, since=self._since, labels=labels
        )
        self.drift.requeued += done["requeued"]
        self.drift.given_up_count += len(done["given_up"])
        kinds = {label["code"]: label["kind"] for label in labels}
        for code in done["given_up"][: EXAMPLES_KEPT - len(self.drift.given_up)]:
            self.drift.given_up[code] = kinds[code]


def differing_fields(label: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Field to (ours, theirs) of the fields that we sent and the label server returned otherwise.

    In: a label with request codes; a row of the listing. Prices are equal as numbers with two decimals, an empty one
    equals 0; other fields as trimmed text. Of `extend` (as extend.key) only keys that came back under their own name.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for name, value in label.items():
        theirs = row.get(RESPONSE_FIELDS.get(name, ""), ...)
        if type(theirs) is str and theirs == value:
            continue  # nearly always
        if isinstance(value, Mapping):
            known = theirs if isinstance(theirs, Mapping) else {}
            pairs |= {
                f"{name}.{key}": (_text(inner), _text(known[key]))
                for key, inner in value.items()
                if key in known
            }
        elif theirs is not ...:
            pairs[name] = (_text(value), _text(theirs))
    return {name: pair for name, pair in pairs.items() if not _is_same(name, *pair)}


def _is_same(name: str, ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    prices = [price or "0" for price in (ours, theirs)]
    if name not in _PRICES or not all(map(_NUMBER.fullmatch, prices)):
        return False
    first, second = (Decimal(price).quantize(Decimal("0.01")) for price in prices)
    return first == second


def _different(held: Mapping[str, Any], fields: Mapping[str, tuple[str, str]]) -> Row:
    """For Buffer.drift_repair: what the label should say and what it says."""
    return {
        "code": held["code"],
        "kind": "different",
        "push_id": held["push_id"],
        "ours": {name: pair[0] for name, pair in fields.items()},
        "theirs": {name: pair[1] for name, pair in fields.items()},
    }


def _ours(written: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
    """For Buffer.drift_repair: a label of ours that the ledger does not have."""
    theirs = _as_label(row)
    sent = written["label"]
    label = theirs if sent is None else _as_shown(sent, differing_fields(sent, row))
    return {"code": written["code"], "kind": "ours", "theirs": theirs, **_hashed(label)}


def _as_shown(label: Mapping[str, Any], fields: Mapping[str, tuple[str, str]]) -> Row:
    """The label with the server's values of the fields that differ."""
    shown = dict(label)
    for name, (_, theirs) in fields.items():
        outer, _, key = name.partition(".")
        shown[outer] = {**shown[outer], key: theirs} if key else theirs
    return shown


def _foreign(label: Row) -> Row:
    return {"code": label["pc"], "kind": "foreign", "theirs": label, **_hashed(label)}


def _as_label(row: Mapping[str, Any]) -> Row:
    """What tells a foreign label apart."""
    return {name: _text(row.get(RESPONSE_FIELDS[name])) for name in ("pc", "pn", "pp")}


def _hashed(label: Row) -> Row:
    if not _NUMBER.fullmatch(_text(label.get("pp"))):
        label = label | {"pp": None}  # the ledger calculates with its prices
    return {"label": label, "label_hash": label_hash(canonical_json(label))}


def _is_enabled(row: Mapping[str, Any]) -> bool:
    said = row.get("enabled", "1")
    return said in (1, "1") or _text(said).lower() not in ("0", "false")


def _code(row: Mapping[str, Any]) -> str | None:
    """The row's code, without the spaces around it; None where there is none, or one that no text column takes."""
    code = row.get("product_code")
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    return code.strip() or None if isinstance(code, str) and not _UNSTORABLE.search(code) else None


def _is_sendable(code: str) -> bool:
    """Whether a label of ours may have this code: no other is ever written or removed."""
    return bool(_SENDABLE.fullmatch(code)) and bool(code.strip("0"))


def _bare(code: str) -> str:
    """What is left of a code on servers that take it for a number, or change its case or signs."""
    return "".join(filter(str.isalnum, code.casefold())).lstrip("0")


def _shown(code: object) -> str:
    return printable(code if isinstance(code, str) else f"({type(code).__name__})")[:_CODE_SHOWN]


def _parts_of(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _text(value: object) -> str:
    """A field as one text that any column takes; what should be text and is not stands for itself by its type."""
    if isinstance(value, Mapping | list):
        return f"({type(value).__name__})"
    return "" if value is None else _UNSTORABLE.sub(UNREADABLE, fitted(str(value), _TEXT_KEPT)).strip()
