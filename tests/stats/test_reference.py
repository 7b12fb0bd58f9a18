"""Numbers of packages that are not installed here: mixtures of ``expectation``, boundaries, sample ratio and sequences of
``sequential-analysis`` (frozen in reference.json, where their versions are named)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from thinktwice.stats.group_sequential import boundaries, obrien_fleming, pocock, spent_by
from thinktwice.stats.sample_ratio import log_bayes_factor
from thinktwice.stats.sequences import log_e_value, log_e_value_above, two_sided_radius

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text(encoding="utf-8"))


def test_mixtures() -> None:
    for row in REFERENCE["mixtures"]:
        z = row["s"] / math.sqrt(row["v"])
        # Both start at -½ ln(1 + v/ρ): so much for their tuning constant ρ.
        ratio = math.expm1(-2 * row["log_at_zero"])
        found = log_e_value_above(z, ratio) if row["one_sided"] else log_e_value(z, ratio)
        assert found == pytest.approx(row["log_mixture"], abs=1e-9)


def test_boundaries() -> None:
    spendings = {"obrien-fleming": obrien_fleming, "pocock": pocock}
    for row in REFERENCE["boundaries"]:
        spent = spent_by(row["fractions"], row["alpha"], True, spendings[row["spending"]])
        for mine, theirs in zip(boundaries(tuple(row["fractions"]), spent), row["bounds"], strict=True):
            if theirs is None or theirs > 7.5:
                assert mine > 7.5  # a probability below 1e-13 is none
            else:
                assert mine == pytest.approx(theirs, abs=1e-4)


def test_sample_ratio() -> None:
    for row in REFERENCE["sample_ratio"]:
        share = np.full(len(row["counts"]), 1 / len(row["counts"]))
        counts = np.array(row["counts"], np.float64)
        assert log_bayes_factor(counts, share, row["concentration"]) == pytest.approx(row["log_e"], abs=1e-6)


def test_sequences() -> None:
    for row in REFERENCE["sequences"]:
        half = two_sided_radius(row["n"] / row["tuned_for"], row["alpha"]) / math.sqrt(row["n"])
        # Tuned by another approximation of the best ρ: equal where it is tuned, near it elsewhere.
        assert half == pytest.approx(row["half_width_of_sd_1"], rel=0.02)
