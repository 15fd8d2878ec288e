"""Frames from plain columns, and as plain rows.

Apart from rows.py, for a receiver knows the rows and starts without pandas.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

# Text comes as Python's objects and is read as such: to make Arrow's arrays of it and take them apart again would be
# half of a small round.
pd.set_option("mode.string_storage", "python")

# Rows are taken out of a frame this many at a time: all of them as dicts would be several times its size.
_ROWS_AT_ONCE = 1_000


def columns_of(rows: Collection[Sequence[Any]], names: Collection[str]) -> dict[str, Sequence[Any]]:
    """Rows of values, as a column for each name."""
    return dict(zip(names, zip(*rows, strict=True) if rows else ((),) * len(names), strict=True))


def frame_of(
    columns: Mapping[str, Iterable[Any]], kinds: Mapping[str, str], index: list[int] | None = None
) -> pd.DataFrame:
    """A frame of these columns of one length, each of its kind (a pandas dtype), in the kinds' order.

    Column by column: pandas would else find out types that it is told anyway, and align what is aligned.
    """
    arrays = {name: _array(list(columns[name]), kind) for name, kind in kinds.items()}
    return pd.DataFrame(arrays, index=index, copy=False)


def _array(values: list[Any], kind: Any) -> Any:
    # Of lists numpy would make an array of two dimensions.
    return pd.Series(values, dtype=kind).array if kind == "object" else pd.array(values, dtype=kind)


def records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of any frame by column name, as plain values, null as None."""
    names = [str(name) for name in frame.columns]
    for start in range(0, len(frame), _ROWS_AT_ONCE):
        part = frame.iloc[start : start + _ROWS_AT_ONCE]
        for values in part.to_numpy(dtype=object, na_value=None).tolist():  # type: ignore[arg-type]  # the stubs know no None
            yield dict(zip(names, values, strict=True))
