"""The configurations that are worth a trial on one model, each with its parameters fitted on the earlier validation rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.metrics import logloss
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import Calibration
from thinktwice.testtime import calibrate
from thinktwice.testtime.config import FitConfig, SamplerKind, TestTimeConfig, TriggerKind
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.reliability import Reliability
from thinktwice.train.measure import fit_calibration

MIN_EXPLORED = 200  # rows that a calibrator of their own needs

#: Refit the free parameters for other counts or another trigger, the mode's own settings kept (for the controls).
Refit = Callable[[Reliability, TriggerKind], TestTimeConfig]


@dataclass(frozen=True)
class Candidate:
    """A fitted configuration, its logloss on the rows it was fitted on, and how to refit it for a control."""

    name: str
    config: TestTimeConfig
    fit_logloss: float
    refit: Refit


def candidates(
    model: Backbone,
    calibration: Calibration,
    reliability: Reliability,
    fit: EncodedRows,
    off: TestTimeConfig,
    config: FitConfig,
) -> list[Candidate]:
    """Gate, filter and guided paths, sampled and enumerated. A gate or filter whose best strength is 0 is no candidate."""

    def one_pass(settings: TestTimeConfig, counts: Reliability) -> TestTimeConfig:
        z = raw_rows(Engine(model, counts, settings), fit).z
        return settings.model_copy(update={"calibration": fit_calibration(z, fit.label)})

    def candidate(name: str, settings: TestTimeConfig, refit: Refit) -> Candidate:
        return Candidate(name, settings, _logloss(model, calibration, reliability, settings, fit), refit)

    def single(name: str, settings: TestTimeConfig) -> Candidate:
        return candidate(name, one_pass(settings, reliability), lambda counts, _: one_pass(settings, counts))

    gates = [single("gate", off.model_copy(update={"mode": "gate", "strength": s})) for s in config.strengths]
    filters = [single("filter", off.model_copy(update={"mode": "filter", "min_count": n})) for n in config.min_counts]
    gate = min(gates, key=lambda c: c.fit_logloss, default=None)
    best_filter = min(filters, key=lambda c: c.fit_logloss, default=None)
    found = []
    if gate is not None and gate.config.strength > 0:
        found.append(gate)
    if best_filter is not None and best_filter.config.min_count > 0:
        found.append(best_filter)
    min_count = best_filter.config.min_count if best_filter is not None else 0
    samplers: tuple[tuple[str, SamplerKind], ...] = (("uttsi", "bernoulli"), ("uttsi, exact", "enumerate"))
    for name, sampler in samplers:

        def paths(counts: Reliability, trigger: TriggerKind, sampler: SamplerKind = sampler) -> TestTimeConfig:
            settings = {"mode": "uttsi", "min_count": min_count, "sampler": sampler, "max_paths": config.max_paths}
            return fit_paths(model, counts, fit, off.model_copy(update=settings), config.explored_share, trigger)

        found.append(candidate(name, paths(reliability, "dual"), paths))
    return found


def fit_paths(
    model: Backbone,
    reliability: Reliability,
    fit: EncodedRows,
    settings: TestTimeConfig,
    share: float,
    trigger: TriggerKind,
) -> TestTimeConfig:
    """Trigger threshold for the given share of explored rows, and one calibration for each of the two groups of rows."""
    nobody = settings.model_copy(update={"trigger": "dual", "threshold": np.inf})
    base = raw_rows(Engine(model, reliability, nobody), fit)
    settings = settings.model_copy(update={"calibration": fit_calibration(base.z, fit.label)})
    signal = raw_rows(
        Engine(model, reliability, settings.model_copy(update={"trigger": "dual", "threshold": np.inf})), fit
    ).signal
    threshold, top = float(np.quantile(signal, 1 - share)), float(signal.max())
    if trigger == "random":  # the same share of rows, and on average the same number of paths
        depth = np.clip((signal - threshold) / max(top - threshold, 1e-12), 0, 1)
        mean_depth = float(depth[signal > threshold].mean()) if (signal > threshold).any() else 1.0
        actual = float((signal > threshold).mean())
        threshold, top = 1 - actual, 1 - actual + actual / (2 * max(mean_depth, 1e-3))
    settings = settings.model_copy(update={"trigger": trigger, "threshold": threshold, "signal_max": top})
    raw = raw_rows(Engine(model, reliability, settings), fit)
    rows = raw.explored
    if rows.sum() >= MIN_EXPLORED:
        settings = settings.model_copy(update={"explored_calibration": fit_calibration(raw.z[rows], fit.label[rows])})
    return settings


def _logloss(
    model: Backbone, calibration: Calibration, reliability: Reliability, settings: TestTimeConfig, rows: EncodedRows
) -> float:
    engine = Engine(model, reliability, settings, calibration)
    return logloss(rows.label, engine.finish(raw_rows(engine, rows)).logit)


def recalibrated(calibration: Calibration, z_fit: np.ndarray, label_fit: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The control that only recalibrates: log-odds of z under a calibration fitted like the candidates' own."""
    found = fit_calibration(z_fit, label_fit)
    return calibrate.apply(found or calibration, z)
