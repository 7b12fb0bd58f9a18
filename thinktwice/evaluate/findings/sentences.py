"""What was found, in plain words: one to three sentences per question. A number that does not exist is said to be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from thinktwice.evaluate.findings.record import (
    Baseline,
    Comparison,
    Importance,
    Metric,
    PartQuality,
    RestoredField,
    WeakSlice,
)
from thinktwice.stats.metrics import UNDEFINED
from thinktwice.train.record import EvalRecord
from thinktwice.versioned import MeasuredInterval

LEVEL = 0.05
SUBJECTS = {"popularity": "the popularity of the item", "logistic regression": "one-hot logistic regression"}
NEAR = 1.1  # a weight within this factor of its equilibrium has reached it
OVERFIT = 0.002  # nats: a rise of validation logloss below this is not worth a sentence


def headline(comparison: Comparison) -> str:
    """Is the model good: its AUC, against the baseline that it beats least, or least certainly."""
    auc = comparison.auc
    if auc.value is None:
        return f"Whether the model is good cannot be said: AUC is {UNDEFINED}."
    pairs = f"{auc.value:.1%} of pairs"
    if auc.low is None or auc.high is None:
        return f"The model puts a click above a non-click in {pairs}; with the rows of one user alone, chance cannot be excluded."
    if auc.low <= 0.5:
        return f"The model is not proven better than chance: it puts a click above a non-click in {pairs} (95 % interval {max(auc.low, 0.0):.1%} to {min(auc.high, 1.0):.1%})."
    if not comparison.baselines:
        return f"The model puts a click above a non-click in {pairs}."
    hardest = min(comparison.baselines, key=lambda one: one.auc_change.low or 0.0)
    subject, change = SUBJECTS[hardest.name], hardest.auc_change
    ranks = f"it puts a click above a non-click in {pairs}, {subject} in {hardest.auc.value or 0.0:.1%}"
    if not change.significant:
        return f"The model is not proven better than {subject}: {ranks}."
    if (change.value or 0.0) < 0:
        return f"{subject[0].upper()}{subject[1:]} is better than the model: {ranks}."
    all_beaten = "" if len(comparison.baselines) < 2 else "both baselines: "
    return f"The model beats {all_beaten or subject + ': '}{ranks}."


def against(baseline: Baseline) -> str:
    """The comparison with one baseline, in AUC and in logloss."""
    words = (_judged("AUC", baseline.auc_change, 1), _judged("logloss", baseline.logloss_change, -1))
    return f"Against {SUBJECTS[baseline.name]}: {', '.join(words)}."


def _judged(metric: str, change: MeasuredInterval, better: int) -> str:
    if change.value is None:
        return f"{metric} {UNDEFINED}"
    verdict = ("better" if change.value * better > 0 else "worse") if change.significant else "no more than chance"
    return f"{metric} {change.value:+.4f} ({verdict})"


def learning(curve: Sequence[EvalRecord], kept: float, train: PartQuality, valid: PartQuality) -> str:
    """Whether training went on beyond the best weights, and how far rows that were seen are better than others."""
    if len(curve) < 2:
        first = "Training was evaluated only once, so there is no curve."
    else:
        at = min(curve, key=lambda point: abs(point.epoch - kept))
        last = curve[-1]
        rise = last.valid_logloss - at.valid_logloss
        if last.epoch <= at.epoch:
            lowest = min(curve, key=lambda point: point.valid_logloss)
            first = f"The weights of the end (epoch {kept:g}) were kept: validation logloss did not rise."
            if at.valid_logloss - lowest.valid_logloss > OVERFIT:
                first = (
                    f"The weights of the end (epoch {kept:g}) were kept, where the rate is 0; validation logloss was "
                    f"{at.valid_logloss - lowest.valid_logloss:.4f} lower at epoch {lowest.epoch:g}."
                )
        elif rise > OVERFIT:
            first = (
                f"After epoch {kept:g} validation logloss rose by {rise:.4f} while training logloss "
                f"{'fell' if last.train_logloss < at.train_logloss else 'did not fall'}: training beyond it overfits, "
                "and the weights of that epoch were kept."
            )
        else:
            first = f"Validation logloss hardly changed after epoch {kept:g}, whose weights were kept."
    if train.auc is None or valid.auc is None:
        return first
    return f"{first} These weights have AUC {train.auc:.3f} on training rows and {valid.auc:.3f} on validation rows."


def importance(groups: Sequence[Importance], fields: Sequence[Importance], metric: Metric) -> str:
    """Which inputs matter: those whose exchange costs quality beyond chance, the largest first."""
    matter = [one for one in fields if one.matters(metric)]
    if not matter:
        return "No field by itself matters beyond chance on these rows."
    named = ", ".join(one.name for one in matter[:3])
    rest = len(fields) - len(matter)
    others = f" For {rest} of {len(fields)} fields, chance explains the change." if rest else ""
    return f"The model relies most on {named}; of the groups, most on {groups[0].name}.{others}"


def weakness(slices: Sequence[WeakSlice]) -> str:
    """Which slices are certainly worse than the other rows, and which are certainly predicted wrong on average."""
    if not slices:
        return "There are too few rows, or too few different ones, to compare slices."
    weak = [
        one
        for one in slices
        if one.auc_gap is not None and (one.auc_gap.value or 0.0) < 0 and one.auc_gap.p_holm < LEVEL
    ]
    biased = [one for one in slices if one.bias.p_holm < LEVEL]
    checked = f"of {len(slices)} slices"
    if not weak and not biased:
        return f"No slice of {len(slices)} is worse than the other rows, or predicted wrong on average, beyond chance (Holm)."
    parts = []
    if weak:
        parts.append(f"{len(weak)} {checked} order clicks worse than the other rows: {_named(weak)}")
    if biased:
        most = sorted(biased, key=lambda one: -abs(one.bias.value or 0.0))
        parts.append(f"{len(biased)} {checked} are predicted too high or too low: {_named(most)}")
    return f"{'; '.join(parts)} (chance excluded for all slices together, Holm)."


def _named(slices: Sequence[WeakSlice]) -> str:
    shown = ", ".join(one.name for one in slices[:3])
    return f"{shown} and {len(slices) - 3} more" if len(slices) > 3 else shown


def restored(fields: Sequence[RestoredField]) -> str:
    """How many fields pre-training learned to restore."""
    if not fields:
        return "No field was masked, so nothing was learned."
    learned = [one for one in fields if one.entropy is not None and (one.losses[-1] or 0.0) < one.entropy]
    known = [one for one in fields if one.entropy is not None]
    better = [one for one in fields if one.losses[0] is not None and (one.losses[-1] or 0.0) < one.losses[0]]
    text = f"The loss of {len(better)} of {len(fields)} fields fell."
    if known:
        text += f" {len(learned)} of {len(known)} fields whose loss is over all their values are restored better than by their frequencies alone."
    return text


def classes(by_class: Mapping[str, Mapping[str, float]]) -> str:
    """Whether rows of each class are restored best under their own label."""
    both = [name for name in by_class if {"click", "no click"} <= set(by_class[name])]
    if len(both) < 2:
        return ""
    own = [
        name for name in both if by_class[name][name] < by_class[name]["click" if name == "no click" else "no click"]
    ]
    if len(own) == 2:
        return "Rows of both classes are restored better under their own label: clicks and non-clicks have learned distinct distributions."
    if own:
        return f"Only rows of the class {own[0]!r} are restored better under their own label."
    return "Rows are restored no better under their own label: clicks and non-clicks have not learned distinct distributions."


def equilibrium(fields: Sequence[RestoredField]) -> str:
    """How near the weights came to those to which the losses at the end would lead."""
    off = {
        one.name: max(
            one.difficulty.weight / one.difficulty.equilibrium, one.difficulty.equilibrium / one.difficulty.weight
        )
        for one in fields
        if one.difficulty is not None and one.difficulty.weight > 0 and one.difficulty.equilibrium > 0
    }
    if not off:
        return ""
    reached = sum(factor <= NEAR for factor in off.values())
    farthest = max(off, key=lambda name: off[name])
    if reached == len(off):
        return f"All {len(off)} weights reached their equilibrium (within 10 %)."
    return (
        f"{reached} of {len(off)} weights reached their equilibrium (within 10 %); they are off by a median factor of "
        f"{median(off.values()):.2f}, {farthest} by {off[farthest]:.2f}: training was too short for the others."
    )


def sign(fields: Sequence[RestoredField], correlation: float | None) -> str:
    """Whether this run shows that the published weights fall with the loss."""
    ended = [one for one in fields if one.weights and one.losses[-1] is not None]
    if correlation is None:
        return "There are too few fields with different losses to show how the weights follow them."
    hardest = max(ended, key=lambda one: one.losses[-1] or 0.0)
    easiest = min(ended, key=lambda one: one.losses[-1] or 0.0)
    seen = (
        f"in this run {hardest.name}, the hardest field to restore (loss {hardest.losses[-1]:.2f}), ended with the weight "
        f"{hardest.weights[-1]:.2f}, and {easiest.name}, the easiest (loss {easiest.losses[-1]:.2f}), with {easiest.weights[-1]:.2f}; "
        f"the rank correlation of loss and weight is {correlation:+.2f}"
    )
    if correlation < 0:
        return (
            "The method is published with the claim that fields which are hard to restore get more weight. Its loss does the opposite: "
            f"{seen}. At its equilibrium a weight is 1 / (2 × loss), and no loss of this form that is minimised can raise it with the loss."
        )
    return (
        "At its equilibrium a weight is 1 / (2 × loss), so fields that are hard to restore should get less weight, the opposite of the published claim. "
        f"This run does not show it yet: {seen}."
    )
