"""Findings for a shopkeeper: all of them, and as a file that a spreadsheet opens."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from esl_pipeline.buffer.buffer import MAX_ROWS_PER_CALL, Buffer
from esl_pipeline.printable import cell

CSV_COLUMNS = {
    "hipoink_store_code": "store",
    "source_store_id": "shop",
    "variant_id": "variant_id",
    "title": "title",
    "variant_title": "variant_title",
    "sku": "sku",
    "level": "level",
    "check_name": "check",
    "column_name": "column",
    "value": "value",
    "reason": "reason",
    "action": "what_to_do",
    "first_seen_at": "first_seen",
    "last_seen_at": "last_seen",
}


def all_findings(buffer: Buffer, *, store: str | None = None) -> Iterator[dict[str, Any]]:
    """Every open finding, in calls of at most 5,000 rows. Raises BufferError."""
    after: list[str] | None = None
    while page := buffer.findings(store=store, limit=MAX_ROWS_PER_CALL, after=after):
        yield from page
        after = [page[-1][key] for key in ("level", "check_name", "variant_id", "mapping_id")]


def write_csv(path: Path, findings: Iterable[Mapping[str, Any]]) -> int:
    """UTF-8 with a byte order mark, so that spreadsheets read accents; returns the number of findings."""
    count = 0
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS.values())
        for finding in findings:
            writer.writerow(_cell(finding[key]) for key in CSV_COLUMNS)
            count += 1
    return count


def _cell(value: Any) -> str:
    return "" if value is None else cell(str(value))
