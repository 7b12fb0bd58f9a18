"""The acceptance test: what ships has gained more than chance, a recalibration, shuffled counts and lucky rows explain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.selection.prices import fixed
from thinktwice.data.encoded import EncodedRows
from thinktwice.models import load_model
from thinktwice.selection.accept import (
    RANDOM_DRAWS,
    REPORTED,
    CandidateVerdict,
    control_losses,
    judge,
    sentence,
)
from thinktwice.selection.candidates import Candidate, candidates
from thinktwice.selection.config import FitConfig
from thinktwice.selection.fit import without_needless_looks
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.significance import Interval
from thinktwice.testtime import TestTimeConfig
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.modes import PRESETS
from thinktwice.testtime.reliability import Reliability, quantise
from thinktwice.testtime.triggers import TriggerKind

GAIN, LOSS, CHANCE = Interval(-0.01, -0.02, -0.001), Interval(0.01, 0.001, 0.02), Interval(-0.001, -0.01, 0.01)
WORSE = Interval(0.001, -0.01, 0.01)
GOOD = {"recalibrated": GAIN, "shuffled_counts": GAIN, "random_trigger": GAIN}


def verdict(
    change: Interval,
    *,
    controls: dict[str, Interval] | None = None,
    auc: Interval = CHANCE,
    cost: float = 1.0,
    max_cost: float = 2.0,
    all_rows: bool = False,
    config: TestTimeConfig = PRESETS["gate"],
) -> CandidateVerdict:
    candidate = Candidate("gate", config, 0.5, 1.0, lambda model, trigger, salt: TestTimeConfig(), all_rows)
    controls = GOOD if controls is None else controls
    return CandidateVerdict(candidate, 0.5, 0.7, 1.0, change, auc, controls, cost, max_cost)


def test_acceptance_needs_a_gain_over_chance_and_over_every_control() -> None:
    assert verdict(GAIN).accepted and verdict(GAIN).reasons == []
    assert verdict(LOSS).reasons == ["it is worse than the plain scores"]
    assert verdict(WORSE).reasons == ["no improvement"]
    assert verdict(CHANCE).reasons == ["its gain may be chance"]
    assert verdict(GAIN, auc=GAIN).reasons == ["it orders rows worse"]
    for control in GOOD:
        found = verdict(GAIN, controls=GOOD | {control: CHANCE})
        assert not found.accepted
        (reason,) = found.reasons
        assert "does not clearly beat" in reason
        edge = verdict(GAIN, controls=GOOD | {control: Interval(-0.01, -0.02, 0.0)})
        assert edge.reasons == [reason]  # an interval that touches 0 does not exclude it


def test_what_costs_too_much_is_not_accepted() -> None:
    cheap, dear = (verdict(GAIN, cost=1.35, max_cost=most) for most in (1.35, 1.34))
    assert cheap.accepted
    assert verdict(GAIN, cost=1.35, max_cost=float("inf")).accepted
    assert dear.reasons == ["it takes more than 1.34 times the time of the plain model"]


def test_a_second_look_at_every_row_ships_only_where_no_choice_of_rows_is_accepted() -> None:
    everybody, chosen = (verdict(GAIN, config=PRESETS["members"], all_rows=rows) for rows in (True, False))
    other = verdict(GAIN, config=PRESETS["retrieve"])
    assert without_needless_looks([everybody, other]) == [everybody, other]
    assert without_needless_looks([everybody, chosen, other]) == [chosen, other]
    assert without_needless_looks([]) == []


def test_what_is_reported_refuses_nothing() -> None:
    """A correction that is as good a day late is not wrong: it needs no fresh outcomes."""
    for name in REPORTED:
        assert verdict(GAIN, controls=GOOD | {name: CHANCE}).accepted
        assert verdict(GAIN, controls=GOOD | {name: LOSS}).accepted
    refused = verdict(GAIN, controls=GOOD | {"day_late": GAIN, "other_counters": CHANCE})
    assert refused.reasons == [
        "it does not clearly beat evidence of other rows, so it need not be knowledge of the row"
    ]


def test_sentences_say_what_ships_and_why() -> None:
    assert sentence(verdict(GAIN), 1000).startswith(
        "Test-time work ships on (gate, 1.00 passes per row): on 1,000 later"
    )
    assert sentence(verdict(GAIN), 9).endswith(
        "neither recalibration, shuffled counts nor a random choice of rows explains the gain."
    )
    alone = verdict(GAIN, controls={"recalibrated": GAIN})
    assert sentence(alone, 9).endswith("mere recalibration does not explain the gain.")
    assert "ships off" in sentence(verdict(CHANCE), 1000) and "its gain may be chance" in sentence(verdict(CHANCE), 9)
    assert "no candidate" in sentence(None, 1000)


def halves(rows: EncodedRows) -> tuple[EncodedRows, EncodedRows]:
    half = len(rows) // 2
    return rows.take(np.arange(half)), rows.take(np.arange(half, len(rows)))


def tried(trial_model: TrialModel, fit: EncodedRows, **settings: object) -> dict[str, Candidate]:
    config = FitConfig.model_validate(settings)
    return {c.name: c for c in candidates(trial_model, fit, TestTimeConfig(), config, fixed, None)}


def judged(candidate: Candidate, trial_model: TrialModel, fit: EncodedRows, later: EncodedRows) -> CandidateVerdict:
    off = trial_model.logits(TestTimeConfig(), later)[0]
    return judge(
        candidate, trial_model, fit, later, off, confidence=0.95, control_confidence=0.95, cost=1.0, max_cost=9.0
    )


def test_real_knowledge_of_rare_values_is_accepted(rare_trial_model: TrialModel, rare_valid: EncodedRows) -> None:
    fit, later = halves(rare_valid)
    found = judged(tried(rare_trial_model, fit, mode="gate")["gate"], rare_trial_model, fit, later)
    assert found.accepted
    assert set(found.controls) == {"recalibrated", "shuffled_counts"}


def test_a_gain_that_shuffled_counts_bring_as_well_is_refused(rare: Path, rare_valid: EncodedRows) -> None:
    """Every user is known as little as every other: a gate that shrinks the noise of all is a real gain, and no knowledge."""
    fit, later = halves(rare_valid)
    model, info = load_model(rare / "healthy")
    users = slice(1, model.fields.num_values[0])
    with torch.no_grad():
        model.embedding.table[users] += 0.8 * torch.randn(
            model.embedding.table[users].shape, generator=torch.Generator().manual_seed(0)
        )
    counts = np.full(model.fields.num_rows, 255, np.uint8)
    counts[list(model.fields.offsets)] = 0
    counts[users] = quantise(np.array([3]))
    protected = np.arange(model.num_fields) > 0
    alike = Reliability(counts, np.full(model.num_fields, 10.0), model.fields.num_values, protected)
    trial_model = TrialModel(model, info.calibration, alike, Extras())
    assert np.array_equal(trial_model.shuffled().reliability.counts, counts)
    found = judged(tried(trial_model, fit, mode="gate")["gate"], trial_model, fit, later)
    assert found.failures == [] and found.controls["recalibrated"].high < 0
    assert found.controls["shuffled_counts"].value == 0.0
    assert found.reasons == ["it does not clearly beat shuffled counts, so it need not be knowledge of rare values"]


def test_counts_of_other_values_bring_less(rare_trial_model: TrialModel, rare_valid: EncodedRows) -> None:
    fit, later = halves(rare_valid)
    wrong = rare_trial_model.shuffled(seed=9)
    right = judged(tried(rare_trial_model, fit, mode="gate")["gate"], rare_trial_model, fit, later)
    found = tried(wrong, fit, mode="gate")
    assert "gate" not in found or not judged(found["gate"], wrong, fit, later).accepted
    assert right.controls["shuffled_counts"].value < -0.005


def test_the_shuffled_model_has_other_reliabilities_and_combinations(
    trial_model: TrialModel, valid: EncodedRows
) -> None:
    other = trial_model.shuffled()
    assert not np.array_equal(other.reliability.of(valid.ids), trial_model.reliability.of(valid.ids))
    before, after = trial_model.extras.combinations, other.extras.combinations
    assert before is not None and after is not None
    changed = before.reliability(valid.ids) != after.reliability(valid.ids)
    assert changed.mean() > 0.1
    assert other.model is trial_model.model and other.extras.heads is trial_model.extras.heads


@pytest.mark.parametrize(
    ("mode", "name", "controls"),
    [
        ("calibrated", "calibrated by support", {"shuffled_counts"}),
        ("filter", "filter", {"shuffled_counts"}),
        ("uttsi", "uttsi", {"shuffled_counts", "random_trigger"}),
        ("uttsi", "uttsi, exact", {"shuffled_counts", "random_trigger"}),
        ("members", "members", {"random_trigger"}),
        ("members", "members, gated", {"shuffled_counts", "random_trigger"}),
        ("members", "members, all rows", set()),
    ],
)
def test_controls_are_run_where_they_apply(
    mode: str, name: str, controls: set[str], rare_trial_model: TrialModel, rare_valid: EncodedRows
) -> None:
    fit, later = halves(rare_valid.take(np.arange(0, 4000, 4)))
    quick = {"strengths": (1.0,), "min_counts": (2,), "member_shares": (0.2,), "max_paths": (4,)}
    candidate = tried(rare_trial_model, fit, mode=mode, **quick)[name]
    found = control_losses(candidate, rare_trial_model, fit, later)
    assert set(found) == {"recalibrated"} | controls
    assert all(loss.shape == (len(later),) for loss in found.values())
    own = row_logloss(later.label, rare_trial_model.logits(candidate.config, later)[0])
    assert all(not np.array_equal(own, loss) for loss in found.values())


def test_the_random_control_is_the_mean_of_several_draws_of_as_many_rows(
    rare_trial_model: TrialModel, rare_valid: EncodedRows
) -> None:
    fit, later = halves(rare_valid)
    candidate = tried(rare_trial_model, fit, mode="members", member_shares=(0.2,), strengths=(0.0,))["members"]
    asked: list[tuple[TriggerKind | None, int]] = []
    configs: list[TestTimeConfig] = []

    def refit(model: TrialModel, trigger: TriggerKind | None, salt: int) -> TestTimeConfig:
        asked.append((trigger, salt))
        configs.append(candidate.refit(model, trigger, salt))
        return configs[-1]

    found = control_losses(replace(candidate, refit=refit), rare_trial_model, fit, later)["random_trigger"]
    assert asked == [("random", salt) for salt in range(RANDOM_DRAWS)] and RANDOM_DRAWS >= 4
    losses, rates = [], []
    for config in configs:
        logit, passes = rare_trial_model.logits(config, later)
        losses.append(row_logloss(later.label, logit))
        rates.append(passes - 1)
    np.testing.assert_allclose(found, np.mean(losses, axis=0))
    assert len({loss.tobytes() for loss in losses}) == RANDOM_DRAWS
    assert np.mean(rates) == pytest.approx(rare_trial_model.logits(candidate.config, fit)[1] - 1, abs=0.02)


def test_controls_are_not_run_for_what_fails_without_them(
    rare_trial_model: TrialModel, rare_valid: EncodedRows
) -> None:
    fit, later = halves(rare_valid)
    candidate = tried(rare_trial_model, fit, mode="gate")["gate"]

    def never(model: TrialModel, trigger: TriggerKind | None, salt: int) -> TestTimeConfig:
        raise AssertionError("a control was fitted")

    off = rare_trial_model.logits(TestTimeConfig(), later)[0]
    found = judge(
        replace(candidate, refit=never),
        rare_trial_model,
        fit,
        later,
        off,
        confidence=0.95,
        control_confidence=0.95,
        cost=1.0,
        max_cost=0.5,
    )
    assert found.failures and not found.controls


def test_a_higher_confidence_widens_the_intervals(rare_trial_model: TrialModel, rare_valid: EncodedRows) -> None:
    fit, later = halves(rare_valid)
    candidate = tried(rare_trial_model, fit, mode="calibrated")["calibrated by support"]
    off = rare_trial_model.logits(TestTimeConfig(), later)[0]
    low, high = (
        judge(
            candidate, rare_trial_model, fit, later, off, confidence=c, control_confidence=0.95, cost=1.0, max_cost=9.0
        ).change
        for c in (0.9, 0.999)
    )
    assert high.low < low.low < low.value < low.high < high.high
