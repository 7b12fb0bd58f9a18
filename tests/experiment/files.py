"""Experiment files for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from thinktwice.experiment.file import ExperimentFile

#: The same examples every time, and no deadline: the machine may be busy.
repeatable = settings(derandomize=True, deadline=None)

UNIT_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:@=+-"
COVERAGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)

units = st.text(UNIT_CHARACTERS, min_size=1, max_size=256)
bad_units = st.one_of(
    st.text(min_size=1, max_size=50).filter(lambda t: any(c not in UNIT_CHARACTERS for c in t.strip(" \t"))),
    st.text(UNIT_CHARACTERS, min_size=257, max_size=600),
)
salts = st.text("abcxyz0189-", min_size=1, max_size=40).filter(
    lambda s: s not in {"none", "override", "tester", "holdout"}
)
coverages = st.integers(1, 10_000).map(lambda c: c / 10_000)


def experiment(name: str = "exp1", arms: int = 2, **fields: Any) -> ExperimentFile:
    """An experiment of ``arms`` arms: control, t1, t2, ..."""
    listed = [{"name": "control", "bundle": "b0"}, *({"name": f"t{i}", "bundle": f"b{i}"} for i in range(1, arms))]
    content = {"version": 1, "name": name, "salt": name, "arms": listed, **fields}
    return ExperimentFile.model_validate(content)


def grouped(name: str, start: int, stop: int, **fields: Any) -> ExperimentFile:
    """An experiment of the exclusive group ``g``, whose salt is ``g-1``."""
    return experiment(name, salt="g-1", exclusive_group="g", buckets=(start, stop), **fields)
