"""Several runs side by side: the same numbers as the evaluation of two, and no difference where rows differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.testtime import world
from thinktwice.data.training_set import TrainingSet, load_training_set
from thinktwice.evaluate.bundles import evaluate_bundles
from thinktwice.evaluate.side_by_side import Contestant, SideBySide, compare_runs, rows_digest
from thinktwice.schema import EVENT_TIME, LABEL, ROW_ID
from thinktwice.stats.significance import Interval, paired_mean, standard_error


def contestant(finished: Path, name: str, bundle: str, settings: str, seed: int = 0, rows: str = "set") -> Contestant:
    return Contestant(name, settings, seed, finished / f"bundle-{bundle}", finished / rows)


@pytest.fixture(scope="module")
def other(finished: Path) -> Path:
    """The same world with fewer rows, so with other test rows."""
    world.make_training_set(finished / "other", rows=3000)
    return finished / "other"


@pytest.fixture(scope="module")
def compared(finished: Path, other: Path) -> SideBySide:
    return compare_runs(
        [
            contestant(finished, "a", "good", "r1"),
            contestant(finished, "b", "bad", "r2"),
            contestant(finished, "c", "good", "r3"),
            contestant(finished, "d", "bad", "r4", rows=other.name),
        ]
    )


def test_the_differences_are_those_of_the_evaluation_of_two(finished: Path, compared: SideBySide) -> None:
    first, second, same, elsewhere = compared.sides
    two = evaluate_bundles(finished / "bundle-bad", finished / "set", finished / "bundle-good")
    assert first.metrics == two.column("against").metrics and second.metrics == two.column("bundle").metrics
    assert first.change is None and first.same_rows and first.rows == two.rows
    expected = two.difference("bundle", "against", "auc")
    assert expected is not None and second.change is not None
    assert (second.change.auc.value, second.change.auc.low) == pytest.approx((expected.value, expected.low))
    assert second.metrics.logloss is not None and first.metrics.logloss is not None
    assert second.change.logloss.value == pytest.approx(second.metrics.logloss - first.metrics.logloss)
    assert second.change.logloss.significant  # rare values are memorised by the second
    assert same.change is not None and same.change.auc.value == same.change.logloss.value == 0
    assert not elsewhere.same_rows and elsewhere.change is None and elsewhere.rows != first.rows
    assert compared.over_seeds == ()


def test_seeds_are_paired_and_averaged(finished: Path, other: Path, compared: SideBySide) -> None:
    found = compare_runs(
        [
            contestant(finished, "a0", "good", "r1", 0),
            contestant(finished, "a1", "bad", "r1", 1),
            contestant(finished, "a2", "good", "r1", 2),
            contestant(finished, "b0", "bad", "r2", 0),
            contestant(finished, "b1", "bad", "r2", 1),
            contestant(finished, "b2", "bad", "r2", 2, rows=other.name),  # other rows than a2: not paired
            contestant(finished, "b3", "bad", "r2", 3),
            contestant(finished, "c7", "bad", "r3", 7),
        ]
    )
    base, second, third = found.over_seeds
    assert base.seeds == (0, 1, 2) and base.paired == () and base.change is None
    assert second.seeds == (0, 1, 2, 3) and second.paired == (0, 1)
    one = compared.sides[1].change
    assert one is not None and second.change is not None
    assert second.change.auc.value == pytest.approx(one.auc.value / 2)  # the mean of it and of 0
    assert second.change.auc.low < one.auc.low  # two seeds that disagree are less certain than the rows of one
    assert third.paired == () and third.change is None
    areas = [side.metrics.auc for side in found.sides[:3]]
    assert base.auc == pytest.approx(np.mean([area for area in areas if area is not None]))


@pytest.mark.parametrize("column", [ROW_ID, EVENT_TIME, LABEL, "user", "item"])
def test_rows_are_the_same_only_if_everything_that_names_them_is(finished: Path, column: str) -> None:
    data: TrainingSet = load_training_set(finished / "set")
    rows = data.rows("test")
    name = {"user": data.schema.key_of("user"), "item": data.schema.key_of("item")}.get(column, column)
    assert name in rows.columns
    values = rows[name]
    changed = rows.with_columns(values.slice(0, len(rows) - 1).append(values.slice(0, 1)).alias(name))
    if changed[name].equals(values):  # the first and the last are the same by chance
        changed = rows.with_columns(values.reverse().alias(name))
    assert not changed[name].equals(values)
    features = rows.with_columns(pl.lit(1.5).alias("a_feature_of_another_schema"))
    assert rows_digest(data, features) == rows_digest(data, rows) != rows_digest(data, changed)
    assert rows_digest(data, rows.head(-1)) != rows_digest(data, rows)


def test_the_error_behind_an_interval() -> None:
    draw = np.random.default_rng(3)
    values, cluster = draw.normal(size=400), draw.integers(0, 20, 400)
    interval = paired_mean(values, cluster)
    sums = np.bincount(cluster, weights=(values - values.mean()) / 400)
    assert standard_error(interval, 19) == pytest.approx(np.sqrt(20 / 19 * np.sum(sums**2)))
    assert standard_error(Interval(0.5, float("-inf"), float("inf")), 0) == float("inf")
