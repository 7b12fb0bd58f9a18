"""Measurements on the sample: does a field follow from the user or the item, and does it predict the label alone."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from thinktwice.validate.drift import single_field_auc

MIN_ROWS = 200  # rows of keys that occur again, below which nothing is said about dependence
FOLLOWS = 0.97  # strength from which a field is an attribute of the key
PERHAPS = 0.75
LEAK = 0.95  # AUC of a field alone


class Dependence(NamedTuple):
    """``strength``: 1 if the value follows from the key, 0 if the key says nothing; ``rows`` it was measured on."""

    strength: float
    rows: int


def dependence(key: pl.Series, value: pl.Series) -> Dependence | None:
    """How far a value follows from a key, both [S]; None if too few keys occur more than once.

    The strength compares rows that differ from the most frequent value of their key with those that differ from the most
    frequent value of all rows. For each key with n rows its first choice is counted out: an id that is as frequent as the
    key itself says nothing.
    """
    frame = pl.DataFrame({"key": key, "value": value.fill_null("\0")}).filter(pl.col("key").is_not_null())
    counts = frame.group_by("key", "value").agg(n=pl.len())
    per_key = counts.group_by("key").agg(rows=pl.col("n").sum(), top=pl.col("n").max()).filter(pl.col("rows") > 1)
    rows = int(per_key["rows"].sum())
    if rows < MIN_ROWS:
        return None
    pairs = rows - per_key.height  # of every key one row is its reference
    differing = int((per_key["rows"] - per_key["top"]).sum())
    overall = frame.join(per_key.select("key"), on="key", how="semi")["value"].value_counts()["count"].to_list()
    base = 1.0 - sum((n / rows) ** 2 for n in overall)
    if base <= 0:
        return Dependence(0.0, rows)
    return Dependence(max(0.0, 1.0 - differing / max(1, pairs) / base), rows)


def auc_alone(value: pl.Series, clicked: pl.Series) -> float | None:
    """AUC of the click rate per value, fitted on even rows and measured on odd ones; about 0.5 for a useless field.

    A number with many values counts as 50 quantile bins.
    """
    if value.dtype.is_numeric() and value.n_unique() > 100:
        value = (value.rank("average") * 50 // (value.count() + 1)).cast(pl.Int64)
    parity = pl.int_range(len(value), eager=True) % 2 == 1
    frame = pl.DataFrame({"value": value, "parity": parity, "clicked": clicked}).drop_nulls("clicked")
    counts = frame.group_by("value", "parity").agg(n=pl.len(), clicks=pl.col("clicked").sum())
    auc, fewest = single_field_auc(counts)
    return auc if fewest >= 30 else None
