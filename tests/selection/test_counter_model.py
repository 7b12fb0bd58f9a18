"""The trunk with counters among its inputs: it ships where it proves itself, and a bundle scores as it was judged."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.selection import drifting
from tests.selection.prices import fixed
from tests.testtime import world
from thinktwice.data.evidence import Evidence
from thinktwice.errors import BundleError
from thinktwice.evaluate.bundles import evaluate_bundles
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import write_candidate
from thinktwice.files import read_json, write_json
from thinktwice.release.bundle import load_bundle
from thinktwice.selection import fit
from thinktwice.selection.config import FitConfig
from thinktwice.selection.fit import FitResult, fit_test_time
from thinktwice.testtime.engine import raw_rows
from thinktwice.testtime.store import COUNTER_FOLDER, load_test_time


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``set`` and ``model`` of a log whose items drift fast."""
    world.one_thread()
    folder = tmp_path_factory.mktemp("drifting")
    drifting.train_model(drifting.training_set(folder / "set", drifting.log(8000, drift=2.5)), folder / "model")
    return folder


@pytest.fixture(scope="module")
def fitted(run: Path) -> FitResult:
    return fit_test_time(run / "set", run / "model", None, run / "test_time", FitConfig(mode="counters"), fixed)


def candidate_bundle(run: Path, test_time: Path, out: Path) -> Path:
    evaluation = evaluate(run / "set", run / "model", None, test_time, out / "evaluation")
    write_candidate(
        out / "bundle",
        evaluation=evaluation,
        evaluation_dir=out / "evaluation",
        training_set_dir=run / "set",
        model_dirs={"plain": run / "model"},
        test_time_dir=test_time,
        snapshot_id="0123456789abcdef",
        model_version="drifting-1",
        feature_version="drifting-1",
        package_version="0.1.0",
    )
    return out / "bundle"


def test_it_ships_where_items_drift_and_not_with_counters_of_other_rows(run: Path, fitted: FitResult) -> None:
    assert fitted.config.mode == "counters" and fitted.config.correction is None
    (tried,) = fitted.report.candidates
    assert tried.name == "counters in the trunk" and tried.passes == 1.0
    assert set(tried.controls) == {"recalibrated", "other_counters"}
    assert all(change.high < 0 for change in tried.controls.values())
    trunk = load_test_time(run / "test_time").counter_trunk
    assert trunk is not None and trunk.model.fields.counters is not None
    data = drifting.load_training_set(run / "set")
    assert data.counter_scale is not None and trunk.model.fields.counters.definition == data.counter_scale.definition
    names = [group.name for group in trunk.model.fields.counter_groups]
    assert names == ["user counters", "user counters by topic", "item counters", "item counters by attribute"]


def test_a_bundle_scores_as_it_was_judged(run: Path, fitted: FitResult, tmp_path: Path) -> None:
    bundle = load_bundle(candidate_bundle(run, run / "test_time", tmp_path))
    assert bundle.reads_counters and bundle.engine.backend.name == "folded"
    assert not {name for name in bundle.manifest.files if name.startswith(COUNTER_FOLDER)}
    content = evaluate_bundles(tmp_path / "bundle", run / "set")
    judged = read_json(tmp_path / "evaluation" / "evaluation.json")
    (shipped,) = [c for c in judged["columns"] if c["key"] == "test_time"]
    (plain,) = [c for c in judged["columns"] if c["key"] == "plain"]
    assert shipped["metrics"]["logloss"] < plain["metrics"]["logloss"]
    assert content.columns[0].metrics.logloss == pytest.approx(shipped["metrics"]["logloss"], abs=1e-6)
    test = drifting.load_training_set(run / "set").part_with_evidence("test")
    assert test.evidence is not None
    counters, batch = np.asarray(test.evidence.counters), test.batch(slice(None))
    whole = bundle.engine.score(batch, evidence=Evidence(counters))
    np.testing.assert_allclose(whole.logit, bundle.engine.finish(raw_rows(bundle.engine, test)).logit, atol=1e-4)
    for rows in (np.array([0]), np.arange(5, 45), np.arange(len(test))[::-1].copy()):
        some = bundle.engine.score(test.batch(rows), evidence=Evidence(counters[rows]))
        assert np.array_equal(some.logit, whole.logit[rows])
    missing = bundle.engine.score(batch)
    assert np.isfinite(missing.logit).all() and not missing.corrected.any()


def test_a_model_of_other_counters_is_refused(run: Path, fitted: FitResult, tmp_path: Path) -> None:
    shutil.copytree(run / "test_time", tmp_path / "test_time")
    path = tmp_path / "test_time" / COUNTER_FOLDER / "model.json"
    content = read_json(path)
    content["fields"]["counters"]["definition"] = "0" * 64
    write_json(path, content)
    with pytest.raises(BundleError, match=r"its model was trained on \d+ instant statistics of another definition"):
        load_bundle(candidate_bundle(run, tmp_path / "test_time", tmp_path))


def test_a_correction_is_compared_with_the_same_counters_in_the_trunk(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def noted(module: ModuleType, name: str) -> None:
        begin = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **named: begun.append(name) or begin(*args, **named))

    for name in ("counter_training", "evidence_fit", "fit_extras", "other_counters", "candidates"):
        noted(fit, name)
    quick = FitConfig(strengths=(0.0,), min_counts=(0,), field_shares=(), max_paths=(4,))
    found = fit_test_time(run / "set", run / "model", None, tmp_path / "out", quick, fixed)
    # The two longest trainings begin before the work that they run beside.
    assert begun == ["counter_training", "fit_extras", "evidence_fit", "other_counters", "candidates"]
    tried = {c.name: c for c in found.report.candidates}
    assert {"counters in the trunk", "corrected"} <= set(tried) and found.report.accepted
    assert "counters_in_trunk" in tried["corrected"].controls
    accepted = {name: c.fit_logloss for name, c in tried.items() if c.accepted}
    assert found.report.best_name in accepted
    best = tried[found.report.best_name or ""]
    assert best.config == found.config
