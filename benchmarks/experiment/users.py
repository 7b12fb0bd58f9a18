"""Simulated users of an A/A or A/B test: heavy-tailed activity and individual click rates, so that rows are correlated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thinktwice.stats.difference import Difference, Metric, difference
from thinktwice.stats.moments import Moments

NAMES = ("clicks", "shown", "pre_clicks", "pre_shown")
CTR, CLICKS = Metric("clicks", "shown"), Metric("clicks")
PAST = Metric("pre_clicks", "pre_shown")
DAYS = 14
RAMP = (0.02, 0.02, 0.1, 0.1, 0.25, 0.25, 0.5, 0.5, 1, 1, 1, 1, 1, 1)  # coverage by day
TREND = np.linspace(0.8, 1.6, DAYS)  # factor of the click rate, which doubles during the experiment


@dataclass(frozen=True)
class World:
    """Users of both arms over the days.

    Attributes:
        arm: 0 or 1 [N].
        shown, clicks: rows by user and day [N, D], only while enrolled.
        past: impressions and clicks of the preceding 14 days [N, 2].
    """

    arm: np.ndarray
    shown: np.ndarray
    clicks: np.ndarray
    past: np.ndarray


def draw(rng: np.random.Generator, users: int, *, ramp: bool = False, lift: float = 0.0, sigma: float = 1.2) -> World:
    """``users`` per arm; with a ramp they are enrolled when the coverage reaches their bucket, while rates follow a trend."""
    n = 2 * users
    arm = np.repeat([0, 1], users)
    activity = 3 * np.exp(rng.normal(0, sigma, n))  # impressions per day; the top 1 % of users have about 13 % of all
    rate = rng.beta(2, 38, n)  # 5 % on average
    shown = rng.poisson(activity[:, None], (n, DAYS))
    by_day = np.ones(DAYS)
    if ramp:
        enters = np.searchsorted(np.array(RAMP), rng.random(n), side="left").clip(0, DAYS - 1)
        shown *= np.arange(DAYS)[None, :] >= enters[:, None]
        by_day = TREND
    factor = np.where(arm == 1, 1 + lift, 1.0)[:, None] * by_day[None, :]
    clicks = rng.binomial(shown, np.clip(rate[:, None] * factor, 0, 1))
    pre_shown = rng.poisson(activity * 14)
    return World(arm, shown, clicks, np.stack([rng.binomial(pre_shown, rate), pre_shown], axis=1))


def totals(rng: np.random.Generator, users: int, sigma: float = 1.0) -> np.ndarray:
    """Sums of 14 days and of the preceding 14 days [N, 4], in the order of ``NAMES``."""
    activity, rate = 3 * np.exp(rng.normal(0, sigma, users)), rng.beta(2, 38, users)
    shown, before = rng.poisson(14 * activity), rng.poisson(14 * activity)
    parts = [rng.binomial(shown, rate), shown, rng.binomial(before, rate), before]
    return np.stack(parts, axis=1).astype(np.float64)


def by_day(world: World) -> np.ndarray:
    """Sums of every user up to each day [D, N, 4], in the order of ``NAMES``."""
    now = np.stack([world.clicks.cumsum(axis=1), world.shown.cumsum(axis=1)], axis=2)
    past = np.broadcast_to(world.past[:, None, :], (*now.shape[:2], 2))
    return np.concatenate([now, past], axis=2).transpose(1, 0, 2).astype(np.float64)


def moments(sums: np.ndarray, arm: np.ndarray) -> tuple[Moments, Moments]:
    """Moments of both arms at one day, of users seen so far."""
    active = sums[:, 1] > 0
    return Moments.of(NAMES, sums[active & (arm == 0)]), Moments.of(NAMES, sums[active & (arm == 1)])


def compared(sums: np.ndarray, arm: np.ndarray, metric: Metric, cuped: bool) -> Difference:
    return difference(*moments(sums, arm), metric, [PAST] if cuped else [])


def rows_z(control: Moments, treatment: Moments) -> float:
    """The test that treats rows as independent: a pooled two-proportion z."""
    c, s = (np.array([m.total(name) for m in (control, treatment)]) for name in ("clicks", "shown"))
    p = c.sum() / s.sum()
    return float((c[1] / s[1] - c[0] / s[0]) / np.sqrt(p * (1 - p) * (1 / s).sum()))


def growing_treatment_z(rng: np.random.Generator, users: int) -> float:
    """z of an A/A test under the trend with a ramp that grows the treatment and uses all other users as control (Simpson's
    paradox)."""
    n = 2 * users
    rate, activity = rng.beta(2, 38, n), 3 * np.exp(rng.normal(0, 1.2, n))
    bucket = rng.random(n)
    shown = rng.poisson(activity[:, None], (n, DAYS))
    clicks = rng.binomial(shown, np.clip(rate[:, None] * TREND[None, :], 0, 1))
    treated = bucket[:, None] < np.array(RAMP)[None, :] / 2
    parts = []
    for flag in (False, True):
        use = treated == flag
        sums = np.stack([(clicks * use).sum(axis=1), (shown * use).sum(axis=1)], axis=1)
        parts.append(Moments.of(NAMES[:2], sums[sums[:, 1] > 0]))
    return difference(*parts, CTR).z
