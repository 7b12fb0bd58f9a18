"""Assignment over many users: sample ratio, independence of salts, and stability of shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from thinktwice.experiment.assignment import buckets_of, layout_of, places_of
from thinktwice.experiment.file import ExperimentFile
from thinktwice.stats.sample_ratio import ALPHA, sample_ratio


def sample_ratios(runs: int) -> dict[str, Any]:
    """Alarms for a correct split over 28 daily looks, and detection of a split of 50.2 / 49.8."""
    rng = np.random.default_rng(7)

    def alarms(share: float, daily: int, repeats: int) -> float:
        first = rng.binomial(daily, share, (repeats, 28)).cumsum(axis=1)
        total = daily * np.arange(1, 29)
        alarm = [
            any(sample_ratio((a, n - a), (1, 1)).mismatch for a, n in zip(row, total, strict=True)) for row in first
        ]
        return float(np.mean(alarm))

    observed = sample_ratio((502_000, 498_000), (1, 1))
    return {
        "alpha": ALPHA,
        "right_split_alarms_over_28_looks": {str(28 * d): alarms(0.5, d, runs) for d in (100, 3_600, 36_000)},
        "observed_50.2_at_a_million_p": observed.p,
        "observed_50.2_at_a_million_caught": observed.mismatch,
        "true_50.2_caught_by_a_million": alarms(0.502, 35_714, runs),
        "true_50.2_caught_by_four_millions": alarms(0.502, 142_857, runs),
    }


def assignment(units: int) -> dict[str, Any]:
    """One experiment through its ramp, and two experiments with different salts."""
    ids = pa.array([f"user-{i}" for i in range(units)])
    arms = [{"name": "control", "bundle": "a"}, {"name": "treatment", "bundle": "b"}]
    moved, shares = 0, []
    before: np.ndarray | None = None
    bucket = buckets_of("ramp", ids)
    for coverage in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        file = ExperimentFile.model_validate(
            {"version": 1, "name": "ramp", "salt": "ramp", "arms": arms, "coverage": coverage}
        )
        layout = layout_of([file])
        arm = np.array([f"{r.arm} {int(r.enrolled)}" for r in layout.ranges])[places_of(layout, bucket)]
        if before is not None:
            was = np.char.endswith(before, "1")
            moved += int((arm[was] != before[was]).sum())
        before = arm
        enrolled = {a: float((arm == f"{a} 1").mean()) for a in ("control", "treatment")}
        shares.append({"coverage": coverage, **enrolled})
    other_bucket = buckets_of("another", ids)
    table = np.histogram2d(bucket // 1000, other_bucket // 1000, bins=10)[0]
    expected = [s["coverage"] / 2 for s in shares]
    worst = max(
        abs(s[a] - e) / np.sqrt(e * (1 - e) / units)
        for s, e in zip(shares, expected, strict=True)
        for a in ("control", "treatment")
    )
    # Traffic of 28 days with different users each day. The share of the treatment must not drift.
    rng = np.random.default_rng(8)
    daily = [float((bucket[rng.random(units) < 0.1] >= 5000).mean()) for _ in range(28)]
    slope = stats.linregress(np.arange(28), daily)
    return {
        "units": units,
        "enrolled_units_that_moved": moved,
        "shares": shares,
        "worst_share_in_standard_errors": float(worst),
        "uniform_p": float(stats.chisquare(np.bincount(bucket // 10, minlength=1000)).pvalue),
        "two_salts_independent_p": float(stats.chi2_contingency(table).pvalue),
        "daily_treatment_share_drift_p": float(slope.pvalue),
        "daily_treatment_share": [min(daily), max(daily)],
    }
