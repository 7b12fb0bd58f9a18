"""Error rates that need thousands of experiments; the benchmark has the same ones in full."""

from __future__ import annotations

import math

import pytest

from benchmarks.experiment import assigning, false_positives, power

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_no_method_finds_too_often_what_is_not_there() -> None:
    runs = 2000
    found = false_positives.measure(runs)
    reach = 4 * math.sqrt(0.05 * 0.95 / runs)
    for scenario, rates in found["scenarios"].items():
        for name, rate in rates.items():
            if name.startswith("rows"):
                assert rate > 0.3, scenario
            else:
                assert rate < 0.05 + reach, (scenario, name, rate)
    assert found["growing_treatment"] > 0.5


def test_intervals_cover() -> None:
    runs = 2000
    reach = 4 * math.sqrt(0.05 * 0.95 / 200)  # the fewest runs of any of them
    for name, share in power.coverage(runs).items():
        assert share > 0.95 - reach, name


def test_a_right_split_raises_few_alarms() -> None:
    found = assigning.sample_ratios(2000)
    assert max(found["right_split_alarms_over_28_looks"].values()) < 0.005
    assert found["observed_50.2_at_a_million_caught"]
