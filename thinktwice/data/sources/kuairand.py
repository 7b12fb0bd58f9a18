"""KuaiRand: the standard logs of a short-video app in a folder of CSV files, with user and video features appended.

It reads ``log_standard*.csv`` (in order of their names), ``user_features*.csv`` and ``video_features_basic*.csv``. The
video *statistics* files are not used: they count the whole period, so they leak the future. Feature files are read into
memory (Pure and 1K; the 32 million videos of 27K need more memory than a laptop has). One column is computed and added:
``main_tag``, the first of a video's tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from thinktwice.data.reading import Chunk, Reading, SideLosses, left_join, need_path
from thinktwice.data.sources.ads import header_of
from thinktwice.data.sources.side_tables import SideFile, joined_losses, read_side_table
from thinktwice.data.sources.text import BLOCK_BYTES, file_opener, first_line, read_table
from thinktwice.errors import DataError, SchemaError
from thinktwice.files import sha256_file
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import known_column

WHAT = "the KuaiRand data folder with log_standard*.csv, user_features*.csv and video_features_basic*.csv"


def open_kuairand(path: Path | str | None, limit: int, seed: int, schema: LogSchema) -> Reading:
    """Open a KuaiRand folder (or the folder above its ``data``)."""
    path = need_path(path, "kuairand", WHAT)
    if not path.is_dir():
        raise DataError(f"{path} is a file: give --path, {WHAT}")
    folder = path / "data" if (path / "data").is_dir() else path
    logs = sorted(folder.glob("log_standard*.csv"))
    if not logs:
        raise DataError(f"folder {folder} contains no log_standard*.csv: give --path, {WHAT}")
    headers = {log: header_of(first_line(file_opener(log), str(log)), log) for log in logs}
    columns = headers[logs[0]]
    for log in logs:
        if headers[log] != columns:
            raise SchemaError(
                f"{log} has different columns from {logs[0].name}: give log files of one KuaiRand version"
            )
    users, user_losses, user_files = _features(folder, "user_features*.csv", "user_id", columns)
    videos, video_losses, video_files = _features(folder, "video_features_basic*.csv", "video_id", columns)
    if "tag" in videos.columns:
        videos = videos.with_columns(pl.col("tag").str.split(",").list.first().alias("main_tag"))
    overlap = sorted((set(users.columns) & set(videos.columns)) - {"user_id", "video_id"})
    videos = videos.drop(overlap)
    added = [c for c in (*users.columns, *videos.columns) if c not in columns]
    schema = pa.schema([(c, pa.string()) for c in (*columns, *added)])

    def chunks() -> Iterator[Chunk]:
        start = 0
        for log in logs:
            for chunk in read_table(file_opener(log), str(log), columns, ",", header=True, quotes=True, start=start):
                start += chunk.table.num_rows + len(chunk.unparsable)
                yield left_join(chunk, [(users, "user_id"), (videos, "video_id")], schema)

    files = {f.name: sha256_file(f) for f in (*logs, *user_files, *video_files)}
    num_chunks = sum(max(1, log.stat().st_size // BLOCK_BYTES) for log in logs)
    return Reading(str(folder), schema, files, chunks, num_chunks, joined_losses(user_losses, video_losses))


def _features(
    folder: Path, pattern: str, key: str, log_columns: list[str]
) -> tuple[pl.DataFrame, SideLosses, list[Path]]:
    """Feature files as one frame with unique keys, without the columns of the log."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"folder {folder} contains no {pattern}: give --path, {WHAT}")
    if key not in log_columns:
        raise SchemaError(f"the logs in {folder} have no column {key!r}; {known_column(key, log_columns)}")
    files = []
    for file in paths:
        open_stream = file_opener(file)
        columns = header_of(first_line(open_stream, str(file)), file)
        if key not in columns:
            raise SchemaError(f"{file} has no column {key!r}; {known_column(key, columns)}")
        files.append(SideFile(file.name, str(file), open_stream, tuple(columns), ",", header=True, quotes=True))
    frame, losses = read_side_table(files, key)
    return frame.select(key, *(c for c in frame.columns if c != key and c not in log_columns)), losses, paths
