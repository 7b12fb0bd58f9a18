"""The free parameters of one configuration, fitted on validation rows: thresholds, calibrations, temperature."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from thinktwice.calibration import MAX_MAGNITUDE
from thinktwice.data.encoded import EncodedRows
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.calibration import fit_temperature
from thinktwice.stats.metrics import logloss
from thinktwice.testtime import calibrate
from thinktwice.testtime.base_pass import AnyBase, Filter, Gate, Plain
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.evidence.correction import CounterInputs
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import (
    Always,
    AnyTrigger,
    BasePass,
    Budget,
    Dual,
    Entropy,
    Moved,
    Predicted,
    Random,
    ThresholdTrigger,
    TriggerKind,
)
from thinktwice.train.measure import fit_calibration

RIDGE = 10.0  # rows that count as evidence for a weight of 0
MIN_ESCALATED = 200  # minimum rows for a separate calibration
NEVER_FIRES = MAX_MAGNITUDE  # above every signal
BY_THRESHOLD: dict[TriggerKind, type[Dual] | type[Entropy] | type[Moved] | type[Random]] = {
    "dual": Dual,
    "entropy": Entropy,
    "moved": Moved,
    "random": Random,
}


def trigger_of(settings: TestTimeConfig) -> TriggerKind | None:
    """The trigger of the second look; None without a second look."""
    return None if settings.second_look is None else settings.second_look.trigger.kind


def calibrated(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> TestTimeConfig:
    """``settings`` with a calibration for rows with one pass, one for rows with more, and one temperature for both."""
    if settings.correction is not None:
        return _calibrated_corrected(trial_model, settings, rows)
    settings = settings.model_copy(update={"calibration": None, "temperature": 1.0})
    if settings.second_look is not None:
        settings = settings.looking(calibration=None)
    # Triggers read calibrated scores in serving: escalate the same rows here.
    raw = trial_model.raw(fit_base(trial_model, settings, rows) if settings.second_look else settings, rows)
    escalated, plain = raw.escalated, ~raw.escalated
    calibration = fit_calibration(raw.z0, rows.label)
    if plain.sum() >= MIN_ESCALATED:
        calibration = fit_calibration(raw.z[plain], rows.label[plain])
    settings = settings.model_copy(update={"calibration": calibration})
    if escalated.sum() >= MIN_ESCALATED:
        settings = settings.looking(calibration=fit_calibration(raw.z[escalated], rows.label[escalated]))
    logit = trial_model.engine(settings).finish(raw).logit
    return settings.model_copy(update={"temperature": fit_temperature(logit, rows.label)})


def _calibrated_corrected(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> TestTimeConfig:
    """``settings`` with a calibration of corrected rows and one of rows with a second look; rows that are not corrected keep
    exactly the model's score."""
    settings = fit_base(trial_model, settings, rows)
    if settings.second_look is None:
        return settings
    settings = settings.looking(calibration=None)
    raw = trial_model.raw(settings, rows)
    if raw.escalated.sum() < MIN_ESCALATED:
        return settings
    return settings.looking(calibration=fit_calibration(raw.z[raw.escalated], rows.label[raw.escalated]))


