"""The order in which rows are asked again."""

from __future__ import annotations

import numpy as np
import pytest

from thinktwice.evaluate.uplift import area, uplift_curve


def test_the_curve_starts_at_nothing_ends_at_the_whole_and_follows_the_signal() -> None:
    change = np.array([-4.0, 0.0, -2.0, 2.0])
    shares, reached = uplift_curve(np.array([4.0, 2.0, 3.0, 1.0]), change, points=4)
    assert shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert reached.tolist() == [0, -1.0, -1.5, -1.5, -1.0]


def test_a_signal_that_knows_the_gain_beats_chance_and_one_that_errs_loses_to_it() -> None:
    rng = np.random.default_rng(0)
    change = rng.normal(-0.1, 1.0, 20_000)
    oracle, chance, wrong = (area(uplift_curve(s, change)) for s in (-change, rng.random(20_000), change))
    assert oracle > 1.0
    assert chance == pytest.approx(0.0, abs=0.15)
    assert wrong == pytest.approx(-oracle, rel=0.1)


def test_no_gain_has_no_area() -> None:
    assert area(uplift_curve(np.arange(10.0), np.zeros(10))) == 0.0
