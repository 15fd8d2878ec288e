"""How seconds grow with what is worked off, from one size to the next: the exponent is 1 where both grow alike."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from benchmarks.report import Row

# What takes less says nothing: it is starts and pauses.
JUDGED_SECONDS = 1.0


@dataclass(frozen=True)
class Growth:
    """Of what, up to which size."""

    what: str
    size: int
    exponent: float
    judged: bool


def exponents(rows: Sequence[Row]) -> Iterator[Growth]:
    """Of each figure that was measured at several sizes under the same conditions (values: size, seconds, and the
    seconds of its steps)."""
    sized = [row for row in rows if "size" in row.values]

    def kind(row: Row) -> tuple[str, float]:
        return row.what, row.values.get("milliseconds", 0)

    for (what, _), group in groupby(sorted(sized, key=kind), kind):
        of_size = {row.values["size"]: row for row in group}
        for small, large in pairwise(of_size[size] for size in sorted(of_size)):
            before = {"": small.values["seconds"], **small.values.get("steps", {})}
            after = {"": large.values["seconds"], **large.values.get("steps", {})}
            times = large.values["size"] / small.values["size"]
            for step, seconds in after.items():
                judged = seconds >= JUDGED_SECONDS
                if step and not judged:
                    continue
                exponent = math.log(max(seconds, 0.01) / max(before[step], 0.01)) / math.log(times)
                yield Growth(f"{what}: {step}" if step else what, large.values["size"], exponent, judged)
