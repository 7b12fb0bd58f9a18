"""Does extra work pay on this log? Every candidate that validation tried, on test rows, beside controls that explain a gain.

Everything was fitted on validation, thresholds included; test rows measure and choose nothing. All changes are of logloss
against one plain pass of the same trunk (``off``), below 0 is better. Shapes: R test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.training_set import TrainingSet
from thinktwice.selection.accept import RANDOM_DRAWS
from thinktwice.selection.config import FitConfig
from thinktwice.selection.cost import estimated_cost
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
from thinktwice.testtime.engine import Raw
from thinktwice.testtime.support import entropy
from thinktwice.testtime.triggers import Always, BasePass, Dual, Entropy, ThresholdTrigger, TriggerKind

MAX_ROWS = 40_000  # test rows that every candidate scores
REACH_95 = 1.959964  # half width of a 95 % interval in standard errors
ORDERS: dict[str, ThresholdTrigger] = {"entropy": Entropy(), "dual": Dual()}  # triggers whose order of asking is drawn
GRIDS = FitConfig()  # strengths and counts among which a control finds its own
Scored = Callable[[TestTimeConfig], Raw]


def subsample_index(rows: EncodedRows, limit: int = MAX_ROWS) -> np.ndarray:
    """Indices of at most ``limit`` rows, spread evenly over time, in time order."""
    order = np.argsort(rows.time, kind="stable")
    if len(order) <= limit:
        return order
    return order[np.linspace(0, len(order) - 1, limit).astype(np.int64)]


def fitting_rows(data: TrainingSet, report: Mapping[str, Any]) -> EncodedRows:
    """The earlier validation rows on which the parameters of ``report`` were fitted; controls are refitted on them."""
    valid, rows = data.part("valid"), report["rows"]
    return valid.take(subsample_index(valid, rows["fit"] + rows["accept"])[: rows["fit"]])


def subsample(raw: Raw, index: np.ndarray) -> Raw:
    """The raw scores of some rows."""
    return Raw(*(getattr(raw, f.name)[index] for f in fields(Raw)))


def extra_work(
    trial_model: TrialModel,
    report: Mapping[str, Any],
    test: EncodedRows,
    fit: EncodedRows,
    slices: Mapping[str, np.ndarray],
    truth: np.ndarray | None = None,
    known: Mapping[TestTimeConfig, Raw] | None = None,
) -> dict[str, Any]:
    """What every candidate of a test-time report brings on test rows, as a JSON-able mapping without any wall time.

    Args:
        trial_model: the chosen trunk with the counts and extras of the report.
        report: of :func:`thinktwice.selection.fit.fit_test_time`.
        test: R rows.
        fit: validation rows for the controls (:func:`fitting_rows`).
        slices: name -> mask [R].
        truth: [R] true click probability, if the log knows it.
        known: scores of ``test`` that are already there.
    """

    @cache
    def scored(config: TestTimeConfig) -> Raw:
        return known[config] if known is not None and config in known else trial_model.raw(config, test)

    off = TestTimeConfig()
    panel = Panel(trial_model, test, _logit(trial_model, off, scored(off)), slices, truth)
    found = {c["name"]: (c, TestTimeConfig.model_validate(c["config"])) for c in report["candidates"]}
    entries = []
    for name, (evidence, config) in found.items():
        raw = scored(config)
        entries.append(
            {
                "name": name,
                "mode": config.mode,
                "passes": float(raw.num_paths.mean()),
                "cost": estimated_cost(config, float(raw.num_paths.mean())),
                **panel.measured(_logit(trial_model, config, raw)),
                "ships": bool(report["accepted"]) and name == report["best_name"],
                "validation": {key: evidence[key] for key in ("change", "controls", "accepted", "reasons")},
            }
        )
    _adjust(entries)
    escalating = _best_escalating(report, found)
    named = [name for name in dict.fromkeys((report["best_name"], escalating)) if name is not None]
    return {
        "rows": len(test),
        "users": int(panel.cluster.max(initial=-1)) + 1,
        "slices": [{"name": name, "rows": int(mask.sum())} for name, mask in slices.items()],
        "off": panel.quality(panel.off),
        "candidates": entries,
        "references": [r for name in named for r in _references(panel, name, found[name][1], fit, scored)],
        "uplift": _uplift(panel, escalating, found[escalating][1], scored) if escalating is not None else None,
    }


@dataclass(frozen=True)
class Panel:
    """The test rows on which one trunk's log-odds are measured against those of ``off``."""

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

    def quality(self, logit: np.ndarray) -> dict[str, Any]:
        """Metrics of log-odds [R]."""
        p = sigmoid(logit)
        out = {
            "logloss": metrics.logloss(self.label, logit),
            "auc": _finite(metrics.auc(self.label, logit)),
            "ece": metrics.ece(self.label, p),
        }
        return out if self.truth is None else out | {"truth_distance": float(np.abs(p - self.truth).mean())}

    def measured(self, logit: np.ndarray) -> dict[str, Any]:
        """Metrics of log-odds [R], what they change, in which rows, and what change these rows could have shown."""
        loss = self.loss(logit)
        change = self.change(loss)
        auc_change = paired_auc(self.label, self.off, logit, self.cluster)
        out = self.quality(logit) | {
            "change": change.to_json() | {"p_value": two_sided_p(change)},
            "auc_change": auc_change.to_json() | {"p_value": two_sided_p(auc_change)},
            "detectable": {"logloss": _detectable(change), "auc": _detectable(auc_change)},
            "slices": {
                name: paired_mean((loss - self.off_loss)[mask], clusters_of(self.test.user[mask])).to_json()
                for name, mask in self.slices.items()
            },
        }
        if self.truth is not None:
            distance = np.abs(sigmoid(logit) - self.truth) - np.abs(sigmoid(self.off) - self.truth)
            expected = row_logloss(self.truth, logit) - row_logloss(self.truth, self.off)  # no luck of the labels
            out["truth_distance_change"] = paired_mean(distance, self.cluster).to_json()
            out["truth_logloss_change"] = paired_mean(expected, self.cluster).to_json()
        return out


