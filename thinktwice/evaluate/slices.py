"""Slices of test rows that may behave differently: unseen users and items, scenarios, and rows by support of their values."""

from __future__ import annotations

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.data.vocabulary import NULL
from thinktwice.schema import LogSchema
from thinktwice.schema.times import derive
from thinktwice.testtime.reliability import Reliability

MIN_ROWS = 50  # minimum rows in a slice, and outside it
MAX_SCENARIOS = 8  # the largest ones; a log may have hundreds
MAX_CATEGORIES = 20  # of a field whose values are slices
HOURS = 4  # of a slice of the day
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def cold_start(data: TrainingSet, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows with an unseen user, without a user, with an unseen item, and with none of these."""
    out: dict[str, np.ndarray] = {}
    warm = np.ones(test.height, bool)
    train = data.rows("train")
    for entity in ("user", "item"):
        key = data.schema.key_of(entity)
        if key is None:
            continue
        in_train = test[key].is_in(train[key].drop_nulls().unique().implode()).fill_null(False).to_numpy()
        anonymous = test[key].is_null().to_numpy()
        out[f"cold {entity}"] = ~in_train & ~anonymous
        if anonymous.any():
            out[f"no {entity}"] = anonymous
        warm &= in_train
    known = [name.removeprefix("cold ") for name in out if name.startswith("cold ")]
    if known:
        out[f"seen {' and '.join(known)}"] = warm
    return _informative(out)


def unseen_pairs(data: TrainingSet, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Mask [R] of the test rows whose pair of user and item has no training row; empty for a log without both. A row without a user
    has no pair."""
    keys = [key for key in (data.schema.key_of("user"), data.schema.key_of("item")) if key is not None]
    if len(keys) < 2:
        return {}
    pairs = data.rows("train").select(keys).unique().with_columns(pl.lit(True).alias("__seen"))
    in_train = test.select(keys).join(pairs, on=keys, how="left", maintain_order="left")["__seen"]
    return {"unseen pair": (in_train.is_null() & test[keys[0]].is_not_null()).to_numpy()}


def uncertain(
    data: TrainingSet, test: pl.DataFrame, rows: EncodedRows, reliability: Reliability
) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows where extra work should pay if at all (unseen users, items and pairs of both, the least
    supported tenth), and of the best supported tenth, where it should not."""
    out = {name: mask for name, mask in cold_start(data, test).items() if name.startswith("cold")}
    out |= unseen_pairs(data, test)
    deciles = support_deciles(reliability, rows)
    if len(deciles) > 1:
        out |= {f"{word} support ({deciles[at][0]})": deciles[at][1] for word, at in (("least", 0), ("most", -1))}
    return _informative(out)


def _informative(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The informative masks: with enough rows inside and outside, and different from the earlier ones.

    A slice of (nearly) all rows has the metrics of all rows. In a log whose users never return, all rows are unseen pairs.
    """
    out: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        inside = int(mask.sum())
        if min(inside, len(mask) - inside) >= MIN_ROWS and not any(
            np.array_equal(mask, earlier) for earlier in out.values()
        ):
            out[name] = mask
    return out


def scenarios(schema: LogSchema, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows by scenario, largest first, the remaining ones as one; empty for a log without a scenario
    field or with a single scenario.
    """
    field = schema.scenario
    if field is None:
        return {}
    value = test[field]
    counts = value.drop_nulls().value_counts().sort(["count", field], descending=[True, False])
    names = counts.filter(pl.col("count") >= MIN_ROWS)[field].head(MAX_SCENARIOS)
    out = {f"{field} {name}": (value == name).fill_null(False).to_numpy() for name in names}
    remaining = ~value.is_in(names.implode()).fill_null(False).to_numpy()
    if remaining.sum() >= MIN_ROWS:
        out[f"{field}, other"] = remaining
    return out if len(out) > 1 else {}


def support_deciles(reliability: Reliability, rows: EncodedRows) -> list[tuple[str, np.ndarray]]:
    """Rows by the smallest training count among their unprotected values, in up to ten groups, least supported first.

    Equal counts are in the same group, so there may be fewer groups.
    """
    if len(reliability.maskable_fields) == 0 or len(rows) == 0:
        return []
    least = reliability.counts_of(rows.ids)[:, reliability.maskable_fields].min(axis=1)
    bounds = np.unique(np.quantile(least, np.linspace(0, 1, 11)[1:-1], method="lower"))
    group = np.searchsorted(bounds, least, side="right")
    out = []
    for g in np.unique(group):
        mask = group == g
        low, high = least[mask].min(), least[mask].max()
        name = f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f}–{high:,.0f}"
        if mask.sum() >= MIN_ROWS:
            out.append((name, mask))
    return out


def categories(data: TrainingSet, rows: EncodedRows) -> dict[str, np.ndarray]:
    """Masks [R] of the rows with each value of the categorical fields of few values, unknown ones included; ids are no such
    fields, and neither is the hour (:func:`hours`)."""
    out: dict[str, np.ndarray] = {}
    weekdays = {field.name for field in data.schema.fields if field.derived == "weekday"}
    for column, field in enumerate(data.encoder.columns):
        size = data.encoder.num_values[column]
        if field.kind != "categorical" or field.origin == "key" or size > MAX_CATEGORIES + 1:
            continue
        for index in range(size):
            value = data.encoder.value_of(field.name, index)
            out[f"{field.name} {_words(value, field.name in weekdays)}"] = rows.ids[:, column] == index
    return _informative(out)


def _words(value: str | None, is_weekday: bool) -> str:
    if value is None:
        return "is not known"
    if value == NULL:
        return "is missing"
    return f"= {DAYS[int(value)]}" if is_weekday else f"= {value}"


def hours(data: TrainingSet, rows: EncodedRows) -> dict[str, np.ndarray]:
    """Masks [R] of the rows by local hour, in blocks of four; empty for a log without a clock."""
    if data.schema.time.format == "order":
        return {}
    block = derive("hour", data.schema.zone.local(rows.time)) // HOURS
    named = {f"{start:02d}:00 to {start + HOURS:02d}:00": block == start // HOURS for start in range(0, 24, HOURS)}
    return _informative(named)
