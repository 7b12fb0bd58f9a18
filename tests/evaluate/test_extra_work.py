"""Does extra work pay: numbers that agree with the engine, controls that explain a gain, and words that say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.testtime import world
from tests.testtime.world import with_report
from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import load_training_set
from thinktwice.data.training_set_info import Novelty
from thinktwice.errors import BundleError
from thinktwice.evaluate import slices
from thinktwice.evaluate.cli import evaluate as command
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.evaluation import TrainingEvaluation, read_evaluation, recorded_evaluation
from thinktwice.evaluate.extra_work import extra_work, fitting_rows, subsample, subsample_index
from thinktwice.evaluate.extra_work_record import CandidateOnTest, ExtraWork, TestedChange
from thinktwice.evaluate.report import render
from thinktwice.files import read_json
from thinktwice.models.store import load_model
from thinktwice.pages.charts_scatter import Point, scatter_chart
from thinktwice.selection.fit import fit_test_time
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import logloss
from thinktwice.stats.multiple import holm
from thinktwice.testtime.base_pass import Plain
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.report import Evidence, TestTimeReport
from thinktwice.testtime.store import load_test_time, read_report


def trial_model_of(finished: Path, name: str) -> tuple[TrialModel, TestTimeReport]:
    model, info = load_model(finished / ("plain" if name == "good" else "bad"))
    test_time = load_test_time(finished / f"test_time-{name}", model)
    assert test_time.report is not None
    return TrialModel(model, info.calibration, test_time.reliability, test_time.extras), test_time.report


@pytest.fixture(scope="module")
def content(finished: Path) -> TrainingEvaluation:
    """Of the trunk that memorised rare values."""
    return read_evaluation(finished / "evaluation-bad" / "evaluation.json")


@pytest.fixture(scope="module")
def found(content: TrainingEvaluation) -> ExtraWork:
    return content.extra_work


@pytest.fixture(scope="module")
def tested(finished: Path) -> EncodedRows:
    return load_training_set(finished / "set").part("test")


def named(found: ExtraWork, name: str) -> CandidateOnTest:
    return next(c for c in found.candidates if c.name == name)


def test_every_candidate_of_validation_is_measured_on_test_with_its_frozen_settings(
    finished: Path, content: TrainingEvaluation, found: ExtraWork, tested: EncodedRows
) -> None:
    trial_model, report = trial_model_of(finished, "bad")
    assert [c.name for c in found.candidates] == [c.name for c in report.candidates]
    assert len(found.candidates) >= 6
    off, _ = trial_model.logits(TestTimeConfig(), tested)
    assert found.rows == len(tested)
    assert found.off.logloss == pytest.approx(logloss(tested.label, off))
    for evidence in report.candidates:
        logit, passes = trial_model.logits(evidence.config, tested)
        c = named(found, evidence.name)
        assert c.logloss == pytest.approx(logloss(tested.label, logit))
        assert c.change.value == pytest.approx(c.logloss - found.off.logloss, abs=1e-9)
        assert c.auc_change.value == pytest.approx(c.auc - found.off.auc, abs=1e-9)
        assert c.passes == pytest.approx(passes)
        assert c.validation == Evidence(**{name: getattr(evidence, name) for name in Evidence.model_fields})
        assert not c.ships
    best = next(c for c in content.columns if c.key == "test_time")
    assert named(found, report.best_name).logloss == pytest.approx(best.metrics.logloss)
    assert named(found, report.best_name).truth_distance == pytest.approx(best.metrics.truth_distance)


def test_p_values_are_adjusted_for_the_number_of_candidates(found: ExtraWork) -> None:
    for changes in ([c.change for c in found.candidates], [c.auc_change for c in found.candidates]):
        p = np.asarray([change.p_value for change in changes])
        assert [change.p_holm for change in changes] == pytest.approx(holm(p).tolist())
        for change in changes:
            assert (change.p_value < 0.05) == change.significant
            assert change.p_holm >= change.p_value
        assert any(change.p_holm > change.p_value for change in changes)


def test_detectable_is_what_the_interval_allows(found: ExtraWork) -> None:
    """2.8 standard errors, that is 1.43 half widths of a 95 % interval."""
    for c in found.candidates:
        half = (c.change.high - c.change.low) / 2
        assert c.detectable.logloss == pytest.approx(1.4295 * half, rel=1e-3)


def test_slices_are_means_over_their_rows(finished: Path, found: ExtraWork, tested: EncodedRows) -> None:
    data = load_training_set(finished / "set")
    trial_model, report = trial_model_of(finished, "bad")
    masks = slices.uncertain(data, data.rows("test"), tested, trial_model.reliability)
    assert [part.name for part in found.slices] == list(masks)
    assert {"cold user", "unseen pair"} < set(masks)
    assert [name.split(" (")[0] for name in list(masks)[-2:]] == ["least support", "most support"]
    off, logit = (trial_model.logits(c, tested)[0] for c in (TestTimeConfig(), report.best))
    for part in found.slices:
        mask = masks[part.name]
        assert part.rows == mask.sum()
        expected = logloss(tested.label[mask], logit[mask]) - logloss(tested.label[mask], off[mask])
        assert named(found, report.best_name).slices[part.name].value == pytest.approx(expected)


def test_unseen_pairs_are_those_that_a_slow_search_finds(finished: Path) -> None:
    data = load_training_set(finished / "set")
    test = data.rows("test").with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise("user_id").alias("user_id")
    )
    pairs = set(data.rows("train").select("user_id", "item_id").iter_rows())
    slow = [pair[0] is not None and pair not in pairs for pair in test.select("user_id", "item_id").iter_rows()]
    assert slices.unseen_pairs(data, test)["unseen pair"].tolist() == slow
    assert 0 < sum(slow) < len(slow)
    assert not slow[3]  # a row without a user has no pair


def test_shuffled_counts_lose_what_true_counts_gain(found: ExtraWork) -> None:
    shuffled = next(r for r in found.references if r.name == "shuffled_counts")
    best = named(found, shuffled.candidate)
    assert best.change.value < 0 < shuffled.change.value
    difference = best.change.value - shuffled.change.value
    assert shuffled.candidate_against.value == pytest.approx(difference)


def test_the_oracle_bounds_every_order(found: ExtraWork) -> None:
    uplift = found.uplift
    oracle = next(r for r in found.references if r.name == "oracle_trigger")
    own = named(found, uplift.candidate)
    assert oracle.candidate == uplift.candidate
    assert oracle.change.value < own.change.value
    curves = {name: np.asarray(curve.change) for name, curve in uplift.curves.items()}
    assert set(curves) == {"entropy", "dual", "random", "oracle"}
    for curve in curves.values():
        assert curve[0] == 0
        assert curve[-1] == pytest.approx(uplift.everybody.value, abs=1e-12)
        assert (curves["oracle"] <= curve + 1e-12).all()
    assert curves["random"] == pytest.approx(np.asarray(uplift.shares) * curves["random"][-1])
    best_possible = oracle.change.value - uplift.base_change.value
    assert best_possible <= curves["oracle"].min() <= best_possible * 0.95
    assert uplift.curves["oracle"].area > max(uplift.curves[k].area for k in ("entropy", "dual", "random"))


def test_a_random_choice_asks_as_many_rows(found: ExtraWork) -> None:
    for r in found.references:
        if r.name == "random_trigger":
            assert r.passes - 1 == pytest.approx(named(found, r.candidate).passes - 1, rel=0.3)
    assert {"shuffled_counts", "random_trigger", "oracle_trigger"} == {r.name for r in found.references}


def members_only(finished: Path, folder: Path) -> TestTimeReport:
    """A report with two candidates of the same second opinion, one for the uncertain scores, one for all rows."""
    shutil.copytree(finished / "test_time-good", folder)
    kept = tuple(
        c for c in read_report(folder).candidates if c.config.mode == "members" and isinstance(c.config.base, Plain)
    )
    return with_report(folder, candidates=kept, best=kept[0].config, best_name=kept[0].name)


def test_the_own_trigger_lies_on_the_curve_of_its_order(finished: Path, tmp_path: Path, tested: EncodedRows) -> None:
    report = members_only(finished, tmp_path / "test_time")
    assert [c.name for c in report.candidates] == ["members", "members, all rows"]
    trial_model, _ = trial_model_of(finished, "good")
    fit = fitting_rows(load_training_set(finished / "set"), report)
    uplift = extra_work(trial_model, report, tested, fit, {}).uplift
    assert (uplift.candidate, uplift.trigger) == ("members", "entropy")
    curve = uplift.curves["entropy"].change
    near = round(uplift.share * 20)
    step = np.abs(np.diff(curve)).max()
    assert abs(uplift.change.value - curve[near]) <= step
    # A worse second trunk hurts, most where the score is open.
    assert uplift.everybody.value > 0


def test_known_scores_are_not_made_again_and_give_the_same(
    finished: Path, tested: EncodedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial_model, report = trial_model_of(finished, "good")
    first = report.candidates[0].name
    report = report.model_copy(update={"candidates": report.candidates[:2], "best_name": first})
    fit = fitting_rows(load_training_set(finished / "set"), report)
    configs = [TestTimeConfig(), *(c.config for c in report.candidates)]
    alone = extra_work(trial_model, report, tested, fit, {})
    scored: list[TestTimeConfig] = []
    raw = TrialModel.raw

    def counted(self: TrialModel, config: TestTimeConfig, rows: EncodedRows) -> object:
        scored.append(config)
        return raw(self, config, rows)

    known = {config: trial_model.raw(config, tested) for config in configs}
    monkeypatch.setattr(TrialModel, "raw", counted)
    assert extra_work(trial_model, report, tested, fit, {}, None, known) == alone
    assert not set(scored) & {configs[0], configs[2]}  # the first candidate is refitted for its control


def test_many_rows_are_thinned_evenly_in_time(finished: Path, tested: EncodedRows) -> None:
    index = subsample_index(tested, 100)
    assert len(index) == len(set(index.tolist())) == 100
    assert (np.diff(tested.time[index]) >= 0).all()
    assert np.bincount(np.arange(len(tested))[index] * 4 // len(tested)).tolist() == [25, 25, 25, 25]
    assert sorted(subsample_index(tested).tolist()) == list(range(len(tested)))
    trial_model, report = trial_model_of(finished, "good")
    config = report.candidates[0].config
    part, whole = trial_model.raw(config, tested.take(index)), trial_model.raw(config, tested)
    assert (subsample(whole, index).z == part.z).all()


def test_controls_are_fitted_on_the_rows_of_the_candidates(finished: Path) -> None:
    """The logloss that validation recorded for a candidate's fit is that of these rows."""
    trial_model, report = trial_model_of(finished, "good")
    fit = fitting_rows(load_training_set(finished / "set"), report)
    assert len(fit) == report.rows.fit
    for c in report.candidates:
        logit, _ = trial_model.logits(c.config, fit)
        assert logloss(fit.label, logit) == pytest.approx(c.fit_logloss, abs=1e-9)


