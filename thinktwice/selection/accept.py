"""The acceptance test: a candidate ships only if later rows show a gain that chance and the controls do not explain.

All changes are of logloss, candidate minus baseline, on the same rows: below 0 is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.models.backbone import Backbone
from thinktwice.selection.candidates import Candidate, counter_settings
from thinktwice.selection.counter_model import counter_model, counter_training
from thinktwice.selection.evidence import EvidenceFit
from thinktwice.selection.parameters import calibrated, trigger_of
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import auc, logloss, row_logloss
from thinktwice.stats.significance import Interval, clusters_of, paired_auc, paired_mean
from thinktwice.testtime import calibrate
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.report import TriedCandidate
from thinktwice.train.beside import Training
from thinktwice.train.measure import fit_calibration
from thinktwice.versioned import MeasuredInterval

CONTROL_WORDS = {
    "recalibrated": "it does not clearly beat a mere recalibration of the plain scores",
    "shuffled_counts": "it does not clearly beat shuffled counts, so it need not be knowledge of rare values",
    "other_counters": "it does not clearly beat evidence of other rows, so it need not be knowledge of the row",
    "first_look": "it does not clearly beat the corrected scores without a second look",
    "random_trigger": "it does not clearly beat rows chosen at random, so it need not be knowledge of uncertain rows",
}
#: Comparisons that are reported and refuse nothing. Counters that are as good a day late are good counters that need no fresh
#: outcomes; of two ways to use the same counters the one with the better fit ships.
REPORTED = ("day_late", "counters_in_trunk")
RANDOM_DRAWS = 4  # random choices of rows whose losses are averaged, to reduce variance


@dataclass(frozen=True)
class CandidateVerdict:
    """A candidate on the later rows: its change against ``off``, and against each control.

    Controls explain gains: they are not run for a candidate without a gain, or one that costs too much to ship.
    """

    candidate: Candidate
    logloss: float
    auc: float
    passes: float  # forward passes per row
    change: Interval  # of logloss against off
    auc_change: Interval
    controls: dict[str, Interval]  # of logloss against the control
    cost: float  # measured time relative to the plain model
    max_cost: float
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)  # of the rows [R]

    @property
    def reasons(self) -> list[str]:
        """Why it is not accepted; empty if it is."""
        decisive = {name: change for name, change in self.controls.items() if name not in REPORTED}
        return self.failures + [CONTROL_WORDS[name] for name, change in decisive.items() if change.high >= 0]

    @property
    def failures(self) -> list[str]:
        """The reasons that do not depend on controls."""
        out = []
        if not self.change.bounded:
            out.append("the later rows are of a single user, so chance cannot be excluded")
        elif self.change.low > 0:
            out.append("it is worse than the plain scores")
        elif self.change.value >= 0:
            out.append("no improvement")
        elif self.change.high >= 0:
            out.append("its gain may be chance")
        if self.auc_change.high < 0:
            out.append("it orders rows worse")
        if self.cost > self.max_cost:  # without the figure, which differs from run to run: cost.json has it
            out.append(f"it takes more than {self.max_cost:g} times the time of the plain model")
        return out

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def record(self) -> TriedCandidate:
        """The candidate's entry in the report."""
        return TriedCandidate(
            name=self.candidate.name,
            config=self.candidate.config,
            fit_logloss=self.candidate.fit_logloss,
            logloss=self.logloss,
            auc=self.auc,
            passes=self.passes,
            change=MeasuredInterval.of(self.change),
            auc_change=MeasuredInterval.of(self.auc_change),
            controls={name: MeasuredInterval.of(change) for name, change in self.controls.items()},
            accepted=self.accepted,
            reasons=tuple(self.reasons),
        )