def _adjust(entries: list[dict[str, Any]]) -> None:
    """Holm's adjusted p-values over all candidates, added in place."""
    for kind in ("change", "auc_change"):
        adjusted = holm(np.asarray([e[kind]["p_value"] for e in entries]))
        for entry, p in zip(entries, adjusted, strict=True):
            entry[kind]["p_holm"] = float(p)


def _best_escalating(report: Mapping[str, Any], found: Mapping[str, tuple[Any, TestTimeConfig]]) -> str | None:
    """The candidate with a second opinion that validation liked best, of those that choose rows if there are any."""
    names = [name for name, (_, config) in found.items() if config.second_look is not None]
    if report["best_name"] in names:
        return str(report["best_name"])
    choosing = [name for name in names if trigger_of(found[name][1]) != "always"]
    return min(choosing or names, key=lambda name: found[name][0]["fit_logloss"], default=None)


def _references(
    panel: Panel, name: str, config: TestTimeConfig, fit: EncodedRows, scored: Scored
) -> Iterable[dict[str, Any]]:
    """What explains a gain of a candidate if it does as well, and the bound of any trigger. None of them can ship."""
    trial_model, test = panel.trial_model, panel.test
    own = panel.loss(_logit(trial_model, config, scored(config)))

    def reference(kind: str, loss: np.ndarray, passes: float) -> dict[str, Any]:
        return {
            "candidate": name,
            "name": kind,
            "passes": passes,
            "change": panel.change(loss).to_json(),
            "candidate_against": panel.change(own, loss).to_json(),
        }

    look, trigger = config.second_look, trigger_of(config)
    share = 1.0
    if look is not None and isinstance(look.trigger, ThresholdTrigger):
        share = float((trial_model.raw(config, fit).signal > look.trigger.threshold).mean())
    if config.uses_counts:
        other = trial_model.shuffled()
        settings = _refitted(other, _searched(other, config, fit), fit, trigger, share)
        logit, passes = other.logits(settings, test)
        yield reference("shuffled_counts", panel.loss(logit), passes)
    if look is not None and trigger != "always":
        settings = _refitted(trial_model, config, fit, "random", share)
        drawn = [trial_model.logits(settings.looking(salt=look.salt + salt), test) for salt in range(RANDOM_DRAWS)]
        losses = [panel.loss(logit) for logit, _ in drawn]
        yield reference("random_trigger", np.mean(losses, axis=0), float(np.mean([passes for _, passes in drawn])))
    if look is not None:
        base, change, num_paths = _everybody_asked(panel, config, scored)
        helped = change < 0
        loss = panel.loss(base) + np.where(helped, change, 0.0)
        yield reference("oracle_trigger", loss, 1.0 + float(np.where(helped, num_paths - 1, 0).mean()))


