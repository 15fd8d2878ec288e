"""Rows as a file that a spreadsheet opens."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esl_pipeline.commands.shared import CommandError
from esl_pipeline.printable import cell


def write_csv(path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> int:
    """UTF-8 with a byte order mark, so that spreadsheets read accents, and no cell is a formula; returns the number of
    rows. columns: the rows' keys, and what they are called in the file. Raises CommandError."""
    count = 0
    try:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns.values())
            for row in rows:
                writer.writerow(_cell(row[key]) for key in columns)
                count += 1
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    return count


def _cell(value: Any) -> str:
    return "" if value is None else cell(str(value))
