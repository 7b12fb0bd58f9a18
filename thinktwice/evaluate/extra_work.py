"""Whether extra work pays on this log: every candidate tried on validation, on test rows, with controls that could explain a
gain.

Everything is fitted on validation, thresholds included; test rows are only used to measure. All changes are of logloss
against one plain pass of the same trunk (``off``), below 0 is better. Shapes: R test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.evaluate import STAGE
from thinktwice.evaluate.extra_work_record import (
    CandidateOnTest,
    Detectable,
    ExtraWork,
    Reference,
    SliceSize,
    TestedChange,
    TestQuality,
    Uplift,
    UpliftCurve,
)
from thinktwice.progress import track
from thinktwice.selection.accept import RANDOM_DRAWS
from thinktwice.selection.config import FitConfig
from thinktwice.selection.parameters import best_of, by_support, calibrated, filter_of, trigger_of, triggered
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats import metrics
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.multiple import holm
from thinktwice.stats.seeds import minimum_detectable, two_sided_p
from thinktwice.stats.significance import Interval, clusters_of, paired_auc, paired_mean
from thinktwice.stats.uplift import area, uplift_curve
from thinktwice.testtime.base_pass import AnyBase, Filter, Gate
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.report import Evidence, TestTimeReport, TriedCandidate
from thinktwice.testtime.scores import Raw
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Always, BasePass, Dual, Entropy, ThresholdTrigger, TriggerKind
from thinktwice.versioned import MeasuredInterval

MAX_ROWS = 40_000  # test rows that every candidate scores
REACH_95 = 1.959964  # half width of a 95 % interval in standard errors
ORDERS: dict[str, ThresholdTrigger] = {
    "entropy": Entropy(),
    "dual": Dual(),
}  # triggers whose order of escalation is plotted
GRIDS = FitConfig()  # strengths and counts that controls search
Scored = Callable[[TestTimeConfig], Raw]


def subsample_index(rows: EncodedRows, limit: int = MAX_ROWS) -> np.ndarray:
    """Indices of at most ``limit`` rows, evenly spaced, in time order."""
    order = np.argsort(rows.time, kind="stable")
    if len(order) <= limit:
        return order
    return order[np.linspace(0, len(order) - 1, limit).astype(np.int64)]


def fitting_rows(data: TrainingSet, report: TestTimeReport) -> EncodedRows:
    """The earlier validation rows on which the parameters of ``report`` were fitted; controls are refitted on them."""
    valid, rows = data.part_with_evidence("valid"), report.rows
    return valid.take(subsample_index(valid, rows.fit + rows.accept)[: rows.fit])


def subsample(raw: Raw, index: np.ndarray) -> Raw:
    """The raw scores of the rows at ``index``."""
    return Raw(*(getattr(raw, f.name)[index] for f in fields(Raw)))


def extra_work(
    trial_model: TrialModel,
    report: TestTimeReport,
    test: EncodedRows,
    fit: EncodedRows,
    slices: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    known: Mapping[TestTimeConfig, Raw] | None = None,
) -> ExtraWork:
    """The effect of every candidate of a test-time report on test rows, without measured times.

    Args:
        trial_model: the chosen trunk with the counts and extras of the report.
        report: of :func:`thinktwice.selection.fit.fit_test_time`.
        test: R rows.
        fit: validation rows for the controls (:func:`fitting_rows`).
        slices: name -> mask [R].
        truth: [R] true click probability, if the log has it.
        known: scores of ``test`` that were computed before.
    """

    @cache
    def scored(config: TestTimeConfig) -> Raw:
        return known[config] if known is not None and config in known else trial_model.raw(config, test)

    off = TestTimeConfig()
    panel = Panel(trial_model, test, _logit(trial_model, off, scored(off)), slices, truth)
    configs = {c.name: c.config for c in report.candidates}
    measured = [
        panel.measured(c, scored(c.config), ships=report.accepted and c.name == report.best_name)
        for c in track(report.candidates, stage=STAGE, total=len(report.candidates), label="candidates")
    ]
    escalating = _best_escalating(report)
    named = [name for name in dict.fromkeys((report.best_name, escalating)) if name is not None]
    return ExtraWork(
        rows=len(test),
        users=len(np.unique(test.user[test.user >= 0])),
        slices=tuple(SliceSize(name=name, rows=int(mask.sum())) for name, mask in slices.items()),
        off=panel.quality(panel.off),
        candidates=_adjusted(measured),
        references=tuple(
            r
            for name in track(named, stage=STAGE, total=len(named), label="controls")
            for r in _references(panel, name, configs[name], fit, scored)
        ),
        uplift=_uplift(panel, escalating, configs[escalating], scored) if escalating is not None else None,
    )


@dataclass(frozen=True)
class Panel:
    """Test rows on which one trunk's log-odds are measured against those of ``off``."""

    trial_model: TrialModel
    test: EncodedRows
    off: np.ndarray
    slices: Mapping[str, np.ndarray]
    truth: np.ndarray | None

    @cached_property
    def label(self) -> np.ndarray:
        return self.test.label.astype(np.float64)

    @cached_property
    def cluster(self) -> np.ndarray:
        return clusters_of(self.test.user)

    @cached_property
    def off_loss(self) -> np.ndarray:
        return self.loss(self.off)

    def loss(self, logit: np.ndarray) -> np.ndarray:
        return row_logloss(self.label, logit)

    def change(self, loss: np.ndarray, against: np.ndarray | None = None) -> Interval:
        """Mean of row losses [R] minus those of ``against`` (``off``)."""
        return paired_mean(loss - (self.off_loss if against is None else against), self.cluster)

    def quality(self, logit: np.ndarray) -> TestQuality:
        """Metrics of log-odds [R]."""
        p = sigmoid(logit)
        return TestQuality(
            logloss=metrics.logloss(self.label, logit),
            auc=_finite(metrics.auc(self.label, logit)),
            ece=metrics.ece(self.label, p),
            truth_distance=None if self.truth is None else float(np.abs(p - self.truth).mean()),
        )

    def measured(self, tried: TriedCandidate, raw: Raw, *, ships: bool) -> CandidateOnTest:
        """Metrics of a candidate from its raw scores: its changes, also by slice, and the detectable change. Its p-values are
        not yet adjusted."""
        logit, passes = _logit(self.trial_model, tried.config, raw), float(raw.num_paths.mean())
        loss = self.loss(logit)
        change = self.change(loss)
        auc_change = paired_auc(self.label, self.off, logit, self.cluster)
        truth_distance, truth_logloss = None, None
        if self.truth is not None:
            distance = np.abs(sigmoid(logit) - self.truth) - np.abs(sigmoid(self.off) - self.truth)
            expected = row_logloss(self.truth, logit) - row_logloss(self.truth, self.off)  # without label noise
            truth_distance = MeasuredInterval.of(paired_mean(distance, self.cluster))
            truth_logloss = MeasuredInterval.of(paired_mean(expected, self.cluster))
        return CandidateOnTest(
            **dict(self.quality(logit)),
            name=tried.name,
            mode=tried.config.mode,
            passes=passes,
            change=_tested(change),
            auc_change=_tested(auc_change),
            detectable=Detectable(logloss=_detectable(change), auc=_detectable(auc_change)),
            slices={
                name: MeasuredInterval.of(paired_mean((loss - self.off_loss)[mask], clusters_of(self.test.user[mask])))
                for name, mask in self.slices.items()
            },
            truth_distance_change=truth_distance,
            truth_logloss_change=truth_logloss,
            ships=ships,
            validation=Evidence(
                change=tried.change, controls=tried.controls, accepted=tried.accepted, reasons=tried.reasons
            ),
        )


