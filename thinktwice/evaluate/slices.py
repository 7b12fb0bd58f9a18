"""Groups of test rows that may behave unlike the rest: unseen users and items, scenarios, and rows by how well their values
are supported."""

from __future__ import annotations

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.schema import LogSchema
from thinktwice.testtime.reliability import Reliability

MIN_ROWS = 50  # a smaller slice says nothing, nor does one that leaves out fewer
MAX_SCENARIOS = 8  # the largest; a log may have hundreds


def cold_start(data: TrainingSet, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows with an unseen user, an unseen item, and neither."""
    out: dict[str, np.ndarray] = {}
    warm = np.ones(test.height, bool)
    train = data.rows("train")
    for entity in ("user", "item"):
        key = data.schema.key_of(entity)
        if key is None:
            continue
        seen = test[key].is_in(train[key].unique().implode()).fill_null(False).to_numpy()
        out[f"cold {entity}"] = ~seen
        warm &= seen
    if out:
        out["seen user and item" if len(out) == 2 else f"seen {next(iter(out)).removeprefix('cold ')}"] = warm
    return _telling(out)


def unseen_pairs(data: TrainingSet, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Mask [R] of the test rows whose user and item training never saw together; empty without both."""
    keys = [key for key in (data.schema.key_of("user"), data.schema.key_of("item")) if key is not None]
    if len(keys) < 2:
        return {}
    pairs = data.rows("train").select(keys).unique().with_columns(pl.lit(True).alias("__seen"))
    seen = test.select(keys).join(pairs, on=keys, how="left", maintain_order="left")["__seen"]
    return {"unseen pair": ~seen.fill_null(False).to_numpy()}


def uncertain(
    data: TrainingSet, test: pl.DataFrame, rows: EncodedRows, reliability: Reliability
) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows where extra work should pay if it pays anywhere, and of the best supported ones, where it
    should not: unseen users, items and pairs of both, the least and the best supported tenth."""
    out = {name: mask for name, mask in cold_start(data, test).items() if name.startswith("cold")}
    out |= unseen_pairs(data, test)
    deciles = support_deciles(reliability, rows)
    if len(deciles) > 1:
        out |= {f"{word} support ({deciles[at][0]})": deciles[at][1] for word, at in (("least", 0), ("most", -1))}
    return _telling(out)


def _telling(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks that say something: with enough rows in and out of them, and unlike those before.

    A slice of (nearly) all rows has the metrics of the whole; all rows of a log whose users never return are unseen pairs.
    """
    out: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        inside = int(mask.sum())
        if min(inside, len(mask) - inside) >= MIN_ROWS and not any(
            np.array_equal(mask, other) for other in out.values()
        ):
            out[name] = mask
    return out


def scenarios(schema: LogSchema, test: pl.DataFrame) -> dict[str, np.ndarray]:
    """Masks [R] of the test rows by scenario, most rows first, the rest as one; empty for a log without a scenario field.

    A single scenario is no slice.
    """
    field = schema.scenario
    if field is None:
        return {}
    value = test[field]
    counts = value.drop_nulls().value_counts().sort(["count", field], descending=[True, False])
    shown = counts.filter(pl.col("count") >= MIN_ROWS)[field].head(MAX_SCENARIOS)
    out = {f"{field} {name}": (value == name).fill_null(False).to_numpy() for name in shown}
    rest = ~value.is_in(shown.implode()).fill_null(False).to_numpy()
    if rest.sum() >= MIN_ROWS:
        out[f"{field}, other"] = rest
    return out if len(out) > 1 else {}


def support_deciles(reliability: Reliability, rows: EncodedRows) -> list[tuple[str, np.ndarray]]:
    """Rows by the smallest training count among their unprotected values, in up to ten groups, least supported first.

    Equal counts stay together, so that there may be fewer groups.
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
