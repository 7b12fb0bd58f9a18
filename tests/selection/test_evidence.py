"""Evidence on a log whose items change their appeal: it ships where it proves its worth, and nowhere else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.selection import drifting
from tests.selection.prices import fixed
from tests.testtime import world
from thinktwice.calibration import Calibration
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import BundleError, SchemaError
from thinktwice.evaluate.bless import bless
from thinktwice.evaluate.bundles import evaluate_bundles
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import write_candidate
from thinktwice.models import load_model
from thinktwice.release.bundle import load_bundle
from thinktwice.scoring import score_table
from thinktwice.selection.candidates import with_correction
from thinktwice.selection.config import FitConfig
from thinktwice.selection.evidence import DAY_US, EvidenceFit, EvidenceRows, evidence_fit, evidence_rows, fit_evidence
from thinktwice.selection.fit import FitResult, fit_test_time
from thinktwice.selection.parameters import trigger_of, triggered
from thinktwice.selection.trial_model import TrialModel
from thinktwice.selection.trunks import open_trunks
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.modes import preset
from thinktwice.testtime.opinions.config import Retrieve
from thinktwice.testtime.reliability import Reliability
from thinktwice.testtime.store import load_test_time
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Predicted

LEAN = FitConfig(strengths=(0.0,), min_counts=(0,), field_shares=(), max_paths=(4,))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``set`` and ``model`` of a log with drift and tastes."""
    world.one_thread()
    folder = tmp_path_factory.mktemp("drifting")
    drifting.train_model(drifting.training_set(folder / "set", drifting.log()), folder / "model")
    return folder


@pytest.fixture(scope="module")
def fitted(run: Path) -> FitResult:
    return fit_test_time(run / "set", run / "model", None, run / "test_time", FitConfig(mode="retrieve"), fixed)


def parts(run: Path) -> tuple[TrainingSet, EvidenceFit]:
    data = drifting.load_training_set(run / "set")
    trunk = open_trunks(run / "model", None)["plain"]
    model = trunk.model
    train, valid = data.part("train"), data.part("valid")
    reliability = Reliability.fit(train.ids, train.label, model.fields)

    def score(rows: EncodedRows) -> np.ndarray:
        return raw_rows(Engine(model, reliability, TestTimeConfig()), rows).z

    rows = evidence_rows(data, trunk, np.arange(len(valid)))
    assert isinstance(rows, EvidenceRows)
    found = evidence_fit(rows, model, score)
    assert isinstance(found, EvidenceFit)
    return data, found