def test_calibration_by_support_is_something_to_add(finished: Path, tmp_path: Path) -> None:
    """It is one pass like the plain model, and still another model."""
    shutil.copytree(finished / "test_time-good", tmp_path / "test_time")
    folder = tmp_path / "test_time"
    best = next(c for c in read_report(folder).candidates if c.config.mode == "calibrated")
    with_report(folder, best.config, best=best.config, best_name=best.name, accepted=True, mode="calibrated")
    result = evaluate(finished / "set", finished / "plain", None, tmp_path / "test_time", tmp_path / "out")
    column = result.content.columns[1]
    assert column.label == "plain + calibrated by support"
    assert column.cost.passes == 1.0
    assert column.metrics.logloss != result.content.columns[0].metrics.logloss
    assert [c.name for c in result.content.extra_work.candidates if c.ships] == [best.name]
    assert '<tr class="ship"><td>calibrated by support</td>' in render(result.content)


def test_measured_times_stay_out_of_the_evaluation(
    finished: Path, content: TrainingEvaluation, found: ExtraWork
) -> None:
    timings = read_json(finished / "evaluation-bad" / "timings.json")
    assert set(timings["candidates"]) == {c.name for c in found.candidates}
    inside = (finished / "bundle-bad" / "report" / "report.html").read_text(encoding="utf-8")
    assert "× time" not in inside
    assert f"<small>{timings['candidates']['gate']:.2f}× time</small>" not in inside
    page = render(content, timings["time_ratio"], timings["candidates"])
    assert f"<small>{timings['candidates']['gate']:.2f}× time</small>" in page
    assert "about" not in page[page.index("Every candidate") : page.index("Does the trigger")]