def judge(
    candidate: Candidate,
    trial_model: TrialModel,
    fit: EncodedRows,
    later: EncodedRows,
    off: np.ndarray,
    *,
    confidence: float,
    control_confidence: float,
    cost: float,
    max_cost: float,
) -> CandidateVerdict:
    """Test a candidate on ``later`` rows against the plain model's log-odds ``off`` [R] and against its controls.

    Controls are fitted on ``fit`` like the candidate itself. Every gain must have an interval that excludes 0: over ``off`` at
    ``confidence``, which is corrected for the number of candidates, and over each control at ``control_confidence``, which is
    not (a candidate must pass all of them). ``cost`` is its measured time relative to the plain model.
    """
    verdict = compare(candidate, trial_model, later, off, confidence=confidence, cost=cost, max_cost=max_cost)
    return control(verdict, trial_model, fit, later, confidence=control_confidence)


def compare(
    candidate: Candidate,
    trial_model: TrialModel,
    later: EncodedRows,
    off: np.ndarray,
    *,
    confidence: float,
    cost: float,
    max_cost: float,
) -> CandidateVerdict:
    """The part of :func:`judge` without controls."""
    cluster = clusters_of(later.user)
    logit, passes = trial_model.logits(candidate.config, later)
    return CandidateVerdict(
        candidate,
        logloss(later.label, logit),
        auc(later.label, logit),
        passes,
        paired_mean(row_logloss(later.label, logit) - row_logloss(later.label, off), cluster, confidence),
        paired_auc(later.label, off, logit, cluster, confidence),
        {},
        cost,
        max_cost,
        row_logloss(later.label, logit),
    )


def control(
    verdict: CandidateVerdict,
    trial_model: TrialModel,
    fit: EncodedRows,
    later: EncodedRows,
    *,
    confidence: float,
    other: OtherCounters | None = None,
) -> CandidateVerdict:
    """The verdict of :func:`compare` with the controls, unless it fails without them."""
    if verdict.failures:
        return verdict
    cluster = clusters_of(later.user)
    losses = control_losses(verdict.candidate, trial_model, fit, later, other)
    return replace(
        verdict,
        controls={name: paired_mean(verdict.losses - loss, cluster, confidence) for name, loss in losses.items()},
    )


@dataclass(frozen=True, eq=False)
class OtherCounters:
    """Evidence that belongs to other rows, and the training of the trunk with these counters."""

    evidence: EvidenceFit
    training: Training[Backbone]


@contextmanager
def other_counters(trial_model: TrialModel) -> Iterator[OtherCounters]:
    """Train the control of counters in the trunk, beside this process if a core is idle."""
    assert trial_model.evidence is not None
    other = trial_model.evidence.of_other_rows()
    with counter_training(other, trial_model.model) as training:
        yield OtherCounters(other, training)


