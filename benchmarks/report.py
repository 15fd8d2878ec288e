"""What a benchmark found: rows with what was measured and what was promised, as a table, as JSON and as pictures."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("dagster", "fastapi", "httpx", "pandas", "pandera", "psycopg", "pydantic", "uvicorn", "pyarrow")


@dataclass(frozen=True)
class Row:
    """One figure. under: the conditions; found: as it is read; values: the same as numbers; promised: the bound in
    words, None where there is none; kept: whether it is."""

    what: str
    under: str
    found: str
    values: Mapping[str, Any] = field(default_factory=dict)
    promised: str | None = None
    kept: bool = True


class Report:
    """Rows, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, *rows: Row) -> None:
        """These too."""
        for row in rows:
            self.rows.append(row)
            print(_line(row), flush=True)

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept."""
        return [
            f"{row.what}, {row.under}: {row.found}, promised {row.promised}"
            for row in self.rows
            if not row.kept
        ]

    def write(self, folder: Path, about: Mapping[str, Any]) -> None:
        """bench.json and bench.md."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "what": row.what,
                "under": row.under,
                "found": row.found,
                **row.values,
                "promised": row.promised,
                "kept": row.kept,
            }
            for row in self.rows
        ]
        said = {**about, "broken": self.broken, "rows": rows}
        (folder / "bench.json").write_text(json.dumps(said, indent=1) + "\n")
        (folder / "bench.md").write_text(_markdown(self.rows, about))


def machine() -> dict[str, Any]:
    """Where this runs."""
    return {
        "processor": _first("/proc/cpuinfo", "model name"),
        "processors": os.cpu_count(),
        "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "system": platform.platform(),
        "load_average": os.getloadavg(),
    }


def versions(postgres: int) -> dict[str, str]:
    """Of what runs here."""
    found = {"python": platform.python_version(), "postgres": str(postgres)}
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        commit = version("esl-pipeline")
    return found | {"esl-pipeline": commit} | {name: version(name) for name in _PACKAGES}


def _first(file: str, name: str) -> str:
    lines = Path(file).read_text().splitlines() if sys.platform == "linux" else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "0")


def _line(row: Row) -> str:
    verdict = "" if row.promised is None else f"{'  ' if row.kept else 'NO'} {row.promised}"
    return f"{row.what:26} {row.under:44} {row.found:66} {verdict}".rstrip()


def _markdown(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    lines = ["| what | under | found | promised |", "|---|---|---|---|"]
    for row in rows:
        promised = (row.promised or "") + ("" if row.kept else " **broken**")
        lines.append(f"| {row.what} | {row.under} | {row.found} | {promised} |")
    where = about["machine"]
    return (
        "\n".join(lines)
        + f"\n\n{where['processors']} x {where['processor']}, {where['memory_gib']} GiB; {about['mode']} run, "
        f"{about['seconds']:.0f} s; esl-pipeline {about['versions']['esl-pipeline']}\n"
    )