def test_the_page_answers_in_one_sentence_and_shows_every_candidate(
    content: TrainingEvaluation, found: ExtraWork
) -> None:
    page = render(content)
    start = page.index("Is extra work worth it?")
    section = page[start : page.index("<h2>Calibration</h2>")]
    assert content.test_time.sentence in section
    for c in found.candidates:
        assert section.count(f">{c.name}</td>") >= 2  # among the candidates, and by slices
        assert f">{c.name}</text>" in section
    for title in ("Every candidate", "Does the trigger find", "What explains a gain?", "Where would it pay?"):
        assert f"<h2>{title}" in section
    assert "upper bound, cannot be built" in section
    assert "show a true change with probability 80 %" in section


def test_losers_far_away_do_not_squeeze_the_picture(content: TrainingEvaluation, found: ExtraWork) -> None:
    far = TestedChange(value=0.5, low=0.4, high=0.6, significant=True, p_value=0.0, p_holm=0.0)
    moved = tuple(c.model_copy(update={"change": far}) if c.name == "matt" else c for c in found.candidates)
    page = render(content.model_copy(update={"extra_work": found.model_copy(update={"candidates": moved})}))
    first, second = page.split("The same with those that lose far more.")
    assert ">matt</text>" not in first and ">gate</text>" in first
    assert ">matt</text>" in second and ">gate</text>" in second
    assert "lose far more" not in render(content)