def _searched(trial_model: TrialModel, config: TestTimeConfig, fit: EncodedRows) -> TestTimeConfig:
    """The configuration with the gate or filter that suits other counts, none included; factors of single fields are kept."""
    if isinstance(config.base, Gate):
        tried: list[AnyBase] = [config.base.model_copy(update={"strength": strength}) for strength in GRIDS.strengths]
    elif isinstance(config.base, Filter):
        tried = [filter_of(count) for count in GRIDS.min_counts]
    else:
        return config
    alone = config.model_copy(update={"second_look": None})
    found = best_of(trial_model, [alone.model_copy(update={"base": base}) for base in tried], fit)
    return config.model_copy(update={"base": found.base})


def _refitted(
    trial_model: TrialModel, config: TestTimeConfig, fit: EncodedRows, trigger: TriggerKind | None, share: float
) -> TestTimeConfig:
    """The configuration with the thresholds and calibrations that suit other counts or another trigger."""
    if config.support_calibration is not None:
        return by_support(trial_model, config, fit)
    return calibrated(
        trial_model, config if trigger is None else triggered(trial_model, config, fit, trigger, share), fit
    )


def _uplift(panel: Panel, name: str, config: TestTimeConfig, scored: Scored) -> dict[str, Any]:
    """Change of logloss against the candidate's own base pass, when a share of rows is escalated, in the order of each trigger."""
    trial_model, raw = panel.trial_model, scored(config)
    base, change, _ = _everybody_asked(panel, config, scored)
    seen = BasePass(raw.missing, entropy(sigmoid(base)), base, np.zeros(len(base), np.uint64))
    signals = {trigger: order.signal(seen) for trigger, order in ORDERS.items()} | {"oracle": -change}
    curves = {trigger: uplift_curve(signal, change) for trigger, signal in signals.items()}
    shares = next(iter(curves.values()))[0]
    own = panel.change(panel.loss(_logit(trial_model, config, raw)), panel.loss(base))
    return {
        "candidate": name,
        "base_change": panel.change(panel.loss(base)).to_json(),
        "everybody": panel.change(panel.loss(base) + change, panel.loss(base)).to_json(),
        "trigger": trigger_of(config),
        "share": float(raw.escalated.mean()),
        "change": own.to_json(),
        "shares": shares.tolist(),
        "curves": {
            **{
                trigger: {"change": curve[1].tolist(), "area": area(curve) * abs(float(curve[1][-1]))}
                for trigger, curve in curves.items()
            },
            # What rows chosen by chance give on average.
            "random": {"change": (shares * float(change.mean())).tolist(), "area": 0.0},
        },
    }


def _everybody_asked(panel: Panel, config: TestTimeConfig, scored: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-odds of the base pass [R], change of a row's logloss by the second opinion [R], forward passes with it [R]."""
    everybody = config.looking(trigger=Always())
    raw = scored(everybody)
    base = _logit(panel.trial_model, everybody, replace(raw, z=raw.z0, num_paths=np.ones_like(raw.num_paths)))
    return base, panel.loss(_logit(panel.trial_model, everybody, raw)) - panel.loss(base), raw.num_paths


def _logit(trial_model: TrialModel, config: TestTimeConfig, raw: Raw) -> np.ndarray:
    return trial_model.engine(config).finish(raw).logit


def _detectable(change: Interval) -> float | None:
    """The change that these rows would have shown with probability 80 %; None where chance has no bound."""
    if not change.bounded:
        return None
    return minimum_detectable((change.high - change.low) / 2 / REACH_95, 0.0, 1)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
