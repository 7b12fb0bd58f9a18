"""Several comparisons, and quantiles with ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from thinktwice.stats.multiple import dunnett_critical, dunnett_p, holm
from thinktwice.stats.quantiles import GROUPS, Histogram, HistogramBins, quantile

repeatable = settings(derandomize=True, deadline=None)


@settings(repeatable, max_examples=15)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12, atol=1e-15)


def test_holm_counts_what_could_not_be_tested() -> None:
    np.testing.assert_allclose(holm([0.01, math.nan, 0.02]), [0.03, 1.0, 0.04])
    assert len(holm([])) == 0
    with pytest.raises(ValueError):
        holm([1.5])


def test_dunnett_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    control, first, second = (rng.normal(m, 1, 4000) for m in (0, 0.03, 0.06))
    expected = stats.dunnett(first, second, control=control, rng=np.random.default_rng(1))
    pooled = math.sqrt(sum(np.var(x, ddof=1) for x in (control, first, second)) / 3)
    z = [(x.mean() - control.mean()) / (pooled * math.sqrt(2 / 4000)) for x in (first, second)]
    assert dunnett_p(z, 1.0, [1.0, 1.0]) == pytest.approx(expected.pvalue, abs=2e-3)
    c = dunnett_critical(0.05, 1.0, [1.0, 1.0, 1.0])
    assert c == pytest.approx(2.3490, abs=2e-4)  # Dunnett's table: three treatments, many units
    assert dunnett_critical(0.05, 1.0, [1.0]) == pytest.approx(1.959964, abs=1e-6)
    assert dunnett_p([math.nan], 1.0, [1.0])[0] == 1.0
    for wrong in ((0.0, [1.0]), (1.0, []), (1.0, [0.0])):
        with pytest.raises(ValueError):
            dunnett_p([1.0], *wrong)


@settings(repeatable, max_examples=10)
@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=4), st.floats(0.5, 4))
def test_the_chance_that_all_stay_within_is_that_of_scipy(treatments: list[float], z: float) -> None:
    loading = np.sqrt(1 / (1 + np.array(treatments)))
    correlation = np.outer(loading, loading)
    np.fill_diagonal(correlation, 1)
    bound = np.full(len(treatments), z)
    normal = stats.multivariate_normal(np.zeros(len(treatments)), correlation, seed=np.random.default_rng(0))
    within = float(normal.cdf(bound, lower_limit=-bound))
    assert dunnett_p([z], 1.0, treatments)[0] == pytest.approx(1 - within, abs=1e-5)


def rows(seed: int, users: int = 3000, rounded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Latencies of users that come again and are slow or fast together; with their group."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(users), rng.integers(1, 8, users))
    level = rng.normal(0, 0.5, users)[unit]
    value = np.exp(3 + level + rng.normal(0, 0.4, len(unit)))
    return (np.round(value) if rounded else value), rng.integers(0, GROUPS, users)[unit]


def test_histograms_add_and_give_the_quantile() -> None:
    value, group = rows(1)
    whole = Histogram.of_rows(value, group)
    half = len(value) // 3
    parts = Histogram.of_rows(value[:half], group[:half]) + Histogram.of_rows(value[half:], group[half:])
    for share in (0.05, 0.5, 0.9, 0.99):
        found = quantile(whole, share)
        # Sums of a bin are added in another order.
        assert quantile(parts, share).value == pytest.approx(found.value, rel=1e-12)
        assert found.value == pytest.approx(np.quantile(value, share), rel=0.011)
        assert found.low < found.value < found.high and not found.flags
    with pytest.raises(ValueError, match="cannot be added"):
        whole + Histogram.of_rows(value, group, HistogramBins(width=0.02))


@pytest.mark.parametrize("rounded", [False, True])
def test_the_interval_covers(rounded: bool) -> None:
    """With repeated units, and with ties; an interval that takes rows for independent covers much less."""
    truth_value, truth_group = rows(10_000, users=300_000, rounded=rounded)
    truth = quantile(Histogram.of_rows(truth_value, truth_group), 0.9).value
    covered = naive = 0
    for seed in range(300):
        value, group = rows(seed, users=600, rounded=rounded)
        found = quantile(Histogram.of_rows(value, group), 0.9)
        assert found.high > found.low
        covered += found.low <= truth <= found.high
        reach = 1.96 * math.sqrt(0.9 * 0.1 / len(value))
        low, high = np.quantile(value, [0.9 - reach, min(0.9 + reach, 1)])
        naive += low <= truth <= high
    assert covered / 300 > 0.91
    assert rounded or naive < covered


def test_ties_do_not_make_the_interval_collapse() -> None:
    rng = np.random.default_rng(0)
    value = rng.choice([5.0, 6.0, 7.0], 3000, p=[0.2, 0.6, 0.2])
    found = quantile(Histogram.of_rows(value, rng.integers(0, GROUPS, 3000)), 0.5)
    assert found.low < found.value < found.high and 5.5 < found.value < 6.5 and found.se > 0


def test_what_is_flagged() -> None:
    group = np.arange(200) % GROUPS

    def flags(value: np.ndarray, share: float = 0.5, g: np.ndarray = group) -> tuple[str, ...]:
        found = quantile(Histogram.of_rows(value, g), share)
        assert (
            found.flags == ()
            or not math.isfinite(found.se)
            or "not_finite" in found.flags
            or "out_of_range" in found.flags
        )
        return found.flags

    assert flags(np.array([]), g=np.array([], int)) == ("no_rows",)
    assert flags(np.full(200, 3.0)) == ("one_value",)
    assert flags(np.full(200, np.nan)) == ("not_finite",)
    assert flags(np.r_[np.arange(1.0, 200.0), np.nan]) == ("not_finite",)
    assert flags(np.arange(1.0, 201.0), share=0.999) == ("beyond_the_data",)
    assert flags(np.arange(1.0, 201.0), g=group % 5) == ("few_groups",)
    assert flags(np.arange(1.0, 201.0) * 1e6, share=0.5) == ("out_of_range",) or flags(np.arange(1.0, 201.0) * 1e6) == (
        "one_value",
    )
    for wrong in ((1.0, 0.05), (0.5, 0.0)):
        with pytest.raises(ValueError):
            quantile(Histogram.of_rows(np.arange(200.0), group), *wrong)
    with pytest.raises(ValueError, match="groups must be"):
        Histogram.of_rows(np.ones(2), np.array([0, 999]))


@repeatable
@given(st.lists(st.floats(1e-3, 1e7), min_size=1, max_size=50))
def test_bins_are_narrow(values: list[float]) -> None:
    bins = HistogramBins()
    position = bins.position(np.array(values))
    inside = (position > 0) & (position < bins.count - 1)
    left = bins.lowest * (1 + bins.width) ** (position - 1)
    ok = np.array(values)[inside] / left[inside]
    assert np.all((ok > 1 - 1e-9) & (ok < 1 + bins.width + 1e-9))