def test_warnings_of_counts_and_of_novelty(content: TrainingEvaluation) -> None:
    assert "card warn" not in render(content)
    line = (
        "the training count of 'item_id' alone predicts the label (AUC 0.630): a gain on rare values may be popularity"
    )
    test_time = content.test_time.model_copy(update={"warnings": (line,)})
    novelty = Novelty(valid={"user": 0.76, "item": 0.0}, test={"user": 0.19, "item": 0.1})
    page = render(content.model_copy(update={"test_time": test_time, "novelty": novelty}))
    assert page.count("card warn") == 1
    assert "may be popularity; no claim about frequency is made." in page
    assert "Validation has 76% rows with an unseen user and test 19%" in page
    assert "with an unseen item and test" not in page


def test_too_few_validation_rows_leave_the_sentence_alone(tmp_path: Path) -> None:
    data = world.make_training_set(tmp_path / "set", rows=900)
    world.train_model(data, tmp_path / "model", epochs=1)
    fit_test_time(tmp_path / "set", tmp_path / "model", None, tmp_path / "test_time")
    result = evaluate(tmp_path / "set", tmp_path / "model", None, tmp_path / "test_time", tmp_path / "out")
    found = result.content.extra_work
    assert (found.candidates, found.references, found.uplift) == ((), (), None)
    assert result.candidate_timings == {}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Is extra work worth it?" in page and "too few" in page
    assert "Every candidate" not in page


def test_the_command_prints_what_was_measured_when_the_model_was_made(
    finished: Path, found: ExtraWork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(finished / "bundle-bad", finished / "set", None, None)
    out = capsys.readouterr().out
    table = out[out.index("Does extra work pay?") :]
    assert "As measured when the model was made, on 1,500 test rows" in table
    for c in found.candidates:
        assert f"{c.name} " in table
        assert f"{c.change.value:+.5f}" in table
    assert "Test-time work ships off" in table

    made = recorded_evaluation(finished / "bundle-bad")
    assert made.extra_work == found
    with pytest.raises(BundleError, match=r"evaluation\.json cannot be read"):
        recorded_evaluation(tmp_path)


def test_logarithmic_axis_gives_ratios_equal_room() -> None:
    points = [Point(name, x, 0.1 * x) for name, x in (("a", 1.0), ("b", 2.0), ("c", 4.0))]
    chart = str(scatter_chart(points, x_label="x", y_label="y", log_x=True))
    places = [float(part.split('"')[0]) for part in chart.split('<circle cx="')[1:]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    for tick in ("1", "1.5", "2", "3", "4"):
        assert f">{tick}</text>" in chart
