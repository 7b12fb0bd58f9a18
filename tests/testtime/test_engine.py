"""The engine: exact when off, the same bits for a row whatever surrounds it, bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import BundleError
from thinktwice.models import load_model
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import Calibration
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.candidates import fit_paths
from thinktwice.testtime.config import FitConfig
from thinktwice.testtime.engine import BLOCK, Engine
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import TestTime, save_test_time

CALIBRATION = Calibration(a=1.3, b=-0.2)
PATHS = TestTimeConfig(mode="uttsi", trigger="dual", threshold=0.05, signal_max=0.4, min_count=2)
MODES = {
    "off": TestTimeConfig(),
    "gate": TestTimeConfig(mode="gate", strength=0.5),
    "filter": TestTimeConfig(mode="filter", min_count=5),
    "uttsi": PATHS,
    "uttsi, exact": PATHS.model_copy(update={"sampler": "enumerate"}),
    "uttsi, all rows": PATHS.model_copy(update={"trigger": "always"}),
    "uttsi, random rows": PATHS.model_copy(update={"trigger": "random", "threshold": 0.7, "signal_max": 1.0}),
    "uttsi, entropy": PATHS.model_copy(update={"trigger": "entropy", "threshold": 0.9, "signal_max": 1.0}),
}


def uncapped(config: TestTimeConfig) -> TestTimeConfig:
    return config.model_copy(update={"max_path_rows": 10**6})


@pytest.fixture(scope="module")
def test_rows(data: TrainingSet) -> EncodedRows:
    return data.part("test")


@pytest.fixture(scope="module")
def reliability(data: TrainingSet, plain: Path) -> Reliability:
    train = data.part("train")
    return Reliability.fit(train.ids, train.label, load_model(plain)[0].fields)


@pytest.fixture(scope="module")
def model(plain: Path) -> Backbone:
    return load_model(plain)[0]


def test_off_is_the_plain_model_bit_for_bit(model: Backbone, reliability: Reliability, test_rows: EncodedRows) -> None:
    batch = test_rows.batch(slice(0, BLOCK))
    with torch.inference_mode():
        plain = model(batch).double().numpy()
    scored = Engine(model, reliability, TestTimeConfig(), CALIBRATION).score(batch)
    assert np.array_equal(scored.logit, CALIBRATION.a * plain + CALIBRATION.b)
    assert np.array_equal(scored.probability, sigmoid(CALIBRATION.a * plain + CALIBRATION.b))
    assert scored.path_rows == 0
    assert (scored.num_paths == 1).all()


@pytest.mark.parametrize("name", MODES)
def test_a_row_scores_the_same_alone_among_500_and_in_any_order(
    name: str, model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    config = uncapped(MODES[name])
    engine = Engine(model, reliability, config, CALIBRATION)
    order = np.random.default_rng(0).permutation(500)
    among = engine.score(test_rows.batch(slice(0, 500)))
    shuffled = engine.score(test_rows.batch(order))
    again = Engine(model, reliability, config, CALIBRATION).score(test_rows.batch(slice(0, 500)))
    for field in ("logit", "probability", "uncertainty", "num_paths"):
        assert np.array_equal(getattr(shuffled, field), getattr(among, field)[order]), field
        assert np.array_equal(getattr(again, field), getattr(among, field)), field
    for row in range(0, 500, 7):
        alone = engine.score(test_rows.batch(slice(row, row + 1)))
        assert alone.logit[0] == among.logit[row]
        assert alone.uncertainty[0] == among.uncertainty[row]
        assert alone.num_paths[0] == among.num_paths[row]
    if name.startswith("uttsi"):
        assert among.path_rows > 0


@pytest.fixture(scope="module")
def shipped(data: TrainingSet, model: Backbone, reliability: Reliability) -> TestTimeConfig:
    """Guided paths as the fit makes them, every limit as shipped."""
    fit = FitConfig()
    settings = TestTimeConfig(mode="uttsi", min_count=2, max_paths=fit.max_paths)
    return fit_paths(model, reliability, data.part("valid"), settings, fit.explored_share, "dual")


def test_a_row_scores_the_same_alone_or_among_500_with_the_shipped_limits(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows, shipped: TestTimeConfig
) -> None:
    assert shipped.max_path_rows == TestTimeConfig().max_path_rows == 1024
    engine = Engine(model, reliability, shipped, CALIBRATION)
    for start in (0, 500, 1000):
        rows = np.arange(start, start + 500)
        among = engine.score(test_rows.batch(rows))
        assert not among.capped
        assert 0.1 < (among.num_paths > 1).mean() < 0.4
        for row in (*np.flatnonzero(among.num_paths > 1)[:20], 0, 127, 128, 499):
            alone = engine.score(test_rows.batch(rows[row : row + 1]))
            for field in ("logit", "probability", "uncertainty", "num_paths"):
                assert getattr(alone, field)[0] == getattr(among, field)[row], field


def test_rows_that_the_shipped_cap_leaves_out_have_exactly_their_base_score(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows, shipped: TestTimeConfig
) -> None:
    eager = shipped.model_copy(update={"trigger": "always"})
    engine = Engine(model, reliability, eager, CALIBRATION)
    batch, order = test_rows.batch(slice(0, 500)), np.random.default_rng(1).permutation(500)
    free = Engine(model, reliability, uncapped(eager), CALIBRATION).score(batch)
    base = engine.score(batch, max_path_rows=0)
    first, again, shuffled = engine.score(batch), engine.score(batch), engine.score(test_rows.batch(order))
    assert first.capped and not free.capped
    assert 1024 - 8 <= first.path_rows <= 1024
    out = first.left_out
    assert 0 < out.sum() < 500
    for field in ("logit", "probability", "uncertainty", "num_paths"):
        values = getattr(first, field)
        assert np.array_equal(values, getattr(again, field)), field
        assert np.array_equal(values[order], getattr(shuffled, field)), field
        assert np.array_equal(values[out], getattr(base, field)[out]), field
        assert np.array_equal(values[~out], getattr(free, field)[~out]), field
    assert base.left_out.all()


@pytest.mark.parametrize("name", MODES)
def test_uncertainty_and_probability_are_shares(
    name: str, model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    scored = Engine(model, reliability, MODES[name], CALIBRATION).score(test_rows.batch(slice(0, 200)))
    for value in (scored.uncertainty, scored.probability):
        assert ((value >= 0) & (value <= 1)).all()
    assert np.unique(scored.uncertainty).size > 100
    assert scored.path_rows == (scored.num_paths - 1).sum()


def test_cap_bounds_path_rows_and_the_largest_signals_come_first(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    engine, batch = Engine(model, reliability, uncapped(PATHS), CALIBRATION), test_rows.batch(slice(0, 300))
    free = engine.raw(batch)
    for cap in (1, 7, 40, 200):
        raw = engine.raw(batch, cap)
        spent = int(raw.num_paths.sum()) - 300
        assert spent <= cap
        explored, left = raw.signal[raw.explored], raw.signal[free.explored & ~raw.explored]
        assert not len(explored) or not len(left) or explored.min() >= left.max()
        same = ~free.explored | raw.explored
        assert not (raw.left_out & raw.explored).any()
        assert raw.left_out[free.explored & ~raw.explored].all()
        assert np.array_equal(raw.z[same], free.z[same])  # what was admitted has its full score
        reverse = engine.raw(test_rows.batch(np.arange(300)[::-1]), cap)
        assert np.array_equal(reverse.z[::-1], raw.z)


def test_cap_of_zero_is_the_filtered_base_pass(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    batch = test_rows.batch(slice(0, 200))
    capped = Engine(model, reliability, PATHS, CALIBRATION).score(batch, max_path_rows=0)
    base = Engine(model, reliability, TestTimeConfig(mode="filter", min_count=2), CALIBRATION).score(batch)
    assert np.array_equal(capped.probability, base.probability)
    assert capped.path_rows == 0


def test_configured_cap_holds_without_an_argument(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    config = PATHS.model_copy(update={"max_path_rows": 5})
    assert 0 < Engine(model, reliability, config).score(test_rows.batch(slice(0, 300))).path_rows <= 5


def test_an_argument_lowers_the_configured_cap_and_never_raises_it(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    engine = Engine(model, reliability, PATHS.model_copy(update={"max_path_rows": 40}), CALIBRATION)
    batch = test_rows.batch(slice(0, 300))
    configured, asked, less = engine.score(batch), engine.score(batch, 10**9), engine.score(batch, 10)
    assert configured.capped and 30 < configured.path_rows <= 40
    assert np.array_equal(asked.num_paths, configured.num_paths)
    assert np.array_equal(asked.logit, configured.logit)
    assert 0 < less.path_rows <= 10


def test_gate_without_strength_and_filter_without_count_change_nothing(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    batch = test_rows.batch(slice(0, 200))
    off = Engine(model, reliability, TestTimeConfig()).score(batch)
    for config in (TestTimeConfig(mode="gate"), TestTimeConfig(mode="filter")):
        assert np.array_equal(Engine(model, reliability, config).score(batch).logit, off.logit)


def test_gate_is_the_mean_field_path(model: Backbone, reliability: Reliability, test_rows: EncodedRows) -> None:
    batch = test_rows.batch(slice(0, BLOCK))
    mask = torch.from_numpy(reliability.of(batch.ids.numpy(), 2.0).astype(np.float32))
    with torch.inference_mode():
        expected = model.score(model.embed(batch), mask[:, None])[:, 0].double().numpy()
    found = Engine(model, reliability, TestTimeConfig(mode="gate", strength=2.0)).raw(batch)
    np.testing.assert_allclose(found.z, expected, atol=1e-6)
    assert np.abs(found.z - Engine(model, reliability, TestTimeConfig()).raw(batch).z).max() > 0.01


def test_another_salt_draws_other_paths(model: Backbone, reliability: Reliability, test_rows: EncodedRows) -> None:
    batch = test_rows.batch(slice(0, 200))
    first = Engine(model, reliability, PATHS).score(batch)
    other = Engine(model, reliability, PATHS.model_copy(update={"salt": 1})).score(batch)
    assert not np.array_equal(first.logit, other.logit)
    bypassed = (first.num_paths == 1) & (other.num_paths == 1)
    assert np.array_equal(first.logit[bypassed], other.logit[bypassed])


def test_explored_rows_get_their_own_calibration(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows
) -> None:
    batch = test_rows.batch(slice(0, 200))
    config = PATHS.model_copy(update={"calibration": CALIBRATION, "explored_calibration": Calibration(a=0.5, b=1.0)})
    engine = Engine(model, reliability, config)
    raw, scored = engine.raw(batch), engine.score(batch)
    assert raw.explored.any()
    np.testing.assert_array_equal(scored.logit[raw.explored], 0.5 * raw.z[raw.explored] + 1.0)
    np.testing.assert_array_equal(scored.logit[~raw.explored], 1.3 * raw.z[~raw.explored] - 0.2)


def test_empty_request(model: Backbone, reliability: Reliability, test_rows: EncodedRows) -> None:
    for config in MODES.values():
        scored = Engine(model, reliability, config).score(test_rows.batch(slice(0, 0)))
        assert len(scored.logit) == 0
        assert scored.path_rows == 0


def test_counts_of_another_model_are_refused(model: Backbone, reliability: Reliability) -> None:
    other = Reliability(
        reliability.counts[:-1], reliability.kappa, (*reliability.num_values[:-1], 1), reliability.protected
    )
    with pytest.raises(BundleError, match="same bundle"):
        Engine(model, other, TestTimeConfig())
    with pytest.raises(BundleError, match="importance names 2 fields"):
        Engine(model, reliability, TestTimeConfig(importance=(0.5, 0.5)))


def test_a_loaded_engine_gives_the_same_bits(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows, tmp_path: Path
) -> None:
    save_test_time(tmp_path, TestTime(PATHS, reliability, {"sentence": "fine"}))
    batch = test_rows.batch(slice(0, 200))
    first, loaded = Engine(model, reliability, PATHS, CALIBRATION), Engine.load(tmp_path, model, CALIBRATION)
    assert np.array_equal(first.score(batch).probability, loaded.score(batch).probability)
    (tmp_path / "counts.safetensors").write_bytes(b"no counts")
    with pytest.raises(BundleError, match="fit the test-time parameters again"):
        Engine.load(tmp_path, model, CALIBRATION)


def test_a_mode_without_paths_takes_no_trigger() -> None:
    with pytest.raises(ValueError, match="must be 'never'"):
        TestTimeConfig(mode="gate", trigger="dual")


def test_one_embedding_lookup_for_all_paths(
    model: Backbone, reliability: Reliability, test_rows: EncodedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, scores = [], []
    embed, score = model.embed, model.score
    monkeypatch.setattr(model, "embed", lambda batch: (calls.append(len(batch)), embed(batch))[1])
    monkeypatch.setattr(model, "score", lambda x, *rest: (scores.append(tuple(x.shape[:1])), score(x, *rest))[1])
    scored = Engine(model, reliability, PATHS).score(test_rows.batch(slice(0, 100)))
    assert calls == [BLOCK]  # 100 rows fit one block
    assert scored.path_rows > 0
    assert scores == [(BLOCK,)] * (1 + -(-scored.path_rows // BLOCK))  # one shape only
