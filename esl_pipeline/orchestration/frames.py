"""Where steps keep their frames: Parquet over UPath, one file per asset, partition and run, written and read in parts.

In parts, so that a run's memory does not grow with the shop.
"""

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from esl_pipeline.model.rows import Dtype, Rows
from esl_pipeline.orchestration.shops import products_asset_name
from esl_pipeline.settings import load_settings
from esl_pipeline.sources.registry import SOURCES

_TYPES: dict[Dtype, pa.DataType] = {
    "str": pa.string(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "list[int64]": pa.list_(pa.int64()),
}


class Parts:
    """A frame in parts, in a Parquet file that goes with this object: `add` parts, then iterate over them.

    All columns may be null. An empty frame has one part without rows.
    """

    def __init__(self, rows: Rows) -> None:
        descriptor, name = tempfile.mkstemp(prefix="esl-frame-", suffix=".parquet")
        os.close(descriptor)
        weakref.finalize(self, Path(name).unlink, missing_ok=True)
        self.path = Path(name)
        self._schema = pa.schema([(column.name, _TYPES[column.dtype]) for column in rows.columns])
        self._writer: pq.ParquetWriter | None = pq.ParquetWriter(name, self._schema)

    def add(self, part: pd.DataFrame) -> None:
        """Append the rows of a frame."""
        assert self._writer is not None, "parts are added before they are read"
        if len(part):
            self._writer.write_table(pa.Table.from_pandas(part, self._schema, preserve_index=False))

    def close(self) -> None:
        """End of writing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __iter__(self) -> Iterator[pd.DataFrame]:
        self.close()
        with pq.ParquetFile(self.path) as stored:
            for group in range(stored.num_row_groups):
                yield stored.read_row_group(group).to_pandas()
            if not stored.num_row_groups:
                yield stored.schema_arrow.empty_table().to_pandas()

    @classmethod
    def stored_at(cls, path: UPath) -> "Parts":
        """A copy of what is stored there."""
        parts = cls(Rows())
        parts.close()
        with path.open("rb") as file, parts.path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        return parts


class ParquetFrames(dg.ConfigurableIOManager):
    """Frames as Parquet files `{base}/{asset}/{partition}/{run id}.parquet`, local or on any fsspec storage.

    The run id is in the path, so runs that overlap never read each other's frames. An asset that is materialized
    alone reads the newest frame that a run has left for its partition.
    """

    def handle_output(self, context: dg.OutputContext, obj: Parts) -> None:
        """Store one frame."""
        path = self._folder(context) / f"{context.run_id}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        obj.close()
        with obj.path.open("rb") as written, path.open("wb") as file:
            shutil.copyfileobj(written, file)
        context.add_output_metadata({"frame": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> Parts:
        """Read the upstream step's frame. Raises dg.Failure when there is none.

        The products of another source than the partition's are not there: an empty frame without columns.
        """
        asset, of_shop = context.asset_key.to_user_string(), products_asset_name(context.asset_partition_key)
        if asset != of_shop and {asset, of_shop} <= {source.products_asset() for source in SOURCES.values()}:
            return Parts(Rows())
        upstream = context.upstream_output
        folder = self._folder(context)
        path = folder / f"{upstream.run_id if upstream else ''}.parquet"
        if not path.exists():
            path = max(
                folder.glob("*.parquet") if folder.exists() else [],
                key=lambda p: p.stat().st_mtime,
                default=path,
            )
        if not path.exists():
            raise dg.Failure(
                f"there is no frame of {context.asset_key.to_user_string()} for {context.asset_partition_key}: "
                "materialize it together with this asset",
                allow_retries=False,
            )
        return Parts.stored_at(path)

    def prune(self, before: datetime) -> int:
        """Delete the frames that were written before then; how many. OSError at the end for those that cannot go."""
        base = UPath(load_settings().frames_url)
        old = [
            path
            for path in (base.glob("*/*/*.parquet") if base.exists() else ())
            if path.stat().st_mtime < before.timestamp()
        ]
        failed: list[OSError] = []
        for path in old:
            try:
                path.unlink()
            except FileNotFoundError:
                continue  # another housekeeping was faster
            except OSError as error:
                failed.append(error)
        if failed:
            raise OSError(f"{len(failed)} of {len(old)} old frames cannot be deleted: {failed[0]}")
        return len(old)

    def _folder(self, context: Any) -> UPath:
        return UPath(load_settings().frames_url).joinpath(
            *context.asset_key.path, file_name(context.asset_partition_key)
        )


def table_schema(rows: Rows) -> dg.TableSchema:
    """The columns as Dagster shows them."""
    return dg.TableSchema(
        [dg.TableColumn(column.name, type=column.dtype, description=column.says) for column in rows.columns]
    )


def file_name(key: str) -> str:
    """The name of a partition's folder: one name for one key, whatever anybody has called it, and never a path."""
    name = "_".join(quote(part, safe="").replace("_", "%5F") for part in key.split(":"))
    name = re.sub(r"^\.", "%2E", name)
    # File systems take 255 bytes.
    return name if len(name) <= 200 else f"{name[:100]}%{hashlib.sha256(key.encode()).hexdigest()}"
