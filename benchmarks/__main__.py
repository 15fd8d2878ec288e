"""The benchmark: `python -m benchmarks [--quick] [--out DIR]` (make bench, make bench QUICK=1). Linux.

Against the sandboxes over loopback, each part in a process of its own. What is measured stands in the table, with what
is promised of it; table, JSON and pictures are written to DIR. The last line is the summary; exits 1 when a promise is
broken.

Latency is of a pipeline that runs: the drain of each label server is production's job, run again and again by a process
that stays, so the start of a run by Dagster's daemon is in none of the figures.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import phases, pictures
from benchmarks.night import WORKERS
from benchmarks.parts import DEFAULT, deployment
from benchmarks.phases import QUANTILES, Phase
from benchmarks.report import Report, Row, machine, versions
from benchmarks.sizes import FULL, QUICK, Sizes


def _draw(report: Report, folder: Path) -> None:
    waits = [row for row in report.rows if row.what.startswith("latency")]
    (folder / "latency.svg").write_text(
        pictures.bars(
            "From the receiver's 200 to the label server's acceptance",
            "seconds",
            QUANTILES,
            [
                pictures.Bars(
                    f"{row.what.removeprefix('latency, ')}, {row.values['milliseconds']:g} ms a call",
                    [row.values[name] for name in QUANTILES],
                )
                for row in waits
            ],
        )
    )
    rates = [row for row in report.rows if "labels_per_second" in row.values]
    (folder / "throughput.svg").write_text(
        pictures.bars(
            "First fills beside what the label server allows",
            "labels a second",
            ("measured", "bound"),
            [
                pictures.Bars(
                    f"{row.what.removeprefix('first fill ')}, {row.under}",
                    [
                        row.values["labels_per_second"],
                        row.values["labels_per_second"] / row.values["ratio"]
                        if "ratio" in row.values
                        else None,
                    ],
                )
                for row in rates
            ],
        )
    )


def _plan(sizes: Sizes) -> list[tuple[list[str], list[Phase]]]:
    """What is measured on which deployment, by the names of its label servers."""
    names = [DEFAULT, *(f"server-{n}" for n in range(2, sizes.servers + 1))]
    if sizes.servers == 2:
        return [(names, [phases.fills, phases.latencies, phases.hanging, phases.label_servers])]
    return [(names[:2], [phases.fills, phases.latencies, phases.hanging]), (names, [phases.label_servers])]


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="the same bounds at smaller sizes, in some minutes"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-result"), help="folder of what is written")
    given = parser.parse_args()
    sizes, folder = QUICK if given.quick else FULL, given.out.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    report, began = Report(), time.monotonic()
    about: dict[str, Any] = {
        "mode": sizes.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    about |= {"machine": machine(), "versions": versions(0)}
    try:
        for places, measured in _plan(sizes):
            idle = {"ESL_DRAIN_IDLE_SECONDS": str(sizes.drain_idle)}
            with deployment(places, settings=idle, beside=WORKERS) as deployed:
                about["versions"] = versions(deployed.postgres.version)
                for phase in measured:
                    for _ in phase(deployed, sizes, report):
                        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
                phases.memory(deployed, report)
        phases.beside_prior(report)
        phases.receivers(sizes, report)
        phases.growths(report)
    except SystemExit as ended:
        report.add(Row("the run", "to its end", str(ended), promised="ends", kept=False))
    about["seconds"] = time.monotonic() - began
    report.write(folder, about)
    _draw(report, folder)
    broken = report.broken
    print("\n".join(["", *(f"BROKEN: {one}" for one in broken)]))
    kept = sum(row.promised is not None for row in report.rows) - len(broken)
    verdict = f"{len(broken)} BROKEN" if broken else "none broken"
    print(f"bench {sizes.name}: {kept} promises kept, {verdict}, in {about['seconds']:.0f} s; {folder}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