def test_counters_ship_where_items_drift(run: Path, tmp_path: Path) -> None:
    found = fit_test_time(run / "set", run / "model", None, tmp_path / "out", FitConfig(mode="corrected"), fixed)
    assert found.config.mode == "corrected" and found.config.correction is not None
    (candidate,) = found.report.candidates
    assert set(candidate.controls) == {"recalibrated", "other_counters", "day_late"}
    assert all(candidate.controls[name].high < 0 for name in ("recalibrated", "other_counters"))
    assert "evidence of other rows" in found.sentence and "day" not in found.sentence
    report = found.report.evidence
    assert report is not None
    assert report.correction is not None and report.correction.scale > 0 and report.retrieval is None
    shipped = load_test_time(tmp_path / "out")
    assert shipped.extras.correction is not None and shipped.extras.retrieval is None
    again = fit_test_time(run / "set", run / "model", None, tmp_path / "again", FitConfig(mode="corrected"), fixed)
    assert again.report == found.report
    for name in ("correction.safetensors", "test_time.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_retrieved_outcomes_ship_where_users_have_tastes(fitted: FitResult) -> None:
    look = fitted.config.second_look
    assert fitted.config.mode == "retrieve" and look is not None and look.opinion == Retrieve(item_field="item_id")
    tried = {c.name: c for c in fitted.report.candidates}
    assert set(tried) == {"retrieve", "retrieve, all rows"}
    assert set(tried["retrieve, all rows"].controls) == {"recalibrated", "first_look", "other_counters"}
    assert tried["retrieve"].controls["other_counters"].high < 0
    report = fitted.report.evidence
    assert report is not None
    frontiers = {f.trigger: dict(zip(f.shares, f.kept, strict=True)) for f in report.frontiers}
    assert set(frontiers) == {"entropy", "moved", "predicted", "oracle", "random"}
    assert all(kept[1.0] == pytest.approx(1.0) for kept in frontiers.values())
    assert frontiers["oracle"][0.2] > frontiers["random"][0.2] == 0.2


def test_a_forecast_finds_the_rows_that_a_second_look_changes(run: Path, fitted: FitResult) -> None:
    _, found = parts(run)
    trial_model = TrialModel(fitted.model, Calibration(), fitted.test_time.reliability, fitted.test_time.extras, found)
    assert found.data.counter_scale is not None
    looks = with_correction(preset("retrieve"), found.definition)
    chosen = triggered(trial_model, looks, found.fit, "predicted", 0.3)
    look = chosen.second_look
    assert look is not None and isinstance(look.trigger, Predicted)
    raw = trial_model.raw(chosen.looking(trigger=look.trigger.model_copy(update={"threshold": -1e3})), found.fit)
    assert raw.escalated.mean() > 0.9 and (raw.signal > look.trigger.threshold).mean() == pytest.approx(0.3, abs=0.01)
    moved = np.abs(raw.z - raw.first)
    by_forecast, by_entropy = (
        moved[np.argsort(-signal)[: len(moved) // 3]].mean() for signal in (raw.signal, entropy(sigmoid(raw.first)))
    )
    assert by_forecast > max(by_entropy, 1.1 * moved.mean())
    blind = triggered(trial_model, chosen, found.fit, "random", 0.3)
    assert trigger_of(blind) == "random"
    wrong = chosen.looking(trigger=look.trigger.model_copy(update={"weights": look.trigger.weights[:-1]}))
    with pytest.raises(BundleError, match=r"the trigger 'predicted' has \d+ weights instead of"):
        trial_model.engine(wrong)
    scored = trial_model.engine(chosen).uncapped()
    batch, evidence = found.fit.batch(slice(None)), found.fit.evidence
    assert evidence is not None
    whole = scored.raw(batch, evidence=evidence)
    for rows in (np.arange(3), np.array([700]), np.arange(200)[::-1].copy()):
        some = scored.raw(found.fit.batch(rows), evidence=evidence.take(rows))
        assert np.array_equal(some.signal, whole.signal[rows]) and np.array_equal(some.z, whole.z[rows])


def test_lean_ships_evidence_where_it_proves_its_worth(run: Path, fitted: FitResult, tmp_path: Path) -> None:
    """With the default mode, uncertain rows get a second look; more than the limit of cost ships without it, or nothing does."""
    found = fit_test_time(run / "set", run / "model", None, tmp_path / "out", LEAN, fixed)
    assert found.config.mode == "retrieve" and found.report.accepted
    assert found.report.best_name == fitted.report.best_name
    tried = {c.name: c for c in found.report.candidates}
    assert {"corrected", "retrieve", "retrieve, all rows", "uttsi"} <= set(tried)
    named = {c.name: c for c in fitted.report.candidates}
    assert tried["retrieve"].config == named["retrieve"].config
    for max_cost, mode in ((1.2, "corrected"), (1.0, "off")):
        limited = LEAN.model_copy(update={"max_cost": max_cost})
        less = fit_test_time(run / "set", run / "model", None, tmp_path / mode, limited, fixed)
        assert less.config.mode == mode


def test_a_bundle_holds_what_it_scores_with(run: Path, fitted: FitResult, tmp_path: Path) -> None:
    evaluation = evaluate(run / "set", run / "model", None, run / "test_time", tmp_path / "evaluation")
    assert evaluation.content.shipped == "test_time"
    better, plain = (evaluation.content.column(key).metrics.logloss for key in ("test_time", "plain"))
    assert better is not None and plain is not None and better < plain
    write_candidate(
        tmp_path / "bundle",
        evaluation=evaluation,
        evaluation_dir=tmp_path / "evaluation",
        training_set_dir=run / "set",
        model_dirs={"plain": run / "model"},
        test_time_dir=run / "test_time",
        snapshot_id="0123456789abcdef",
        model_version="drifting-1",
        feature_version="drifting-1",
        package_version="0.1.0",
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert {"correction.safetensors", "retrieval.safetensors", "neighbours.safetensors"} <= bundle.manifest.files.keys()
    test = drifting.load_training_set(run / "set").part_with_evidence("test")
    model, info = load_model(run / "model")
    trained = load_test_time(run / "test_time", model)
    expected = Engine(model, trained.reliability, trained.config, info.calibration, trained.extras)
    found = raw_rows(bundle.engine, test)
    assert np.array_equal(found.z, raw_rows(expected, test).z) and found.corrected.all()
    content = evaluate_bundles(tmp_path / "bundle", run / "set")
    assert content.columns[0].metrics.logloss == pytest.approx(better, abs=1e-9)
    rows = drifting.load_training_set(run / "set").rows("test")
    with pytest.raises(SchemaError, match=r"no column 'user_views', one of .* counters that the model reads"):
        score_table(bundle, rows)
    scored = score_table(bundle, rows, evidence=test.evidence)
    first = np.flatnonzero(found.num_paths == 1)
    expected_logit = bundle.engine.uncapped().finish(found).probability
    np.testing.assert_allclose(scored.probability[first], expected_logit[first], rtol=1e-5)
    judged = bless(run / "set", tmp_path / "bundle", tmp_path / "bundle", tmp_path / "verdict")
    assert judged.candidate["logloss"] == pytest.approx(better, abs=1e-9)


def test_a_correction_of_other_counters_is_refused(run: Path, fitted: FitResult, tmp_path: Path) -> None:
    shutil.copytree(run / "test_time", tmp_path / "test_time")
    path = tmp_path / "test_time" / "test_time.json"
    definition = fitted.config.correction.definition if fitted.config.correction else None
    assert definition is not None
    path.write_text(path.read_text().replace(definition, "0" * 64))
    evaluation = evaluate(run / "set", run / "model", None, tmp_path / "test_time", tmp_path / "evaluation")
    write_candidate(
        tmp_path / "bundle",
        evaluation=evaluation,
        evaluation_dir=tmp_path / "evaluation",
        training_set_dir=run / "set",
        model_dirs={"plain": run / "model"},
        test_time_dir=tmp_path / "test_time",
        snapshot_id="0123456789abcdef",
        model_version="drifting-1",
        feature_version="drifting-1",
        package_version="0.1.0",
    )
    with pytest.raises(BundleError, match="instant statistics of another definition"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["time", "random"])
def test_counters_of_other_rows_are_kept_out(run: Path, tmp_path: Path, kind: str) -> None:
    if kind == "random":
        run = tmp_path
        drifting.train_model(drifting.training_set(run / "set", drifting.log(), kind=kind), run / "model")
    _, found = parts(run)
    real = fit_evidence(found, Extras(), retrieves=False)[1]
    assert real.correction is not None and real.correction.scale > 0
    name, correction, fit, later = next(found.controls())
    assert name == "other_counters" and correction.is_zero
    assert fit.evidence is not None and later.evidence is not None
    assert not np.array_equal(fit.evidence.counters, found.fit.evidence.counters if found.fit.evidence else None)
    assert np.array_equal(
        np.sort(np.nan_to_num(fit.evidence.counters), axis=0),
        np.sort(np.nan_to_num(found.fit.evidence.counters), axis=0) if found.fit.evidence else None,
    )


def test_late_counters_are_those_of_a_day_before(run: Path) -> None:
    data = drifting.load_training_set(run / "set")
    rows = len(data.part("valid"))
    positions = np.arange(rows)[::-1].copy()
    late = data.late_counters(DAY_US, {"valid": positions, "train": np.array([0, 5000])})
    now = data.counters("valid")
    assert now is not None and data.counter_scale is not None
    assert np.array_equal(data.late_counters(0, {"valid": positions})["valid"], now[positions], equal_nan=True)
    views = data.counter_scale.names.index("item_views")
    assert (late["valid"][:, views] <= now[positions, views]).all()
    assert (late["valid"][:, views] < now[positions, views]).mean() > 0.9
    assert late["train"].shape == (2, now.shape[1])


def test_labels_of_a_block_change_nothing_that_its_rows_are_given(run: Path) -> None:
    """Neighbours of a train row know the labels of rows before its block alone; its history those before its instant."""
    _, found = parts(run)
    column = found.data.encoder.column_of("item_id")
    assert column is not None
    last = found.blocks[-1]
    label = found.rows.label.copy()
    label[last.rows] = 1 - label[last.rows]
    flipped = replace(found, rows=replace(found.rows, label=label))
    for block in found.blocks:
        mine = found._neighbours(found.rows.take(block.trained_on), column)
        theirs = flipped._neighbours(flipped.rows.take(block.trained_on), column)
        assert np.array_equal(mine.ids, theirs.ids) and np.array_equal(mine.weights, theirs.weights)
        assert block.trained_on.max() < block.rows.min()
    assert not np.array_equal(
        found._neighbours(found.rows, column).weights, flipped._neighbours(flipped.rows, column).weights
    )
    evidence = found.rows.evidence
    assert evidence is not None and evidence.history is not None
    history = evidence.history()
    assert history is not None
    outcome_rows = np.diff(np.r_[history.start, history.end[-1]])
    assert (history.end - history.start <= 200).all() and len(outcome_rows) == len(found.rows)


def test_a_log_without_instant_statistics_tries_nothing_new(tmp_path: Path) -> None:
    frame = drifting.log(4000)
    drifting.train_model(drifting.training_set(tmp_path / "set", frame, drifting.PLAIN), tmp_path / "model")
    found = fit_test_time(tmp_path / "set", tmp_path / "model", None, tmp_path / "out", LEAN, fixed)
    assert not {c.name for c in found.report.candidates} & {"corrected", "retrieve", "retrieve, all rows"}
    assert found.report.evidence is not None and found.report.evidence.reason == "the schema has no statistics.instant"
    assert {p.name for p in (tmp_path / "out").iterdir()} & {"correction.safetensors", "retrieval.safetensors"} == set()


def test_what_a_model_was_trained_with_is_read_from_its_record(run: Path, tmp_path: Path) -> None:
    trunk = open_trunks(run / "model", None)["plain"]
    assert trunk.training is not None and len(trunk.curve) > 0
    without = replace(trunk, folder=tmp_path)
    assert without.training is None and without.curve == ()
    (tmp_path / "training.json").write_text('{"format": 2, "config": {}, "chosen": {}, "seed": 0}')
    with pytest.raises(BundleError, match="train the model again"):
        _ = replace(trunk, folder=tmp_path).training
