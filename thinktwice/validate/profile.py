"""The profile table: one row per (partition, feature) of a clean log, small at any data size.

Partitions are ``whole`` and up to 24 slices of whole days. The values that rules check are in separate columns
(``judged_...``, ``..._from_reference``), null if not applicable, so that a rule is a simple range check on one column. Only
the whole log is judged: its second half against its first and, with the profile of an earlier log, the whole log against
that. Slices are for display.

Ids and fields derived from the time are profiled, but their drift is not judged, because new ids are normal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from thinktwice.errors import DataError
from thinktwice.files import read_json
from thinktwice.parquet import read_frame
from thinktwice.progress import track
from thinktwice.schema.fields import EVENT_TIME, LABEL
from thinktwice.schema.log import LogSchema, load_schema
from thinktwice.schema.numbers import borders, shortest
from thinktwice.validate.drift import ValueBins, bin_counts, hashed, ks, psi, single_field_auc
from thinktwice.validate.profile_rules import MIN_JUDGED_LABELS, MIN_JUDGED_ROWS
from thinktwice.validate.side_tables import read_clean

WHOLE = "whole"
MAX_SLICES = 24
EDGES = 19  # at most, between the bins of a number
_DAY_US = 86_400_000_000
_MEASURED = ("numeric", "list", "vector", "weights")  # kinds of features that are profiled as numbers

PROFILE_SCHEMA: dict[str, Any] = {
    "partition": pl.String,
    "feature": pl.String,
    "kind": pl.String,  # key, categorical, derived, numeric, list, vector, weights: see _PROFILED
    "rows": pl.Int64,
    "clicks": pl.Int64,
    "click_rate": pl.Float64,
    "nulls": pl.Int64,
    "null_share": pl.Float64,
    "distinct": pl.Int64,  # numbers: estimated
    "top_value": pl.String,  # users: hashed
    "top_share": pl.Float64,
    "minimum": pl.Float64,
    "q05": pl.Float64,
    "median": pl.Float64,
    "q95": pl.Float64,
    "maximum": pl.Float64,
    "psi": pl.Float64,  # slice against the first half; whole: second half against the first
    "ks": pl.Float64,
    "auc": pl.Float64,  # of this field alone, fitted on even rows, measured on odd rows; whole only
    "both_labels": pl.Float64,
    "judged_auc": pl.Float64,
    "judged_distinct": pl.Float64,
    "judged_distinct_share": pl.Float64,
    "judged_psi": pl.Float64,
    "judged_ks": pl.Float64,
    "null_share_change": pl.Float64,
    "click_rate_ratio": pl.Float64,
    "psi_from_reference": pl.Float64,
    "volume_ratio": pl.Float64,
    "first_year": pl.Float64,
}


#: What is profiled of a feature that is no number itself.
_PROFILED = {"list": "the number of values of ", "vector": "the Euclidean norm of ", "weights": "the mean of "}


def profiled(feature: str, kind: str) -> str:
    """What a row of the profile table is about, e.g. ``price`` or ``the number of values of tags``."""
    return _PROFILED.get(kind, "") + feature


class LogProfile(NamedTuple):
    """The profile of a log."""

    table: pl.DataFrame  # columns of PROFILE_SCHEMA
    reference: dict[str, Any]  # JSON: the reference of a later log; see `read_reference`
    histograms: dict[str, dict[str, Any]]  # feature -> {labels, first, second}: shares of rows per bin in both halves


class _Log(NamedTuple):
    """A clean log."""

    folder: Path
    schema: LogSchema


class _Feature(NamedTuple):
    name: str
    kind: str
    secret: bool  # its values are user ids


def read_reference(path: Path | str) -> dict[str, Any]:
    """Read the reference profile that an earlier run wrote. Raises DataError if it is not one."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"reference profile {path} cannot be read: give the profile_reference.json of an earlier run"
        ) from error
    if not isinstance(value, dict) or value.get("format") != 1:
        raise DataError(
            f"{path} is not a reference profile of format 1: give the profile_reference.json of an earlier run"
        )
    return value


