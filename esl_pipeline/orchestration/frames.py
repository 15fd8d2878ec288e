"""Where steps keep their frames: Parquet over UPath, one file per asset, partition and run."""

from typing import Any

import dagster as dg
import pandas as pd
from upath import UPath

from esl_pipeline.settings import load_settings


class ParquetFrames(dg.ConfigurableIOManager):
    """Frames as Parquet files `{base}/{asset}/{partition}/{run id}.parquet`, local or on any fsspec storage.

    The run id is in the path, so runs that overlap never read each other's frames. An asset that is materialized
    alone reads the newest frame that a run has left for its partition.
    """

    def handle_output(self, context: dg.OutputContext, obj: pd.DataFrame) -> None:
        """Write one frame."""
        path = self._folder(context) / f"{context.run_id}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            obj.to_parquet(file, index=False)
        context.add_output_metadata({"frame": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> pd.DataFrame:
        """Read the upstream step's frame. Raises dg.Failure when there is none."""
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
        with path.open("rb") as file:
            return pd.read_parquet(file)

    def _folder(self, context: Any) -> UPath:
        return UPath(load_settings().frames_url).joinpath(
            *context.asset_key.path, context.asset_partition_key.replace(":", "_")
        )
