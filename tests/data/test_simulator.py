"""The simulated log: deterministic, drifting, and true to its truth."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from thinktwice.data.ingest import ingest, simulate
from thinktwice.data.simulator import SimConfig
from thinktwice.data.simulator.draw import START_US
from thinktwice.data.simulator.source import reading_of
from thinktwice.data.simulator.world import effects_at, make_world
from thinktwice.data.sources.registry import builtin_schema
from thinktwice.schema import LogSchema
from thinktwice.schema.columns import named_columns

BLOCK = 1 << 15


def draw(chunk_rows: int = 1 << 17, **settings: float) -> pl.DataFrame:
    config = SimConfig(**{"rows": 3 * BLOCK, **settings})  # type: ignore[arg-type]
    return pl.DataFrame(pa.concat_tables([c.table for c in reading_of(config, chunk_rows).chunks()]))


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return draw()


def test_the_log_does_not_depend_on_the_size_of_its_chunks(log: pl.DataFrame) -> None:
    assert log.equals(draw(chunk_rows=5000))
    assert not log.equals(draw(seed=1))
    changing = {"rows": 6000, "drift": 1.0, "reuse": 0.5}
    assert draw(**changing).equals(draw(chunk_rows=1500, **changing))


def test_a_log_without_drift_and_reuse_stays_the_log_it_was() -> None:
    """Drawn before the simulator knew either."""
    log = draw(rows=2048, users=300, items=200, seed=3)
    digest = hashlib.sha256()
    for column in ("time_us", "user_id", "item_id", "site_id", "click"):
        digest.update(log[column].to_numpy().astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "eee07c9213511e4a"


def test_clicks_follow_the_true_probability(log: pl.DataFrame) -> None:
    truth, click = log["true_probability"].to_numpy(), log["click"].to_numpy()
    assert abs(click.mean() - 0.2) < 0.02
    bins = np.searchsorted(np.quantile(truth, np.linspace(0.1, 0.9, 9)), truth)
    for b in range(10):
        rows = bins == b
        error = np.sqrt((truth[rows] * (1 - truth[rows])).sum()) / rows.sum()
        assert abs(click[rows].mean() - truth[rows].mean()) < 4.5 * error
    assert 0.74 < roc_auc_score(click, truth) < 0.85


def test_time_rises_over_the_days_and_items_are_born_and_fade(log: pl.DataFrame) -> None:
    time = log["time_us"].to_numpy()
    assert (np.diff(time) >= 0).all()
    assert time[0] >= START_US and time[-1] < START_US + 14 * 86_400 * 1_000_000
    first, last = log.head(BLOCK), log.tail(BLOCK)
    born = ~last["item_id"].is_in(first["item_id"].unique().to_list())
    assert 0.2 < born.mean() < 0.95  # shares of impressions, not of items
    top = first["item_id"].value_counts(sort=True)["item_id"].head(10).to_list()
    assert last["item_id"].is_in(top).sum() < 0.7 * first["item_id"].is_in(top).sum()
    counts = log["user_id"].value_counts(sort=True)["count"].to_numpy()
    assert counts[:100].sum() > 10 * counts[5000:5100].sum()


def test_the_propensity_is_that_of_the_shown_item(log: pl.DataFrame) -> None:
    inside = log.select(pl.col("item_id").is_in(pl.col("candidates")).all()).item()
    assert inside
    propensity = log["propensity"].to_numpy()
    assert propensity.min() >= 0.1 / 4 and propensity.max() <= 1.0
    # Without repeated candidates E[1 / propensity] over the shown item is the size of the slate.
    distinct = log.filter(pl.col("candidates").list.n_unique() == 4)
    assert abs((1 / distinct["propensity"]).mean() - 4) < 0.05
    random = draw(sharpness=0.0, rows=BLOCK).filter(pl.col("candidates").list.n_unique() == 4)
    assert np.allclose(random["propensity"], 0.25)


def logit(log: pl.DataFrame) -> np.ndarray:
    p = log["true_probability"].to_numpy()
    return np.log(p / (1 - p))


def test_the_parts_of_the_logit_obey_their_settings() -> None:
    quiet = {"behaviour": 0.0, "noise": 0.0, "sharpness": 0.0, "rows": 2 * BLOCK}
    both, ids, shared = (
        logit(draw(id_variance=i, shared_variance=s, **quiet)).var() for i, s in ((1.2, 0.75), (1.2, 0.0), (0.0, 0.75))
    )
    assert abs(ids - 1.2) < 0.2 and abs(shared - 0.75) < 0.15 and abs(both - ids - shared) < 0.2
    drowned = draw(noise=1.0, rows=BLOCK)["true_probability"]
    assert drowned.min() == pytest.approx(0.2) and drowned.max() == pytest.approx(0.2)


def test_behaviour_pulls_towards_topics_clicked_before() -> None:
    settings = {"id_variance": 0.0, "shared_variance": 0.0, "noise": 0.0, "behaviour": 1.5, "users": 500}
    log = draw(**settings).with_row_index()
    pairs = (
        log.filter(click=1, time_us=pl.col("time_us"))
        .group_by("user_id")
        .agg(pl.col("topic").mode().first().alias("liked"))
    )
    joined = log.tail(BLOCK).join(pairs, on="user_id")
    same, other = (
        joined.filter(t)["true_probability"].mean()
        for t in (pl.col("topic") == pl.col("liked"), pl.col("topic") != pl.col("liked"))
    )
    assert same > other + 0.01
    steps = np.unique(np.round(logit(log), 6))
    assert len(steps) == 4  # none, one, two or all of the last three clicks
    assert np.allclose(np.diff(steps), 0.5)


def test_the_schema_describes_the_log(log: pl.DataFrame) -> None:
    schema: LogSchema = builtin_schema("sim")
    wanted = named_columns(schema)
    assert set(wanted) <= set(log.columns)
    assert wanted["propensity"][0].words == "propensity" and wanted["true_probability"][0].words == "truth"
    assert log["item_vector"].drop_nulls().list.len().unique().to_list() == [schema.vectors[0].dim]
    assert 0 < log["item_vector"].null_count() < 0.1 * log.height
    assert 0 < log["income"].null_count() < 0.15 * log.height
    assert log["device"].is_in(["phone", "tablet", "desktop", "tv"]).all()


def test_a_simulated_raw_log_folder(tmp_path: Path) -> None:
    snapshot = simulate(SimConfig(rows=1000), tmp_path / "a")
    assert (snapshot.rows, snapshot.schema_name) == (1000, "sim")
    again = ingest("sim", None, None, tmp_path / "b", limit=1000)
    assert again.snapshot_id == snapshot.snapshot_id
    one, two = (pl.read_parquet(tmp_path / f / "log.parquet") for f in "ab")
    assert one.equals(two) and one["row_id"].n_unique() == 1000


QUIET = {"rows": 1000, "users": 300, "items": 300}


def test_drift_turns_the_effects_of_ids_and_keeps_their_variance() -> None:
    world = make_world(SimConfig(**QUIET, drift=1.0, seed=3))
    early, late = effects_at(world, 0.0), effects_at(world, 1.0)
    for first, last in zip(early, late, strict=True):
        assert np.corrcoef(first.ravel(), last.ravel())[0, 1] == pytest.approx(np.cos(1.0), abs=0.12)
        assert last.std() == pytest.approx(1.0, abs=0.12)
    assert np.array_equal(early[0], world.user_main)


def test_a_reused_id_has_the_effects_of_its_next_owner_from_its_handover_on() -> None:
    world = make_world(SimConfig(**QUIET, reuse=0.5, seed=3))
    assert world.change is not None
    passed = world.change.item_handover <= 1
    assert passed.mean() == pytest.approx(0.5, abs=0.1)
    assert (world.change.item_handover > world.item_birth).all()  # every id had a former owner
    before, after = effects_at(world, 0.0)[2], effects_at(world, 1.0)[2]
    assert np.array_equal(before[~passed], after[~passed])
    assert abs(np.corrcoef(before[passed], after[passed])[0, 1]) < 0.2
    middle = effects_at(world, 0.5)[2]
    early = passed & (world.change.item_handover <= 0.5)
    assert np.array_equal(middle[early], after[early])
    assert np.array_equal(middle[passed & ~early], before[passed & ~early])


def test_a_newcomer_takes_nothing_over_when_effects_drift_too() -> None:
    world = make_world(SimConfig(rows=1000, users=3000, items=3000, drift=1.5, reuse=0.5, seed=3))
    assert world.change is not None
    before, after = effects_at(world, 0.8), effects_at(world, 1.0)
    for place, handover in ((0, world.change.user_handover), (2, world.change.item_handover)):
        passed = (handover > 0.8) & (handover <= 1.0)
        assert passed.sum() > 200
        for first, second in zip(before[place : place + 2], after[place : place + 2], strict=True):
            assert abs(np.corrcoef(first[passed].ravel(), second[passed].ravel())[0, 1]) < 0.2
            stayed = handover > 1.0
            kept = np.corrcoef(first[stayed].ravel(), second[stayed].ravel())[0, 1]
            assert kept == pytest.approx(np.cos(1.5 * 0.2), abs=0.03)


def test_click_rates_of_a_reused_id_before_and_after_have_nothing_in_common() -> None:
    settings = {"id_variance": 4.0, "shared_variance": 0.0, "behaviour": 0.0, "sharpness": 0.0, "noise": 0.0}
    config = SimConfig(rows=200_000, users=600, items=2000, reuse=0.5, seed=1, **settings)
    change = make_world(config).change
    assert change is not None
    rows = draw(**config.model_dump()).with_row_index("at").with_columns(pl.col("at") / config.rows)
    for key, handover, alike in (("user_id", change.user_handover, 0.65), ("item_id", change.item_handover, 0.65)):
        moment = np.where(handover <= 1, handover, 0.5)  # those that stay are cut in the middle
        parts = rows.with_columns(late=pl.col("at") >= pl.Series(moment[rows[key].to_numpy()]))
        rates = parts.group_by(key, "late").agg(pl.col("click").mean(), pl.len()).filter(pl.col("len") >= 40)
        both = rates.filter(~pl.col("late")).join(rates.filter("late"), on=key)
        passed = handover[both[key].to_numpy()] <= 1
        first, second = both["click"].to_numpy(), both["click_right"].to_numpy()
        assert min(passed.sum(), (~passed).sum()) > 60
        assert abs(np.corrcoef(first[passed], second[passed])[0, 1]) < 0.25
        assert np.corrcoef(first[~passed], second[~passed])[0, 1] > alike


def test_drift_and_reuse_leave_everything_else_of_the_world_as_it_was() -> None:
    plain, changed = make_world(SimConfig(**QUIET)), make_world(SimConfig(**QUIET, drift=1.0, reuse=0.3))
    for field in dataclasses.fields(plain):
        if field.name != "change":
            assert np.array_equal(getattr(plain, field.name), getattr(changed, field.name)), field.name
    assert plain.change is None


def test_the_true_probability_follows_a_drift(tmp_path: Path) -> None:
    config = SimConfig(rows=40_000, users=200, items=100, id_variance=1.2, drift=2.0, behaviour=0.0, sharpness=0.0)
    simulate(config, tmp_path / "log")
    rows = pl.read_parquet(tmp_path / "log" / "log.parquet").with_row_index()
    assert abs(rows["true_probability"].mean() - rows["click"].mean()) < 0.01
    half = rows.height // 2
    mean = [
        part.group_by("item_id").agg(pl.col("true_probability").mean(), pl.len()).filter(pl.col("len") > 100)
        for part in (rows.head(half), rows.tail(half))
    ]
    both = mean[0].join(mean[1], on="item_id")
    assert both.height > 20
    steady = np.corrcoef(both["true_probability"], both["true_probability_right"])[0, 1]
    assert steady < 0.9  # an item's rate in the second half is not that of the first
