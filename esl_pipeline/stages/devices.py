"""The physical labels of a store, as its label server lists them: read in one pass, kept where they differ."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

from esl_pipeline.ahead import ahead
from esl_pipeline.buffer.buffer import Buffer
from esl_pipeline.buffer.errors import BufferError
from esl_pipeline.hipoink.devices import Devices, Reachable, is_not_known
from esl_pipeline.hipoink.errors import HipoinkError, RejectedError
from esl_pipeline.printable import printable

COMPLAINTS_KEPT = 20

_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})")
_LONGEST_CODE, _LONGEST_TEXT, _SHOWN = 100, 200, 80
_HIGHEST_MV = 100_000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ONLINE = {"0": False, "1": True, "false": False, "true": True}


@dataclass
class DevicePass:
    """What became of reading a store's labels.

    outcome: complete; failed, with the reason; not_known: the label server has no such action (is_news: which is
    heard for the first time); or it was not read now: read (somebody has just done so), busy, elsewhere, down.
    malformed: rows that name no label, which are left out; complaints: what was wrong with rows and single fields, the
    first of each pass.
    """

    store_code: str
    outcome: str = "open"
    reason: str | None = None
    devices: int = 0
    pages: int = 0
    changed: int = 0
    gone: int = 0
    malformed: int = 0
    complaints: list[str] = field(default_factory=list)
    is_news: bool = False
    seconds: float = 0.0

    @property
    def is_read(self) -> bool:
        """Whether what the buffer holds of the store is as new as was asked for."""
        return self.outcome in ("complete", "read")

    @property
    def has_failed(self) -> bool:
        """Whether somebody should know why."""
        return self.outcome == "failed"


def read_devices(
    buffer: Buffer,
    devices: Devices,
    *,
    store: str,
    run_id: str,
    since: datetime | None = None,
    page_size: int = 200,
    pages_ahead: int = 1,
) -> DevicePass:
    """Read a store's labels, each page once, and keep what differs; at the end what is not there is gone.

    since: a complete pass that began then or later will do. page_size: rows of the first pages. The server's own times
    become UTC by its zone, as it tells it now or has told it before; without one they are not kept. A failing label
    server ends the pass, which concludes nothing then; raises BufferError only.
    """
    started, pass_id = time.monotonic(), str(uuid4())
    result = DevicePass(store)
    begun = buffer.device_pass_begin(
        pass_id=pass_id, store=store, run_id=run_id, since=None if since is None else since.isoformat()
    )
    if begun["outcome"] != "open":
        result.outcome, result.reason = begun["outcome"], begun.get("error")
        return result
    reading = _Reading(buffer, devices, result, pass_id, begun.get("zone"))
    try:
        state, error = reading.read(page_size, pages_ahead)
    except Exception as problem:
        with suppress(BufferError):
            buffer.device_pass_finish(pass_id=pass_id, state="failed", error=type(problem).__name__)
        raise
    counted = reading.counted
    finished = buffer.device_pass_finish(
        pass_id=pass_id,
        state=state,
        error=error,
        zone=reading.zone_name,
        counted_online=counted.online if counted else None,
        counted_offline=counted.offline if counted else None,
    )
    result.outcome, result.reason = finished["state"], finished["error"]
    result.devices, result.gone, result.is_news = finished["devices"], finished["gone"], finished["is_news"]
    result.seconds = round(time.monotonic() - started, 3)
    return result


def read_in_turn(
    stores: Sequence[str], read: Callable[[str], DevicePass], *, seconds: float
) -> Iterator[DevicePass]:
    """Read one store after the other; none is begun after so many seconds: it comes first the next time."""
    until = time.monotonic() + seconds
    for number, store in enumerate(stores):
        if number and time.monotonic() > until:
            return
        yield read(store)


class _Reading:
    """One pass on its way."""

    def __init__(
        self, buffer: Buffer, devices: Devices, result: DevicePass, pass_id: str, zone_name: str | None
    ) -> None:
        self._buffer, self._devices, self._result, self._pass_id = buffer, devices, result, pass_id
        self.zone_name = zone_name
        self.counted: Reachable | None = None

    def read(self, page_size: int, pages_ahead: int) -> tuple[str, str | None]:
        """How the pass is to end, and why."""
        store = self._result.store_code
        try:
            zone = self._zone()
            listed = self._devices.query_pages(store, page_size, self._count)
            with closing(ahead(listed, pages_ahead)) as pages:
                for rows in pages:
                    if not self._add(rows, zone):
                        return "failed", "another run has taken over"
        except HipoinkError as error:
            is_unknown = is_not_known(error) and not self._result.devices
            return "not_known" if is_unknown else "failed", str(error)
        return "complete", None

    def _zone(self) -> tzinfo | None:
        with suppress(HipoinkError):
            self.zone_name = self._devices.time_zone() or self.zone_name
        zone = zone_called(self.zone_name)
        if self.zone_name and zone is None:
            self._complain(
                f"the label server's time zone {printable(self.zone_name)[:_SHOWN]!r} is not known"
            )
        return zone

    def _count(self) -> int | None:
        """None: the server does not say; then the list goes on until a page brings nothing."""
        try:
            self.counted = self._devices.query_count(self._result.store_code)
        except RejectedError:
            return None
        return self.counted.online + self.counted.offline

    def _add(self, rows: Sequence[Mapping[str, Any]], zone: tzinfo | None) -> bool:
        """Store a page; False: the pass is not ours any more."""
        result, devices, malformed = self._result, dict[str, dict[str, Any]](), 0
        for row in rows:
            device, complaints = device_of(row, zone)
            for complaint in complaints:
                self._complain(complaint)
            if device is None:
                malformed += 1
            else:
                devices[device["esl_code"]] = device
        result.pages += 1
        result.malformed += malformed
        if not rows:
            return True
        noted = self._buffer.device_page(
            pass_id=self._pass_id, page=result.pages, devices=list(devices.values()), malformed=malformed
        )
        result.devices += len(devices)
        result.changed += noted["changed"]
        return bool(noted["open"])

    def _complain(self, complaint: str) -> None:
        if len(self._result.complaints) < COMPLAINTS_KEPT:
            self._result.complaints.append(complaint)


def zone_called(name: str | None) -> tzinfo | None:
    """The time zone of this name, or of this offset; None: there is none."""
    if not name:
        return None
    if match := _OFFSET.fullmatch(name):
        hours, minutes = int(match[2]), int(match[3])
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if match[1] == "-" else 1)
        return timezone(offset) if abs(offset) < timedelta(hours=24) else None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def utc_of(text: str | None, zone: tzinfo | None) -> str | None:
    """A server's own time in UTC (ISO 8601); None: it says none, or in no zone that is known.

    Of the hour that the end of summer time repeats the earlier one is meant: nothing is said to be later than it was.
    """
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        zone = at.tzinfo or zone
        return None if zone is None else at.replace(tzinfo=zone).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):  # as 0000-00-00 00:00:00
        return None


def device_of(row: Mapping[str, Any], zone: tzinfo | None) -> tuple[dict[str, Any] | None, list[str]]:
    """A row of the listing as the buffer keeps it (esl.device_row), None when it names no label; and what is wrong."""
    code = _text(row.get("esl_code"))
    if code is None or len(code) > _LONGEST_CODE or _UNSTORABLE.search(code):
        return None, [f"a row names no label: {_shown(dict(row))}"]
    battery, online = _battery(row.get("esl_battery")), _online(row.get("online"))
    product, updated = _kept(row.get("product_code")), _kept(row.get("updated_at"))
    device = {
        "esl_code": code,
        "product_code": None if product == "0" else product,
        "model": _kept(row.get("esltype_code")),
        "ap_code": _kept(row.get("ap_code")),
        "battery_mv": battery,
        "online": online,
        "action": _kept(row.get("action")),
        "server_created_at": utc_of(_kept(row.get("created_at")), zone),
        "server_updated_at": utc_of(updated, zone),
        "server_updated": updated,
    }
    wrong = [
        f"{_shown(code)}: {name} {_shown(row.get(name))} is {what}"
        for name, value, what in (
            ("esl_battery", battery, "no voltage in mV"),
            ("online", online, "neither 0 nor 1"),
        )
        if value is None and row.get(name) not in (None, "", 0, "0")
    ]
    return device, wrong


def _text(value: object) -> str | None:
    """Trimmed text; a number counts as it is written. None: nothing is said."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def _kept(value: object) -> str | None:
    text = _text(value)
    return None if text is None else _UNSTORABLE.sub("\ufffd", text)[:_LONGEST_TEXT]


def _battery(value: object) -> int | None:
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else _text(value)
    if text is None or not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        return None
    return int(text) if 0 < int(text) < _HIGHEST_MV else None  # 0: it was not measured


def _online(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _ONLINE.get((_text(value) or "").lower())


def _shown(value: object) -> str:
    try:
        return printable(repr(value))[:_SHOWN]
    except RecursionError:  # nested deeper than any label
        return "…"