def profile_log(clean_dir: Path | str, *, reference: Mapping[str, Any] | None = None) -> LogProfile:
    """Profile the clean log in ``clean_dir``. One column is in memory at a time.

    Raises:
        DataError: the clean log cannot be read.
    """
    clean_dir = Path(clean_dir)
    schema = load_schema(clean_dir / "schema.yaml")
    path = clean_dir / "clean.parquet"
    try:
        base = _base(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read ({error}): validate the log again") from error
    features = _features(schema)
    if base.height == 0:
        return LogProfile(pl.DataFrame(schema=PROFILE_SCHEMA), {"format": 1, "rows": 0, "features": {}}, {})
    labels = _partition_labels(base, schema)
    log = _Log(clean_dir, schema)
    rows: list[dict[str, Any]] = []
    known = dict(reference["features"]) if reference else {}
    widened = bool(reference and reference.get("widened", True))
    saved: dict[str, Any] = {}
    histograms: dict[str, dict[str, Any]] = {}
    for feature in track(features, stage="validate", total=len(features), label="profile"):
        counts, numbers, ids = _counts(log, base, feature)
        bins = ValueBins.of_reference(counts.filter(~pl.col("half")), ids)
        rows.extend(_rows(feature, counts, numbers, bins, labels))
        value_bins = ValueBins.of_reference(counts, ids)
        saved[feature.name] = value_bins.to_json(counts, secret=feature.secret)
        if feature.name in known:
            _compare(rows, feature, known[feature.name], log, base, widened=widened)
        histograms[feature.name] = _histogram(feature, value_bins, counts)
    _judge_log(rows[0], base, schema, reference)
    click_rate = float(base[LABEL].cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
    out = {"format": 1, "widened": False, "rows": base.height, "click_rate": click_rate, "features": saved}
    return LogProfile(pl.DataFrame(rows, schema=PROFILE_SCHEMA), out, histograms)


def _features(schema: LogSchema) -> list[_Feature]:
    out = []
    for entity in ("user", "item"):
        key = schema.key_of(entity)
        if key is not None:
            out.append(_Feature(key, "key", entity == "user"))
    for field in schema.fields:
        kind = "derived" if field.derived else "categorical" if field.kind == "boolean" else field.kind
        out.append(_Feature(field.name, kind, False))
        if field.weights is not None:
            out.append(_Feature(field.weights.name, "weights", False))
    out += [_Feature(s.name, "list", False) for s in schema.sequences if s.column is not None]
    return out + [_Feature(v.name, "vector", False) for v in schema.vectors]


def _base(path: Path) -> pl.DataFrame:
    """label, slice (0 ..), half (false: first), parity; in the order of the clean log."""
    frame = read_frame(path, columns=[EVENT_TIME, LABEL]).with_row_index("row")
    day = (pl.col(EVENT_TIME).cast(pl.Int64) // _DAY_US).alias("day")
    frame = frame.select("row", LABEL, day)
    if frame.height == 0:
        return frame
    first, last = frame["day"][0], frame["day"][-1]
    width = -(-(last - first + 1) // MAX_SLICES)  # days a slice
    return frame.select(
        pl.col(LABEL),
        ((pl.col("day") - first) // width).cast(pl.Int8).alias("slice"),
        (pl.col("row") >= frame.height // 2).alias("half"),
        (pl.col("row") % 2 == 1).alias("parity"),
        "day",
    )


def _partition_labels(base: pl.DataFrame, schema: LogSchema) -> dict[int, str]:
    starts = base.group_by("slice").agg(pl.col("day").min()).sort("slice")
    if starts.height < 2:
        return {}
    if schema.time.format == "order":
        return {s: f"part {i + 1}" for i, s in enumerate(starts["slice"])}
    days = starts["day"].cast(pl.Int32).cast(pl.Date).dt.to_string("%Y-%m-%d")
    return dict(zip(starts["slice"].to_list(), days.to_list(), strict=True))


def _column(log: _Log, feature: _Feature) -> pl.Series:
    if feature.kind == "vector":
        return read_clean(log.folder, log.schema, [feature.name], convert=_norms)[feature.name]
    if feature.kind == "weights":
        return read_clean(log.folder, log.schema, [feature.name], convert=_means)[feature.name]
    if feature.kind == "list":
        return read_clean(log.folder, log.schema, [feature.name], convert=_lengths)[feature.name]
    return read_clean(log.folder, log.schema, [feature.name])[feature.name]


def _lengths(lists: pl.Expr) -> pl.Expr:
    return lists.list.len().cast(pl.Float64)


def _means(weights: pl.Expr) -> pl.Expr:
    return weights.list.mean()


def _norms(vectors: pl.Expr) -> pl.Expr:
    return vectors.list.eval(pl.element() ** 2).list.sum().sqrt().fill_nan(None).cast(pl.Float64)


def _counts(
    log: _Log, base: pl.DataFrame, feature: _Feature
) -> tuple[pl.DataFrame, pl.DataFrame | None, np.ndarray | None]:
    """Groups (value, slice, half, parity) -> n, clicks, from which everything else is derived.

    Numbers are grouped by quantile bin of the first half; their moments per slice (and of the whole log, slice null) and
    the bin edges are returned too.
    """
    column = _column(log, feature)
    numbers, edges = None, None
    if feature.kind in _MEASURED:
        frame = base.select("slice").with_columns(column.alias("x"))
        moments = [
            pl.col("x").min().alias("minimum"),
            *(pl.col("x").quantile(q).alias(n) for n, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95))),
            pl.col("x").max().alias("maximum"),
            pl.col("x").drop_nulls().approx_n_unique().cast(pl.Int64).alias("distinct"),
        ]
        all_rows = frame.select(pl.lit(None, dtype=pl.Int8).alias("slice"), *moments)
        numbers = pl.concat([all_rows, frame.group_by("slice").agg(*moments)])
        known = column.head(base.height // 2 or 1).drop_nulls()
        edges = _edges(known if known.len() else column.drop_nulls())
        column = _binned(column, edges)
    groups = base.select("slice", "half", "parity", LABEL).with_columns(column.alias("value"))
    counts = groups.group_by("value", "slice", "half", "parity").agg(
        pl.len().cast(pl.Int64).alias("n"), pl.col(LABEL).cast(pl.Int64).sum().alias("clicks")
    )
    return counts, numbers, edges


def _edges(known: pl.Series) -> np.ndarray:
    return borders(known.to_numpy(), EDGES + 1, above=True)


def _above_float32(edges: np.ndarray) -> np.ndarray:
    """Edges that may be widened float32 numbers, moved up to the same numbers as read by this version, so that these stay
    below the edge."""
    with np.errstate(over="ignore"):
        narrow = edges.astype(np.float32)
    return np.where(narrow == edges, np.maximum(edges, shortest(narrow)), edges)


def _binned(column: pl.Series, edges: np.ndarray) -> pl.Series:
    bin_index = pl.Series(np.searchsorted(edges, column.fill_null(0.0).to_numpy(), side="left")).cast(pl.Int32)
    return pl.select(pl.when(column.is_not_null()).then(bin_index)).to_series()


def _rows(
    feature: _Feature, counts: pl.DataFrame, numbers: pl.DataFrame | None, bins: ValueBins, labels: dict[int, str]
) -> list[dict[str, Any]]:
    first = bin_counts(counts.filter(~pl.col("half")), bins)
    out = []
    for slice_ in (None, *labels):
        part = counts if slice_ is None else counts.filter(pl.col("slice") == slice_)
        row = _summary(feature, part)
        row["partition"] = WHOLE if slice_ is None else labels[slice_]
        compared = bin_counts(part.filter(pl.col("half")) if slice_ is None else part, bins)
        row["psi"] = psi(first, compared)
        if numbers is not None:
            in_slice = pl.col("slice").is_null() if slice_ is None else pl.col("slice") == slice_
            row.update(numbers.filter(in_slice).drop("slice").row(0, named=True))
            row["ks"] = ks(first, compared)
        out.append(row)
        if slice_ is None:
            _judge(row, feature, counts, first, compared)
    return out


def _summary(feature: _Feature, counts: pl.DataFrame) -> dict[str, Any]:
    rows, clicks = int(counts["n"].sum()), int(counts["clicks"].sum())
    by_value = counts.group_by("value").agg(pl.col("n").sum()).sort(["n", "value"], descending=[True, False])
    known = by_value.drop_nulls("value")
    nulls = rows - int(known["n"].sum())
    row: dict[str, Any] = {"feature": feature.name, "kind": feature.kind, "rows": rows, "clicks": clicks}
    row |= {"click_rate": clicks / rows, "nulls": nulls, "null_share": nulls / rows, "distinct": known.height}
    if known.height and feature.kind not in _MEASURED:
        row["top_value"] = hashed(known["value"][0]) if feature.secret else known["value"][0]
        row["top_share"] = known["n"][0] / rows
    return row


def _judge(row: dict[str, Any], feature: _Feature, counts: pl.DataFrame, first: np.ndarray, second: np.ndarray) -> None:
    auc, fewest = single_field_auc(counts)
    row["auc"] = auc
    if fewest >= MIN_JUDGED_LABELS:
        row["judged_auc"] = auc
    if feature.kind != "derived":
        row["judged_distinct"] = float(row["distinct"] + (1 if row["nulls"] else 0))
    if feature.kind == "categorical" and row["rows"] >= MIN_JUDGED_ROWS:
        row["judged_distinct_share"] = row["distinct"] / row["rows"]
    if feature.kind in ("key", "derived") or min(first.sum(), second.sum()) < MIN_JUDGED_ROWS:
        return
    row["judged_psi"], row["judged_ks"] = row["psi"], row.get("ks")
    row["null_share_change"] = abs(second[-1] / second.sum() - first[-1] / first.sum())


def _compare(
    rows: list[dict[str, Any]],
    feature: _Feature,
    known: dict[str, Any],
    log: _Log,
    base: pl.DataFrame,
    *,
    widened: bool,
) -> None:
    """Compare the whole log with an earlier one, in the bins of the earlier one.

    Earlier versions widened float32 numbers to float64 before computing edges, which were values.
    """
    row = next(r for r in rows if r["feature"] == feature.name and r["partition"] == WHOLE)
    bins, shares, num_rows = ValueBins.of_json(known)
    if widened and bins.edges is not None:
        bins = bins._replace(edges=_above_float32(bins.edges))
    if feature.kind in ("key", "derived") or min(num_rows, base.height) < MIN_JUDGED_ROWS:
        return
    column = _column(log, feature)
    value = column if bins.edges is None else _binned(column, bins.edges)
    if feature.secret:
        value = value.replace_strict({v: hashed(v) for v in value.unique().drop_nulls()}, default=None)
    groups = pl.DataFrame({"value": value}).group_by("value").agg(pl.len().cast(pl.Int64).alias("n"))
    now = bin_counts(groups, bins)
    row["psi_from_reference"] = psi(shares * num_rows, now)
    row["null_share_change"] = abs(now[-1] / now.sum() - shares[-1])
    if bins.edges is not None:
        row["judged_ks"] = ks(shares * num_rows, now)


def _judge_log(row: dict[str, Any], base: pl.DataFrame, schema: LogSchema, reference: Mapping[str, Any] | None) -> None:
    """Values of the log that do not belong to one field are in the first row of the table."""
    halves = (
        base.group_by("half").agg(pl.col(LABEL).cast(pl.Float64).mean().alias("rate"), pl.len().alias("n")).sort("half")
    )
    rates = dict(zip(halves["half"].to_list(), halves["rate"].to_list(), strict=True))
    before, after = rates.get(False), rates.get(True)
    if reference and reference.get("rows"):
        row["volume_ratio"] = base.height / reference["rows"]
        before, after = reference["click_rate"], base[LABEL].cast(pl.Float64).mean()
    row["both_labels"] = 1.0 if base[LABEL].n_unique() == 2 else 0.0
    if before and after is not None and base.height >= 2 * MIN_JUDGED_ROWS:
        row["click_rate_ratio"] = after / before
    if schema.time.format != "order":
        row["first_year"] = float(base["day"].head(1).cast(pl.Int32).cast(pl.Date).dt.year()[0])


def _histogram(feature: _Feature, bins: ValueBins, counts: pl.DataFrame) -> dict[str, Any]:
    labels = bins.labels()
    if feature.secret:
        labels = [hashed(text) for text in labels[:-2]] + labels[-2:]
    halves = [bin_counts(counts.filter(pl.col("half") == half), bins) for half in (False, True)]
    shares = [(h / h.sum() if h.sum() else h).round(6).tolist() for h in halves]
    return {"labels": labels, "first": shares[0], "second": shares[1]}
