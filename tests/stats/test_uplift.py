"""The order in which rows are escalated."""

from __future__ import annotations

import numpy as np
import pytest

from thinktwice.stats.uplift import area, uplift_band, uplift_curve


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


def clustered(users: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, change and user of 8 rows of each user, whose gain follows the signal and whose rows err together."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 8)
    signal = rng.random(len(user))
    return signal, -0.4 * signal + rng.normal(0, 1, users)[user] + rng.normal(0, 0.3, len(user)), user


def test_the_band_holds_the_true_curve_and_the_true_area_as_often_as_it_says() -> None:
    # The signal is uniform: the best share s has signals above 1 - s, and gains 0.4 (s - s^2 / 2).
    shares = np.linspace(0, 1, 11)
    true = -0.4 * (shares - shares**2 / 2)
    held, areas, naive = np.zeros(11), 0, 0
    for draw in range(200):
        signal, change, user = clustered(150, draw)
        band = uplift_band(signal, change, user, 10, replicates=200)
        held += (band.low <= true) & (true <= band.high)
        areas += band.area.low <= 0.4 / 12 <= band.area.high
        alone = uplift_band(signal, change, np.arange(len(user)), 10, replicates=200)
        naive += alone.low[-1] <= true[-1] <= alone.high[-1]
    assert (held[1:] / 200 > 0.88).all() and (held[1:] / 200 < 0.99).all()
    assert 0.88 < areas / 200 < 0.99
    assert naive / 200 < 0.7  # rows of a user are not independent


def test_the_band_lies_about_the_curve_and_its_area_is_that_of_the_curve() -> None:
    signal, change, user = clustered(400, 0)
    curve, band = uplift_curve(signal, change), uplift_band(signal, change, user)
    assert (band.low <= curve[1]).all() and (curve[1] <= band.high).all()
    assert (band.low[0], band.high[0]) == (0.0, 0.0)
    assert band.area.value == pytest.approx(area(curve) * abs(curve[1][-1]))
    again = uplift_band(signal, change, user)
    assert np.array_equal(again.low, band.low) and again.area == band.area


def test_one_user_alone_proves_nothing() -> None:
    band = uplift_band(np.arange(50.0), np.linspace(1, -1, 50), np.zeros(50, int))
    assert not band.area.bounded and not band.area.significant
