"""What is kept of a network: all of it where the rows that are held out gain, nothing where its inputs are noise."""

from __future__ import annotations

import numpy as np
import pytest

from thinktwice.stats.metrics import logloss
from thinktwice.train.logit_network import Examples, fit_network


def examples(rows: int, seed: int, *, effect: float, users: int = 50) -> Examples:
    """Labels of a logit that the base logit misses by ``effect`` times the square of an input."""
    rng = np.random.default_rng(seed)
    inputs, logit = rng.normal(size=(rows, 6)).astype(np.float32), rng.normal(size=rows)
    truth = logit + effect * (inputs[:, 1].astype(np.float64) ** 2 - 1)
    label = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    return Examples(inputs, logit, label, rng.integers(0, users, rows) if users else np.full(rows, -1))


def test_a_gain_is_kept() -> None:
    train, held_out = examples(12_000, 0, effect=0.8), examples(4000, 1, effect=0.8)
    found = fit_network(train, held_out)
    assert found.scale > 0.5 and found.epochs >= 1
    assert found.gain > found.error > 0
    change = found.network(held_out.inputs)
    assert np.corrcoef(change, held_out.inputs[:, 1] ** 2)[0, 1] > 0.8
    again = fit_network(train, held_out)
    assert all(np.array_equal(a, b) for a, b in zip(found.network.arrays, again.network.arrays, strict=True))
    other = fit_network(train, held_out, seed=1)
    assert not np.array_equal(found.network.arrays[0], other.network.arrays[0])


@pytest.mark.parametrize("users", [0, 50])
def test_of_noise_nothing_is_kept(users: int) -> None:
    """A gain of more than one standard error comes by chance now and then; it must then be harmless on fresh rows."""
    kept = 0
    for seed in range(8):
        train, held_out, fresh = (examples(n, 10 * seed + n, effect=0.0, users=users) for n in (6000, 3000, 3001))
        found = fit_network(train, held_out, seed=seed)
        if found.scale == 0:
            assert (found.epochs, found.gain) == (0, 0.0)
            assert found.network.is_zero and not found.network(held_out.inputs).any()
            continue
        kept += 1
        worse = logloss(fresh.label, fresh.logit + found.network(fresh.inputs)) - logloss(fresh.label, fresh.logit)
        assert worse < 2e-3
    assert kept <= 2


def test_a_change_of_calibration_alone_is_not_a_gain() -> None:
    train, held_out = examples(6000, 0, effect=0.0), examples(3000, 1, effect=0.0)
    twice = [Examples(e.inputs, 2 * e.logit + 1, e.label, e.user) for e in (train, held_out)]
    assert fit_network(*twice).scale == 0


def test_one_user_proves_nothing() -> None:
    train, held_out = examples(6000, 0, effect=0.8), examples(3000, 1, effect=0.8)
    alone = Examples(held_out.inputs, held_out.logit, held_out.label, np.zeros(3000, np.int64))
    assert fit_network(train, alone).network.is_zero


def test_what_harms_is_shrunk_to_nothing() -> None:
    """Later rows contradict the rows of training."""
    found = fit_network(examples(6000, 0, effect=0.8), examples(3000, 1, effect=-0.8))
    assert found.network.is_zero