def control_losses(
    candidate: Candidate,
    trial_model: TrialModel,
    fit: EncodedRows,
    later: EncodedRows,
    other: OtherCounters | None = None,
) -> dict[str, np.ndarray]:
    """Row losses [R] of every control that applies: recalibration only, shuffled counts, rows chosen at random, and for
    evidence: that of other rows, counters a day late, or the first look.

    Shuffled counts apply if the candidate uses counts, random rows if it chooses rows. ``other`` is a training of the control of
    counters in the trunk that has begun already.
    """
    config, trigger = candidate.config, trigger_of(candidate.config)

    def losses(model: TrialModel, settings: TestTimeConfig) -> np.ndarray:
        return row_logloss(later.label, model.logits(settings, later)[0])

    plain = TestTimeConfig()
    again = fit_calibration(trial_model.raw(plain, fit).z, fit.label)
    out = {"recalibrated": row_logloss(later.label, calibrate.apply(again, trial_model.raw(plain, later).z))}
    if config.uses_counts:
        shuffled = trial_model.shuffled()
        out["shuffled_counts"] = losses(shuffled, candidate.refit(shuffled, trigger, 0))
    if config.correction is not None and config.second_look is not None:
        first = config.model_copy(update={"second_look": None})
        out["first_look"] = losses(trial_model, calibrated(trial_model, first, fit))
        out["other_counters"] = _loss_with_other_evidence(trial_model, config)
    elif config.mode == "counters" and trial_model.evidence is not None:
        with other_counters(trial_model) if other is None else nullcontext(other) as found:
            counting = counter_model(found.evidence, trial_model, found.training)
        other_model = replace(trial_model, counter_model=counting)
        settings = calibrated(other_model, config, found.evidence.fit)
        out["other_counters"] = row_logloss(later.label, other_model.logits(settings, found.evidence.later)[0])
    elif config.correction is not None and trial_model.evidence is not None:
        if trial_model.counter_model is not None:
            in_trunk = counter_settings(trial_model, config.model_copy(update={"correction": None}))
            out["counters_in_trunk"] = losses(trial_model, calibrated(trial_model, in_trunk, fit))
        for name, correction, other_fit, other_later in trial_model.evidence.controls():
            other_model = replace(trial_model, extras=replace(trial_model.extras, correction=correction))
            logit = other_model.logits(calibrated(other_model, config, other_fit), other_later)[0]
            out[name] = row_logloss(later.label, logit)
    if trigger not in (None, "always"):
        random_losses = [
            losses(trial_model, candidate.refit(trial_model, "random", salt)) for salt in range(RANDOM_DRAWS)
        ]
        out["random_trigger"] = np.mean(random_losses, axis=0)
    return out


def _loss_with_other_evidence(trial_model: TrialModel, config: TestTimeConfig) -> np.ndarray:
    """Row losses [R] of later rows with correction and retrieval fitted to counters and histories that belong to other rows."""
    assert trial_model.evidence is not None
    other = trial_model.evidence.of_other_rows()
    assert other.rows.evidence is not None and other.fit.evidence is not None
    counters = np.asarray(other.rows.evidence.counters[other.examples])
    correction, _ = other.correction(counters, other.fit.evidence.counters)
    retrieved = other.retrieval(correction, counters, other.retrieved())
    extras = replace(trial_model.extras, correction=correction, retrieval=None if retrieved is None else retrieved[0])
    model = replace(trial_model, extras=extras)
    if retrieved is None or retrieved[0].network.is_zero:
        config = config.model_copy(update={"second_look": None})
    return row_logloss(other.later.label, model.logits(calibrated(model, config, other.fit), other.later)[0])


def sentence(best: CandidateVerdict | None, rows: int) -> str:
    """What ships and why, in one plain sentence."""
    if best is None:
        return f"Test-time work ships off: no candidate improved the fit on validation ({rows:,} later rows were kept to prove it)."
    if not best.change.bounded:
        return (
            f"Test-time work ships off: all {rows:,} later validation rows are of one user, so that chance cannot be excluded; "
            "every row is scored once."
        )
    change = f"{best.change.value:+.5f} (interval {best.change.low:+.5f} to {best.change.high:+.5f}; below 0 is better)"
    if best.accepted:
        return (
            f"Test-time work ships on ({best.candidate.name}, {best.passes:.2f} passes per row): on {rows:,} later validation "
            f"rows it changed logloss by {change}, and {_explained(best)} the gain."
        )
    return (
        f"Test-time work ships off: on {rows:,} later validation rows the best candidate ({best.candidate.name}) changed "
        f"logloss by {change}, but {best.reasons[0]}; every row is scored once."
    )


def _explained(verdict: CandidateVerdict) -> str:
    words = {
        "recalibrated": "recalibration",
        "shuffled_counts": "shuffled counts",
        "other_counters": "evidence of other rows",
        "first_look": "the first look",
        "random_trigger": "a random choice of rows",
    }
    names = [words[name] for name in verdict.controls if name not in REPORTED]
    joined = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} nor {names[-1]}"
    return f"neither {joined} explains" if len(names) > 1 else f"mere {joined} does not explain"