def _tested(change: Interval) -> TestedChange:
    """A change with its unadjusted p-value."""
    p = two_sided_p(change)
    return TestedChange.of(change, p_value=p, p_holm=p)


def _adjusted(measured: list[CandidateOnTest]) -> tuple[CandidateOnTest, ...]:
    """The candidates with Holm's adjusted p-values over all of them."""
    changes = _holm([c.change for c in measured])
    auc_changes = _holm([c.auc_change for c in measured])
    return tuple(
        c.model_copy(update={"change": change, "auc_change": auc_change})
        for c, change, auc_change in zip(measured, changes, auc_changes, strict=True)
    )


def _holm(changes: list[TestedChange]) -> list[TestedChange]:
    adjusted = holm([change.p_value for change in changes])
    return [c.model_copy(update={"p_holm": float(p)}) for c, p in zip(changes, adjusted, strict=True)]


def _best_escalating(report: TestTimeReport) -> str | None:
    """The candidate with a second opinion that did best on validation, preferably one that chooses rows."""
    looking = [c for c in report.candidates if c.config.second_look is not None]
    if report.best_name in [c.name for c in looking]:
        return report.best_name
    choosing = [c for c in looking if trigger_of(c.config) != "always"]
    best = min(choosing or looking, key=lambda c: c.fit_logloss, default=None)
    return None if best is None else best.name


