"""The prediction log, read back."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from thinktwice.errors import DataError

PART = "served-*.parquet"


def read_served(folder: Path | str, most_rows: int, *, looked_up: bool = False) -> pl.DataFrame:
    """Rows of a prediction log, the same sample of at most ``most_rows`` whenever it is read.

    Args:
        looked_up: only rows whose features came from the feature store.

    Raises:
        DataError: there is no log, or no such row in it.
    """
    parts = sorted(Path(folder).glob(PART))
    if not parts:
        raise DataError(
            f"{folder} holds no prediction log: set prediction_log.folder of the predictor, or correct --log"
        )
    frame = pl.scan_parquet(parts)
    if looked_up:
        frame = frame.filter(pl.col("log_item_id").is_not_null())
    frame = frame.with_columns(pl.struct("log_request_id", "log_place").hash(seed=0).alias("log_hash"))
    found = frame.sort("log_hash").head(most_rows).drop("log_hash").collect()
    if found.height == 0:
        raise DataError(f"the prediction log {folder} holds no row to compare: wait for traffic")
    return found