def by_support(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> TestTimeConfig:
    """``settings`` with a calibration that depends on the missing support of a row."""
    raw = trial_model.raw(settings, rows)
    return settings.model_copy(update={"support_calibration": calibrate.fit_support(raw.z, raw.missing, rows.label)})


def best_of(trial_model: TrialModel, tried: Iterable[TestTimeConfig], rows: EncodedRows) -> TestTimeConfig:
    """The calibrated configuration with the lowest logloss on ``rows``; the first one on a tie."""
    fitted = [calibrated(trial_model, settings, rows) for settings in tried]
    losses = [logloss(rows.label, trial_model.logits(settings, rows)[0]) for settings in fitted]
    return fitted[int(np.argmin(losses))]


def best_gate(
    trial_model: TrialModel, off: TestTimeConfig, rows: EncodedRows, strengths: tuple[float, ...]
) -> TestTimeConfig:
    """The gate with the best strength; strength 0, part of every grid, means no gate."""
    return best_of(trial_model, [off.model_copy(update={"mode": "gate", "base": gate_of(s)}) for s in strengths], rows)


def gate_of(strength: float) -> AnyBase:
    """A gate of this strength; the plain pass for 0."""
    return Gate(strength=strength) if strength > 0 else Plain()


def best_filter(
    trial_model: TrialModel, off: TestTimeConfig, rows: EncodedRows, min_counts: tuple[int, ...]
) -> TestTimeConfig:
    """The filter with the best count; count 0, part of every grid, means no filter."""
    return best_of(
        trial_model, [off.model_copy(update={"mode": "filter", "base": filter_of(n)}) for n in min_counts], rows
    )


def filter_of(min_count: int) -> AnyBase:
    """A filter of this count; the plain pass for 0."""
    return Filter(min_count=min_count) if min_count > 0 else Plain()


def by_field(
    trial_model: TrialModel, gate: TestTimeConfig, rows: EncodedRows, factors: tuple[float, ...]
) -> TestTimeConfig:
    """``gate`` with a factor of the strength per unprotected field: the value of a field's information differs, and moments
    estimate it with error. A gate of strength 0 is returned unchanged."""
    return (
        _descended(trial_model, gate, gate.base, rows, "field_strengths", factors)
        if isinstance(gate.base, Gate)
        else gate
    )


def shrunk(
    trial_model: TrialModel, off: TestTimeConfig, rows: EncodedRows, shares: tuple[float, ...]
) -> TestTimeConfig:
    """A gate without counts: it keeps one share per unprotected field, whatever the value. If it does as well as a gate by
    counts, the trunk was over-trained and the gain is not due to rarity."""
    return _descended(trial_model, off.model_copy(update={"mode": "gate"}), Gate(), rows, "field_shares", shares)


def _descended(
    trial_model: TrialModel, start: TestTimeConfig, gate: Gate, rows: EncodedRows, name: str, grid: tuple[float, ...]
) -> TestTimeConfig:
    """``start`` with ``gate`` as its base pass, with the best number of ``grid`` (or 1) for every unprotected field, found by
    coordinate descent; calibrated."""

    def loss(settings: TestTimeConfig) -> float:
        z = trial_model.raw(settings, rows).z
        return logloss(rows.label, calibrate.apply(fit_calibration(z, rows.label), z))

    def with_(numbers: np.ndarray) -> TestTimeConfig:
        return start.model_copy(update={"base": gate.model_copy(update={name: tuple(numbers.tolist())})})

    best_numbers = np.ones(trial_model.model.num_fields)
    best = loss(start)
    for field in trial_model.reliability.maskable_fields:
        start_numbers = best_numbers
        for number in grid:
            trial_numbers = start_numbers.copy()
            trial_numbers[field] = number
            value = loss(with_(trial_numbers))
            if value < best:
                best, best_numbers = value, trial_numbers
    return calibrated(trial_model, with_(best_numbers), rows)


def triggered(
    trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows, trigger: TriggerKind, share: float
) -> TestTimeConfig:
    """``settings`` escalating ``share`` of the rows, the most uncertain by ``trigger``; for ``always``, all of them.

    The trigger ``random`` escalates as many rows, and on average as many paths, as the trigger of ``settings``.
    """
    look = settings.second_look
    assert look is not None
    if trigger == "always":
        return settings.looking(trigger=Always())
    base = fit_base(trial_model, settings, rows)
    if trigger == "budget":
        return base.looking(trigger=Budget(share=share))
    guide: AnyTrigger
    if trigger == "random":
        guide = look.trigger
    elif trigger == "predicted":
        guide = Predicted(weights=forecast_weights(trial_model, base, rows))
    else:
        guide = BY_THRESHOLD[trigger]()
    if isinstance(guide, ThresholdTrigger):
        guide = guide.model_copy(update={"threshold": NEVER_FIRES})
    signal = trial_model.raw(base.looking(trigger=guide), rows).signal
    threshold, top = float(np.quantile(signal, 1 - share)), float(signal.max())
    if trigger == "random":
        chosen = signal > threshold
        actual = float(chosen.mean())
        depth = np.clip((signal[chosen] - threshold) / max(top - threshold, 1e-12), 0, 1)
        mean_depth = float(depth.mean()) if chosen.any() else 1.0
        threshold, top = 1 - actual, 1 - actual + actual / (2 * max(mean_depth, 1e-3))
        return base.looking(trigger=Random(threshold=threshold, signal_max=top))
    assert isinstance(guide, ThresholdTrigger)
    return base.looking(trigger=guide.model_copy(update={"threshold": threshold, "signal_max": top}))


def forecast_weights(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> tuple[float, ...]:
    """Weights with which :class:`Predicted` forecasts the divergence of the second probability from the first, in nats, from what
    the first look knows. No label decides about rows, so these weights cannot learn the noise of labels; only the calibrations
    have read them."""
    assert rows.evidence is not None and trial_model.extras.correction is not None
    always = calibrated(trial_model, settings.looking(trigger=Always()), rows)
    engine, raw = trial_model.engine(always), trial_model.raw(always, rows)
    first = np.where(
        raw.corrected,
        calibrate.apply(engine.corrected_calibration, raw.first),
        calibrate.apply(engine.calibration, raw.z0),
    )
    p, q = calibrate.sigmoid(engine.finish(raw).logit), calibrate.sigmoid(first)
    p, q = np.clip(p, 1e-12, 1 - 1e-12), np.clip(q, 1e-12, 1 - 1e-12)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    inputs = CounterInputs.of(trial_model.extras.correction.standard, raw.z0, np.asarray(rows.evidence.counters))
    nothing = np.zeros(len(p))
    known = BasePass(nothing, entropy(q), first, nothing.astype(np.uint64), None, np.abs(raw.first - raw.z0), inputs)
    x = known.features(4 + 2 * trial_model.extras.correction.num_counters)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ divergence)
    return tuple(float(w) for w in weights)


def fit_base(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> TestTimeConfig:
    """``settings`` with a calibrated base pass, which triggers read."""
    nobody = settings.model_copy(update={"second_look": None, "calibration": None, "temperature": 1.0})
    if settings.correction is not None:
        raw = trial_model.raw(nobody, rows)
        first, label = raw.first[raw.corrected], rows.label[raw.corrected]
        calibration = fit_calibration(first, label) if len(first) >= MIN_ESCALATED else None
        correction = settings.correction.model_copy(update={"calibration": calibration})
        return settings.model_copy(update={"calibration": None, "temperature": 1.0, "correction": correction})
    return settings.model_copy(update={"calibration": fit_calibration(trial_model.raw(nobody, rows).z0, rows.label)})


def typical_pair(trial_model: TrialModel, rows: EncodedRows) -> float:
    """Median support of counted pairs of unprotected values: a combination with this support is always taken."""
    combinations = trial_model.extras.combinations
    if combinations is None or not combinations.pairs:
        return 1.0
    known = combinations.reliability(rows.ids)[:, : len(combinations.pairs)]
    return float(np.clip(np.median(known), 1e-3, 1.0))


def fit_spread(trial_model: TrialModel, settings: TestTimeConfig, rows: EncodedRows) -> tuple[float, float, float]:
    """How far a second opinion moves a logit, as s0 + s1 missing + s2 entropy: least squares of |z - z0| with all rows
    escalated."""
    always = fit_base(trial_model, settings, rows).looking(trigger=Always())
    raw = trial_model.raw(always, rows)
    bits = entropy(calibrate.sigmoid(calibrate.apply(always.calibration or trial_model.calibration, raw.z0)))
    design = np.stack([np.ones(len(bits)), raw.missing, bits], axis=1)
    s = np.linalg.lstsq(design, np.abs(raw.z - raw.z0), rcond=None)[0]
    return float(s[0]), float(s[1]), float(s[2])