def _references(
    panel: Panel, name: str, config: TestTimeConfig, fit: EncodedRows, scored: Scored
) -> Iterable[Reference]:
    """Controls, which explain a candidate's gain if they do as well, and the upper bound of any trigger. None of them can
    ship."""
    trial_model, test = panel.trial_model, panel.test
    candidate_loss = panel.loss(_logit(trial_model, config, scored(config)))

    def reference(kind: str, loss: np.ndarray, passes: float) -> Reference:
        return Reference(
            candidate=name,
            name=kind,
            passes=passes,
            change=MeasuredInterval.of(panel.change(loss)),
            candidate_against=MeasuredInterval.of(panel.change(candidate_loss, loss)),
        )

    look, trigger = config.second_look, trigger_of(config)
    share = 1.0
    if look is not None and isinstance(look.trigger, ThresholdTrigger):
        share = float((trial_model.raw(config, fit).signal > look.trigger.threshold).mean())
    if config.uses_counts:
        shuffled = trial_model.shuffled()
        settings = _refitted(shuffled, _searched(shuffled, config, fit), fit, trigger, share)
        logit, passes = shuffled.logits(settings, test)
        yield reference("shuffled_counts", panel.loss(logit), passes)
    if look is not None and trigger != "always":
        settings = _refitted(trial_model, config, fit, "random", share)
        random_draws = [
            trial_model.logits(settings.looking(salt=look.salt + salt), test) for salt in range(RANDOM_DRAWS)
        ]
        losses = [panel.loss(logit) for logit, _ in random_draws]
        yield reference(
            "random_trigger", np.mean(losses, axis=0), float(np.mean([passes for _, passes in random_draws]))
        )
    if look is not None:
        base, change, num_paths = _all_escalated(panel, config, scored)
        helped = change < 0
        loss = panel.loss(base) + np.where(helped, change, 0.0)
        yield reference("oracle_trigger", loss, 1.0 + float(np.where(helped, num_paths - 1, 0).mean()))


def _searched(trial_model: TrialModel, config: TestTimeConfig, fit: EncodedRows) -> TestTimeConfig:
    """The configuration with the best gate or filter (or neither) for other counts; factors of single fields are kept."""
    if isinstance(config.base, Gate):
        tried: list[AnyBase] = [config.base.model_copy(update={"strength": strength}) for strength in GRIDS.strengths]
    elif isinstance(config.base, Filter):
        tried = [filter_of(count) for count in GRIDS.min_counts]
    else:
        return config
    alone = config.model_copy(update={"second_look": None})
    best = best_of(trial_model, [alone.model_copy(update={"base": base}) for base in tried], fit)
    return config.model_copy(update={"base": best.base})


def _refitted(
    trial_model: TrialModel, config: TestTimeConfig, fit: EncodedRows, trigger: TriggerKind | None, share: float
) -> TestTimeConfig:
    """The configuration with thresholds and calibrations refitted to other counts or another trigger."""
    if config.support_calibration is not None:
        return by_support(trial_model, config, fit)
    return calibrated(
        trial_model, config if trigger is None else triggered(trial_model, config, fit, trigger, share), fit
    )


def _uplift(panel: Panel, name: str, config: TestTimeConfig, scored: Scored) -> Uplift:
    """Change of logloss against the candidate's base pass when a growing share of rows is escalated, in the order of each
    trigger."""
    trial_model, raw = panel.trial_model, scored(config)
    base, change, _ = _all_escalated(panel, config, scored)
    base_pass = BasePass(
        raw.missing, entropy(sigmoid(base)), base, np.zeros(len(base), np.uint64), np.abs(raw.first - raw.z0)
    )
    signals = {trigger: order.signal(base_pass) for trigger, order in ORDERS.items()} | {"oracle": -change}
    own = config.second_look.trigger if config.second_look is not None else None
    if isinstance(own, ThresholdTrigger):
        signals = {own.kind: raw.signal} | signals if own.kind not in signals else signals
    curves = {trigger: uplift_curve(signal, change) for trigger, signal in signals.items()}
    shares = next(iter(curves.values()))[0]
    candidate_change = panel.change(panel.loss(_logit(trial_model, config, raw)), panel.loss(base))
    return Uplift(
        candidate=name,
        base_change=MeasuredInterval.of(panel.change(panel.loss(base))),
        everybody=MeasuredInterval.of(panel.change(panel.loss(base) + change, panel.loss(base))),
        trigger=trigger_of(config),
        share=float(raw.escalated.mean()),
        change=MeasuredInterval.of(candidate_change),
        shares=tuple(shares.tolist()),
        curves={
            **{
                trigger: UpliftCurve(change=tuple(curve[1].tolist()), area=area(curve) * abs(float(curve[1][-1])))
                for trigger, curve in curves.items()
            },
            # The expectation for rows chosen at random.
            "random": UpliftCurve(change=tuple((shares * float(change.mean())).tolist()), area=0.0),
        },
    )


def _all_escalated(panel: Panel, config: TestTimeConfig, scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds of the base pass [R], change of a row's logloss by the second opinion [R], forward passes with it [R]."""
    always = config.looking(trigger=Always())
    raw = scored(always)
    base = _logit(panel.trial_model, always, replace(raw, z=raw.first, num_paths=np.ones_like(raw.num_paths)))
    return base, panel.loss(_logit(panel.trial_model, always, raw)) - panel.loss(base), raw.num_paths


def _logit(trial_model: TrialModel, config: TestTimeConfig, raw: Raw) -> np.ndarray:
    return trial_model.engine(config).finish(raw).logit


def _detectable(change: Interval) -> float | None:
    """The change that these rows would have shown with 80 % power; None if the interval is unbounded."""
    if not change.bounded:
        return None
    return minimum_detectable((change.high - change.low) / 2 / REACH_95, 0.0, 1)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
