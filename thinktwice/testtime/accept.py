"""The acceptance test: a candidate ships only if later rows prove a gain that chance, calibration and luck do not explain.

All changes are of logloss, candidate minus the other, on the same rows: below 0 is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.metrics import auc, logloss, row_logloss
from thinktwice.evaluate.significance import Interval, clusters_of, paired_auc, paired_mean
from thinktwice.models.backbone import Backbone
from thinktwice.models.store import Calibration
from thinktwice.testtime.candidates import Candidate, recalibrated
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.engine import Engine, raw_rows
from thinktwice.testtime.reliability import Reliability

CONTROL_WORDS = {
    "recalibrated": "it does not clearly beat a mere recalibration of the plain scores",
    "shuffled_counts": "it does not clearly beat shuffled counts, so it need not be knowledge of rare values",
    "random_trigger": "it does not clearly beat rows chosen at random, so it need not be knowledge of unsure rows",
}


@dataclass(frozen=True)
class Verdict:
    """A candidate on the later rows: its change against ``off``, and against each control."""

    candidate: Candidate
    logloss: float
    auc: float
    passes: float  # scored rows per row
    change: Interval  # of logloss against off
    auc_change: Interval
    controls: dict[str, Interval]  # of logloss against the control

    @property
    def reasons(self) -> list[str]:
        """Why it is not accepted; empty when it is."""
        out = []
        if not self.change.bounded:
            out.append("the later rows hold one user only, so that chance cannot be excluded")
        elif self.change.low > 0:
            out.append("it is worse than the plain scores")
        elif self.change.value >= 0:
            out.append("that is no gain")
        elif self.change.high >= 0:
            out.append("its gain may be chance")
        if self.auc_change.high < 0:
            out.append("it orders rows worse")
        out += [CONTROL_WORDS[name] for name, change in self.controls.items() if change.high >= 0]
        return out

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.candidate.name,
            "config": self.candidate.config.model_dump(mode="json"),
            "fit_logloss": self.candidate.fit_logloss,
            "logloss": self.logloss,
            "auc": self.auc,
            "passes": self.passes,
            "change": self.change.to_json(),
            "auc_change": self.auc_change.to_json(),
            "controls": {name: change.to_json() for name, change in self.controls.items()},
            "accepted": self.accepted,
            "reasons": self.reasons,
        }


def judge(
    candidate: Candidate,
    model: Backbone,
    calibration: Calibration,
    reliability: Reliability,
    fit: EncodedRows,
    later: EncodedRows,
    off: np.ndarray,
    *,
    confidence: float,
) -> Verdict:
    """Test a candidate on ``later`` rows against the plain model's log-odds ``off`` [R] and against its controls.

    Controls are fitted on ``fit`` like the candidate itself. Every gain must have an interval that excludes 0.
    """

    def score(settings: TestTimeConfig, counts: Reliability) -> tuple[np.ndarray, float]:
        engine = Engine(model, counts, settings, calibration)
        scored = engine.finish(raw_rows(engine, later))
        return scored.logit, 1 + scored.path_rows / len(later)

    cluster = clusters_of(later.user)
    logit, passes = score(candidate.config, reliability)
    shuffled = reliability.shuffled()
    plain = Engine(model, reliability, TestTimeConfig())
    others = {
        "recalibrated": recalibrated(calibration, raw_rows(plain, fit).z, fit.label, raw_rows(plain, later).z),
        "shuffled_counts": score(candidate.refit(shuffled, candidate.config.trigger), shuffled)[0],
    }
    if candidate.config.trigger != "never":
        others["random_trigger"] = score(candidate.refit(reliability, "random"), reliability)[0]
    loss = row_logloss(later.label, logit)

    def against(other: np.ndarray) -> Interval:
        return paired_mean(loss - row_logloss(later.label, other), cluster, confidence)

    return Verdict(
        candidate,
        logloss(later.label, logit),
        auc(later.label, logit),
        passes,
        against(off),
        paired_auc(later.label, off, logit, cluster, confidence),
        {name: against(other) for name, other in others.items()},
    )


def sentence(best: Verdict | None, rows: int) -> str:
    """What ships and why, in one sentence without jargon."""
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
            f"rows it changed logloss by {change}, and neither recalibration nor shuffled counts explain the gain."
        )
    return (
        f"Test-time work ships off: on {rows:,} later validation rows the best candidate ({best.candidate.name}) changed "
        f"logloss by {change}, but {best.reasons[0]}; every row is scored once."
    )
