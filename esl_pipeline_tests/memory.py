"""How much memory this process and the database's own processes have held at most, since a moment."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

MIB = 1024 * 1024


@dataclass
class Peak:
    """Highest resident memory in MiB: of this process beyond what it had, and of the database's largest backend."""

    process: int = 0
    backend: int = 0


@contextmanager
def peak_memory(dsn: str) -> Iterator[Peak]:
    """Measures while inside; known at the end. The backends are those that are connected at the start and stay."""
    peak = Peak()
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
    backends = [Path(f"/proc/{pid}") for (pid,) in rows]
    own = Path("/proc/self")
    for process in (own, *backends):
        (process / "clear_refs").write_text("5")
    before = _highest(
        [own]
    )  # what earlier tests have left in this process is not of the work that is measured
    yield peak
    peak.process, peak.backend = _highest([own]) - before, _highest(backends)


def _highest(processes: Iterable[Path]) -> int:
    lines = [line for process in processes for line in (process / "status").read_text().splitlines()]
    return max(int(line.split()[1]) * 1024 // MIB for line in lines if line.startswith("VmHWM"))
