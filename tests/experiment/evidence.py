"""Evidence for tests: simulated users of an experiment, and what the joins would have counted."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np

from thinktwice.experiment.evidence import ArmEvidence, Evidence, MomentsModel, QuantileModel
from thinktwice.experiment.file import ExperimentFile
from thinktwice.experiment.join_counts import ArmCounts, JoinCounts
from thinktwice.experiment.metrics import SUMS
from thinktwice.experiment.outcomes import OutcomeCounts
from thinktwice.stats.moments import Moments

T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)


def users(n: int, days: float, seed: int, **rates: float) -> np.ndarray:
    """Sums [n, S] in the order of ``SUMS``: the same heavy-tailed users day after day, with a click rate of their own."""
    rng = np.random.default_rng(seed)
    per_day = rng.pareto(2.0, n) + 0.5
    rate = np.clip(rng.beta(20, 380, n) * (1 + rates.get("lift", 0.0)), 0, 1)
    total = np.zeros((n, 8))
    for day in range(int(np.ceil(days))):
        part = min(1.0, days - day)
        drawn = np.random.default_rng([seed, day])  # so that a later look holds the days of an earlier one
        requests = drawn.poisson(per_day * part) + (day == 0)
        shown = requests * 5
        errors = drawn.binomial(requests, rates.get("errors", 0.001))
        fallbacks = drawn.binomial(requests - errors, rates.get("fallbacks", 0.0))
        escalated = drawn.binomial(shown, rates.get("escalated", 0.1))
        clicks = drawn.binomial(shown, rate)
        probability = shown * rate * rates.get("calibration", 1.0)
        total += np.stack(
            [requests, errors, fallbacks, shown, clicks, escalated, probability, shown + 7 * escalated], 1
        )
    return total


def with_past(now: np.ndarray, seed: int) -> np.ndarray:
    """The same users with sums of a pre-period, correlated with theirs."""
    rng = np.random.default_rng(seed)
    past = now.copy()
    past[:, 4] = rng.binomial(now[:, 3].astype(int), now[:, 6] / now[:, 3])
    return np.concatenate([now, past], axis=1)


def counts_of(file: ExperimentFile, units: int, **changes: Any) -> JoinCounts:
    """A clean join."""
    requests = units * 10
    arms = tuple(
        ArmCounts(
            experiment=file.name, arm=arm.name, requests=requests, answered=requests, joined=requests, lost=0, fallbacks=0,
            units=units, versions=(f"{arm.bundle} hash",),
        )
        for arm in file.arms
    )  # fmt: skip
    total = requests * len(file.arms)
    zeros = dict.fromkeys(JoinCounts.model_fields, 0)
    content = {
        **zeros,
        "lines": total,
        "requests": total,
        "predicted": total,
        "joined": total,
        "exposures": total * 5,
        "arms": arms,
    }
    return JoinCounts(**{**content, **changes})


def evidence(
    file: ExperimentFile,
    days: float,
    *,
    units: int = 3000,
    seed: int = 0,
    past: bool = False,
    changes: dict[str, Any] | None = None,
    **by_arm: dict[str, float],
) -> Evidence:
    """One look after so many days; rates by arm, e.g. ``t1={"lift": 0.1}``. ``changes`` replaces fields of the result."""
    names = [*SUMS, *(f"pre_{n}" for n in SUMS)] if past else list(SUMS)
    arms = []
    for place, arm in enumerate(file.arms):
        rates = by_arm.get(arm.name, {})
        sums = users(units, days, seed * 100 + place, **rates)
        moments = Moments.of(names, with_past(sums, seed * 100 + place + 50) if past else sums)
        latency = 40.0 * (1 + rates.get("slower", 0.0))
        quantiles = tuple(
            QuantileModel(metric=g.metric, value=latency, se=0.4 / np.sqrt(days), num_rows=int(sums[:, 0].sum()))
            for g in file.guardrails
            if g.metric.startswith("latency")
        )
        arms.append(
            ArmEvidence(arm=arm.name, units=units, sums=MomentsModel.of(moments), quantiles=quantiles, warm_replicas=2)
        )
    base = Evidence(
        at=T0 + timedelta(days=days), days=days, days_at_coverage=days, coverage=file.coverage, arms=tuple(arms),
        exposures=counts_of(file, units), outcomes=OutcomeCounts(**dict.fromkeys(OutcomeCounts.model_fields, 0)),
        log_write_failures=0,
    )  # fmt: skip
    return base.model_copy(update=changes or {})


def changed_arm(found: Evidence, name: str, **changes: Any) -> Evidence:
    """The same with fields of one arm replaced."""
    arms = tuple(a.model_copy(update=changes) if a.arm == name else a for a in found.arms)
    return found.model_copy(update={"arms": arms})
