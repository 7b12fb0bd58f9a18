"""Share of the gain of a second look at all rows that remains when only a share of rows gets one, by order of escalation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thinktwice.data.encoded import EncodedRows
from thinktwice.selection.candidates import with_correction
from thinktwice.selection.parameters import calibrated, fit_base, forecast_weights
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import row_logloss
from thinktwice.testtime.calibrate import apply, sigmoid
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.modes import preset
from thinktwice.testtime.opinions.config import Retrieve
from thinktwice.testtime.report import Frontier
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Always, Predicted

SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

Floats = npt.NDArray[np.float64]


def frontiers(trial_model: TrialModel, valid: EncodedRows) -> tuple[Frontier, ...]:
    """Frontiers of retrieved evidence on the later half of ``valid``, calibrated on the earlier half; none without a retrieval,
    or if a second look at all rows gains nothing. ``oracle`` knows how far the second look will move each probability,
    ``random`` is the expectation of a random choice."""
    evidence = trial_model.evidence
    item = None if evidence is None else evidence.data.schema.key_of("item")
    if evidence is None or item is None or trial_model.extras.retrieval is None:
        return ()
    half = len(valid) // 2
    fit, later = valid.take(np.arange(half)), valid.take(np.arange(half, len(valid)))
    settings = with_correction(preset("retrieve", TestTimeConfig()), evidence.definition)
    settings = settings.looking(opinion=Retrieve(item_field=item))
    forecast = Predicted(weights=forecast_weights(trial_model, fit_base(trial_model, settings, fit), fit))
    settings = calibrated(trial_model, settings.looking(trigger=Always()), fit)
    engine, raw = trial_model.engine(settings), trial_model.raw(settings, later)
    first = np.where(raw.corrected, apply(engine.corrected_calibration, raw.first), apply(engine.calibration, raw.z0))
    second = engine.finish(raw).logit
    change = row_logloss(later.label, second) - row_logloss(later.label, first)
    if not change.sum() < 0:
        return ()
    orders = {
        "entropy": entropy(sigmoid(first)),
        "moved": np.abs(raw.first - raw.z0),
        "predicted": trial_model.raw(settings.looking(trigger=forecast), later).signal,
        "oracle": np.abs(sigmoid(second) - sigmoid(first)),
    }
    measured = [Frontier(trigger=name, shares=SHARES, kept=_kept(signal, change)) for name, signal in orders.items()]
    return (*measured, Frontier(trigger="random", shares=SHARES, kept=SHARES))


def _kept(signal: Floats, change: Floats) -> tuple[float, ...]:
    """Share of the sum of ``change`` [R] in the rows with the highest ``signal`` [R], for every share of rows."""
    running = np.cumsum(change[np.argsort(-signal, kind="stable")])
    return tuple(float(running[max(round(share * len(change)), 1) - 1] / running[-1]) for share in SHARES)
