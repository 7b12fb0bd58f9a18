"""Reader of the prediction log."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from thinktwice.errors import DataError
from thinktwice.parquet import read_schema, read_table
from thinktwice.records.served import AT, BUNDLE, ITEM, PART, REQUEST, USER_IDS, VERSION

KEYS = [REQUEST, AT, BUNDLE, VERSION, ITEM]  # columns read for every row to select the rows to read in full
SEED = 1  # differs from seed 0, by which the log itself was sampled


@dataclass(frozen=True)
class ServedRows:
    """Rows of a prediction log.

    Attributes:
        frame: the rows, whole requests, in the order they were written.
        matching: number of matching rows, of which ``frame`` is a sample.
        others: number of other rows, by version of their model.
        user_ids: ``raw``, or how ids are hidden in any part of the log.
    """

    frame: pl.DataFrame
    matching: int
    others: dict[str, int]
    user_ids: str

    @property
    def window(self) -> tuple[str, str]:
        """When the first and the last row were served, ISO 8601; empty if no row has a time."""
        first, last = pl.select(low=self.frame[AT].min(), high=self.frame[AT].max()).row(0)
        return first.isoformat() if first else "", last.isoformat() if last else ""


def read_served(
    folder: Path | str,
    most_rows: int,
    *,
    bundle_hash: str | None = None,
    looked_up: bool = False,
    since: datetime | None = None,
    columns: Collection[str] = (),
) -> ServedRows:
    """At most about ``most_rows`` rows of a prediction log, the same requests in every read. One part is in memory at a time.

    Args:
        bundle_hash: only rows served by this bundle.
        looked_up: only rows whose features came from the feature store.
        since: only rows served at this instant or later.
        columns: only parts with these columns; other models have other fields.

    Raises:
        DataError: there is no log, a part is damaged, or no row matches.
    """
    parts = sorted(Path(folder).glob(PART))
    if not parts:
        raise DataError(
            f"{folder} contains no prediction log: set prediction_log.folder of the predictor, or correct --log"
        )
    matching, others = 0, dict[str, int]()
    for _, keys, matches in _choices(parts, bundle_hash, looked_up, since, columns):
        matching += int(matches.sum())
        for version, count in keys.filter(pl.Series(~matches))[VERSION].value_counts().iter_rows():
            others[version or "unnamed"] = others.get(version or "unnamed", 0) + count
    if not matching:
        versions = ", ".join(sorted(others)[:5])
        raise DataError(
            f"the prediction log {folder} contains no row to compare (it has {sum(others.values()):,} rows of other bundles or times, "
            f"or without looked-up features: {versions}): use the bundle or store that served them"
        )
    share, frames, user_ids = most_rows / matching, [], "raw"
    for part, keys, matches in _choices(parts, bundle_hash, looked_up, since, columns):
        if share < 1:
            matches = matches & _in_share(keys[REQUEST], share)
        if matches.any():
            table = _read(part, None)
            hidden = (table.schema.metadata or {}).get(USER_IDS, b"raw").decode()
            user_ids = hidden if hidden != "raw" else user_ids
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
            frames.append(frame.filter(pl.Series(matches)))
    if not frames:
        raise DataError(f"no whole request fits {most_rows:,} rows: allow more with --rows")
    return ServedRows(pl.concat(frames, how="diagonal"), matching, others, user_ids)


def _choices(
    parts: list[Path], bundle_hash: str | None, looked_up: bool, since: datetime | None, columns: Collection[str]
) -> Iterator[tuple[Path, pl.DataFrame, np.ndarray]]:
    """Per part: its path, the keys of its rows, and which rows match."""
    for part in parts:
        keys = pl.from_arrow(_read(part, KEYS))
        assert isinstance(keys, pl.DataFrame)
        matches = np.full(keys.height, set(columns) <= set(read_schema(part).names))
        if bundle_hash is not None:
            matches &= (keys[BUNDLE] == bundle_hash).fill_null(False).to_numpy()
        if looked_up:
            matches &= keys[ITEM].is_not_null().to_numpy()
        if since is not None:
            matches &= (keys[AT] >= since).fill_null(False).to_numpy()
        yield part, keys, matches


def _read(part: Path, columns: list[str] | None) -> pa.Table:
    try:
        lacking = [c for c in KEYS if c not in read_schema(part).names]
        if lacking:
            raise DataError(
                f"{part} is not a part of a prediction log (no column {lacking[0]!r}): remove it, or correct --log"
            )
        return read_table(part, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"part {part} of the prediction log cannot be read ({error}): remove it") from error


def _in_share(requests: pl.Series, share: float) -> np.ndarray:
    """Rows of the requests whose hash falls into the share."""
    unique = requests.unique()
    chosen = [xxhash.xxh3_64_intdigest((r or "").encode(), seed=SEED) < share * 2**64 for r in unique]
    return requests.is_in(unique.filter(pl.Series(chosen, dtype=pl.Boolean)).implode()).to_numpy()
