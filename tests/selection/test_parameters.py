"""Fitted parameters: thresholds that give the wanted share, calibrations of the rows that serving will escalate, known optima."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from thinktwice.calibration import Calibration
from thinktwice.data.encoded import EncodedRows
from thinktwice.selection.parameters import (
    best_filter,
    best_gate,
    by_field,
    by_support,
    calibrated,
    filter_of,
    fit_base,
    fit_spread,
    shrunk,
    trigger_of,
    triggered,
    typical_pair,
)
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import logloss
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.base_pass import Filter, Gate
from thinktwice.testtime.modes import UTTSI_PATHS, preset
from thinktwice.testtime.samplers.bernoulli import Bernoulli
from thinktwice.testtime.triggers import Always, Budget, ThresholdTrigger, TriggerKind
from thinktwice.train.measure import fit_calibration

PATHS = UTTSI_PATHS.model_copy(update={"sampler": Bernoulli()})
BASES = {"dual": preset("uttsi").looking(opinion=PATHS), "entropy": preset("members")}


def above(settings: TestTimeConfig) -> ThresholdTrigger:
    """The trigger of a configuration that has one with a threshold."""
    assert settings.second_look is not None
    assert isinstance(settings.second_look.trigger, ThresholdTrigger)
    return settings.second_look.trigger


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("trigger", ["dual", "entropy"])
def test_a_trigger_asks_for_the_asked_share(
    trigger: TriggerKind, share: float, trial_model: TrialModel, valid: EncodedRows
) -> None:
    settings = triggered(trial_model, BASES[trigger], valid, trigger, share)
    raw = trial_model.raw(settings, valid)
    assert (raw.signal > above(settings).threshold).mean() == pytest.approx(share, abs=0.005)
    assert above(settings).signal_max == raw.signal.max()
    served = trial_model.raw(calibrated(trial_model, settings, valid), valid)
    assert (served.signal > above(settings).threshold).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("trigger", ["dual", "entropy"])
def test_random_rows_are_as_many_and_get_as_many_paths(
    trigger: TriggerKind, trial_model: TrialModel, valid: EncodedRows
) -> None:
    base = BASES[trigger]
    guided = trial_model.raw(triggered(trial_model, base, valid, trigger, 0.25), valid)
    blind_config = triggered(trial_model, base, valid, "random", 0.25)
    assert trigger_of(blind_config) == "random"
    wanted = (guided.signal > above(triggered(trial_model, base, valid, trigger, 0.25)).threshold).mean()
    blind = trial_model.raw(blind_config, valid)
    assert (blind.signal > above(blind_config).threshold).mean() == pytest.approx(wanted, abs=0.03)
    if trigger == "entropy":
        assert blind.num_paths.mean() == pytest.approx(guided.num_paths.mean(), abs=0.03)


def test_budget_and_always_need_no_threshold(trial_model: TrialModel, valid: EncodedRows) -> None:
    base = BASES["entropy"]
    assert triggered(trial_model, base, valid, "always", 0.2) == base.looking(trigger=Always())
    budget = triggered(trial_model, base, valid, "budget", 0.2)
    assert budget.second_look is not None and budget.second_look.trigger == Budget(share=0.2)
    assert trial_model.raw(budget, valid).escalated.sum() == int(0.2 * len(valid))


@pytest.mark.parametrize("wrong", [Calibration(), Calibration(a=0.3, b=-2.0), Calibration(a=4.0, b=1.0)])
def test_the_model_s_own_calibration_does_not_matter(
    wrong: Calibration, trial_model: TrialModel, valid: EncodedRows
) -> None:
    """Rows that are escalated while calibrating are those that serving escalates, however badly the model is calibrated."""
    other = replace(trial_model, calibration=wrong)
    for trigger in ("dual", "entropy"):
        found = [
            calibrated(model, triggered(model, BASES[trigger], valid, trigger, 0.2), valid)  # type: ignore[arg-type]
            for model in (trial_model, other)
        ]
        assert found[0] == found[1]
        assert found[0].second_look.calibration is not None


def test_each_group_is_calibrated_on_its_own_rows(trial_model: TrialModel, valid: EncodedRows) -> None:
    settings = triggered(trial_model, BASES["entropy"], valid, "entropy", 0.3)
    found, raw = calibrated(trial_model, settings, valid), trial_model.raw(settings, valid)
    for chosen, calibration in ((raw.escalated, found.second_look.calibration), (~raw.escalated, found.calibration)):
        assert chosen.sum() >= 200
        assert calibration == fit_calibration(raw.z[chosen], valid.label[chosen])
    few = triggered(trial_model, BASES["entropy"], valid, "entropy", 0.05)
    assert calibrated(trial_model, few, valid).second_look.calibration is None  # 75 rows say too little


def test_calibrating_lowers_the_logloss(trial_model: TrialModel, valid: EncodedRows) -> None:
    wrong = replace(trial_model, calibration=Calibration(a=2.0, b=1.0))
    for settings in (TestTimeConfig(), TestTimeConfig(mode="gate", base=Gate(strength=1.0)), BASES["entropy"]):
        before, after = (
            logloss(valid.label, wrong.logits(s, valid)[0]) for s in (settings, calibrated(wrong, settings, valid))
        )
        assert after < before - 0.01
        known = calibrated(wrong, calibrated(wrong, settings, valid), valid)
        assert known == calibrated(wrong, settings, valid)  # what was fitted before is forgotten


def test_support_calibration_is_no_worse_than_a_plain_one(trial_model: TrialModel, valid: EncodedRows) -> None:
    plain = calibrated(trial_model, TestTimeConfig(), valid)
    informed = by_support(trial_model, TestTimeConfig(mode="calibrated"), valid)
    assert informed.support_calibration is not None and informed.support_calibration.c != 0
    losses = [logloss(valid.label, trial_model.logits(s, valid)[0]) for s in (informed, plain)]
    assert losses[0] <= losses[1] + 1e-6


def test_a_gate_by_field_fits_no_worse_and_touches_open_fields_alone(
    rare_trial_model: TrialModel, rare_valid: EncodedRows
) -> None:
    rows, grid = rare_valid.take(np.arange(1500)), (0.0, 0.25, 4.0)
    gate = best_gate(rare_trial_model, TestTimeConfig(), rows, (0.0, 0.5, 1.0, 2.0))
    assert gate.mode == "gate" and isinstance(gate.base, Gate)
    finer = by_field(rare_trial_model, gate, rows, grid)
    assert isinstance(finer.base, Gate) and finer.base.strength == gate.base.strength
    factors = np.asarray(finer.base.field_strengths)
    closed = np.setdiff1d(np.arange(len(factors)), rare_trial_model.reliability.maskable_fields)
    assert (factors[closed] == 1).all() and (factors != 1).any()
    assert set(factors.tolist()) <= {1.0, *grid}
    losses = [logloss(rows.label, rare_trial_model.logits(s, rows)[0]) for s in (finer, gate)]
    assert losses[0] < losses[1]
    assert by_field(rare_trial_model, TestTimeConfig(mode="gate"), rows, grid) == TestTimeConfig(mode="gate")


def test_a_gate_without_counts_is_the_same_under_any_counts(
    rare_trial_model: TrialModel, rare_valid: EncodedRows
) -> None:
    rows = rare_valid.take(np.arange(1500))
    found = shrunk(rare_trial_model, TestTimeConfig(), rows, (0.6, 0.2))
    assert isinstance(found.base, Gate) and found.base.strength == 0
    assert set(found.base.field_shares) <= {1.0, 0.6, 0.2} and min(found.base.field_shares) < 1
    assert not found.uses_counts
    assert shrunk(rare_trial_model.shuffled(), TestTimeConfig(), rows, (0.6, 0.2)) == found
    assert np.array_equal(rare_trial_model.raw(found, rows).z, rare_trial_model.shuffled().raw(found, rows).z)


def test_the_best_of_a_grid_has_the_least_loss(rare_trial_model: TrialModel, rare_valid: EncodedRows) -> None:
    rows, grid = rare_valid.take(np.arange(1500)), (0, 1, 3, 10)
    found = best_filter(rare_trial_model, TestTimeConfig(), rows, grid)
    losses = {}
    for count in grid:
        settings = calibrated(rare_trial_model, TestTimeConfig(mode="filter", base=filter_of(count)), rows)
        losses[count] = logloss(rows.label, rare_trial_model.logits(settings, rows)[0])
    assert losses[found.base.min_count if isinstance(found.base, Filter) else 0] == min(losses.values())


def test_the_base_calibration_is_fitted_without_asking_anybody(trial_model: TrialModel, valid: EncodedRows) -> None:
    found = fit_base(trial_model, BASES["entropy"], valid)
    assert found.second_look == BASES["entropy"].second_look
    assert found.calibration == fit_calibration(trial_model.raw(TestTimeConfig(), valid).z, valid.label)


def test_typical_pair_is_the_median_support_of_counted_pairs(trial_model: TrialModel, valid: EncodedRows) -> None:
    counts = trial_model.extras.combinations
    assert counts is not None
    known = counts.reliability(valid.ids)
    assert typical_pair(trial_model, valid) == max(1e-3, float(np.median(known)))
    none = replace(trial_model, extras=replace(trial_model.extras, combinations=None))
    assert typical_pair(none, valid) == 1.0


def test_spread_is_the_regression_of_how_far_opinions_move(trial_model: TrialModel, valid: EncodedRows) -> None:
    found = fit_spread(trial_model, BASES["entropy"], valid)
    raw = trial_model.raw(fit_base(trial_model, BASES["entropy"], valid).looking(trigger=Always()), valid)
    base = fit_base(trial_model, BASES["entropy"], valid).calibration
    assert base is not None
    p = 1 / (1 + np.exp(-(base.a * raw.z0 + base.b)))
    bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    moved = np.abs(raw.z - raw.z0)
    residual = moved - (found[0] + found[1] * raw.missing + found[2] * bits)
    for column in (np.ones(len(bits)), raw.missing, bits):
        assert abs(residual @ column) < 1e-6 * len(bits)  # least squares leaves nothing along a regressor
    assert moved.mean() > 0.05
